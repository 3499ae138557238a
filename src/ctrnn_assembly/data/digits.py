"""The 8x8 handwritten digits that ship with the package: a task that needs no download.

Source: UCI Optical Recognition of Handwritten Digits, Alpaydin & Kaynak 1998 (CC BY 4.0); the
1,797 images of the original test set, values 0..16, as distributed with scikit-learn.
"""

from functools import partial
from importlib.resources import as_file, files

import numpy as np
import torch

from ctrnn_assembly.data.pixels import PixelSequence, resized
from ctrnn_assembly.data.task import Options, Split, Task, checked, first, stratified_folds

NAME = r"digits"


def load(name: str, options: Options) -> Task:
    """Digits pixel by pixel: T = 64, m = 1, values 0..1; 1257 train, 180 val and 360 test."""
    train = _split("train", options, options.limit_train)
    return Task(
        name=name,
        n_input=1,
        n_class=10,
        n_steps=train.x[0].numel(),
        classes=tuple(map(str, range(10))),
        train=train,
        val=_split("val", options, options.limit_train),
        load_test=partial(_split, "test", options, options.limit_test),
        sequence=PixelSequence(scale=16.0),
    )


def _split(part: str, options: Options, limit: int | None) -> Split:
    resource = files("ctrnn_assembly.data") / "digits.npz"
    with as_file(resource) as path, np.load(path, allow_pickle=False) as stored:
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    folds = stratified_folds(labels, 10)
    mine = {"test": folds < 2, "val": folds == 2, "train": folds > 2}[part]
    x = resized(torch.from_numpy(images[mine])[:, None], options.resize)
    split = checked(f"digits {part} split", Split(x, torch.from_numpy(labels[mine])), 10)
    return split.take(first(len(split), limit, options.seed))
