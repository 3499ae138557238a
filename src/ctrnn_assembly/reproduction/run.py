"""One run of an experiment: train, measure, write the result.

The result is the summary of the run folder, with what the experiment measures besides. A finished run
folder is not trained again, an unfinished one goes on from its last epoch. A run that stops because it
diverged, or lost its certificate, is a result too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ctrnn_assembly.data import Task
from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
from ctrnn_assembly.errors import ConfigError, ContractionError, SolverError, TrainingError
from ctrnn_assembly.reproduction.experiments import Evaluation, Job, difference
from ctrnn_assembly.reproduction.results import keep_result
from ctrnn_assembly.training.batches import accuracy
from ctrnn_assembly.training.config import TrainConfig
from ctrnn_assembly.training.fit import fit
from ctrnn_assembly.training.run import Run, locked, read_config, read_summary, stopped_summary

SAMPLES = 16
FINER = 10


Draw = Callable[[Path, str], object]


@dataclasses.dataclass(frozen=True)
class Places:
    """Where run folders, results and data are."""

    runs: Path
    results: Path
    data_dir: str | None = None

    def log(self, job: Job) -> Path:
        """What a run says while it is on, beside its folder."""
        return self.runs / f"{job.path}.log"


def run_job(job: Job, places: Places, draw: Draw) -> None:
    """Train if that is not done, measure, draw, and write the result.

    Args:
        draw: called with the run folder and each kind of picture that the experiment has.

    Raises:
        ConfigError: if the folder holds a run with other settings.
        RunBusyError: if another process trains it.
    """
    run, data_dir, experiment = places.runs / job.path, places.data_dir, job.experiment
    config, command = job.config(data_dir), job.command(data=data_dir is not None)
    with locked(run):
        try:
            found = trained(config, run, command)
            for kind in experiment.pictures:
                draw(run, kind)
            if experiment.evaluate:
                found["evaluate"] = [evaluation(one, run, data_dir) for one in experiment.evaluate]
            if experiment.lyapunov:
                epochs = [epoch for epoch in experiment.lyapunov if epoch <= config.epochs]
                found["lyapunov"] = [exponents(epoch, run, data_dir) for epoch in epochs]
        except TrainingError as error:
            found = stopped_summary(config, run, error, command)
    named = {"experiment": experiment.name, "row": job.row.name, "fast": job.fast}
    keep_result(places.results, job, named | found | {"measures": experiment.measures()})


def trained(config: TrainConfig, run: Path, command: str) -> dict[str, Any]:
    """The summary of the run, trained as far as needed; `command` makes it.

    Raises:
        ConfigError: if the folder holds a run with other settings.
    """
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


def evaluation(one: Evaluation, path: Path, data_dir: str | None) -> dict[str, Any]:
    """The test accuracy of the selected weights, and what is proven of them, under other settings."""
    run = Run.open(path, data_dir=data_dir, **one.settings)
    result = {"name": one.name, "solver": run.config.solver, "dt": run.config.dt, "repeat": one.repeat}
    try:
        task = held(run.task, one.repeat)
        found = accuracy(run.model(), task, task.load_test())
        return {**result, "test_accuracy": found, "certificate": run.certificate().as_dict()}
    except (ConfigError, SolverError) as error:  # some models have Euler only; a solver may give up
        return {**result, "test_accuracy": None, "reason": str(error)}


def held(task: Task, repeat: int) -> Task:
    """The task with each sample held for so many steps."""
    if repeat == 1:
        return task
    if task.train.lengths is not None:
        raise ConfigError(f"repeat must be 1 for series of different lengths; got {repeat}.")
    once = task.sequence
    return dataclasses.replace(
        task, sequence=lambda x, generator=None: once(x, generator).repeat_interleave(repeat, dim=1)
    )


def exponents(epoch: int, path: Path, data_dir: str | None) -> dict[str, Any]:
    """Largest exponents, and certificate, of the weights after an epoch; 0 is before training.

    `step` is of the step that the net was trained with, `flow` of a step a tenth as long, under the same
    input: close to that of the differential equation. Each is the mean over test sequences, from the
    state 0 as in training; the first tenth of a sequence turns the tangent vector, and the rest of it is
    averaged over. The ranges are those over the sequences; None where the state overflows.
    """
    run = Run.open(path, data_dir=data_dir, initial=epoch == 0, epoch=epoch or None)
    certificate = run.certificate().as_dict()
    core = run.model(double=True).core
    inputs = run.inputs("test", SAMPLES)[0]
    found: dict[str, Any] = {"epoch": epoch}
    for name, finer in (("step", 1), ("flow", FINER)):
        u = inputs.repeat_interleave(finer, dim=1)
        found |= {name: None, f"{name}_range": None}
        try:
            own = lyapunov_exponents(
                core,
                u,
                u.new_zeros(len(u), core.state_size),
                k=1,
                dt=run.config.dt / finer,
                steps=u.shape[1] - u.shape[1] // 10,
                transient=u.shape[1] // 10,
                generator=torch.Generator().manual_seed(0),
            ).per_trajectory[:, 0]
        except (SolverError, ContractionError):
            continue
        if own.isfinite().all():
            found |= {name: own.mean().item(), f"{name}_range": [own.min().item(), own.max().item()]}
    return found | {key: certificate.get(key) for key in ("certified", "rate", "discrete")}
