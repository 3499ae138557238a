"""`ctrnn evaluate RUN`: the saved weights on the test set."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data-dir", help="where the data are, if they have moved")
@click.option("--solver", help="evaluate with another solver")
@click.option("--dt", type=float, help="evaluate with another time between samples")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def evaluate_command(
    run: Path, data_dir: str | None, solver: str | None, dt: float | None, as_json: bool
) -> None:
    """Load model.safetensors of a run folder and read the test set."""
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.models import find_model
    from ctrnn_assembly.training.batches import accuracy
    from ctrnn_assembly.training.run import Run

    if not run.is_dir():
        raise ConfigError(f"there is no run folder {run}. `ctrnn train --out {run}` makes one.")
    found = Run.open(run, data_dir=data_dir, solver=solver, dt=dt)
    task, model, config = found.task, found.model(), found.config
    if find_model(config.model).is_baseline and (solver is not None or dt is not None):
        raise ConfigError(f"{config.model!r} has no solver and no dt; drop --solver and --dt.")
    result = {
        "task": task.name,
        "model": config.model,
        "solver": config.solver,
        "dt": config.dt,
        "test_accuracy": accuracy(model, task, task.load_test()),
        "certificate": model.core.certificate().as_dict(),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(f"{config.model} on {task.name}: test accuracy {result['test_accuracy']:.4f}")
