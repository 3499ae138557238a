"""The proven factor of a step against its length, as a curve over dt.

It needs few proofs of Euler's step, at equal distances of dt: chords between them are proven as well.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ctrnn_assembly.certificates.certify import unusable
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.result import Certificate, StepProof
from ctrnn_assembly.certificates.rounding import DENSE
from ctrnn_assembly.certificates.steps import chords, exponential_euler_step, imex_step, prove_step
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.linalg import one_thread
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.terms import Terms


@dataclass(frozen=True)
class FactorCurve:
    """Upper bounds on the factor of one step for increasing dt; infinite where none is proven."""

    solver: str
    dts: tuple[float, ...]
    factors: tuple[float, ...]
    max_dt: float


@torch.no_grad()
@one_thread()
def factor_curves(terms: Terms, metric: Metric, *, near: float) -> tuple[FactorCurve, ...]:
    """The curves of all solvers over one range of dt, which holds `near` and what is certified.

    `metric` is one that certifies the field; a ContractionError says why nothing can be proven.
    """
    terms, metric = terms.detach_cpu(), metric.detach_cpu()
    broken = unusable(terms, metric)
    if broken:
        raise ContractionError(f"no step can be proven: {broken}.")
    whole, proofs = Interconnection.of(terms, metric), 8 if terms.n <= DENSE else 2

    def sampled(exact: StepProof) -> StepProof:
        return chords(exact, [near, *(exact.max_dt * k / proofs for k in range(1, proofs))])

    exact = {scheme: prove_step(whole, scheme) for scheme in SCHEMES}
    together, apart = sampled(exact["euler"]), sampled(prove_step(whole.uncoupled, "euler"))
    closed = {
        "euler": together,
        "imex": imex_step(whole, apart),
        "exponential-euler": exponential_euler_step(whole, lambda: together),
    }
    return _sampled(closed, exact, near)


def _sampled(
    closed: dict[str, StepProof], exact: dict[str, StepProof], near: float
) -> tuple[FactorCurve, ...]:
    """At dt from a tenth of the smallest to three times the largest of the marks, and at these.

    By closed forms, and at `near` by the better of both: an LMI costs far more.
    """
    marks = [near, *(proof.max_dt for proof in exact.values() if 0 < proof.max_dt < math.inf)]
    dts = tuple(sorted([*np.geomspace(min(marks) / 10, 3 * max(marks), 200).tolist(), *marks]))
    curves = []
    for scheme, proof in closed.items():
        there = min(proof.factor(near), exact[scheme].factor(near))
        factors = tuple(there if dt == near else proof.factor(dt) for dt in dts)
        curves.append(FactorCurve(scheme, dts, factors, exact[scheme].max_dt))
    return tuple(curves)


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
    exact = StepProof(factor, largest)
    proofs = chords(exact, [near, *(largest * k / 12 for k in range(1, 12))])
    return _sampled({"euler": proofs}, {"euler": exact}, near)
