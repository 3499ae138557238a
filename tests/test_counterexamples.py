"""The counterexamples of THEORY, told in docs/explanations/counterexamples.md: oracles 13 to 15."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm

import planar
from ctrnn_assembly import Subnetwork, Unconstrained, certify, solve
from ctrnn_assembly.metrics import Factor, Metric
from oracles import local_rate


def J(c: float, D: tuple[float, float]) -> np.ndarray:
    return np.array([[-1.0, -c * D[1]], [c * D[0], -1.0]])


# (i) Theorem 7


def test_oracle_13_the_root_and_the_critical_coupling() -> None:
    found = planar.switching_root()
    assert found == pytest.approx(0.3468070907, abs=1e-8)
    assert 1 / found == pytest.approx(2.8834473890, abs=1e-8)
    assert math.log(1 + found**-2) / 2 == pytest.approx(1 + found * math.atan(found), abs=1e-12)


@pytest.mark.parametrize("c", [0.5, 2.0, 10.0])
def test_every_jacobian_has_eigenvalues_with_real_part_minus_one(c: float) -> None:
    for D in itertools.product((0.0, 0.3, 1.0), repeat=2):
        np.testing.assert_allclose(planar.planar_jacobian(c, D), J(c, D))
        np.testing.assert_allclose(np.linalg.eigvals(J(c, D)).real, -1, atol=1e-12)
        assert c * math.sqrt(D[0] * D[1]) == pytest.approx(
            np.abs(np.linalg.eigvals(J(c, D)).imag).max(), abs=1e-12
        )


@pytest.mark.parametrize("c", [0.5, 1.9, 2.0, 2.5, 10.0])
def test_theorem_7_no_constant_metric_is_better_than_the_identity(c: float) -> None:
    assert planar.best_constant_rate(c) == pytest.approx(1 - c / 2, abs=1e-6)
    certificate = certify(planar.planar_network(c))
    assert certificate.certified is (c < 2)
    if c < 2:
        assert certificate.rate == pytest.approx(1 - c / 2, abs=1e-6)


@pytest.mark.parametrize("c", [2.0, 2.5, 10.0])
def test_certify_refuses_it_in_every_metric_that_is_tried(c: float) -> None:
    terms = planar.planar_network(c).terms()
    for _ in range(30):
        theta = torch.linalg.qr(torch.randn(2, 2))[0] * torch.randn(2).exp() @ torch.randn(2, 2)
        metric = Metric((Factor(theta, torch.linalg.inv(theta)),))
        assert not certify(terms, metric, search="none").certified


@pytest.mark.parametrize("c", [1.0, 2.5, 2.883447389, 10.0])
def test_worst_case_switching_has_the_exponent_c_l_minus_1(c: float) -> None:
    assert planar.switching_exponent(c) == pytest.approx(c * 0.3468070906485 - 1, abs=1e-9)


def test_no_other_switching_grows_faster() -> None:
    """Random piecewise constant slopes, corners and inner ones, and durations around the worst."""
    c, rng, best = 10.0, np.random.default_rng(0), -np.inf
    worst = planar.worst_pieces(c)
    for trial in range(2000):
        if trial % 2:
            pieces = [(D, T * math.exp(0.2 * rng.normal())) for D, T in worst]
        else:
            count = rng.integers(2, 7)
            slopes = rng.choice([0.0, 1.0, rng.random()], (count, 2))
            pieces = list(zip(slopes, 0.2 * rng.exponential(size=count), strict=True))
        flow = np.eye(2)
        for D, T in pieces:
            flow = expm(J(c, tuple(D)) * T) @ flow
        exponent = math.log(np.abs(np.linalg.eigvals(flow)).max()) / sum(T for _, T in pieces)
        best = max(best, exponent)
    assert best <= planar.switching_exponent(c) + 1e-9
    assert best > 2.4  # not vacuous: some come close to 2.468


def test_a_tanh_network_under_a_bounded_input_amplifies_a_tiny_perturbation() -> None:
    """c = 10, in continuous time: 1e-8 grows to order one at almost c l - 1, and never decays."""
    t, d = planar.perturbed(10.0, periods=20)
    exponent = math.log(float(d[8] / d[0])) / float(t[8])
    assert 2.4 < exponent < 10 * planar.switching_root() - 1
    assert float(d[0]) == 1e-8
    assert float(d[13:].min()) > 1


def test_the_input_is_bounded_and_periodic_and_makes_the_slopes() -> None:
    state, signal, period = planar.steered(10.0)
    t = torch.linspace(0, period, 4001)
    torch.testing.assert_close(signal(t), signal(t + period), rtol=0, atol=1e-8)
    assert float(signal(t).abs().max()) < 500
    slopes = 1 - torch.tanh(state(t)).square()
    low, high = slopes.min(0).values, slopes.max(0).values
    assert float(low.max()) < 0.002
    assert float(high.min()) > 1 - 1e-9
    h = 1e-5  # x* solves x' = -x + W tanh(x) + u: checked by a difference quotient, O(h^2 / width^2)
    velocity = (state(t + h) - state(t - h)) / (2 * h)
    W = torch.tensor([[0.0, -10.0], [10.0, 0.0]])
    right = -state(t) + torch.tanh(state(t)) @ W.T + signal(t)
    torch.testing.assert_close(velocity, right, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("c", "grows"), [(1.0, False), (1.9, False), (2.5, False), (4.0, True), (10.0, True)]
)
def test_the_measured_network_agrees_with_the_exponent(c: float, grows: bool) -> None:
    exponent = planar.measured_exponent(c)
    assert (exponent > 0) is grows
    assert exponent == pytest.approx(planar.switching_exponent(c), abs=0.03)
    if c < 2:  # in the metric I no distance shrinks more slowly than Theorem 7 proves
        t, distance = planar.perturbed(c, periods=2)
        assert float(distance.diff().max()) < 0
        assert (distance <= distance[0] * torch.exp(-(1 - c / 2) * t) * (1 + 1e-6)).all()


# (ii) Section 3.1


def test_oracle_14_alternating_slopes() -> None:
    flow, period = planar.monodromy(5.0, planar.alternating_pieces(5.0))
    assert planar.radius(flow) == pytest.approx(1.3391740, abs=1e-6)
    assert planar.radius(flow) == pytest.approx(math.exp(2 - math.pi * math.e / 5), abs=1e-9)
    for D, duration in planar.alternating_pieces(5.0):
        assert np.linalg.eigvals(J(5.0, D)).real.max() == pytest.approx(-1, abs=1e-12)
        assert duration == pytest.approx(period / 2)
    critical = math.pi * math.e / 2
    for c, grows in ((0.99 * critical, False), (1.01 * critical, True)):
        assert (planar.radius(planar.monodromy(c, planar.alternating_pieces(c))[0]) > 1) is grows


def test_oracle_15_the_textbook_system() -> None:
    def matrix(t: float) -> np.ndarray:
        s, k = math.sin(t), math.cos(t)
        return np.array([[-1 + 1.5 * k * k, 1 - 1.5 * s * k], [-1 - 1.5 * s * k, -1 + 1.5 * s * s]])

    def field(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.tensor(matrix(float(t))).T

    t = torch.tensor([0.0, 4.0])
    found = solve(field, torch.tensor([[1.0, 0.0]]), t, solver="dopri8", rtol=1e-11, atol=1e-12).last[0]
    expected = torch.tensor([-4.8298094, 5.5920569])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    exact = math.exp(2) * torch.tensor([math.cos(4), -math.sin(4)])
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)
    for s in np.linspace(0, 4, 9):
        eigenvalues = np.linalg.eigvals(matrix(s))
        np.testing.assert_allclose(eigenvalues.real, -0.25, atol=1e-12)
        np.testing.assert_allclose(np.abs(eigenvalues.imag), math.sqrt(7) / 4, atol=1e-12)


# (iii) Euler and IMEX


def test_euler_is_refused_and_diverges_where_imex_is_certified_and_shrinks() -> None:
    net = planar.strongly_coupled()
    L = net.terms().L
    assert L is not None
    assert float(torch.linalg.matrix_norm(L.detach(), ord=2)) == pytest.approx(12, rel=1e-12)
    euler, growing = planar.certified_and_measured(net, "euler", steps=300)
    assert euler.certified
    assert euler.rate == pytest.approx(0.5, abs=1e-4)
    assert not euler.step.certified
    assert growing.growth > 1
    assert growing.growth > 1e3
    assert 1.03 < growing.factor <= math.hypot(1 - 0.5 * 0.03, 12 * 0.03)  # of I - h (I - I/2 - L)
    for method in ("imex", "exponential-euler"):
        certificate, shrinking = planar.certified_and_measured(net, method, steps=300)
        assert certificate.step.certified
        assert 0.98 < shrinking.factor <= certificate.step.contraction_factor < 1
        assert certificate.step.contraction_factor - shrinking.factor < 1e-3  # the bound is sharp here
        assert shrinking.growth < 0.1
    certificate, exact = planar.certified_and_measured(net, "dopri8", steps=30)
    assert certificate.rate <= local_rate(exact) < certificate.rate + 0.05


def test_the_weak_coupling_that_euler_bears_is_not_refused() -> None:
    certificate, measured = planar.certified_and_measured(
        planar.strongly_coupled(2.0), "euler", steps=100
    )
    assert certificate.step.certified
    assert measured.factor <= certificate.step.contraction_factor
    assert not measured.growth > 1


def test_the_constraint_free_network_of_the_example_has_that_weight() -> None:
    net = planar.planar_network(3.0)
    assert isinstance(net, Subnetwork)
    assert isinstance(net.constraint, Unconstrained)
    assert net.weight.tolist() == [[0.0, -3.0], [3.0, 0.0]]
    assert net.weight.dtype == torch.float64
