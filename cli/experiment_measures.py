"""What an experiment measures after training: other solvers, and exponents of kept weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ctrnn_assembly.certificates.result import finite
from ctrnn_assembly.data import Task
from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
from ctrnn_assembly.errors import ConfigError, ContractionError, SolverError
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.models import find_model
from ctrnn_assembly.training.batches import accuracy
from ctrnn_assembly.training.config import TrainConfig, make_config
from ctrnn_assembly.training.run import Run
from ctrnn_cli.experiments import Evaluation
from ctrnn_cli.results import brief

SAMPLES = 16
FINER = 10


def evaluations(asked: Sequence[Evaluation], config: TrainConfig, run: Path) -> list[dict[str, Any]]:
    """The test accuracy of the selected weights under each of the settings; none for a baseline."""
    if find_model(config.model).is_baseline:
        return []
    return [_evaluation(one, config, run) for one in asked]


def _evaluation(one: Evaluation, config: TrainConfig, run: Path) -> dict[str, Any]:
    changed = make_config(config.model_dump(), one.settings)
    result: dict[str, Any] = {"name": one.name, "solver": changed.solver, "dt": changed.dt}
    try:
        opened = Run.open(run, **changed.model_dump())
        task, model = _repeated(opened.task, one.repeat), opened.model()
        certificate = brief(model.core.certificate().as_dict())
        found = accuracy(model, task, task.load_test())
        return {**result, "repeat": one.repeat, "test_accuracy": found, "certificate": certificate}
    except (ConfigError, SolverError) as error:  # gated models have Euler only; a solver may give up
        return {**result, "repeat": one.repeat, "test_accuracy": None, "reason": str(error)}


def _repeated(task: Task, repeat: int) -> Task:
    """The task with each sample held for so many steps."""
    if repeat == 1:
        return task
    if task.train.lengths is not None:
        raise ConfigError(f"repeat must be 1 for series of different lengths; got {repeat}.")
    once = task.sequence
    return dataclasses.replace(
        task, sequence=lambda x, generator=None: once(x, generator).repeat_interleave(repeat, dim=1)
    )


def exponents(epochs: Sequence[int], config: TrainConfig, run: Path) -> list[dict[str, Any]]:
    """Largest exponents, and certificate, of the weights before and during training.

    `step` is of the step that the net was trained with, `flow` of a step a tenth as long, under the same
    input: close to that of the differential equation. Each is the mean over test sequences, from the
    state 0 as in training; the first tenth of a sequence turns the tangent vector, and the rest of it is
    averaged over. The ranges are those over the sequences.
    """
    u, _, _ = Run.open(run, data_dir=config.data_dir).inputs("test", SAMPLES)
    found = []
    for epoch in epochs:
        if epoch > config.epochs:
            continue
        kept = Run.open(run, initial=not epoch, epoch=epoch or None, data_dir=config.data_dir)
        model = kept.model()
        if not isinstance(model.core, CTRNN) or model.core.gates:
            continue
        certificate = brief(model.core.certificate().as_dict())
        found.append(
            {
                "epoch": epoch,
                **_largest(model, u, "step", 1),
                **_largest(model, u, "flow", FINER),
                "certified": certificate["certified"],
                "rate": certificate["rate"],
                "discrete": certificate["discrete"],
            }
        )
    return found


def _largest(model: SequenceClassifier, u: torch.Tensor, name: str, finer: int) -> dict[str, Any]:
    """The largest finite-time exponent of a step so much finer; None where the state overflows."""
    core = model.double().core
    assert isinstance(core, CTRNN)
    u = u.double().repeat_interleave(finer, dim=1)
    batch, T = u.shape[:2]
    try:
        found = lyapunov_exponents(
            core,
            u,
            k=1,
            dt=core.dt / finer,
            steps=T - T // 10,
            solver=core.solver,
            x0=torch.zeros(batch, core.hidden_size, dtype=torch.float64),
            transient=T // 10,
            generator=torch.Generator().manual_seed(0),
        )
    except (SolverError, ContractionError):
        return {name: None, f"{name}_range": None}
    own = found.per_trajectory[:, 0]
    return {
        name: finite(float(found.exponents[0])),
        f"{name}_range": [finite(float(own.min())), finite(float(own.max()))],
    }
