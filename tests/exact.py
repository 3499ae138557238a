"""Exact worst cases over all slopes, from the definitions, in numpy; shares no code with the library.

tau x' = -x + W phi(x) (or phi(W x)) + L x + K psi(x) has in y = tau^1/2 Theta x, where its metric is
the Euclidean norm, the Jacobian F(d) = fixed + A diag(d) B, with one slope d_k a unit and one a source
of each nonlinear edge K psi. So has a step of a solver, G(d).

exact   The rate is -max over slopes of lmax(sym F), the factor of a step the max of ||G||. Both are
        maxima of functions convex in d, so the 2^m vertices of the box of slopes suffice (m <= 12).
        In float64; `precise_rate` does it in 50 digits.
search  For more slopes, ascent over vertices by signs from many starts; it bounds the rate from above
        and the factor from below, which is the side that convicts a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import mpmath
import numpy as np
from numpy import ndarray
from scipy.linalg import expm

VERTICES = 12  # slopes up to which all 2^m vertices are taken
Edges = tuple[tuple[ndarray, ndarray], ...]


@dataclass(frozen=True)
class Family:
    """fixed + s moving + A diag(d (s where `moves`, else 1)) B over the slopes low <= d <= high.

    `gain` chooses what is maximised: ||.|| - 1, else lmax(sym .). Both are convex in d and in s.
    """

    fixed: ndarray
    moving: ndarray
    A: ndarray
    B: ndarray
    low: ndarray
    high: ndarray
    moves: ndarray
    gain: bool

    def at(self, D: ndarray, s: float = 1.0) -> ndarray:
        """The matrices for slopes D (..., m), as (..., n, n)."""
        scaled = D * np.where(self.moves, s, 1)
        return self.fixed + s * self.moving + (self.A * scaled[..., None, :]) @ self.B

    @cached_property
    def corners(self) -> ndarray | None:
        """All vertices of the box, (2^m, m), or None if there are too many."""
        wide = np.flatnonzero(self.high > self.low)
        if len(wide) > VERTICES:
            return None
        bits = (np.arange(2 ** len(wide))[:, None] >> np.arange(len(wide))) & 1
        D = np.repeat(self.low[None], len(bits), 0)
        D[:, wide] = np.where(bits, self.high[wide], self.low[wide])
        return D

    def values(self, F: ndarray) -> ndarray:
        """lmax(sym F) or ||F|| - 1 of each matrix."""
        if self.gain:
            return np.sqrt(np.linalg.eigvalsh(F.swapaxes(-1, -2) @ F)[..., -1]) - 1
        return np.linalg.eigvalsh((F + F.swapaxes(-1, -2)) / 2)[..., -1]

    def worst(self, s: float = 1.0) -> tuple[float, ndarray]:
        """The largest value and its slopes: exact over the vertices, or a lower bound by search."""
        D = self._ascended(s) if self.corners is None else self.corners
        values = self.values(self.at(D, s))
        return float(values.max()), D[values.argmax()]

    def top(self, F: ndarray) -> tuple[ndarray, ndarray]:
        """u, v with u^T F v the value (+ 1 for gains), for one matrix or a batch."""
        if self.gain:
            u, _, v = np.linalg.svd(F)
            return u[..., 0], v[..., 0, :]
        v = np.linalg.eigh((F + F.swapaxes(-1, -2)) / 2)[1][..., -1]
        return v, v

    def signs(self, u: ndarray, v: ndarray, s: float = 1.0) -> ndarray:
        """The slopes that maximise u^T F(d) v, exactly, for vectors (..., n)."""
        push = (u @ self.A) * (v @ self.B.T) * np.where(self.moves, s, 1)
        return np.where(push > 0, self.high, self.low)

    def _ascended(self, s: float) -> ndarray:
        """Alternate between the top vectors and the slopes they prefer, from 8 starts."""
        rng = np.random.default_rng(0)
        D = np.where(rng.random((8, len(self.low))) < 0.5, self.low, self.high)
        D[0], D[1] = self.low, self.high
        for _ in range(25):
            better = self.signs(*self.top(self.at(D, s)), s)
            if (better == D).all():
                break
            D = better
        return D

    def boundary(self) -> float | None:
        """The s > 0 where the value, convex in s, turns from negative to positive; None without one."""
        s = 1.0
        while (found := self.worst(s))[0] <= 0:
            s *= 2
            if s > 1e6:
                return None
        for _ in range(40):  # Newton from the right of the root of a convex function: monotone
            value, D = found
            u, v = self.top(self.at(D, s))
            slope = float(u @ (self.moving + (self.A * (D * self.moves)) @ self.B) @ v)
            if slope <= 0 or value > slope * s * (1 - 1e-7):
                return None  # positive down to s = 0
            s -= value / slope
            if abs(value) <= 1e-13 * slope * s:
                break
            found = self.worst(s)
        return s


@dataclass(frozen=True)
class Field:
    """tau x' = -x + modules + L x + edges, in a metric.

    Args:
        W: the weights of all modules, (n, n).
        before: which units have phi before W, as W phi(x), (n,) bool; the others phi(W x).
        slopes: the least and largest slope of each phi, (n, 2).
        tau: (n,).  theta: Theta^T Theta is the metric, (n, n).  L: the linear coupling, (n, n).
        edges: nonlinear ones, K (n, n) and the slopes (n, 2) of psi for each source.
    """

    W: ndarray
    before: ndarray
    slopes: ndarray
    tau: ndarray
    theta: ndarray
    L: ndarray
    edges: Edges = ()

    @cached_property
    def balance(self) -> tuple[ndarray, ndarray]:
        """T = Theta tau^1/2 and its inverse, both (n, n)."""
        T = self.theta * np.sqrt(self.tau)
        return T, np.linalg.inv(T)

    @cached_property
    def factors(self) -> tuple[ndarray, ndarray, ndarray, ndarray]:
        """In x, the nonlinear part as left diag(d) right: (n, m), (m, n); its slopes, (m, 2), and
        which of them belong to an edge, (m,)."""
        n, eye = len(self.tau), np.eye(len(self.tau))
        left, right, box = [np.where(self.before, self.W, eye)], [], [self.slopes]
        right.append(np.where(self.before[:, None], eye, self.W))
        for K, slopes in self.edges:
            read = np.flatnonzero(np.abs(K).sum(0))
            left.append(K[:, read])
            right.append(eye[read])
            box.append(np.broadcast_to(slopes, (n, 2))[read])
        bounds = np.concatenate(box)
        return np.hstack(left), np.vstack(right), bounds, np.arange(len(bounds)) >= n

    @cached_property
    def balanced(self) -> tuple[ndarray, ndarray, ndarray, ndarray]:
        """In y: leak and coupling, (n, n) each; A (n, m) and B (m, n)."""
        T, inverse = self.balance
        left, right, _, _ = self.factors
        scaled = T / self.tau
        return -np.diag(1 / self.tau), scaled @ self.L @ inverse, scaled @ left, right @ inverse

    def _family(
        self, fixed: ndarray, moving: ndarray, explicit: ndarray, moves: ndarray | bool, gain: bool
    ) -> Family:
        _, _, A, B = self.balanced
        _, _, box, _ = self.factors
        moves = np.broadcast_to(moves, len(box))
        return Family(fixed, moving, explicit @ A, B, box[:, 0], box[:, 1], moves, gain)

    def rate_family(self, weights: bool = False, coupling: bool = False) -> Family:
        """F(d) of the field; `weights` and `coupling` are what s scales."""
        leak, K, _, _ = self.balanced
        fixed, moving = (leak, K) if coupling else (leak + K, 0 * K)
        moves = np.where(self.factors[3], coupling, weights)
        return self._family(fixed, moving, np.eye(len(K)), moves, False)

    def step_family(
        self, dt: float, solver: str, weights: bool = False, coupling: bool = False
    ) -> Family:
        """G(d) of one step; a linear coupling can be scaled with Euler only."""
        leak, K, _, _ = self.balanced
        n, eye, moving = len(K), np.eye(len(K)), 0 * K
        if solver == "euler":
            fixed, explicit = eye + dt * leak, dt * eye
            fixed, moving = (fixed, dt * K) if coupling else (fixed + dt * K, moving)
        elif solver == "imex":
            implicit = np.linalg.inv(eye - dt * K)
            fixed, explicit = implicit @ (eye + dt * leak), dt * implicit
        else:  # exp of [[F, I], [0, 0]] dt holds the integral of exp(t F)
            both = expm(np.block([[leak + K, eye], [moving, moving]]) * dt)
            fixed, explicit = both[:n, :n], both[:n, n:]
        moves = np.where(self.factors[3], coupling, weights)
        return self._family(fixed, moving, explicit, moves, True)

    def dt_family(self) -> Family:
        """I + s F(d): the Euler step as a function of its length."""
        leak, K, _, _ = self.balanced
        return self._family(np.eye(len(K)), leak + K, np.eye(len(K)), True, True)

    def rate(self) -> float:
        """The exact rate; for many slopes an upper bound of it."""
        return -self.rate_family().worst()[0]

    def factor(self, dt: float, solver: str) -> float:
        """The exact factor of a step; for many slopes a lower bound of it."""
        return 1 + self.step_family(dt, solver).worst()[0]

    def exact_rate(self) -> float:
        """The rate, where it is exact."""
        assert self.rate_family().corners is not None, "too many vertices"
        return self.rate()

    def precise_rate(self) -> float:
        """The exact rate in 50 digits, over the vertices that float64 cannot tell from the worst.

        For claims that float64 seems to refute: weights of 1e9 leave it an error of 1e-5.
        """
        family = self.rate_family()
        assert family.corners is not None
        F = family.at(family.corners)
        values, unsure = family.values(F), 1e-13 * float(np.abs(F).sum((1, 2)).max())
        near_worst = family.corners[values >= values.max() - unsure]
        left, right, _, _ = self.factors
        with mpmath.workdps(50):
            root = mpmath.diag([mpmath.sqrt(float(t)) for t in self.tau])
            T = mpmath.matrix(self.theta) * root
            inverse, leak = T**-1, mpmath.diag([1 / mpmath.mpf(float(t)) for t in self.tau])
            A, B, rest = map(mpmath.matrix, (left, right, self.L))
            rest, top = rest - mpmath.eye(len(self.tau)), -mpmath.inf
            for d in near_worst:
                J = T * leak * (A * mpmath.diag([float(v) for v in d]) * B + rest) * inverse
                top = max(top, *mpmath.eigsy((J + J.T) / 2, eigvals_only=True))
            return float(-top)
