"""smnist and psmnist: published order, split, values; damaged and missing files."""

import gzip
import hashlib

import numpy as np
import pytest
import torch

from ctrnn_assembly.data import load_task
from ctrnn_assembly.data.arrays import permutation
from ctrnn_assembly.errors import ConfigError, DataError
from fake_data import MNIST_FILES, real_data, refuse_network, write_images, write_mnist, zip_folder


@pytest.fixture
def offline(monkeypatch):
    refuse_network(monkeypatch)


def test_smnist_is_to_tensor_in_row_order(tmp_path):
    write_mnist(tmp_path)
    task = load_task("smnist", data_dir=tmp_path)
    assert (task.n_steps, task.n_input, task.n_class) == (784, 1, 10)
    u = task.sequence(task.train.x)
    expected = task.train.x.reshape(-1, 784, 1) / 255.0
    torch.testing.assert_close(u, expected.float(), rtol=0, atol=0)


def test_small_mnist_splits_are_disjoint_and_in_the_published_order(tmp_path):
    write_mnist(tmp_path)
    task = load_task("smnist", data_dir=tmp_path)
    order = np.random.RandomState(1234).permutation(100)
    # Pixel 0 of fake image i is i.
    assert task.train.x[:, 0, 0, 0].tolist() == order[:90].tolist()
    assert task.val.x[:, 0, 0, 0].tolist() == order[90:].tolist()
    assert len(task.load_test()) == 30


def test_psmnist_shows_the_published_permutation(tmp_path):
    torch.manual_seed(12008)  # how the published code draws it
    published = torch.randperm(784)
    assert torch.equal(permutation(12008, 784), published)
    assert torch.equal(published.sort().values, torch.arange(784))
    write_mnist(tmp_path)
    plain = load_task("smnist", data_dir=tmp_path)
    x = plain.train.x
    for name in ("psmnist", "psmnist-12008"):
        task = load_task(name, data_dir=tmp_path)
        assert task.name == "psmnist-12008"
        torch.testing.assert_close(task.sequence(x), plain.sequence(x)[:, published], rtol=0, atol=0)


def test_raw_keeps_the_pixel_values_and_seeds_differ(tmp_path):
    write_mnist(tmp_path)
    raw = load_task("psmnist-raw", data_dir=tmp_path)
    assert raw.name == "psmnist-12008-raw"
    x = raw.train.x
    expected = x.flatten(1)[:, permutation(12008, 784), None].float()
    torch.testing.assert_close(raw.sequence(x), expected, rtol=0, atol=0)
    other = load_task("psmnist-42-raw", data_dir=tmp_path)
    assert other.name == "psmnist-42-raw"
    assert not torch.equal(other.sequence(x), raw.sequence(x))


def test_a_seed_beyond_64_bits_is_refused(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(ConfigError, match="must fit 64 bits"):
        load_task(f"psmnist-{10**30}", data_dir=tmp_path)


def test_no_test_file_is_opened_before_load_test(tmp_path):
    raw = write_mnist(tmp_path)
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"broken")
    task = load_task("smnist", data_dir=tmp_path)
    with pytest.raises(DataError, match="could not be read"):
        task.load_test()


@pytest.mark.parametrize("file", MNIST_FILES[:2])
@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage"])
def test_damaged_mnist_files_are_named_errors(tmp_path, file, damage):
    path = write_mnist(tmp_path) / file
    sound = path.read_bytes()
    bad = {"empty": b"", "truncated": sound[: len(sound) // 2], "garbage": b"<html>" * 99}
    path.write_bytes(bad[damage])
    with pytest.raises(DataError, match=r"MNIST .*train-images-idx3-ubyte.*--data-dir"):
        load_task("smnist", data_dir=tmp_path)


def test_a_set_too_small_to_hold_val_out_is_refused(tmp_path):
    write_mnist(tmp_path, n_train=9)
    with pytest.raises(DataError, match="MNIST val split is empty"):
        load_task("smnist", data_dir=tmp_path)


def test_labels_that_do_not_fit_are_refused(tmp_path):
    raw = write_mnist(tmp_path)
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:8] + bytes([11]) * 100)
    with pytest.raises(DataError, match=r"must lie in 0..9; got 11..11"):
        load_task("smnist", data_dir=tmp_path)


@pytest.mark.usefixtures("offline")
def test_missing_mnist_names_files_folder_and_option(tmp_path):
    with pytest.raises(DataError, match="is missing and could not be downloaded") as caught:
        load_task("smnist", data_dir=tmp_path)
    for word in (*MNIST_FILES, str(tmp_path / "MNIST" / "raw"), "--data-dir"):
        assert word in str(caught.value)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("task", ["smnist", "scifar10"])
def test_a_failed_download_leaves_no_new_folder(tmp_path, task):
    (tmp_path / "kept").mkdir()
    for folder in (tmp_path / "kept", tmp_path / "new" / "data"):
        with pytest.raises(DataError, match="could not be downloaded"):
            load_task(task, data_dir=folder)
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


@pytest.mark.usefixtures("offline")
def test_gz_files_are_unpacked(tmp_path, monkeypatch):
    raw = write_mnist(tmp_path)
    table = []
    for file in MNIST_FILES:
        packed = gzip.compress((raw / file).read_bytes())
        (raw / file).unlink()
        (raw / f"{file}.gz").write_bytes(packed)
        table.append((f"{file}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr("torchvision.datasets.MNIST.resources", table)
    assert len(load_task("smnist", data_dir=tmp_path).train) == 90


def test_real_mnist_has_the_official_sizes():
    folder = real_data("MNIST")
    task = load_task("psmnist", data_dir=folder)
    test = task.load_test()
    assert (len(task.train), len(task.val), len(test)) == (58_000, 2_000, 10_000)
    assert test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert torch.bincount(test.y).tolist()[:3] == [980, 1135, 1032]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("home", [".", "MNIST"])
def test_idx_files_are_read_where_they_lie_and_repacked_ones_too(tmp_path, home):
    raw = write_mnist(tmp_path / "made")
    plain = load_task("smnist", data_dir=tmp_path / "made")
    there = tmp_path / "there" / home
    there.mkdir(parents=True)
    for i, file in enumerate(MNIST_FILES):
        content = (raw / file).read_bytes()
        name = f"{file}.gz" if i % 2 else file
        (there / name).write_bytes(gzip.compress(content, mtime=i) if i % 2 else content)
    task = load_task("smnist", data_dir=tmp_path / "there")
    assert torch.equal(task.train.x, plain.train.x)
    assert (task.name, task.data) == ("smnist", "MNIST")
    assert sorted(there.iterdir()) == sorted(there.glob("*ubyte*"))  # nothing is unpacked beside them


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_mnist_is_read_from_images_with_its_own_split_and_values(tmp_path, form):
    classes = tuple(map(str, range(10)))
    where = write_images(tmp_path / "set", {"training": 10, "testing": 2}, classes, (28, 28), "L")
    if form == "zip":
        where = zip_folder(where, tmp_path / "digits.zip", top="mnist_png")
    task = load_task("psmnist", data_dir=where)
    assert (task.name, task.data) == ("psmnist-12008, MNIST (images)", "MNIST (images)")
    assert (len(task.train), len(task.val), len(task.load_test())) == (90, 10, 20)
    expected = task.train.x.flatten(1)[:, permutation(12008, 784), None] / 255.0
    torch.testing.assert_close(task.sequence(task.train.x), expected.float(), rtol=0, atol=0)


@pytest.mark.usefixtures("offline")
def test_idx_files_come_before_images(tmp_path):
    write_mnist(tmp_path)
    write_images(tmp_path / "set", {"train": 1, "test": 1}, tuple(map(str, range(10))), (28, 28), "L")
    assert load_task("smnist", data_dir=tmp_path).data == "MNIST"
