"""Files of series as tables of texts with a row a step, whatever their form.

A long CSV table is one; a wide one, a row a series and a column a time, and a .ts file of the UEA
archive, a line a series, are melted into one. A `Table` keeps of each row where it stood.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctrnn_assembly.errors import DataError, refusing

COLUMNS = {
    "id": ("id", "series", "sample", "", "unnamed: 0"),  # the last two head the index of a data frame
    "time": ("time", "t", "timestamp", "date"),
    "target": ("target", "label", "class"),  # not y: a channel of x, y, z
    "split": ("split",),
    "group": (),
}
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Table:
    """Names of the columns, places of the rows, (n,), such as "row 3", and texts, (n, columns).

    `columns` has the names of columns that are not called as in `COLUMNS`; `note` says what was guessed.
    """

    names: list[str]
    places: list[str]
    cells: list[list[str]]
    columns: dict[str, str]
    note: str = ""

    def at(self, kind: str) -> list[int]:
        """The indices of the columns of a kind."""
        known = (self.columns[kind].lower(),) if kind in self.columns else COLUMNS[kind]
        return [k for k, name in enumerate(self.names) if name.lower() in known]


def read_table(file: Path, columns: dict[str, str], target: str | None) -> Table:
    """The table in a .csv or .ts file; NAME_TEST.ts is read with NAME_TRAIN.ts, if there is a target."""
    if file.suffix.lower() != ".ts":
        return melted(file.name, csv_table(file, columns), target)
    test = file.with_name(file.name.replace("_TRAIN.", "_TEST."))
    return ts_table([file, test] if target and test != file and test.is_file() else [file])


def text_of(file: Path) -> str:
    """The text of a file in UTF-8, with or without its mark."""
    with refusing(f"{file} cannot be read as text in UTF-8", "Save it as that."):
        return file.read_text(encoding="utf-8-sig")


def csv_table(file: Path, columns: dict[str, str]) -> Table:
    text = text_of(file)
    split = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=split)
    with refusing(f"{file} cannot be read as CSV", "Save it as that."):
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    if len(rows) < 2:
        raise DataError(f"{file.name} is empty: it must hold a header and a row a step, or a series.")
    names = rows[0][1]
    for line, cells in rows:
        if len(cells) != len(set(names)) or cells[0].startswith("#"):
            must = f"row {line} must have {len(set(names))} cells, one a name, and be no comment"
            raise DataError(f"{file.name}: {must}; got {len(cells)}, first {cells[0][:40]!r}. Mend it.")
    return Table(names, [f"row {line}" for line, _ in rows[1:]], [row for _, row in rows[1:]], columns)


def melted(what: str, table: Table, target: str | None) -> Table:
    """A wide table as a long one; one with times, targets of steps, or several rows of an id is long.

    The header holds increasing times, or names. A target of no usual name is the only column whose name
    is no number, or else the last. Empty cells at the end of a row are past its end.
    """
    names, cells, found = table.names, table.cells, {kind: table.at(kind) for kind in COLUMNS}
    ids = [row[found["id"][0]] for row in cells] if found["id"] else [*map(str, range(len(cells)))]
    values = [k for k in range(len(names)) if not any(k in some for some in found.values())]
    columns, words = dict(table.columns), [k for k in values if not NUMBER.fullmatch(names[k])]
    once, long = len(ids) == len(set(ids)), bool(found["time"]) or target == "per-step"
    if long and once and len(ids) > 1 and found["id"] and target:
        must = f"{what}: the rows of a series must have one {names[found['id'][0]]!r}, got each once"
        raise DataError(f"{must}. For a row a series, leave out time and --target per-step.")
    if unnamed := target in ("class", "regression") and not found["target"] and bool(values):
        found["target"] = words if len(words) == 1 else values[-1:]
        columns["target"] = names[found["target"][0]]
        values.remove(found["target"][0])
    rising = not set(words) & set(values)  # whether the names of columns are times that increase
    if long or not once or not values or (target == "forecast" and not rising and not found["id"]):
        return table
    falls = rising and not (np.diff([float(names[k]) for k in values]) > 0).all()
    known = any(names[k] in (row[k] for row in cells) for k in found["target"])
    if falls or known or (unnamed and not words):
        must = f"{what}: row 1 must be a header, of names or of times that increase, and of the target"
        raise DataError(f"{must}; got {', '.join(names)[:60]}. Add it.")
    carried, places, rows = [*found["target"], *found["split"], *found["group"]], [], []
    for one, place, row in zip(ids, table.places, cells, strict=True):
        last = max((k for k in values if row[k]), default=values[0])
        for k in values[: values.index(last) + 1]:
            places.append(f"{place} of a wide table, time {names[k]!r}")
            rows.append([one, *[names[k]] * rising, row[k], *(row[k] for k in carried)])
    said = f"target {names[found['target'][0]]!r}" if found["target"] else "no target"
    note = f"{what} is read as a wide table: {len(cells)} series of {len(values)} times, {said}."
    named = ["id", *["time"] * rising, "value", *(names[k] for k in carried)]
    return Table(named, places, rows, columns, note)


def ts_table(files: list[Path]) -> Table:
    """.ts files, the second one of a test: in each tags such as @classLabel, @data, and a line a series:
    its channels, and what is said of it, between colons."""
    rows, places, m, count = list[list[str]](), list[str](), 0, 0
    for part, file in zip(("train", "test"), files, strict=False):
        lines, (labelled, *classes) = ts_lines(file)
        m = m or len(lines[0][1]) - labelled
        for place, parts in lines:
            channels, label = parts[:m], [",".join(one) for one in parts[m:]]
            if len(label) != labelled or len({*map(len, channels)}) > 1:
                got = ":".join(str(len(one)) for one in parts)
                must = f"must have {m} channels of as many values" + " and a target" * labelled
                raise DataError(f"{file.name}: {place} {must}; got {got}. Is it cut?")
            if classes and label[0] not in classes:
                must = f"must end in one of the classes {', '.join(classes)}"
                raise DataError(f"{file.name}: {place} {must}; got {label[0]!r}. Is it cut?")
            said = [*label, *[part] * (len(files) > 1)]
            rows += [[str(count), *values, *said] for values in zip(*channels, strict=True)]
            count += 1
            places += [f"{place}, step {step}" for step in range(len(channels[0]))]
    names = ["id", *(f"x{k}" for k in range(m)), *["target"] * labelled, *["split"] * (len(files) > 1)]
    note = f"the split is that of {' and '.join(one.name for one in files)}." if len(files) > 1 else ""
    return Table(names, places, rows, {}, note)


def ts_lines(file: Path) -> tuple[list[tuple[str, list[list[str]]]], list[Any]]:
    """The place of each series in a .ts file, and what stands between colons and commas; whether there
    is a target, and its classes, if they are named."""
    tags, lines = dict[str, list[str]](), []
    for number, line in enumerate(map(str.strip, text_of(file).splitlines()), 1):
        if "data" in tags and line:
            parts = [[cell.strip() for cell in part.split(",")] for part in line.split(":")]
            lines.append((f"line {number}", parts))
        elif line and not line.startswith(("#", "%")):
            tag, *words = line.split()
            if tag[0] != "@" or (tag.lower(), *words[:1]) == ("@timestamps", "true"):
                must = f"line {number} must be a tag, with @timestamps false"
                raise DataError(f"{file.name}: {must}; got {line[:40]!r}. Times can be in a .csv.")
            tags[tag[1:].lower()] = words
    if not lines:
        raise DataError(f"{file.name} is empty: it must hold @data and then a line a series.")
    said, *classes = tags.get("classlabel") or tags.get("targetlabel") or ["false"]
    return lines, [said.lower() == "true", *classes]
