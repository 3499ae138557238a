"""The two baselines that are forward Euler steps of an ODE, x+ = x + eps x'.

Cost: O(T B n^2) and T sequential steps of Python; the input enters by one product before the loop and
the recurrent matrices are built once a call. Not done: a fused kernel, checkpointing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctrnn_assembly.baselines.uncertified import Uncertified, check_own_step, check_range
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.recurrent import Recurrent, Save

Field = Callable[[Tensor, Tensor], Tensor]  # (projected input, x) -> x'


class EulerRNN(Uncertified, Recurrent):
    """x_t = x_{t-1} + eps x'(x_{t-1}, u_t), with eps a part of the network, > 0.

    A subclass sets `inputs`, an nn.Linear of m features, and says what x' is.
    """

    inputs: nn.Linear

    def __init__(self, input_size: int, hidden_size: int, *, batch_first: bool, eps: float) -> None:
        super().__init__(input_size, hidden_size, batch_first=batch_first)
        check_range("eps", eps, 0.0)
        if eps == 0:
            raise ConfigError("eps must be positive; got 0. Pass eps=0.01, say.")
        self.eps = eps

    @abstractmethod
    def vector_field(self) -> Field:
        """(projected input, x) -> x', with its matrices built once."""

    def flow(self, u: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """f with f(x) = x', both (batch, n), while the input is u (batch, m); zero if None."""
        field = self.vector_field()
        drive = self.inputs.bias if u is None else self.inputs(u)
        return lambda x: field(drive, x)

    def _step(self, u: Tensor, x: Tensor) -> Tensor:
        return x + self.eps * self.flow(u)(x)

    def _run(
        self, u: Tensor, x: Tensor, lengths: Tensor | None, dt: float | Tensor | None, save: Save
    ) -> tuple[Tensor, Tensor]:
        check_own_step(dt)
        field, states = self.vector_field(), []
        for t, drive in enumerate(self.inputs(u.transpose(0, 1))):
            moved = x + self.eps * field(drive, x)
            x = moved if lengths is None else torch.where(t < lengths[:, None], moved, x)
            if save == "all":
                states.append(x)
        return torch.stack(states or [x], dim=1), x
