"""Contraction measured: pairs of trajectories under one input, and how fast they approach.

    d(t) = |Theta sqrt(tau) (x(t) - y(t))|,    factor of an interval = d(t + dt) / d(t)

A measurement sees some pairs, a certificate all: in its metric diag(tau) M every factor is at most
exp(-lam dt), or that of the certified step, and every fitted rate at least lam; Euclidean distances may
first grow, by sqrt(cond(diag(tau) M)) at most.

What rounding (of adaptive solvers, the tolerance) may add to a distance is bounded from the sums that a
step forms, and taken off; without `terms()` the states are added up once, and 1 for all else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.linearise import Behaviour, behaviour, linearise, prepare, trajectory
from ctrnn_assembly.diagnostics.spectrum import norm_of
from ctrnn_assembly.errors import ConfigError, ShapeError, check_within
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.schemes import ADAPTIVE
from ctrnn_assembly.terms import Terms

FLOOR = 1e4  # a distance below this many times its own error says nothing about a rate
RTOL = 1e-12  # of adaptive solvers; the absolute tolerance is a hundredth


@dataclass(frozen=True)
class Measurement:
    """How pairs of trajectories approached each other or parted; rates are per unit of time.

    Attributes:
        rate: smallest fitted rate of a pair in the metric, by least squares on log d(t) while that is
            above 1e4 times the error of a step; infinite if all are below it after one interval.
        euclidean_rate: the same of Euclidean distances.
        factor: largest factor of one interval in the metric, what rounding may have added taken off.
        growth: largest d(end) / d(0) in the metric; infinite if a trajectory overflowed.
        euclidean_peak: largest Euclidean distance over its initial value.
        distances, euclidean: d(t) in the metric and Euclidean, (pairs, steps + 1), at `times`.
    """

    rate: float
    euclidean_rate: float
    factor: float
    growth: float
    euclidean_peak: float
    pairs: int
    steps: int
    dt: float
    solver: str | None
    times: Tensor = field(repr=False, compare=False)
    distances: Tensor = field(repr=False, compare=False)
    euclidean: Tensor = field(repr=False, compare=False)


@torch.no_grad()
def measure_contraction(
    net: Any,
    u: Tensor | None = None,
    x0: Tensor | None = None,
    *,
    dt: float | None = None,
    solver: str | None = None,
    steps: int | None = None,
    metric: Metric | None = None,
    pairs: int = 8,
    spread: float = 1.0,
    distances: Sequence[float] = (1e-6, 1.0),
    worst: bool = False,
    generator: torch.Generator | None = None,
) -> Measurement:
    """Follow pairs of trajectories under the same input, and compare them.

    Args:
        u: samples held over an interval each, (batch, steps, m); every sequence meets every pair.
        x0: where the pairs start, (pairs, n); by default N(0, spread^2).
        dt: length of an interval. steps: how many, needed without u.
        solver: for a flow any of `ctrnn_assembly.schemes.SOLVERS`: a continuous rate needs dopri8.
        metric: M; by default the net's own, or the identity. `certify` may have searched for another.
        pairs: at each of the initial Euclidean `distances`; close ones behave unlike distant ones.
        worst: y(0) - x(0) is Theta^-1 times the top eigenvector of sym(Theta J(x(0)) Theta^-1), or the
            top singular vector of a map's Theta S Theta^-1, and not random.

    >>> net = Subnetwork(AdaDiagTanh(), 3, weight=torch.zeros(3, 3))  # x' = -x
    >>> round(measure_contraction(net, dt=0.1, steps=20).factor, 6)
    0.9
    """
    check_within("[1, inf)", pairs=pairs)
    check_within("[0, inf)", spread=spread)
    for distance in distances or (0.0,):
        check_within("(0, inf)", distances=distance)
    random: dict[str, Any] = {"count": pairs, "spread": spread, "generator": generator}
    known, u, x = prepare(net, u, x0, "(batch, steps, m)", "x0 (pairs, n)", **random)
    dt, solver = known.resolve(dt, solver)
    theta, inverse = norm_of(known, known.metric if metric is None else metric)
    if u is None:
        check_within("[1, inf)", "Without an input say how many.", steps=steps)
    elif steps not in (None, u.shape[1]):
        raise ShapeError(f"u must be (batch, steps, m) with steps = {steps}; got {tuple(u.shape)}.")
    steps, repeats = (cast(int, steps), 1) if u is None else (u.shape[1], len(u))
    far = torch.tensor(distances, dtype=x.dtype).repeat_interleave(len(x)).repeat(repeats)
    x = x.repeat(len(distances) * repeats, 1)
    u = None if u is None else u.repeat_interleave(len(x) // repeats, 0)
    if not worst:
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    else:
        here = linearise(known.own_map(), None if u is None else u[:, 0], x)
        F = theta @ here.matrix() @ inverse
        sym = F.mT @ F if known.flow is None else symmetric_part(F)
        v = torch.linalg.eigh(sym)[1][..., -1] @ inverse.mT
    y = x + (far / v.norm(dim=1))[:, None] * v
    both = None if u is None else u.repeat(2, 1, 1)
    states = trajectory(known, both, torch.cat([x, y]), steps, dt=dt, solver=solver, rtol=RTOL)
    x, y = states.chunk(2)
    d, euclidean = ((x - y) @ theta.mT).norm(dim=-1), (x - y).norm(dim=-1)
    size = _summed(known, u, x, dt) + _summed(known, u, y, dt)
    relative = (8 + known.size) * torch.finfo(torch.float64).eps * known.substeps
    if solver in ADAPTIVE:
        size, relative = size + 0.01, 16 * RTOL  # 0.01 for the absolute tolerance
    error = (relative * (size @ theta.abs().mT).norm(dim=-1)).nan_to_num(nan=math.inf)
    usable = torch.isfinite(d[:, 1:]) & (d[:, :-1] > 0)
    factors = ((d - error)[:, 1:] / d[:, :-1])[usable]
    return Measurement(
        rate=_fitted_rate(d, d > FLOOR * error, dt),
        euclidean_rate=_fitted_rate(euclidean, d > FLOOR * error, dt),
        factor=max(float(factors.max()), 0.0) if len(factors) else math.inf,
        growth=float((d[:, -1] / d[:, 0]).nan_to_num(math.inf, math.inf).max()),
        euclidean_peak=float((euclidean / euclidean[:, :1]).nan_to_num(math.inf, math.inf).max()),
        pairs=len(x),
        steps=steps,
        dt=dt,
        solver=solver,
        times=dt * torch.arange(steps + 1, dtype=d.dtype),
        distances=d,
        euclidean=euclidean,
    )


def excitatory_twin(net: Any, metric: Metric | None = None) -> Terms:
    """A control for feedback: the same modules and strengths, each coupled pair exciting each other.

    Feedback is Theta L Theta^-1 = U - U^T with U the blocks above the diagonal; the twin has U + U^T.
    """
    known = behaviour(net)
    terms, metric = known.terms, known.metric if metric is None else metric
    if terms is None or terms.L is None or metric is None:
        must = "the twin needs modules with linear coupling and a metric, and no gates that read input"
        raise ConfigError(f"{must} or state; got a net without. Couple modules, or use constant gates.")
    theta, inverse = metric.theta().to(terms.L), metric.inverse().theta().to(terms.L)
    upper = torch.triu(theta @ terms.L @ inverse, 1)
    return replace(terms, L=inverse @ (upper + upper.mT) @ theta)


def _summed(known: Behaviour, u: Tensor | None, x: Tensor, dt: float) -> Tensor:
    """What is added up to the states x, (pairs, steps + 1, n), without signs; u is (pairs, steps, m).

    |x_k+1| + |x_k| + dt / tau (|x_k| + g (|W| |pre(x_k)| + |b| + |W_in| |u_k|) + |L| |x_k| + ...).
    """
    size, terms = x.abs(), known.terms
    added = torch.ones_like(x[:, 1:])
    if terms is not None:
        positive = terms.mapped(torch.abs)
        before = x[:, :-1].flatten(0, 1)
        drive = positive.inject(None if u is None else u.abs().flatten(0, 1))
        inner = positive.apply_weight(terms.pre(before).abs()) + drive
        total = before.abs() + terms.post.g * inner
        if positive.L is not None:
            total = total + before.abs() @ positive.L.mT
        for edge in positive.edges:
            total = total + edge.psi(before).abs() @ edge.K.mT
        added = dt * (total / terms.tau).view(added.shape)
    return torch.cat([size[:, :1], size[:, 1:] + size[:, :-1] + added], 1)


def _fitted_rate(d: Tensor, above: Tensor, dt: float) -> float:
    """The smallest of minus the least-squares slopes of log d(t), averages of the intervals' slopes."""
    finite = torch.isfinite(d)
    mask = (above & finite).cummin(1).values.to(d)
    t, counts = dt * np.arange(d.shape[1]), mask.sum(1).long().tolist()
    known = [(t[:k], pair[:k].log()) for pair, k in zip(d, counts, strict=True) if k >= 2]
    slopes = [float(np.polyfit(times, logs, 1)[0]) for times, logs in known]
    return -max(slopes) if slopes else math.inf if bool(finite.all()) else -math.inf
