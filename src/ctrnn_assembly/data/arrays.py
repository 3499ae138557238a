"""Images that are published as arrays: the digits of the package, MNIST and CIFAR10.

digits: UCI Optical Recognition of Handwritten Digits, Alpaydin & Kaynak 1998 (CC BY 4.0): the 1,797
images of the original test set, values 0..16, as distributed with scikit-learn.

smnist, psmnist: Le, Jaitly & Hinton 2015 (arXiv 1504.00941); permutation 12008, raw pixels and split
as in Erichson et al. 2021 (Lipschitz RNN) and Kozachkov et al. 2022 (Sparse Combo Net).

scifar10 (= scifar10-rgb): one RGB pixel a step, as Kozachkov et al. 2022 and the S4 line of work.
scifar10-planar: three neighbouring values of one colour plane a step, as Erichson et al. 2021.
"""

import gzip
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.data import task as tasks
from ctrnn_assembly.data.images import ImageFiles, copies_of
from ctrnn_assembly.data.task import PixelSequence, Split, Task
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.settings import DataConfig

DIGITS = tuple(map(str, range(10)))
PUBLISHED_PERMUTATION = 12008
_IDX = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as published
_BATCHES = ("cifar-10-python.tar.gz", "cifar-10-batches-py")


def load_digits(name: str, options: DataConfig) -> Task:
    """Digits pixel by pixel: T = 64, m = 1, values 0..1; 1257 train, 180 val and 360 test."""
    with np.load(Path(__file__).with_name("digits.npz")) as stored:
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    whole = Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    parts, sequence = tasks.dealt(labels, 10, {"test": (0, 1), "val": (2,)}), PixelSequence(scale=16.0)
    return tasks.make_task(name, options, name, DIGITS, lambda *_: whole, lambda train: sequence, parts)


def load_mnist(name: str, options: DataConfig) -> Task:
    """Pixel-by-pixel MNIST: T = 784, m = 1; 58,000 train, 2,000 val and 10,000 test.

    The four idx files are read plain or as .gz, from MNIST/raw, MNIST or the data folder itself.
    """
    kind, *rest = name.split("-")
    raw, root = "raw" in rest, options.folder
    seed = None
    if kind == "psmnist":
        seed = next((int(word) for word in rest if word != "raw"), PUBLISHED_PERMUTATION)
        name = f"psmnist-{seed}{'-raw' if raw else ''}"
    home = root / "MNIST" / "raw"
    files = next(filter(None, map(_idx_files, (home, home.parent, root))), None)
    originals = f"{', '.join(_IDX)} (plain or .gz) into {home}"

    def read(part: str, train: Split | None) -> Split:
        if files is None:
            return _read("MNIST", root, home, originals, part)
        with tasks.reading("MNIST", originals, home):
            images, labels = files[:2] if part == "train" else files[2:]
            split = Split(_idx(images, 3)[:, None], _idx(labels, 1).long())
        return tasks.checked("MNIST", split, 10)

    def sequence(train: Split) -> PixelSequence:
        order = None if seed is None else permutation(seed, train.x[0].numel())
        return PixelSequence(1.0 if raw else 255.0, order=order)

    copies = None if files else copies_of(root, DIGITS)
    stored, what, note = _stored(name, "MNIST", read, copies, (1, 28, 28), originals, options)
    return tasks.make_task(name, options, what, DIGITS, stored, sequence, note=note)


def _idx_files(folder: Path) -> list[Path] | None:
    """The four idx files of MNIST in a folder, each plain or as .gz; None if one is not there."""
    found: list[Any] = [next(filter(Path.exists, (folder / f, folder / f"{f}.gz")), None) for f in _IDX]
    return None if None in found else found


def _idx(file: Path, n_dims: int) -> Tensor:
    """The bytes in an idx file as a tensor of `n_dims` dimensions."""
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    if content[:4] != bytes((0, 0, 8, n_dims)):
        raise ValueError(f"{file.name} is not an idx file of bytes with {n_dims} dimensions")
    shape, start = np.frombuffer(content, ">i4", n_dims, offset=4), 4 + 4 * n_dims
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def permutation(seed: int, n_steps: int) -> Tensor:
    """The order in which psMNIST shows its pixels, (n_steps,) int64; ConfigError for a huge seed."""
    if seed >= 2**64:
        advice = f"Use psmnist-{PUBLISHED_PERMUTATION}"
        raise ConfigError(f"permutation seed must fit 64 bits; got {seed}. {advice}.")
    return torch.randperm(n_steps, generator=torch.Generator().manual_seed(seed))


def load_cifar10(name: str, options: DataConfig) -> Task:
    """CIFAR10 in T = 1,024 steps of m = 3 values: 48,000 train, 2,000 val and 10,000 test.

    Training batches are cropped and mirrored unless `augment` is off; val, unlike as published, is not.
    """
    planar, folder = name.endswith("-planar"), options.folder
    name = "scifar10-planar" if planar else "scifar10-rgb"
    unpacked = f"its folder {_BATCHES[1]} (data_batch_1..5, test_batch, batches.meta)"
    originals = f"{_BATCHES[0]}, or {unpacked}, into {folder}"
    read = partial(_read, "CIFAR10", folder, folder / _BATCHES[1], originals)
    there = any((folder / file).exists() for file in _BATCHES)
    copies = None if there else copies_of(folder, CIFAR10)
    stored, what, note = _stored(name, "CIFAR-10", read, copies, (3, 32, 32), originals, options)
    sequence = PixelSequence(mean=MEAN, std=STD, planar=planar, augment=options.augment)
    return tasks.make_task(name, options, what, CIFAR10, stored, lambda train: sequence, note=note)


def _stored(
    name: str,
    what: str,
    read: Callable[[str, Split | None], Split],
    copies: ImageFiles | None,
    shape: tuple[int, int, int],
    originals: str,
    options: DataConfig,
) -> tuple[Callable[[str, Split | None], tasks.Stored], str, str]:
    """What `make_task` needs of a published set: what is stored, its name, and a note on copies of shape
    (C, H, W), which are read where they are given; otherwise `read` gives the originals."""
    if copies is None:
        return cache(read), what, ""
    side = options.resize or shape[1]
    found = replace(copies, resize=options.resize, shape=(shape[0], side, side))
    note = (
        f"{name} is read from {found.kind} in {found.path.name}: not the original pixels and order, so "
        f"not comparable with papers. For those put {originals.rpartition(' into ')[0]} into "
        "--data-dir."
    )
    return lambda part, train: replace(found, part=part), f"{what} ({found.kind})", note


def _read(name: str, root: Path, folder: Path, advice: str, part: str, train: Any = None) -> Split:
    """Images (N, C, H, W) uint8 and labels of a set of torchvision's, whose files are in `folder`."""
    from torchvision import datasets  # slow to import; not every task needs it

    advice = f"{advice}, or a folder or zip of images (train/<class>/*, test/<class>/*) into {root}"
    # Nothing is fetched where all files are right; .gz files are unpacked. CIFAR10's are pickles: asked
    # to `download`, torchvision compares the md5 of every one with its own table before it opens any, so
    # that only the official bytes are unpickled: keep that. It reads no sample of the test batch here.
    with tasks.reading(name, advice, folder):
        found = getattr(datasets, name)(root, train=part == "train", download=True)
    x = torch.as_tensor(found.data)  # (N, H, W), or (N, H, W, 3)
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return tasks.checked(name, Split(x, torch.as_tensor(found.targets)), 10)
