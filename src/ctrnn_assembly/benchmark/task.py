"""A contestant, built for one problem: what is run, and what a gradient is asked of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrnn_assembly.benchmark.operations import Kind


@dataclass(frozen=True)
class Task:
    """`last()` is the last state, (batch, n)."""

    last: Callable[[], Tensor]
    parameters: Sequence[Tensor]

    def run(self, kind: Kind) -> None:
        """Inference without a graph; or a loss of the last state, and the gradients."""
        if kind == "forward":
            with torch.no_grad():
                self.last()
        else:
            self.gradients()

    def gradients(self) -> tuple[Tensor, ...]:
        """Of the mean square of the last state."""
        return torch.autograd.grad(self.last().square().mean(), self.parameters)
