"""`ctrnn train`: from a task to a run folder. `ctrnn evaluate RUN`: its weights on the test set."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.training.config import TrainConfig, make_config, read_yaml, recipe, recipes
from ctrnn_cli.options import PATH, Command, config_options, option
from ctrnn_cli.output import emit, facts, json_option


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
    from torch.profiler import profile as recorder

    from ctrnn_assembly.certificates.wording import short_rows
    from ctrnn_assembly.training.fit import STAGES, fit
    from ctrnn_assembly.training.run import validation

    settings = {key: value for key, value in given.items() if value is not None}
    if resume is not None and (recipe_name or config_file or out):
        raise ConfigError("--resume takes the run's own configuration; drop --recipe, --config, --out.")
    if resume is not None:
        config, run = resumed_config(resume, settings), resume
    else:
        layers = [recipe(recipe_name)] if recipe_name else []
        layers += [read_yaml(config_file)] if config_file else []
        task = settings.get("task", "digits")
        # Only `digits` has its own: its 64 steps of 0.03 last 2 time constants, so a useful net needs a
        # coupling so fast that forward Euler diverges; exponential Euler turns it exactly.
        layers = layers or ([recipe(task)] if task in recipes() else [])
        config = make_config(*layers, settings)
        name = f"{config.task.replace(':', '-')}-{config.model}-{time.strftime('%Y%m%d-%H%M%S')}"
        # The processes of a distributed run share one folder.
        run = out or Path(os.environ.setdefault("CTRNN_RUN", str(Path("runs") / name)))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes its own news to stderr
    watched = recorder(acc_events=True) if profile else None
    try:
        summary = fit(config, run, resume=resume is not None, profile=watched)
    except KeyboardInterrupt:
        click.echo(f"interrupted; `ctrnn train --resume {run}` goes on from the last epoch", err=True)
        sys.exit(130)
    rows = [
        ("test accuracy", f"{summary['test_accuracy']:.4f}"),
        ("validation accuracy", validation(summary)),
        ("trained parameters", f"{summary['parameters']:,}"),
        ("epochs, seconds", f"{summary['epochs']}, {summary['seconds']}"),
        *short_rows(summary["certificate"]),
        ("run folder", str(run)),
    ]
    title = f"{summary['model']} on {summary['task']}"
    emit(summary, facts(rows, title=title), as_json=as_json)
    if watched is not None:
        averages = watched.key_averages()
        averages.sort(key=lambda one: one.self_cpu_time_total + one.self_device_time_total, reverse=True)
        averages.sort(key=lambda one: one.key not in STAGES)
        title = "time of training: stages, with what they call, and the longest operations"
        click.echo(averages.table(row_limit=len(STAGES) + 10, header=title), err=as_json)


def resumed_config(run: Path, settings: dict[str, Any]) -> TrainConfig:
    """The configuration of a run to resume; only where it runs, and for how long, may change."""
    from ctrnn_assembly.training.run import read_config

    config = read_config(run)
    changed = {k: v for k, v in settings.items() if getattr(config, k) != v}
    refused = sorted(set(changed) - {"data_dir", "device", "devices", "nodes"})
    if refused:
        name = refused[0]
        raise ConfigError(
            f"a resumed run keeps its settings; got another {name} ({changed[name]!r} for "
            f"{getattr(config, name)!r}). Start a new run with --config {run}/config.yaml."
        )
    return make_config(config.model_dump(), changed)


@click.command("evaluate", cls=Command)
@click.argument("folder", metavar="RUN", type=PATH)
@option("--data-dir", help="where the data are, if they have moved")
@option("--solver", help="evaluate with another solver")
@option("--dt", type=float, help="evaluate with another time between samples")
@json_option
def evaluate_command(folder: Path, as_json: bool, **changes: Any) -> None:
    """Load the weights of a run folder and read the test set."""
    from ctrnn_assembly.certificates.wording import short_rows
    from ctrnn_assembly.training.batches import accuracy
    from ctrnn_assembly.training.run import Run, read_config

    read_config(folder)  # a run folder, not the name of a recipe
    run = Run.open(folder, **changes)
    task = run.task  # refused before its weights are
    measured = accuracy(run.model(), task, task.load_test())
    certificate = run.certificate().as_dict()
    said = (f"{key}: {value}" for key, value in short_rows(certificate))
    result = {**run.about(), "test_accuracy": measured, "certificate": certificate}
    emit(result, f"{run.title}: test accuracy {measured:.4f}", *said, as_json=as_json)
