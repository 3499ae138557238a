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
def step_curves(net: Any, certificate: Certificate, *, near: float) -> tuple[FactorCurve, ...]:
    """Of all solvers, over dt around `near`, in the metric of the net's certificate; none without one.

    The net is `Terms` or a layer, of which gates that read input or state leave Euler's curve alone.
    """
    metric, gates = certificate.metric.matrix, getattr(net, "gates", None)
    if not certificate.certified or metric is None:
        return ()
    if gates is None or gates.kind == "constant":
        terms = (net if isinstance(net, Terms) else net.terms()).detach_cpu()
        if broken := unusable(terms, metric):
            raise ContractionError(f"the certificate is of another net: {broken}. Certify this one.")
        whole = Interconnection.of(terms, metric)
        return _sampled({scheme: prove_step(whole, scheme) for scheme in SCHEMES}, near)

    def step(dt: float) -> Any:
        return net.certificate(dt=dt * net.substeps, solver="euler").step

    euler = StepProof(lambda dt: step(dt).contraction_factor or math.inf, step(near).max_dt)
    return _sampled({"euler": euler}, near)


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
