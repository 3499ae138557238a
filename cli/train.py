"""`ctrnn train`: from a task to a run folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.training.config import TrainConfig, default_recipe, make_config, read_yaml, recipe
from ctrnn_cli.options import PATH, Command, config_options, option
from ctrnn_cli.output import console, facts, print_json


@click.command("train", cls=Command)
@option("--recipe", "recipe_name", metavar="NAME", help="start from a paper's recipe", section="run")
@option("--config", "config_file", type=PATH, metavar="FILE", help="YAML settings", section="run")
@option("--out", type=PATH, metavar="RUN", help="run folder  [default: runs/...]", section="run")
@option("--resume", type=PATH, metavar="RUN", help="go on with a run", section="run")
@option("--json", "as_json", is_flag=True, help="print summary.json alone to stdout", section="run")
@option("--profile", is_flag=True, help="print where the time of training went", section="run")
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
    from ctrnn_assembly.training.fit import fit
    from ctrnn_assembly.training.profile import Profile

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
    watched = Profile() if profile else None
    try:
        summary = fit(config, run, resume=resume is not None, profile=watched)
    except KeyboardInterrupt:
        click.echo(f"interrupted; `ctrnn train --resume {run}` goes on from the last epoch", err=True)
        sys.exit(130)
    if as_json:
        print_json(summary)
    else:
        show_summary(summary, run)
    if watched is not None:
        watched.show(console(err=as_json))


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


def show_summary(summary: dict[str, Any], run: Path) -> None:
    """The outcome of a run."""
    from ctrnn_assembly.certificates.wording import short_rows
    from ctrnn_assembly.training.run import validation

    rows = [
        ("test accuracy", f"{summary['test_accuracy']:.4f}"),
        ("validation accuracy", validation(summary)),
        ("trained parameters", f"{summary['parameters']:,}"),
        ("epochs, seconds", f"{summary['epochs']}, {summary['seconds']}"),
        *short_rows(summary["certificate"]),
        ("run folder", str(run)),
    ]
    console().print(facts(rows, title=f"{summary['model']} on {summary['task']}"))
