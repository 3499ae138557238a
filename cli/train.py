"""`ctrnn train`: from a task to a run folder."""

from __future__ import annotations

import json
import os
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.training.config import TrainConfig, default_recipe, make_config, read_yaml, recipe
from ctrnn_cli.show import show_summary

if TYPE_CHECKING:
    from ctrnn_cli.profile import Profile


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """One option for every field of `TrainConfig`, so that the two cannot drift apart."""
    for name, field in reversed(TrainConfig.model_fields.items()):
        text = field.description or ""
        if field.default not in (None, ()):
            text += f"  [default: {field.default}]"
        flag = f"--{name.replace('_', '-')}"
        kind = _without_none(field.annotation)
        if kind is bool:
            flag = f"{flag}/--no-{name.replace('_', '-')}"
        option = click.option(flag, name, default=None, help=text, **_click_type(kind))
        function = option(function)
    return function


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(a for a in get_args(annotation) if a is not type(None))
    return annotation


def _click_type(annotation: Any) -> dict[str, Any]:
    """The click type of a field's annotation; pydantic does the checking of values."""
    if get_origin(annotation) is Literal:
        return {"type": click.Choice([str(value) for value in get_args(annotation)])}
    if get_origin(annotation) is tuple:
        return {"type": str, "callback": _integers, "metavar": "N,N,..."}
    return {} if annotation is bool else {"type": annotation}


def _integers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers like 140,190") from None


@click.command("train", short_help="Train a model on a task; with no options, on digits.")
@click.option("--recipe", "recipe_name", metavar="NAME", help="start from a paper's recipe")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="a YAML file of settings")
@click.option("--out", type=click.Path(path_type=Path), help="run folder  [default: runs/...]")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="go on with a run")
@click.option("--json", "as_json", is_flag=True, help="print summary.json, and nothing else, to stdout")
@click.option("--profile", is_flag=True, help="print where the time of training went")
@config_options
def train_command(
    recipe_name: str | None,
    config_file: Path | None,
    out: Path | None,
    resume: Path | None,
    as_json: bool,
    profile: bool,
    **given: Any,
) -> None:
    """Train a model on a task and leave a run folder.

    With no options: a certified assembly on the embedded `digits`, in about two minutes. The defaults
    below are those of a task without its own recipe; `digits` starts from the recipe of that name.
    """
    from ctrnn_cli.fit import fit  # Lightning takes seconds to import

    settings = {key: value for key, value in given.items() if value is not None}
    if resume is not None:
        if recipe_name or config_file or out:
            raise ConfigError(
                "--resume takes the run's own configuration; drop --recipe, --config, --out."
            )
        config, run = resumed_config(resume, settings), resume
    else:
        layers = [recipe(recipe_name)] if recipe_name else []
        layers += [read_yaml(config_file)] if config_file else []
        layers = layers or [default_recipe(settings.get("task", "digits"))]
        config = make_config(*layers, settings)
        run = out or default_folder(config)
    watched = profiler() if profile else None
    summary = fit(config, run, resume=resume is not None, quiet=as_json, profile=watched)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        show_summary(summary, run)
    if watched is not None:
        from ctrnn_cli.profile import show_profile

        show_profile(watched.watch.seconds, err=as_json)


def profiler() -> Profile:
    """A profile to be filled by a run."""
    from ctrnn_cli.profile import Profile  # with Lightning

    return Profile()


def resumed_config(run: Path, settings: dict[str, Any]) -> TrainConfig:
    """The configuration of a run to resume; only where it runs, and for how long, may change."""
    from ctrnn_assembly.training.run import read_config

    config = read_config(run)
    free = {"data_dir", "device", "devices", "nodes"}
    changed = {k: v for k, v in settings.items() if getattr(config, k) != v}
    refused = sorted(set(changed) - free)
    if refused:
        raise ConfigError(
            f"a resumed run keeps its settings; got another {refused[0]} ({changed[refused[0]]!r} for "
            f"{getattr(config, refused[0])!r}). Start a new run with --config {run}/config.yaml."
        )
    return make_config(config.model_dump(), changed)


def default_folder(config: TrainConfig) -> Path:
    """runs/TASK-MODEL-TIME; the processes of a distributed run share one."""
    name = f"{config.task.replace(':', '-')}-{config.model}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(os.environ.setdefault("CTRNN_RUN", str(Path("runs") / name)))
