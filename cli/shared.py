"""What commands share: options in named sections of their help, and where their numbers go."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from rich.console import Console
from rich.table import Table

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.training.config import TrainConfig

# Of the help, by an option's parameter: a group of settings, or one of these.
SECTIONS = {
    **{name: field.title or "options" for name, field in TrainConfig.model_fields.items()},
    **dict.fromkeys(("recipe_name", "config_file", "fast", "out", "resume", "profile"), "run"),
    **dict.fromkeys(("split", "samples", "data"), "data"),
    **dict.fromkeys(("as_json", "csv", "npz", "plot"), "output"),
}
PATH = click.Path(path_type=Path)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Command(click.Command):
    """A command whose help shows the options section by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                section = SECTIONS.get(parameter.name or "", "options")
                sections.setdefault(section, []).append(record)
        for title, records in sections.items():
            with formatter.section(title.capitalize()):
                formatter.write_dl(records)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, shown in this order."""
    return lambda function: reduce(lambda made, one: one(made), reversed(options), function)


def place(out: Path | None, run: Path, name: str) -> Path:
    """Where a command writes: what --out says, or the file of this name in the run folder."""
    if out is None and not run.is_dir():
        raise ConfigError(f"{run} is no run folder that {name} could be written into. Use --out FILE.")
    return out or Output().convert(run / name, None, None)


def integers(value: str) -> tuple[int, ...]:
    """The type of an option with a list of whole numbers."""
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers like 140,190") from None


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """One option for every field of `TrainConfig`, which checks the values."""
    made = []
    for name, field in TrainConfig.model_fields.items():
        shown = "" if field.default in (None, ()) else f"  [default: {field.default}]"
        settings: dict[str, Any] = {"help": f"{field.description}{shown}"}
        flag, kind = f"--{name.replace('_', '-')}", field.annotation
        if type(None) in get_args(kind):
            kind = next(one for one in get_args(kind) if one is not type(None))
        if kind is bool:
            flag = f"{flag}/--no-{flag[2:]}"
        elif get_origin(kind) is Literal:
            settings["type"] = click.Choice(get_args(kind))
        elif get_origin(kind) is tuple:
            settings |= {"type": integers, "metavar": "N,N,..."}
        else:
            settings["type"] = kind
        made.append(click.option(flag, name, default=None, **settings))
    return together(*made)(function)


class Output(click.Path):
    """A file to write, with one of some suffixes, or a folder: refused, if it cannot be, before work."""

    def __init__(self, *suffixes: str, folder: bool = False) -> None:
        super().__init__(path_type=Path)
        self.suffixes, self.folder = suffixes, folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        file: Path = super().convert(value, param, ctx)  # type: ignore[assignment]
        name = "the file" if param is None else param.opts[0]
        if self.suffixes and file.suffix.lower() not in self.suffixes:
            raise ConfigError(f"{name} must end in {', '.join(self.suffixes)}; got {str(file)!r}.")
        if file.is_dir() and not self.folder:
            raise ConfigError(f"{name} must be a file; {file} is a folder.")
        inside = file / "file" if self.folder else file
        above = next(folder for folder in inside.absolute().parents if folder.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise ConfigError(f"{name} {file} cannot be written: {above} is not a writable folder.")
        return file


DIR = Output(folder=True)
PICTURE = Output(".png", ".svg", ".pdf")
ONE_FIELD = "of a deep model: all layers as one equation, instead of one after another"
step_options = together(  # that a command may change of a run
    click.option("--solver", help="another solver than the run's own"),
    click.option("--dt", type=float, help="another time between samples: that changes the physics"),
    click.option("--substeps", type=int, help="so many solver steps a sample: finer, the same equation"),
    click.option("--one-field", is_flag=True, default=None, help=ONE_FIELD),
)
json_option = click.option("--json", "as_json", is_flag=True, help="print JSON, and nothing else")
plot_option = click.option("--plot", type=PICTURE, metavar="FILE", help="draw .png, .svg or .pdf")
output_options = together(
    json_option,
    click.option("--csv", type=Output(), metavar="FILE", help="write the rows"),
    click.option("--npz", type=Output(), metavar="FILE", help="write the arrays"),
    plot_option,
)


@dataclass(frozen=True)
class Column:
    """A column of rows: its key in JSON and CSV, its header in the table, and the format of a number.

    The format is one of Python's, or a function that gives a text; without one it is text, which stands
    left. `missing` is shown where there is no value. `values` is a tensor or a sequence with a value for
    each row, or one value for every row.
    """

    key: str
    header: str
    form: str | Callable[[Any], str] = ""
    values: Any = None
    missing: str = "-"

    def text(self, row: Mapping[str, Any]) -> str:
        """What the table shows of a row."""
        if (value := row.get(self.key)) is None:
            return self.missing
        return self.form(value) if callable(self.form) else format(value, self.form)


Columns = Sequence[Column]


def rows_of(columns: Columns) -> list[dict[str, Any]]:
    """The rows of columns with values, of which one at least has several."""
    plain = [c.values.tolist() if hasattr(c.values, "tolist") else c.values for c in columns]
    size = next(len(values) for values in plain if isinstance(values, list | tuple | range))
    filled = (v if isinstance(v, list | tuple | range) else [v] * size for v in plain)
    return [dict(zip((c.key for c in columns), row, strict=True)) for row in zip(*filled, strict=True)]


def table(rows: Sequence[Mapping[str, Any]], columns: Columns = (), *, title: str) -> Table:
    """A table of rows, by default with a column a key; without a line of headers if none has one."""
    columns = columns or [Column(key, key) for key in rows[0]]
    named = any(column.header for column in columns)
    made = Table(title=title, title_justify="left", show_header=named)
    for column in columns:
        # On a narrow terminal the name of a row stays whole, and nothing is cut off.
        look: Any = {"justify": "right" if column.form else "left", "no_wrap": column is columns[0]}
        made.add_column(column.header, overflow="fold", **look)
    for row in rows:
        made.add_row(*(column.text(row) for column in columns))
    return made


def facts(pairs: Iterable[tuple[str, str]], *, title: str) -> Table:
    return table([{"0": a, "1": b} for a, b in pairs], [Column("0", ""), Column("1", "")], title=title)


def console(*, err: bool = False) -> Console:
    """As wide as the terminal, or as COLUMNS says, a file as its tables need; without markup."""
    known = (sys.stderr if err else sys.stdout).isatty() or "COLUMNS" in os.environ
    width = None if known else 200
    return Console(stderr=err, highlight=False, markup=False, emoji=False, width=width)


def drawn(name: str, *given: Any, **look: Any) -> Any:
    """The figure that MODULE.NAME of `ctrnn_assembly.figures` draws; matplotlib is imported only now."""
    module, _, function = name.partition(".")
    return getattr(import_module(f"ctrnn_assembly.figures.{module}"), function)(*given, **look)


def emit(
    result: Any,
    *shown: Table | str,
    as_json: bool,
    columns: Columns = (),
    arrays: Mapping[str, Any] | None = None,
    figure: Callable[[], Any] | None = None,
    csv: Path | None = None,
    npz: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Print tables and sentences, or the result as JSON; write the files, each whole or not at all.

    JSON has null for NaN and infinity. csv takes the `columns` of result["rows"].
    """
    import numpy as np

    from ctrnn_assembly.certificates.result import plain
    from ctrnn_assembly.training.run import write, write_table

    result = plain(result)
    if csv:
        names = [column.key for column in columns]
        write_table(csv, [{key: row[key] for key in names} for row in result["rows"]], names)
    if npz:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays or {})
        write(npz, buffer.getvalue())
    if plot and figure:
        from ctrnn_assembly.figures.style import save_figure

        save_figure(figure(), plot)
    if as_json:
        click.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    written = [f"written: {file}" for file in (csv, npz, plot if figure else None) if file]
    for one in [*shown, *written]:
        click.echo(one) if isinstance(one, str) else console().print(one)
