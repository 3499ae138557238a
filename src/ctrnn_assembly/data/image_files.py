"""Image files, one folder a class, below a folder or in a zip: which there are, and their pixels.

A zip is read in place: nothing is written, no name in it leads out of a folder, and its thousands of
small files count against no quota. Folders that hold no image, or start with a dot, are no classes.
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ctrnn_assembly.data.pixels import resized
from ctrnn_assembly.data.task import Split
from ctrnn_assembly.errors import DataError

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_LARGEST = 2**28  # bytes of one unpacked file: a zip can claim a thousand times its own size
_LAYOUT = (
    "Wanted: a zip or folder with train/<class>/*.png|jpg|jpeg|bmp (and, if there are, test and "
    "val) or <class>/*, possibly below one top-level folder. Name it with --data-dir."
)
Shape = tuple[int, ...]  # (C, H, W), C = 1 or 3


@dataclass(frozen=True)
class ImageFiles:
    """The images below one folder or zip.

    Args:
        path: the folder or zip.
        parts: split name -> (file name inside `path`, class name), sorted; all are "train" where there
            is no split on disk.
        split: whether there is.
    """

    path: Path
    parts: dict[str, list[tuple[str, str]]]
    split: bool = True

    def classes(self, part: str = "train") -> tuple[str, ...]:
        """The classes of a part, sorted."""
        return tuple(sorted({label for _, label in self.parts[part]}))

    def decoded(self, names: list[str]) -> Iterator[Tensor]:
        """Each file's pixels, (C, H, W) uint8."""
        from PIL import Image  # not every task needs it

        for name, content in zip(names, self._bytes(names), strict=True):
            try:
                with Image.open(BytesIO(content)) as image:
                    grey = image.mode in ("1", "L", "LA")
                    pixels: Any = np.array(image.convert("L" if grey else "RGB"))
            except Exception as error:  # a decoder raises anything, SyntaxError included, on bad bytes
                raise DataError(
                    f"{name} in {self.path} is not a sound image ({error}). Replace or remove it."
                ) from error
            yield rearrange(torch.from_numpy(pixels), "h w -> 1 h w" if grey else "h w c -> c h w")

    def _bytes(self, names: list[str]) -> Iterator[bytes]:
        name = ""
        try:
            if self.path.is_dir():
                for name in names:
                    yield (self.path / name).read_bytes()
                return
            with zipfile.ZipFile(self.path) as stored:
                for name in names:
                    if (size := stored.getinfo(name).file_size) > _LARGEST:
                        raise OSError(f"it would unpack to {size} bytes, at most {_LARGEST} are read")
                    yield stored.read(name)
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as err:
            raise DataError(
                f"{name or 'archive'} in {self.path} cannot be read ({err}). Replace or remove it."
            ) from err


@dataclass(frozen=True)
class StoredImages:
    """A part of `images`, not decoded yet.

    Args:
        resize: stretch each image to this many pixels a side; then sizes may differ, and a grey image
            among colour ones becomes RGB.
        shape: the shape that training images have; None for those themselves.
    """

    images: ImageFiles
    part: str
    classes: tuple[str, ...]
    resize: int | None
    shape: Shape | None

    def __len__(self) -> int:
        return len(self.images.parts[self.part])

    def take(self, index: Tensor) -> Split:
        """The images at `index`.

        Raises:
            DataError: naming the file, if one cannot be read, is no sound image, or has not the size
                or mode of the others.
        """
        path, chosen = self.images.path, [self.images.parts[self.part][i] for i in index.tolist()]
        if not chosen:
            raise DataError(f"No image is left for {self.part} in {path}. Add images.")
        names = [name for name, _ in chosen]
        images = [resized(x[None], self.resize)[0] for x in self.images.decoded(names)]
        wanted = self.shape or tuple(images[0].shape)
        if self.resize is not None:
            channels = self.shape[0] if self.shape else max(len(image) for image in images)
            images = [_with_channels(image, channels) for image in images]
            wanted = (channels, self.resize, self.resize)
        for name, image in zip(names, images, strict=True):
            if tuple(image.shape) != wanted:
                raise DataError(
                    f"{name} in {path} is {_words(image.shape)}, others are {_words(wanted)}. "
                    "Bring all to one size with --resize <pixels>."
                )
        return Split(torch.stack(images), torch.tensor([self.classes.index(c) for _, c in chosen]))


def find_images(path: Path) -> ImageFiles:
    """The image data set at `path`: a zip, an image folder, or a folder with exactly one of them.

    Raises:
        DataError: if there is none, more than one, or its folders fit no layout.
    """
    if not path.exists():
        raise DataError(f"No image data at {path}: it does not exist. {_LAYOUT}")
    sets = image_sets(path)
    found = [where for where, names in sets.items() if names]
    if not found:
        broken = [str(file) for file, names in sets.items() if names is None]
        because = f" ({', '.join(broken)} is not a zip file, or is cut short)" if broken else ""
        raise DataError(f"No images in {path}{because}. {_LAYOUT}")
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise DataError(f"{path} holds several image sets: {listed}. Name one with --data-dir.")
    names = sets[found[0]] or []
    images = with_splits(found[0], names)
    if images is None:
        raise DataError(f"{found[0]} fits no known layout, e.g. {min(names)}. {_LAYOUT}")
    return images


def image_sets(path: Path) -> dict[Path, list[str] | None]:
    """Image names by where they lie: in this zip; or loose below this folder and in each zip in it.

    None stands for a zip that cannot be read.
    """
    return {where: _names(where) for where in (path, *sorted(path.glob("*.zip")))}


def with_splits(path: Path, names: list[str]) -> ImageFiles | None:
    """The images sorted by split and class; None if their folders fit no layout."""
    parts = {name: name.split("/") for name in sorted(names)}
    for depth in (0, 1):  # without and with one top-level folder
        split_of = {n: _SPLITS.get(p[depth]) for n, p in parts.items() if len(p) == depth + 3}
        if len({tuple(p[:depth]) for p in parts.values()}) != 1:
            continue
        if "train" in split_of.values():
            files: dict[str, list[tuple[str, str]]] = {}
            for name, split in split_of.items():
                if split:
                    files.setdefault(split, []).append((name, parts[name][depth + 1]))
            return ImageFiles(path, files)
        if {len(p) for p in parts.values()} == {depth + 2}:
            return ImageFiles(path, {"train": [(n, p[depth]) for n, p in parts.items()]}, split=False)
    return None


def _names(path: Path) -> list[str] | None:
    """The images in a zip, or 1 to 3 folders below a folder: a big home folder stays cheap."""
    if path.is_dir():  # glob leaves hidden names out
        names = [name for depth in (1, 2, 3) for name in glob("*/" * depth + "*.*", root_dir=path)]
    else:
        try:
            with zipfile.ZipFile(path) as stored:
                names = stored.namelist()
        except (zipfile.BadZipFile, OSError):
            return None
    # Names that start with a dot, and __MACOSX, are what macOS adds to folders and zips.
    images = [name for name in names if name.lower().endswith(_ENDINGS)]
    return [n for n in images if not any(p == "__MACOSX" or p.startswith(".") for p in n.split("/"))]


def _with_channels(image: Tensor, channels: int) -> Tensor:
    """As RGB; or, where training saw only grey, by the usual luma weights (ITU-R 601)."""
    if len(image) == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1)
    luma = image.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32)
    return (rearrange(image, "c h w -> h w c").float() @ luma).round().byte()[None]


def _words(shape: Shape) -> str:
    return f"{shape[2]}x{shape[1]} {'RGB' if shape[0] == 3 else 'grey'}"
