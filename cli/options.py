"""Options in named sections of the help; those of training are made from the configuration's fields."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from ctrnn_assembly.training.config import TrainConfig

# Of the help, by an option's parameter: a group of settings, or one of these.
SECTIONS = {
    **{name: field.title or "options" for name, field in TrainConfig.model_fields.items()},
    **dict.fromkeys(("recipe_name", "config_file", "out", "resume", "profile"), "run"),
    **dict.fromkeys(("split", "samples"), "data"),
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


def integers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """The callback of an option with a list of whole numbers."""
    if value is None:
        return None
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
            settings |= {"callback": integers, "metavar": "N,N,..."}
        else:
            settings["type"] = kind
        made.append(click.option(flag, name, default=None, **settings))
    return together(*made)(function)
