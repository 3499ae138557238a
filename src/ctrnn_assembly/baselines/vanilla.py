"""The plain recurrent network, torch.nn.RNN behind the baselines' signature."""

from typing import Literal

from torch import Tensor, nn

from ctrnn_assembly.baselines.sequence import (
    check_lengths,
    check_size,
    check_step,
    check_tensor,
    run_packed,
    time_major,
)
from ctrnn_assembly.errors import ConfigError


class VanillaRNN(nn.Module):
    """Elman's recurrent network, by `torch.nn.RNN` (cuDNN on a GPU).

        h_t = φ(W h_{t-1} + U x_t + b),   φ = tanh or relu

    torch keeps b as a sum of two vectors, `bias_ih_l0` + `bias_hh_l0`; both are trained.
    Weights start as torch starts them, U(±1/√n).

    Args:    input_size: m.  hidden_size: n.  batch_first: input is (B, T, m).  nonlinearity: φ.
    Raises:  ConfigError: a size below 1, an unknown nonlinearity.
             ShapeError: at a call, a tensor of wrong shape, dtype or device.
    Guarantee: none proven. Nothing bounds W, so neither contraction nor stability holds.
    Source:  Elman 1990, 'Finding Structure in Time'; the formula is torch.nn.RNN's.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        batch_first: bool = False,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
    ) -> None:
        super().__init__()
        check_size("input_size", input_size)
        check_size("hidden_size", hidden_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ConfigError(
                f"nonlinearity must be 'tanh' or 'relu'; got {nonlinearity!r}. Pass nonlinearity='tanh'."
            )
        self.input_size, self.hidden_size = input_size, hidden_size
        self.batch_first, self.nonlinearity = batch_first, nonlinearity
        self.rnn = nn.RNN(input_size, hidden_size, nonlinearity=nonlinearity)

    def forward(
        self, input: Tensor, h_0: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Every state, and the last valid one.

        Args:    input: (T, B, m), or (B, T, m) with batch_first.  h_0: (1, B, n), default 0.
                 lengths: (B,) int64, 1..T; past its end a sequence keeps its state.
        Returns: output (T, B, n), or (B, T, n) with batch_first;  h_n (1, B, n).
        """
        like = next(self.rnn.parameters())
        x = time_major(input, self.input_size, self.batch_first, like)
        T, B, _ = x.shape
        check_lengths(lengths, T, B)
        if h_0 is not None:
            check_tensor("h_0", h_0, (1, B, self.hidden_size), like)
        output, h_n = run_packed(self.rnn, x, h_0, lengths)
        return output.transpose(0, 1) if self.batch_first else output, h_n

    def last(self, input: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The last valid state from h_0 = 0, (B, n)."""
        return self(input, lengths=lengths)[1][0]

    def step(self, u: Tensor, h: Tensor) -> Tensor:
        """One exact step: u (B, m), h (B, n) -> h (B, n)."""
        like = next(self.rnn.parameters())
        B = check_step(u, self.input_size, like)
        check_tensor("h", h, (B, self.hidden_size), like)
        return self.rnn(u[None], h[None])[1][0]
