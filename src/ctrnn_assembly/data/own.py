"""Series of your own: read from files or arrays, split, and normalised by what the training part says.

Their forms are in docs/howto/own-series.md. A class is text or a whole number, and values have a decimal
point where both may be. Whatever does not fit is a DataError with its row and column. Series of the UCR
and UEA archives, in their files or those of aeon, an extra, stay as the archive has them.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ctrnn_assembly.data.tables import COLUMNS, Table, read_table, ts_table
from ctrnn_assembly.data.targets import STEPWISE, UNKNOWN
from ctrnn_assembly.data.task import SPLIT_SEED, Split, Task, checked, dealt, make_task, reading
from ctrnn_assembly.errors import ConfigError, DataError, refusing
from ctrnn_assembly.settings import DataConfig, Part

ENDINGS = (".npz", ".npy", ".csv", ".ts")
MISSING = ("", "?", "na", "n/a", "nan", "null", "none")
LABELLED = ("class", "regression", "per-step")  # targets that y tells
FRACTION = re.compile(r"[-+]?(\d+\.|\.\d|\d+[eE][-+]?\d)[-+\deE]*")
REGULAR = 1e-4  # relative: time stamps this close to one distance are rounded ones
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Series:
    """Series x, (n, T, m) float64, of which the first `lengths`, (n,), samples count.

    y, (n, S), are texts of classes, or (n, S, k) float64 of values, of S = 1 or T steps;
    `split` the parts, and `group` what shares a part, (n,) texts; t, (n, T), times, `stamps` as they
    stand, `rows` their places in the file. `columns` and `note` are those of `Table`.
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
    stamps: Array | None = None
    group: Array | None = None
    columns: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def valid(self) -> Array:
        """(n, T) bool."""
        return np.arange(self.x.shape[1]) < self.lengths[:, None]

    def refuse(self, wrong: Array, values: Array, must: str, advice: str) -> None:
        """DataError with the place of the first True in `wrong`, (n, T) or (n, T, m)."""
        for i, step, *channel in np.argwhere(wrong)[:1]:
            place = f"series {self.ids[i]!r}, step {step}" if self.rows is None else self.rows[i, step]
            column = "".join(f", column {self.channels[k]!r}" for k in channel)
            got = f"{values[(i, step, *channel)].item()!r} at {place}{column}"
            raise DataError(f"{self.what}: {must}; got {got}. {advice}")

    def filled(self, missing: str) -> Array:
        """x where "hold" puts the last value before a gap; NaN is left where none was, and by "mask"."""
        x, valid, must = self.x, self.valid[..., None], "values must be finite"
        self.refuse(np.isinf(x) & valid, x, must, "Mend it.")
        if missing == "refuse":
            self.refuse(np.isnan(x) & valid, x, must, "Fill it in, or train by --missing hold or mask.")
        if missing == "mask":
            return x
        last = np.where(np.isnan(x), 0, np.arange(x.shape[1])[:, None])
        return np.take_along_axis(x, np.maximum.accumulate(last, axis=1), axis=1)

    def intervals(self) -> tuple[Array, Array]:
        """From each sample to the next one, (n, T - 1), and which of them count; none without times."""
        t, known = self.x[..., 0] if self.t is None else self.t, self.valid[:, 1:]
        apart, known = np.diff(t, axis=1), known & (self.t is not None)
        advice = "Remove one of two samples of the same time."
        self.refuse(known & ~(apart > 0), t, "times must increase, the next one does not", advice)
        return apart, known


class Preparation(Part):
    """What turns `Series` into a `Split`: of the training part, kept with a run, a `Task.sequence`.

    `spacing` is the median time between samples, which becomes the network's dt; None without times.
    """

    model_config = Part.model_config | {"allow_inf_nan": True}  # `answers` says where a target is not
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    spacing: float | None
    missing: str
    target: str = "class"
    ahead: int = 1
    warm_up: int = 0
    values: dict[str, tuple[float, float]] = Field({})  # with mean and standard deviation
    columns: dict[str, str] = Field({})  # of a table, that are named otherwise than usual

    @classmethod
    def of(cls, series: Series, train: Array, options: DataConfig) -> Self:
        """From the series at the indices `train` alone; a constant channel has std 1."""
        (apart, counts), valid, y = series.intervals(), series.valid[train], series.y
        scaled = scaling(series, series.channels, series.filled(options.missing)[train][valid])
        values, classes, gaps = scaled, tuple[str, ...](), apart[train][counts[train]]  # of a forecast
        if y is not None:
            y = y[train][valid[:, : y.shape[1]]]
            values = scaling(series, [f"y{k}" for k in range(y.shape[1])], y) if y.ndim > 1 else {}
            if not values:  # whole numbers by size, and before words
                found = {one for one in y.tolist() if one.lower() not in MISSING}
                ranked = sorted((not one.isdigit(), len(one) * one.isdigit(), one) for one in found)
                classes = tuple(one for *_, one in ranked)
                if len(classes) < 2:
                    raise DataError(f"{series.what} needs at least 2 classes; got {', '.join(classes)}.")
        mean, std = zip(*scaled.values(), strict=True)
        given: Any = {k: getattr(options, k) for k in ("missing", "target", "ahead", "warm_up")}
        given["spacing"] = float(np.median(gaps)) if len(gaps) else None
        given |= {"channels": series.channels, "columns": series.columns, "values": values}
        return cls(mean=mean, std=std, classes=classes, **given)

    @classmethod
    def read(cls, file: Path) -> Self:
        """As a run keeps it."""
        with refusing(f"{file} is not of a run of series, or damaged", "Name one.", told=False):
            return cls.model_validate_json(file.read_text(encoding="utf-8"))

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x.float()

    def answers(self, series: Series) -> Tensor:
        """What the net is to say, as `Split.y`; DataError for an unknown class, or a series of none."""
        y: Any = series.y
        later, stepwise = np.arange(series.x.shape[1]), self.target in STEPWISE
        asked = series.valid & (later >= self.warm_up)
        if y is None:
            later = later + self.ahead
            asked &= later < series.lengths[:, None]
            y = series.x[:, np.minimum(later, len(later) - 1)]
        asked = asked if stepwise else np.ones((len(y), 1), dtype=bool)
        if self.classes:
            place = {one: k for k, one in enumerate(self.classes)}
            coded = np.array([[place.get(one, np.nan) for one in row] for row in y.tolist()])
            strange = asked & np.isnan(coded) & ~np.isin(np.char.lower(y), MISSING)
            advice = "Give it more samples, remove it, or name the --target."
            series.refuse(strange, y, "a class must have a training sample", advice)
            y = coded[..., None]
        else:
            series.refuse(asked & np.isinf(y).any(-1), y[..., 0], "a target must be finite", "Mend it.")
            mean, std = np.array([*self.values.values()]).T
            y = y / std - mean / std
        y = np.where(asked[..., None], y, np.nan)
        none, steps = np.isnan(y).all((1, 2))[:, None], series.lengths[:, None].astype(str)
        must = f"a series must have a target beyond warm_up {self.warm_up} and ahead {self.ahead}"
        series.refuse(none, np.char.add(steps, " steps"), must, "Remove it, or lower them.")
        found = torch.from_numpy(y if stepwise else y[:, 0])
        return found[..., 0].nan_to_num(UNKNOWN).long() if self.classes else found.float()

    def words(self, outputs: Tensor) -> dict[str, Any]:
        """What the net says by its outputs, (k,), in the data's own words and units."""
        if self.classes:
            shares = zip(self.classes, outputs.softmax(-1).tolist(), strict=True)
            named = {f"probability_{name}": share for name, share in shares}
            return {"prediction": self.classes[int(outputs.argmax())], **named}
        found = zip(self.values.items(), outputs.tolist(), strict=True)
        named = {f"prediction_{name}": mean + std * f for (name, (mean, std)), f in found}
        return named if len(named) > 1 else {"prediction": named.popitem()[1]}

    def split(self, series: Series, *, answered: bool = True) -> Split:
        """The series, normalised; 0, the mean, for a gap that is not held; y 0 if not asked for. "mask"
        adds for each channel another one, 1 where it has a value. DataError for what does not fit."""
        if series.channels != self.channels:
            must = f"{series.what} must have the channels {', '.join(self.channels)}, as in training"
            raise DataError(f"{must}; got {', '.join(series.channels)}.")
        mean, std, valid = np.array(self.mean), np.array(self.std), series.valid
        with np.errstate(over="ignore"):
            x = series.filled(self.missing) / std - mean / std
            seen = valid[..., None] & ~np.isnan(x)
            x = np.where(seen, x, 0.0).astype(np.float32)
        if self.missing == "mask":
            x = np.concatenate([x, seen.astype(np.float32)], axis=2)
        y = self.answers(series) if answered else torch.zeros(len(x), dtype=torch.int64)
        apart, counts = series.intervals()
        lengths, dt = None if valid.all() else torch.from_numpy(series.lengths), None
        times = np.where(counts, apart / (self.spacing or np.inf), 1.0)
        if self.spacing and (abs(times - 1) > REGULAR).any():
            dt = torch.from_numpy(np.pad(times, [(0, 0), (0, 1)], constant_values=1)).float()
        whole = Split(torch.from_numpy(x), y, lengths, dt)
        return checked(series.what, whole, len(self.classes or self.values))


def scaling(series: Series, names: Sequence[str], x: Array) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation, 1 of a constant, of the columns of x, (samples, m), by name."""
    if (empty := np.isnan(x).all(0)).any():
        name = names[int(empty.argmax())]
        raise DataError(f"{series.what}: column {name!r} has no value to train on. Remove it.")
    low, high = np.nanmin(x, 0), np.nanmax(x, 0)
    scale = np.maximum(abs(low), abs(high))  # the square of 1e308 is beyond all numbers
    scale[scale == 0] = 1.0
    with np.errstate(invalid="ignore"):  # infinite ones are refused
        mean, std = scale * np.nanmean(x / scale, 0), scale * np.nanstd(x / scale, 0)
    still = (low == high) | (std == 0)
    found = zip(names, np.where(still, low, mean), np.where(still, 1.0, std), strict=True)
    # To digits that are the same on every machine.
    return {name: (float(f"{m:.12g}"), float(f"{s:.12g}")) for name, m, s in found}


def load_own(name: str, options: DataConfig) -> Task:
    """The task `own` of the file that data_dir names, or that is alone in it."""
    if options.data_dir is None:
        raise ConfigError("task own is read from a file of yours. Name it with --data.")
    columns = {} if options.split_by is None else {"group": options.split_by}
    return task_of(read_series(options.folder, options.target, columns), options)


def load_series(name: str, options: DataConfig) -> Task:
    """`series:NAME`, e.g. series:JapaneseVowels, which ships with aeon.

    Series of unequal length are padded with zeros at the end and come with `lengths`; test ones may be
    longer than `n_steps`. Val is a fifth of the archive's train split, class by class, in every run.
    """
    # aeon strips these endings, which choose its equal-length and imputed variants.
    base = name.removeprefix("series:").removesuffix("_nmv").removesuffix("_eq")
    files = {part: f"{base}_{part.upper()}.ts" for part in ("train", "test")}
    home = home_of(base, options.folder, [*files.values()])

    def read(part: str) -> Series:
        return of_table(f"{name} {part} split", ts_table([home / files[part]]), "class")

    series = read("train")
    y: Any = series.y
    m, said = len(series.channels), y[:, 0]
    given: Any = {"channels": series.channels, "missing": options.missing, "spacing": None}
    given |= {"mean": (0.0,) * m, "std": (1.0,) * m}
    as_stored = Preparation(classes=(classes := tuple(sorted(set(said.tolist())))), **given)
    whole = as_stored.split(series)

    def stored(part: str, train: Split | None) -> Split:
        return whole if part == "train" else as_stored.split(read(part))

    parts = dealt(said, 5, {"val": (0,)})
    return make_task(name, options, name, classes, stored, lambda train: as_stored, parts)


def home_of(base: str, folder: Path, files: list[str]) -> Path:
    """Where the files of a set are: below `folder`, or in aeon, which downloads them if it must."""
    home = folder / base
    if all((home / file).is_file() for file in files):
        return home
    try:
        import aeon.datasets
    except ImportError as error:
        raise ConfigError(f"Series need aeon ({error}). pip install 'ctrnn-assembly[series]'") from error
    bundled = Path(aeon.__file__).parent / "datasets" / "data" / base
    if (bundled / files[0]).is_file():
        return bundled
    advice = f"{' and '.join(files)}, as of timeseriesclassification.com, into {home}"
    with reading(f"series:{base}", advice, home):
        # Lengths and gaps as published, not padded or imputed.
        kept = {"load_equal_length": False, "load_no_missing": False}
        aeon.datasets.load_classification(base, extract_path=str(folder), **kept)
    return home


def task_of(series: Series, options: DataConfig) -> Task:
    what, parts, note = series.what, parted(series, options), series.note
    prepared = Preparation.of(series, parts["train"].numpy(), options)
    whole = prepared.split(series)
    if whole.dt is not None:
        low, high = float(whole.dt.min()), float(whole.dt.max())
        apart = f"samples are {low:.3g} to {high:.3g} times dt apart"
        note = f"{note} {apart}: what is proven of a step is of dt.".strip()
    task = make_task(what, options, what, prepared.classes, lambda *_: whole, lambda _: prepared, parts)
    unit = tuple(std for _, std in prepared.values.values())
    return replace(task, note=note, n_class=len(prepared.classes or unit), unit=unit)


def parted(series: Series, options: DataConfig) -> dict[str, Tensor]:
    """Indices, int64 and ascending, of train, val and test, as the series say; what they do not speak of
    is dealt from train, class by class and in whole groups, the same in every run."""
    n, parts = len(series.x), dict[str, Array]()
    said = np.full(n, "train") if series.split is None else series.split
    if strange := set(said.tolist()) - {"train", "val", "test"}:
        must = f"{series.what}: split must be train, val or test"
        raise DataError(f"{must}; got {min(strange)!r}.")
    # Groups, each a lone series by default: where it first stands, and of each series the group.
    groups = np.arange(n) if series.group is None else series.group
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    if len({*zip(group.tolist(), said.tolist(), strict=True)}) > len(first):
        raise DataError(f"{series.what}: split must have each group in one part. Mend it.")
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(first))
    y: Any = series.y if options.target == "class" else np.zeros((n, 1))
    left = shuffled[np.argsort(y[first[shuffled], 0], kind="stable")]
    left = left[said[first[left]] == "train"]
    for part, share in (("test", options.test_fraction), ("val", options.val_fraction)):
        parts[part] = (said == part).nonzero()[0]
        if share and not len(parts[part]):
            k = min(len(left), max(1, round(share * len(first))))
            chosen = left[((np.arange(k) + 0.5) * len(left) / max(k, 1)).astype(np.int64)]
            left, parts[part] = left[~np.isin(left, chosen)], np.isin(group, chosen).nonzero()[0]
    parts["train"] = np.isin(group, left).nonzero()[0]
    for part, index in parts.items():
        if not len(index) and getattr(options, f"{part}_fraction", True):
            raise DataError(f"{series.what}: {n} series leave none for {part}. Give more, or cut them.")
    parts["val"] = parts["val"] if len(parts["val"]) else parts["train"]
    return {part: torch.from_numpy(np.sort(index)) for part, index in parts.items()}


def read_series(file: Path, target: str | None, columns: dict[str, str]) -> Series:
    """The series in a file, or in the only such file of a folder, with what is said of them, if any;
    `columns` as in `Table`."""
    inside = sorted(file.iterdir()) if file.is_dir() else ()
    found = [one for one in inside if one.suffix.lower() in ENDINGS and one.stem[:1] != "y"]
    trains = [one.with_name(one.name.replace("_TRAIN.", "_TEST.")) for one in found]
    found = [one for one in found if one not in trains or "_TEST." not in one.name]
    file = found[0] if len(found) == 1 else file
    kind = file.suffix.lower()
    if kind not in ENDINGS or not file.is_file():
        must = f"must be a file that ends in {', '.join(ENDINGS)}, or a folder with one such file"
        raise DataError(f"{file} {must}. Name it with --data; many series go into one table.")
    if kind in (".csv", ".ts"):
        return of_table(file.name, read_table(file, columns, target), target)
    beside = file.with_name(file.name.replace("X", "y", 1))
    with refusing(f"{file} cannot be read as arrays", "Write it with numpy."):
        if kind == ".npz":
            with np.load(file) as stored:
                held = dict(stored)
        else:
            both = {"X": file} | ({"y": beside} if beside != file and beside.is_file() else {})
            held = {name: np.load(one) for name, one in both.items()}
    group = columns.get("group", "groups")
    if lacks := {"X", *["y"] * (target in LABELLED), *columns.values()} - held.keys():
        raise DataError(f"{file} must hold an array {min(lacks)}; got {', '.join(held)}. Add it.")
    given = [held.get(name) for name in ("X", "y", "lengths", "t", "split", group)]
    return of_arrays(file.name, *given, target=target)


def of_arrays(
    what: str, X: Any, y: Any, lengths: Any, times: Any, split: Any, groups: Any, *, target: str | None
) -> Series:
    """Arrays as `Task.from_arrays` takes them; y is read if the target is told by it."""
    must = f"{what} must hold X (samples, time, channels) of numbers, y as the target asks"
    with refusing(must, "Lengths and t may stand beside them."):
        if np.iscomplexobj(X):
            raise ValueError("got complex numbers")
        x = np.asarray(X, dtype=np.float64)
        x = x[..., None] if x.ndim == 2 else x
        n, T, m = x.shape
        ends = np.full(n, T) if lengths is None else np.asarray(lengths)
        if 0 in x.shape or ends.shape != (n,) or not ((ends >= 1) & (ends <= T) & (ends % 1 == 0)).all():
            raise ValueError(f"got X {x.shape}, and lengths must be {n} whole numbers in 1..{T}")
        t = None if times is None else np.broadcast_to(np.asarray(times, dtype=np.float64), (n, T))
        y = told(np.asarray(y), (n, T), target) if target in LABELLED else None
        said = (None if one is None else np.broadcast_to(one, n).astype(str) for one in (split, groups))
        split, groups = said
    names, ids = tuple(f"x{k}" for k in range(m)), [str(i) for i in range(n)]
    return Series(what, x, ends.astype(np.int64), names, ids, y, t, None, split, t, groups)


def told(y: Array, shape: tuple[int, int], target: str | None) -> Array:
    """The y of arrays as `Series` has it; ValueError if it is of another target."""
    lead, floats = shape if target == "per-step" else shape[:1], y.dtype.kind == "f"
    values = target == "regression" or (target == "per-step" and floats)
    fits = y.shape[: len(lead)] == lead and y.ndim <= len(lead) + values
    if not fits or not (values or not floats or (y % 1 == 0).all()):
        kinds = "numbers" if values else "whole numbers or texts"
        raise ValueError(f"y of target {target} must be {lead} {kinds}; got {y.dtype} {y.shape}")
    y = y.reshape(shape[0], *(lead[1:] or (1,)), -1)
    whole = y.astype(np.int64) if floats and not values else y
    return whole.astype(np.float64) if values else whole.astype(str)[..., 0]


def of_table(what: str, table: Table, target: str | None) -> Series:
    """The series of a long table, whose rows may stand in any order."""
    names, cells, at = table.names, np.array(table.cells), {kind: table.at(kind) for kind in COLUMNS}
    needed = {"id": True, "target": target in LABELLED, "group": target and "group" in table.columns}
    for kind, found in at.items():
        if len(found) > 1 or (not found and needed.get(kind)):
            called = table.columns.get(kind, ", ".join(filter(None, COLUMNS[kind])))
            must = f"{what} must have one column for {kind}, named {called}"
            raise DataError(f"{must}; got the header {', '.join(names)}.")
    channels = [k for k in range(len(names)) if not any(k in found for found in at.values())]
    if not channels:
        raise DataError(f"{what} has no channel, only {', '.join(names)}. Add a column of numbers.")

    def numbers(columns: list[int], *, time: bool = False) -> Array:
        found = [
            [_number(f"{what}: {place}, column {names[k]!r}", row[k], time) for k in columns]
            for place, row in zip(table.places, table.cells, strict=True)
        ]
        return np.array(found, dtype=np.float64)

    ids, t = cells[:, at["id"][0]], numbers(at["time"], time=True)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.lexsort((*t.T, first[inverse]))  # by id as they come, then by time
    _, starts, lengths = np.unique(first[inverse][order], return_index=True, return_counts=True)
    steps = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    rows = order[starts[:, None] + steps]  # (n, T), of its last sample past the end of a series
    read: Any = {kind: cells[rows, found[0]] for kind, found in at.items() if found}
    y, split, group, stamps = (read.get(kind) for kind in ("target", "split", "group", "time"))
    x, times = numbers(channels)[rows], t[rows, 0] if t.size else None
    named, each = tuple(names[k] for k in channels), ids[rows[:, 0]].tolist()
    places = np.array(table.places)[rows]
    series = Series(what, x, lengths, named, each, None, times, places, stamps=stamps)
    once = {"target": y} if target in ("class", "regression") else {}
    for kind, text in (once | {"split": split, "group": group}).items():
        if text is not None:
            wrong = (text != text[:, :1]) | np.isin(np.char.lower(text), MISSING)
            advice = "Mend it, or name another --target." if kind == "target" else "Mend it."
            series.refuse(wrong, text, f"{kind} must be there, one for each id", advice)
    if target == "regression" or (target == "per-step" and any(map(FRACTION.fullmatch, y.ravel()))):
        y = numbers(at["target"])[rows]
    y = None if target not in LABELLED else y if target == "per-step" else y[:, :1]
    split, group = (None if text is None else text[:, 0] for text in (split, group))
    return replace(series, y=y, split=split, group=group, columns=table.columns, note=table.note)


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
