"""Any set of small images, one folder a class, as pixel sequences.

Splits on disk are used as they are. What is missing is held out of train, class by class and the
same in every run: val 5 % (10 % if nothing but classes is on disk) and test 10 %.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.data.archive import Archive, find_archive
from ctrnn_assembly.data.decode import decode
from ctrnn_assembly.data.pixels import PixelSequence, crop_margin
from ctrnn_assembly.data.task import Options, Split, Task, checked, first, stratified_folds
from ctrnn_assembly.errors import DataError

NAME = r"images"
_AUGMENTED_SIDE = 32

Files = list[tuple[str, str]]  # (file name in the archive, class name)


def load(name: str, options: Options) -> Task:
    """Class-per-folder images pixel by pixel: T = H W, m = 1 (grey) or 3 (RGB).

    Values are scaled to 0..1 and normalised by the mean and standard deviation of each channel
    over the training images in use. Square RGB images of at most 32 a side (after `resize`) are
    cropped and mirrored in training, as CIFAR10 is, unless `augment` is off; others are not.
    """
    images = _find(options)
    train = _split(images, "train", options)
    C, H, W = train.x.shape[1:]
    mean, std = _statistics(train.x)
    augmented = options.augment and C == 3 and H == W <= _AUGMENTED_SIDE
    return Task(
        name=name,
        n_input=C,
        n_class=len(images.classes),
        n_steps=H * W,
        classes=images.classes,
        train=train,
        val=_split(images, "val", options, shape=(C, H, W)),
        load_test=partial(_split, images, "test", options, shape=(C, H, W)),
        sequence=PixelSequence(
            mean=mean, std=std, crop=crop_margin(H) if augmented else 0, flip=augmented
        ),
    )


@dataclass(frozen=True)
class _Images:
    archive: Archive
    parts: dict[str, Files]  # of train, val and test
    classes: tuple[str, ...]


def _find(options: Options) -> _Images:
    archive = find_archive(options.folder)
    parts = _parts(archive)
    return _Images(archive, parts, _classes(archive, parts))


def _parts(archive: Archive) -> dict[str, Files]:
    """Files of train, val and test; missing parts are dealt out of train."""
    flat = "" in archive.files
    parts = dict(archive.files)
    rest = parts.pop("" if flat else "train")
    folds = stratified_folds(np.array([label for _, label in rest]), 20).tolist()
    held: set[int] = set()
    for part, mine in {"val": {0, 10} if flat else {0}, "test": {1, 11}}.items():
        if part not in parts:
            parts[part] = [file for file, k in zip(rest, folds, strict=True) if k in mine]
            held |= mine
    parts["train"] = [file for file, k in zip(rest, folds, strict=True) if k not in held]
    return parts


def _classes(archive: Archive, parts: dict[str, Files]) -> tuple[str, ...]:
    seen = {part: {label for _, label in files} for part, files in parts.items()}
    classes = tuple(sorted(seen["train"]))
    if len(classes) < 2:
        raise DataError(f"{archive.path} must hold at least 2 classes to train on; got {classes}.")
    for part in archive.files.keys() & {"val", "test"}:
        if seen[part] != set(classes):
            odd = ", ".join(sorted(seen[part] ^ set(classes)))
            raise DataError(
                f"Classes of {part} and train in {archive.path} differ: {odd}. "
                "Give both the same class folders."
            )
    strange = set().union(*seen.values()) - set(classes)
    if strange:
        raise DataError(f"Class {min(strange)} in {archive.path} has too few images. Add some.")
    return classes


def _split(
    images: _Images, part: str, options: Options, *, shape: tuple[int, int, int] | None = None
) -> Split:
    archive, files, classes = images.archive, images.parts[part], images.classes
    limit = options.limit_test if part == "test" else options.limit_train
    chosen = [files[i] for i in first(len(files), limit, options.seed).tolist()]
    if not chosen:
        raise DataError(f"No image is left for {part} in {archive.path}. Add images.")
    x = decode(archive, [name for name, _ in chosen], resize=options.resize, shape=shape)
    y = torch.tensor([classes.index(label) for _, label in chosen])
    return checked(f"{part} images of {archive.path}", Split(x, y), len(classes))


def _statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of x / 255 per channel; a constant channel gets std 1."""
    mean, std = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for c in range(x.shape[1]):
        # From the histogram: exact, and no float copy of the images is made.
        weight = torch.bincount(x[:, c].flatten(), minlength=256).double()
        weight /= weight.sum()
        centre = (weight * levels).sum()
        mean.append(centre.item())
        std.append((weight * (levels - centre) ** 2).sum().sqrt().item() or 1.0)
    return tuple(mean), tuple(std)
