"""The 8x8 handwritten digits that ship with the package: a task that needs no download.

Source: UCI Optical Recognition of Handwritten Digits, Alpaydin & Kaynak 1998 (CC BY 4.0); the
1,797 images of the original test set, values 0..16, as distributed with scikit-learn.
"""

from importlib.resources import as_file, files

import numpy as np
import torch

from ctrnn_assembly.data.pixels import PixelSequence
from ctrnn_assembly.data.task import Options, Split, Task, dealt, make_task

NAME = r"digits"


def load(name: str, options: Options) -> Task:
    """Digits pixel by pixel: T = 64, m = 1, values 0..1; 1257 train, 180 val and 360 test."""
    with as_file(files("ctrnn_assembly.data") / "digits.npz") as path, np.load(path) as stored:
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    whole = Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    return make_task(
        name,
        options,
        what="digits",
        classes=tuple(map(str, range(10))),
        stored=lambda part, train: whole,
        parts=dealt(labels, 10, {"test": (0, 1), "val": (2,)}),
        sequence=lambda train: PixelSequence(scale=16.0),
    )
