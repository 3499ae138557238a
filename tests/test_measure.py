"""Measured contraction against what is certified, and against systems whose rate is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly import (
    CONSTRAINTS,
    CTRNN,
    Absolute,
    AdaDiagTanh,
    Assembly,
    Certificate,
    Hierarchy,
    NegativeProduct,
    PublishedSparse,
    SingularValueBounded,
    SparseAbsolute,
    Subnetwork,
    Symmetric,
    Triangular,
    Unconstrained,
    couple,
    measure_contraction,
)
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.certificates import certify
from ctrnn_assembly.diagnostics.contraction import Measurement
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms
from oracles import array, local_rate

GRID = ("euler", "imex", "exponential-euler")
Field = Subnetwork | Assembly


def linear(A: Tensor, tau: float = 1.0, bias: float = 0.0) -> Terms:
    """tau x' = A x + bias: the identity as activation, W = A + I."""
    n = len(A)
    identity = Elementwise(((ACTIVATIONS["identity"], n),))
    taus = torch.full((n,), tau)
    return Terms((A + torch.eye(n),), identity, identity, torch.full((n,), bias), taus)


def euclidean(n: int) -> Metric:
    return Metric((Factor.identity(n, torch.zeros(1)),))


def skew(n: int, omega: float) -> Tensor:
    K = torch.randn(n, n)
    return (K - K.mT) * (omega / torch.linalg.matrix_norm(K - K.mT, ord=2))


def certificate(field: Field, **step: Any) -> Certificate:
    """In the field's own metric: `certify` may find another one, in which nothing is measured here."""
    return certify(field.terms(), field.metric(), **step, search="none")


def stirred(field: Field) -> Field:
    """With raw tensors and biases away from their initial values, as after training."""
    leaves = field.leaves() if isinstance(field, Assembly) else [field]
    with torch.no_grad():
        for leaf in leaves:
            leaf.bias.normal_()
            if not leaf.constraint.frozen:
                for raw in leaf.parametrizations.parameters():
                    raw += 0.2 * torch.randn_like(raw)
    return field


# Systems whose rate is known


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("method", [*GRID, "dopri8"])
def test_a_decay_with_rotation_has_the_rate_that_is_known(method: str, tau: float) -> None:
    """x' = (-I + L) x / tau with skew L: each solver's factor is known for one frequency."""
    omega, dt = 3.0, 0.03
    L = torch.tensor([[0.0, omega], [-omega, 0.0]])
    h = dt / tau
    factor = {
        "euler": math.hypot(1 - h, h * omega),
        "imex": (1 - h) / math.hypot(1, h * omega),
        "exponential-euler": math.exp(-h),
        "dopri8": math.exp(-h),
    }[method]
    terms = replace(linear(-torch.eye(2), tau), L=L)
    found = measure_contraction(terms, dt=dt, steps=200, solver=method, metric=euclidean(2))
    # Beside rounding: the factor has the error of one step taken off, which 1e-6 apart is 1e-9,
    # or for dopri8 16 rtol.
    assert found.factor == pytest.approx(factor, abs=1e-4 if method == "dopri8" else 1e-7)
    assert found.factor <= factor * (1 + 1e-14)
    for rate in (found.rate, found.euclidean_rate):
        assert rate == pytest.approx(-math.log(factor) / dt, rel=1e-6)
    assert found.growth == pytest.approx(factor**200, rel=1e-5)
    assert (found.growth > 1) is (factor > 1)
    assert (found.pairs, found.steps) == (16, 200)


def test_the_slowest_pair_counts_and_the_transient_is_seen() -> None:
    """A = diag(-1, -3) in the metric diag(16, 1): the slow axis decides, Euclidean or not."""
    terms = linear(torch.diag(torch.tensor([-1.0, -3.0])))
    metric = Metric((Factor(torch.tensor([4.0, 1.0]), torch.tensor([0.25, 1.0])),))
    found = measure_contraction(terms, dt=0.1, steps=100, metric=metric, solver="exponential-euler")
    # The leak is 1, the rest is held over a step: the exact factors are affine in A.
    slow = math.exp(-0.1)
    assert found.factor == pytest.approx(slow, rel=1e-6)
    assert found.rate == pytest.approx(1, rel=1e-3)
    shear = linear(torch.tensor([[-1.0, 10.0], [0.0, -1.0]]))
    wrong = measure_contraction(shear, dt=0.01, steps=800, metric=euclidean(2), pairs=20)
    assert wrong.euclidean_peak > 2  # 10 t exp(-t) at its top is 3.7
    assert wrong.factor > 1.03
    assert not wrong.growth > 1
    root = 20.0
    right = Metric((Factor(torch.tensor([1.0, root]), torch.tensor([1.0, 1 / root])),))
    found = measure_contraction(shear, dt=0.01, steps=800, metric=right, pairs=20)
    assert local_rate(found) > 0.7  # 1 - 10 / 20 / 2 = 0.75 in continuous time
    assert 2 < found.euclidean_peak <= root


def test_distances_at_the_rounding_floor_are_left_out() -> None:
    """Around an equilibrium at 1e3 distances stop falling at 1e-13; the fit must not see it."""
    terms, dt = linear(-torch.eye(3), bias=1e3), 0.05
    found = measure_contraction(terms, dt=dt, steps=3000, metric=euclidean(3), distances=(1.0,))
    assert found.growth < 1e-11
    assert found.rate == pytest.approx(-math.log(1 - dt) / dt, rel=1e-3)
    assert found.factor <= 1 - dt
    naive = -math.log(1e-13) / (dt * 3000)
    assert found.rate > 4 * naive
    deadbeat = measure_contraction(terms, dt=1.0, steps=5, metric=euclidean(3))
    assert (deadbeat.factor, deadbeat.rate, local_rate(deadbeat)) == (0.0, math.inf, math.inf)


def test_nothing_counts_after_a_distance_has_drowned_in_rounding() -> None:
    """A pulse takes both states to 1e14 and back, and so rounds their distance of 0.04 to 1 / 64."""
    terms, dt = linear(-torch.eye(1)), 0.1
    u = torch.zeros(1, 120, 1)
    u[0, 60], u[0, 61] = 1e15, -0.9e15
    found = measure_contraction(terms, u, dt=dt, metric=euclidean(1), distances=(20.0,))
    assert found.rate == pytest.approx(-math.log(1 - dt) / dt, rel=1e-6)
    assert found.factor <= 1 - dt


def test_the_worst_direction_uses_the_metric() -> None:
    """sym(Theta J Theta^-1) of the shear [[-1, 10], [0, -1]] in diag(1, 400): -1 +- 1/4."""
    shear = linear(torch.tensor([[-1.0, 10.0], [0.0, -1.0]]))
    metric = Metric((Factor(torch.tensor([1.0, 20.0]), torch.tensor([1.0, 0.05])),))
    asked: dict[str, Any] = {"dt": 1e-5, "steps": 1, "distances": (1.0,), "metric": metric}
    found = measure_contraction(shear, worst=True, **asked)
    assert local_rate(found) == pytest.approx(0.75, abs=1e-4)  # O(dt)


def test_no_input_is_an_input_of_zeros() -> None:
    net = stirred(feedback())
    asked: dict[str, Any] = {"dt": 0.1, "solver": "imex", "pairs": 2}
    first, second = (
        measure_contraction(net, u, steps=5, generator=torch.Generator().manual_seed(1), **asked)
        for u in (None, torch.zeros(1, 5, net.size))
    )
    assert first == second


# Any net, by its steps


def test_a_map_shrinks_by_its_factor_in_any_metric() -> None:
    A = torch.tensor([[0.5, 4.0], [0.0, 0.5]])
    found = measure_contraction(lambda u, h: h @ A.mT, steps=30, x0=torch.randn(20, 2), worst=True)
    assert found.factor == pytest.approx(float(torch.linalg.matrix_norm(A, ord=2)), rel=1e-6)
    theta = torch.diag(torch.tensor([0.01, 1.0]))
    small = measure_contraction(
        lambda u, h: h @ A.mT,
        steps=30,
        x0=torch.randn(20, 2),
        metric=Metric((Factor(theta, theta.inverse()),)),
    )
    assert small.factor < 0.55
    assert small.dt == 1


def test_distances_over_time_are_those_of_the_pairs() -> None:
    net, u = nn.GRU(2, 4).double(), torch.randn(3, 12, 2)
    found = measure_contraction(net, u, pairs=2)
    assert found.distances.shape == found.euclidean.shape == (12, 13)
    assert_close(found.times, torch.arange(13.0))
    assert_close(found.distances, found.euclidean)
    first = torch.tensor([1e-6, 1e-6, 1.0, 1.0]).repeat(3)
    assert_close(found.euclidean[:, 0], first, rtol=1e-9, atol=0)
    assert found.growth == pytest.approx(float((found.distances[:, -1] / found.distances[:, 0]).max()))


def test_gates_of_the_input_stay_within_their_certified_factor() -> None:
    field = Subnetwork(AdaDiagTanh("tanh"), 6)
    layer = CTRNN(2, field, gate="input", gate_bounds=(0.19, 0.2), dt=0.5).double()
    step = layer.certificate().step
    assert step is not None
    assert step.certified
    for worst in (False, True):
        found = measure_contraction(layer, torch.randn(4, 400, 2), worst=worst)
        assert 0 < found.factor <= step.contraction_factor


# What diverges, and what is refused


@pytest.mark.parametrize("method", [*GRID, "rk4"])
def test_a_diverging_network_is_reported_as_growing(method: str) -> None:
    terms = linear(torch.tensor([[1.5]]))
    found = measure_contraction(terms, dt=0.1, steps=60, solver=method, metric=euclidean(1))
    assert found.growth > 1
    assert found.rate == pytest.approx(local_rate(found), rel=1e-6)
    assert found.rate < -1
    assert found.growth == pytest.approx(math.exp(-found.rate * 6), rel=1e-6)


def test_an_overflow_is_infinite_growth_not_an_exception() -> None:
    W = 10 * torch.eye(2)
    found = measure_contraction(linear(W), dt=0.5, steps=2000, metric=euclidean(2))
    assert found.growth == found.euclidean_peak == math.inf
    assert found.growth > 1
    assert found.rate == pytest.approx(-math.log(6) / 0.5, rel=1e-6)
    at_once = linear(1e200 * W)
    found = measure_contraction(at_once, dt=1e200, steps=3, metric=euclidean(2))
    assert found.growth == found.factor == math.inf
    assert found.rate == local_rate(found) == -math.inf


def test_an_unstable_tanh_network_grows_and_a_strong_input_can_hide_it() -> None:
    wild = Subnetwork(Unconstrained("tanh", init_scale=4.0), 20)
    still = measure_contraction(wild, dt=0.05, steps=200)
    assert still.growth > 1
    assert local_rate(still) < -0.5
    assert not certificate(wild).certified
    strong = 50 * torch.sign(torch.randn(1, 1, 20)).expand(-1, 200, -1)
    assert not measure_contraction(wild, strong, dt=0.05, spread=0.1).growth > 1


def test_nan_and_what_does_not_fit_are_refused() -> None:
    net = Subnetwork(SingularValueBounded(), 3)
    u = torch.zeros(2, 4, 3)
    u[1, 2, 0] = math.nan
    with pytest.raises(DataError, match=r"nan at index \(1, 2, 0\)"):
        measure_contraction(net, u, dt=0.1)
    with pytest.raises(DataError, match="nan"):
        measure_contraction(net, x0=torch.full((1, 3), math.nan), dt=0.1, steps=2)
    for bad in (torch.zeros(4, 3), torch.zeros(1, 4, 2), torch.zeros(1, 0, 3), torch.zeros(0, 4, 3)):
        with pytest.raises(ShapeError, match=r"u must be \(batch, steps, m\)"):
            measure_contraction(net, bad, dt=0.1)
    with pytest.raises(ShapeError, match="steps = 5"):
        measure_contraction(net, torch.zeros(1, 4, 3), dt=0.1, steps=5)
    for steps in (None, 0):
        with pytest.raises(ConfigError, match="steps must be at least 1"):
            measure_contraction(net, dt=0.1, steps=steps)
    for settings in ({"pairs": 0}, {"spread": math.inf}, {"distances": ()}, {"distances": (0.0,)}):
        with pytest.raises(ConfigError):
            measure_contraction(net, dt=0.1, steps=2, **settings)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"x0 must be \(pairs, n\) with n = 3"):
        measure_contraction(net, dt=0.1, steps=2, x0=torch.zeros(3))
    with pytest.raises(ShapeError, match="metric must be for 3 units; got one for 2"):
        measure_contraction(net, dt=0.1, steps=2, metric=euclidean(2))
    broken = replace(net.terms(), bias=torch.full((3,), math.nan))
    with pytest.raises(DataError, match="weights must be finite"):
        measure_contraction(broken, dt=0.1, steps=2, metric=net.metric())


# Continuous time: every interval at the certified rate


def taus_of(name: str, n: int) -> list[Tensor]:
    """Time constants: one number, and where the metric is diagonal one for each unit."""
    dense = name in ("symmetric", "product", "firing-rate")
    return (
        [torch.tensor(2.0), torch.tensor(0.5)] if dense else [torch.tensor(0.5), 0.3 + 2 * torch.rand(n)]
    )


def continuous(field: Field, steps: int = 5, dt: float = 0.1) -> Measurement:
    """Pairs that start in their worst directions, by a tight solver under a random input."""
    u = 1.5 * torch.randn(2, steps, field.size)
    return measure_contraction(field, u, dt=dt, solver="dopri8", pairs=3, worst=True)


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_kind_contracts_locally_at_the_certified_rate(name: str, form: str) -> None:
    certified = 0
    taus = taus_of(name, 5)
    for tau in taus:
        # A kink of ReLU costs an adaptive solver many steps: for the last tau only.
        phi = "relu" if tau is taus[-1] else "tanh"
        field = stirred(Subnetwork(CONSTRAINTS[name](phi), 5, form=form, tau=tau))  # type: ignore[arg-type]
        proven = certificate(field)
        if not proven.certified:
            continue
        certified += 1
        found = continuous(field)
        assert local_rate(found) >= proven.rate, (phi, tau)
        # The error of an interval, 16 rtol |x| / 1e-6 / dt = 5e-4, is taken off the second only.
        assert found.rate >= local_rate(found) - 1e-3
        assert not found.growth > 1
        M = array(field.metric().matrix()) * array(field.tau)
        assert found.euclidean_peak <= np.sqrt(np.linalg.cond(M)) * (1 + 1e-9)
    if name not in ("unconstrained", "published-sparse"):
        assert certified == len(taus)


def feedback() -> Assembly:
    parts = [
        Subnetwork(SingularValueBounded("tanh"), 4, tau=torch.tensor([0.5, 1.0, 2.0, 3.0])),
        Subnetwork(Symmetric("tanh"), 3, form="r", tau=0.7),
        Subnetwork(AdaDiagTanh("tanh"), 3),
    ]
    return couple(parts, "all", init_scale=2.0)


def one_way(psi: str | None = None) -> Assembly:
    parts = [
        Subnetwork(Absolute("tanh"), 3, tau=2.0),
        Subnetwork(NegativeProduct("tanh"), 2, form="r"),
        Subnetwork(Triangular("tanh"), 3, tau=0.6),
    ]
    return Assembly(parts, Hierarchy([3, 2, 3], [(0, 1), (0, 2), (1, 2)], psi=psi))


def deep() -> Assembly:
    """Depth three: feedback over a hierarchy (with a nonlinear edge) of feedback pairs."""
    pair = couple(
        [Subnetwork(SingularValueBounded("tanh"), 2, tau=2.0), Subnetwork(AdaDiagTanh("tanh"), 2)]
    )
    sparse = Subnetwork(SparseAbsolute("tanh", density=0.3), 3, form="r", tau=0.5)
    down = Assembly([pair, sparse], Hierarchy([4, 3], [(0, 1)], psi="tanh", init_scale=0.5))
    return couple([down, Subnetwork(Symmetric("tanh"), 2, form="r")], "all", init_scale=2.0)


ASSEMBLIES: dict[str, Callable[[], Assembly]] = {
    "feedback": feedback,
    "hierarchy": one_way,
    "nonlinear hierarchy": lambda: one_way("tanh"),
    "depth three": deep,
}


@pytest.mark.parametrize("build", ASSEMBLIES.values(), ids=ASSEMBLIES)
def test_assemblies_contract_locally_at_the_certified_rate(build: Callable[[], Assembly]) -> None:
    certified = 0
    for _ in range(3):
        net = build()
        proven = certificate(net)
        certified += proven.certified
        found = continuous(net)
        if proven.certified:
            assert local_rate(found) >= proven.rate
            assert found.rate >= local_rate(found) - 1e-3  # as above
    assert certified == 3


def jacobian(field: Field, x: np.ndarray) -> np.ndarray:
    """J at x without an input, by central differences of the field."""
    h, columns = 1e-6, []
    for unit in np.eye(len(x)):
        up, down = (torch.tensor(x + s * h * unit)[None] for s in (1, -1))
        columns.append(array((field(0.0, up) - field(0.0, down))[0]) / (2 * h))
    return np.array(columns).T


@pytest.mark.parametrize("build", [feedback, lambda: one_way("tanh"), deep])
def test_the_worst_direction_has_the_rate_of_the_jacobian(build: Callable[[], Assembly]) -> None:
    net, dt = build(), 1e-4
    x0 = torch.randn(1, net.size)
    M = array(net.metric().matrix()) * array(net.tau)
    J = jacobian(net, array(x0[0]))
    T = np.linalg.cholesky((M + M.T) / 2).T
    exact = -np.linalg.eigvalsh((T @ J @ np.linalg.inv(T) + (T @ J @ np.linalg.inv(T)).T) / 2)[-1]
    asked: dict[str, Any] = {"dt": dt, "steps": 1, "x0": x0, "distances": (1e-4,), "solver": "euler"}
    worst = measure_contraction(net, worst=True, **asked)
    # One step of 1e-4 over a distance of 1e-4: curvature adds terms of 1e-4 |J|^2.
    assert local_rate(worst) == pytest.approx(exact, abs=5e-3)
    others = [local_rate(measure_contraction(net, **asked)) for _ in range(10)]
    assert min(others) > local_rate(worst)


# Discrete time: every step within its certified gain


@pytest.mark.parametrize("solver", GRID)
@pytest.mark.parametrize("form", ["x", "r"])
def test_every_certified_step_stays_within_its_gain(solver: str, form: str) -> None:
    certified = sharp = 0
    lengths = cycle([(0.03, (1.0, 1.5)), (0.3, (1.0, 1.0))])
    if form == "r":  # so that every kind takes both, one in each form
        next(lengths)
    for (name, kind), (dt, taus) in zip(CONSTRAINTS.items(), lengths, strict=False):
        parts = [Subnetwork(kind("tanh"), 4, form=form, tau=tau) for tau in taus]  # type: ignore[arg-type]
        net = couple(parts, "all", init_scale=0.5)
        step = certificate(net, dt=dt, solver=solver).step
        assert step is not None
        if not step.certified:
            continue
        certified += 1
        u = torch.randn(2, 15, net.size)
        for worst in (False, True):
            found = measure_contraction(net, u, dt=dt, solver=solver, worst=worst)
            assert found.factor <= step.contraction_factor, (name, dt)
        sharp += found.factor > step.contraction_factor - 0.1 * dt
    assert certified >= 4
    assert sharp >= 1


@pytest.mark.parametrize("solver", ["euler", "imex"])
@pytest.mark.parametrize("build", [feedback, one_way, deep])
def test_certified_steps_of_assemblies_stay_within_their_gain(
    solver: str, build: Callable[[], Assembly]
) -> None:
    """Not exponential Euler, whose bound is too crude for modules with different time constants."""
    certified = 0
    for dt in (0.003, 0.01, 0.03, 0.1):
        net = build()
        step = certificate(net, dt=dt, solver=solver).step
        assert step is not None
        found = measure_contraction(net, torch.randn(2, 40, net.size), dt=dt, solver=solver)
        if step.certified:
            certified += 1
            assert found.factor <= step.contraction_factor
    assert certified >= 2


def test_a_float32_network_is_measured_in_float64() -> None:
    net = feedback().float()
    step = certificate(net, dt=0.01, solver="imex").step
    assert step is not None
    assert step.certified
    u = torch.randn(1, 3000, net.size)
    found = measure_contraction(net, u, dt=0.01, solver="imex", distances=(1e-6,))
    assert found.factor <= step.contraction_factor
    assert found.growth < 1e-3  # to 1e-9, far below what float32 resolves


# What must fail


def test_a_wrong_metric_is_refuted() -> None:
    """Feedback made for the metric of Theorem 1, measured in the identity: some interval grows."""
    parts = [Subnetwork(SparseAbsolute("tanh", density=0.2, magnitude=3.0), 8) for _ in range(2)]
    net = couple(parts, "all", init_scale=3.0)
    rate = certificate(net).rate
    right = measure_contraction(net, dt=0.02, steps=20, solver="dopri8", worst=True)
    assert local_rate(right) >= rate
    wrong = measure_contraction(
        net, dt=0.02, steps=20, solver="dopri8", worst=True, metric=euclidean(16)
    )
    assert local_rate(wrong) < rate
    assert local_rate(wrong) < 0


def test_a_false_claim_is_refuted() -> None:
    """The certificate of a network, held against the same network with its weights scaled up."""
    refuted = 0
    for kind in (SingularValueBounded, Absolute, Symmetric, AdaDiagTanh):
        net = couple([stirred(Subnetwork(kind("tanh"), 4)) for _ in range(2)])
        claimed, terms = certificate(net), net.terms()
        bigger = replace(terms, blocks=tuple(3 * block for block in terms.blocks))
        u = torch.zeros(1, 10, net.size)
        asked: dict[str, Any] = {"dt": 0.05, "solver": "dopri8", "worst": True, "spread": 0.1}
        found = measure_contraction(bigger, u, metric=net.metric(), **asked)
        refuted += local_rate(found) < claimed.rate
    assert refuted >= 3


def test_the_published_construction_is_refuted_in_its_own_metric() -> None:
    net = couple([Subnetwork(PublishedSparse(), 32, form="r") for _ in range(4)], "all")
    found = measure_contraction(net, dt=0.03, steps=200, worst=True, spread=0.1)
    assert local_rate(found) < -1
    assert found.growth > 1


def test_a_generator_makes_it_repeatable_and_inputs_multiply_pairs() -> None:
    net = Subnetwork(SingularValueBounded(), 3)
    terms = net.terms().driven(torch.randn(3, 2))
    asked: dict[str, Any] = {"dt": 0.1, "metric": net.metric(), "pairs": 5}
    u = torch.randn(4, 6, 2)
    a, b = (
        measure_contraction(terms, u, generator=torch.Generator().manual_seed(7), **asked) for _ in "ab"
    )
    assert a == b
    assert (a.pairs, a.steps) == (4 * 2 * 5, 6)
