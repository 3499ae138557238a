"""Contraction measured: pairs of trajectories under one input, and how fast they approach.

    d(t) = |Theta sqrt(tau) (x(t) - y(t))|,    factor of an interval = d(t + dt) / d(t)

A measurement can refute a certificate and never replace it: it sees some pairs, a certificate all.
What the theory says about the numbers, in the metric diag(tau) M of a certificate:

  * continuous time at certified rate lam: every factor is at most exp(-lam dt), so every local rate
    -log(factor) / dt and every fitted rate is at least lam;
  * a certified step of Euler, IMEX or exponential Euler: each factor is at most its
    `step.contraction_factor`;
  * the Euclidean distance may first grow, by sqrt(cond(diag(tau) M)) at most.

Local factors depend on where a pair is, in which direction it lies and how far apart: close pairs see
the Jacobian at one place, distant pairs its average. Hence both are measured, and `directions="worst"`
starts each pair where its first interval is slowest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from ctrnn_assembly.errors import ConfigError, DataError, ShapeError
from ctrnn_assembly.inputs import check_finite
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.solvers import GRID_METHODS, solve
from ctrnn_assembly.terms import Terms

Directions = Literal["random", "worst"]

# A distance below this many times its own error says nothing about a rate.
FLOOR = 1e4


@dataclass(frozen=True)
class Measurement:
    """How pairs of trajectories approached each other or parted; rates are per unit of time.

    Attributes:
        rate: smallest fitted rate of a pair in the metric, by least squares on log d(t) as long as
            d(t) is above the rounding floor (1e4 times the error of a step); infinite if all are below
            it after one interval.
        euclidean_rate: the same for the Euclidean distance.
        factor: largest factor of one interval in the metric; what rounding (for adaptive solvers,
            the tolerance) may have added is already taken off.
        growth: largest d(end) / d(0) in the metric; infinite if a trajectory overflowed.
        euclidean_peak: largest Euclidean distance at any time over its initial value.
        pairs, steps: what was measured: pairs of trajectories, and intervals of each.
        dt, method: the interval, in the unit of tau, and the solver.
    """

    rate: float
    euclidean_rate: float
    factor: float
    growth: float
    euclidean_peak: float
    pairs: int
    steps: int
    dt: float
    method: str

    @property
    def local_rate(self) -> float:
        """The rate over the worst interval, -log(factor) / dt."""
        return -math.log(self.factor) / self.dt if self.factor > 0 else math.inf

    @property
    def grows(self) -> bool:
        """Whether some pair ended farther apart, in the metric, than it began."""
        return self.growth > 1


@torch.no_grad()
def measure_contraction(
    field: Any,
    u: Tensor | None = None,
    *,
    dt: float,
    steps: int | None = None,
    method: str = "euler",
    metric: Metric | None = None,
    x0: Tensor | None = None,
    pairs: int = 8,
    spread: float = 1.0,
    distances: Sequence[float] = (1e-6, 1.0),
    directions: Directions = "random",
    rtol: float = 1e-12,
    generator: torch.Generator | None = None,
) -> Measurement:
    """Integrate pairs of trajectories under the same input, in float64 on the CPU, and compare them.

    Args:
        field: a `Subnetwork` or `Assembly`; or `Terms`, with `metric`.
        u: input samples held over each interval, (batch, steps, m); every sample meets every pair.
        dt: length of an interval (a step of grid solvers), in the unit of tau.
        steps: number of intervals, needed without u.
        method: one of `ctrnn_assembly.solvers.METHODS`; a continuous rate needs a tight one, dopri8.
        metric: M, in which, with tau, distances are taken; by default the field's own. `certify` may
            have searched for another (`Certificate.metric.origin`): its numbers hold in that one.
        x0: where the pairs start, (pairs, n); by default N(0, spread^2).
        pairs: pairs at each distance.
        distances: initial Euclidean distances.
        directions: of y(0) - x(0): "random", or "worst": where the distance in the metric falls
            slowest at first, Theta^-1 times the top eigenvector of sym(Theta J(x(0)) Theta^-1).
        rtol: relative tolerance of torchdiffeq's methods; the absolute one is rtol / 100.

    Returns:
        a `Measurement`. A diverging network is reported by `growth` and a negative `rate`.

    Raises:
        DataError: if the weights, the metric, x0 or the input are NaN or infinite.
        ShapeError, ConfigError: for settings that do not fit.
        SolverError: if an adaptive solver cannot meet rtol; grid solvers never fail.
    """
    terms, theta = _field_in_double(field, metric)
    u = _checked_input(terms, u, steps)
    x, size = _starts(terms.n, x0, pairs, spread, distances, generator)
    drive = u.repeat_interleave(len(x), 0) if len(u) > 1 else u.expand(len(x), -1, -1)
    x, size = x.repeat(len(u), 1), size.repeat(len(u), 1)
    y = x + size * _directions(terms, theta, x, drive[:, 0], directions, generator)
    states = solve(
        terms,
        torch.cat([x, y]),
        u=drive.repeat(2, 1, 1),
        dt=dt,
        method=method,
        rtol=rtol,
        atol=rtol / 100,
    ).x
    x, y = states.chunk(2)
    d, euclidean = ((x - y) @ theta.mT).norm(dim=-1), (x - y).norm(dim=-1)
    size = _size(terms, x, drive, dt) + _size(terms, y, drive, dt)
    exact = method in GRID_METHODS
    relative = (8 + terms.n) * torch.finfo(torch.float64).eps if exact else 16 * rtol
    error = _error(theta, size if exact else size + 0.01, relative)  # 0.01 for the absolute tolerance
    return Measurement(
        rate=_fitted_rate(d, d > FLOOR * error, dt),
        euclidean_rate=_fitted_rate(euclidean, d > FLOOR * error, dt),
        factor=_largest_factor(d, error),
        growth=_largest(d[:, -1] / d[:, 0]),
        euclidean_peak=_largest(euclidean / euclidean[:, :1]),
        pairs=len(x),
        steps=u.shape[1],
        dt=dt,
        method=method,
    )


def _field_in_double(field: Any, metric: Metric | None) -> tuple[Terms, Tensor]:
    """The field as its weights are now, and Theta sqrt(tau), (n, n), cast up to float64."""
    terms = field if isinstance(field, Terms) else field.terms()
    if metric is None and isinstance(field, Terms):
        raise ConfigError(
            "Terms have no metric of their own; got metric=None. Give metric=..., for the Euclidean "
            "distance Metric((Factor.identity(terms.n, terms.tau),))."
        )
    metric = field.metric() if metric is None else metric
    if metric.size != terms.n:
        raise ShapeError(f"the metric must be for {terms.n} units; got one for {metric.size}.")
    terms = terms.double()
    theta = metric.theta().to(terms.tau) * terms.tau.sqrt()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*terms.tensors(), theta)):
        raise DataError(
            "the weights and the metric must be finite; got NaN or infinite entries. "
            "Load or build the network again."
        )
    return terms, theta


def _checked_input(terms: Terms, u: Tensor | None, steps: int | None) -> Tensor:
    """The input, (batch, steps, m), in float64; zeros without one.

    Zeros rather than nothing: adaptive solvers then end a step at every sample instead of
    interpolating, which would cost more than the tolerance.
    """
    m = terms.n if terms.W_in is None else terms.W_in.shape[1]
    if u is None:
        if steps is None or steps < 1:
            raise ConfigError(f"steps must be at least 1 without an input; got {steps}.")
        return terms.tau.new_zeros(1, steps, m)
    if u.ndim != 3 or u.shape[2] != m or 0 in u.shape or steps not in (None, u.shape[1]):
        wanted = "at least one of them" if steps is None else f"steps = {steps}"
        raise ShapeError(f"u must be (batch, steps, m) with m = {m} and {wanted}; got {tuple(u.shape)}.")
    check_finite(u)
    return u.to(terms.tau)


def _starts(
    n: int,
    x0: Tensor | None,
    pairs: int,
    spread: float,
    distances: Sequence[float],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Where pairs start, (len(distances) pairs, n), and their initial distances, (., 1)."""
    if x0 is None:
        if pairs < 1 or not 0 <= spread < math.inf:
            raise ConfigError(f"need pairs >= 1 and a finite spread >= 0; got {pairs} and {spread}.")
        x0 = spread * torch.randn(pairs, n, generator=generator, dtype=torch.float64)
    if x0.ndim != 2 or x0.shape[1] != n or len(x0) < 1:
        raise ShapeError(f"x0 must be (pairs, {n}); got {tuple(x0.shape)}.")
    check_finite(x0)
    if not distances or not all(0 < distance < math.inf for distance in distances):
        raise ConfigError(f"distances must be positive and finite; got {tuple(distances)}.")
    size = torch.tensor(distances, dtype=torch.float64).repeat_interleave(len(x0))
    return x0.to("cpu", torch.float64).repeat(len(distances), 1), size[:, None]


def _directions(
    terms: Terms,
    theta: Tensor,
    x: Tensor,
    u: Tensor,
    kind: Directions,
    generator: torch.Generator | None,
) -> Tensor:
    """A unit vector for each start x under the input u, (pairs, n)."""
    if kind not in get_args(Directions):
        raise ConfigError(f"directions must be random or worst; got {kind!r}.")
    if kind == "random":
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    else:
        J = vmap(jacrev(lambda a, b: terms(a[None], b[None])[0]))(x, u)  # (pairs, n, n)
        inverse = torch.linalg.inv(theta)
        v = torch.linalg.eigh(symmetric_part(theta @ J @ inverse))[1][..., -1] @ inverse.mT
    return v / v.norm(dim=1, keepdim=True)


def _size(terms: Terms, x: Tensor, u: Tensor, dt: float) -> Tensor:
    """What is added up to the states x, (pairs, steps + 1, n), without signs; u is (pairs, steps, m).

    |x_k+1| + |x_k| + dt / tau (|x_k| + g (|W| |pre(x_k)| + |b| + |W_in| |u_k|) + |L| |x_k| + ...).
    """
    z = x[:, :-1].flatten(0, 1)
    W_in = None if terms.W_in is None else terms.W_in.abs()
    blocks = tuple(W.abs() for W in terms.blocks)
    positive = replace(terms, blocks=blocks, bias=terms.bias.abs(), W_in=W_in)
    inside = positive.apply_weight(terms.pre(z).abs()) + positive.inject(u.flatten(0, 1).abs())
    total = z.abs() + max(phi.g for phi, _ in terms.post.runs) * inside
    if terms.L is not None:
        total = total + z.abs() @ terms.L.abs().mT
    for edge in terms.edges:
        total = total + edge.psi(z).abs() @ edge.K.abs().mT
    summed = x[:, 1:].abs() + x[:, :-1].abs() + dt * (total / terms.tau).reshape(x[:, 1:].shape)
    return torch.cat([x[:, :1].abs(), summed], 1)


def _error(theta: Tensor, size: Tensor, relative: float) -> Tensor:
    """An estimate of what one step may add to a distance in the metric, (pairs, steps + 1)."""
    return (relative * (size @ theta.abs().mT).norm(dim=-1)).nan_to_num(nan=math.inf)


def _largest_factor(d: Tensor, error: Tensor) -> float:
    """max (d(t + dt) - error) / d(t) over pairs and intervals with finite distances."""
    usable = torch.isfinite(d[:, 1:]) & (d[:, :-1] > 0)
    factors = ((d - error)[:, 1:] / d[:, :-1])[usable]
    return max(float(factors.max()), 0.0) if len(factors) else math.inf


def _fitted_rate(d: Tensor, above: Tensor, dt: float) -> float:
    """The smallest of minus the least-squares slopes of log d(t) over t, while `above` holds.

    Such a slope is an average of the slopes of the intervals with positive weights.
    """
    finite = torch.isfinite(d)
    mask = (above & finite).cummin(1).values.to(d)
    count = mask.sum(1, keepdim=True)
    t = (dt * torch.arange(d.shape[1]).to(d)).expand_as(d)
    t = (t - (t * mask).sum(1, keepdim=True) / count) * mask
    log_d = torch.where(mask > 0, d, 1.0).log()
    slopes = ((t * log_d).sum(1) / t.square().sum(1))[count[:, 0] >= 2]
    if len(slopes):
        return -float(slopes.max())
    return math.inf if bool(finite.all()) else -math.inf


def _largest(ratios: Tensor) -> float:
    """The largest, infinite if one is not a number."""
    return float(ratios.nan_to_num(nan=math.inf, posinf=math.inf).max())
