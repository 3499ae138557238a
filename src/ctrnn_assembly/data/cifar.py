"""Sequential CIFAR10. Two different tasks go by that name, so each has its own here.

`scifar10` (= scifar10-rgb): one RGB pixel a step, as Kozachkov et al. 2022 (Sparse Combo Net) and
the S4 line of work. `scifar10-planar`: three neighbouring values of one colour plane a step, as
the code of Erichson et al. 2021 (Lipschitz RNN). Both T = 1024, m = 3.
"""

from collections.abc import Callable
from functools import partial

import torch

from ctrnn_assembly.data.image_files import ImageFiles, StoredImages, image_sets, with_splits
from ctrnn_assembly.data.pixels import PixelSequence
from ctrnn_assembly.data.task import Options, Split, Stored, Task, make_task, published_hold_out
from ctrnn_assembly.errors import DataError

RGB = r"scifar10(-rgb)?"
PLANAR = r"scifar10-planar"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as published
_ORIGINALS = ("cifar-10-python.tar.gz", "cifar-10-batches-py")


def load(name: str, options: Options) -> Task:
    """CIFAR10 in 1,024 steps of 3 values: 48,000 train, 2,000 val and 10,000 test.

    Training batches are cropped (4 pixels at 32 a side) and mirrored unless `augment` is off;
    val, unlike in the published code, is not augmented. Where the data folder has no original
    batches but image files of the ten classes, these are read, and the task is called, e.g.,
    scifar10-rgb-jpeg: its pixels, their order and so the hold-out are not those of the papers.
    """
    planar = name.endswith("-planar")
    name, note = "scifar10-planar" if planar else "scifar10-rgb", ""
    read: Callable[[str], Stored] = partial(_batches, options)
    copies = None if any((options.folder / file).exists() for file in _ORIGINALS) else _copies(options)
    if copies is not None:
        kind = copies.parts["train"][0][0].rpartition(".")[2].lower().replace("jpg", "jpeg")
        note = (
            f"{name} is read from the {kind.upper()} files in {copies.path.name}: not the original "
            f"pixels and order, so not comparable with papers. For those put {_ORIGINALS[0]} into "
            "--data-dir."
        )
        name += f"-{kind}"
        read = partial(StoredImages, copies, classes=CLASSES, resize=options.resize, shape=(3, 32, 32))
    whole = read("train")
    return make_task(
        name,
        options,
        what="CIFAR10",
        classes=CLASSES,
        stored=lambda part, train: whole if part == "train" else read("test"),
        parts=published_hold_out(len(whole)),
        sequence=lambda train: PixelSequence(
            mean=MEAN,
            std=STD,
            planar=planar,
            crop=train.x.shape[-1] // 8 if options.augment else 0,
            flip=options.augment,
        ),
        note=note,
    )


def _copies(options: Options) -> ImageFiles | None:
    """The first set of image files below the data folder that has CIFAR10's classes and splits."""
    for path, names in image_sets(options.folder).items():
        found = with_splits(path, names or [])
        if found and {"train", "test"} <= found.parts.keys() and found.classes() == CLASSES:
            return found
    return None


def _batches(options: Options, part: str) -> Split:
    """Images (N, 3, 32, 32) uint8 and labels of the original files."""
    from torchvision.datasets import CIFAR10  # slow to import; not every task needs it

    folder = options.folder
    try:
        # These files are pickles. torchvision compares the md5 of every one with its own table
        # before it opens any, so only the official bytes are ever unpickled: keep that check.
        # It hashes the test batch too, but reads no sample of it here. With download=True nothing
        # is fetched where all files are right.
        found = CIFAR10(folder, train=part == "train", download=True)
    except Exception as error:  # network, disk and archive errors share no better base
        raise DataError(
            f"CIFAR10 is missing or damaged in {folder} and could not be downloaded "
            f"({type(error).__name__}: {str(error)[:120]}). Put cifar-10-python.tar.gz, or its "
            f"folder cifar-10-batches-py (data_batch_1..5, test_batch, batches.meta), into "
            f"{folder}, or name another folder with --data-dir (or CTRNN_DATA_DIR). A folder or zip of "
            "JPEG or PNG copies, train/<class>/* and test/<class>/*, also does."
        ) from error
    x = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return Split(x, torch.tensor(found.targets))
