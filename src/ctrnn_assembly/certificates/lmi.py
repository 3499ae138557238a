"""The inequality behind every rate and step: sectors against a quadratic form, and its multipliers.

A `LureSystem` is y' = A y + X w with w o (Z y - w) >= 0. For diagonal T > 0 one matrix inequality bounds
how fast |y| falls, or the factor of a step of Euler (`Weighed`); T, and a better metric, are found by
`Search` without rigour. Source: THEORY sections 2 and 6.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy import ndarray
from scipy.optimize import minimize
from torch import Tensor

from ctrnn_assembly.certificates import rounding
from ctrnn_assembly.certificates.rounding import UNIT, largest_proven
from ctrnn_assembly.linalg import symmetric_part

WORST = 1e9  # stands for infinity in a search


@dataclass(frozen=True)
class LureSystem:
    """A module in its metric: A, X, Z as above, (n, n), and g, the width of the slope interval.

    Or a whole assembly with X (n, m), Z (m, n) and slopes within [0, 1] for m channels of feedback.
    Bounds on rounding: A_error in the spectral norm, with what is uncertain of W; X_error of each
    column, Z_error of each row.
    """

    g: float
    A: Tensor
    X: Tensor
    Z: Tensor
    A_error: float
    X_error: Tensor
    Z_error: Tensor

    def part(self, units: Tensor) -> Self:
        """That of some units alone, and of the channels that read these."""
        Z = self.Z[:, units]
        kept = torch.nonzero((Z != 0).any(1)).flatten()
        A, X, errors = self.A[units][:, units], self.X[units][:, kept], (self.X_error, self.Z_error)
        return type(self)(self.g, A, X, Z[kept], self.A_error, *(error[kept] for error in errors))

    def weigh(self, T: Tensor) -> tuple[Tensor, Tensor, float]:
        """B = X T^-1/2, C = T^1/2 Z, and a bound on the error of both, for a multiplier T (n,)."""
        root = T.sqrt()
        B, C = self.X / root, root[:, None] * self.Z
        error = torch.cat([self.X_error / root, self.Z_error * root]).norm()
        return B, C, float(error) + 8 * UNIT * float(B.norm() + C.norm())

    def s_procedure_matrix(self, T: Tensor) -> tuple[Tensor, float]:
        """S of the S-procedure for T, and a bound on its error in the spectral norm."""
        B, C, off = self.weigh(T)
        Y = B + C.mT
        size = float(Y.norm())
        S = symmetric_part(self.A) + Y @ Y.mT / 4
        sums = rounding.gamma(len(S) + 8) * (size**2 + float(self.A.norm()))
        return symmetric_part(S), self.A_error + size * off + off**2 + sums


@dataclass(frozen=True)
class Weighed:
    """The LMI of a step: for T (m,) > 0, with B = Q X T^-1/2, C = T^1/2 Z and G = [Q A, B],

        [[-2 sym(Q A) - 2 mu I, -(B + C^T)], [., 2 I]] - dt G^T G > 0

    proves q^2 = 1 - 2 dt mu, by a Cholesky factorisation. T, over which the bound is convex, and mu are
    searched without rigour; `error` bounds what A, B and C are off.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    error: float

    @classmethod
    def of(cls, system: LureSystem, T: Tensor) -> Self:
        B, C, error = system.weigh(T)
        return cls(system.A, B, C, system.A_error + error)

    @torch.no_grad()
    def eliminated(self, dt: float) -> tuple[Tensor, Tensor] | None:
        """The matrix whose -lmax / 2 is mu, and H^-1 Y^T, which takes y to the worst w; unproven."""
        A, B = self.A, self.B
        H = 2 * torch.eye(B.shape[1], dtype=B.dtype) - dt * B.mT @ B
        factor, failed = torch.linalg.cholesky_ex(H)
        if int(failed):
            return None
        Y = B + self.C.mT + dt * (A.mT @ B)
        half = torch.linalg.solve_triangular(factor, Y.mT, upper=False)
        S = symmetric_part(2 * symmetric_part(A) + dt * (A.mT @ A) + half.mT @ half)
        if not bool(torch.isfinite(S).all()):
            return None
        return S, torch.linalg.solve_triangular(factor.mT, half, upper=True)

    def mu(self, dt: float) -> float:
        """The largest mu that the LMI allows; unproven, -inf if there is none."""
        found = self.eliminated(dt)
        return -math.inf if found is None else -rounding.guess_largest(found[0]) / 2

    def matrix(self, dt: float, mu: float) -> Tensor:
        n = len(self.A)
        G = torch.cat([self.A, self.B], dim=1)
        Z = -dt * (G.mT @ G)
        Z[:n, :n] -= 2 * symmetric_part(self.A)
        Z[:n, n:] -= self.B + self.C.mT
        Z[n:, :n] -= self.B.mT + self.C
        Z.diagonal()[:n] -= 2 * mu
        Z.diagonal()[n:] += 2
        return Z

    def proves(self, dt: float, mu: float) -> bool:
        """Whether the LMI holds, rounding accounted for.

        For errors a of A and b of B and C, each in the spectral norm, the computed matrix is off by
        2 a + 2 b in the terms without dt, by dt (2 ||G|| (a + b) + (a + b)^2) in dt G^T G, whose
        n products a sum round by gamma_n ||G||_F^2 more, and by a few roundings of each entry.
        """
        n, m = self.B.shape
        Z, off = self.matrix(dt, mu), self.error
        size = rounding.frobenius(torch.cat([self.A, self.B], dim=1))
        gram = size**2 * rounding.gamma(n + 4) + 2 * size * off + off**2
        entries = float(Z.norm() + self.C.norm()) + 2 * size + 2 * abs(mu) * n**0.5 + 2 * m**0.5
        sums = 8 * UNIT * (entries + dt * size**2)
        return rounding.is_positive_definite(symmetric_part(Z), 2 * off + dt * gram + sums)

    def factor(self, dt: float) -> float:
        """A proven bound on the factor; infinite for none."""
        mu = self.mu(dt)
        for share in rounding.BACK_OFFS if math.isfinite(mu) else ():
            lower = mu - share * abs(mu)
            if self.proves(dt, lower):
                gone = 2 * dt * lower
                return math.sqrt(max(0.0, 1 - gone) + 4 * UNIT * (1 + abs(gone))) * (1 + 4 * UNIT)
        return math.inf

    def longest(self) -> float:
        """The largest dt at mu = 0: 1 / ||G P^-1/2||^2, P the matrix at dt = 0; unproven, 0 for none."""
        factor, failed = torch.linalg.cholesky_ex(self.matrix(0.0, 0.0))
        if int(failed):
            return 0.0
        G = torch.cat([self.A, self.B], dim=1)
        norm = rounding.guess_norm(torch.linalg.solve_triangular(factor.mT, G, upper=True, left=False))
        return 1 / norm**2 if 0 < norm < math.inf else 0.0

    @property
    def max_dt(self) -> float:
        """Of Euler's step, all of whose shorter steps contract as well."""
        return largest_proven(self.longest(), lambda dt: self.proves(dt, 0.0))


@dataclass(frozen=True)
class Search:
    """A larger mu near `start`, of U A U^-1, U B k^-1/2 and k^1/2 C U^-1: over k > 0 and a metric's U.

    `modules` are the size of each and whether its U is upper triangular, else diagonal; none for U = I.
    """

    start: Weighed
    dt: float
    modules: tuple[tuple[int, bool], ...] = ()

    def point(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """U of each module and k (m,), from logarithms of diagonals and k, and what is above."""
        found = []
        for n, dense in self.modules:
            U, x = torch.diag(x[:n].exp()), x[n:]
            if dense:
                row, column = torch.triu_indices(n, n, 1)
                U, x = U.index_put((row, column), x[: len(row)]), x[len(row) :]
            found.append(U)
        return found, x.exp()

    def at(self, x: Tensor) -> Weighed:
        (blocks, k), (A, B, C) = self.point(x), (self.start.A, self.start.B, self.start.C)
        B, C = B / k.sqrt(), k.sqrt()[:, None] * C
        if blocks:
            U = torch.block_diag(*blocks)
            inverse = torch.linalg.inv_ex(U)[0]
            A, B, C = U @ A @ inverse, U @ B, C @ inverse
        return Weighed(A, B, C, 0.0)

    def slope(self, x: Tensor, here: Weighed, y: Tensor, w: Tensor, weights: Tensor) -> Tensor:
        """d/dx of sum_i weights_i (2 y.s + 2 w.C y + dt |s|^2), s = A y + B w, for columns y and w."""
        s = here.A @ y + here.B @ w
        v, read = 2 * weights * (y + self.dt * s), 2 * weights * w
        of_k = (read * (here.C @ y) - w * (here.B.mT @ v)).sum(1) / 2
        if not self.modules:
            return of_k
        # For dU = E U: dA = E A - A E, dB = E B and dC = -C E.
        E, parts, at = v @ s.mT - (here.A.mT @ v + here.C.mT @ read) @ y.mT, [], 0
        for U, (n, dense) in zip(self.point(x)[0], self.modules, strict=True):
            own = torch.linalg.solve_triangular(U.mT, E[at:, at:][:n, :n], upper=False, left=False)
            parts.append(own.diagonal() * U.diagonal())
            if dense:
                row, column = torch.triu_indices(n, n, 1)
                parts.append(own[row, column])
            at += n
        return torch.cat([*parts, of_k])

    def points(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        """U of each module and k, by L-BFGS on the largest eigenvalue, smoothed; unproven."""
        size = float(self.start.A.diagonal().abs().max()) + 1e-300
        entries = sum(n * (n + 1) // 2 if dense else n for n, dense in self.modules)

        def loss(x: ndarray, blur: float) -> tuple[float, ndarray]:
            point = torch.from_numpy(x)
            here = self.at(point)
            if (found := here.eliminated(self.dt)) is None:
                return WORST, np.zeros_like(x)
            values, y = torch.linalg.eigh(found[0])  # by the envelope theorem, at y and the worst w
            top = float(values[-1])
            width = blur * float(values[-1] - values[0]) + 1e-300
            slope = self.slope(point, here, y, found[1] @ y, torch.softmax(values / width, 0))
            smooth = top + width * float(torch.logsumexp((values - top) / width, 0))
            return smooth / (2 * size), (slope / (2 * size)).numpy()

        options = {"maxiter": 60, "maxfun": 100} if self.modules else {"maxiter": 25, "maxfun": 40}
        x = np.zeros(entries + self.start.B.shape[1])
        for blur in (1e-2, 1e-4) if math.isfinite(self.start.mu(self.dt)) else ():
            x = minimize(loss, x, args=(blur,), jac=True, method="L-BFGS-B", options=options).x
            yield self.point(torch.from_numpy(x))


def refined(system: LureSystem, T: Tensor, dt: float) -> Tensor:
    """T, or one of a larger mu, each entry sought by itself; unproven."""
    points = Search(Weighed.of(system, T), dt).points()
    return max((T, *(k * T for _, k in points)), key=lambda T: Weighed.of(system, T).mu(dt))
