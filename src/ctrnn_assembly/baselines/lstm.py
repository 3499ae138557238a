"""The long short-term memory, by `torch.nn.LSTM`."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ctrnn_assembly.baselines.packed import run_packed
from ctrnn_assembly.baselines.uncertified import Uncertified, check_own_step
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.recurrent import Recurrent, Save


class LSTM(Uncertified, Recurrent):
    """Long short-term memory; its state is [h, c] in one tensor, (batch, 2n), its output h.

        (i, f, o) = sigmoid(W_{i,f,o} h_{t-1} + U_{i,f,o} u_t + b_{i,f,o})
        g   = tanh(W_g h_{t-1} + U_g u_t + b_g)
        c_t = f o c_{t-1} + i o g
        h_t = o o tanh(c_t)

    torch keeps each b as a sum of two vectors; weights start as torch starts them, uniform in
    +-1 / sqrt(n), the forget bias too (much of the literature starts that one at 1; set it if you
    compare).

    Args:
        input_size, hidden_size, batch_first: m, n and the layout, as in `Recurrent`.

    Raises:
        ConfigError: for a size below 1.

    Guarantee: none. |h| < 1 by its formula, but nothing makes two trajectories meet.

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; the formula is
    torch.nn.LSTM's.
    """

    def __init__(self, input_size: int, hidden_size: int, *, batch_first: bool = False) -> None:
        super().__init__(input_size, hidden_size, batch_first=batch_first, state_size=2 * hidden_size)
        self.rnn = nn.LSTM(input_size, hidden_size, batch_first=True)

    def flow(self, u: Tensor | None = None) -> NoReturn:
        """Refused: the network is a map."""
        raise ConfigError("LSTM is a map x -> x+, not a flow x'. Use step(u, x).")

    def _step(self, u: Tensor, x: Tensor) -> Tensor:
        rnn, (h, c) = self.rnn, x.chunk(2, dim=-1)
        inner = linear(u, rnn.weight_ih_l0, rnn.bias_ih_l0) + linear(h, rnn.weight_hh_l0, rnn.bias_hh_l0)
        i, f, g, o = inner.chunk(4, dim=-1)  # in the order of torch.nn.LSTM
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], dim=-1)

    def _run(
        self, u: Tensor, x: Tensor, lengths: Tensor | None, dt: float | Tensor | None, save: Save
    ) -> tuple[Tensor, Tensor]:
        check_own_step(dt)
        h, c = (part[None].contiguous() for part in x.chunk(2, dim=-1))
        output, (h, c) = run_packed(self.rnn, u, (h, c), lengths)
        return output, torch.cat([h[0], c[0]], dim=-1)
