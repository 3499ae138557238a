"""Any set of small images, one folder a class, as pixel sequences.

Splits on disk are used as they are. What is missing is held out of train, class by class and the
same in every run: val 5 % (10 % if nothing but classes is on disk) and test 10 %.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.data.image_files import ImageFiles, find_images
from ctrnn_assembly.data.pixels import PixelSequence, crop_margin
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
    images = _with_all_parts(find_images(options.folder))
    classes = images.classes()

    def sequence(train: Split) -> PixelSequence:
        C, H, W = train.x.shape[1:]
        mean, std = channel_statistics(train.x)
        augmented = options.augment and C == 3 and H == W <= _AUGMENTED_SIDE
        return PixelSequence(mean=mean, std=std, crop=crop_margin(H) if augmented else 0, flip=augmented)

    return make_task(
        name,
        options,
        what=str(images.path),
        classes=classes,
        part=lambda split, train: images.part(
            split, classes=classes, resize=options.resize, shape=train and tuple(train.x.shape[1:])
        ),
        sequence=sequence,
    )


def _with_all_parts(images: ImageFiles) -> ImageFiles:
    """With what has no split on disk dealt out of train.

    Raises:
        DataError: if the classes are fewer than two, or not the same in every part.
    """
    flat = "" in images.parts
    rest = images.parts["" if flat else "train"]
    held = {"val": (0, 10) if flat else (0,), "test": (1, 11)}
    missing = {part: folds for part, folds in held.items() if part not in images.parts}
    chosen = dealt(np.array([label for _, label in rest]), 20, missing)
    parts = {part: [rest[i] for i in index.tolist()] for part, index in chosen.items()}
    whole = replace(images, parts={**images.parts, **parts})
    classes = whole.classes()
    if len(classes) < 2:
        raise DataError(f"{whole.path} must hold at least 2 classes to train on; got {classes}.")
    for part in held:
        odd = sorted(set(whole.classes(part)) ^ set(classes))
        if odd and part not in missing:
            raise DataError(
                f"Classes of {part} and train in {whole.path} differ: {', '.join(odd)}. "
                "Give both the same class folders."
            )
        if strange := set(whole.classes(part)) - set(classes):
            raise DataError(f"Class {min(strange)} in {whole.path} has too few images. Add some.")
    return whole


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
