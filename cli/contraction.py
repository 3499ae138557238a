"""Distances between trajectories under one input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ctrnn_assembly.metrics import Metric
    from ctrnn_assembly.terms import Terms


@dataclass(frozen=True)
class Distances:
    """Of pairs of trajectories, one row a pair: in the metric and Euclidean, (pairs, T + 1)."""

    times: Tensor
    metric: Tensor
    euclidean: Tensor

    @property
    def largest_factor(self) -> float:
        """The largest factor of one step in the metric, above the rounding floor."""
        before, after = self.metric[:, :-1], self.metric[:, 1:]
        kept = before > 1e-9 * self.metric[:, :1]
        return float((after / before)[kept].max())


def distances(
    terms: Terms, metric: Metric, u: Tensor, *, dt: float, method: str, pairs: int, spread: float
) -> Distances:
    """Distances of `pairs` pairs for each sequence u (batch, T, m), in float64.

    |x - y| in the metric diag(tau) M is |Theta tau^1/2 (x - y)|.
    """
    import torch

    from ctrnn_assembly.solvers import solve

    generator = torch.Generator().manual_seed(0)
    drive = u.repeat_interleave(pairs, 0)
    shape = (len(drive), terms.n)
    x, y = (spread * torch.randn(shape, generator=generator, dtype=u.dtype) for _ in range(2))
    both = solve(terms, torch.cat([x, y]), u=drive.repeat(2, 1, 1), dt=dt, method=method)
    x, y = both.x.chunk(2)
    theta = metric.theta().to(x) * terms.tau.to(x).sqrt()
    times = torch.arange(x.shape[1], dtype=x.dtype) * dt
    return Distances(times, ((x - y) @ theta.mT).norm(dim=-1), (x - y).norm(dim=-1))


def excited(terms: Terms, metric: Metric) -> Terms:
    """The same modules, each coupled pair with the signs of mutual excitation in the metric.

    In balanced form feedback is K = U - U^T with U the blocks above the diagonal; this is U + U^T.

    Raises:
        ConfigError: without linear coupling.
    """
    import torch

    from ctrnn_assembly.errors import ConfigError

    if terms.L is None:
        raise ConfigError("--twin needs a network with linear coupling; this one has none.")
    theta, inverse = metric.theta().to(terms.L), metric.theta_inv().to(terms.L)
    upper = torch.triu(theta @ terms.L @ inverse, 1)
    return replace(terms, L=inverse @ (upper + upper.mT) @ theta)
