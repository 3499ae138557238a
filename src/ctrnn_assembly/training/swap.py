"""The same weights under several solvers: was a differential equation learned, or one solver's steps?

An accuracy alone deceives: where states explode, some class still has the largest logit.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.certificates.result import factor_words, up
from ctrnn_assembly.data.targets import MEASURES
from ctrnn_assembly.errors import ConfigError, SolverError
from ctrnn_assembly.schemes import ADAPTIVE
from ctrnn_assembly.training.batches import measure
from ctrnn_assembly.training.run import Run

# States explode that are this large, or so many times as large as under the solver of training.
EXPLODED, FARTHER = 1e6, 100


@dataclass(frozen=True)
class Swap:
    """What the weights of a run are worth on its test set, under the solver of its configuration.

    `largest` has the largest |x_i| after each sample, (T,). If it cannot be solved `failure` says why.
    """

    run: Run
    measures: dict[str, float | None]
    largest: Tensor
    failure: str = ""

    @property
    def name(self) -> str:
        """The solver and, if there are several, its substeps: euler:8; of a stack, if as one field."""
        config = self.run.config
        name = config.solver if config.substeps == 1 else f"{config.solver}:{config.substeps}"
        return f"{name}, one field" if config.one_field else name

    @property
    def certified(self) -> bool:
        step = None if self.failure else self.run.certificate.step
        return step is not None and step.certified

    @property
    def largest_state(self) -> float:
        return float(self.largest.max())

    def row(self) -> dict[str, Any]:
        """Plain values; `step` is the length of one, None for adaptive solvers."""
        config = self.run.config
        step = None if self.failure else self.run.certificate.step
        said = self.failure or ("a baseline has none" if step is None else step.reason)
        if step is not None and step.certified and step.contraction_factor is not None:
            said = f"contracting, {factor_words(step.contraction_factor, step.substeps)}"
        return {
            "solver": self.name,
            "dt": config.dt,
            "step": None if config.solver in ADAPTIVE else config.dt / config.substeps,
            **{f"test_{name}": self.measures.get(name) for name in MEASURES},
            "largest_state": self.largest_state,
            "certified": self.certified,
            "verdict": said,
        }

    def warning(self, trained: "Swap") -> str:
        """Why there is no accuracy, or why it means nothing; empty if the states are in order."""
        size, usual = self.largest_state, trained.largest_state
        if not self.failure and size <= min(EXPLODED, FARTHER * max(1.0, usual)):
            return ""
        said = f"states explode, to {up(size, 2)}, under {trained.name}, as trained, to {up(usual, 2)}"
        said = said if math.isfinite(size) else "states are not finite"
        advice = "Its accuracy means nothing: raise substeps, or use another solver."
        return f"{self.name}: {self.failure or f'{said}. {advice}'}"


@torch.no_grad()
def measured(run: Run) -> Swap:
    """The weights of a run on its test set; refuses what its solver cannot solve."""
    tops, model = [], run.model

    def forward(u: Tensor, lengths: Tensor | None, **given: Tensor) -> Tensor:
        x = model.core(u, lengths=lengths, **given)[0]
        tops.append(x.abs().amax((0, 2)).cpu())
        return model.read(model.pooled(x, lengths))

    found = measure(model, run.task, run.task.load_test(), forward)
    return Swap(run, found, torch.stack(tops).amax(0))


def swapped(run: Run) -> Swap:
    """`measured`, or why this solver cannot solve this network."""
    try:
        return measured(run)
    except (ConfigError, SolverError) as error:
        return Swap(run, {}, torch.full((1,), math.nan), str(error))
