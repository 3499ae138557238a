"""Images that are published as arrays: the digits of the package, MNIST and CIFAR10.

digits: UCI Optical Recognition of Handwritten Digits, Alpaydin & Kaynak 1998 (CC BY 4.0): the 1,797
images of the original test set, values 0..16, as distributed with scikit-learn.

smnist, psmnist: Le, Jaitly & Hinton 2015 (arXiv 1504.00941); permutation 12008, raw pixels and split
as in Erichson et al. 2021 (Lipschitz RNN) and Kozachkov et al. 2022 (Sparse Combo Net).

Two different tasks go by the name of sequential CIFAR10. scifar10 (= scifar10-rgb): one RGB pixel a
step, as Kozachkov et al. 2022 and the S4 line of work. scifar10-planar: three neighbouring values of
one colour plane a step, as the code of Erichson et al. 2021.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.data import task as tasks
from ctrnn_assembly.data.images import image_sets, with_splits
from ctrnn_assembly.data.task import Options, PixelSequence, Split, Task
from ctrnn_assembly.errors import ConfigError

DIGITS = tuple(map(str, range(10)))
PUBLISHED_PERMUTATION = 12008
_IDX = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as published
_BATCHES = ("cifar-10-python.tar.gz", "cifar-10-batches-py")


def load_digits(name: str, options: Options) -> Task:
    """Digits pixel by pixel: T = 64, m = 1, values 0..1; 1257 train, 180 val and 360 test."""
    with np.load(Path(__file__).with_name("digits.npz")) as stored:
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    whole = Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    parts, sequence = tasks.dealt(labels, 10, {"test": (0, 1), "val": (2,)}), PixelSequence(scale=16.0)
    return tasks.make_task(name, options, name, DIGITS, lambda *_: whole, lambda train: sequence, parts)


def load_mnist(name: str, options: Options) -> Task:
    """Pixel-by-pixel MNIST: T = 784, m = 1; 58,000 train, 2,000 val and 10,000 test.

    `smnist` and `psmnist-SEED` have values 0..1; `psmnist-SEED-raw` has 0..255, as published.
    """
    kind, *rest = name.split("-")
    raw, folder = "raw" in rest, options.folder / "MNIST" / "raw"
    seed = None
    if kind == "psmnist":
        seed = next((int(word) for word in rest if word != "raw"), PUBLISHED_PERMUTATION)
        name = f"psmnist-{seed}{'-raw' if raw else ''}"
    advice = f"{', '.join(_IDX)} (plain or .gz) into {folder}"

    @cache
    def read(part: str, train: Split | None) -> Split:
        return _read("MNIST", part, options.folder, folder, advice)

    def sequence(train: Split) -> PixelSequence:
        order = None if seed is None else permutation(seed, train.x[0].numel())
        return PixelSequence(1.0 if raw else 255.0, order=order)

    return tasks.make_task(name, options, "MNIST", DIGITS, read, sequence)


def permutation(seed: int, n_steps: int) -> Tensor:
    """The order in which psMNIST shows its pixels, (n_steps,) int64; ConfigError for a huge seed."""
    if seed >= 2**64:
        advice = f"Use psmnist-{PUBLISHED_PERMUTATION}"
        raise ConfigError(f"permutation seed must fit 64 bits; got {seed}. {advice}.")
    return torch.randperm(n_steps, generator=torch.Generator().manual_seed(seed))


def load_cifar10(name: str, options: Options) -> Task:
    """CIFAR10 in T = 1,024 steps of m = 3 values: 48,000 train, 2,000 val and 10,000 test.

    Training batches are cropped (4 pixels at 32 a side) and mirrored unless `augment` is off;
    val, unlike in the published code, is not augmented. Where the data folder has no original
    batches but image files of the ten classes, these are read, and the task is called, e.g.,
    scifar10-rgb-jpeg: its pixels, their order and so the hold-out are not those of the papers.
    """
    planar, note, folder = name.endswith("-planar"), "", options.folder
    name = "scifar10-planar" if planar else "scifar10-rgb"
    copies = None
    if not any((folder / file).exists() for file in _BATCHES):
        sets = (with_splits(path, names) for path, names in image_sets(folder).items() if names)
        copies = next((s for s in sets if s and "test" in s.parts and s.classes() == CIFAR10), None)
    if copies:
        kind = copies.parts["train"][0][0].rpartition(".")[2].lower().replace("jpg", "jpeg")
        note = (
            f"{name} is read from the {kind.upper()} files in {copies.path.name}: not the original "
            f"pixels and order, so not comparable with papers. For those put {_BATCHES[0]} into "
            "--data-dir."
        )
        name += f"-{kind}"
    advice = (
        f"{_BATCHES[0]}, or its folder {_BATCHES[1]} (data_batch_1..5, test_batch, batches.meta), or a "
        f"folder or zip of JPEG or PNG copies, train/<class>/* and test/<class>/*, into {folder}"
    )

    @cache
    def read(part: str, train: Split | None) -> tasks.Stored:
        if copies is None:
            return _read("CIFAR10", part, folder, folder / _BATCHES[1], advice)
        side = options.resize or 32
        return replace(copies, part=part, resize=options.resize, shape=(3, side, side))

    sequence = PixelSequence(mean=MEAN, std=STD, planar=planar, augment=options.augment)
    return tasks.make_task(name, options, "CIFAR10", CIFAR10, read, lambda train: sequence, note=note)


def _read(name: str, part: str, root: Path, folder: Path, advice: str) -> Split:
    """Images (N, C, H, W) uint8 and labels of a set of torchvision's, whose files are in `folder`."""
    from torchvision import datasets  # slow to import; not every task needs it

    # Nothing is fetched where all files are right; .gz files are unpacked. CIFAR10's are pickles: asked
    # to `download`, torchvision compares the md5 of every one with its own table before it opens any, so
    # that only the official bytes are unpickled: keep that. It reads no sample of the test batch here.
    with tasks.reading(name, advice, folder):
        found = getattr(datasets, name)(root, train=part == "train", download=True)
    x = torch.as_tensor(found.data)  # (N, H, W), or (N, H, W, 3)
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return tasks.checked(name, Split(x, torch.as_tensor(found.targets)), 10)
