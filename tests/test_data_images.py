"""Image folders and zips: layouts, splits, damage."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ctrnn_assembly.data import load_task
from ctrnn_assembly.errors import DataError
from fake_data import real_data, write_images, zip_folder


@pytest.mark.parametrize("form", ["folder", "parent", "zip", "folder with a zip"])
def test_every_way_of_naming_the_same_images_gives_the_same_task(tmp_path, form):
    root = write_images(tmp_path / "set", {"train": 10, "test": 3})
    path = root
    if form == "parent":
        path = tmp_path
    elif form != "folder":
        (tmp_path / "zips").mkdir()
        path = zip_folder(root, tmp_path / "zips" / "set.zip", top="anything")
        path = path if form == "zip" else path.parent
    task = load_task("images", data_dir=path)
    assert (task.classes, task.n_steps, task.n_input) == (("ant", "bee"), 64, 3)
    assert (len(task.train), len(task.val), len(task.load_test())) == (19, 1, 6)
    u = task.sequence(task.train.x)
    # float32 sums over 1,216 pixels; the statistics themselves are exact in float64.
    torch.testing.assert_close(u.mean((0, 1)), u.new_zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(u.std((0, 1), correction=0), u.new_ones(3), rtol=1e-5, atol=0)


def test_images_without_splits_are_dealt_80_10_10_whatever_the_seed(tmp_path):
    root = write_images(tmp_path, {".": 30})
    task, other = load_task("images", data_dir=root), load_task("images", data_dir=root, seed=5)
    test = task.load_test()
    assert (len(task.train), len(task.val), len(test)) == (48, 6, 6)
    for split in (task.val, test):
        assert torch.bincount(split.y).tolist() == [3, 3]
    images = torch.cat([task.train.x, task.val.x, test.x]).flatten(1)
    assert len(images.unique(dim=0)) == 60  # random images: no two are equal
    assert torch.equal(test.x, other.load_test().x)


def test_splits_on_disk_are_used_as_they_are(tmp_path):
    root = write_images(tmp_path, {"train": 4, "valid": 2, "test": 3})
    task = load_task("images", data_dir=root)
    assert (len(task.train), len(task.val), len(task.load_test())) == (8, 4, 6)


def test_grey_images_have_one_channel_and_no_augmentation(tmp_path):
    task = load_task("images", data_dir=write_images(tmp_path, {"train": 9}, mode="L"))
    assert task.n_input == 1
    x = task.train.x
    assert torch.equal(task.sequence(x, torch.Generator()), task.sequence(x))


def test_small_rgb_images_are_augmented_unless_told_otherwise(tmp_path):
    root = write_images(tmp_path, {"train": 9})
    on, off = (load_task("images", data_dir=root, augment=a) for a in (True, False))
    x = on.train.x
    assert not torch.equal(on.sequence(x, torch.Generator()), on.sequence(x))
    assert torch.equal(off.sequence(x, torch.Generator()), off.sequence(x))


def test_no_test_image_is_decoded_before_load_test(tmp_path):
    root = write_images(tmp_path, {"train": 9, "test": 2})
    bad = root / "test" / "ant" / "00.png"
    bad.write_bytes(bad.read_bytes()[:60])
    task = load_task("images", data_dir=root)
    with pytest.raises(DataError, match=r"test/ant/00\.png .* not a sound image"):
        task.load_test()


@pytest.mark.parametrize("in_zip", [False, True])
def test_a_text_among_the_test_images_is_refused_before_training(tmp_path, in_zip):
    root = write_images(tmp_path / "set", {"train": 9, "test": 2})
    first, bad = sorted((root / "test" / "ant").iterdir())
    with Image.open(first) as image:
        image.save(first, format="GIF")  # of which the name says png: PIL reads it
    assert len(load_task("images", data_dir=root).load_test()) == 4
    bad.write_text("no image")
    path = zip_folder(root, tmp_path / "set.zip") if in_zip else root
    with pytest.raises(
        DataError, match=r"test/ant/01\.png in .* image: cannot identify image file\. Rep"
    ):
        load_task("images", data_dir=path)


def test_a_limit_decodes_only_what_it_needs(tmp_path):
    root = write_images(tmp_path, {"train": 9, "val": 1})
    needed = load_task("images", data_dir=root, limit_train=2).train.x
    for file in (root / "train").rglob("*.png"):
        pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        if not any(torch.equal(pixels, x) for x in needed):
            file.write_bytes(file.read_bytes()[:60])
    assert torch.equal(load_task("images", data_dir=root, limit_train=2).train.x, needed)


@pytest.mark.parametrize("keep", [0, 60])
def test_a_truncated_image_is_named(tmp_path, keep):
    root = write_images(tmp_path, {"train": 9})
    for bad in (root / "train" / "bee").iterdir():
        bad.write_bytes(bad.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train/bee/\d+\.png .* Replace or remove it"):
        load_task("images", data_dir=root)


def test_damaged_zips_are_named(tmp_path):
    root = write_images(tmp_path / "set", {"train": 9})
    whole = zip_folder(root, tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.zip is not a zip file, or is cut short"):
        load_task("images", data_dir=tmp_path / "cut.zip")
    (tmp_path / "flipped.zip").write_bytes(whole.replace(b"IDAT", b"IDAX"))  # wrong checksums
    with pytest.raises(DataError, match=r"train/ant/\d+\.png in .*flipped\.zip is not a sound image"):
        load_task("images", data_dir=tmp_path / "flipped.zip")


def test_nothing_found_and_too_much_found_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_task("images", data_dir=tmp_path / "absent")
    with pytest.raises(DataError, match=r"No images in .*train/<class>"):
        load_task("images", data_dir=tmp_path)
    root = write_images(tmp_path / "set", {"train": 2})
    for name in ("one.zip", "two.zip"):
        zip_folder(root, tmp_path / name)
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r"several image sets: .*one\.zip, .*two\.zip"):
        load_task("images", data_dir=tmp_path)
    (tmp_path / "three.zip").write_bytes(b"")
    with pytest.raises(DataError, match="not a zip file"):
        load_task("images", data_dir=tmp_path / "three.zip")


def test_a_layout_that_fits_nothing_shows_an_example(tmp_path):
    write_images(tmp_path / "a", {"train": 2})
    write_images(tmp_path / "b", {"train": 2})
    with pytest.raises(DataError, match=r"fits no known layout, e\.g\. a/train/ant/00\.png"):
        load_task("images", data_dir=tmp_path)


def test_classes_of_test_must_be_those_of_train(tmp_path):
    root = write_images(tmp_path, {"train": 9, "test": 2})
    (root / "test" / "bee").rename(root / "test" / "wasp")
    with pytest.raises(DataError, match=r"test and train in .* differ: bee, wasp"):
        load_task("images", data_dir=root)


def test_mixed_sizes_and_modes_need_resize(tmp_path):
    root = write_images(tmp_path, {"train": 9}, classes=("ant",))
    write_images(root, {"train": 9}, classes=("bee",), size=(7, 9))
    with pytest.raises(DataError, match=r"(7x9|8x8) RGB, others are .* --resize"):
        load_task("images", data_dir=root)
    write_images(root, {"train": 9}, classes=("cat",), mode="L")
    task = load_task("images", data_dir=root, resize=4)
    assert (task.n_steps, task.n_input, task.train.x.shape[1:]) == (16, 3, (3, 4, 4))


def test_real_jpeg_cifar10_is_read_from_its_zip():
    folder = real_data("cifar10-jpeg.zip")
    task = load_task("images", data_dir=folder, limit_train=200, limit_test=50)
    assert (task.n_class, task.n_steps, task.n_input) == (10, 1024, 3)
    assert (len(task.train), len(task.val), len(task.load_test())) == (200, 200, 50)
    assert task.classes[0] == "airplane"


RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
INK = np.dstack([np.zeros((8, 8, 3), np.uint8), RAMP])  # black, as transparent as it is bright below


def read_one(folder, image, ending="png"):
    """The pixels, (C, H, W), of a set of which all images are this one."""
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for i in range(20):
            image.save(folder / label / f"{i}.{ending}")
    return load_task("images", data_dir=folder).train.x[0]


MODES = {
    "16 bits": (Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
    "8 bits": (Image.fromarray(RAMP), RAMP),
    "1 bit": (Image.fromarray(RAMP > 99), np.where(RAMP > 99, 255, 0)),
    "palette": (Image.fromarray(RAMP).convert("P"), np.stack([RAMP] * 3)),
    "cmyk": (
        Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).convert("CMYK"),
        np.full((3, 8, 8), 128),
    ),
    "opaque": (Image.fromarray(RAMP).convert("RGBA"), np.stack([RAMP] * 3)),
    "grey and alpha": (Image.merge("LA", [Image.new("L", (8, 8)), Image.fromarray(RAMP)]), 255 - RAMP),
    "ink on glass": (Image.fromarray(INK), np.stack([255 - RAMP] * 3)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_read_as_it_is_seen(tmp_path, mode):
    image, seen = MODES[mode]
    found = read_one(tmp_path, image, "jpg" if mode == "cmyk" else "png")
    assert found.tolist() == np.atleast_3d(seen.T).T.tolist()


def test_a_transparent_colour_of_a_palette_shows_white(tmp_path):
    image = Image.fromarray(RAMP // 128).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.info["transparency"] = 1
    found = read_one(tmp_path, image).flatten(1).T
    assert {tuple(colour) for colour in found.tolist()} == {(10, 20, 30), (255, 255, 255)}


def test_images_that_cannot_be_read_right_are_refused_by_name(tmp_path):
    white = Image.fromarray(np.dstack([np.full((8, 8, 3), 255, np.uint8), RAMP]))
    with pytest.raises(DataError, match=r"0.png .*only its transparency shows something"):
        read_one(tmp_path / "white", white)
    unseen = np.dstack([RAMP, RAMP, RAMP, RAMP * 0])
    with pytest.raises(DataError, match=r"0.png .*only its transparency shows something"):
        read_one(tmp_path / "unseen", Image.fromarray(unseen))
    for image in (RAMP.astype(np.int32) * 70000, RAMP.astype(np.float32)):  # TIFF, whatever its name
        with pytest.raises(DataError, match=r"0.png .*of mode [IF], have no known range"):
            read_one(tmp_path / image.dtype.name, Tiff(image))


class Tiff:
    """An image that PNG cannot hold."""

    def __init__(self, values):
        self.image = Image.fromarray(values)

    def save(self, path):
        self.image.save(path, format="TIFF")


def test_class_folders_may_be_links_and_loops_are_named(tmp_path):
    root = write_images(tmp_path / "set", {"train": 10, "test": 3})
    (root / "train" / "bee").rename(tmp_path / "elsewhere")
    (root / "train" / "bee").symlink_to(tmp_path / "elsewhere")
    task = load_task("images", data_dir=root)
    assert (task.classes, len(task.train) + len(task.val)) == (("ant", "bee"), 20)
    (root / "train" / "ant" / "loop").symlink_to(root / "train")
    assert len(load_task("images", data_dir=root).train) == len(task.train)  # no image is read twice
    (root / "train" / "cat").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match="cat"):
        load_task("images", data_dir=root)


def test_what_it_costs_to_enlarge_images_is_said(tmp_path):
    for task in ("digits", "images"):
        folder = write_images(tmp_path, {"train": 10})
        assert load_task(task, data_dir=folder, resize=8).note == ""
        note = load_task(task, data_dir=folder, resize=50, limit_train=2).note
        assert "makes 2,500 steps of the 64 pixels of an image: 39.1 times the time" in note
    assert load_task("digits", resize=50, limit_train=2).name == "digits"


def test_a_task_is_shown_without_its_numbers():
    shown = repr(load_task("digits"))
    assert "train=Split(x (1257, 1, 8, 8), y (1257,): uint8, int64)" in shown
    assert len(shown) < 400
