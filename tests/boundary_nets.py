"""Random nets of every class, scaled to the boundary of what contracts: a certificate's hardest cases.

Each net's weights, coupling or dt are scaled to the root of its exact rate or of (factor - 1), by
Newton's method on a convex function, then moved off by 1e-6 to 5e-2, relative; every fourth is also
tried well inside.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product, starmap
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from scipy.linalg import block_diag, solve_continuous_lyapunov

from ctrnn_assembly.activations import ACTIVATIONS, Activation, Elementwise
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Edge, Terms
from exact import Field
from oracles import exact_field, matrix, sloped, terms_and_metric

SIGNED = [(-0.5, 1.0), (-1.0, -0.2), (-0.3, 0.6)]
MONOTONE = [ACTIVATIONS[name] for name in ("tanh", "relu", "sigmoid", "selu", "softplus")]
MONOTONE += [sloped(*s) for s in ((0.2, 0.8), (0.0, 3.0))]
ANY = [*MONOTONE, *(ACTIVATIONS[name] for name in ("gelu", "silu"))]
ANY += [sloped(*s) for s in SIGNED]
LINEAR = [ACTIVATIONS["identity"], sloped(0.7, 0.7), sloped(-0.6, -0.6)]

NUMBERED = ("Theorem 1", "Theorem 2", "Theorem 3", "Theorem 4", "Theorem 5", "Theorem 5+ (skew)")
KINDS = (*NUMBERED, "AdaDiag (diagonal)", "linear", "other", "mixed")
FORMS = ("x", "r", "x and r")
COUPLINGS = ("none", "feedback", "hierarchy", "nonlinear hierarchy", "free")
SOLVERS = ("euler", "imex", "exponential-euler")
ONE = [(1,), (2,), (2,), (3,), (3,), (4,), (5,), (6,), (8,)]
SEVERAL = [(1, 1), (1, 1), (2, 1), (1, 2), (2, 2), (1, 1, 1), (2, 3), (1, 2, 3), (3, 3)]
SEVERAL += [(2, 2, 2), (4, 4)]
TWELVE = [(6, 6), (4, 4, 4), (5, 7)]
TOLERANCE = 1e-9  # of a claim, relative


@dataclass(frozen=True)
class Net:
    """A net in its metric."""

    terms: Terms
    metric: Metric

    @cached_property
    def field(self) -> Field:
        """What the oracle takes."""
        return exact_field(self.terms, self.metric)

    @property
    def slowest(self) -> float:
        return float(self.terms.tau.max())

    def scaled(self, s: float, weights: bool, coupling: bool) -> "Net":
        """The same net with its weights, or its coupling, or both, times s."""
        w, c = s if weights else 1.0, s if coupling else 1.0
        terms = self.terms
        edges = tuple(replace(edge, K=c * edge.K) for edge in terms.edges)
        L = None if terms.L is None else c * terms.L
        blocks = tuple(w * W for W in terms.blocks)
        return replace(self, terms=replace(terms, blocks=blocks, L=L, edges=edges))

    def single(self) -> "Net":
        """All tensors rounded to float32."""
        return Net(self.terms.mapped(torch.Tensor.float), self.metric.mapped(torch.Tensor.float))

    def modules(self) -> "list[Net]":
        """Every module alone."""
        found, t, taus = [], self.terms, self.terms.tau.split(self.terms.sizes)
        for k, (W, tau, factor) in enumerate(zip(t.blocks, taus, self.metric.factors, strict=True)):
            pre, post = (Elementwise((part.runs[k],)) for part in (t.pre, t.post))
            found.append(Net(Terms((W,), pre, post, 0 * tau, tau), Metric((factor,))))
        return found


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
    X = X / max(float(np.linalg.norm(X, 2)), 1e-9) * rng.uniform(0.3, 1.2) / act.g
    T = matrix(theta)
    W = np.linalg.solve(T, X @ T) if kind != "other" or rng.random() < 0.7 else X
    if kind == "linear" and rng.random() < 0.5:
        J = act.slope[1] * W - np.eye(n)
        if np.linalg.eigvals(J).real.max() < -0.05:
            M = solve_continuous_lyapunov(J.T, -np.eye(n))
            theta = np.linalg.cholesky((M + M.T) / 2).T
    return W, theta


class Label(NamedTuple):
    """The class of a net."""

    kind: str
    form: str
    coupling: str
    solver: str


def random_sizes(rng: Generator, coupling: str, form: str, large: bool) -> tuple[int, ...]:
    """Sizes of the modules; a nonlinear edge adds a slope a source, so such nets are smaller."""
    several = "hierarchy" in coupling or form == "x and r" or rng.random() < 0.6
    if large:
        return tuple((rng.integers(4, 17, 4) if several else rng.integers(4, 17, 1) + 12).tolist())
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
    blocks, thetas, acts = map(list, zip(*parts, strict=True))
    taus, nested = [], rng.choice([1.0, 0.5, 0.1]) ** np.arange(len(sizes))
    spread, several = rng.choice([0, 0, 0.5, 1.5, 3]), rng.random() < 0.4
    for n, theta in zip(sizes, thetas, strict=True):
        each = several and theta.ndim == 1
        taus.append(np.exp(spread * rng.normal(size=n if each else 1)) * np.ones(n))
    tau = np.concatenate(taus) * rng.choice([0.01, 1, 1, 30])
    thetas = [theta * scale for theta, scale in zip(thetas, nested, strict=True)]
    psi = ANY[rng.integers(len(ANY))]
    L, K = random_coupling(rng, label.coupling, thetas)
    edges = (Edge(torch.tensor(K), Elementwise(((psi, len(tau)),))),) if K.any() else ()
    return Net(*terms_and_metric(blocks, thetas, acts, forms, tau, L if L.any() else None, edges))


def random_coupling(rng: Generator, coupling: str, thetas: list[ndarray]) -> tuple[ndarray, ndarray]:
    """L, and the K of a nonlinear edge K psi(x), of feedback, one way, or free; all zero for none."""
    T = block_diag(*map(matrix, thetas))
    n, module = len(T), np.repeat(np.arange(len(thetas)), list(map(len, thetas)))
    one_way = (module[:, None] > module[None]).astype(float)
    (K, E), none = rng.normal(size=(2, n, n)) / math.sqrt(n), np.zeros((n, n))
    if coupling == "feedback":
        K = (K - K.T) * rng.choice([0.1, 1, 5])
        K = K + rng.choice([0, 0, 1e-9, 1e-4, 0.02]) * E
        return np.linalg.solve(T, K @ T), none
    size = rng.choice([0.1, 0.4, 1.0])
    balanced, other = (np.linalg.solve(T, X * size @ T) for X in (K, E))
    if coupling == "hierarchy":
        return one_way * balanced, none
    if coupling == "nonlinear hierarchy":
        return one_way * other * (rng.random() < 0.3), one_way * balanced
    if coupling == "free":
        return balanced, other / 2 * (rng.random() < 0.5)
    return none, none


@dataclass(frozen=True)
class Case:
    """A net, its step, and where it lies: the "rate" or the "step" at the "boundary" or "inside"."""

    label: Label
    net: Net
    dt: float
    target: str
    place: str
    large: bool


def tame(rng: Generator, net: Net, feedback: bool) -> Net:
    """Modules that contract alone, and a coupling that leaves a rate (feedback stays as it is)."""
    alone = net.scaled(0.0, weights=False, coupling=True)
    s = alone.field.rate_family(weights=True).boundary()
    if s is not None:
        net = net.scaled(s * rng.uniform(0.4, 1.0), weights=True, coupling=False)
    for _ in range(0 if feedback else 12):
        if net.field.rate() > 0:
            return net
        net = net.scaled(0.5, weights=False, coupling=True)
    return net


def draw(rng: Generator, label: Label, large: bool) -> list[Case]:
    """One net at the boundary, every fourth also inside; empty if what was scaled has no boundary."""
    net = tame(rng, random_net(rng, label, large), label.coupling == "feedback")
    dt = float(10 ** rng.uniform(-2.5, 0.3) * float(net.terms.tau.min()))
    free = label.coupling not in ("none", "feedback")
    weights, coupling = [(True, False), (True, True), (False, True)][rng.integers(3 if free else 1)]
    inside, target = rng.uniform(0.3, 0.95), "rate" if rng.random() < 0.5 else "step"
    scale_dt = target == "step" and label.solver == "euler" and rng.random() < 0.5
    if scale_dt:
        first = net.field.rate_family(weights=True).boundary()
        net = net if first is None else net.scaled(first * rng.uniform(0.3, 0.95), True, False)
        family = net.field.dt_family()
    elif target == "step":
        coupling &= label.solver == "euler" or net.terms.L is None
        weights = weights or not coupling
        family = net.field.step_family(dt, label.solver, weights, coupling)
    else:
        family = net.field.rate_family(weights, coupling)
    s = family.boundary()
    if s is None:
        return []
    delta = rng.choice([-1, 1]) * 10 ** rng.uniform(-6, math.log10(0.05))
    scales = {"boundary": s * (1 + delta), "inside": s * inside}
    single = rng.random() < 0.1
    if rng.random() >= 0.25:
        del scales["inside"]
    cases = []
    for place, scale in scales.items():
        at = net if scale_dt else net.scaled(scale, weights, coupling)
        h = scale if scale_dt else dt
        cases.append(Case(label, at.single() if single else at, h, target, place, large))
    return cases


def classes() -> list[Label]:
    """Every class, in an order that spreads any prefix over all of them."""
    found = list(starmap(Label, product(KINDS, FORMS, COUPLINGS, SOLVERS)))
    return [found[k] for k in np.random.default_rng(0).permutation(len(found))]


def drawn(rng: Generator, label: Label, large: bool = False) -> list[Case]:
    """`draw` until there is a boundary."""
    found = next(filter(None, (draw(rng, label, large) for _ in range(50))), None)
    assert found is not None, f"no net of the class {label} has a boundary"
    return found


def exact_rate(net: Net, claimed: float, large: bool = False) -> tuple[float, float, bool]:
    """The rate, by how much a claim may exceed it, and whether float64 refuted it: then in 50 digits."""
    rate = net.field.rate()
    allowed = TOLERANCE * max(1 / net.slowest, abs(rate))
    unsure = not large and (claimed > rate + allowed or rate <= 0 < claimed)
    return net.field.precise_rate() if unsure else rate, allowed, unsure
