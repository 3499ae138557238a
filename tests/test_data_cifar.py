"""scifar10: its two layouts, its split, and files that are missing or altered."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ctrnn_assembly.data import load_task
from ctrnn_assembly.data.arrays import CIFAR10 as CLASSES
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.reproduction.experiments import versionless
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.fit import fit
from ctrnn_assembly.training.run import Run
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
    words = r"cifar-10-python.tar.gz.*folder or zip of images.*--data-dir"
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
        assert (task.name, task.classes) == ("scifar10-planar, CIFAR-10 (images)", CLASSES)
        assert task.data == "CIFAR-10 (images)"
        assert f"images in {where.name}: not the original" in task.note
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
    assert "not the original pixels" in summary["note"]
    assert f"note: {summary['note']}" in said
    assert (summary["task"], summary["data"]) == ("scifar10-rgb, CIFAR-10 (images)", "CIFAR-10 (images)")


def test_the_originals_come_before_copies(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    write_images(tmp_path, {"train": 1, "test": 1}, classes=CLASSES, size=(32, 32))
    task = load_task("scifar10", data_dir=tmp_path)
    assert (task.name, task.data, task.note) == ("scifar10-rgb", "CIFAR-10", "")


@pytest.mark.usefixtures("offline")
def test_real_jpeg_copies_of_cifar10_are_read_from_their_zip():
    folder = real_data("cifar10-jpeg.zip")
    task = load_task("scifar10", data_dir=folder, limit_train=100, limit_test=50)
    assert (task.name, task.n_steps, task.n_input) == ("scifar10-rgb, CIFAR-10 (JPEG)", 1024, 3)
    assert (len(task.train), len(task.val), len(task.load_test())) == (100, 100, 50)


@pytest.fixture
def copies(tmp_path):
    return write_images(tmp_path / "set", {"train": 2, "test": 1}, classes=CLASSES, size=(32, 32))


def one_class(root):
    for part in ("train", "test"):
        for other in CLASSES[1:]:
            shutil.rmtree(root / part / other)


def cut_zip(root):
    whole = zip_folder(root, root.parent / "copies.zip")
    whole.write_bytes(whole.read_bytes()[:-99])
    shutil.rmtree(root)


def text_file(root):
    (root / "train" / "cat" / "notes.txt").write_text("many cats")


def text_as_image(root):
    for image in (root / "train" / "cat").iterdir():
        image.write_text("many cats")


def other_size(root):
    write_images(root, {"train": 2}, classes=("cat",), size=(20, 32))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (one_class, r".* must hold the classes airplane, .*got airplane in train, airplane in test"),
        (cut_zip, r"copies\.zip is not a zip file, or is cut short\. Fetch it again"),
        (text_file, r"train/cat/notes\.txt in .* is not an image \(\.png, .*Remove it\."),
        (text_as_image, r"train/cat/0\d\.png in .* is not a sound image"),
        (other_size, r"train/cat/0\d\.png in .* is 20x32 RGB, others are 32x32 RGB.*--resize"),
    ],
)
def test_wrong_copies_of_cifar_get_one_sentence(copies, damage, sentence):
    damage(copies)
    with pytest.raises(DataError, match=sentence) as caught:
        load_task("scifar10", data_dir=copies.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_copies_are_found_in_a_folder_beside_others_and_called_by_their_kind(copies):
    write_images(copies.parent / "ants", {"train": 2, "test": 2})
    (copies / "train" / "Thumbs.db").touch()
    for file in copies.rglob("*.png"):
        Image.open(file).save(file.with_suffix(".jpg"))
        file.unlink()
    task = load_task("scifar10-rgb", data_dir=copies.parent)
    assert task.name == "scifar10-rgb, CIFAR-10 (JPEG)"
    assert len(task.train) + len(task.val) == 20
    # What is shown beside papers' figures is what was read from the originals.
    assert versionless(task.name) != "scifar10"


@pytest.mark.usefixtures("offline")
def test_a_run_does_not_go_on_with_other_data(copies, tmp_path, monkeypatch):
    settings = {"task": "scifar10", "resize": 4, "modules": 1, "units": 2, "device": "cpu"}
    config, run = make_config(settings, {"epochs": 1, "data_dir": str(tmp_path)}), tmp_path / "run"
    fit(config, run, report=list)
    (run / "summary.json").unlink()
    (run / "model.safetensors").unlink()
    assert Run.open(run).task_as_used.startswith("scifar10-rgb, CIFAR-10 (images) (resized")
    write_cifar(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"trained on scifar10-rgb, CIFAR-10 \(images\); got s"):
        fit(config, run, resume=True, report=list)
