"""Series of your own: read from files or arrays, split, and normalised by what the training part says.

    .npz  X (samples, time, channels), y (samples,); perhaps lengths, split, and t (samples, time)
    .npy  X; y in the file beside it that has y for X in its name
    .csv  a row a step below a header: id, target, channels; perhaps time (a number or ISO date), split

A class is text or a whole number; `split` says train, val or test of each series. Whatever does not
fit is a DataError with its row and column.
"""

import csv
import io
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ctrnn_assembly.data.task import SPLIT_SEED, Options, Split, Task, checked, make_task
from ctrnn_assembly.errors import ConfigError, DataError

ENDINGS = (".npz", ".npy", ".csv")
MISSING = ("", "?", "na", "n/a", "nan", "null", "none")
COLUMNS = {
    "id": ("id", "series", "sample"),
    "time": ("time", "t", "timestamp", "date"),
    "target": ("target", "label", "class"),  # not y: a channel of x, y, z
    "split": ("split",),
}
REGULAR = 1e-4  # relative: time stamps this close to one distance are rounded ones
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Series:
    """Series x, (n, T, m) float64, of which the first `lengths`, (n,), samples count.

    y are the classes and `split` the parts, (n,) texts; t, (n, T), times and `rows` lines of the file.
    """

    what: str
    x: Array
    lengths: Array
    channels: tuple[str, ...]
    ids: list[str]
    y: Array | None = None
    t: Array | None = None
    rows: Array | None = None
    split: Array | None = None

    @property
    def valid(self) -> Array:
        """(n, T) bool."""
        steps: Array = np.arange(self.x.shape[1]) < self.lengths[:, None]
        return steps

    def refuse(self, wrong: Array, values: Array, must: str, advice: str) -> None:
        """DataError with the place of the first True in `wrong`, (n, T) or (n, T, m)."""
        for i, step, *channel in np.argwhere(wrong)[:1]:
            line = self.rows is not None and f"row {self.rows[i, step]}"
            place = [line or f"series {self.ids[i]!r}, step {step}"]
            place += [f"column {self.channels[k]!r}" for k in channel]
            got = f"{values[(i, step, *channel)].item()!r} at {', '.join(place)}"
            raise DataError(f"{self.what}: {must}; got {got}. {advice}")

    def filled(self, missing: str) -> Array:
        """x where "hold" puts the last value before a gap; NaN is left where there is none."""
        x, valid, must = self.x, self.valid[..., None], "values must be finite"
        self.refuse(np.isinf(x) & valid, x, must, "Mend it.")
        if missing == "refuse":
            self.refuse(np.isnan(x) & valid, x, must, "Fill it in, or use --missing hold.")
        last = np.where(np.isnan(x), 0, np.arange(x.shape[1])[:, None])
        return np.take_along_axis(x, np.maximum.accumulate(last, axis=1), axis=1)

    def intervals(self) -> tuple[Array, Array]:
        """From each sample to the next one, (n, T - 1), and which of them count; none without times."""
        t, known = self.x[..., 0] if self.t is None else self.t, self.valid[:, 1:]
        apart, known = np.diff(t, axis=1), known & (self.t is not None)
        advice = "Remove one of two samples of the same time."
        self.refuse(known & ~(apart > 0), t, "times must increase, the next one does not", advice)
        return apart, known


class Preparation(BaseModel):
    """What turns `Series` into a `Split`. All is of the training part, and is kept with a run.

    It is the `Task.sequence` of series, which are stored as the network sees them. `spacing` is the
    median time between samples, which becomes the network's dt; None without times.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: tuple[str, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    spacing: float | None
    missing: str

    @classmethod
    def of(cls, series: Series, train: Array, missing: str) -> Self:
        """From the series at the indices `train` alone; a constant channel has std 1."""
        y: Any = series.y  # whole numbers by size, and before words
        ranked = {(not one.isdigit(), len(one) * one.isdigit(), one) for one in y[train].tolist()}
        classes = tuple(one for *_, one in sorted(ranked))
        if len(classes) < 2:
            must = f"{series.what} must hold at least 2 classes to train on"
            raise DataError(f"{must}; got {', '.join(classes)}.")
        x = series.filled(missing)[train][series.valid[train]]  # (samples of all, m)
        if (empty := np.isnan(x).all(0)).any():
            name = series.channels[int(empty.argmax())]
            raise DataError(f"{series.what}: column {name!r} has no value to train on. Remove it.")
        low, high, (apart, known) = np.nanmin(x, 0), np.nanmax(x, 0), series.intervals()
        scale = np.maximum(abs(low), abs(high))  # the square of 1e308 is beyond all numbers
        scale[scale == 0] = 1.0
        mean, std = scale * np.nanmean(x / scale, 0), scale * np.nanstd(x / scale, 0)
        still = (low == high) | (std == 0)
        gaps = apart[train][known[train]]
        return cls(
            channels=series.channels,
            classes=classes,
            # To digits that are the same on every machine.
            mean=tuple(float(f"{value:.12g}") for value in np.where(still, low, mean)),
            std=tuple(float(f"{value:.12g}") for value in np.where(still, 1.0, std)),
            spacing=float(np.median(gaps)) if len(gaps) else None,
            missing=missing,
        )

    @classmethod
    def read(cls, file: Path) -> Self:
        """As a run keeps it."""
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            what = f"{file} is not of a run of your own data: {str(error).splitlines()[0]}"
            raise DataError(f"{what}. Name one.") from None

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x.float()

    def split(self, series: Series) -> Split:
        """The series, normalised; 0, the mean, for a gap before the first value. y is 0 without classes.

        DataError for other channels, an unknown class, and what float32 cannot hold.
        """
        if series.channels != self.channels:
            must = f"{series.what} must have the channels {', '.join(self.channels)}, as in training"
            raise DataError(f"{must}; got {', '.join(series.channels)}.")
        mean, std, valid = np.array(self.mean), np.array(self.std), series.valid
        with np.errstate(over="ignore"):
            x = series.filled(self.missing) / std - mean / std
            x = np.where(np.isnan(x) | ~valid[..., None], 0.0, x).astype(np.float32)
        labels = np.array(self.classes[:1] * len(x)) if series.y is None else series.y
        if strange := set(labels.tolist()) - set(self.classes):
            said = f"{series.what}: no training sample is of class {min(strange)!r}"
            raise DataError(f"{said}. Give it more samples, or remove it.")
        y, (apart, known) = torch.tensor([*map(self.classes.index, labels.tolist())]), series.intervals()
        lengths, dt = None if valid.all() else torch.from_numpy(series.lengths), None
        times = np.where(known, apart / (self.spacing or np.inf), 1.0)
        if self.spacing and (abs(times - 1) > REGULAR).any():
            dt = torch.from_numpy(np.pad(times, [(0, 0), (0, 1)], constant_values=1)).float()
        return checked(series.what, Split(torch.from_numpy(x), y, lengths, dt), len(self.classes))


def load_own(name: str, options: Options) -> Task:
    """The task `own` of the file that data_dir names, or that is alone in it."""
    if options.data_dir is None:
        raise ConfigError("task own is read from a file of yours. Name it with --data.")
    return task_of(read_series(options.folder), options)


def task_of(series: Series, options: Options) -> Task:
    """The task of some series: split, prepared, and compared with the `Preparation` of their run."""
    if options.resize is not None:
        raise ConfigError(f"resize is for images; got {options.resize} for {series.what}. Leave it out.")
    what, parts, note = series.what, parted(series, options), ""
    prepared = Preparation.of(series, parts["train"].numpy(), options.missing)
    if options.prepared not in (None, prepared):
        differ = f"{what} is not what the run was trained on: channels, classes or their values differ"
        raise DataError(f"{differ}. Name the old data; new ones are for `ctrnn predict`.")
    whole = prepared.split(series)
    if whole.dt is not None:
        low, high = float(whole.dt.min()), float(whole.dt.max())
        note = f"samples are {low:.3g} to {high:.3g} times dt apart: what is proven of a step is of dt."
    task = make_task(what, options, what, prepared.classes, lambda *_: whole, lambda _: prepared, parts)
    return replace(task, note=note)


def parted(series: Series, options: Options) -> dict[str, Tensor]:
    """Indices, int64 and ascending, of train, val and test, as the series say; else each class is dealt
    by `val_fraction` and `test_fraction`, the same in every run."""
    n, said = len(series.x), series.split
    if said is not None:
        parts = {part: (said == part).nonzero()[0] for part in ("train", "val", "test")}
        if strange := set(said.tolist()) - parts.keys():
            must = f"{series.what}: split must be train, val or test"
            raise DataError(f"{must}; got {min(strange)!r}.")
    else:
        shuffled = np.random.RandomState(SPLIT_SEED).permutation(n)
        y: Any = series.y
        left, parts = shuffled[np.argsort(y[shuffled], kind="stable")], {}
        for part, share in (("test", options.test_fraction), ("val", options.val_fraction)):
            k = min(len(left), max(1, round(share * n)))
            parts[part] = left[((np.arange(k) + 0.5) * len(left) / max(k, 1)).astype(np.int64)]
            left = left[~np.isin(left, parts[part])]
        parts["train"] = left
    for part, index in parts.items():
        if not len(index):
            raise DataError(f"{series.what}: {n} series leave none for {part}. Give more of them.")
    return {part: torch.from_numpy(np.sort(index)) for part, index in parts.items()}


def read_series(file: Path, *, classes: bool = True) -> Series:
    """The series in a file, or in the only such file of a folder, with their classes or without."""
    inside = file.iterdir() if file.is_dir() else ()
    found = [one for one in inside if one.suffix.lower() in ENDINGS and one.stem[:1] != "y"]
    file = found[0] if len(found) == 1 else file
    kind = file.suffix.lower()
    if kind not in ENDINGS or not file.is_file():
        raise DataError(f"{file} must be a file that ends in {', '.join(ENDINGS)}. Name it with --data.")
    if kind == ".csv":
        return read_csv(file, classes=classes)
    beside = file.with_name(file.name.replace("X", "y", 1))
    try:
        if kind == ".npz":
            with np.load(file) as stored:
                held = dict(stored)
        else:
            both = {"X": file} | ({"y": beside} if beside != file and beside.is_file() else {})
            held = {name: np.load(one) for name, one in both.items()}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} cannot be read as arrays: {' '.join(str(error).split())}.") from None
    if "X" not in held or ("y" not in held and classes):
        raise DataError(f"{file} must hold X and y; got {', '.join(held) or 'nothing'}. Add them.")
    given = [held.get(name) for name in ("y", "lengths", "t", "split")]
    return of_arrays(file.name, held["X"], given[0] if classes else None, *given[1:])


def of_arrays(what: str, X: Any, y: Any, lengths: Any, times: Any, split: Any) -> Series:
    """Arrays as `Task.from_arrays` takes them; y may be None."""
    try:
        x = np.asarray(X, dtype=np.float64)
        x = x[..., None] if x.ndim == 2 else x
        n, T, m = x.shape
        ends = np.full(n, T) if lengths is None else np.asarray(lengths)
        if 0 in x.shape or ends.shape != (n,) or not ((ends >= 1) & (ends <= T) & (ends % 1 == 0)).all():
            raise ValueError(f"got X {x.shape}, and lengths must be {n} whole numbers in 1..{T}")
        t = None if times is None else np.broadcast_to(np.asarray(times, dtype=np.float64), (n, T))
        if y is not None:
            y = np.asarray(y)
            if y.shape != (n,) or (y.dtype.kind == "f" and (y % 1 != 0).any()):
                raise ValueError(f"y must be {n} whole numbers or texts; got {y.dtype} {y.shape}")
            y = (y.astype(np.int64) if y.dtype.kind == "f" else y).astype(str)
        split = None if split is None else np.broadcast_to(split, n).astype(str)
    except (ValueError, TypeError) as error:
        must = f"{what} must hold X (samples, time, channels) of numbers, a class y of each sample"
        raise DataError(f"{must}, and perhaps lengths and t: {error}.") from None
    names, ids = tuple(f"x{k}" for k in range(m)), [str(i) for i in range(n)]
    return Series(what, x, ends.astype(np.int64), names, ids, y, t, split=split)


def read_csv(file: Path, *, classes: bool = True) -> Series:
    """The series of a CSV file, whose rows may stand in any order."""
    what, (names, lines, cells) = file.name, _table(file)
    at = {kind: [k for k, n in enumerate(names) if n.lower() in COLUMNS[kind]] for kind in COLUMNS}
    for kind, found in at.items():
        if len(found) > 1 or (not found and kind in ("id", "target")[: 1 + classes]):
            must = f"{what} must have one column for {kind}, named {', '.join(COLUMNS[kind])}"
            raise DataError(f"{must}; got the header {', '.join(names)}.")
    channels = [k for k in range(len(names)) if not any(k in found for found in at.values())]
    if not channels:
        raise DataError(f"{what} has no channel, only {', '.join(names)}. Add a column of numbers.")

    def numbers(columns: list[int], *, time: bool = False) -> Array:
        found = [
            [_number(f"{what}: row {line}, column {names[k]!r}", row[k], time) for k in columns]
            for line, row in zip(lines, cells.tolist(), strict=True)
        ]
        return np.array(found, dtype=np.float64)

    ids, t = cells[:, at["id"][0]], numbers(at["time"], time=True)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.lexsort((*t.T, first[inverse]))  # by id as they come, then by time
    _, starts, lengths = np.unique(first[inverse][order], return_index=True, return_counts=True)
    steps = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    rows = order[starts[:, None] + steps]  # (n, T), of its last sample past the end of a series
    said = {kind: cells[rows, at[kind][0]] for kind in ("target", "split") if at[kind]}
    said = {kind: text for kind, text in said.items() if classes or kind != "target"}
    y, split = (said[kind][:, 0] if kind in said else None for kind in ("target", "split"))
    x, stamps = numbers(channels)[rows], t[rows, 0] if t.size else None
    named, known = tuple(names[k] for k in channels), ids[rows[:, 0]].tolist()
    series = Series(what, x, lengths, named, known, y, stamps, lines[rows], split)
    for kind, text in said.items():
        wrong = (text != text[:, :1]) | np.isin(np.char.lower(text), MISSING)
        series.refuse(wrong, text, f"{kind} must be there, one for each id", "Mend it.")
    return series


def _number(where: str, cell: str, time: bool) -> float:
    """A cell, NaN for a missing value; a time may be a date, UTC where it names no zone."""
    if not time and cell.lower() in MISSING:
        return np.nan
    with suppress(ValueError):
        if not time or np.isfinite(float(cell)):
            return float(cell)
    with suppress(ValueError):
        date = datetime.fromisoformat(cell if time else "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    raise DataError(f"{where} must be a number{' or an ISO date' * time}; got {cell!r}. Mend it.")


def _table(file: Path) -> tuple[list[str], Array, Array]:
    """Header, (n,) numbers of lines and (n, columns) texts of a CSV file in UTF-8."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        split = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text), delimiter=split)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV in UTF-8: {error}. Save it as that.") from None
    if len(rows) < 2:
        raise DataError(f"{file.name} is empty: it must hold a header and a row a step.")
    names = rows[0][1]
    for line, cells in rows:
        if len(cells) != len(set(names)):
            must = f"row {line} must have {len(set(names))} cells, one a name of the header"
            raise DataError(f"{file.name}: {must}; got {len(cells)}.")
    return names, np.array([line for line, _ in rows[1:]]), np.array([cells for _, cells in rows[1:]])
