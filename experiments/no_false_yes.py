"""Does a certificate ever say yes wrongly? Nets at the boundary of what contracts, and exact checks.

python experiments/no_false_yes.py [--nets 10000] [--seed 0] [--search none|fast] [--results FOLDER]

What is true is asked of tests/exact.py, which shares no code with the certificates: exact over all
slopes for small nets, a search for the large ones (16 to 64 units), whose worst slopes then drive a
linear time-varying system, whose growth is measured. A rate that float64 refutes is computed again in
50 digits before it counts.

Each net's weights, coupling or dt are scaled to the root of its exact rate or of (factor - 1), by
Newton's method on a convex function, then moved off by 1e-6 to 5e-2, relative; every fourth is also
tried well inside. A false yes is a certified net that expands, or a claimed rate, factor or largest dt
better than the exact one by more than 1e-9 relative. With a search for metrics all is judged in the one
that the certificate found. Ctrl-C keeps what was counted.
"""

import argparse
import hashlib
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product, starmap
from pathlib import Path
from typing import Any, NamedTuple

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
from ctrnn_assembly.certificates.certify import Search
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Edge, Terms

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from exact import Family, Field
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

LARGE = 41  # one net in so many is large and attacked by search; prime, so that every class gets some
TOLERANCE = 1e-9
EXPANDS = 1e-12  # a factor so far above 1 expands: what float64 leaves uncertain is far below
MARGIN = 1e-3  # a no is false only if the exact rate, in units of 1 / tau, exceeds this
WORST_KEPT = 20


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


# Judging a certificate


class Verdict(NamedTuple):
    """What a case adds to every group that it is counted in, and how much its certificate left."""

    groups: dict[str, str]  # kind, form, coupling, solver, place and total
    counts: dict[str, int]
    ratio: float  # certified over exact factor, for small nets with a proven step; else NaN
    distance: dict[str, float]  # |rate tau| or |factor - 1| of what lies at that boundary
    slack: dict[str, float]  # of rate and factor; empty for large nets, whose exact values are not known
    settled: bool  # in 50 digits
    offence: dict[str, Any]  # all about a certificate that is wrong; else empty


def exact_rate(net: Net, claimed: float, large: bool = False) -> tuple[float, float, bool]:
    """The rate, by how much a claim may exceed it, and whether float64 refuted it: then in 50 digits."""
    rate = net.field.rate()
    allowed = TOLERANCE * max(1 / net.slowest, abs(rate))
    unsure = not large and (claimed > rate + allowed or rate <= 0 < claimed)
    return net.field.precise_rate() if unsure else rate, allowed, unsure


def refuted(rng: Generator, case: Case, claim: Certificate, rate: float, factor: float) -> list[str]:
    """What a certificate says wrongly, by the exact rate and factor."""
    net, solver, step = case.net, case.label.solver, claim.step
    assert step is not None
    bound = math.inf if step.contraction_factor is None else step.contraction_factor
    steps: list[float] = []
    if claim.certified and step.max_dt > 0:  # steps up to it must contract: tried there and below
        top = min(step.max_dt, 100 * net.slowest)
        steps = [top, top * rng.uniform(0.05, 1)]
    alone = [] if case.large else zip(net.modules(), claim.modules, strict=True)
    modules = ((m.rate, exact_rate(module, m.rate)) for module, m in alone)
    found = {
        "certified, but expands": claim.certified and rate <= 0,
        "rate too good": claim.rate > rate + TOLERANCE * max(1 / net.slowest, abs(rate)),
        "step certified, but expands": step.certified and factor >= 1 + EXPANDS,
        "factor too good": bound < factor - TOLERANCE * max(1, factor),
        "module's rate too good": any(claimed > exact + off for claimed, (exact, off, _) in modules),
        "largest dt too large": any(net.field.factor(h, solver) >= 1 + EXPANDS for h in steps),
    }
    if case.large and claim.certified:
        found |= simulated_wrong(case, claim.rate, bound)
    return [name for name, is_wrong in found.items() if is_wrong]


def simulated_wrong(case: Case, rate: float, bound: float) -> dict[str, bool]:
    """A linear time-varying system driven by the slopes that grow most at every instant (greedy)."""
    flow = case.net.field.rate_family()
    step = case.net.field.step_family(case.dt, case.label.solver)
    y, short, faster = worst_direction(flow)[1], 0.02 * float(case.net.terms.tau.min()), False
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


def judge(rng: Generator, case: Case, drawn: list[int], search: Search) -> Verdict:
    """Compare a certificate with the exact check, for large nets with what the search found.

    For these 'contract' is what could not be refuted. `drawn` is the seed that the net is drawn from.
    """
    net, solver, tau = case.net, case.label.solver, case.net.slowest
    claim = certify(net.terms, net.metric, dt=case.dt, solver=solver, search=search)
    if search != "none" and claim.metric.matrix is not None:
        net = replace(net, metric=claim.metric.matrix)
        case = replace(case, net=net)
    step = claim.step
    assert step is not None
    factor = net.field.factor(case.dt, solver)
    rate, _, settled = exact_rate(net, claim.rate, case.large)
    wrong = refuted(rng, case, claim, rate, factor)
    bound = math.inf if step.contraction_factor is None else step.contraction_factor
    is_known = not case.large and factor > 0 and math.isfinite(bound)
    of_step = {w for w in wrong if "step" in w or "factor" in w or "dt" in w}
    contracts = rate * tau > MARGIN
    step_contracts = contracts and (1 - factor) / min(1.0, case.dt / tau) > MARGIN
    counts = {
        "nets": True,
        "boundary": case.place == "boundary",
        "contract": rate > 0,
        "expand": rate <= 0,
        "certified": claim.certified,
        "false_yes": len(wrong) > len(of_step),
        "no": contracts,
        "false_no": contracts and not claim.certified,
        "step_contract": factor < 1,
        "step_certified": step.certified,
        "step_false_yes": bool(of_step),
        "step_no": step_contracts,
        "step_false_no": step_contracts and not step.certified,
    }
    slack = {"rate": (rate - claim.rate) / max(1 / tau, abs(rate)), "factor": bound - factor}
    distance = {case.target: abs(rate * tau if case.target == "rate" else factor - 1)}
    label, size = case.label._asdict(), "large" if case.large else "small"
    claims = {"claimed": claim.as_dict(), "wrong": wrong, "exact": {"rate": rate, "factor": factor}}
    where = {"drawn_from": drawn, "class": label, "place": case.place, "dt": case.dt}
    return Verdict(
        {**label, "place": f"{case.target} {case.place}, {size}", "total": "all"},
        {name: int(value) for name, value in counts.items()},
        bound / factor if is_known else math.nan,
        distance if case.place == "boundary" else {},
        {} if case.large else slack,
        settled,
        {**claims, **where, "dtype": str(net.terms.tau.dtype)} if wrong else {},
    )


# Counting


def totals(verdicts: list[Verdict], axis: str) -> dict[str, Counter[str]]:
    """The counts of every group of one axis."""
    found: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.groups[axis], Counter()).update(verdict.counts)
    return dict(sorted(found.items()))


def quantiles(values: list[float], *shares: float) -> dict[str, float]:
    """By name; none of no values."""
    names = {0: "least", 0.5: "median", 1: "largest"}
    found = np.quantile(values, shares).tolist() if values else []
    return {names.get(q, f"{100 * q:g} %"): value for q, value in zip(shares, found, strict=False)}


def facts(verdicts: list[Verdict]) -> dict[str, Any]:
    """What was counted, as plain values."""
    distances: dict[str, dict[str, float]] = {}
    for key in ("rate", "step"):
        if found := [verdict.distance[key] for verdict in verdicts if key in verdict.distance]:
            distances[key] = quantiles(found, 0.5, 0.95, 1)
    return {
        "tolerance": TOLERANCE,
        "margin_of_a_false_no": MARGIN,
        "settled_in_50_digits": sum(verdict.settled for verdict in verdicts),
        "smallest_slack": {
            name: min((verdict.slack.get(name, math.inf) for verdict in verdicts), default=math.inf)
            for name in ("rate", "factor")
        },
        "certified_over_exact_factor": quantiles(
            [v.ratio for v in verdicts if v.ratio > 0], 0, 0.5, 0.9
        ),
        "distance_from_boundary": distances,
        "total": totals(verdicts, "total").get("all", {}),
        "places": totals(verdicts, "place"),
        **{f"by_{axis}": totals(verdicts, axis) for axis in Label._fields},
        "offenders": [verdict.offence for verdict in verdicts if verdict.offence][:WORST_KEPT],
    }


def hunt(nets: int, seed: int, search: Search, console: Console) -> tuple[list[Verdict], bool]:
    """Judge `nets` nets at the boundary (and those inside); whether it was interrupted."""
    # Every class, in an order that spreads any prefix over all of them.
    classes = list(starmap(Label, product(KINDS, FORMS, COUPLINGS, SOLVERS)))
    order, verdicts, wrong = np.random.default_rng(0).permutation(len(classes)), list[Verdict](), 0
    try:
        with Progress(console=console) as progress:
            task = progress.add_task("nets at the boundary", total=nets)
            for k in range(nets):
                rng, label = np.random.default_rng([seed, k]), classes[order[k % len(order)]]
                tries = (draw(rng, label, k % LARGE == LARGE - 1) for _ in range(50))
                cases = next(filter(None, tries), None)
                if cases is None:
                    raise RuntimeError(f"no net of the class {label} has a boundary")
                for case in cases:
                    verdicts.append(judge(rng, case, [seed, k], search))
                    wrong += bool(verdicts[-1].offence)
                progress.update(task, advance=1, description=f"{wrong} false yes")
    except KeyboardInterrupt:
        return verdicts, True
    return verdicts, False


def report(verdicts: list[Verdict]) -> Table:
    """The totals by every axis of the classes, of places, and of all."""
    columns = ["class", "cases", "contract", "certified", "FALSE YES", "false no"]
    columns += ["steps contract", "certified", "FALSE YES", "false no"]
    table = Table(*columns, title="Certificates against exact checks; false no: share of those inside")
    for axis in (*Label._fields, "place", "total"):
        for name, c in totals(verdicts, axis).items():
            cells = [str(c["nets"])]
            for step in ("", "step_"):
                cells += [str(c[step + key]) for key in ("contract", "certified", "false_yes")]
                no, of = c[f"{step}false_no"], c[f"{step}no"]
                cells.append(f"{100 * no / of:.1f} %" if of else "-")
            table.add_row(name, *cells)
        table.add_section()
    return table


def main() -> None:
    """Hunt, print the table, keep the counts; the exit status is 1 if a certificate was wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nets", type=int, default=10_000, help="nets at the boundary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", choices=("none", "fast"), default="none", help="for metrics")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Of the very certificates that are tried, before the run.
    source = [path.read_bytes() for path in sorted(Path(certificates.__file__).parent.glob("*.py"))]
    result = about(__file__, seed=arguments.seed)
    result |= {"certificates_sha256": hashlib.sha256(b"".join(source)).hexdigest()}
    console, started = Console(width=150), time.perf_counter()
    verdicts, stopped = hunt(arguments.nets, arguments.seed, arguments.search, console)
    seconds = round(time.perf_counter() - started, 1)
    console.print(report(verdicts))
    result |= {"nets": arguments.nets, "search": arguments.search, "interrupted": stopped}
    result |= {"seconds": seconds, **facts(verdicts)}
    wrong, (rate, factor) = len(result["offenders"]), result["smallest_slack"].values()
    console.print(f"{wrong} wrong; smallest slack: rate {rate:.2e}, factor {factor:.2e}")
    console.print(
        f"certified over exact factor: {result['certified_over_exact_factor']}; {seconds:.0f} s"
    )
    print(keep("no-false-yes", result, arguments.results))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
