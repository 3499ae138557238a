"""What a task is: three checked splits and the map from a stored batch to a float sequence.

Storage is compact (images stay uint8), and the map runs on the device of each batch, so that a whole
data set fits on a GPU. A loader says which samples there are; `make_task` limits, reads and checks them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from ctrnn_assembly.data.targets import UNKNOWN, loss_of
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.settings import DataConfig, parsed

# Splits never move with the run's seed: the samples that select a model must not differ between
# the runs that are compared.  1234 is the published MNIST/CIFAR split's seed.
SPLIT_SEED = 1234
_PUBLISHED_VAL = 2000
_RESIZE_CHUNK = 1024  # images held as float32 at once: 12 MB for 32x32 RGB
# (x, generator=None) -> (B, T, m) float32 of a stored batch x; training, which may augment, gives one.
Sequence = Callable[..., Tensor]
# Samples that need not be read yet: a `Split`, or `ImageFiles` with the same `take` and `pixels`.
Stored = Any


@dataclass(frozen=True, eq=False)
class Split:
    """One of train, val and test, as stored.

    Args:
        x: images (N, C, H, W) uint8, or series (N, T, m) float32.
        y: class indices, (N,) int64; or what else `targets` has.
        lengths: valid steps of each series, (N,) int64 in 1..T; None where all have T.
        dt: what each sample lasts, (N, T), in units of the network's dt; None where all last 1.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None
    dt: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        kinds = ", ".join(str(part.dtype).removeprefix("torch.") for part in (self.x, self.y))
        return f"Split(x {tuple(self.x.shape)}, y {tuple(self.y.shape)}: {kinds})"

    @property
    def given(self) -> dict[str, Tensor | None]:
        """What a layer is given besides x: lengths, and dt if not all samples last as long."""
        return {"lengths": self.lengths} | ({} if self.dt is None else {"dt": self.dt})

    @property
    def pixels(self) -> int:
        return self.x[0, 0].numel()

    def take(self, index: Tensor) -> "Split":
        """The samples at `index`, (k,) int64, in that order."""
        return Split(**{name: one[index] for name, one in vars(self).items() if one is not None})

    def joined(self, other: "Split") -> "Split":
        """These samples and then those of another split of the same task."""
        both, T = (self, other), self.x.shape[1]
        known = [torch.full((len(s),), T) if s.lengths is None else s.lengths for s in both]
        lengths = torch.cat(known) if any(s.lengths is not None for s in both) else None
        dt = None if self.dt is None or other.dt is None else torch.cat([self.dt, other.dt])
        return Split(torch.cat([s.x for s in both]), torch.cat([s.y for s in both]), lengths, dt)


@dataclass(frozen=True, eq=False)
class Task:
    """A task, of classes unless its data are your own; one input vector a step.

    Args:
        name: canonical, with its version, e.g. 'psmnist-12008'; data: what was read, 'CIFAR-10 (JPEG)'.
        n_class: what the net puts out: k classes or values.
        n_input, n_steps: features m of a step, and steps T of the longest training sequence.
        classes: names, in the order of the indices in `Split.y`; empty for values.
        load_test: reads the test split; nothing of it is decoded before. tested: whether there is one.
        note: sentences on data that are not what the task's name promises; empty otherwise.
        unit: what 1 in `Split.y` stands for, in the data's own unit, for each value.
        loss: (outputs, y) -> the mean of a batch, `targets.loss_of` or your own.
    """

    name: str
    n_input: int
    n_class: int
    n_steps: int
    classes: tuple[str, ...]
    train: Split
    val: Split
    load_test: Callable[[], Split] = field(repr=False)
    sequence: Sequence = field(repr=False)
    data: str = ""
    note: str = ""
    unit: tuple[float, ...] = ()
    tested: bool = True
    loss: Callable[[Tensor, Tensor], Tensor] = field(default=loss_of, repr=False)

    @staticmethod
    def from_arrays(
        X: Any,
        y: Any = None,
        lengths: Any = None,
        times: Any = None,
        split: Any = None,
        groups: Any = None,
        **options: Any,
    ) -> "Task":
        """Arrays of yours as a task, for `fit(config, out, task=task)`; normalised as training says.

        Args:
            X: (samples, time, channels), or (samples, time) of one channel; numbers.
            y: (samples,), classes: whole numbers or texts; of target "regression" values,
                (samples[, k]); of "per-step" classes (samples, time) or floats, NaN where there is none,
                (samples, time[, k]); of "forecast" None.
            lengths: (samples,), how many steps of each count; all by default.
            times: (time,) or (samples, time), increasing; their median distance is the network's dt.
            split: (samples,) of "train", "val" and "test"; what it lacks is dealt from train.
            groups: (samples,), of which each lies in one part as a whole, such as persons.
            options: of `DataConfig`: target, ahead, warm_up, val_fraction, missing, limit_train, ...

        Raises: DataError with the place of what does not fit.
        """
        from ctrnn_assembly.data.own import of_arrays, task_of  # which builds on this file

        chosen = parsed(DataConfig, options)
        given = (X, y, lengths, times, split, groups)
        return task_of(of_arrays("arrays", *given, target=chosen.target), chosen)


def make_task(
    name: str,
    options: DataConfig,
    what: str,
    classes: tuple[str, ...],
    stored: Callable[[str, Split | None], Stored],
    sequence: Callable[[Split], Sequence],
    parts: dict[str, Tensor] | None = None,
    note: str = "",
) -> Task:
    """Read train and val, and test when asked: limited, checked (DataError) and resized.

    `stored` gives what is stored as "train"; and, for that split as read, as "val" and "test"; `parts`
    are indices into "train", by the split that is dealt from it; by default the published hold-out.
    """
    dealt_out = published_hold_out(len(stored("train", None))) if parts is None else parts

    def read(split: str, limit: int | None, train: Split | None) -> Split:
        whole = stored("train" if split in dealt_out else split, train)
        index = dealt_out.get(split, torch.arange(len(whole)))
        if not len(index):
            raise DataError(f"{what} {split} split is empty. Give a larger data set.")
        if limit is not None and limit < len(index):
            shuffled = torch.Generator().manual_seed(options.seed)
            index = index[torch.randperm(len(index), generator=shuffled)[:limit]]
        found = checked(f"{what} {split} split", whole.take(index), len(classes))
        return replace(found, x=resized(found.x, options.resize)) if found.x.ndim == 4 else found

    train = read("train", options.limit_train, None)
    if options.resize is not None and train.x.ndim != 4:
        raise ConfigError(f"resize is for images; got {options.resize} for {what}. Leave it out.")
    T, m = (train.x[0, 0].numel(), train.x.shape[1]) if train.x.ndim == 4 else train.x.shape[1:]
    val, test = read("val", options.limit_train, train), partial(read, "test", options.limit_test, train)
    tested = "test" not in dealt_out or len(dealt_out["test"]) > 0
    name = f"{name}, {what}" if note else name
    if options.resize is not None and (pixels := stored("train", None).pixels) < T:
        note = (
            f"{note} resize {options.resize} makes {T:,} steps of the {pixels:,} pixels of an image: "
            f"{T / pixels:,.3g} times the time and memory of training, and nothing is added to it."
        ).strip()
    known = (len(classes), T, classes, train, val, test, sequence(train), what, note)
    return Task(name, m, *known, tested=tested)


def published_hold_out(n: int) -> dict[str, Tensor]:
    """Indices of train and val, int64: the last 2,000 of RandomState(1234)'s permutation are val.

    Of fewer than 20,000 samples it is a tenth. Source: Erichson et al. 2021, Kozachkov et al. 2022.
    """
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(n))
    n_train = n - min(_PUBLISHED_VAL, n // 10)
    return {"train": order[:n_train], "val": order[n_train:]}


def dealt(y: np.ndarray, k: int, held: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Indices, int64, by name: of k folds of y, (n,), with equal shares of classes; others "train"."""
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(y))
    folds = np.empty(len(y), dtype=np.int64)
    folds[shuffled[np.argsort(y[shuffled], kind="stable")]] = np.arange(len(y)) % k
    chosen = {**held, "train": tuple({*range(k)}.difference(*held.values()))}
    return {name: torch.from_numpy(np.isin(folds, mine).nonzero()[0]) for name, mine in chosen.items()}


def checked(what: str, split: Split, n_class: int) -> Split:
    """`split` itself; DataError for bad counts, labels, and values that are not finite."""
    x, y = split.x, split.y
    if len(x) != len(y):
        raise DataError(f"{what} has {len(x)} samples but {len(y)} labels. Fetch its files again.")
    if not y.is_floating_point() and (y.min() < UNKNOWN * (y.ndim > 1) or y.max() >= n_class):
        must = f"{what} labels must lie in 0..{n_class - 1}"
        raise DataError(f"{must}; got {int(y.min())}..{int(y.max())}. Check the label file.")
    if x.is_floating_point() and not x.isfinite().all():
        bad = (~x.isfinite()).flatten(1).any(1).nonzero().flatten()
        those = f"{len(bad)} of {len(y)} samples (first: sample {int(bad[0])})"
        raise DataError(f"{what} has NaN or infinite values in {those}. Fill in or remove them first.")
    return split


@contextmanager
def reading(what: str, files: str, folder: Path) -> Iterator[None]:
    """Read a set from `folder`, or download it there; what fails is a DataError with what mends it."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except Exception as error:  # network, disk, archive and format errors share no better base
        for path in new:
            with suppress(OSError):  # it holds something, or was not made
                path.rmdir()
        state = "is missing and could not be downloaded" if new else "could not be read"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        elsewhere = "or name another folder with --data-dir (or CTRNN_DATA_DIR)"
        raise DataError(f"{what} {state} ({reason}). Put {files}, {elsewhere}.") from error


@dataclass(frozen=True, eq=False)
class PixelSequence:
    """Images, (B, C, H, W) uint8 -> (B, T, m) float32, T = H W and m = C, in row order.

    Args:
        scale: pixel value that becomes 1.
        mean, std: per channel, of the scaled values; empty leaves them as they are.
        planar: step t holds the C neighbouring values from C t on of the array, so of one colour only.
        order: permutation of the steps, (T,) int64; step t shows pixel order[t].
        augment: training only: before scaling, `cropped_and_mirrored`.
    """

    scale: float = 255.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    planar: bool = False
    order: Tensor | None = None
    augment: bool = False

    @property
    def unit(self) -> float:
        """What one unit of a step's vector is of a pixel's values, at least."""
        return self.scale * min(self.std or (1.0,))

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map a batch; augment only where a generator is given. Repeats bit for bit from it."""
        if generator is not None and self.augment:
            x = cropped_and_mirrored(x, generator)
        x = x.float() / self.scale  # (B, C, H, W)
        if self.mean:
            mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
            x = (x - mean) / std
        if self.planar:
            x = rearrange(x.flatten(1), "b (t m) -> b t m", m=x.shape[1])
        else:
            x = rearrange(x, "b c h w -> b (h w) c")
        if self.order is not None:
            x = x[:, self.order.to(x.device)]
        return x.contiguous()


def cropped_and_mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) shifted by up to W // 8 pixels, black beyond, and half of them mirrored."""

    def draw(high: int) -> Tensor:
        r = torch.randint(high, (len(x), 1), generator=generator, device=generator.device)
        return r.to(x.device)

    image, plane, row, column = (torch.arange(k, device=x.device) for k in x.shape)
    crop = x.shape[3] // 8
    rows, columns = draw(2 * crop + 1) + row, draw(2 * crop + 1) + column
    columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    image, plane = image[:, None, None, None], plane[:, None, None]
    padded = functional.pad(x, (crop,) * 4)
    return padded[image, plane, rows[:, None, :, None], columns[:, None, None]]


def resized(x: Tensor, side: int | None) -> Tensor:
    """(N, C, H, W) uint8 stretched to (N, C, side, side): bilinear with anti-aliasing, rounded."""
    if side is None or x.shape[2:] == (side, side):
        return x
    floats = (part.float() for part in x.split(_RESIZE_CHUNK))
    scaled = (functional.interpolate(f, (side, side), mode="bilinear", antialias=True) for f in floats)
    return torch.cat([part.round().byte() for part in scaled])
