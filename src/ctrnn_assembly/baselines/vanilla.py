"""The plain recurrent network, by `torch.nn.RNN`."""

from __future__ import annotations

from typing import Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ctrnn_assembly.baselines.packed import run_packed
from ctrnn_assembly.baselines.uncertified import Uncertified, check_own_step
from ctrnn_assembly.errors import ConfigError, unknown
from ctrnn_assembly.recurrent import Recurrent, Save


class VanillaRNN(Uncertified, Recurrent):
    """Elman's recurrent network.

        x_t = phi(W x_{t-1} + U u_t + b),   phi = tanh or relu

    torch keeps b as a sum of two vectors, `bias_ih_l0` + `bias_hh_l0`; both are trained. Weights start
    as torch starts them, uniform in +-1 / sqrt(n).

    Args:
        input_size, hidden_size, batch_first: m, n and the layout, as in `Recurrent`.
        nonlinearity: phi.

    Raises:
        ConfigError: for a size below 1 or an unknown nonlinearity.

    Guarantee: none. Nothing bounds W, so neither contraction nor stability holds.

    Source: Elman 1990, 'Finding Structure in Time'; the formula is torch.nn.RNN's.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        batch_first: bool = False,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
    ) -> None:
        super().__init__(input_size, hidden_size, batch_first=batch_first)
        if nonlinearity not in ("tanh", "relu"):
            raise unknown("nonlinearity", nonlinearity, ("tanh", "relu"))
        self.phi = torch.tanh if nonlinearity == "tanh" else torch.relu
        self.rnn = nn.RNN(input_size, hidden_size, nonlinearity=nonlinearity, batch_first=True)

    def flow(self, u: Tensor | None = None) -> NoReturn:
        """Refused: the network is a map."""
        raise ConfigError("VanillaRNN is a map x -> x+, not a flow x'. Use step(u, x).")

    def _step(self, u: Tensor, x: Tensor) -> Tensor:
        rnn = self.rnn
        inner = linear(u, rnn.weight_ih_l0, rnn.bias_ih_l0) + linear(x, rnn.weight_hh_l0, rnn.bias_hh_l0)
        return self.phi(inner)

    def _run(
        self, u: Tensor, x: Tensor, lengths: Tensor | None, dt: float | Tensor | None, save: Save
    ) -> tuple[Tensor, Tensor]:
        check_own_step(dt)
        output, last = run_packed(self.rnn, u, x[None], lengths)
        return output, last[0]
