"""The factor of a forward Euler step, y + dt (J y + K y), and the largest dt that contracts.

Two bounds, the better one counts (THEORY section 6, in the coordinates of `assembled`):

disc:  if ||J + nu I|| <= eps for all slopes, sigma = ||sym K|| and omega = ||K||, then
       q = sqrt((1 - dt nu)^2 + 2 dt |1 - dt nu| sigma + dt^2 omega^2) + dt eps

LMI:   with J = A + B (slopes) C from the loops, T scaled by kappa > 0 and G = [A + K, B],
       Z = [[-2 sym(A + K) - 2 mu I, -(B + kappa C^T)], [., 2 kappa I]] - dt G^T G > 0
       proves q^2 = 1 - 2 dt mu. It is as tight as a quadratic metric and these multipliers allow.

For the LMI, kappa and mu are searched without rigour, and Z is then proven positive definite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ctrnn_assembly.certificates.interconnection import Interconnection, block_norms
from ctrnn_assembly.certificates.rounding import (
    DENSE,
    UNIT,
    gamma,
    guess_largest,
    guess_norm,
    is_positive_definite,
    spectral_norm,
)
from ctrnn_assembly.linalg import symmetric_part

# What a proven bound may leave to a sharper one: shrunk guesses, from almost none to half.
SHRINK = (1e-7, 1e-5, 1e-3, 1e-2, 0.1, 0.5)


@dataclass(frozen=True)
class EulerStep:
    """The Euler step of clusters of modules, with nonlinear edges between them.

    Attributes:
        parts: the LMI of each cluster.
        edges: bounds on the edges between clusters, (c, c), or None.
    """

    parts: tuple[StepLMI, ...]
    edges: Tensor | None

    @classmethod
    def coupled(cls, assembled: Interconnection) -> EulerStep:
        """The step of the whole: a cluster is what linear coupling joins."""
        clusters = assembled.clusters()
        parts = tuple(StepLMI(assembled.part(cluster)) for cluster in clusters)
        return cls(parts, _edges_between(assembled, clusters))

    @classmethod
    def alone(cls, assembled: Interconnection) -> EulerStep:
        """The step without the linear coupling: every module is a cluster."""
        modules = [[k] for k in range(len(assembled.sizes))]
        parts = tuple(StepLMI(assembled.part(k, coupled=False)) for k in modules)
        return cls(parts, assembled.gains)

    def factor(self, dt: float) -> float:
        """An upper bound on the factor of a step of length dt; infinite if none is proven."""
        gains = [min(disc_factor(part.assembled, dt), part.factor(dt)) for part in self.parts]
        if self.edges is None or not all(math.isfinite(gain) for gain in gains):
            return max(gains)
        factors = torch.diag(torch.tensor(gains, dtype=self.edges.dtype)) + dt * self.edges
        return spectral_norm(factors, 1e-14 * float(factors.norm()))

    @cached_property
    def max_dt(self) -> float:
        """A dt up to which every step contracts, as large as the two bounds prove; 0 for none."""
        largest = min(max(disc_max_dt(part.assembled), part.max_dt) for part in self.parts)
        return largest if self.edges is None else last_contracting(self.factor, largest)


def disc_factor(assembled: Interconnection, dt: float) -> float:
    """The disc bound on the factor."""
    nu, eps = common_disc(assembled)
    sigma, omega = assembled.symmetric_norm, assembled.norm
    left, turn = 1 - dt * nu, dt * omega
    rotation = left * left + 2 * dt * abs(left) * sigma + turn * turn  # infinite rather than an error
    return (math.sqrt(rotation) + dt * eps) * (1 + 8 * UNIT)


def disc_max_dt(assembled: Interconnection) -> float:
    """2 (nu - eps) / (omega^2 + nu^2 - eps^2), less what rounding of the coupling takes."""
    nu, eps = common_disc(assembled)
    if nu <= eps:
        return 0.0
    largest = 2 * (nu - eps) / (assembled.norm * assembled.norm + (nu - eps) * (nu + eps))
    return next(
        (dt for dt in (largest * (1 - s) for s in SHRINK) if disc_factor(assembled, dt) < 1), 0.0
    )


def common_disc(assembled: Interconnection) -> tuple[float, float]:
    """nu, eps of all modules at once."""
    low = min(m.disc[0] - m.disc[1] for m in assembled.modules)
    high = max(m.disc[0] + m.disc[1] for m in assembled.modules)
    return (low + high) / 2, (high - low) / 2 * (1 + 4 * UNIT)


@dataclass(frozen=True)
class StepLMI:
    """The LMI of one cluster of modules."""

    assembled: Interconnection

    @cached_property
    def weighted(self) -> list[tuple[Tensor, Tensor, float]]:
        """B, C and their errors for each module."""
        return [module.loop.weigh(module.T) for module in self.assembled.modules]

    @cached_property
    def A(self) -> Tensor:
        """blkdiag(A_i) + K, (n, n)."""
        return torch.block_diag(*(m.loop.A for m in self.assembled.modules)) + self.assembled.K

    @cached_property
    def B(self) -> Tensor:
        """(n, n), block-diagonal."""
        return torch.block_diag(*(B for B, _, _ in self.weighted))

    @cached_property
    def C(self) -> Tensor:
        """(n, n), block-diagonal."""
        return torch.block_diag(*(C for _, C, _ in self.weighted))

    @cached_property
    def groups(self) -> list[slice]:
        """Units whose couplings do not cancel: one group a module for feedback, else one for all."""
        n = len(self.assembled.K)
        if not self.assembled.is_feedback:
            return [slice(0, n)]
        ends = torch.tensor(self.assembled.sizes).cumsum(0).tolist()
        return [slice(e - s, e) for e, s in zip(ends, self.assembled.sizes, strict=True)]

    @cached_property
    def best(self) -> tuple[float, float]:
        """The largest dt at mu = 0 over kappa, and that kappa; unproven."""

        def minus_log(t: float) -> float:
            value = self._largest(1 + 10**t)
            return -math.log(value) if value > 0 else 1e3

        options = {"xatol": 0.02, "maxiter": 16 if len(self.A) <= DENSE else 5}
        t = float(minimize_scalar(minus_log, bounds=(-3.5, 1.5), method="bounded", options=options).x)
        return self._largest(1 + 10**t), 1 + 10**t

    @cached_property
    def max_dt(self) -> float:
        """A dt that is proven to contract; 0 for none."""
        dt, kappa = self.best
        tries = (dt * (1 - s) for s in SHRINK) if dt > 0 else ()
        return next((h for h in tries if self._proves(h, 0.0, kappa)), 0.0)

    def factor(self, dt: float) -> float:
        """The proven factor of a step of length dt; infinite if none is."""
        largest, kappa = self.best
        if not 0 < dt < largest:
            return math.inf
        if len(self.A) <= DENSE:
            options = {"xatol": 0.05, "maxiter": 8 if len(self.A) > 256 else 20}
            found = minimize_scalar(
                lambda t: -max(-1e9, self._mu(dt, 1 + 10**t)),
                bounds=(-3.5, 1.5),
                method="bounded",
                options=options,
            )
            kappa = max(kappa, 1 + 10 ** float(found.x), key=lambda k: self._mu(dt, k))
        mu = self._mu(dt, kappa)
        for shrink in SHRINK if mu > 0 else ():
            proven = mu * (1 - shrink)
            if 2 * dt * proven < 1 and self._proves(dt, proven, kappa):
                return math.sqrt(1 - 2 * dt * proven) * (1 + 4 * UNIT)
        return math.inf

    def _largest(self, kappa: float) -> float:
        """1 / ||G P^-1/2||^2 for P = Z at dt = 0, mu = 0; 0 if P is not positive."""
        columns = []
        for group in self.groups:
            A, B, C = (X[group, group] for X in (self.A, self.B, self.C))
            corner = -(B + kappa * C.mT)
            eye = torch.eye(len(A), dtype=A.dtype)
            top = torch.cat([-2 * symmetric_part(A), corner], dim=1)
            P = torch.cat([top, torch.cat([corner.mT, 2 * kappa * eye], dim=1)])
            factor, failed = torch.linalg.cholesky_ex(P)
            if int(failed):
                return 0.0
            G = torch.cat([self.A[:, group], self.B[:, group]], dim=1)
            columns.append(torch.linalg.solve_triangular(factor.mT, G, upper=True, left=False))
        norm = guess_norm(torch.cat(columns, dim=1))
        return 1 / norm**2 if 0 < norm < math.inf else 0.0

    def _mu(self, dt: float, kappa: float) -> float:
        """The largest mu with Z >= 0, by eliminating w; unproven, -inf if there is none."""
        H = 2 * kappa * torch.eye(len(self.A), dtype=self.A.dtype) - dt * self.B.mT @ self.B
        factor, failed = torch.linalg.cholesky_ex(H)
        if int(failed):
            return -math.inf
        Y = self.B + kappa * self.C.mT + dt * (self.A.mT @ self.B)
        half = torch.linalg.solve_triangular(factor.mT, Y, upper=True, left=False)
        outer = 2 * symmetric_part(self.A) + dt * (self.A.mT @ self.A) + half @ half.mT
        return -guess_largest(symmetric_part(outer)) / 2

    def _proves(self, dt: float, mu: float, kappa: float) -> bool:
        """Whether Z is positive definite, rounding accounted for."""
        A, B, C, n = self.A, self.B, self.C, len(self.A)
        G = torch.cat([A, B], dim=1)
        Z = G.mT @ G
        Z *= -dt
        Z[:n, :n] -= 2 * symmetric_part(A)
        Z[:n, n:] -= B + kappa * C.mT
        Z[n:, :n] -= B.mT + kappa * C
        Z.diagonal()[:n] -= 2 * mu
        Z.diagonal()[n:] += 2 * kappa
        Z = symmetric_part(Z)
        modules = self.assembled.modules
        off_A = math.hypot(*(m.loop.A_error for m in modules)) + self.assembled.K_error
        off_A += 4 * UNIT * float(A.norm())
        off_B = math.hypot(*(error for _, _, error in self.weighted))
        size, off_G = float(G.norm()), off_A + off_B
        gram = size**2 * gamma(n + 4) + 2 * size * off_G + off_G**2
        rounding = 8 * UNIT * (float(Z.norm()) + 2 * mu * n + 2 * kappa * n)
        return is_positive_definite(Z, 2 * off_A + (1 + kappa) * off_B + dt * gram + rounding)


def _edges_between(assembled: Interconnection, clusters: list[list[int]]) -> Tensor | None:
    """Bounds on the nonlinear edges between clusters, or None without edges."""
    if assembled.gains is None:
        return None
    order = [k for cluster in clusters for k in cluster]
    sorted_gains = assembled.gains[order][:, order]
    return block_norms(sorted_gains, tuple(len(cluster) for cluster in clusters))


def last_contracting(gain: Callable[[float], float], largest: float) -> float:
    """A dt up to `largest` with gain(dt) < 1, by halving and one bisection; 0 for none.

    Contraction of I + dt J for every J of a convex set holds on an interval of dt.
    """
    low = next((h for h in (largest * 0.5**k for k in range(30)) if gain(h) < 1), 0.0)
    high = min(largest, 2 * low)
    for _ in range(12 if low > 0 else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) < 1 else (low, middle)
    return low
