"""Image files to one uint8 tensor."""

from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.data.archive import Archive
from ctrnn_assembly.data.pixels import resized
from ctrnn_assembly.errors import DataError

_GREY = ("1", "L", "LA")


def decode(
    archive: Archive,
    names: list[str],
    *,
    resize: int | None,
    shape: tuple[int, int, int] | None,
) -> Tensor:
    """Decode to (N, C, H, W) uint8, C = 1 or 3.

    Args:
        resize: stretch each image to this many pixels a side; then sizes may differ, and a grey
            image among colour ones becomes RGB.
        shape: the (C, H, W) that training images have; None for those themselves.

    Raises:
        DataError: if a file is no sound image, or its size or mode is not that of the others.
    """
    images = []
    for name, content in zip(names, archive.read(names), strict=True):
        image = resized(_decoded(archive, name, content)[None], resize)[0]
        images.append(image)
    if resize is not None:
        channels = shape[0] if shape else max(len(image) for image in images)
        images = [_with_channels(image, channels) for image in images]
    wanted = shape or tuple(images[0].shape)
    for name, image in zip(names, images, strict=True):
        if tuple(image.shape) != wanted:
            raise DataError(
                f"{name} in {archive.path} is {_words(image.shape)}, others are {_words(wanted)}. "
                "Bring all to one size with --resize <pixels>."
            )
    return torch.stack(images)


def _decoded(archive: Archive, name: str, content: bytes) -> Tensor:
    from PIL import Image  # not every task needs it

    try:
        with Image.open(BytesIO(content)) as image:
            pixels: Any = np.array(image.convert("L" if image.mode in _GREY else "RGB"))
    except Exception as error:  # a decoder raises anything, SyntaxError included, on bad bytes
        raise DataError(
            f"{name} in {archive.path} is not a sound image ({error}). Replace or remove it."
        ) from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def _with_channels(image: Tensor, channels: int) -> Tensor:
    if len(image) == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1)
    # A colour image where training saw only grey: the usual luma weights (ITU-R 601).
    luma = image.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32)
    return (image.permute(1, 2, 0).float() @ luma).round().byte()[None]


def _words(shape: tuple[int, ...] | torch.Size) -> str:
    return f"{shape[2]}x{shape[1]} {'RGB' if shape[0] == 3 else 'grey'}"
