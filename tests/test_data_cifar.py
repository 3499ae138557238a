"""scifar10: its two layouts, its split, and files that are missing or altered."""

import numpy as np
import pytest
import torch

from ctrnn_assembly.data import load_task
from ctrnn_assembly.data.arrays import CIFAR10 as CLASSES
from ctrnn_assembly.errors import DataError
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.fit import fit
from fake_data import real_data, refuse_network, write_cifar, write_images, zip_folder


@pytest.fixture
def offline(monkeypatch):
    refuse_network(monkeypatch)


def test_cifar_layouts_rgb_and_planar(tmp_path, monkeypatch):
    images = write_cifar(tmp_path, monkeypatch)
    rgb = load_task("scifar10", data_dir=tmp_path)
    planar = load_task("scifar10-planar", data_dir=tmp_path)
    assert (rgb.name, planar.name) == ("scifar10-rgb", "scifar10-planar")
    assert (rgb.n_steps, rgb.n_input, len(rgb.train), len(rgb.val)) == (1024, 3, 90, 10)
    first = np.random.RandomState(1234).permutation(100)[0]
    x = torch.from_numpy(images[first])[None]
    assert torch.equal(rgb.train.x[:1], x)
    mean = torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float32).view(3, 1, 1)
    std = torch.tensor([0.2023, 0.1994, 0.2010], dtype=torch.float32).view(3, 1, 1)
    z = (x.float() / 255 - mean) / std
    # The published expressions for the two layouts.
    torch.testing.assert_close(rgb.sequence(x), z.view(-1, 3, 1024).permute(0, 2, 1))
    torch.testing.assert_close(planar.sequence(x), z.view(-1, 1024, 3))
    assert len(rgb.load_test()) == 20


@pytest.mark.usefixtures("offline")
def test_missing_or_altered_cifar_is_a_named_error(tmp_path, monkeypatch):
    words = r"cifar-10-python.tar.gz.*JPEG or PNG copies.*--data-dir"
    with pytest.raises(DataError, match=words):
        load_task("scifar10", data_dir=tmp_path / "nothing")
    write_cifar(tmp_path, monkeypatch)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    batch.write_bytes(batch.read_bytes()[:-1] + b"!")  # wrong md5: must not be unpickled
    with pytest.raises(DataError, match=words):
        load_task("scifar10", data_dir=tmp_path)


@pytest.mark.usefixtures("offline")
def test_image_files_take_the_place_of_missing_batches_under_another_name(tmp_path):
    root = write_images(tmp_path / "set", {"train": 10, "test": 2}, classes=CLASSES, size=(32, 32))
    zip_folder(root, tmp_path / "copies.zip")
    zip_folder(write_images(tmp_path / "ants", {"train": 10, "test": 2}), tmp_path / "ants.zip")
    for folder, where in ((root, root), (tmp_path, tmp_path / "copies.zip")):
        task = load_task("scifar10-planar", data_dir=folder)
        assert (task.name, task.classes) == ("scifar10-planar-png", CLASSES)
        assert f"PNG files in {where.name}: not the original" in task.note
        assert (len(task.train), len(task.val), len(task.load_test())) == (90, 10, 20)
        mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
        std = torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1)
        z = (task.train.x.float() / 255 - mean) / std
        torch.testing.assert_close(task.sequence(task.train.x), z.view(-1, 1024, 3))


@pytest.mark.usefixtures("offline")
def test_training_on_copies_says_so_and_keeps_it_in_the_summary(tmp_path):
    root = write_images(tmp_path / "set", {"train": 2, "test": 1}, classes=CLASSES, size=(32, 32))
    settings = {"task": "scifar10", "resize": 4, "epochs": 1, "modules": 1, "units": 2, "device": "cpu"}
    said = []
    config = make_config(settings, {"data_dir": str(root)})
    summary = fit(config, tmp_path / "run", report=said.append)
    assert "PNG files" in summary["note"]
    assert f"note: {summary['note']}" in said
    assert summary["task"] == "scifar10-rgb-png"


def test_the_originals_come_before_copies(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    write_images(tmp_path, {"train": 1, "test": 1}, classes=CLASSES, size=(32, 32))
    task = load_task("scifar10", data_dir=tmp_path)
    assert (task.name, task.note) == ("scifar10-rgb", "")


@pytest.mark.usefixtures("offline")
def test_real_jpeg_copies_of_cifar10_are_read_from_their_zip():
    folder = real_data("cifar10-jpeg.zip")
    task = load_task("scifar10", data_dir=folder, limit_train=100, limit_test=50)
    assert (task.name, task.n_steps, task.n_input) == ("scifar10-rgb-jpeg", 1024, 3)
    assert (len(task.train), len(task.val), len(task.load_test())) == (100, 100, 50)
