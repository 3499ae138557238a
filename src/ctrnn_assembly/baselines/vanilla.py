"""The plain recurrent network, by `torch.nn.RNN`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ctrnn_assembly.baselines.baseline import TorchRNN
from ctrnn_assembly.errors import unknown


class VanillaRNN(TorchRNN):
    """Elman's recurrent network.

        x_t = phi(W x_{t-1} + U u_t + b),   phi = tanh or relu

    torch keeps b as a sum of two vectors, `bias_ih_l0` + `bias_hh_l0`; both are trained. Weights start
    as torch starts them, uniform in +-1 / sqrt(n).

    Args:
        input_size, hidden_size, batch_first: m, n and the layout, as in `Recurrent`.
        nonlinearity: phi.

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

    def _step(self, u: Tensor, x: Tensor) -> Tensor:
        U, W, b_u, b_x = self.rnn.all_weights[0]
        return self.phi(linear(u, U, b_u) + linear(x, W, b_x))
