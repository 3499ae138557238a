"""The planar net of Theorem 7, its worst switching, and the assembly that Euler's step makes diverge.

The page `docs/explanations/counterexamples.md` tells them; the tests hold the numbers.
"""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from numpy import ndarray
from scipy.linalg import expm
from scipy.optimize import brentq, minimize
from torch import Tensor

import ctrnn_assembly as ctrnn
from ctrnn_assembly import Assembly, Subnetwork, certify, measure_contraction, solve
from ctrnn_assembly.diagnostics.contraction import Measurement
from ctrnn_assembly.schemes import SCHEMES

AMPLITUDE = 4.0  # tanh'(4) = 0.0013 stands for the slope 0
Pieces = list[tuple[tuple[float, float], float]]  # slopes, and for how long
Path = Callable[[Tensor], Tensor]  # of time


# (i) Theorem 7


def planar_jacobian(c: float, slopes: tuple[float, float]) -> ndarray:
    """J = -I + W D for W = [[0, -c], [c, 0]]; its eigenvalues are -1 +- i c sqrt(d_1 d_2)."""
    return -np.eye(2) + np.array([[0.0, -c], [c, 0.0]]) * np.array(slopes)


def planar_network(c: float) -> Subnetwork:
    """tau x' = -x + W tanh(x) + u with that W, without a constraint."""
    W = torch.tensor([[0.0, -c], [c, 0.0]], dtype=torch.float64)
    return Subnetwork(ctrnn.Unconstrained("tanh"), 2, weight=W, bias=False)


def best_constant_rate(c: float) -> float:
    """The best rate over all slopes that a constant metric M = [[a, b], [b, d]] proves, by search.

    J is affine in the slopes, so the four vertices suffice; det M = 1 without loss.
    """
    corners = [planar_jacobian(c, D) for D in product((0.0, 1.0), (0.0, 1.0))]

    def loss(z: ndarray) -> float:
        a, b = math.exp(z[0]), z[1]
        theta = np.linalg.cholesky(np.array([[a, b], [b, (1 + b * b) / a]])).T
        moved = [theta @ J @ np.linalg.inv(theta) for J in corners]
        return max(float(np.linalg.eigvalsh((F + F.T) / 2)[-1]) for F in moved)

    options = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 2000}
    starts = [(0.0, 0.0), (1.0, 1.0), (-1.0, -1.0), (2.0, 0.5)]
    return -min(minimize(loss, z, method="Nelder-Mead", options=options).fun for z in starts)


def switching_root() -> float:
    """l with log(1 + 1 / l^2) / 2 = 1 + l arctan(l): worst-case switching has the exponent c l - 1."""
    return float(brentq(lambda v: math.log1p(v**-2) / 2 - 1 - v * math.atan(v), 0.01, 1.0, xtol=1e-14))


def worst_pieces(c: float) -> Pieces:
    """The worst-case switching: (slopes, duration) over half a turn of the polar angle."""
    slope = switching_root()
    one, both = 1 / (slope * c), math.atan(slope) / c
    return [((1.0, 0.0), one), ((1.0, 1.0), both), ((0.0, 1.0), one), ((1.0, 1.0), both)]


def monodromy(c: float, pieces: Pieces) -> tuple[ndarray, float]:
    """The map over one period of v' = J(D(t)) v, and the period."""
    flow = np.eye(2)
    for slopes, duration in pieces:
        flow = expm(planar_jacobian(c, slopes) * duration) @ flow
    return flow, sum(duration for _, duration in pieces)


def radius(A: ndarray) -> float:
    """The spectral radius."""
    return float(np.abs(np.linalg.eigvals(A)).max())


def switching_exponent(c: float) -> float:
    """The growth rate of v' = J(D(t)) v under the worst-case switching."""
    flow, period = monodromy(c, worst_pieces(c))
    return math.log(radius(flow)) / period


def steered(c: float) -> tuple[Path, Path, float]:
    """x*(t), u(t) and their period: x* holds each tanh slope near 1 or 0 as the worst case wants.

    u = x*' + x* - W tanh(x*) makes x* a solution; it is smooth, periodic and bounded.
    """
    (_, one), (_, both), *_ = worst_pieces(c)
    period, width = 2 * (one + both), 0.05 / c
    middles = torch.tensor([1.5 * one + both, 0.5 * one], dtype=torch.float64)
    W = planar_network(c).weight.detach()

    def edges(t: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.remainder(t[..., None] - middles + period / 2, period) - period / 2
        return torch.tanh((s + one / 2) / width), torch.tanh((s - one / 2) / width)

    def state(t: Tensor) -> Tensor:
        up, down = edges(t)
        return AMPLITUDE * (up - down) / 2

    def signal(t: Tensor) -> Tensor:
        up, down = edges(t)
        velocity = AMPLITUDE * (down.square() - up.square()) / (2 * width)
        return velocity + state(t) - torch.tanh(state(t)) @ W.T

    return state, signal, period


def perturbed(c: float, periods: int = 20) -> tuple[Tensor, Tensor]:
    """Times (ends of periods) and the distance from x* of a solution that starts 1e-8 away from it.

    In continuous time, by a tight solver. The difference z from x* is integrated itself, so that no
    error of x* can grow: under u, z' = -z + W (tanh(x* + z) - tanh(x*)).
    """
    state, _, period = steered(c)
    W = planar_network(c).weight.detach()
    t = period * torch.arange(periods + 1, dtype=torch.float64)

    def field(s: Tensor, z: Tensor) -> Tensor:
        x = state(s.double())
        return -z + (torch.tanh(x + z) - torch.tanh(x)) @ W.T

    start = torch.tensor([[1e-8, 0.0]], dtype=torch.float64)
    return t, solve(field, start, t, solver="dopri5", rtol=1e-7, atol=1e-15).x[0].norm(dim=-1)


def measured_exponent(c: float) -> float:
    """Of the distance from x*, over the second period."""
    t, distance = perturbed(c, periods=2)
    return math.log(float(distance[2] / distance[1])) / float(t[1])


# (ii) Section 3.1


def alternating_pieces(c: float) -> Pieces:
    """Slopes (1, e^-2) and (e^-2, 1) in turn, each for a quarter turn of the Jacobian's rotation."""
    duration, small = math.pi * math.e / (2 * c), math.exp(-2)
    return [((1.0, small), duration), ((small, 1.0), duration)]


# (iii) Euler and IMEX


def strongly_coupled(omega: float = 12.0) -> Assembly:
    """Two modules W = I / 2, tanh, under negative feedback with ||L|| = omega."""
    half = torch.eye(4, dtype=torch.float64) / 2
    parts = [Subnetwork(ctrnn.AdaDiagTanh("tanh", margin=0.4), 4, weight=half) for _ in range(2)]
    net = ctrnn.couple(parts, "all", generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        L = net.terms().L
        assert L is not None
        assert isinstance(net.coupling, ctrnn.Feedback)
        net.coupling.K.values.mul_(omega / torch.linalg.matrix_norm(L, ord=2))
    return net


def certified_and_measured(
    net: Assembly, solver: str, steps: int = 400
) -> tuple[ctrnn.Certificate, Measurement]:
    """The certificate of one step, and 32 pairs under a random input."""
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(2, steps, net.size, generator=generator, dtype=torch.float64)
    measured = measure_contraction(net, u, dt=0.03, solver=solver, generator=generator)
    return certify(net, dt=0.03, solver=solver if solver in SCHEMES else "euler"), measured
