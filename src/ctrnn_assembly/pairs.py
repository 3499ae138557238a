"""`Pairs`: single units coupled two by two, the smallest assemblies with feedback; the field of depth.

tau_k z_k' = -z_k + i omega_k tau_k z_k + w_k o phi(z_k) + b_k + u_k(t),    z_k = x_2k + i x_2k+1

Each pair is a damped oscillator with a time constant tau and a frequency omega of its own, both trained.
phi acts on the real and the imaginary part, with weights g |w| <= 1 - margin (AdaDiag), or w = 0: the
linear recurrent unit.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ctrnn_assembly.activations import Activation, Elementwise, around
from ctrnn_assembly.contracting import AdaDiagTanh
from ctrnn_assembly.errors import ConfigError, check_within
from ctrnn_assembly.linalg import working_precision
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.subnetwork import Field
from ctrnn_assembly.terms import Terms

# Room for what float32 rounds off the bounds of a gate.
WIDER = 1 + 1e-6
FASTEST, TURN = 0.2, math.pi / 5  # the largest rate 1 / tau and frequency at the start, a unit of time


class Pairs(Field):
    """p = size / 2 pairs of units.

    Args:
        size: units n, even.
        horizon: time that the slowest pairs should remember, in the unit of dt: at the start rates are
            log-uniform from .5 / horizon to .2, frequencies uniform up to pi / 5.
        phi: the activation of AdaDiag weights; None for w = 0.
        margin: of the weights: g |w| <= 1 - margin.

    Guarantee: the rate (1 - g max w^+) / tau, at least margin / tau, in M = I, whatever omega is. An
    exponential-euler step multiplies the distance of two states of a pair by at most
    e^-h + (1 - e^-h) g max |w| < 1, h = dt / tau, for every dt (THEORY section 11).

    >>> net = Pairs(8, horizon=1000.0)
    >>> net.rate > 0, certify(net, dt=1.0, solver="exponential-euler").step.certified
    (True, True)
    """

    theta: nn.Parameter | None
    train_tau = True

    def __init__(
        self,
        size: int,
        *,
        horizon: float = 100.0,
        phi: str | Activation | None = "tanh",
        margin: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if size < 2 or size % 2:
            raise ConfigError(f"size must be even and at least 2, for pairs of units; got {size}.")
        check_within(f"({0.5 / FASTEST}, inf)", horizon=horizon)
        self.size = size
        self.constraint = AdaDiagTanh(phi or "identity", margin=margin)
        low, high = math.log(0.5 / horizon), math.log(FASTEST)
        draw = torch.rand(2, size // 2, generator=generator)
        self.log_rate = nn.Parameter(low + (high - low) * draw[0])
        self.frequency = nn.Parameter(TURN * draw[1])
        start = None if phi is None else nn.Parameter(2 * torch.rand(size, generator=generator) - 1)
        self.register_parameter("theta", start)

    def leaves(self) -> list[Any]:
        return [self]

    @property
    def tau(self) -> Tensor:
        """Time constants, (n,), the same two by two."""
        return (-self.log_rate).exp().repeat_interleave(2)

    @property
    def w(self) -> Tensor:
        if self.theta is None:
            return torch.zeros_like(self.tau)
        return self.constraint.bounded(self.theta) / self.constraint.phi.g

    def slowest(self) -> Tensor | None:
        rate, slowest = self.constraint.rate, working_precision(self.tau.max())[0]
        return None if self.tau.dtype.itemsize < 4 or rate is None else rate / slowest

    def activations(self) -> tuple[Elementwise, Elementwise]:
        return around(self.constraint.phi, self.size)

    def metric(self) -> Metric:
        """M = I, a factor for each unit."""
        return Metric((Factor.identity(1, self.log_rate.detach()),) * self.size)

    def _terms(self) -> Terms:
        """Units are the modules, coupled two by two; the coupling is L = omega tau (0, -1; 1, 0)."""
        tau, turn = self.tau, self.frequency * (-self.log_rate).exp()
        even = torch.arange(0, self.size, 2, device=tau.device)
        rows, columns = torch.cat([even, even + 1]), torch.cat([even + 1, even])
        L = torch.zeros(self.size, self.size, dtype=tau.dtype, device=tau.device)
        L = L.index_put((rows, columns), torch.cat([-turn, turn]))
        blocks, pairs = self.w.view(-1, 1, 1).unbind(0), tuple((k, k + 1) for k in even.tolist())
        zero = tau.new_zeros(self.size)
        return Terms(blocks, *self.activations(), zero, tau, L=L, pairs=pairs, diagonal=True)


class StepGate(nn.Module):
    """Delta = r^tanh(G v + c), in [1 / r, r]: how many times dt a pair moves in one sample.

    r is `widest`, v has `reads` features. 1 at the start. It reads no state: THEORY section 12.
    """

    def __init__(self, reads: int, pairs: int, widest: float) -> None:
        super().__init__()
        check_within("(1, 1000]", "Use 2.0.", gate_range=widest)
        self.widest, self.reader = widest, nn.Linear(reads, pairs)
        nn.init.zeros_(self.reader.weight)
        nn.init.zeros_(self.reader.bias)

    def forward(self, v: Tensor) -> Tensor:
        """Delta, (..., n / 2), for v (..., reads)."""
        return torch.exp(math.log(self.widest) * torch.tanh(self.reader(v)))

    @property
    def bounds(self) -> tuple[float, float]:
        """Of Delta, rounding of float32 accounted for."""
        return 1 / self.widest / WIDER, self.widest * WIDER

    @property
    def slope(self) -> float:
        """The largest dDelta / d(G v + c): k r^y (1 - y^2) with k = log r, at its maximum over y."""
        k = math.log(self.widest)
        y = (math.sqrt(1 + k * k) - 1) / k
        return k * math.exp(k * y) * (1 - y * y) * WIDER
