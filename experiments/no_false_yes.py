"""Does a certificate ever say yes wrongly? Nets at the boundary of what contracts, and exact checks.

python experiments/no_false_yes.py [--nets 10000] [--seed 0] [--results FOLDER]

What is true is asked of tests/exact.py, which shares no code with the certificates: exact over all
slopes for small nets, a search for the large ones (16 to 64 units), whose worst slopes then drive a
linear time-varying system, whose growth is measured. A rate that float64 refutes is computed again in
50 digits before it counts.

Each net's weights, coupling or dt are scaled to the root of its exact rate or of (factor - 1), by
Newton's method on a convex function, then moved off by 1e-6 to 5e-2, relative; every fourth is also
tried well inside. A false yes is a certified net that expands, or a claimed rate, factor or largest dt
better than the exact one by more than 1e-9 relative. Ctrl-C keeps what was counted.
"""

import argparse
import hashlib
import itertools
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keep import RESULTS, about, keep
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

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from exact import Family, Field

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
SEVERAL = [(1, 1), (1, 1), (2, 1), (1, 2), (2, 2), (1, 1, 1), (2, 3), (1, 2, 3), (3, 3)]
SEVERAL += [(2, 2, 2), (4, 4)]
TWELVE = [(6, 6), (4, 4, 4), (5, 7)]

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
    def field(self) -> Field:
        """What the oracle takes."""
        units = [(a, f) for a, f, b in zip(self.acts, self.forms, self.blocks, strict=True) for _ in b]
        return Field(
            block_diag(*self.blocks),
            np.array([form == "x" for _, form in units]),
            np.array([act.slope for act, _ in units]),
            self.tau,
            block_diag(*map(matrix, self.thetas)),
            self.L,
            ((self.K, np.array(self.psi.slope)),),
        )

    def scaled(self, s: float, weights: bool, coupling: bool) -> "Net":
        """The same net with its weights, or its coupling, or both, times s."""
        w, c = s if weights else 1.0, s if coupling else 1.0
        return replace(self, blocks=tuple(w * W for W in self.blocks), L=c * self.L, K=c * self.K)

    def single(self) -> "Net":
        """All tensors rounded to float32, kept in float64."""
        blocks, thetas, arrays = (
            tuple(x.astype(np.float32).astype(np.float64) for x in part)
            for part in (self.blocks, self.thetas, (self.tau, self.L, self.K))
        )
        tau, L, K = arrays
        return replace(self, blocks=blocks, thetas=thetas, tau=tau, L=L, K=K)

    def terms(self, dtype: torch.dtype) -> tuple[Terms, Metric]:
        """What `certify` takes."""

        tensor = partial(torch.tensor, dtype=dtype)
        units = list(zip(self.acts, map(len, self.blocks), self.forms, strict=True))
        pre = Elementwise(tuple((a if f == "x" else IDENTITY, n) for a, n, f in units))
        post = Elementwise(tuple((IDENTITY if f == "x" else a, n) for a, n, f in units))
        psi = Elementwise(((self.psi, len(self.tau)),))
        edges = (Edge(tensor(self.K), psi),) if self.K.any() else ()
        L = tensor(self.L) if self.L.any() else None
        tau = tensor(self.tau)
        terms = Terms(tuple(map(tensor, self.blocks)), pre, post, 0 * tau, tau, L, edges)
        pairs = ((t, 1 / t if t.ndim == 1 else np.linalg.inv(t)) for t in self.thetas)
        return terms, Metric(tuple(Factor(*map(tensor, pair)) for pair in pairs))

    def module(self, k: int) -> "Net":
        """One module alone."""
        one = slice(k, k + 1)
        parts = (self.blocks[one], self.thetas[one], self.acts[one], self.forms[one])
        tau = np.split(self.tau, np.cumsum(list(map(len, self.blocks))))[k]
        none = np.zeros((len(tau), len(tau)))
        return Net(*parts, tau, none, none, self.psi)


def matrix(theta: ndarray) -> ndarray:
    """A factor as a matrix."""
    return np.diag(theta) if theta.ndim == 1 else theta


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
    X = X / max(float(np.linalg.norm(X, 2)), 1e-9) * rng.uniform(0.3, 1.2) / act.g
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


def tame(rng: Generator, net: Net, feedback: bool) -> Net:
    """Modules that contract alone, and a coupling that leaves a rate (feedback stays as it is)."""
    alone = replace(net, L=0 * net.L, K=0 * net.K)
    s = alone.field.rate_family(weights=True).boundary()
    if s is not None:
        net = net.scaled(s * rng.uniform(0.4, 1.0), weights=True, coupling=False)
    for _ in range(0 if feedback else 12):
        if net.field.rate() > 0:
            return net
        net = net.scaled(0.5, weights=False, coupling=True)
    return net


def draw(rng: Generator, label: Label, large: bool) -> list[Case]:
    """One net at the boundary, every fourth also inside; Newton's method on the exact check."""
    for _ in range(50):
        if found := _draw(rng, label, large):
            return found
    raise RuntimeError(f"no net of the class {label} has a boundary")


def _draw(rng: Generator, label: Label, large: bool) -> list[Case]:
    """One attempt: empty if the net has no boundary in what was scaled."""
    net = tame(rng, random_net(rng, label, large), label.coupling == "feedback")
    dt = float(10 ** rng.uniform(-2.5, 0.3) * net.tau.min())
    free = label.coupling not in ("none", "feedback")
    weights, coupling = [(True, False), (True, True), (False, True)][rng.integers(3 if free else 1)]
    inside, target = rng.uniform(0.3, 0.95), "rate" if rng.random() < 0.5 else "step"
    if target == "step" and label.solver == "euler" and rng.random() < 0.5:
        first = net.field.rate_family(weights=True).boundary()
        net = net if first is None else net.scaled(first * rng.uniform(0.3, 0.95), True, False)
        h = net.field.dt_family().boundary()
        if h is None:
            return []
        pairs = [(net, h * near(rng)), (net, h * inside)]
    else:
        if target == "step":
            coupling &= label.solver == "euler" or not net.L.any()
            family = net.field.step_family(dt, label.solver, weights or not coupling, coupling)
            weights = weights or not coupling
        else:
            family = net.field.rate_family(weights, coupling)
        s = family.boundary()
        if s is None:
            return []
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
    """What was claimed, what is true, what is wrong with the claim, and how much it left."""

    certificate: Certificate
    rate: float
    factor: float
    wrong: tuple[str, ...]
    slack: tuple[float, float]
    settled: bool


def judge(rng: Generator, case: Case) -> Verdict:
    """Compare a certificate with the exact check (large nets: with what the search found)."""
    net, solver = case.net, case.label.solver
    claim = certify(*net.terms(case.dtype), dt=case.dt, solver=solver, search="none")
    step = claim.step
    assert step is not None
    bound = math.inf if step.contraction_factor is None else step.contraction_factor
    rate, factor = net.field.rate(), net.field.factor(case.dt, solver)
    unit = max(1 / float(net.tau.max()), abs(rate))
    settled = not case.large and (claim.rate > rate + TOLERANCE * unit or claim.certified > (rate > 0))
    if settled:
        rate = net.field.precise_rate()
    steps: list[float] = []
    if claim.certified and step.max_dt > 0:  # steps up to it must contract: tried there and below
        top = min(step.max_dt, 100 * float(net.tau.max()))
        steps = [top, top * rng.uniform(0.05, 1)]
    found = {
        "certified, but expands": claim.certified and rate <= 0,
        "rate too good": claim.rate > rate + TOLERANCE * unit,
        "step certified, but expands": step.certified and factor >= 1 + EXPANDS,
        "factor too good": bound < factor - TOLERANCE * max(1, factor),
        "module's rate too good": not case.large
        and any(module_wrong(net.module(k), m.rate) for k, m in enumerate(claim.modules)),
        "largest dt too large": any(net.field.factor(h, solver) >= 1 + EXPANDS for h in steps),
    }
    if case.large and claim.certified:
        found |= simulated_wrong(case, claim.rate, bound)
    wrong = tuple(name for name, is_wrong in found.items() if is_wrong)
    return Verdict(claim, rate, factor, wrong, ((rate - claim.rate) / unit, bound - factor), settled)


def module_wrong(module: Net, claimed: float) -> bool:
    """Whether a module alone is slower than claimed; exact, in 50 digits where float64 refutes it."""
    rate = module.field.rate()
    allowed = TOLERANCE * max(1 / float(module.tau.max()), abs(rate))
    return claimed > rate + allowed and claimed > module.field.precise_rate() + allowed


def simulated_wrong(case: Case, rate: float, bound: float) -> dict[str, bool]:
    """A linear time-varying system driven by the slopes that grow most at every instant (greedy)."""
    flow = case.net.field.rate_family()
    step = case.net.field.step_family(case.dt, case.label.solver)
    y, short, faster = worst_direction(flow)[1], 0.02 * float(case.net.tau.min()), False
    for _ in range(10):
        D = flow.signs(y, y)  # the exact maximiser of d|y|^2 / dt
        new = expm(short * flow.at(D)) @ y
        faster |= bool(np.linalg.norm(new) > math.exp(-rate * short) * (1 + TOLERANCE))
        y = new / np.linalg.norm(new)
    worst, y = worst_direction(step)
    more = False
    for _ in range(40 if math.isfinite(bound) else 0):
        D = worst
        for _ in range(4):
            D = step.signs(step.at(D) @ y, y)
        new = step.at(D) @ y
        more |= bool(np.linalg.norm(new) > bound * (1 + TOLERANCE))
        y = new / max(float(np.linalg.norm(new)), 1e-300)
    return {"flow grows faster than the rate allows": faster, "step grows more than the factor": more}


def worst_direction(family: Family) -> tuple[ndarray, ndarray]:
    """The worst slopes, and the direction that they stretch most."""
    _, D = family.worst()
    return D, family.top(family.at(D))[1]


# Counting

AXES = ("kind", "form", "coupling", "solver")


def count(case: Case, verdict: Verdict) -> Counter[str]:
    """What one case adds to its class. For large nets 'contract' is what the search could not refute."""
    claim, step, tau = verdict.certificate, verdict.certificate.step, float(case.net.tau.max())
    assert step is not None
    of_step = {w for w in verdict.wrong if "step" in w or "factor" in w or "dt" in w}
    contracts = verdict.rate * tau > MARGIN
    step_contracts = contracts and (1 - verdict.factor) / min(1.0, case.dt / tau) > MARGIN
    counts = {
        "nets": True,
        "boundary": case.place == "boundary",
        "contract": verdict.rate > 0,
        "expand": verdict.rate <= 0,
        "certified": claim.certified,
        "false_yes": len(verdict.wrong) > len(of_step),
        "no": contracts,
        "false_no": contracts and not claim.certified,
        "step_contract": verdict.factor < 1,
        "step_certified": step.certified,
        "step_false_yes": bool(of_step),
        "step_no": step_contracts,
        "step_false_no": step_contracts and not step.certified,
    }
    return Counter({name: int(value) for name, value in counts.items()})


class Tally:
    """Everything counted so far."""

    def __init__(self) -> None:
        self.classes: dict[Label, Counter[str]] = {}
        self.places: dict[str, Counter[str]] = {}
        self.offenders: list[dict[str, Any]] = []
        self.tightest = [math.inf, math.inf]
        self.distances: dict[str, list[float]] = {"rate": [], "step": []}
        self.settled = 0

    def add(self, drawn: list[int], case: Case, verdict: Verdict) -> None:
        """Count one case; if its certificate is wrong keep it, with the seed that it is drawn from."""
        added, size = count(case, verdict), "large" if case.large else "small"
        self.classes.setdefault(case.label, Counter()).update(added)
        self.places.setdefault(f"{case.target} {case.place}, {size}", Counter()).update(added)
        self.settled += verdict.settled
        if case.place == "boundary":
            off = verdict.rate * float(case.net.tau.max())
            self.distances[case.target].append(abs(off if case.target == "rate" else verdict.factor - 1))
        if not case.large:
            self.tightest = list(map(min, self.tightest, verdict.slack))
        if verdict.wrong and len(self.offenders) < WORST_KEPT:
            claim = {"claimed": verdict.certificate.as_dict(), "wrong": verdict.wrong}
            exact = {"exact": {"rate": verdict.rate, "factor": verdict.factor}}
            where = {"drawn_from": drawn, "class": vars(case.label), "place": case.place, "dt": case.dt}
            self.offenders.append({**claim, **exact, **where, "dtype": str(case.dtype)})

    def by(self, axis: str | None = None) -> dict[str, Counter[str]]:
        """Totals by one of kind, form, coupling, solver; of all without an axis."""
        totals: dict[str, Counter[str]] = {}
        for label, counted in self.classes.items():
            name = getattr(label, axis) if axis else "all"
            totals.setdefault(name, Counter()).update(counted)
        return dict(sorted(totals.items()))

    def facts(self) -> dict[str, Any]:
        """What was counted, as plain values; distances from the boundary as |rate tau|, |factor - 1|."""
        names, shares = ("median", "95 %", "largest"), (0.5, 0.95, 1)
        return {
            "tolerance": TOLERANCE,
            "margin_of_a_false_no": MARGIN,
            "settled_in_50_digits": self.settled,
            "smallest_slack": dict(zip(("rate", "factor"), self.tightest, strict=True)),
            "distance_from_boundary": {
                key: dict(zip(names, np.quantile(found, shares).tolist(), strict=True))
                for key, found in self.distances.items()
                if found
            },
            "total": self.by().get("all", {}),
            "places": dict(sorted(self.places.items())),
            **{f"by_{axis}": self.by(axis) for axis in AXES},
            "offenders": self.offenders,
        }


def hunt(nets: int, seed: int, console: Console) -> tuple[Tally, bool]:
    """Count `nets` nets at the boundary (and those inside); whether it was interrupted."""
    # Every class, in an order that spreads any prefix over all of them.
    classes = list(itertools.starmap(Label, itertools.product(KINDS, FORMS, COUPLINGS, SOLVERS)))
    order, tally = np.random.default_rng(0).permutation(len(classes)), Tally()
    try:
        with Progress(console=console) as progress:
            task = progress.add_task("nets at the boundary", total=nets)
            for k in range(nets):
                rng = np.random.default_rng([seed, k])
                for case in draw(rng, classes[order[k % len(order)]], k % LARGE == LARGE - 1):
                    tally.add([seed, k], case, judge(rng, case))
                progress.update(task, advance=1, description=f"{len(tally.offenders)} false yes")
    except KeyboardInterrupt:
        return tally, True
    return tally, False


def report(tally: Tally) -> Table:
    """The totals by every axis of the classes, of places, and of all."""
    columns = ["class", "cases", "contract", "certified", "FALSE YES", "false no"]
    columns += ["steps contract", "certified", "FALSE YES", "false no"]
    table = Table(*columns, title="Certificates against exact checks; false no: share of those inside")
    for part in (*map(tally.by, AXES), dict(sorted(tally.places.items())), tally.by()):
        for name, c in part.items():
            table.add_row(name, *cells(c))
        table.add_section()
    return table


def cells(c: Counter[str]) -> list[str]:
    """One row of the table."""
    found = []
    for step in ("", "step_"):
        found += [str(c[step + k]) for k in ("contract", "certified", "false_yes")]
        no, of = c[f"{step}false_no"], c[f"{step}no"]
        found.append(f"{100 * no / of:.1f} %" if of else "-")
    return [str(c["nets"]), *found]


def main() -> None:
    """Hunt, print the table, keep the counts; the exit status is 1 if a certificate was wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nets", type=int, default=10_000, help="nets at the boundary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Of the very certificates that are tried, before the run.
    source = [path.read_bytes() for path in sorted(Path(certificates.__file__).parent.glob("*.py"))]
    result = about(__file__, seed=arguments.seed)
    result |= {"certificates_sha256": hashlib.sha256(b"".join(source)).hexdigest()}
    console, started = Console(width=150), time.perf_counter()
    tally, stopped = hunt(arguments.nets, arguments.seed, console)
    seconds = round(time.perf_counter() - started, 1)
    console.print(report(tally))
    wrong, slack = len(tally.offenders), tally.tightest
    console.print(f"{wrong} wrong; smallest slack: rate {slack[0]:.2e}, factor {slack[1]:.2e}")
    console.print(f"{seconds:.0f} s")
    result |= {"nets": arguments.nets, "interrupted": stopped, "seconds": seconds, **tally.facts()}
    print(keep("no-false-yes", result, arguments.results))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
