"""The long short-term memory, by `torch.nn.LSTM`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ctrnn_assembly.baselines.baseline import TorchRNN


class LSTM(TorchRNN):
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

    Guarantee: none. |h| < 1 by its formula, but nothing makes two trajectories meet.

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; the formula is
    torch.nn.LSTM's.
    """

    def __init__(self, input_size: int, hidden_size: int, *, batch_first: bool = False) -> None:
        state_size = 2 * hidden_size
        super().__init__(input_size, hidden_size, batch_first=batch_first, state_size=state_size)
        self.rnn = nn.LSTM(input_size, hidden_size, batch_first=True)

    def _step(self, u: Tensor, x: Tensor) -> Tensor:
        (U, W, b_u, b_h), (h, c) = self.rnn.all_weights[0], x.chunk(2, dim=-1)
        i, f, g, o = (linear(u, U, b_u) + linear(h, W, b_h)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], dim=-1)
