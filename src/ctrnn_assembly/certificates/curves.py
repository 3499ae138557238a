"""The proven factor of a step against its length, as a curve over dt.

For one pattern of slopes ||I + dt J|| is convex in dt and 1 at dt = 0, and so is the supremum over all
patterns: a chord between two proven factors bounds every factor between them. So a curve needs few
proofs, at equal distances of dt, and is itself proven.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ctrnn_assembly.certificates.certify import unusable
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.result import Certificate, StepProof
from ctrnn_assembly.certificates.rounding import DENSE, UNIT
from ctrnn_assembly.certificates.steps import STEP_PROOFS, euler_step
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms


@dataclass(frozen=True)
class FactorCurve:
    """Upper bounds on the factor of one step for increasing dt; infinite where none is proven."""

    solver: str
    dts: tuple[float, ...]
    factors: tuple[float, ...]
    max_dt: float


@torch.no_grad()
def factor_curves(terms: Terms, metric: Metric, *, near: float) -> tuple[FactorCurve, ...]:
    """The curves of all solvers over one range of dt, which holds `near` and what is certified.

    `metric` is one that certifies the field; a ContractionError says why nothing can be proven.
    """
    terms, metric = terms.detach_cpu(), metric.detach_cpu()
    broken = unusable(terms, metric)
    if broken:
        raise ContractionError(f"no step can be proven: {broken}.")
    whole, proofs = Interconnection.of(terms, metric), 8 if terms.n <= DENSE else 2
    alone = euler_step(whole.uncoupled)
    exact = {solver: proof(whole, alone) for solver, proof in STEP_PROOFS.items()}
    bounds = {"euler": chords(exact["euler"], proofs, near)}
    by_chords = chords(alone, 2 * proofs, near)
    for solver, proof in STEP_PROOFS.items():
        if solver not in bounds:
            bounds[solver] = _sharper_at(near, exact[solver], proof(whole, by_chords))
    return _sampled(bounds, {solver: proof.max_dt for solver, proof in exact.items()}, near)


def chords(proof: StepProof, count: int, near: float) -> StepProof:
    """The factor of a step I + dt J by chords from (0, 1) to (max_dt, 1), the lower hull of proofs.

    They are proven at `count` equal distances of dt and at `near`.
    """
    largest = proof.max_dt
    if not 0 < largest < math.inf:
        return StepProof(lambda dt: math.inf, 0.0)
    inner = sorted({near, *(largest * k / count for k in range(1, count))})
    proven = [(dt, proof.factor(dt)) for dt in inner if 0 < dt < largest]

    def slope(left: tuple[float, float], right: tuple[float, float]) -> float:
        return (right[1] - left[1]) / (right[0] - left[0])

    hull: list[tuple[float, float]] = []
    for point in [(0.0, 1.0), *proven, (largest, 1.0)]:
        # A point above the chord between its neighbours is bounded better by the chord.
        while len(hull) > 1 and slope(hull[-2], hull[-1]) >= slope(hull[-2], point):
            hull.pop()
        hull.append(point)

    knots, factors = zip(*hull, strict=True)

    def factor(dt: float) -> float:
        return float(np.interp(dt, knots, factors)) * (1 + 8 * UNIT) if dt <= largest else math.inf

    return StepProof(factor, largest)


def _sharper_at(near: float, exact: StepProof, closed: StepProof) -> StepProof:
    """The bound in closed form, at `near` the better proof, which costs far more."""
    there = exact.factor(near)
    return replace(closed, factor=lambda dt: there if dt == near else closed.factor(dt))


def _sampled(
    bounds: dict[str, StepProof], largest: dict[str, float], near: float
) -> tuple[FactorCurve, ...]:
    """At dt from a tenth of the smallest to three times the largest of the marks, and at these."""
    marks = [near, *(dt for dt in largest.values() if 0 < dt < math.inf)]
    dts = tuple(sorted([*np.geomspace(min(marks) / 10, 3 * max(marks), 200).tolist(), *marks]))
    return tuple(FactorCurve(s, dts, (*map(bounds[s].factor, dts),), largest[s]) for s in bounds)


def step_curves(layer: Any, certificate: Certificate, *, near: float) -> tuple[FactorCurve, ...]:
    """The curves of a layer with this certificate; of Euler alone if its gates read input or state."""
    if not certificate.certified:
        return ()
    if layer.gates is None or layer.gates.kind == "constant":
        terms, metric = layer.terms().detach_cpu(), certificate.metric.matrix
        assert metric is not None
        return factor_curves(terms, metric, near=near)

    def factor(dt: float) -> float:
        step = layer.certificate(dt=dt * layer.substeps, solver="euler").step
        return math.inf if step is None or step.contraction_factor is None else step.contraction_factor

    step = layer.certificate(dt=near * layer.substeps, solver="euler").step
    largest = 0.0 if step is None else step.max_dt
    bounds = {"euler": chords(StepProof(factor, largest), 12, near)}
    return _sampled(bounds, {"euler": largest}, near)
