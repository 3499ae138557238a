"""Options in named sections of the help; those of training are made from the configuration's fields."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click

from ctrnn_assembly.errors import ConfigError, unknown
from ctrnn_assembly.training.config import TrainConfig

PATH = click.Path(path_type=Path)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Option(click.Option):
    """An option that belongs to a section of the help."""

    def __init__(self, *names: Any, section: str = "options", **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.section = section


class Command(click.Command):
    """A command whose help shows the options section by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title.capitalize()):
                formatter.write_dl(records)


option = partial(click.option, cls=Option)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, shown in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(options):
            function = one(function)
        return function

    return decorate


def integers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """The callback of an option with a list of whole numbers."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers like 140,190") from None


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """One option for every field of `TrainConfig`, so that the two cannot drift apart."""
    made = []
    for name, field in TrainConfig.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        text = field.description or ""
        if field.default not in (None, ()):
            text += f"  [default: {field.default}]"
        flag = f"--{name.replace('_', '-')}"
        kind = _without_none(field.annotation)
        if kind is bool:
            flag = f"{flag}/--no-{name.replace('_', '-')}"
        made.append(
            option(flag, name, default=None, help=text, section=str(extra["group"]), **_click_type(kind))
        )
    return together(*made)(function)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(a for a in get_args(annotation) if a is not type(None))
    return annotation


def _click_type(annotation: Any) -> dict[str, Any]:
    """The click type of a field's annotation; pydantic does the checking of values."""
    if get_origin(annotation) is Literal:
        return {"type": click.Choice([str(value) for value in get_args(annotation)])}
    if get_origin(annotation) is tuple:
        return {"type": str, "callback": integers, "metavar": "N,N,..."}
    return {} if annotation is bool else {"type": annotation}


def check_step(config: TrainConfig, *, dt: float | None, solver: str | None) -> None:
    """Refuse an unknown solver, and another step for a model that has a step of its own only.

    Raises:
        ConfigError: naming the option.
    """
    from ctrnn_assembly.models import MODELS
    from ctrnn_assembly.solvers import SOLVERS

    if solver is not None and solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    if (dt, solver) != (None, None) and MODELS[config.model].is_baseline:
        raise ConfigError(f"{config.model!r} has no solver and no dt; drop --solver and --dt.")
