"""Sequential CIFAR10. Two different tasks go by that name, so each has its own here.

`scifar10` (= scifar10-rgb): one RGB pixel a step, as Kozachkov et al. 2022 (Sparse Combo Net) and
the S4 line of work. `scifar10-planar`: three neighbouring values of one colour plane a step, as
the code of Erichson et al. 2021 (Lipschitz RNN). Both T = 1024, m = 3.
"""

from functools import partial

import torch
from torch import Tensor

from ctrnn_assembly.data.pixels import PixelSequence, crop_margin, resized
from ctrnn_assembly.data.published import hold_out
from ctrnn_assembly.data.task import Options, Split, Task, checked, first
from ctrnn_assembly.errors import DataError

RGB = r"scifar10(-rgb)?"
PLANAR = r"scifar10-planar"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as published


def load(name: str, options: Options) -> Task:
    """CIFAR10 in 1,024 steps of 3 values: 48,000 train, 2,000 val and 10,000 test.

    Training batches are cropped (4 pixels at 32 a side) and mirrored unless `augment` is off;
    val, unlike in the published code, is not augmented.
    """
    x, y, classes = _read(options, train=True)
    chosen, val = hold_out(len(y), options)
    train = _split("train", x[chosen], y[chosen], options)
    side = train.x.shape[-1]
    planar = name.endswith("-planar")
    return Task(
        name="scifar10-planar" if planar else "scifar10-rgb",
        n_input=3,
        n_class=10,
        n_steps=side * side,
        classes=classes,
        train=train,
        val=_split("val", x[val], y[val], options),
        load_test=partial(_test, options),
        sequence=PixelSequence(
            mean=MEAN,
            std=STD,
            planar=planar,
            crop=crop_margin(side) if options.augment else 0,
            flip=options.augment,
        ),
    )


def _test(options: Options) -> Split:
    x, y, _ = _read(options, train=False)
    keep = first(len(y), options.limit_test, options.seed)
    return _split("test", x[keep], y[keep], options)


def _split(part: str, x: Tensor, y: Tensor, options: Options) -> Split:
    return checked(f"CIFAR10 {part} split", Split(resized(x, options.resize), y), 10)


def _read(options: Options, *, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (N, 3, 32, 32) uint8, labels (N,) int64 and the class names."""
    from torchvision.datasets import CIFAR10  # slow to import; not every task needs it

    folder = options.folder
    try:
        # These files are pickles. torchvision compares the md5 of every one with its own table
        # before it opens any, so only the official bytes are ever unpickled: keep that check.
        # It hashes the test batch too, but reads no sample of it here. With download=True nothing
        # is fetched where all files are right.
        found = CIFAR10(folder, train=train, download=True)
    except Exception as error:  # network, disk and archive errors share no better base
        raise DataError(
            f"CIFAR10 is missing or damaged in {folder} and could not be downloaded "
            f"({type(error).__name__}: {str(error)[:120]}). Put cifar-10-python.tar.gz, or its "
            f"folder cifar-10-batches-py (data_batch_1..5, test_batch, batches.meta), into "
            f"{folder}, or name another folder with --data-dir (or CTRNN_DATA_DIR). JPEG or PNG "
            "copies, one folder a class: --task images --data-dir <zip or folder>."
        ) from error
    x = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor(found.targets), tuple(found.classes)
