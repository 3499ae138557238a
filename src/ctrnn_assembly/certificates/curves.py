"""The proven factor of a step against its length, at few dt: each takes a proof of its own."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctrnn_assembly.certificates.certify import unusable
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.result import Certificate, StepProof
from ctrnn_assembly.certificates.steps import prove_step
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.linalg import one_thread
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.terms import Terms

POINTS = 10  # besides the dt that are asked for or the largest


@dataclass(frozen=True)
class FactorCurve:
    """Upper bounds on the factor of one step for increasing dt, up to `max_dt`; infinite beyond."""

    solver: str
    dts: tuple[float, ...]
    factors: tuple[float, ...]
    max_dt: float


@one_thread()
def factor_curves(terms: Terms, metric: Metric, *, near: float) -> tuple[FactorCurve, ...]:
    """Of all solvers, over dt around `near`, in a metric that certifies; or a ContractionError."""
    terms, metric = terms.detach_cpu(), metric.detach_cpu()
    if broken := unusable(terms, metric):
        raise ContractionError(f"no step can be proven: {broken}.")
    whole = Interconnection.of(terms, metric)
    return _sampled({scheme: prove_step(whole, scheme) for scheme in SCHEMES}, near)


def _sampled(proofs: dict[str, StepProof], near: float) -> tuple[FactorCurve, ...]:
    """From a tenth of the smallest to three times the largest of `near` and the largest dt."""
    marks = [near, *(proof.max_dt for proof in proofs.values() if 0 < proof.max_dt < math.inf)]
    dts = sorted({*np.geomspace(min(marks) / 10, 3 * max(marks), POINTS).tolist(), *marks})
    curves = []
    for scheme, proof in proofs.items():
        known = [dt <= proof.max_dt or dt == near for dt in dts]
        factors = (proof.factor(dt) if one else math.inf for dt, one in zip(dts, known, strict=True))
        curves.append(FactorCurve(scheme, tuple(dts), tuple(factors), proof.max_dt))
    return tuple(curves)


def step_curves(layer: Any, certificate: Certificate, *, near: float) -> tuple[FactorCurve, ...]:
    """The curves of a layer with this certificate; of Euler alone if its gates read input or state."""
    if not certificate.certified:
        return ()
    if layer.gates is None or layer.gates.kind == "constant":
        assert certificate.metric.matrix is not None
        return factor_curves(layer.terms(), certificate.metric.matrix, near=near)

    def factor(dt: float) -> float:
        step = layer.certificate(dt=dt * layer.substeps, solver="euler").step
        return math.inf if step is None or step.contraction_factor is None else step.contraction_factor

    step = layer.certificate(dt=near * layer.substeps, solver="euler").step
    return _sampled({"euler": StepProof(factor, 0.0 if step is None else step.max_dt)}, near)
