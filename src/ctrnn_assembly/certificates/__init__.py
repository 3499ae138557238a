"""Certificates: recomputed in float64 from plain tensors (W, L, M, tau, slopes, dt), able to fail.

Nothing here imports a parametrisation: a certificate sees the weights actually used, not the map that
made them. Where to read:

| file | what |
|---|---|
| `rounding` | bounds that hold with float64 rounding accounted for: the trusted kernel |
| `checks` | what is refused before any proof |
| `loop` | a module as a linear system in a loop with its slopes |
| `modules` | Theorems 1 to 5 and the master lemma: the rate of a module |
| `assembled` | modules under a coupling: the rate of the whole |
| `euler`, `implicit` | the discrete steps: disc, LMI, IMEX, exponential Euler |
| `search` | a metric where none is known |
| `composition` | the rate of an assembly from the rates of its parts |
| `gates` | state- and input-dependent time scales |
| `curves` | the factor of a step against its length |
| `result` | what a certificate says |
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch

from ctrnn_assembly.certificates.assembled import Assembled, block_norms, blocks_present
from ctrnn_assembly.certificates.checks import unusable
from ctrnn_assembly.certificates.euler import EulerStep
from ctrnn_assembly.certificates.implicit import (
    exponential_gain,
    exponential_max_dt,
    imex_gain,
    imex_max_dt,
    largest_coupling_norm,
)
from ctrnn_assembly.certificates.result import Certificate as Certificate
from ctrnn_assembly.certificates.result import CouplingFacts, MetricFacts
from ctrnn_assembly.certificates.result import Module as Module
from ctrnn_assembly.certificates.result import Step as Step
from ctrnn_assembly.certificates.search import candidates
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.topology import recognise

# In units of 1 / tau: a smaller rate is no guarantee that anyone can use, and is refused.
SMALLEST_RATE = 1e-6
EULER = ("euler", "euler-plain")
PROVEN_STEPS = (*EULER, "imex", "exponential-euler")

Search = Literal["none", "fast", "convex"]


@torch.no_grad()
def certify(
    field: Any, *, dt: float | None = None, solver: str | None = None, search: Search = "fast"
) -> Certificate:
    """Certify a subnetwork, assembly or nested assembly as its weights are now.

    The field's own metric is tried first; if it proves nothing, `search` looks for another one.

    Args:
        field: anything with `terms()` and `metric()`.
        dt, solver: the discrete step to certify, dt in the unit of tau; solver "euler" by default.
        search: "none"; "fast" for identity, Perron, Lyapunov and balanced metrics; "convex" for these
            and a semidefinite search for a diagonal one (extra `convex`).

    Returns:
        The `Certificate`; its guarantee is stated there.
    """
    terms, metric = _on_cpu(field.terms(), field.metric())
    own = certify_terms(terms, metric, dt=dt, solver=solver)
    if own.certified or search == "none" or unusable(terms, metric):
        return own
    found = candidates(terms, convex=search == "convex")
    rated = [(Assembled.of(terms, other).rate()[0], origin, other) for origin, other in found]
    rate, origin, other = max(rated, key=lambda entry: entry[0])
    if rate > 0:
        best = certify_terms(terms, other, dt=dt, solver=solver, origin=origin)
        if best.certified:
            return best
    added = "no identity, Perron, Lyapunov or balanced metric was found that shows it either"
    return replace(own, reasons=(*own.reasons, added))


@torch.no_grad()
def certify_terms(
    terms: Terms,
    metric: Metric,
    *,
    dt: float | None = None,
    solver: str | None = None,
    origin: str = "given",
) -> Certificate:
    """Certify the field of `terms` in `metric`, and its step if dt is given.

    Args:
        terms: the tensors of the field.
        metric: the metric to prove contraction in, one factor a block of `terms`.
        dt, solver: the step, dt in the unit of tau; solver "euler" by default.
        origin: where the metric comes from, for the report.
    """
    terms, metric = _on_cpu(terms, metric)
    method = solver or "euler"
    broken = unusable(terms, metric)
    if broken:
        return _refused(broken, dt, method, origin)
    try:
        assembled = Assembled.of(terms, metric)
        rate, rounding = assembled.rate()
    except torch.linalg.LinAlgError as error:
        reason = f"the numbers differ too much in size for float64 linear algebra ({error})"
        return _refused(reason, dt, method, origin)
    smallest = SMALLEST_RATE / float(terms.tau.max())
    modules = tuple(_modules(terms, assembled))
    certified = all(module.certified for module in modules) and rate >= smallest
    reasons = () if certified else (_reason(assembled, modules, rate, smallest),)
    step = None
    if dt is not None:
        step = _step(assembled, terms, dt, method, certified)
    return Certificate(
        certified=certified,
        rate=rate,
        rounding=rounding,
        metric=_metric_facts(terms, metric, origin),
        modules=modules,
        coupling=_coupling_facts(terms, assembled),
        step=step,
        reasons=reasons,
    )


@torch.no_grad()
def largest_coupling(terms: Terms, metric: Metric, dt: float) -> float:
    """omega such that the Euler step of length dt contracts for every feedback L with ||L||_M <= omega.

    From the modules alone; 0 if none is proven. Training can project onto this ball.
    """
    terms, metric = _on_cpu(terms, metric)
    if unusable(terms, metric) or terms.edges or not 0 < dt < math.inf:
        return 0.0
    assembled = Assembled.of(terms, metric)
    if any(module.rate <= 0 for module in assembled.modules):
        return 0.0
    return largest_coupling_norm(assembled, EulerStep.alone(assembled), dt) / float(
        1 / terms.tau.double().min()
    )


def _on_cpu(terms: Terms, metric: Metric) -> tuple[Terms, Metric]:
    """The same tensors on the CPU, where float64 is exact and LAPACK is."""
    return terms.detach_cpu(), metric.detach_cpu()


def _refused(broken: str, dt: float | None, solver: str, origin: str) -> Certificate:
    """Nothing can be proven."""
    step = None if dt is None else Step(solver, dt, False, None, 0.0, broken)
    metric = MetricFacts("none", origin, 0.0, math.inf)
    coupling = CouplingFacts("unknown", (), (), math.inf, math.inf, 0)
    return Certificate(False, -math.inf, math.inf, metric, (), coupling, step, (broken,))


def _modules(terms: Terms, assembled: Assembled) -> list[Module]:
    found = []
    taus = terms.tau.double().split(terms.sizes)
    for k, (proven, tau) in enumerate(zip(assembled.modules, taus, strict=True)):
        unit = float(tau.max()) if proven.rate > 0 else float(tau.min())
        certified = proven.rate * float(tau.max()) >= SMALLEST_RATE
        theorem = proven.theorem if certified else "none"
        found.append(Module(k, len(tau), theorem, proven.rate * unit, proven.rate, certified))
    return found


def _reason(assembled: Assembled, modules: tuple[Module, ...], rate: float, smallest: float) -> str:
    """The first condition that failed, its value, and what to change."""
    growth = assembled.abscissa_at_full_slope()
    unstable = (
        f"At the largest slopes the Jacobian has an eigenvalue with real part {growth:.4g}: no constant "
        "metric can show contraction. "
        if growth > 0
        else ""
    )
    worst = min(modules, key=lambda module: module.margin)
    if not worst.certified:
        count = sum(not module.certified for module in modules)
        return (
            f"module {worst.index} is not shown to contract in its metric: the best bound on its rate "
            f"is {worst.margin:.6g} / tau, needed is {SMALLEST_RATE:g} ({count} of {len(modules)} "
            f"modules fail). {unstable}Scale its weights down, or use a trained constraint such as "
            "svd-combo"
        )
    what = "nonlinear edges cost" if assembled.gains is not None else "coupling costs"
    return (
        f"the {what} more than the modules' rates: the whole has the bound {rate:.6g}, needed is "
        f"{smallest:.3g}; the symmetric part of L in the metric is {assembled.cost:.6g}. {unstable}Use "
        "feedback coupling, which costs nothing, or scale the coupling down"
    )


def _step(assembled: Assembled, terms: Terms, dt: float, solver: str, certified: bool) -> Step:
    """The factor of one step of a certified system."""
    if not certified:
        return Step(solver, dt, False, None, 0.0, "the continuous system is not certified")
    if not 0 < dt < 1e100:
        return Step(solver, dt, False, None, 0.0, f"dt must be positive and below 1e100; got {dt}")
    if solver not in PROVEN_STEPS:
        return Step(solver, dt, False, None, 0.0, f"no proof is known for steps of {solver}")
    tau = terms.tau.double()
    if solver in EULER:
        step = EulerStep.coupled(assembled)
        gain, largest = step.gain(dt), step.max_dt
    elif solver == "imex":
        own = EulerStep.alone(assembled)
        gain, largest = imex_gain(assembled, own, dt), imex_max_dt(assembled, own)
    else:
        own = EulerStep.alone(assembled)
        gain = exponential_gain(assembled, own, tau, dt)
        largest = exponential_max_dt(assembled, own, tau)
    if gain < 1:  # rounding is in the bound already
        return Step(solver, dt, True, gain, max(largest, dt))
    known = gain if math.isfinite(gain) else None
    return Step(solver, dt, False, known, min(largest, dt), _step_reason(solver, gain, largest))


def _step_reason(solver: str, gain: float, largest: float) -> str:
    bound = f"the bound on the step's factor is {gain:.6g}, not below 1"
    if largest > 0:
        return f"{bound}; the largest certified dt is {largest:.6g}"
    if solver == "exponential-euler":
        return f"{bound}, as ||W D|| exceeds the leak in the metric; use imex"
    return f"{bound}; no dt is certified"


def _metric_facts(terms: Terms, metric: Metric, origin: str) -> MetricFacts:
    """Extreme eigenvalues of diag(tau) M, to float64 accuracy."""
    low, high = math.inf, 0.0
    for factor, tau in zip(metric.factors, terms.tau.double().split(terms.sizes), strict=True):
        theta = factor.theta.double()
        values = (
            theta * tau.sqrt() if factor.is_diagonal else torch.linalg.svdvals(theta * tau[0].sqrt())
        )
        low, high = min(low, float(values.min()) ** 2), max(high, float(values.max()) ** 2)
    kind = "dense" if not metric.is_diagonal else "identity" if low == high else "diagonal"
    return MetricFacts(kind, origin, low, high, metric)


def _coupling_facts(terms: Terms, assembled: Assembled) -> CouplingFacts:
    """Pairs from the entries of L themselves, with the residual of each."""
    K, sizes = assembled.K, terms.sizes
    S = 2 * assembled.skewness[0]
    p = len(sizes)
    norms = block_norms(S, sizes)
    present = blocks_present(K, sizes)
    pairs = tuple((i, j) for i in range(p) for j in range(i + 1, p) if present[i][j] or present[j][i])
    return CouplingFacts(
        topology=recognise(pairs, p),
        pairs=pairs,
        residuals=tuple(float(norms[i, j]) for i, j in pairs),
        norm=assembled.norm,
        cost=assembled.cost,
        edges=len(terms.edges),
    )
