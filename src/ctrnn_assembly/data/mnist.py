"""Sequential MNIST: the 784 pixels of a digit one after another, in order or permuted.

Sources: Le, Jaitly & Hinton 2015 (arXiv 1504.00941) for the task; permutation 12008, raw pixels
and split as in Erichson et al. 2021 (Lipschitz RNN) and Kozachkov et al. 2022 (Sparse Combo Net).
"""

import re
from functools import partial

import torch
from torch import Tensor

from ctrnn_assembly.data.pixels import PixelSequence, resized
from ctrnn_assembly.data.published import hold_out
from ctrnn_assembly.data.task import Options, Split, Task, checked, first
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
    x, y = _read(options, train=True)
    chosen, val = hold_out(len(y), options)
    train = _split("train", x[chosen], y[chosen], options)
    n_steps = train.x[0].numel()
    canonical, sequence = _sequence(name, n_steps)
    return Task(
        name=canonical,
        n_input=1,
        n_class=10,
        n_steps=n_steps,
        classes=tuple(map(str, range(10))),
        train=train,
        val=_split("val", x[val], y[val], options),
        load_test=partial(_test, options),
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


def _sequence(name: str, n_steps: int) -> tuple[str, PixelSequence]:
    asked = re.fullmatch(PERMUTED, name)
    if asked is None:
        return name, PixelSequence()
    seed = int(asked["seed"] or PUBLISHED_PERMUTATION)
    scale = 1.0 if asked["raw"] else 255.0
    canonical = f"psmnist-{seed}{asked['raw'] or ''}"
    return canonical, PixelSequence(scale=scale, order=permutation(seed, n_steps))


def _test(options: Options) -> Split:
    x, y = _read(options, train=False)
    keep = first(len(y), options.limit_test, options.seed)
    return _split("test", x[keep], y[keep], options)


def _split(part: str, x: Tensor, y: Tensor, options: Options) -> Split:
    return checked(f"MNIST {part} split", Split(resized(x[:, None], options.resize), y), 10)


def _read(options: Options, *, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) uint8 and labels (N,) int64."""
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
        raise DataError(f"MNIST {state} ({_short(error)}). {advice}") from error
    if len(found.data) != len(found.targets):
        counts = f"{len(found.data)} images but {len(found.targets)} labels"
        raise DataError(f"MNIST has {counts}. {advice}")
    return found.data, found.targets


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
