"""Any set of small images, one folder a class, as pixel sequences.

Splits on disk are used as they are. What is missing is held out of train, class by class and the
same in every run: val 5 % (10 % if nothing but classes is on disk) and test 10 %.
"""

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.data.image_files import ImageFiles, StoredImages, find_images
from ctrnn_assembly.data.pixels import PixelSequence
from ctrnn_assembly.data.task import Options, Split, Task, dealt, make_task
from ctrnn_assembly.errors import DataError

NAME = r"images"
_AUGMENTED_SIDE = 32


def load(name: str, options: Options) -> Task:
    """Class-per-folder images pixel by pixel: T = H W, m = 1 (grey) or 3 (RGB).

    Values are scaled to 0..1 and normalised by the mean and standard deviation of each channel
    over the training images in use. Square RGB images of at most 32 a side (after `resize`) are
    cropped and mirrored in training, as CIFAR10 is, unless `augment` is off; others are not.
    """
    images = find_images(options.folder)
    labels = np.array([label for _, label in images.parts["train"]])
    held = {"val": (0,) if images.split else (0, 10), "test": (1, 11)}
    missing = {part: folds for part, folds in held.items() if part not in images.parts}
    parts = dealt(labels, 20, missing)
    classes = _classes(
        images, {part: {*labels[index.numpy()].tolist()} for part, index in parts.items()}
    )

    def stored(part: str, train: Split | None) -> StoredImages:
        shape = None if train is None else tuple(train.x.shape[1:])
        return StoredImages(images, part, classes, options.resize, shape)

    def sequence(train: Split) -> PixelSequence:
        C, H, W = train.x.shape[1:]
        mean, std = channel_statistics(train.x)
        augmented = options.augment and C == 3 and H == W <= _AUGMENTED_SIDE
        return PixelSequence(mean=mean, std=std, crop=H // 8 if augmented else 0, flip=augmented)

    return make_task(
        name,
        options,
        what=str(images.path),
        classes=classes,
        stored=stored,
        parts=parts,
        sequence=sequence,
    )


def _classes(images: ImageFiles, dealt: dict[str, set[str]]) -> tuple[str, ...]:
    """The classes, in order.

    Raises:
        DataError: if there are fewer than two, or not the same in every part.
    """
    classes = tuple(sorted(dealt["train"]))
    if len(classes) < 2:
        raise DataError(f"{images.path} must hold at least 2 classes to train on; got {classes}.")
    for part in images.parts.keys() - {"train"}:
        if odd := set(images.classes(part)) ^ set(classes):
            raise DataError(
                f"Classes of {part} and train in {images.path} differ: {', '.join(sorted(odd))}. "
                "Give both the same class folders."
            )
    if strange := set().union(*dealt.values()) - set(classes):
        raise DataError(f"Class {min(strange)} in {images.path} has too few images. Add some.")
    return classes


def channel_statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of x / 255 per channel; a constant channel gets std 1."""
    mean, std = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for plane in x.unbind(1):
        # From the histogram: exact, and no float copy of the images is made.
        weight = torch.bincount(plane.flatten(), minlength=256).double() / plane.numel()
        centre = (weight * levels).sum()
        mean.append(centre.item())
        std.append((weight * (levels - centre) ** 2).sum().sqrt().item() or 1.0)
    return tuple(mean), tuple(std)
