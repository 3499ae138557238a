"""Where the numbers of a command go: table or JSON to the terminal; rows, arrays, picture to files."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_assembly.errors import ConfigError

if TYPE_CHECKING:  # a second to import
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Outputs:
    """What was asked for: `as_json` instead of a table, and the files to write."""

    as_json: bool
    csv_file: Path | None
    npz_file: Path | None
    plot: Path | None

    def check(self) -> None:
        """Refuse a picture of no known format, and what cannot be written, before any work."""
        from ctrnn_assembly.figures import FORMATS

        if self.plot is not None:
            check_file("--plot", self.plot, FORMATS)
        for option, file in (("--csv", self.csv_file), ("--npz", self.npz_file)):
            if file is not None:
                check_file(option, file)

    def emit(
        self,
        result: dict[str, Any],
        table: Table,
        notes: Sequence[str],
        *,
        rows: Sequence[dict[str, Any]],
        arrays: dict[str, Any],
        figure: Callable[[], Figure],
    ) -> None:
        """Print table and notes, or the JSON; write the files, each whole or not at all."""
        from rich.console import Console

        from ctrnn_assembly.figures.style import save_figure
        from ctrnn_assembly.training.run import write

        if self.csv_file is not None:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write(self.csv_file, text.getvalue())
        if self.npz_file is not None:
            import numpy as np

            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            write(self.npz_file, buffer.getvalue())
        if self.plot is not None:
            save_figure(figure(), self.plot)
        if self.as_json:
            click.echo(json.dumps(result, indent=2, allow_nan=False))
            return
        Console(highlight=False).print(table)
        for note in notes:
            click.echo(note)
        for file in (self.csv_file, self.npz_file, self.plot):
            if file is not None:
                click.echo(f"written: {file}")


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--json, --csv, --npz and --plot, checked before the command runs with them as `outputs`."""

    @functools.wraps(function)
    def command(
        *, as_json: bool, csv_file: Path | None, npz_file: Path | None, plot: Path | None, **given: Any
    ) -> Any:
        outputs = Outputs(as_json, csv_file, npz_file, plot)
        outputs.check()
        return function(outputs=outputs, **given)

    options = [
        click.option("--json", "as_json", is_flag=True, help="print JSON instead of a table"),
        click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="write rows to a file"),
        click.option(
            "--npz", "npz_file", type=click.Path(path_type=Path), help="write arrays to a file"
        ),
        click.option("--plot", type=click.Path(path_type=Path), help="draw .png, .svg or .pdf"),
    ]
    wrapped: Callable[..., Any] = command
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def check_suffix(option: str, file: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file whose suffix names no format.

    Raises:
        ConfigError: naming the option and the file.
    """
    if file.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} must end in {', '.join(suffixes)}; got {str(file)!r}.")


def check_file(option: str, file: Path, suffixes: Sequence[str] = ()) -> None:
    """Refuse what cannot be written; any suffix if none is given.

    Raises:
        ConfigError: for a wrong suffix, a folder, or a place that is not writable.
    """
    if suffixes:
        check_suffix(option, file, suffixes)
    if file.is_dir():
        raise ConfigError(f"{option} must be a file; {file} is a folder.")
    above = file.parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ConfigError(f"{option} {file} cannot be written: {above} is not a writable folder.")


def picture_title(result: dict[str, Any], source: str) -> str:
    """What a picture is of."""
    return f"{result['model']}: {Path(source).name}"
