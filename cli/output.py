"""Where the numbers of a command go: table or JSON to the terminal; rows, arrays, picture to files.

A command says once what its columns are; the table, the CSV file and the rows of the JSON follow.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures import FORMATS
from ctrnn_cli.options import option, together

if TYPE_CHECKING:  # matplotlib and rich take their time to import
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table


class OutputFile(click.Path):
    """A file to write, with one of some suffixes: refused before any work if it cannot be written.

    Raises:
        ConfigError: for a wrong suffix, a folder, or a place that is not writable.
    """

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
        above = file.parent
        while not above.exists() and above != above.parent:
            above = above.parent
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise ConfigError(f"{name} {file} cannot be written: {above} is not a writable folder.")
        return file


PICTURE = OutputFile(*FORMATS)
json_option = option(
    "--json", "as_json", is_flag=True, help="print JSON, and nothing else", section="output"
)
plot_option = option(
    "--plot", type=PICTURE, metavar="FILE", help="draw .png, .svg or .pdf", section="output"
)


@dataclass(frozen=True)
class Column:
    """A column of rows: its key in JSON and CSV, its header in the table, and the format of a number.

    Text has no format and stands left. `missing` is shown where there is no value.
    """

    key: str
    header: str
    form: str = ""
    missing: str = "-"

    def cell(self, value: Any) -> str:
        """What the table shows."""
        if value is None:
            return self.missing
        return value if isinstance(value, str) else format(value, self.form)


def rows_of(columns: Sequence[Column], values: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows by the keys of the columns, from a value for each column."""
    return [dict(zip((c.key for c in columns), row, strict=True)) for row in values]


def table(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], *, title: str) -> Table:
    """A table of rows."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), title_justify="left")
    for column in columns:
        made.add_column(column.header, justify="right" if column.form else "left")
    for row in rows:
        made.add_row(*(Text(column.cell(row[column.key])) for column in columns))
    return made


def facts(pairs: Iterable[tuple[str, str]], *, title: str) -> Table:
    """A table of names and values."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), title_justify="left", show_header=False)
    for name, value in pairs:
        made.add_row(name, Text(value))
    return made


def console(*, err: bool = False) -> Console:
    """As wide as the terminal, or as COLUMNS says; a file is as wide as the tables need."""
    from rich.console import Console

    known = (sys.stderr if err else sys.stdout).isatty() or "COLUMNS" in os.environ
    return Console(stderr=err, highlight=False, width=None if known else 200)


def print_json(result: Any) -> None:
    """Standard JSON, which has no NaN and no infinity: null stands for them."""
    click.echo(json.dumps(finite(result), indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """A value, or a nest of lists and mappings, with None for every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Outputs:
    """What was asked for: `as_json` instead of a table, and the files to write."""

    as_json: bool
    csv_file: Path | None
    npz_file: Path | None
    plot: Path | None

    def emit(
        self,
        result: Mapping[str, Any],
        columns: Sequence[Column],
        *,
        title: str,
        notes: Iterable[str],
        arrays: Mapping[str, Any],
        figure: Callable[[], Figure],
    ) -> None:
        """Print table and notes, or the JSON; write the files, each whole or not at all.

        Args:
            result: what --json prints; result["rows"] has a value for the key of every column.
            arrays: what --npz writes.
            figure: draws what --plot writes.
        """
        from ctrnn_assembly.training.run import write

        rows = finite(result["rows"])
        if self.csv_file is not None:
            text = io.StringIO()
            writer = csv.DictWriter(text, [column.key for column in columns], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write(self.csv_file, text.getvalue())
        if self.npz_file is not None:
            import numpy as np

            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            write(self.npz_file, buffer.getvalue())
        if self.plot is not None:
            from ctrnn_assembly.figures.style import save_figure

            save_figure(figure(), self.plot)
        if self.as_json:
            print_json(result)
            return
        console().print(table(columns, rows, title=title))
        for note in notes:
            click.echo(note)
        for file in (self.csv_file, self.npz_file, self.plot):
            if file is not None:
                click.echo(f"written: {file}")


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--json, --csv, --npz and --plot, which the command gets as `outputs`."""

    @functools.wraps(function)
    def command(
        *, as_json: bool, csv_file: Path | None, npz_file: Path | None, plot: Path | None, **given: Any
    ) -> Any:
        return function(outputs=Outputs(as_json, csv_file, npz_file, plot), **given)

    return together(
        json_option,
        option("--csv", "csv_file", type=OutputFile(), metavar="FILE", help="write the rows",
               section="output"),
        option("--npz", "npz_file", type=OutputFile(), metavar="FILE", help="write the arrays",
               section="output"),
        plot_option,
    )(command)  # fmt: skip
