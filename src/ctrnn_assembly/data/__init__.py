"""Tasks: what is classified, step by step.  `load_task(name)` gives a `Task`.

A test split is read only when `Task.load_test` is called. torchvision, PIL and aeon are imported
by the tasks that need them, when they need them.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ctrnn_assembly.data import cifar, digits, images, mnist, series
from ctrnn_assembly.data.pixels import PixelSequence as PixelSequence
from ctrnn_assembly.data.task import Options as Options
from ctrnn_assembly.data.task import Sequence as Sequence
from ctrnn_assembly.data.task import Split as Split
from ctrnn_assembly.data.task import Task as Task
from ctrnn_assembly.errors import unknown


class Entry(NamedTuple):
    """A row of `TASKS`: what it is, the names it answers to (a regular expression), its loader."""

    about: str
    pattern: str
    load: Callable[[str, Options], Task]


_PERMUTED = "MNIST pixels in the order randperm(784) of SEED; -raw keeps values 0..255; T=784, m=1"
_RGB = "CIFAR10, one RGB pixel a step; T=1024, m=3; as original batches, else as JPEG or PNG files"
TASKS: dict[str, Entry] = {
    "digits": Entry("8x8 digits, in the package; T=64, m=1", digits.NAME, digits.load),
    "smnist": Entry("MNIST pixel by pixel; T=784, m=1", mnist.IN_ORDER, mnist.load),
    "psmnist[-SEED][-raw]": Entry(_PERMUTED, mnist.PERMUTED, mnist.load),
    "scifar10[-rgb]": Entry(_RGB, cifar.RGB, cifar.load),
    "scifar10-planar": Entry(
        "CIFAR10, 3 values of one colour plane a step; T=1024, m=3", cifar.PLANAR, cifar.load
    ),
    "images": Entry("images in one folder a class, or a zip of them", images.NAME, images.load),
    "series:NAME": Entry(
        "UCR/UEA time series, e.g. series:JapaneseVowels (needs aeon)", series.NAME, series.load
    ),
}


def load_task(
    name: str,
    *,
    data_dir: str | Path | None = None,
    resize: int | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    augment: bool = True,
    seed: int = 0,
) -> Task:
    """Load train and val of a task, and a way to load test.

    Args:
        name: one of `known_tasks()`; psmnist means psmnist-12008.
        data_dir: folder with the data (for images also a zip); default: the environment variable
            CTRNN_DATA_DIR, else ~/.cache/ctrnn. MNIST and CIFAR10 are downloaded if missing there.
        resize: stretch images to this many pixels a side, so T = resize²; not for series.
        limit_train, limit_test: use this many samples, drawn by `seed`; val gets at most
            `limit_train` too.
        augment: let `Task.sequence` augment training batches, where the task has an augmentation.
        seed: of the limits alone; the splits are the same for every seed.

    Raises:
        ConfigError: if the name is unknown or a setting impossible.
        DataError: if data are missing, corrupt or not finite.

    Example:
        >>> task = load_task("digits", limit_train=100)
        >>> task.sequence(task.train.x[:5]).shape
        torch.Size([5, 64, 1])
    """
    for entry in TASKS.values():
        if re.fullmatch(entry.pattern, name):
            return entry.load(
                name,
                Options(data_dir, resize, limit_train, limit_test, augment=augment, seed=seed),
            )
    raise unknown("task", name, TASKS)


def known_tasks() -> dict[str, str]:
    """Task name pattern -> one line on it."""
    return {name: entry.about for name, entry in TASKS.items()}
