"""Theorem 6 against the Jacobians on its trajectory, and the printed version against its limits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.parametrize import cached

from ctrnn_assembly import (
    Absolute,
    AdaDiagTanh,
    NegativeProduct,
    SingularValueBounded,
    Subnetwork,
    Triangular,
    couple,
    solve,
)
from ctrnn_assembly.activations import ACTIVATIONS, Activation
from ctrnn_assembly.diagnostics.theorem6 import Theorem6, monitor_theorem6, theorem6
from ctrnn_assembly.errors import ContractionError, DataError, ShapeError
from oracles import array

W38 = torch.tensor([[0.0, 4.0], [0.0, 0.0]], dtype=torch.float64)  # oracle 38
SMOOTH = ("tanh", "sigmoid", "softplus")


def slope(phi: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """phi' and phi'' by hand."""
    s = 1 / (1 + np.exp(-x))
    if phi == "tanh":
        return 1 - np.tanh(x) ** 2, -2 * np.tanh(x) * (1 - np.tanh(x) ** 2)
    if phi == "sigmoid":
        return s * (1 - s), s * (1 - s) * (1 - 2 * s)
    return s, s * (1 - s)


def decay(W: Tensor, phi: str, x: Tensor, velocity: Tensor, P: Tensor, tau: Tensor) -> np.ndarray:
    """-max V' / V over all differences v at each sample, for V = v^T diag(tau) P^-1 D v: exact."""
    found = []
    T = array(tau)
    for z, dz in zip(array(x), array(velocity), strict=True):
        D, bend = slope(phi, z)
        J = (-np.eye(len(z)) + array(W) * D) / T[:, None]
        M = np.diag(T / array(P) * D)
        moving = np.diag(T / array(P) * bend * dz)
        root = np.diag(np.diag(M) ** -0.5)
        found.append(-np.linalg.eigvalsh(root @ (moving + M @ J + J.T @ M) @ root)[-1])
    return np.array(found)


# c, the first condition


def largest_c(W: Tensor, P: Tensor, g: float = 1.0) -> float:
    still = torch.zeros(1, len(P))
    return theorem6(
        W, Activation("of slope g", lambda z: g * torch.tanh(z), (0.0, g)), still, still, P
    ).c


def test_oracle_38_the_metric_of_the_proof_and_its_rate() -> None:
    """P^-1 D = diag(1/16, 1) at D = I gives the rate 1/2; the identity gives -1."""
    P, still = torch.tensor([16.0, 1.0]), torch.zeros(1, 2)
    found = theorem6(W38, "tanh", still, still, P)
    assert found.c == pytest.approx(1, abs=1e-9)
    assert found.rate == pytest.approx(0.5, abs=1e-9)
    assert found.holds
    exact = decay(W38, "tanh", still, still, P, torch.ones(2)) / 2
    assert exact[0] == pytest.approx(0.5, abs=1e-9)
    identity = decay(W38, "tanh", still, still, torch.ones(2), torch.ones(2)) / 2
    assert identity[0] == pytest.approx(-1, abs=1e-9)
    assert theorem6(W38, "tanh", still, still, torch.ones(2)).rate == pytest.approx(-1, abs=1e-9)


@pytest.mark.parametrize("g", [0.25, 1.0, 1.7])
def test_c_is_the_largest_that_the_matrix_inequality_allows(g: float) -> None:
    capped = 0
    for _ in range(20):
        n = int(torch.randint(1, 6, ()))
        W, P = torch.randn(n, n), torch.randn(n).exp()
        c = largest_c(W, P, g)
        A, Q = g * array(W) - np.eye(n), np.diag(array(P))

        def top(c: float, A: np.ndarray = A, Q: np.ndarray = Q) -> float:
            return float(np.linalg.eigvalsh(A @ Q + Q @ A.T + c * Q)[-1])

        assert top(c - 1e-9) <= 1e-12
        if c < 2:
            assert top(c + 1e-6) > 0
        capped += c == 2
    assert capped < 20
    assert largest_c(-torch.eye(3), torch.ones(3)) == 2


# The theorem: V decays at least at beta


@pytest.mark.parametrize("phi", SMOOTH)
@pytest.mark.parametrize("taus", ["one", "each"])
def test_no_difference_decays_slower_than_beta_at_any_sample(phi: str, taus: str) -> None:
    informative = 0
    for _ in range(30):
        n = int(torch.randint(1, 5, ()))
        W, P = torch.randn(n, n), (0.5 * torch.randn(n)).exp()
        x, velocity = torch.randn(20, n), 0.3 * torch.randn(20, n)
        tau = torch.ones(n) if taus == "one" else torch.randn(n).exp()
        found = theorem6(W, phi, x, velocity, P, tau=tau)
        if found.c <= 0:
            continue
        exact = decay(W, phi, x, velocity, P, tau)
        assert 2 * found.rate <= exact.min() + 1e-9
        informative += found.holds
    assert informative >= 3


def test_without_weights_beta_is_exact() -> None:
    x, velocity = torch.randn(50, 3), torch.randn(50, 3)
    tau, P = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 3.0, 0.2])
    found = theorem6(torch.zeros(3, 3), "tanh", x, velocity, P, tau=tau)
    assert found.c == 2
    rates = 2 / array(tau) + 2 * np.tanh(array(x)) * array(velocity)
    assert 2 * found.rate == pytest.approx(rates.min(), abs=1e-12)
    metric = array(tau) / array(P) * (1 - np.tanh(array(x)) ** 2)
    assert found.condition_number == pytest.approx(metric.max() / metric.min(), rel=1e-12)


@pytest.mark.parametrize("phi", SMOOTH)
def test_two_close_trajectories_approach_at_the_rate_along_the_way(phi: str) -> None:
    """Integrated: V(end) <= V(0) exp(-beta T) for a small difference of two solutions."""
    dt, steps, held = 0.04, 50, 0
    for _ in range(5):
        module = Subnetwork(SingularValueBounded(phi), 3, tau=torch.tensor([0.7, 1.0, 1.5]))
        drive = 0.4 * torch.randn(1, 1, 3).expand(-1, steps, -1)
        x0 = 0.3 * torch.randn(1, 3)
        found = monitor_theorem6(module, drive, x0, dt=dt)
        assert not found.certified
        held += found.holds
        pair = torch.cat([x0, x0 + 1e-7 * torch.randn(1, 3)])
        with torch.no_grad(), cached():  # the weight is made once
            u = drive.expand(2, -1, -1)
            x = solve(module, pair, u=u, dt=dt, solver="dopri8", rtol=1e-12, atol=1e-14).x
        M = array(module.metric().matrix()) * array(module.tau)
        z = array(x[0] - x[1])
        V = (z**2 * np.diag(M) * slope(phi, array(x[0]))[0]).sum(1)
        # A difference of 1e-7 is nonlinear by 1e-7; the minimum is over samples, 0.04 apart.
        assert V[-1] <= V[0] * math.exp(-2 * found.rate * dt * steps) * (1 + 1e-3)
    assert held >= 2


# The theorem as printed


def test_the_printed_metric_is_wrong() -> None:
    """Oracle 38: both printed conditions hold at D = I with P = diag(16, 1), c = beta = 1. In the
    printed metric D = I a difference grows at rate 1; in P^-1 D none decays slower than 1/2."""
    P = np.diag([16.0, 1.0])
    A = array(W38) - np.eye(2)
    assert np.linalg.eigvalsh(A @ P + P @ A.T + P)[-1] <= 1e-12  # (gW-I)P + P(gW^T-I) <= -cP, c = 1
    printed_rate = 1.0  # D' = 0, so D' - c/g D <= -beta D with beta = c
    growth = np.linalg.eigvalsh((A + A.T) / 2)[-1]
    assert -growth == pytest.approx(-1, abs=1e-12)
    assert -growth < printed_rate
    found = theorem6(W38, "tanh", torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([16.0, 1.0]))
    assert found.rate == 0.5
    assert found.rate < printed_rate  # a second error: beta is the decay of V, not of its root


def test_the_printed_second_condition_is_unsound_below_slope_one() -> None:
    """Sigmoid, g = 1/4, W = 0, c = 2, a state that rises at speed 5: printed beta c/g - d/dt log D is
    positive, and V grows."""
    x, velocity = torch.tensor([[-6.0]]), torch.tensor([[5.0]])
    W, one = torch.zeros(1, 1), torch.ones(1)
    found = theorem6(W, "sigmoid", x, velocity, one)
    D, bend = slope("sigmoid", array(x))
    speed = float((bend / D * array(velocity))[0, 0])
    assert found.c / 0.25 - speed > 3  # what the paper prints
    exact = decay(W, "sigmoid", x, velocity, one, one)[0]
    assert exact < -2.9
    assert 2 * found.rate == pytest.approx(exact, abs=1e-12)
    assert not found.holds


def test_a_full_P_is_no_metric_with_the_slopes_and_is_refused() -> None:
    with pytest.raises(ShapeError, match="no metric"):
        largest_c(W38, torch.eye(2))


# The monitor of a field


def test_the_monitor_sees_a_fast_saturation_that_spoils_the_condition() -> None:
    """A trajectory back from saturation: log D of tanh rises at almost 2 |x'|, past any c."""
    module = Subnetwork(SingularValueBounded("tanh"), 2, weight=torch.tensor([[0.2, -0.3], [0.4, 0.1]]))
    still = monitor_theorem6(module, torch.zeros(1, 20, 2), torch.zeros(1, 2), dt=0.05)
    assert still.holds
    assert still.missed < 1e-10
    back = monitor_theorem6(module, torch.zeros(1, 20, 2), 4 * torch.ones(1, 2), dt=0.05)
    assert back.c == still.c
    assert not back.holds
    assert back.missed < 0.01
    coarse = monitor_theorem6(module, torch.zeros(1, 1, 2), 4 * torch.ones(1, 2), dt=1.0)
    assert coarse.missed > 0.1  # both ends of its one interval are compared
    assert back.condition_number > 100


def test_both_sides_of_a_jump_of_the_input_count() -> None:
    module = Subnetwork(AdaDiagTanh("tanh"), 1, weight=torch.zeros(1, 1))
    u = torch.tensor([[[0.0], [-30.0]]])  # at 1 for a while (bias), then driven down
    with torch.no_grad():
        module.bias.fill_(1.0)
    found = monitor_theorem6(module, u, torch.ones(1, 1), dt=1e-3)
    assert 2 * found.rate == pytest.approx(2 + 2 * math.tanh(1) * -30, rel=1e-3)


def test_the_default_metric_is_the_fields_own() -> None:
    for kind in (Absolute, Triangular, SingularValueBounded):
        module = Subnetwork(kind("tanh"), 4, tau=2.0)
        with torch.no_grad():
            for raw in module.parametrizations.parameters():
                raw += 0.3 * torch.randn_like(raw)
        assert float(module.metric().matrix().detach().diagonal().std()) > 0.1
        x0, u = torch.randn(2, 4), torch.randn(2, 10, 4)
        P = 1 / module.metric().matrix().diagonal()
        found = monitor_theorem6(module, u, x0, dt=0.05)
        assert found == monitor_theorem6(module.terms(), u, x0, dt=0.05, P=P)
        assert found.c > 0
        single = monitor_theorem6(module.float(), u.float(), x0.float(), dt=0.05)
        assert 2 * single.rate == pytest.approx(2 * found.rate, rel=1e-3, abs=1e-3)


def test_kinks_and_coarse_samples_show_as_missed() -> None:
    x = torch.linspace(-1, 1, 41)[:, None]
    velocity = torch.full_like(x, 0.1)
    W, one = torch.zeros(1, 1), torch.ones(1)
    assert theorem6(W, "tanh", x, velocity, one).missed < 1e-3
    kink = theorem6(W, "selu", x, velocity, one)
    assert kink.missed == pytest.approx(math.log(1.7580993408 / 1.0507009873), abs=0.05)
    assert theorem6(W, "tanh", x[::20], velocity[::20], one).missed > 0.05


def test_what_the_theorem_does_not_cover_is_refused() -> None:
    x, one = torch.randn(5, 2), torch.ones(2)
    for phi in ("relu", "hardtanh", Activation("down", lambda z: -torch.tanh(z), (-1.0, 0.0))):
        with pytest.raises(ContractionError, match="slopes above 0"):
            theorem6(torch.zeros(2, 2), phi, x, x, one)
    for bad in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, -1.0]), torch.tensor([1.0, math.inf])):
        with pytest.raises(ContractionError, match="P must be positive"):
            theorem6(torch.zeros(2, 2), "tanh", x, x, bad)
    with pytest.raises(DataError):
        theorem6(torch.zeros(2, 2), "tanh", x * math.nan, x, one)
    x0, u = torch.zeros(1, 2), torch.zeros(1, 3, 2)
    with pytest.raises(ContractionError, match="r-form"):
        monitor_theorem6(Subnetwork(SingularValueBounded("tanh"), 2, form="r"), u, x0, dt=0.1)
    pair = couple([Subnetwork(SingularValueBounded("tanh"), 1) for _ in range(2)])
    with pytest.raises(ContractionError, match="coupling"):
        monitor_theorem6(pair, u, x0, dt=0.1)
    with pytest.raises(ContractionError, match="diagonal P"):
        monitor_theorem6(Subnetwork(NegativeProduct("tanh"), 2), u, x0, dt=0.1)
    with pytest.raises(ContractionError, match="P=None"):
        monitor_theorem6(Subnetwork(SingularValueBounded("tanh"), 2).terms(), u, x0, dt=0.1)


def test_it_never_calls_itself_a_certificate() -> None:
    found = theorem6(torch.zeros(1, 1), ACTIVATIONS["tanh"], *(torch.zeros(1, 1),) * 2, torch.ones(1))
    assert found.holds
    assert found.certified is Theorem6.certified is False
    assert "monitor" in found.note
    assert "certified" not in {field.name for field in dataclasses.fields(found)}
