"""What baselines share: their answers where a `CTRNN` has terms and a certificate, and two time loops.

`TorchRNN` runs torch's own kernels (cuDNN on a GPU). `EulerRNN` is a loop of Python: T sequential steps
of O(batch n^2), with the input projected by one product and the recurrent matrices built once a call.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.certify import Search
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.recurrent import Recurrent, Save

Field = Callable[[Tensor, Tensor], Tensor]  # (projected input, x) -> x'


class Baseline(Recurrent):
    """A layer that is no assembly of contracting modules: its rates are its state."""

    def terms(self) -> NoReturn:
        """Refused: x' is not of the form of `Terms`."""
        name = type(self).__name__
        raise ConfigError(f"{name} has no terms, as it is no assembly. Use step(u, x), or a CTRNN.")

    def metric(self) -> NoReturn:
        """Refused: no metric is known in which the layer contracts."""
        name = type(self).__name__
        raise ConfigError(f"{name} has no metric in which it is known to contract. Use a CTRNN.")

    def certificate(
        self, *, dt: float | None = None, solver: str | None = None, search: Search = "fast"
    ) -> Certificate:
        """A certificate that certifies nothing, and says why; dt is 1, a sample, if None."""
        reason = (
            f"{type(self).__name__} is a baseline: no certificate is defined for it, as nothing bounds "
            "how far two of its states may part. Use svd-combo, say"
        )
        step = 1.0 if dt is None else dt
        return Certificate.refused(reason, dt=step, solver=solver or "own step")

    def firing_rates(self, x: Tensor) -> Tensor:
        """The state itself, (..., n)."""
        return x

    def project_(self) -> None:
        """Nothing: the raw weights have no set to stay in."""

    def _run(
        self, u: Tensor, x: Tensor, lengths: Tensor | None, dt: float | Tensor | None, save: Save
    ) -> tuple[Tensor, Tensor]:
        if dt is not None:
            raise ConfigError(
                f"a baseline's step is its own; got dt={dt}. Leave dt out, or use a CTRNN."
            )
        return self._outputs(u, x, lengths, save)

    @abstractmethod
    def _outputs(
        self, u: Tensor, x: Tensor, lengths: Tensor | None, save: Save
    ) -> tuple[Tensor, Tensor]:
        """`Recurrent._run` without dt."""


class TorchRNN(Baseline):
    """A map by `torch.nn`; a subclass sets `rnn`, with batch_first, and writes its step out."""

    rnn: nn.RNNBase

    def flow(self, u: Tensor | None = None) -> NoReturn:
        """Refused: the network is a map."""
        raise ConfigError(f"{type(self).__name__} is a map x -> x+, not a flow x'. Use step(u, x).")

    def _outputs(
        self, u: Tensor, x: Tensor, lengths: Tensor | None, save: Save
    ) -> tuple[Tensor, Tensor]:
        parts = tuple(part[None].contiguous() for part in x.split(self.hidden_size, dim=-1))
        state = parts if len(parts) > 1 else parts[0]  # (h, c) of an LSTM
        if lengths is None:
            output, last = self.rnn(u, state)
        else:
            # Packed, because torch returns only the last LSTM cell state: c at a sequence's own end
            # could not be picked from a full run.
            ends = lengths.cpu()
            packed = pack_padded_sequence(u, ends, batch_first=True, enforce_sorted=False)
            packed, last = self.rnn(packed, state)
            output, _ = pad_packed_sequence(packed, batch_first=True, total_length=u.shape[1])
            held = torch.arange(u.shape[1], device=u.device).minimum(lengths[:, None] - 1)
            output = output.gather(1, held[..., None].expand_as(output))
        return output, torch.cat(last, dim=-1)[0] if len(parts) > 1 else last[0]


class EulerRNN(Baseline):
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

    def _outputs(
        self, u: Tensor, x: Tensor, lengths: Tensor | None, save: Save
    ) -> tuple[Tensor, Tensor]:
        field, states = self.vector_field(), []
        for t, drive in enumerate(self.inputs(u.transpose(0, 1))):
            moved = x + self.eps * field(drive, x)
            x = moved if lengths is None else torch.where(t < lengths[:, None], moved, x)
            if save == "all":
                states.append(x)
        return torch.stack(states or [x], dim=1), x


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ConfigError unless `value` is finite and in [low, high]."""
    if not (math.isfinite(value) and low <= value <= high):
        closing = "]" if math.isfinite(high) else ")"
        raise ConfigError(f"{name} must lie in [{low}, {high}{closing}; got {value}.")
