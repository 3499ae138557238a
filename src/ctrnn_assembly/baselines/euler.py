"""The time loop of the two baselines that are forward Euler steps of an ODE.

Cost: O(T B n²) and T sequential steps of Python; the input enters by one product before the loop
and the recurrent matrices are built once a call. Not done: a fused kernel, checkpointing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctrnn_assembly.baselines.sequence import (
    check_lengths,
    check_range,
    check_size,
    check_step,
    check_tensor,
    time_major,
)
from ctrnn_assembly.errors import ConfigError

Advance = Callable[[Tensor, Tensor], Tensor]  # (projected input, h) -> next h


class EulerRNN(nn.Module, ABC):
    """h_t = h_{t-1} + eps · field(h_{t-1}, x_t), with eps part of the network.

    A subclass sets `inputs`, an nn.Linear of m features, and says how a state advances.
    """

    inputs: nn.Linear

    def __init__(self, input_size: int, hidden_size: int, *, batch_first: bool, eps: float) -> None:
        super().__init__()
        check_size("input_size", input_size)
        check_size("hidden_size", hidden_size)
        check_range("eps", eps, 0.0)
        if eps == 0:
            raise ConfigError("eps must be positive; got 0. Pass eps=0.01, say.")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.batch_first, self.eps = batch_first, eps

    @abstractmethod
    def advance(self) -> Advance:
        """The step (projected input, h) -> next h, with its matrices built once."""

    def forward(
        self, input: Tensor, h_0: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Every state, and the last valid one.

        Args:    input: (T, B, m), or (B, T, m) with batch_first.  h_0: (1, B, n), default 0.
                 lengths: (B,) int64, 1..T; past its end a sequence keeps its state.
        Returns: output (T, B, n), or (B, T, n) with batch_first;  h_n (1, B, n).
        """
        states: list[Tensor] = []
        h = self._run(input, h_0, lengths, states.append)
        return torch.stack(states, dim=1 if self.batch_first else 0), h[None]

    def last(self, input: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The last valid state from h_0 = 0, (B, n)."""
        return self._run(input, None, lengths, lambda h: None)

    def step(self, u: Tensor, h: Tensor) -> Tensor:
        """One exact step: u (B, m), h (B, n) -> h (B, n)."""
        B = check_step(u, self.input_size, self.inputs.weight)
        check_tensor("h", h, (B, self.hidden_size), self.inputs.weight)
        return self.advance()(self.inputs(u), h)

    def _run(
        self,
        input: Tensor,
        h_0: Tensor | None,
        lengths: Tensor | None,
        keep: Callable[[Tensor], None],
    ) -> Tensor:
        """The last state (B, n); `keep` is shown every state on the way."""
        like = self.inputs.weight
        x = time_major(input, self.input_size, self.batch_first, like)
        T, B, _ = x.shape
        check_lengths(lengths, T, B)
        running = None
        if lengths is not None:
            time = torch.arange(T, device=x.device)[:, None]
            running = (time < lengths.to(x.device))[..., None]  # (T, B, 1)
            # The padding is blanked, not only skipped: 0 · NaN would still reach the gradient.
            x = x.masked_fill(~running, 0)
        if h_0 is None:
            h = like.new_zeros(B, self.hidden_size)
        else:
            check_tensor("h_0", h_0, (1, B, self.hidden_size), like)
            h = h_0[0]
        advance = self.advance()
        for t, drive in enumerate(self.inputs(x)):
            moved = advance(drive, h)
            h = moved if running is None else torch.where(running[t], moved, h)
            keep(h)
        return h
