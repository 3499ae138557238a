"""The long short-term memory, torch.nn.LSTM behind the baselines' signature."""

from torch import Tensor, nn

from ctrnn_assembly.baselines.sequence import (
    check_lengths,
    check_size,
    check_step,
    check_tensor,
    run_packed,
    time_major,
)
from ctrnn_assembly.errors import ShapeError

State = tuple[Tensor, Tensor]  # (h, c)


def check_pair(name: str, state: State, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ShapeError unless state is (h, c), both of this shape."""
    if not (isinstance(state, tuple) and len(state) == 2):
        got = f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
        raise ShapeError(f"{name} must be a pair (h, c) of tensors; got {got}. Pass (h, c).")
    for i, part in enumerate(state):
        check_tensor(f"{name}[{i}]", part, shape, like)


class LSTM(nn.Module):
    """Long short-term memory, by `torch.nn.LSTM` (cuDNN on a GPU).

        (i, f, o) = σ(W_{i,f,o} h_{t-1} + U_{i,f,o} x_t + b_{i,f,o})
        g   = tanh(W_g h_{t-1} + U_g x_t + b_g)
        c_t = f ⊙ c_{t-1} + i ⊙ g
        h_t = o ⊙ tanh(c_t)

    torch keeps each b as a sum of two vectors; weights start as torch starts them, U(±1/√n),
    the forget bias too (much of the literature starts that one at 1; set it if you compare).

    Args:    input_size: m.  hidden_size: n.  batch_first: input is (B, T, m).
    Raises:  ConfigError: a size below 1.
             ShapeError: at a call, a tensor of wrong shape, dtype or device.
    Guarantee: none proven. |h| < 1 by its formula, but nothing makes two trajectories meet.
    Source:  Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; the formula
             is torch.nn.LSTM's.
    """

    def __init__(self, input_size: int, hidden_size: int, *, batch_first: bool = False) -> None:
        super().__init__()
        check_size("input_size", input_size)
        check_size("hidden_size", hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.batch_first = batch_first
        self.rnn = nn.LSTM(input_size, hidden_size)

    def forward(
        self, input: Tensor, h_0: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Every h, and the last valid (h, c).

        Args:    input: (T, B, m), or (B, T, m) with batch_first.  h_0: (h, c), each (1, B, n),
                 default 0.  lengths: (B,) int64, 1..T; past its end a sequence keeps its state.
        Returns: output (T, B, n), or (B, T, n) with batch_first;  (h_n, c_n), each (1, B, n).
        """
        like = next(self.rnn.parameters())
        x = time_major(input, self.input_size, self.batch_first, like)
        T, B, _ = x.shape
        check_lengths(lengths, T, B)
        if h_0 is not None:
            check_pair("h_0", h_0, (1, B, self.hidden_size), like)
        output, state = run_packed(self.rnn, x, h_0, lengths)
        return output.transpose(0, 1) if self.batch_first else output, state

    def last(self, input: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The last valid h from a zero state, (B, n)."""
        return self(input, lengths=lengths)[1][0][0]

    def step(self, u: Tensor, h: State) -> State:
        """One exact step: u (B, m), (h, c) each (B, n) -> (h, c)."""
        like = next(self.rnn.parameters())
        B = check_step(u, self.input_size, like)
        check_pair("h", h, (B, self.hidden_size), like)
        hidden, cell = self.rnn(u[None], (h[0][None], h[1][None]))[1]
        return hidden[0], cell[0]
