"""What every solve returns: times, states, and the evidence of how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """The result of `solve`.

    Args:
        t: times of the states, (k,), or (batch, k) when each sample has its own steps.
        x: states, (batch, k, n), the initial state first; k = 1 if only the last was asked for.
        method: the solver.
        steps: accepted steps; None where the solver does not tell.
        evaluations: evaluations of the vector field.
    """

    t: Tensor
    x: Tensor
    method: str
    steps: int | None
    evaluations: int

    @property
    def last(self) -> Tensor:
        """The final state, (batch, n)."""
        return self.x[:, -1]

    @property
    def status(self) -> Literal["completed", "diverged"]:
        """Whether every state is finite."""
        return "completed" if bool(torch.isfinite(self.x).all()) else "diverged"
