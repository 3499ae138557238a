"""Does a certificate ever say yes wrongly? Nets at the boundary of what contracts, and exact checks.

python experiments/no_false_yes.py [--nets 10000] [--seed 0] [--json FILE]

Every net is written in y = tau^1/2 Theta x, where its metric is the Euclidean norm, as
F(D) = fixed + A diag(d) B with one slope d_k a unit (and one a source of a nonlinear edge):

exact   The rate is -max over slopes of lmax(sym F), the factor of a step the max of ||G(D)||. Both are
        maxima of functions convex in d, so the 2^m vertices of the box of slopes suffice (m <= 12).
        In float64; a rate that it refutes is computed again in 50 digits before it counts.
search  For the large nets (16 to 64 units), ascent over vertices by signs from many starts; it bounds
        the rate from above and the factor from below, which is the side that convicts a certificate.
        The worst slopes then drive a linear time-varying system, whose growth is measured.

Each net's weights, coupling or dt are scaled to the root of its exact rate or of (factor - 1), by
Newton's method on a convex function, then moved off by 1e-6 to 5e-2, relative; every fourth is also
tried well inside. A false yes is a certified net that expands, or a claimed rate, factor or largest dt
better than the exact one by more than 1e-9 relative. Ctrl-C keeps what was counted.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.linalg import block_diag, expm, solve_continuous_lyapunov

from ctrnn_assembly import certificates
from ctrnn_assembly.activations import ACTIVATIONS, Activation, Elementwise
from ctrnn_assembly.certificates import Certificate, certify
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Edge, Terms
from ctrnn_assembly.training.provenance import processor

IDENTITY = ACTIVATIONS["identity"]
SIGNED = [(-0.5, 1.0), (-1.0, -0.2), (-0.3, 0.6)]
MONOTONE = [ACTIVATIONS[name] for name in ("tanh", "relu", "sigmoid", "selu", "softplus")]
MONOTONE += [Activation(f"slopes {s}", torch.tanh, s) for s in ((0.2, 0.8), (0.0, 3.0))]
ANY = [*MONOTONE, *(ACTIVATIONS[name] for name in ("gelu", "silu"))]
ANY += [Activation(f"slopes {s}", torch.tanh, s) for s in SIGNED]
LINEAR = [IDENTITY, *(Activation(f"slope {s}", torch.tanh, (s, s)) for s in (0.7, -0.6))]

NUMBERED = ("Theorem 1", "Theorem 2", "Theorem 3", "Theorem 4", "Theorem 5", "Theorem 5+ (skew)")
KINDS = (*NUMBERED, "AdaDiag (diagonal)", "linear", "other", "mixed")
FORMS = ("x", "r", "x and r")
COUPLINGS = ("none", "feedback", "hierarchy", "nonlinear hierarchy", "free")
SOLVERS = ("euler", "imex", "exponential-euler")
ONE = [(1,), (2,), (2,), (3,), (3,), (4,), (5,), (6,), (8,)]
SEVERAL = [
    (1, 1),
    (1, 1),
    (2, 1),
    (1, 2),
    (2, 2),
    (1, 1, 1),
    (2, 3),
    (1, 2, 3),
    (3, 3),
    (2, 2, 2),
    (4, 4),
]
TWELVE = [(6, 6), (4, 4, 4), (5, 7)]

VERTICES = 12  # slopes up to which all 2^m vertices are taken
LARGE = 41  # one net in so many is large and attacked by search; prime, so that every class gets some
TOLERANCE = 1e-9
EXPANDS = 1e-12  # a factor so far above 1 expands: what float64 leaves uncertain is far below
MARGIN = 1e-3  # a no is false only if the exact rate, in units of 1 / tau, exceeds this
WORST_KEPT = 20


@dataclass(frozen=True)
class Net:
    """A net in numpy; `K` is the weight of a nonlinear edge K psi(x), all zero without one."""

    blocks: tuple[ndarray, ...]
    thetas: tuple[ndarray, ...]
    acts: tuple[Activation, ...]
    forms: tuple[str, ...]
    tau: ndarray
    L: ndarray
    K: ndarray
    psi: Activation

    @cached_property
    def balance(self) -> tuple[ndarray, ndarray]:
        """T = Theta tau^1/2 and its inverse, both (n, n)."""
        T = block_diag(*(matrix(theta) for theta in self.thetas)) * np.sqrt(self.tau)
        return T, np.linalg.inv(T)

    @cached_property
    def slopes(self) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray]:
        """A (n, m), B (m, n), low and high (m,), and which slopes belong to the edge (m,)."""
        W, eye, n = block_diag(*self.blocks), np.eye(len(self.tau)), len(self.tau)
        units = [(a, f) for a, f, b in zip(self.acts, self.forms, self.blocks, strict=True) for _ in b]
        inside = np.array([form == "r" for _, form in units])
        read = np.flatnonzero(np.abs(self.K).sum(0))
        left = np.hstack([np.where(inside, eye, W), self.K[:, read]])
        right = np.vstack([np.where(inside[:, None], W, eye), eye[read]])
        box = np.array([a.slope for a, _ in units] + [self.psi.slope] * len(read))
        T, inverse = self.balance
        edge = np.arange(n + len(read)) >= n
        return (T / self.tau) @ left, right @ inverse, box[:, 0], box[:, 1], edge

    @cached_property
    def linear(self) -> tuple[ndarray, ndarray]:
        """The leak and the coupling in y, (n, n) each."""
        T, inverse = self.balance
        return -np.diag(1 / self.tau), (T / self.tau) @ self.L @ inverse

    def scaled(self, s: float, weights: bool, coupling: bool) -> Net:
        """The same net with its weights, or its coupling, or both, times s."""
        w, c = s if weights else 1.0, s if coupling else 1.0
        return replace(self, blocks=tuple(w * W for W in self.blocks), L=c * self.L, K=c * self.K)

    def single(self) -> Net:
        """All tensors rounded to float32, kept in float64."""
        blocks, thetas = (tuple(map(rounded, part)) for part in (self.blocks, self.thetas))
        L, K, tau = rounded(self.L), rounded(self.K), rounded(self.tau)
        return replace(self, blocks=blocks, thetas=thetas, L=L, K=K, tau=tau)

    def fields(self, dtype: torch.dtype) -> tuple[Terms, Metric]:
        """What `certify` takes."""

        def tensor(x: ndarray) -> torch.Tensor:
            return torch.tensor(x, dtype=dtype)

        units = list(zip(self.acts, map(len, self.blocks), self.forms, strict=True))
        pre = Elementwise(tuple((a if f == "x" else IDENTITY, n) for a, n, f in units))
        post = Elementwise(tuple((IDENTITY if f == "x" else a, n) for a, n, f in units))
        psi = Elementwise(((self.psi, len(self.tau)),))
        edges = (Edge(tensor(self.K), psi),) if self.K.any() else ()
        L = tensor(self.L) if self.L.any() else None
        tau = tensor(self.tau)
        terms = Terms(tuple(map(tensor, self.blocks)), pre, post, 0 * tau, tau, L, edges)
        inverses = (1 / t if t.ndim == 1 else np.linalg.inv(t) for t in self.thetas)
        pairs = zip(self.thetas, inverses, strict=True)
        return terms, Metric(tuple(Factor(tensor(theta), tensor(inverse)) for theta, inverse in pairs))

    def module(self, k: int) -> Net:
        """One module alone."""
        n = len(self.blocks[k])
        at = slice(start := sum(map(len, self.blocks[:k])), start + n)
        none = np.zeros((n, n))
        W, theta, act, form = self.blocks[k], self.thetas[k], self.acts[k], self.forms[k]
        return Net((W,), (theta,), (act,), (form,), self.tau[at], none, none, self.psi)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, enough to rebuild the net."""
        return {
            "blocks": [W.tolist() for W in self.blocks],
            "thetas": [theta.tolist() for theta in self.thetas],
            "slopes": [list(a.slope) for a in self.acts],
            "forms": list(self.forms),
            "tau": self.tau.tolist(),
            "L": self.L.tolist(),
            "K": self.K.tolist(),
            "psi": list(self.psi.slope),
        }


def matrix(theta: ndarray) -> ndarray:
    """A factor as a matrix."""
    return np.diag(theta) if theta.ndim == 1 else theta


def rounded(x: ndarray) -> ndarray:
    """The float32 values, in float64."""
    return x.astype(np.float32).astype(np.float64)


# The exact check, and the search that replaces it for large nets


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

    def at(self, s: float, D: ndarray) -> ndarray:
        """The matrices for slopes D (v, m), (v, n, n)."""
        return (
            self.fixed + s * self.moving + (self.A * (D * np.where(self.moves, s, 1))[:, None]) @ self.B
        )

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
        if self.corners is None:
            return self._ascent(s)
        values = self.values(self.at(s, self.corners))
        return float(values.max()), self.corners[values.argmax()]

    def top(self, F: ndarray) -> tuple[ndarray, ndarray]:
        """u, v with u^T F v the value (+ 1 for gains), for one matrix or a batch."""
        if self.gain:
            u, _, v = np.linalg.svd(F)
            return u[..., 0], v[..., 0, :]
        v = np.linalg.eigh((F + F.swapaxes(-1, -2)) / 2)[1][..., -1]
        return v, v

    def signs(self, u: ndarray, v: ndarray, s: float) -> ndarray:
        """The slopes that maximise u^T F(d) v, exactly, for vectors (..., n)."""
        push = (u @ self.A) * (v @ self.B.T) * np.where(self.moves, s, 1)
        return np.where(push > 0, self.high, self.low)

    def _ascent(self, s: float) -> tuple[float, ndarray]:
        """A lower bound: alternate between the top vectors and the slopes they prefer, from 8 starts."""
        rng = np.random.default_rng(0)
        D = np.where(rng.random((8, len(self.low))) < 0.5, self.low, self.high)
        D[0], D[1] = self.low, self.high
        for _ in range(25):
            better = self.signs(*self.top(self.at(s, D)), s)
            if (better == D).all():
                break
            D = better
        values = self.values(self.at(s, D))
        return float(values.max()), D[values.argmax()]

    def slope(self, s: float, D: ndarray) -> float:
        """The derivative of the value with respect to s at fixed slopes."""
        u, v = self.top(self.at(s, D[None])[0])
        return float(u @ (self.moving + (self.A * (D * self.moves)) @ self.B) @ v)

    def boundary(self) -> float | None:
        """The s > 0 where the value, convex in s, turns from negative to positive; None without one."""
        s = 1.0
        while (found := self.worst(s))[0] <= 0:
            s *= 2
            if s > 1e6:
                return None
        for _ in range(40):  # Newton from the right of the root of a convex function: monotone
            value, D = found
            slope = self.slope(s, D)
            if slope <= 0 or value > slope * s * (1 - 1e-7):
                return None  # positive down to s = 0
            s -= value / slope
            if abs(value) <= 1e-13 * slope * s:
                break
            found = self.worst(s)
        return s


def rate_family(net: Net, weights: bool = False, coupling: bool = False) -> Family:
    """F(D) of the field; `weights` and `coupling` are what s scales."""
    A, B, low, high, edge = net.slopes
    leak, K = net.linear
    fixed, moving = (leak, K) if coupling else (leak + K, 0 * K)
    return Family(fixed, moving, A, B, low, high, np.where(edge, coupling, weights), False)


def precise_rate(net: Net) -> float:
    """The exact rate in 50 digits, over the vertices that float64 cannot tell from the worst.

    For claims that float64 seems to refute: weights of 1e9 leave it an error of 1e-5.
    """
    family, n = rate_family(net), len(net.tau)
    assert family.corners is not None
    F = family.at(1.0, family.corners)
    values, unsure = family.values(F), 1e-13 * float(np.abs(F).sum((1, 2)).max())
    near_worst = family.corners[values >= values.max() - unsure]
    with mpmath.workdps(50):
        root = mpmath.diag([mpmath.sqrt(float(t)) for t in net.tau])
        T = mpmath.matrix(block_diag(*(matrix(theta) for theta in net.thetas))) * root
        inverse, leak = T**-1, mpmath.diag([1 / mpmath.mpf(float(t)) for t in net.tau])
        W, L, K = (mpmath.matrix(X) for X in (block_diag(*net.blocks), net.L, net.K))
        inside = [form == "r" for form, b in zip(net.forms, net.blocks, strict=True) for _ in b]
        read, top = np.flatnonzero(np.abs(net.K).sum(0)), -mpmath.inf
        for d in near_worst:
            out = mpmath.diag([float(v) if r else 1 for v, r in zip(d[:n], inside, strict=True)])
            into = mpmath.diag([1 if r else float(v) for v, r in zip(d[:n], inside, strict=True)])
            edge = mpmath.diag([float(v) for v in np.bincount(read, d[n:], n)])
            J = T * leak * (out * W * into + L + K * edge - mpmath.eye(n)) * inverse
            top = max(top, *mpmath.eigsy((J + J.T) / 2, eigvals_only=True))
        return float(-top)


def step_family(
    net: Net, dt: float, solver: str, weights: bool = False, coupling: bool = False
) -> Family:
    """G(D) of one step; a linear coupling can be scaled with Euler only."""
    A, B, low, high, edge = net.slopes
    leak, K = net.linear
    eye, moving = np.eye(len(K)), 0 * K
    if solver == "euler":
        fixed, explicit = eye + dt * leak, dt * eye
        fixed, moving = (fixed, dt * K) if coupling else (fixed + dt * K, moving)
    elif solver == "imex":
        implicit = np.linalg.inv(eye - dt * K)
        fixed, explicit = implicit @ (eye + dt * leak), dt * implicit
    else:  # exp of [[F, I], [0, 0]] dt holds the integral of exp(t F)
        both = expm(np.block([[leak + K, eye], [moving, moving]]) * dt)
        fixed, explicit = both[: len(K), : len(K)], both[: len(K), len(K) :]
    return Family(fixed, moving, explicit @ A, B, low, high, np.where(edge, coupling, weights), True)


def dt_family(net: Net) -> Family:
    """I + s F(D): the Euler step as a function of its length."""
    A, B, low, high, _ = net.slopes
    leak, K = net.linear
    return Family(np.eye(len(K)), leak + K, A, B, low, high, np.ones(len(low), dtype=bool), True)


# Drawing nets


def random_block(rng: Generator, kind: str, n: int, form: str) -> tuple[ndarray, ndarray, Activation]:
    """W, theta and phi of one module of the kind, in the metric that its theorem names."""
    pool = MONOTONE if kind in ("Theorem 2", "Theorem 3") else LINEAR if kind == "linear" else ANY
    act = pool[rng.integers(len(pool))]
    if kind in ("Theorem 2", "Theorem 3"):
        W, theta = dense_block(rng, kind, n, form, act.g)
    elif kind in ("Theorem 1", "Theorem 4"):
        W, theta = sparse_block(rng, kind, n, act)
    else:
        W, theta = scaled_block(rng, kind, n, act)
    if rng.random() < 0.5:
        noise = rng.choice([1e-3, 0.03, 0.2]) * rng.normal(size=theta.shape)
        theta = theta * np.exp(noise) if theta.ndim == 1 else theta + noise * np.abs(theta).max() / n
    return W, theta, act


def dense_block(rng: Generator, kind: str, n: int, form: str, g: float) -> tuple[ndarray, ndarray]:
    """Theorem 2 (a symmetric W, R^-2 or R^2) or Theorem 3 (-P1 Q P2, (P1 Q P1)^-1 or P2 Q P2)."""
    E = rng.normal(size=(n, n))
    if kind == "Theorem 3":
        P1, P2 = np.diag(np.exp(rng.normal(size=n) / 2)), np.diag(np.exp(rng.normal(size=n) / 2))
        Q = E @ E.T / n + 0.1 * np.eye(n)
        M = np.linalg.inv(P1 @ Q @ P1) if form == "x" else P2 @ Q @ P2
        return -P1 @ Q @ P2, np.linalg.cholesky((M + M.T) / 2).T
    values, vectors = np.linalg.eigh(E + E.T)
    values = values / np.abs(values).max() * rng.uniform(0.3, 0.95) / g
    c = max(g * values[-1] + rng.choice([0, 0.01]), 0.05)
    R = math.sqrt(c) + np.sqrt(c - g * values)
    return (vectors * values) @ vectors.T, (vectors * (R if form == "r" else 1 / R)) @ vectors.T


def sparse_block(rng: Generator, kind: str, n: int, act: Activation) -> tuple[ndarray, ndarray]:
    """Theorem 1 or 4 (triangular): P = diag(e / d) of g |W|; half the weights are not negative."""
    V = rng.normal(size=(n, n)) * (rng.random((n, n)) < rng.uniform(0.3, 1.0))
    if kind == "Theorem 4":
        order = rng.permutation(n)
        V = (np.tril(V, -1) + np.diag(rng.uniform(-2, 1, n)))[order][:, order]
    V = np.abs(V) if rng.random() < 0.5 else V
    bound = np.abs(V) * act.g
    if act.monotone:
        bound[np.diag_indices(n)] = act.g * np.diag(V).clip(0)
    radius = max(np.abs(np.linalg.eigvals(bound)).max(), 0.1 * np.linalg.norm(bound), 1e-9)
    shrink = rng.uniform(0.3, 0.95) / radius
    open_loop = np.eye(n) - shrink * bound
    d, e = np.linalg.solve(open_loop, np.ones(n)), np.linalg.solve(open_loop.T, np.ones(n))
    usable = bool((d > 0).all() and (e > 0).all())
    return V * shrink, np.sqrt(e / d) if usable else np.ones(n)


def scaled_block(rng: Generator, kind: str, n: int, act: Activation) -> tuple[ndarray, ndarray]:
    """Theorems 5, 5+, AdaDiag, linear, other: theta^-1 X theta for a random X in a random metric."""
    E = rng.normal(size=(n, n))
    theta = np.exp(rng.choice([0.0, 0.3, 1.0, 3.0]) * rng.normal(size=n))
    if kind == "AdaDiag (diagonal)":
        W = np.diag(rng.uniform(-1, 1, n))
        return W / act.g, theta if rng.random() < 0.4 else np.ones(n)
    X = E
    if kind == "Theorem 5+ (skew)":
        F = rng.normal(size=(n, n))
        X = E - E.T + rng.choice([0, 0.1, 0.5]) * F - rng.choice([0, 0.3]) * F @ F.T
    elif kind != "Theorem 5":
        X = [E, E - E.T, E + E.T, -E @ E.T, np.triu(E), 0.2 * E - np.diag(np.abs(E[0]))][rng.integers(6)]
        if rng.random() < 0.5:
            theta = np.linalg.qr(E + np.eye(n))[0] * theta @ (np.eye(n) + 0.3 * rng.normal(size=(n, n)))
    X = X / max(np.linalg.norm(X, 2), 1e-9) * rng.uniform(0.3, 1.2) / act.g
    T = matrix(theta)
    W = np.linalg.solve(T, X @ T) if kind != "other" or rng.random() < 0.7 else X
    if kind == "linear" and rng.random() < 0.5:
        J = act.slope[1] * W - np.eye(n)
        if np.linalg.eigvals(J).real.max() < -0.05:
            M = solve_continuous_lyapunov(J.T, -np.eye(n))
            theta = np.linalg.cholesky((M + M.T) / 2).T
    return W, theta


@dataclass(frozen=True)
class Label:
    """The class of a net."""

    kind: str
    form: str
    coupling: str
    solver: str


def random_sizes(rng: Generator, coupling: str, form: str, large: bool) -> tuple[int, ...]:
    """Sizes of the modules; a nonlinear edge adds a slope a source, so such nets are smaller."""
    several = "hierarchy" in coupling or form == "x and r" or rng.random() < 0.6
    if large:
        return tuple(
            int(k) for k in rng.integers(4, 17, size=4 if several else 1) + (0 if several else 12)
        )
    if rng.random() < 0.01 and coupling in ("none", "feedback", "hierarchy"):
        return TWELVE[rng.integers(len(TWELVE))]
    pool = SEVERAL if several else ONE
    if coupling in ("nonlinear hierarchy", "free"):
        pool = [sizes for sizes in pool if sum(sizes) <= 5]
    return pool[rng.integers(len(pool))]


def random_net(rng: Generator, label: Label, large: bool) -> Net:
    """A net of the class; its scale comes later."""
    sizes = random_sizes(rng, label.coupling, label.form, large)
    mixed = ["x", "r", *rng.choice(["x", "r"], len(sizes))]
    forms = mixed[: len(sizes)] if label.form == "x and r" else [label.form] * len(sizes)
    kinds = KINDS[:-1] if label.kind == "mixed" else (label.kind,)
    parts = [
        random_block(rng, kinds[rng.integers(len(kinds))], n, f)
        for n, f in zip(sizes, forms, strict=True)
    ]
    blocks, thetas, acts = zip(*parts, strict=True)
    taus, nested = [], rng.choice([1.0, 0.5, 0.1]) ** np.arange(len(sizes))
    spread, several = rng.choice([0, 0, 0.5, 1.5, 3]), rng.random() < 0.4
    for n, theta in zip(sizes, thetas, strict=True):
        each = several and theta.ndim == 1
        taus.append(np.exp(spread * rng.normal(size=n if each else 1)) * np.ones(n))
    tau = np.concatenate(taus) * rng.choice([0.01, 1, 1, 30])
    none = np.zeros((len(tau), len(tau)))
    thetas = tuple(theta * scale for theta, scale in zip(thetas, nested, strict=True))
    psi = ANY[rng.integers(len(ANY))]
    net = Net(blocks, thetas, acts, tuple(map(str, forms)), tau, none, none, psi)
    return coupled(rng, net, label.coupling)


def coupled(rng: Generator, net: Net, coupling: str) -> Net:
    """The net with a coupling of the class: feedback, one way, free, and a nonlinear edge."""
    sizes, n = tuple(map(len, net.blocks)), len(net.tau)
    T = block_diag(*(matrix(theta) for theta in net.thetas))
    later = np.repeat(np.arange(len(sizes)), sizes)
    one_way = (later[:, None] > later[None]).astype(float)
    K, E = rng.normal(size=(2, n, n)) / math.sqrt(n)
    if coupling == "feedback":
        K = (K - K.T) * rng.choice([0.1, 1, 5])
        K = K + rng.choice([0, 0, 1e-9, 1e-4, 0.02]) * E
        return replace(net, L=np.linalg.solve(T, K @ T))
    size = rng.choice([0.1, 0.4, 1.0])
    balanced, other = (np.linalg.solve(T, X * size @ T) for X in (K, E))
    if coupling == "hierarchy":
        return replace(net, L=one_way * balanced)
    if coupling == "nonlinear hierarchy":
        return replace(net, K=one_way * balanced, L=one_way * other * (rng.random() < 0.3))
    if coupling == "free":
        edge = rng.random() < 0.5
        return replace(net, L=balanced, K=other / 2 * edge)
    return net


@dataclass(frozen=True)
class Case:
    """A net, its step, and where it lies: "boundary" or "inside"."""

    label: Label
    net: Net
    dt: float
    place: str
    target: str
    large: bool
    dtype: torch.dtype


def near(rng: Generator) -> float:
    """1 + delta with |delta| from 1e-6 to 5e-2, on either side."""
    return 1 + rng.choice([-1, 1]) * 10 ** rng.uniform(-6, math.log10(0.05))


def tame(rng: Generator, net: Net, feedback: bool) -> Net | None:
    """Modules that contract alone, and a coupling that leaves a rate (feedback stays as it is)."""
    alone = replace(net, L=0 * net.L, K=0 * net.K)
    s = rate_family(alone, weights=True).boundary()
    if s is not None:
        factor = s * rng.uniform(0.4, 1.0)
        alone = alone.scaled(factor, weights=True, coupling=False)
    net = replace(net, blocks=alone.blocks)
    for _ in range(0 if feedback else 12):
        if rate_family(net).worst()[0] < 0:
            return net
        net = net.scaled(0.5, weights=False, coupling=True)
    return net


def draw(rng: Generator, label: Label, large: bool) -> Iterator[Case]:
    """One net at the boundary, every fourth also inside; Newton's method on the exact check."""
    for _ in range(50):
        found = _draw(rng, label, large)
        if found is not None:
            yield from found
            return
    raise RuntimeError(f"no net of the class {label} has a boundary")


def _draw(rng: Generator, label: Label, large: bool) -> list[Case] | None:
    """One attempt: None if the net has no boundary in what was scaled."""
    is_feedback = label.coupling == "feedback"
    net = tame(rng, random_net(rng, label, large), is_feedback)
    if net is None:
        return None
    dt = float(10 ** rng.uniform(-2.5, 0.3) * net.tau.min())
    free = label.coupling not in ("none", "feedback")
    weights, coupling = [(True, False), (True, True), (False, True)][rng.integers(3 if free else 1)]
    inside, target = rng.uniform(0.3, 0.95), "rate" if rng.random() < 0.5 else "step"
    if target == "step" and label.solver == "euler" and rng.random() < 0.5:
        first = rate_family(net, weights=True).boundary()
        net = net if first is None else net.scaled(first * rng.uniform(0.3, 0.95), True, False)
        h = dt_family(net).boundary()
        if h is None:
            return None
        pairs = [(net, h * near(rng)), (net, h * inside)]
    else:
        if target == "step":
            coupling &= label.solver == "euler" or not net.L.any()
            family = step_family(net, dt, label.solver, weights or not coupling, coupling)
            weights = weights or not coupling
        else:
            family = rate_family(net, weights, coupling)
        s = family.boundary()
        if s is None:
            return None
        pairs = [(net.scaled(s * f, weights, coupling), dt) for f in (near(rng), inside)]
    dtype = torch.float32 if rng.random() < 0.1 else torch.float64
    places = ["boundary", "inside"] if rng.random() < 0.25 else ["boundary"]
    return [
        Case(label, at.single() if dtype == torch.float32 else at, h, place, target, large, dtype)
        for (at, h), place in zip(pairs, places, strict=False)
    ]


# Judging a certificate


@dataclass(frozen=True)
class Verdict:
    """What was claimed, what is true, and what is wrong with the claim."""

    certificate: Certificate
    rate: float
    gain: float
    wrong: tuple[str, ...]
    slack: tuple[float, float]
    settled: bool


def judge(rng: Generator, case: Case) -> Verdict:
    """Compare a certificate with the exact check (large nets: with what the search found)."""
    net, dt, solver = case.net, case.dt, case.label.solver
    claim = certify(*net.fields(case.dtype), dt=dt, solver=solver, search="none")
    field, map_ = rate_family(net), step_family(net, dt, solver)
    (growth, worst), (above, worst_step) = field.worst(), map_.worst()
    rate, gain, step = -growth, above + 1, claim.step
    unit = max(1 / float(net.tau.max()), abs(rate))
    doubtful = claim.rate > rate + TOLERANCE * unit or (claim.certified and rate <= 0)
    if doubtful and not case.large:
        rate = precise_rate(net)
    assert step is not None
    wrong = []
    if claim.certified and rate <= 0:
        wrong.append("certified, but expands")
    if claim.rate > rate + TOLERANCE * unit:
        wrong.append("rate too good")
    if step.certified and gain >= 1 + EXPANDS:
        wrong.append("step certified, but expands")
    if step.contraction_factor is not None and step.contraction_factor < gain - TOLERANCE * max(1, gain):
        wrong.append("factor too good")
    if not case.large and any(module_wrong(net, k, m.rate) for k, m in enumerate(claim.modules)):
        wrong.append("module's rate too good")
    if step.max_dt > 0 and claim.certified:
        wrong += largest_dt_wrong(rng, case, step.max_dt)
    if case.large and claim.certified:
        wrong += simulated_wrong(case, claim, field, map_, worst, worst_step)
    slack = (
        (rate - claim.rate) / unit,
        math.inf if step.contraction_factor is None else step.contraction_factor - gain,
    )
    return Verdict(claim, rate, gain, tuple(wrong), slack, doubtful and not case.large)


def module_wrong(net: Net, k: int, claimed: float) -> bool:
    """Whether module k alone is slower than claimed; exact, in 50 digits where float64 refutes it."""
    rate = -rate_family(net.module(k)).worst()[0]
    allowed = TOLERANCE * max(1 / float(net.tau.max()), abs(rate))
    return claimed > rate + allowed and claimed > precise_rate(net.module(k)) + allowed


def largest_dt_wrong(rng: Generator, case: Case, largest: float) -> list[str]:
    """Steps up to the largest certified dt must contract: tried there and at a random part of it."""
    top = min(largest, 100 * float(case.net.tau.max()))
    tries = [step_family(case.net, h, case.label.solver) for h in (top, top * rng.uniform(0.05, 1))]
    return ["largest dt too large"] if any(f.worst()[0] >= EXPANDS for f in tries) else []


def simulated_wrong(
    case: Case, claim: Certificate, field: Family, map_: Family, D: ndarray, D_step: ndarray
) -> list[str]:
    """A linear time-varying system driven by the slopes that grow most at every instant (greedy)."""
    wrong, step = [], claim.step
    y, short = field.top(field.at(1.0, D[None])[0])[1], 0.02 * float(case.net.tau.min())
    for _ in range(10):
        D = field.signs(y, y, 1.0)  # the exact maximiser of d|y|^2 / dt
        new = expm(short * field.at(1.0, D[None])[0]) @ y
        if np.linalg.norm(new) > math.exp(-claim.rate * short) * (1 + TOLERANCE):
            wrong.append("flow grows faster than the rate allows")
        y = new / np.linalg.norm(new)
    y = map_.top(map_.at(1.0, D_step[None])[0])[1]
    for _ in range(40 if step is not None and step.contraction_factor is not None else 0):
        D = D_step
        for _ in range(4):
            D = map_.signs(map_.at(1.0, D[None])[0] @ y, y, 1.0)
        new = map_.at(1.0, D[None])[0] @ y
        if np.linalg.norm(new) > step.contraction_factor * (1 + TOLERANCE):  # type: ignore[union-attr, operator]
            wrong.append("step grows more than the factor allows")
        y = new / max(float(np.linalg.norm(new)), 1e-300)
    return sorted(set(wrong))


# Counting


COUNTS = ("nets", "boundary", "contract", "expand", "certified", "false_yes", "no", "false_no")
STEP_COUNTS = ("step_contract", "step_certified", "step_false_yes", "step_no", "step_false_no")


def count(case: Case, verdict: Verdict) -> Counter[str]:
    """What one case adds to its class. For large nets 'contract' is what the search could not refute."""
    claim, step, tau = verdict.certificate, verdict.certificate.step, float(case.net.tau.max())
    assert step is not None
    of_step = {w for w in verdict.wrong if "step" in w or "factor" in w or "dt" in w}
    contracts = verdict.rate * tau > MARGIN
    step_rate = (1 - verdict.gain) / min(1.0, case.dt / tau)
    step_contracts = contracts and step_rate > MARGIN
    counts = {
        "nets": 1,
        "boundary": case.place == "boundary",
        "contract": verdict.rate > 0,
        "expand": verdict.rate <= 0,
        "certified": claim.certified,
        "false_yes": len(verdict.wrong) > len(of_step),
        "no": contracts,
        "false_no": contracts and not claim.certified,
        "step_contract": verdict.gain < 1,
        "step_certified": step.certified,
        "step_false_yes": bool(of_step),
        "step_no": step_contracts,
        "step_false_no": step_contracts and not step.certified,
    }
    return Counter({key: int(value) for key, value in counts.items()})


@dataclass
class Tally:
    """Everything counted so far."""

    classes: dict[Label, Counter[str]]
    places: dict[str, Counter[str]]
    offenders: list[dict[str, Any]]
    tightest: list[float]
    distances: dict[str, list[float]]
    settled: int = 0

    def add(self, case: Case, verdict: Verdict) -> None:
        """Count one case; keep it if its certificate is wrong."""
        added = count(case, verdict)
        self.classes.setdefault(case.label, Counter()).update(added)
        size = "large" if case.large else "small"
        self.places.setdefault(f"{case.target} {case.place}, {size}", Counter()).update(added)
        self.settled += verdict.settled
        if case.place == "boundary":
            rate, gain = verdict.rate * float(case.net.tau.max()), verdict.gain - 1
            self.distances[case.target].append(abs(rate if case.target == "rate" else gain))
        if not case.large:
            self.tightest = [min(a, b) for a, b in zip(self.tightest, verdict.slack, strict=True)]
        if verdict.wrong and len(self.offenders) < WORST_KEPT:
            claim, step = verdict.certificate, verdict.certificate.step
            assert step is not None
            self.offenders.append(
                {
                    "class": vars(case.label),
                    "wrong": list(verdict.wrong),
                    "claimed": {
                        "rate": claim.rate,
                        "gain": step.contraction_factor,
                        "max_dt": step.max_dt,
                    },
                    "exact": {"rate": verdict.rate, "gain": verdict.gain},
                    "dt": case.dt,
                    "dtype": str(case.dtype),
                    "net": case.net.as_dict(),
                }
            )

    def by(self, axis: str) -> dict[str, Counter[str]]:
        """Totals by one of kind, form, coupling, solver."""
        totals: dict[str, Counter[str]] = {}
        for label, counted in self.classes.items():
            totals.setdefault(getattr(label, axis), Counter()).update(counted)
        return dict(sorted(totals.items()))

    def total(self) -> Counter[str]:
        """Totals of everything."""
        return sum(self.classes.values(), Counter())


def labels() -> list[Label]:
    """Every class, in an order that spreads any prefix over all of them."""
    found = [Label(k, f, c, s) for k in KINDS for f in FORMS for c in COUPLINGS for s in SOLVERS]
    return [found[k] for k in np.random.default_rng(0).permutation(len(found))]


def hunt(nets: int, seed: int, console: Console) -> tuple[Tally, bool]:
    """Count `nets` nets at the boundary (and those inside); whether it was interrupted."""
    tally, classes = Tally({}, {}, [], [math.inf, math.inf], {"rate": [], "step": []}), labels()
    try:
        with Progress(console=console) as progress:
            task = progress.add_task("nets at the boundary", total=nets)
            for k in range(nets):
                rng = np.random.default_rng([seed, k])
                for case in draw(rng, classes[k % len(classes)], k % LARGE == LARGE - 1):
                    tally.add(case, judge(rng, case))
                progress.update(task, advance=1, description=f"{len(tally.offenders)} false yes")
    except KeyboardInterrupt:
        return tally, True
    return tally, False


def share(part: int, whole: int) -> str:
    """A percentage, or a dash where there is nothing to share."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def report(tally: Tally) -> Table:
    """The totals by every axis of the classes."""
    columns = ["class", "cases", "contract", "certified", "FALSE YES", "false no"]
    columns += ["steps contract", "certified", "FALSE YES", "false no"]
    table = Table(*columns, title="Certificates against exact checks; false no: share of those inside")
    for axis in ("kind", "form", "coupling", "solver"):
        for name, c in tally.by(axis).items():
            table.add_row(name, *cells(c))
        table.add_section()
    for place, c in sorted(tally.places.items()):
        table.add_row(place, *cells(c))
    table.add_section()
    table.add_row("all", *cells(tally.total()))
    return table


def cells(c: Counter[str]) -> list[str]:
    """One row of the table."""
    numbers = [c[k] for k in ("nets", "contract", "certified", "false_yes")]
    steps = [c[k] for k in ("step_contract", "step_certified", "step_false_yes")]
    return [
        *map(str, numbers),
        share(c["false_no"], c["no"]),
        *map(str, steps),
        share(c["step_false_no"], c["step_no"]),
    ]


def quantiles(found: list[float]) -> dict[str, float]:
    """Of |rate tau| or |factor - 1| of the nets at the boundary."""
    names = {"median": 0.5, "95 %": 0.95, "largest": 1.0}
    return {name: float(np.quantile(found, q)) if found else math.nan for name, q in names.items()}


def as_row(counted: Counter[str]) -> dict[str, int]:
    """The counts in a fixed order."""
    return {key: int(counted[key]) for key in (*COUNTS, *STEP_COUNTS)}


def git(*arguments: str) -> str:
    """What git says here; empty where it says nothing."""
    where = Path(__file__).parent
    asked = ["git", *arguments]
    return subprocess.run(asked, capture_output=True, text=True, check=False, cwd=where).stdout.strip()


def provenance() -> dict[str, Any]:
    """The commit and the very certificates that are tried, read when the run starts."""
    folder = Path(certificates.__file__).parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"))))
    return {
        "commit": git("rev-parse", "HEAD"),
        "certificates_changed_since_commit": bool(git("status", "--porcelain", "--", str(folder))),
        "certificates_sha256": digest.hexdigest(),
    }


def outcome(
    tally: Tally, arguments: argparse.Namespace, source: dict[str, Any], seconds: float, stopped: bool
) -> dict[str, Any]:
    """What is written to JSON."""
    packages = ("ctrnn-assembly", "torch", "numpy", "scipy")
    axes = ("kind", "form", "coupling", "solver")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": "python " + shlex.join(["experiments/no_false_yes.py", *sys.argv[1:]]),
        **source,
        "hardware": f"{os.cpu_count()} cores of {processor()}",
        "seed": arguments.seed,
        "nets": arguments.nets,
        "interrupted": stopped,
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "tolerance": TOLERANCE,
        "margin_of_a_false_no": MARGIN,
        "settled_in_50_digits": tally.settled,
        "smallest_slack": dict(zip(("rate", "factor"), tally.tightest, strict=True)),
        "distance_from_boundary": {key: quantiles(found) for key, found in tally.distances.items()},
        "total": as_row(tally.total()),
        "places": {place: as_row(c) for place, c in sorted(tally.places.items())},
        **{f"by_{axis}": {name: as_row(c) for name, c in tally.by(axis).items()} for axis in axes},
        "classes": [
            {**vars(label), **as_row(c)}
            for label, c in sorted(tally.classes.items(), key=lambda entry: str(entry[0]))
        ],
        "offenders": tally.offenders,
    }


def write(result: dict[str, Any], path: Path) -> None:
    """JSON, one line a row of counts."""
    lines = []
    for key, value in result.items():
        if isinstance(value, list):
            inner = ",\n".join("  " + json.dumps(item) for item in value)
            lines.append(f' "{key}": [\n{inner}\n ]' if value else f' "{key}": []')
        elif isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(item)}" for k, item in value.items())
            lines.append(f' "{key}": {{\n{inner}\n }}')
        else:
            lines.append(f' "{key}": {json.dumps(value)}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    """Hunt, print the table, keep the counts; the exit status is 1 if a certificate was wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nets", type=int, default=10_000, help="nets at the boundary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, source, started = Console(width=150), provenance(), time.perf_counter()
    tally, stopped = hunt(arguments.nets, arguments.seed, console)
    seconds = time.perf_counter() - started
    console.print(report(tally))
    wrong, slack = len(tally.offenders), tally.tightest
    console.print(f"{wrong} wrong; smallest slack: rate {slack[0]:.2e}, factor {slack[1]:.2e}")
    console.print(f"{seconds:.0f} s")
    if arguments.json is not None:
        write(outcome(tally, arguments, source, seconds, stopped), arguments.json)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
