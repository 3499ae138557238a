"""One run of an experiment, in a process of its own: train, measure, write its result.

    python -m ctrnn_cli.experiment_run EXPERIMENT ROW SEED [--fast] ...

`ctrnn reproduce` starts these. A finished run folder is not trained again, an unfinished one goes on
from its last epoch. A run that stops because it diverged, or lost its certificate, is a result too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ctrnn_assembly.errors import ConfigError, CtrnnError, TrainingError
from ctrnn_assembly.training.config import TrainConfig
from ctrnn_assembly.training.run import RunBusyError, locked, stopped_summary
from ctrnn_cli.experiments import Job, difference, load_experiment
from ctrnn_cli.results import brief, keep_result
from ctrnn_cli.scheduler import BUSY


@click.command()
@click.argument("name")
@click.argument("row")
@click.argument("seed", type=int)
@click.option("--fast", is_flag=True)
@click.option("--data-dir")
@click.option("--runs", type=click.Path(path_type=Path), required=True)
@click.option("--results", type=click.Path(path_type=Path), required=True)
def main(
    name: str, row: str, seed: int, fast: bool, data_dir: str | None, runs: Path, results: Path
) -> None:
    """Train one row with one seed."""
    experiment = load_experiment(name)
    job = Job(experiment, experiment.row(row), seed, fast)
    try:
        run_job(job, data_dir, runs, results)
    except RunBusyError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(BUSY)
    except (CtrnnError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


def run_job(job: Job, data_dir: str | None, runs: Path, results: Path) -> None:
    """Train if that is not done, and write the result."""
    run = runs / job.folder / job.name
    config = job.config(data_dir)
    command = job.command(data=data_dir is not None)
    with locked(run):
        try:
            summary = trained(config, run, command)
            extras = measured(job, config, run)
        except TrainingError as error:
            summary, extras = stopped_summary(config, run, error, command), {}
        result = {
            "experiment": job.experiment.name,
            "row": job.row.name,
            "fast": job.fast,
            **summary,
            "measures": job.experiment.measures(),
            **extras,
        }
        for when in ("certificate_initial", "certificate"):
            if when in result:
                result[when] = brief(result[when])
        keep_result(results / job.folder / f"{job.name}.json", result)


def trained(config: TrainConfig, run: Path, command: str) -> dict[str, Any]:
    """The summary of the run, trained as far as needed.

    Raises:
        ConfigError: if the folder holds a run with other settings.
    """
    from ctrnn_assembly.training.fit import fit
    from ctrnn_assembly.training.run import read_config, read_summary

    if not (run / "config.yaml").exists():
        return fit(config, run, command=command)
    other = difference(read_config(run), config)
    if other:
        raise ConfigError(
            f"{run} holds a run with other settings ({other}). Delete it, or use another --runs."
        )
    if (run / "summary.json").exists():
        return read_summary(run)
    return fit(config, run, resume=True, command=command)


def measured(job: Job, config: TrainConfig, run: Path) -> dict[str, Any]:
    """What the experiment asks for beyond training."""
    from ctrnn_cli.experiment_measures import evaluations, exponents

    draw(job, run)
    found: dict[str, Any] = {}
    if job.experiment.evaluate:
        found["evaluate"] = evaluations(job.experiment.evaluate, config, run)
    if job.experiment.lyapunov:
        found["lyapunov"] = exponents(job.experiment.lyapunov, config, run)
    return found


def draw(job: Job, run: Path) -> None:
    """The pictures, into the run folder."""
    if not job.experiment.pictures:
        return
    from ctrnn_assembly.figures.style import save_figure
    from ctrnn_assembly.models import find_model
    from ctrnn_cli.plot import FIGURES, OF_ONE

    for kind in job.experiment.pictures:
        if kind in OF_ONE and find_model(job.config().model).is_baseline:
            continue
        save_figure(FIGURES[kind]([run], False, 0, None), run / f"{kind}.png")


if __name__ == "__main__":
    main()
