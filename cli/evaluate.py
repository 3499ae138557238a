"""`ctrnn evaluate RUN`: the saved weights on the test set."""

from __future__ import annotations

from pathlib import Path

import click

from ctrnn_cli.options import PATH, Command, check_step, option
from ctrnn_cli.output import json_option, print_json


@click.command("evaluate", cls=Command)
@click.argument("folder", metavar="RUN", type=PATH)
@option("--data-dir", help="where the data are, if they have moved")
@option("--solver", help="evaluate with another solver")
@option("--dt", type=float, help="evaluate with another time between samples")
@json_option
def evaluate_command(
    folder: Path, data_dir: str | None, solver: str | None, dt: float | None, as_json: bool
) -> None:
    """Load the weights of a run folder and read the test set."""
    from ctrnn_assembly.training.batches import accuracy
    from ctrnn_assembly.training.run import Run, read_config

    read_config(folder)  # a run folder, not the name of a recipe
    run = Run.open(folder, data_dir=data_dir, solver=solver, dt=dt)
    check_step(run.config, dt=dt, solver=solver)
    task = run.task
    result = {
        "task": task.name,
        "model": run.config.model,
        "weights": run.weights.as_dict(),
        "solver": run.config.solver,
        "dt": run.config.dt,
        "test_accuracy": accuracy(run.model(), task, task.load_test()),
        "certificate": run.certificate().as_dict(),
    }
    if as_json:
        print_json(result)
    else:
        click.echo(f"{run.title}: test accuracy {result['test_accuracy']:.4f}")
