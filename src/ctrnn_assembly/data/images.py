"""Any set of small images, one folder a class, below a folder or in a zip, as pixel sequences.

A zip is read in place. Folders that hold no image, or start with a dot, are no classes. Grey images stay
grey, of 8 or 16 bits, the latter scaled to 0..255; all others become RGB, transparency white.

Splits on disk are used as they are. What is missing is held out of train, class by class and the
same in every run: val 5 % (10 % if nothing but classes is on disk) and test 10 %.
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.data.task import PixelSequence, Split, Task, dealt, make_task, resized
from ctrnn_assembly.errors import DataError, refusing
from ctrnn_assembly.settings import DataConfig

T = TypeVar("T")
_AUGMENTED_SIDE = 32
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"BM")
_SPLITS = {"training": "train", "testing": "test", "valid": "val", "validation": "val"}
_SPLITS |= {part: part for part in ("train", "test", "val")}
_LARGEST = 2**28  # bytes of one unpacked file: a zip can claim a thousand times its own size
_BROKEN = "is not a zip file, or is cut short"
_LAYOUT = (
    "Wanted: a zip or folder with train/<class>/*.png|jpg|jpeg|bmp (and, if there are, test and "
    "val) or <class>/*, possibly below one top-level folder. Name it with --data-dir."
)


def load_images(name: str, options: DataConfig) -> Task:
    """Class-per-folder images pixel by pixel: T = H W, m = 1 (grey) or 3 (RGB).

    Normalised by channel. Square RGB images of at most 32 a side are cropped and mirrored in training.
    """
    images = find_images(options.folder)
    path, classes = images.path, images.classes()
    images.refuse_other_files()
    if len(classes) < 2:
        raise DataError(f"{path} must hold at least 2 classes to train on; got {classes}.")
    for part in images.parts:
        if odd := set(images.classes(part)) ^ set(classes):
            differ = f"Classes of {part} and train in {path} differ: {', '.join(sorted(odd))}"
            raise DataError(f"{differ}. Give both the same class folders.")
    labels = np.array([label for _, label in images.parts["train"]])
    held = {"val": (0, 10)[: 1 + (not images.split)], "test": (1, 11)}
    parts = dealt(labels, 20, {part: held[part] for part in held.keys() - images.parts.keys()})
    if few := set(classes) - set(labels[parts["train"].numpy()]):
        raise DataError(f"Class {min(few)} in {path} has too few images. Add some.")

    def stored(part: str, train: Split | None) -> ImageFiles:
        shape = None if train is None else tuple(train.x.shape[1:])
        return replace(images, part=part, resize=options.resize, shape=shape)

    def sequence(train: Split) -> PixelSequence:
        C, H, W = train.x.shape[1:]
        mean, std = channel_statistics(train.x)
        augmented = options.augment and C == 3 and H == W <= _AUGMENTED_SIDE
        return PixelSequence(mean=mean, std=std, augment=augmented)

    return make_task(name, options, path.name, classes, stored, sequence, parts)


def channel_statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of x / 255 per channel; a constant channel gets std 1."""
    # From the histogram: exact, and no float copy of the images is made.
    counts = torch.stack([torch.bincount(plane.flatten(), minlength=256) for plane in x.unbind(1)])
    weights = counts.double() / x[:, 0].numel()  # (C, 256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ levels
    std = (weights * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(value or 1.0 for value in std.tolist())


@dataclass(frozen=True)
class ImageFiles:
    """The images of one part below a folder or zip, not decoded; with `resize` sizes may differ."""

    path: Path
    parts: dict[str, list[tuple[str, str]]]  # split -> sorted (file name inside `path`, class name)
    split: bool = True  # on disk; else all are "train"
    part: str = "train"
    resize: int | None = None
    shape: tuple[int, ...] | None = None  # (C, H, W) that all have in the end; None: the first's

    def classes(self, part: str = "train") -> tuple[str, ...]:
        return tuple(sorted({label for _, label in self.parts[part]}))

    def __len__(self) -> int:
        return len(self.parts[self.part])

    @property
    def pixels(self) -> int:
        [first] = _found(self.path, [self.parts[self.part][0][0]], _decoded)
        return first[0].numel()

    @property
    def kind(self) -> str:
        names = (name.lower() for files in self.parts.values() for name, _ in files)
        return "JPEG" if all(name.endswith((".jpg", ".jpeg")) for name in names) else "images"

    def refuse_other_files(self) -> None:
        """DataError for a file among the images that is none, by its name or by how it begins."""
        names = [name for files in self.parts.values() for name, _ in files]
        for name in names:
            if not name.lower().endswith(_ENDINGS):
                kinds = ", ".join(_ENDINGS)
                raise DataError(f"{name} in {self.path} is not an image ({kinds}). Remove it.")
        usual = _found(self.path, names, lambda file: file.read(8).startswith(_BEGINNINGS))
        unusual = [name for name, is_usual in zip(names, usual, strict=True) if not is_usual]
        for _ in _found(self.path, unusual, _decoded):
            pass  # PIL reads more kinds than these, whatever their names say

    def take(self, index: Tensor) -> Split:
        """The images at `index`; DataError names one that is unsound or unlike the others."""
        from torchvision.transforms.functional import rgb_to_grayscale

        names, labels = zip(*(self.parts[self.part][i] for i in index.tolist()), strict=True)
        images = [resized(x[None], self.resize)[0] for x in _found(self.path, names, _decoded)]
        if self.resize is not None:
            C = self.shape[0] if self.shape else max(map(len, images))
            images = [rgb_to_grayscale(x) if len(x) > C else x.expand(C, -1, -1) for x in images]
        wanted = self.shape or tuple(images[0].shape)
        for name, image in zip(names, images, strict=True):
            if tuple(image.shape) != wanted:
                differ = f"{name} in {self.path} is {_words(image.shape)}, others are {_words(wanted)}"
                raise DataError(f"{differ}. Bring all to one size with --resize <pixels>.")
        return Split(torch.stack(images), torch.tensor([*map(self.classes().index, labels)]))


def _found(path: Path, names: Iterable[str], look: Callable[[IO[bytes]], T]) -> Iterator[T]:
    """What `look` finds in each file, one by one; a DataError where it fails."""
    with nullcontext() if path.is_dir() else zipfile.ZipFile(path) as stored:
        for name in names:
            with refusing(f"{name} in {path} is not a sound image", "Replace or remove it."):
                if stored and (size := stored.getinfo(name).file_size) > _LARGEST:
                    raise ValueError(f"it would unpack to {size} bytes, at most {_LARGEST} are read")
                with stored.open(name) if stored else (path / name).open("rb") as file:
                    found = look(file)
            yield found


def _decoded(file: IO[bytes]) -> Tensor:
    """An image's pixels, (C, H, W) uint8; ValueError for numbers that have no known range, and for an
    image that only its transparency shows: on white nothing of it is left."""
    from PIL import Image  # not every task needs it
    from torchvision.transforms.functional import pil_to_tensor

    image: Any = Image.open(BytesIO(file.read()))
    if image.mode.startswith("I;16"):
        return torch.from_numpy(np.round(np.asarray(image) / 257).astype(np.uint8))[None]
    if image.mode in ("I", "F"):
        raise ValueError(f"its numbers, of mode {image.mode}, have no known range: save it with 16 bits")
    kind = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return pil_to_tensor(image.convert(kind))
    image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    seen, alone = pil_to_tensor(on_white.convert(kind)), pil_to_tensor(image)
    if torch.equal(seen, seen[:, :1, :1].expand_as(seen)) and (alone != alone[:, :1, :1]).any():
        raise ValueError("only its transparency shows something: save it on a ground of another colour")
    return seen


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} {'RGB' if shape[0] == 3 else 'grey'}"


def find_images(path: Path) -> ImageFiles:
    """The image data set at `path`: a zip, an image folder, or a folder with exactly one of them."""
    if not path.exists():
        raise DataError(f"No image data at {path}: it does not exist. {_LAYOUT}")
    sets = image_sets(path)
    found = {where: names for where, names in sets.items() if names}
    if not found:
        broken = [str(file) for file, names in sets.items() if names is None]
        because = f" ({', '.join(broken)} {_BROKEN})" if broken else ""
        raise DataError(f"No images in {path}{because}. {_LAYOUT}")
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise DataError(f"{path} holds several image sets: {listed}. Name one with --data-dir.")
    [(where, names)] = found.items()
    below = (name for depth in (0, 1, 2) for name in glob("*/" * depth + "*", root_dir=where))
    if gone := [name for name in below if not (where / name).exists()]:
        raise DataError(f"{gone[0]} in {where} is a link to what is not there. Mend or remove it.")
    if (images := with_splits(where, names)) is None:
        raise DataError(f"{where} fits no known layout, e.g. {min(names)}. {_LAYOUT}")
    return images


def copies_of(path: Path, classes: tuple[str, ...]) -> ImageFiles | None:
    """Images below `path` whose train and test have these classes, or None; DataError if not whole."""
    if not path.exists():
        return None
    below = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
    sets, wrong = {**image_sets(path), **{p: _names(p) for p in below if p.is_dir()}}, []
    for where, names in sets.items():
        images = with_splits(where, names) if names else None
        if images is not None and set(images.classes()) <= set(classes):
            parts = {"train": images.parts["train"] + images.parts.get("val", [])}
            images = replace(images, parts=parts | {"test": images.parts.get("test", [])})
            if all(set(images.classes(part)) == set(classes) for part in images.parts):
                images.refuse_other_files()
                return images
            got = (f"{', '.join(images.classes(p)) or 'none'} in {p}" for p in images.parts)
            must = f"must hold the classes {', '.join(classes)} in train and in test"
            wrong.append(f"{where} {must}; got {', '.join(got)}. Add the others.")
        elif names is None:
            wrong.append(f"{where} {_BROKEN}. Fetch it again, or remove it.")
    if wrong:
        raise DataError(wrong[0])
    return None


def image_sets(path: Path) -> dict[Path, list[str] | None]:
    """Image names by zip, and of what is loose in the folder; None for a zip that cannot be read."""
    return {where: _names(where) for where in (path, *sorted(path.glob("*.zip")))}


def with_splits(path: Path, names: list[str]) -> ImageFiles | None:
    """The images sorted by split and class; None if their folders fit no layout."""
    tops = {name.split("/")[0] for name in names}
    for depth in (0, 1) if len(tops) == 1 else (0,):  # without and with one top-level folder
        found = [(name, name.split("/")[depth:]) for name in sorted(names)]
        if all(len(inside) == 2 for _, inside in found):
            return ImageFiles(path, {"train": [(name, p[0]) for name, p in found]}, split=False)
        files: dict[str, list[tuple[str, str]]] = {}
        for name, inside in found:
            if len(inside) == 3 and inside[0] in _SPLITS:
                files.setdefault(_SPLITS[inside[0]], []).append((name, inside[1]))
        if "train" in files:
            return ImageFiles(path, files)
    return None


def _names(path: Path) -> list[str] | None:
    """Files beside images, these included, in a zip, or 1 to 3 folders below a folder: stays cheap."""
    if path.is_dir():  # glob leaves hidden names out
        names = [name for depth in (1, 2, 3) for name in glob("*/" * depth + "*.*", root_dir=path)]
    else:
        try:
            with zipfile.ZipFile(path) as stored:
                names = stored.namelist()
        except (zipfile.BadZipFile, OSError):
            return None
    # What macOS (names that start with a dot, __MACOSX) and Windows add to folders and zips.
    foreign = re.compile(r"(^|/)(\.|__MACOSX/|Thumbs\.db$|desktop\.ini$)|/$")
    files = [name for name in names if not foreign.search(name)]
    homes = {name.rpartition("/")[0] for name in files if name.lower().endswith(_ENDINGS)}
    return [name for name in files if name.rpartition("/")[0] in homes]
