"""Sequential MNIST: the 784 pixels of a digit one after another, in order or permuted.

Sources: Le, Jaitly & Hinton 2015 (arXiv 1504.00941) for the task; permutation 12008, raw pixels
and split as in Erichson et al. 2021 (Lipschitz RNN) and Kozachkov et al. 2022 (Sparse Combo Net).
"""

import re

import torch
from torch import Tensor

from ctrnn_assembly.data.pixels import PixelSequence
from ctrnn_assembly.data.task import Options, Split, Task, make_task, published_hold_out
from ctrnn_assembly.errors import ConfigError, DataError

IN_ORDER = r"smnist"
PERMUTED = r"psmnist(-(?P<seed>\d+))?(?P<raw>-raw)?"
PUBLISHED_PERMUTATION = 12008
_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def load(name: str, options: Options) -> Task:
    """Pixel-by-pixel MNIST: T = 784, m = 1; 58,000 train, 2,000 val and 10,000 test.

    `smnist` and `psmnist-SEED` have values 0..1; `psmnist-SEED-raw` has 0..255, as published.
    """
    order = raw = None
    if asked := re.fullmatch(PERMUTED, name):
        order, raw = int(asked["seed"] or PUBLISHED_PERMUTATION), asked["raw"]
        name = f"psmnist-{order}{raw or ''}"

    def sequence(train: Split) -> PixelSequence:
        n_steps = train.x[0].numel()
        return PixelSequence(
            scale=1.0 if raw else 255.0, order=None if order is None else permutation(order, n_steps)
        )

    whole = _read(options, train=True)
    return make_task(
        name,
        options,
        what="MNIST",
        classes=tuple(map(str, range(10))),
        stored=lambda part, train: whole if part == "train" else _read(options, train=False),
        parts=published_hold_out(len(whole)),
        sequence=sequence,
    )


def permutation(seed: int, n_steps: int) -> Tensor:
    """The order in which psMNIST shows its pixels, (n_steps,) int64.

    Raises:
        ConfigError: if torch's generator does not take the seed.
    """
    try:
        generator = torch.Generator().manual_seed(seed)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(
            f"permutation seed must fit 64 bits; got {seed}. Use psmnist-{PUBLISHED_PERMUTATION}."
        ) from error
    return torch.randperm(n_steps, generator=generator)


def _read(options: Options, *, train: bool) -> Split:
    """Images (N, 1, 28, 28) uint8 and labels."""
    from torchvision.datasets import MNIST  # slow to import; not every task needs it

    raw = options.folder / "MNIST" / "raw"
    advice = (
        f"Put {', '.join(_FILES)} (plain or .gz) into {raw}, or name another folder with "
        "--data-dir (or CTRNN_DATA_DIR)."
    )
    # Downloading also unpacks .gz files that are already there, once their md5 is right.
    complete = all((raw / file).is_file() for file in _FILES)
    try:
        found = MNIST(options.folder, train=train, download=not complete)
    except Exception as error:  # a broken idx file fails in many ways, asserts included
        state = "could not be read" if complete else "is missing and could not be downloaded"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise DataError(f"MNIST {state} ({reason}). {advice}") from error
    if len(found.data) != len(found.targets):
        counts = f"{len(found.data)} images but {len(found.targets)} labels"
        raise DataError(f"MNIST has {counts}. {advice}")
    return Split(found.data[:, None], found.targets)
