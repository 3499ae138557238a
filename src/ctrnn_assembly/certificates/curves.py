"""The proven factor of a step against its length, as a curve over dt.

For one pattern of slopes ||I + dt J|| is convex in dt and 1 at dt = 0, and so is the supremum over all
patterns: a chord between two proven factors bounds every factor between them. So a curve needs few
proofs, and is itself proven.

Cost: `proofs` inequalities of `euler` for the whole, and twice as many for the modules alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch

from ctrnn_assembly.certificates.checks import unusable
from ctrnn_assembly.certificates.euler import EulerStep
from ctrnn_assembly.certificates.implicit import (
    exponential_factor,
    exponential_max_dt,
    imex_factor,
    imex_max_dt,
)
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.result import Certificate, StepCertificate
from ctrnn_assembly.certificates.rounding import UNIT
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms

Solver = Literal["euler", "imex", "exponential-euler"]
SOLVERS: tuple[Solver, ...] = ("euler", "imex", "exponential-euler")
POINTS = 200


@dataclass(frozen=True)
class FactorCurve:
    """Upper bounds on the factor of one step, one for each dt; infinite where none is proven.

    Attributes:
        dts: increasing, in the unit of tau. factors: one for each.
        max_dt: largest certified dt: 0 for none, infinite for every dt.
    """

    solver: str
    dts: tuple[float, ...]
    factors: tuple[float, ...]
    max_dt: float


@torch.no_grad()
def factor_curves(
    terms: Terms,
    metric: Metric,
    *,
    near: float,
    solvers: Sequence[Solver] = SOLVERS,
    proofs: int = 8,
) -> tuple[FactorCurve, ...]:
    """The curves of several solvers over one range of dt, which holds `near` and what is certified.

    Args:
        terms, metric: a field, and a metric that certifies it (`certificate.metric.matrix`).
        near: a dt of interest, such as that of a run.
        solvers: some of `SOLVERS`.
        proofs: of the curve of Euler, at equal distances of dt; the more, the closer.

    Raises:
        ContractionError: if a weight, time constant or metric is such that nothing can be proven.
    """
    terms, metric = terms.detach_cpu(), metric.detach_cpu()
    broken = unusable(terms, metric)
    if broken:
        raise ContractionError(f"no step can be proven: {broken}.")
    assembled = Interconnection.of(terms, metric)
    tau = terms.tau.double()
    found: list[tuple[str, Callable[[float], float], float]] = []
    own = EulerStep.alone(assembled)
    chords = Chords.of(own.factor, own.max_dt, 2 * proofs, near)
    stand_in = cast(EulerStep, chords)  # of which the two functions below use `gain` only
    for solver in solvers:
        if solver == "euler":
            whole = EulerStep.coupled(assembled)
            bound = Chords.of(whole.factor, whole.max_dt, proofs, near).factor
            found.append((solver, bound, whole.max_dt))
        elif solver == "imex":
            largest = imex_max_dt(assembled, own)
            found.append((solver, lambda dt: imex_factor(assembled, stand_in, dt), largest))
        else:
            largest = exponential_max_dt(assembled, own, tau)
            found.append((solver, lambda dt: exponential_factor(assembled, stand_in, tau, dt), largest))
    dts = dt_range(near, [largest for _, _, largest in found])
    return tuple(
        FactorCurve(solver, dts, tuple(gain(dt) for dt in dts), largest)
        for solver, gain, largest in found
    )


@dataclass(frozen=True)
class Chords:
    """The factor of a step I + dt J by chords between proven factors; nothing beyond the last.

    Attributes:
        knots: dt of the proofs, from 0. factors: the proven ones, from 1.
    """

    knots: tuple[float, ...]
    factors: tuple[float, ...]

    @classmethod
    def of(cls, gain: Callable[[float], float], max_dt: float, proofs: int, near: float) -> Chords:
        """From the proven `gain` at equal distances up to `max_dt`, which contracts, and at `near`."""
        if not 0 < max_dt < math.inf:
            return cls((0.0,), (1.0,))
        inner = sorted({near, *(max_dt * k / proofs for k in range(1, proofs))})
        hull: list[tuple[float, float]] = []
        for point in [(0.0, 1.0), *((dt, gain(dt)) for dt in inner if 0 < dt < max_dt), (max_dt, 1.0)]:
            while len(hull) > 1 and _is_above(hull[-1], hull[-2], point):
                hull.pop()
            hull.append(point)
        return cls(*zip(*hull, strict=True))

    def factor(self, dt: float) -> float:
        """The bound at dt."""
        if dt > self.knots[-1]:
            return math.inf
        return float(np.interp(dt, self.knots, self.factors)) * (1 + 8 * UNIT)


def _is_above(point: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether a point is no lower than the chord from `left` to `right`, which then bounds it better."""
    share = (point[0] - left[0]) / (right[0] - left[0])
    return point[1] >= left[1] + share * (right[1] - left[1])


def dt_range(near: float, largest: Sequence[float]) -> tuple[float, ...]:
    """dt from a tenth of the smallest to three times the largest of these, and these."""
    marks = [near, *(dt for dt in largest if 0 < dt < math.inf)]
    between = np.geomspace(min(marks) / 10, 3 * max(marks), POINTS)
    return tuple(sorted([*between.tolist(), *marks]))


def gated_curve(certificate: Callable[[float], Certificate], *, near: float) -> FactorCurve:
    """The curve of forward Euler for whatever `certificate` certifies at a given dt."""

    def step(dt: float) -> StepCertificate:
        found = certificate(dt).step
        assert found is not None
        return found

    def gain(dt: float) -> float:
        found = step(dt).contraction_factor
        return math.inf if found is None else found

    largest = step(near).max_dt
    dts = dt_range(near, [largest])
    chords = Chords.of(gain, largest, 12, near)
    return FactorCurve("euler", dts, tuple(chords.factor(dt) for dt in dts), largest)
