"""Networks to compare with; layers as `CTRNN` is one (`ctrnn_assembly.recurrent`).

None enforces a condition that proves contraction, so none has a certificate. `TorchRNN` runs torch's own
kernels (cuDNN on a GPU), `EulerRNN` a loop of Python: T sequential steps of O(batch n^2).
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ctrnn_assembly.block import Layer
from ctrnn_assembly.calls import Data, Dt, Lengths, Outputs, Save
from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.certify import Search
from ctrnn_assembly.errors import ConfigError, configure
from ctrnn_assembly.inputs import held
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.recurrent import Recurrent, is_plain
from ctrnn_assembly.stack import Stack
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import states, transformed

Field = Callable[[Tensor, Tensor], Tensor]  # (projected input, x) -> x'
Step = Callable[[Tensor, Tensor], Tensor]  # (input, x) -> x+


class Baseline(Recurrent):
    """A layer that is no assembly of contracting modules; `of_layer` are the options of `Recurrent`."""

    @property
    def size(self) -> int:
        return self.hidden_size

    def terms(self) -> NoReturn:
        raise ConfigError(f"{type(self).__name__} has no terms. Use step(u, x), or a CTRNN.")

    def flow(self, u: Data = None) -> Any:
        raise ConfigError(f"{type(self).__name__} is a map x -> x+, not a flow x'. Use step(u, x).")

    def metric(self) -> NoReturn:
        raise ConfigError(f"{type(self).__name__} has no metric that proves contraction. Use a CTRNN.")

    def certificate(
        self, *, dt: float | None = None, solver: str | None = None, search: Search = "fast"
    ) -> Certificate:
        """A certificate that certifies nothing, and says why; dt is 1, a sample, if None."""
        reason = f"{type(self).__name__} is a baseline: no certificate is defined for it, as nothing"
        reason += " bounds how far two of its states may part. Use svd-combo, say"
        return Certificate.refused(reason, dt=1.0 if dt is None else dt, solver=solver or "own step")

    def project_(self) -> None:
        """Nothing to do: the weights are in no set."""


class TorchRNN(Baseline):
    """A map by `torch.nn`; a subclass names its `kind`, and writes its step out."""

    kind: ClassVar[Any]

    def __init__(self, input_size: int, hidden_size: int, **of_layer: Any) -> None:
        super().__init__(input_size, hidden_size, **of_layer)
        self.rnn = self.kind(input_size, hidden_size, batch_first=True)

    @abstractmethod
    def _formula(self, u: Tensor, x: Tensor) -> Tensor:
        """The step, from the weights."""

    def stepper(self) -> Step:
        if is_plain(self.rnn, self.kind):
            return self._formula
        return lambda u, x: self._run(u[:, None], x, None, None, "last")[1]

    def _run(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt, save: Save) -> Outputs:
        if transformed() and is_plain(self.rnn, self.kind):  # torch's own kernels cannot be mapped over
            return self._by_steps(u, x, lengths)
        parts = tuple(part[None].contiguous() for part in x.split(self.hidden_size, dim=-1))
        state = parts if len(parts) > 1 else parts[0]  # (h, c) of an LSTM
        if lengths is None:
            output, last = self.rnn(u, state)
        else:
            # Packed: of a full run, torch does not return an LSTM's c at a sequence's own end.
            packed = pack_padded_sequence(u, lengths.cpu(), batch_first=True, enforce_sorted=False)
            packed, last = self.rnn(packed, state)
            output, _ = pad_packed_sequence(packed, batch_first=True, total_length=u.shape[1])
            output = held(output, lengths)
        return output, torch.cat(last, dim=-1)[0] if len(parts) > 1 else last[0]


class VanillaRNN(TorchRNN):
    """Elman's recurrent network, x_t = tanh(W x_{t-1} + U u_t + b), with b a sum of two trained vectors.

    W starts orthogonal (Le et al. 2015, Saxe et al. 2014), the others uniform in +-1 / sqrt(n).
    Guarantee: none. Source: Elman 1990, 'Finding Structure in Time'; the formula is torch.nn.RNN's.

    >>> VanillaRNN(3, 8).certificate().reasons[0][:62]
    'VanillaRNN is a baseline: no certificate is defined for it, as'
    """

    kind = nn.RNN

    def __init__(self, input_size: int, hidden_size: int, **of_layer: Any) -> None:
        super().__init__(input_size, hidden_size, **of_layer)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)

    def _formula(self, u: Tensor, x: Tensor) -> Tensor:
        U, W, b_u, b_x = self.rnn.all_weights[0]
        return torch.tanh(linear(u, U, b_u) + linear(x, W, b_x))


class LSTM(TorchRNN):
    """Long short-term memory; its state is [h, c] in one tensor, (batch, 2n), its output h.

        (i, f, o) = sigmoid(W_{i,f,o} h_{t-1} + U_{i,f,o} u_t + b_{i,f,o})
        g = tanh(W_g h_{t-1} + U_g u_t + b_g),  c_t = f o c_{t-1} + i o g,  h_t = o o tanh(c_t)

    Weights start uniform in +-1 / sqrt(n), the forget bias at 1 (Jozefowicz et al. 2015).
    Guarantee: none. Source: Hochreiter & Schmidhuber 1997, Gers et al. 2000; torch.nn.LSTM's formula.

    >>> [one.shape for one in LSTM(3, 8, batch_first=True)(torch.randn(5, 20, 3))]
    [torch.Size([5, 20, 8]), torch.Size([1, 5, 16])]
    """

    kind, state_parts = nn.LSTM, 2

    def __init__(self, input_size: int, hidden_size: int, **of_layer: Any) -> None:
        super().__init__(input_size, hidden_size, **of_layer)
        with torch.no_grad():
            self.rnn.bias_ih_l0[hidden_size : 2 * hidden_size] = 1.0
            self.rnn.bias_hh_l0[hidden_size : 2 * hidden_size] = 0.0

    def _formula(self, u: Tensor, x: Tensor) -> Tensor:
        (U, W, b_u, b_h), (h, c) = self.rnn.all_weights[0], x.chunk(2, dim=-1)
        i, f, g, o = (linear(u, U, b_u) + linear(h, W, b_h)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], dim=-1)


class GRU(TorchRNN):
    """Gated recurrent unit, with r and z sigmoids of U u + W h + b:

        n = tanh(U_n u + b_n + r o (W_n h + c_n)),   h+ = (1 - z) o n + z o h

    Guarantee: none. Source: Cho et al. 2014; the formula is torch.nn.GRU's.
    """

    kind = nn.GRU

    def _formula(self, u: Tensor, x: Tensor) -> Tensor:
        U, W, b_u, b_h = self.rnn.all_weights[0]
        (r, z, n), (R, Z, N) = linear(u, U, b_u).chunk(3, dim=-1), linear(x, W, b_h).chunk(3, dim=-1)
        z = torch.sigmoid(z + Z)
        return (1 - z) * torch.tanh(n + torch.sigmoid(r + R) * N) + z * x


class Pointwise(Baseline):
    """x_t = tanh(u_t + b): no recurrence at all. Guarantee: none is needed, as nothing is remembered."""

    def __init__(self, input_size: int, hidden_size: int, **of_layer: Any) -> None:
        super().__init__(input_size, hidden_size, **of_layer)
        if input_size != hidden_size:
            raise ConfigError(f"Pointwise needs an input a unit; got {input_size} for {hidden_size}.")
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def stepper(self) -> Step:
        return lambda u, x: torch.tanh(u + self.bias)

    def _run(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt, save: Save) -> Outputs:
        x = torch.tanh(u + self.bias)
        x = x if lengths is None else held(x, lengths)
        return x, x[:, -1]


class EulerRNN(Baseline):
    """x_t = x_{t-1} + eps x',  x' = A x_{t-1} + tanh(W x_{t-1} + V u_t + b), with A, W of a subclass."""

    settings: ClassVar[dict[str, str]] = {"eps": "(0, inf)", "gamma": "[0, inf)", "init_std": "[0, inf)"}
    eps: float
    gamma: float
    init_std: float

    def __init__(self, input_size: int, hidden_size: int, **given: Any) -> None:
        own = {name: given.pop(name) for name in self.settings if name in given}
        super().__init__(input_size, hidden_size, **given)
        configure(self, self.settings, own)
        self.inputs = nn.Linear(input_size, hidden_size)
        nn.init.zeros_(self.inputs.bias)
        self.start(input_size, hidden_size)

    @abstractmethod
    def start(self, m: int, n: int) -> None:
        """Draw V and the parameters that A and W are made of."""

    @abstractmethod
    def matrices(self) -> tuple[Tensor, ...]:
        """A, if it is not 0, and W, (n, n)."""

    def vector_field(self) -> Field:
        """(projected input, x) -> x', with its matrices built once."""
        both = torch.cat(self.matrices()).T  # A x and W x in one product

        def x_prime(drive: Tensor, x: Tensor) -> Tensor:
            *Ax, Wx = (x @ both).split(self.hidden_size, dim=-1)
            return sum(Ax, torch.tanh(Wx + drive))

        return x_prime

    def flow(self, u: Data = None) -> Callable[[Tensor], Tensor]:
        return partial(self.vector_field(), self.inputs(self._sample(u)))

    def stepper(self) -> Step:
        field = self.vector_field()
        return lambda u, x: x + self.eps * field(self.inputs(u), x)

    def _run(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt, save: Save) -> Outputs:
        field, drives = self.vector_field(), self.inputs(u.transpose(0, 1))
        found = states(lambda drive, x: x + self.eps * field(drive, x), x, drives, lengths=lengths)
        return found.transpose(0, 1), found[-1]


class AntisymmetricRNN(EulerRNN):
    """Forward Euler steps of a field whose matrix is skew-symmetric minus gamma I.

        x_t = x_{t-1} + eps tanh(K x_{t-1} + V u_t + b)
        K = W - W^T - gamma I,  W strictly upper triangular

    `upper` holds the entries of W above its diagonal, row by row; `inputs` holds (V, b). Start:
    V ~ N(0, 1 / m), W ~ N(0, init_std^2 / n), b = 0; that the triangle is drawn, not a full W, is our
    reading. eps and init_std are those of a public re-implementation; the paper chooses by validation.
    Guarantee: none. Source: Chang, Chen, Haber and Chi (ICLR 2019, arXiv 1902.09689), equation (12) as
    others cite it, as the paper could not be opened here; without their gated variant.

    >>> (K,) = AntisymmetricRNN(1, 3, gamma=0.5).matrices()
    >>> bool((K + K.T == -torch.eye(3)).all())
    True
    """

    eps, gamma, init_std = 0.01, 0.01, 1.0

    def start(self, m: int, n: int) -> None:
        nn.init.normal_(self.inputs.weight, std=m**-0.5)
        self.upper = nn.Parameter(torch.randn(n * (n - 1) // 2) * self.init_std * n**-0.5)

    def matrices(self) -> tuple[Tensor]:
        n = self.hidden_size
        eye = torch.eye(n).to(self.upper)
        above = torch.triu_indices(n, n, offset=1, device=eye.device)
        W = torch.zeros_like(eye).index_put(tuple(above), self.upper)
        return (W - W.T - self.gamma * eye,)


class LipschitzRNN(EulerRNN):
    """Forward Euler steps of a linear part plus a Lipschitz nonlinearity.

        x' = A x + tanh(W x + U u + b),      x_t = x_{t-1} + eps x'(x_{t-1}, u_t)
        A = (1 - beta) (M_A + M_A^T) + beta (M_A - M_A^T) - gamma I,   and W of M_W likewise

    beta is from symmetric (0) to skew (1). `inputs` holds (U, b). Start: M_A and M_W are drawn from
    N(0, (init_std / n)^2), U is Xavier normal, b = 0.
    Guarantee: none. Training does not enforce the paper's sufficient condition, which is of the ODE.
    Source: Erichson et al. (ICLR 2021, arXiv 2006.12070), which was not at hand; settings of the
    authors' driver (github.com/erichson/LipschitzRNN).

    >>> A, W = LipschitzRNN(1, 3, beta=1.0, gamma=0.5).matrices()
    >>> A.diagonal().tolist()
    [-0.5, -0.5, -0.5]
    """

    settings = EulerRNN.settings | {"beta": "[0, 1]"}
    eps, beta, gamma, init_std = 0.03, 0.75, 1e-3, 0.1

    def start(self, m: int, n: int) -> None:
        nn.init.xavier_normal_(self.inputs.weight)
        self.M_A, self.M_W = (nn.Parameter(torch.randn(n, n) * self.init_std / n) for _ in range(2))

    def matrices(self) -> tuple[Tensor, Tensor]:
        # (1 - beta) (M + M^T) + beta (M - M^T) = M + (1 - 2 beta) M^T
        eye = torch.eye(self.hidden_size).to(self.M_A)
        A, W = (M + (1 - 2 * self.beta) * M.T - self.gamma * eye for M in (self.M_A, self.M_W))
        return A, W


class FreePairs(Pairs):
    """`Pairs` without their constraint: every w and decay rate is free, of either sign.

        tau x' = -(1 - a) x + omega tau J x + w o phi(x) + u,    a = 0 and w as of `Pairs` at the start

    with tau as it starts, and J the quarter turn of each pair. Guarantee: none.
    """

    train_tau = False
    rate: Any = None

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(size, **options)
        w, log_rate = super().w.detach(), self.log_rate.detach()
        del self.log_rate
        self.register_buffer("log_rate", log_rate)
        self.a = nn.Parameter(torch.zeros(size // 2))
        if self.theta is not None:
            self.theta = nn.Parameter(w)

    @property
    def w(self) -> Tensor:
        return torch.zeros_like(self.tau) if self.theta is None else self.theta

    def _terms(self) -> Terms:
        terms = super()._terms()
        return replace(terms, L=cast(Tensor, terms.L) + torch.diag(self.a.repeat_interleave(2)))

    certificate: Any = Baseline.certificate


class DeepBaseline(Baseline, Stack):
    """`Stack` with a map of `kind`, such as `LSTM`, in place of each field, a sample a step.

    It has as many units as give a layer the number of parameters that `Pairs(width)` give it.
    """

    fusible = False

    def __init__(
        self, input_size: int, width: int, kind: type[Baseline], depth: int, **parts: Any
    ) -> None:
        n = size_for(kind, width)
        fields: Any = [kind(n, n, batch_first=True) for _ in range(depth)]
        Stack.__init__(self, input_size, width, fields, **parts)
        del self.dt, self.solver

    def _mover(self, layer: Layer) -> Step:
        move = cast(Baseline, layer.field).stepper()
        return lambda z, v: move(layer.B(v), z)

    def _states(self, layer: Layer, v: Tensor, z: Tensor, lengths: Lengths, dt: Dt) -> Outputs:
        return cast(Baseline, layer.field)._run(layer.B(v), z, lengths, dt, "all")


def size_for(kind: type[Baseline], width: int) -> int:
    """n such that B, n units of `kind` and C have about the parameters that they have with `Pairs`."""
    with torch.device("meta"):
        inside = [sum(p.numel() for p in kind(n, n).parameters()) for n in range(1, width + 1)]
    wanted = 2 * width * (width + 1)
    return min(range(1, width + 1), key=lambda n: abs(inside[n - 1] + 2 * width * n - wanted))
