"""The same weights under several solvers: was a differential equation learned, or one solver's steps?

An accuracy alone deceives: where states explode, some class still has the largest logit.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.certificates import StepCertificate
from ctrnn_assembly.certificates.result import plain
from ctrnn_assembly.certificates.wording import step_words, up
from ctrnn_assembly.errors import ConfigError, SolverError
from ctrnn_assembly.schemes import ADAPTIVE
from ctrnn_assembly.training.batches import Batches, evaluate
from ctrnn_assembly.training.run import Run

EXPLODED = 1e6  # states beyond it, or FARTHER times as large as under the solver of training
FARTHER = 100


@dataclass(frozen=True)
class Swap:
    """What a run's weights are worth under one solver.

    `accuracy` is that of the test set, and `largest` has the largest |x_i| after each sample, (T,), over
    all units and sequences; NaN after what is not finite. Where the solver refused or gave up, None and
    empty, and `failure` says why. `step` is what is proven of its step.
    """

    solver: str
    dt: float
    substeps: int
    accuracy: float | None
    largest: Tensor
    step: StepCertificate | None
    failure: str = ""

    @property
    def name(self) -> str:
        """The solver and, if there are several, its substeps: as `--swap` takes it."""
        return self.solver if self.substeps == 1 else f"{self.solver}:{self.substeps}"

    @property
    def largest_state(self) -> float:
        """NaN if a state is not finite, or if there is none."""
        return float(self.largest.max()) if len(self.largest) else math.nan

    def row(self) -> dict[str, Any]:
        """Plain values for tables and JSON; `step` is its length, None for adaptive solvers."""
        proven = "none is defined" if self.step is None else step_words(plain(self.step))
        return {
            "solver": self.name,
            "dt": self.dt,
            "step": None if self.solver in ADAPTIVE else self.dt / self.substeps,
            "test_accuracy": self.accuracy,
            "largest_state": self.largest_state if len(self.largest) else None,
            "verdict": self.failure or proven,
        }

    def warning(self, trained: "Swap") -> str:
        """Why the accuracy means nothing; empty if the states are in order."""
        size, usual = self.largest_state, trained.largest_state
        if self.failure:
            return f"{self.name}: {self.failure}"
        if not math.isfinite(size):
            said = "states are not finite"
        elif size > EXPLODED or size > FARTHER * max(usual, 1.0):
            said = (
                f"states explode, to {up(size, 2)}; under {trained.name}, as trained, to {up(usual, 2)}"
            )
        else:
            return ""
        return f"{self.name}: {said}. Its accuracy means nothing: raise substeps, or use another solver."


@torch.no_grad()
def measured(run: Run) -> Swap:
    """The weights of a run on its test set, under the solver of its configuration."""
    config, tops = run.config, []
    batches = Batches(run.task, run.task.load_test(), 256)
    sums = evaluate(run.model, batches, lambda x: tops.append(x.abs().amax((0, 2)).cpu()))
    largest, accuracy = torch.stack(tops).amax(0), float(sums[1] / sums[2])
    return Swap(config.solver, config.dt, config.substeps, accuracy, largest, run.certificate.step)


def swapped(run: Run) -> Swap:
    """`measured`, or why this solver cannot solve this network."""
    try:
        return measured(run)
    except (ConfigError, SolverError) as error:
        config = run.config
        return Swap(config.solver, config.dt, config.substeps, None, torch.zeros(0), None, str(error))
