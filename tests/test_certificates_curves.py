"""Gain curves: every value drawn bounds the factor of the step, up to where the proof ends."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module

import pytest
import torch
from torch import Tensor

from ctrnn_assembly import (
    AdaDiagTanh,
    Assembly,
    SingularValueBounded,
    Subnetwork,
    Symmetric,
    certify,
    couple,
)
from ctrnn_assembly.certificates.certify import FactorCurve, step_curves
from ctrnn_assembly.certificates.result import StepProof
from ctrnn_assembly.certificates.steps import chord
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.layers import CTRNN
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.terms import Terms

DT = 0.1


def net(
    kind: type = SingularValueBounded, coupling: str = "all", tau: float = 1.0, gain: float = 1.0
) -> Assembly:
    generator = torch.Generator().manual_seed(3)
    parts = [Subnetwork(kind("tanh"), 4, tau=tau, generator=generator) for _ in range(3)]
    return couple(parts, coupling, init_scale=gain, generator=generator)


@pytest.fixture(autouse=True, scope="module")
def few_points() -> Iterator[None]:
    """Each takes a proof of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("ctrnn_assembly.certificates.certify"), "POINTS", 5)
        yield


@cache
def known_curves(kind: type, coupling: str, tau: float, gain: float) -> tuple[FactorCurve, ...]:
    field = net(kind, coupling, tau, gain)
    return step_curves(field.terms(), certify(field), near=DT)


def step_matrix(solver: str, dt: float, tau: float, WD: Tensor, L: Tensor) -> Tensor:
    """The linear map of one step for a difference of states, tau one number."""
    eye, h = torch.eye(len(WD)), dt / tau
    if solver == "euler":
        return eye + h * (-eye + WD + L)
    if solver == "imex":
        return torch.linalg.solve(eye - h * L, eye + h * (-eye + WD))
    F = L - eye
    P = torch.linalg.matrix_exp(h * F)
    return P + torch.linalg.solve(F, (P - eye) @ WD)


@pytest.mark.parametrize(
    ("kind", "coupling", "tau"),
    [
        (SingularValueBounded, "all", 1.0),
        (SingularValueBounded, "all", 3.0),
        (Symmetric, "chain", 3.0),
        (SingularValueBounded, "none", 1.0),
    ],
)
def test_a_curve_bounds_the_factor_of_every_pattern_of_slopes(
    kind: type, coupling: str, tau: float
) -> None:
    field = net(kind, coupling, tau)
    terms, metric = field.terms(), field.metric()
    theta = metric.theta()
    W = torch.block_diag(*terms.blocks)
    L = torch.zeros_like(W) if terms.L is None else terms.L
    patterns = [torch.ones(12), torch.zeros(12), *(torch.rand(30, 12) > 0.5).double()]
    with torch.no_grad():
        for curve in known_curves(kind, coupling, tau, 1.0):
            checked = 0
            for dt, gain in list(zip(curve.dts, curve.factors, strict=True)):
                if not math.isfinite(gain):
                    continue
                for D in patterns:
                    step = step_matrix(curve.solver, dt, tau, W * D, L)
                    norm = torch.linalg.matrix_norm(theta @ step @ theta.inverse(), 2)
                    assert float(norm) <= gain * (1 + 1e-12), (curve.solver, dt)
                checked += 1
            assert checked > 3


@pytest.mark.parametrize("gain", [1.0, 30.0])
@pytest.mark.parametrize("solver", SCHEMES)
def test_a_curve_agrees_with_the_certificate(solver: str, gain: float) -> None:
    field = net(gain=gain)
    known = known_curves(SingularValueBounded, "all", 1.0, gain)
    (curve,) = (curve for curve in known if curve.solver == solver)
    step = certify(field, dt=DT, solver=solver).step
    assert step is not None
    assert step.contraction_factor is not None
    assert curve.max_dt == pytest.approx(step.max_dt, rel=1e-9)
    at = dict(zip(curve.dts, curve.factors, strict=True))[DT]
    if step.certified:  # a chord may bound the factor better than the proof at its own dt
        assert step.contraction_factor * 0.99 <= at <= step.contraction_factor * (1 + 1e-12)
    assert list(curve.dts) == sorted(curve.dts)
    if math.isfinite(curve.max_dt):
        for dt, value in zip(curve.dts, curve.factors, strict=True):
            assert value <= 1 + 1e-9 if dt <= curve.max_dt else value > 1


def test_a_chord_bounds_what_is_convex_and_is_no_worse_than_a_poor_proof() -> None:
    for half, bounds in (
        (0.8, {0.0: 1, 0.25: 0.9, 0.5: 0.8, 0.75: 0.9, 1.0: 1}),
        (1.2, {0.3: 1, 0.5: 1}),
    ):
        hull = chord(StepProof({0.5: half}.__getitem__, 1.0))
        assert hull.max_dt == 1
        for dt, bound in bounds.items():
            assert hull.factor(dt) == pytest.approx(bound, rel=1e-12)
        assert hull.factor(1.0001) == math.inf


@pytest.mark.parametrize("max_dt", [0.0, math.inf])
def test_without_a_largest_dt_there_is_no_chord(max_dt: float) -> None:
    assert chord(StepProof(lambda dt: 0.5, max_dt)).factor(0.1) == math.inf


def test_a_broken_net_has_no_curve() -> None:
    field = net()
    terms = field.terms()
    broken = replace(terms, tau=-terms.tau)
    assert step_curves(broken, certify(broken, field.metric()), near=DT) == ()
    with pytest.raises(ContractionError, match="every time constant must be positive"):
        step_curves(broken, certify(field), near=DT)


class Sheared:
    """A field that contracts, but not in the identity, which it gives as its metric."""

    def __init__(self) -> None:
        self.module = Subnetwork(AdaDiagTanh("tanh"), 2)

    def terms(self) -> Terms:
        return replace(self.module.terms(), blocks=(torch.tensor([[0.5, 8.0], [0.0, 0.5]]),))

    def metric(self) -> Metric:
        return self.module.metric()


def test_a_certificate_holds_the_metric_of_its_proof() -> None:
    sheared = Sheared()
    found = certify(sheared)
    assert found.certified
    assert found.metric.origin.startswith("search")
    assert found.metric.matrix is not None
    assert certify(sheared.terms(), found.metric.matrix, search="none").rate == found.rate


@pytest.mark.parametrize("gate", ["constant", "shared"])
def test_gated_fields_have_the_curve_of_their_certificate(gate: str) -> None:
    core = CTRNN(2, net(AdaDiagTanh), gate=gate, dt=DT)  # type: ignore[arg-type]
    drawn = step_curves(core, core.certificate(), near=DT)
    curve = next(curve for curve in drawn if curve.solver == "euler")
    step = core.certificate().step
    assert step is not None
    assert step.contraction_factor is not None
    assert curve.max_dt == step.max_dt
    at = dict(zip(curve.dts, curve.factors, strict=True))[DT]
    assert step.contraction_factor * 0.99 <= at <= step.contraction_factor * (1 + 1e-12)
