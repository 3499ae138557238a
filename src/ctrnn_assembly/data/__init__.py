"""Tasks: what is classified, step by step.  `load_task(name)` gives a `Task`.

A test split is read only when `Task.load_test` is called, but for `own`. torchvision, PIL and aeon are
imported by the tasks that need them, when they need them.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ctrnn_assembly.data import arrays, images, own
from ctrnn_assembly.data.task import Split as Split
from ctrnn_assembly.data.task import Task as Task
from ctrnn_assembly.errors import ConfigError, unknown
from ctrnn_assembly.settings import DataConfig, parsed


class Entry(NamedTuple):
    about: str
    pattern: str  # of the names it answers to
    load: Callable[[str, DataConfig], Task]


_PERMUTED = "MNIST pixels in the order randperm(784) of SEED; -raw keeps values 0..255; T=784, m=1"
_RGB = "CIFAR10, one RGB pixel a step; T=1024, m=3; from its batches, or images"
_PLANAR = "CIFAR10, 3 values of one colour plane a step; T=1024, m=3"
_SERIES = "UCR/UEA time series, e.g. series:JapaneseVowels (needs aeon)"
TASKS: dict[str, Entry] = {
    "digits": Entry("8x8 digits, in the package; T=64, m=1", "digits", arrays.load_digits),
    "smnist": Entry("MNIST pixel by pixel; T=784, m=1", "smnist", arrays.load_mnist),
    "psmnist[-SEED][-raw]": Entry(_PERMUTED, r"psmnist(-\d+)?(-raw)?", arrays.load_mnist),
    "scifar10[-rgb]": Entry(_RGB, "scifar10(-rgb)?", arrays.load_cifar10),
    "scifar10-planar": Entry(_PLANAR, "scifar10-planar", arrays.load_cifar10),
    "images": Entry("images in one folder a class, or a zip of them", "images", images.load_images),
    "own": Entry("your own series: --data FILE, .csv, .ts, .npz or .npy", "own", own.load_own),
    "series:NAME": Entry(_SERIES, r"series:[\w-]+", own.load_series),
}


def load_task(name: str, **settings: Any) -> Task:
    """Load train and val of a task, and a way to load test.

    Args:
        name: as in `TASKS`; psmnist means psmnist-12008.
        settings: of `DataConfig`: data_dir, resize, limit_train, limit_test, augment, seed, ...; the
            seed is of the limits alone, and the splits are the same for every one.

    Raises: ConfigError for an unknown name or impossible setting, DataError for data that are missing,
        corrupt or not finite.

    >>> task = load_task("digits", limit_train=100)
    >>> task.sequence(task.train.x[:5]).shape
    torch.Size([5, 64, 1])
    """
    if settings.get("data_dir") is not None:
        settings["data_dir"] = str(settings["data_dir"])
    options = parsed(DataConfig, settings)
    if options.target != "class" and name != "own":
        raise ConfigError(f"target {options.target} is for series of your own, --data; got {name!r}.")
    for entry in TASKS.values():
        if re.fullmatch(entry.pattern, name):
            return entry.load(name, options)
    raise unknown("task", name, TASKS)
