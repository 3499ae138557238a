"""Where the numbers of a command go: table or JSON to the terminal; rows, arrays, picture to files.

A command says once what its columns are; the table, the CSV file and the rows of the JSON follow.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures import FORMATS
from ctrnn_cli.options import option, together

if TYPE_CHECKING:  # matplotlib and rich take their time to import
    from rich.console import Console
    from rich.table import Table

    from ctrnn_assembly.figures.style import Figure


class OutputFile(click.Path):
    """A file to write, with one of some suffixes: refused before any work if it cannot be written."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__(path_type=Path)
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        file: Path = super().convert(value, param, ctx)  # type: ignore[assignment]
        name = "the file" if param is None else param.opts[0]
        if self.suffixes and file.suffix.lower() not in self.suffixes:
            raise ConfigError(f"{name} must end in {', '.join(self.suffixes)}; got {str(file)!r}.")
        if file.is_dir():
            raise ConfigError(f"{name} must be a file; {file} is a folder.")
        above = next(folder for folder in file.absolute().parents if folder.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise ConfigError(f"{name} {file} cannot be written: {above} is not a writable folder.")
        return file


PICTURE = OutputFile(*FORMATS)
to = partial(option, section="output")
json_option = to("--json", "as_json", is_flag=True, help="print JSON, and nothing else")
plot_option = to("--plot", type=PICTURE, metavar="FILE", help="draw .png, .svg or .pdf")
output_options = together(
    json_option,
    to("--csv", type=OutputFile(), metavar="FILE", help="write the rows"),
    to("--npz", type=OutputFile(), metavar="FILE", help="write the arrays"),
    plot_option,
)


@dataclass(frozen=True)
class Column:
    """A column of rows: its key in JSON and CSV, its header in the table, and the format of a number.

    Text has no format and stands left. `missing` is shown where there is no value. `values` is a tensor
    or a sequence with a value for each row, or one value for every row.
    """

    key: str
    header: str
    form: str = ""
    values: Any = None
    missing: str = "-"

    def cell(self, value: Any) -> str:
        """What the table shows."""
        if value is None:
            return self.missing
        return value if isinstance(value, str) else format(value, self.form)


def rows_of(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """The rows of columns with values, of which one at least has several."""
    plain = [c.values.tolist() if hasattr(c.values, "tolist") else c.values for c in columns]
    size = next(len(values) for values in plain if isinstance(values, list | tuple | range))
    filled = (v if isinstance(v, list | tuple | range) else [v] * size for v in plain)
    return [dict(zip((c.key for c in columns), row, strict=True)) for row in zip(*filled, strict=True)]


def table(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], *, title: str) -> Table:
    """A table of rows; without a line of headers if no column has one."""
    from rich.table import Table

    named = any(column.header for column in columns)
    made = Table(title=title, title_justify="left", show_header=named)
    for column in columns:
        # On a narrow terminal the name of a row stays whole.
        whole = column is columns[0]
        made.add_column(column.header, justify="right" if column.form else "left", no_wrap=whole)
    for row in rows:
        made.add_row(*(column.cell(row[column.key]) for column in columns))
    return made


def facts(pairs: Iterable[tuple[str, str]], *, title: str) -> Table:
    """A table of names and values."""
    names = Column("name", ""), Column("value", "")
    return table(names, ({"name": name, "value": value} for name, value in pairs), title=title)


def console(*, err: bool = False) -> Console:
    """As wide as the terminal, or as COLUMNS says; a file is as wide as the tables need.

    Text is printed as it is: brackets are no markup, and colons no pictures.
    """
    from rich.console import Console

    known = (sys.stderr if err else sys.stdout).isatty() or "COLUMNS" in os.environ
    width = None if known else 200
    return Console(stderr=err, highlight=False, markup=False, emoji=False, width=width)


def finite(value: Any) -> Any:
    """A value, or a nest of lists and mappings, with None for every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def print_json(result: Any) -> None:
    """Standard JSON, which has no NaN and no infinity: null stands for them."""
    click.echo(json.dumps(finite(result), indent=2, allow_nan=False))


def emit(
    result: Mapping[str, Any],
    columns: Sequence[Column],
    *,
    title: str,
    notes: Iterable[str],
    arrays: Mapping[str, Any],
    figure: Callable[[], Figure],
    files: Mapping[str, Path | None],
    as_json: bool,
) -> None:
    """Print table and notes, or the JSON; write the files, each whole or not at all.

    Args:
        result: what --json prints; result["rows"] has a value for the key of every column.
        files: by "csv": the rows; "npz": the arrays, but None; "plot": the figure.
    """
    import numpy as np

    from ctrnn_assembly.training.run import write

    rows = finite(result["rows"])
    if file := files["csv"]:
        text = io.StringIO()
        writer = csv.DictWriter(text, [column.key for column in columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write(file, text.getvalue())
    if file := files["npz"]:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{k: v for k, v in arrays.items() if v is not None})
        write(file, buffer.getvalue())
    if file := files["plot"]:
        from ctrnn_assembly.figures.style import save_figure

        save_figure(figure(), file)
    if as_json:
        print_json(result)
        return
    console().print(table(columns, rows, title=title))
    written = [f"written: {file}" for file in files.values() if file is not None]
    click.echo("\n".join([*notes, *written]))
