"""Fixed points: unique for contracting nets, all of a pitchfork, honest where there is none."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.testing import assert_close

from ctrnn_assembly import CTRNN, SingularValueBounded, Subnetwork, couple
from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points
from ctrnn_assembly.diagnostics.linearise import behaviour, flow_jacobian
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError
from ctrnn_assembly.solvers import solve
from diagnostic_problems import field, rotation
from oracles import array
from solver_problems import FIELDS, normal, one_module, rng
from solver_problems import one_thread as one_thread


@pytest.mark.parametrize("name", ["uniform", "mixed", "nested", "hierarchy", "uncoupled"])
def test_a_contracting_net_has_one_where_it_comes_to_rest(name: str) -> None:
    net = FIELDS[name]()
    u = 2 * normal(net.size, seed=1)
    found = find_fixed_points(net, u, spread=5.0)
    assert (len(found), found.failed, found.kinds) == (1, 0, ("stable",))
    assert int(found.hits.sum()) == found.starts == 32
    drift = (net.terms()(found.points, u[None]) * net.tau).detach()
    assert float(drift.abs().max()) <= 1e-10
    assert float(found.residuals.max()) <= 1e-10
    held = u.expand(2, 600, -1)
    x = solve(net, 3 * normal(2, net.size), u=held, dt=0.2, solver="imex").last.detach()
    # 1e-6: what is left after 120 units of time.
    assert_close(x, found.points.expand(2, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["x", "r"])
def test_a_contracting_relu_net_has_one(form: str) -> None:
    parts = [
        Subnetwork(SingularValueBounded("relu", init_scale=2.0), 8, form=form, generator=rng(k))
        for k in range(4)
    ]
    net = couple(parts, "all", generator=rng(9)).double()
    for seed in range(3):
        found = find_fixed_points(net, 2 * normal(32, seed=seed), spread=4.0)
        assert (len(found), found.failed) == (1, 0)


@pytest.mark.parametrize("method", ["euler", "imex", "exponential-euler"])
def test_fixed_points_are_those_of_the_steps_whatever_dt(method: str) -> None:
    net = FIELDS["mixed"]()
    u = normal(net.size)
    x = find_fixed_points(net, u, starts=1).points
    for dt in (0.1, 1.7):
        assert_close(behaviour(net).step_map(dt, method)(u[None], x), x, rtol=0, atol=1e-9)


def test_a_pitchfork() -> None:
    found = find_fixed_points(field(torch.tensor([[2.0]]), "tanh"))
    root = scipy.optimize.brentq(lambda x: 2 * math.tanh(x) - x, 1, 3, xtol=1e-15)
    order = found.points[:, 0].argsort()
    assert_close(found.points[order, 0], torch.tensor([-root, 0.0, root]), rtol=0, atol=1e-10)
    assert [found.kinds[k] for k in order] == ["stable", "unstable", "stable"]
    slope = 2 * (1 - math.tanh(root) ** 2) - 1
    values = found.eigenvalues[order, 0]
    assert_close(values.real, torch.tensor([slope, 1.0, slope]), rtol=0, atol=1e-9)
    assert found.failed == 0
    assert "3 found from 32 starts (0 failed): 2 stable, 1 unstable." in found.message


@pytest.mark.parametrize(("w", "kinds"), [(0.5, {"stable"}), (1.0, {"marginal"})])
def test_before_and_at_the_pitchfork(w: float, kinds: set[str]) -> None:
    # At w = 1 the root is triple: Newton is slow, yet all starts must be one point.
    found = find_fixed_points(field(torch.tensor([[w]]), "tanh"))
    assert (len(found), set(found.kinds), found.failed) == (1, kinds, 0)
    assert float(found.points.abs().max()) <= 1e-6


def test_saddles_and_complex_pairs() -> None:
    W = torch.diag(torch.tensor([2.0, 0.5]))
    found = find_fixed_points(field(W, "tanh"), starts=64)
    assert sorted(found.kinds) == ["saddle", "stable", "stable"]
    spiral = find_fixed_points(field(2 * torch.eye(2), L=rotation(3.0)))
    assert spiral.kinds == ("unstable",)
    np.testing.assert_allclose(spiral.eigenvalues[0].numpy(), [1 + 3j, 1 - 3j], atol=1e-12)
    centre = find_fixed_points(field(torch.eye(2), L=rotation(3.0)))
    assert centre.kinds == ("marginal",)


def test_a_line_of_fixed_points_is_marginal() -> None:
    # x' = (0, -y): every (x, 0) is one; J is singular everywhere, and steps are of least norm.
    starts = normal(5, 2)
    found = find_fixed_points(field(torch.diag(torch.tensor([1.0, 0.0]))), x0=starts)
    assert set(found.kinds) == {"marginal"}
    assert found.failed == 0
    expected = torch.stack([starts[:, 0], torch.zeros(5)], 1)
    assert_close(found.points.sort(0).values, expected.sort(0).values, rtol=0, atol=1e-10)


def test_a_net_without_a_fixed_point_says_so() -> None:
    # x' = -x + 2 relu(x) + 1 >= 1.
    found = find_fixed_points(field(torch.tensor([[2.0]]), "relu", bias=torch.ones(1)))
    assert (len(found), found.failed, found.smallest) == (0, 32, pytest.approx(1.0, abs=1e-6))
    assert found.points.shape == (0, 1)
    assert found.eigenvalues.shape == (0, 1)
    assert "no fixed point was found from 32 starts" in found.message
    assert "does not show that there is none" in found.message


def test_the_fallback_leaves_a_valley() -> None:
    # x' = -x + 2 tanh(x) + 0.6 has a valley of |x'| near -0.9, and its only root at 2.5.
    terms = field(torch.tensor([[2.0]]), "tanh", bias=torch.full((1,), 0.6))
    found = find_fixed_points(terms, x0=torch.linspace(-6, 6, 49)[:, None])
    root = scipy.optimize.brentq(lambda x: 2 * math.tanh(x) - x + 0.6, 1, 4, xtol=1e-15)
    assert (len(found), found.failed) == (1, 0)
    assert float(found.points) == pytest.approx(root, abs=1e-10)


def test_many_points_of_a_random_net() -> None:
    W = normal(20, 20, scale=3 / 20**0.5)
    found = find_fixed_points(field(W, "tanh"), starts=64, generator=rng(0))
    assert len(found) >= 5
    x = array(found.points)
    assert np.abs(-x + np.tanh(x) @ array(W).T).max() <= 1e-9
    apart = torch.cdist(found.points, found.points) + 10 * torch.eye(len(found))
    assert float(apart.min()) > 1e-3
    assert bool((found.hits.diff() <= 0).all())
    J = flow_jacobian(field(W, "tanh"), None, found.points)
    for k, kind in enumerate(found.kinds):
        real = np.linalg.eigvals(array(J[k])).real
        assert kind == ("stable" if real.max() < 0 else "saddle")


def test_bounded_steps_find_points_where_descent_ends_in_valleys() -> None:
    # Descending Newton gets to a fixed point of this net from one start in ten.
    W = normal(100, 100, seed=3, scale=0.3)
    found = find_fixed_points(field(W, "tanh"), starts=32, spread=0.5, generator=rng(0))
    assert found.failed < 16
    assert len(found) >= 3


def test_the_tolerance_of_marginal_is_as_stated() -> None:
    terms = field(torch.tensor([[0.999]]))
    assert find_fixed_points(terms).kinds == ("stable",)
    assert find_fixed_points(terms, marginal=0.01).kinds == ("marginal",)


def test_time_constants_change_eigenvalues_and_not_points() -> None:
    fast = one_module("tanh", "x", n=5)
    slow = replace(fast, tau=10 * fast.tau)
    u = normal(2)
    one, other = find_fixed_points(fast, u), find_fixed_points(slow, u)
    assert len(one) == len(other)
    assert_close(one.points, other.points, rtol=0, atol=1e-8)
    assert_close(one.eigenvalues, 10 * other.eigenvalues, rtol=1e-8, atol=1e-8)


def test_a_layer_under_its_encoder() -> None:
    layer = CTRNN(
        3, couple([Subnetwork(SingularValueBounded("tanh"), 4, form="r") for _ in range(2)], "all")
    )
    layer = layer.double()
    u = normal(3)
    found = find_fixed_points(layer, u)
    assert_close(layer.step(u[None], found.points).detach(), found.points, rtol=0, atol=1e-10)


def test_a_gru_comes_to_rest_where_its_step_does_not_move() -> None:
    torch.manual_seed(0)
    net, u = nn.GRU(2, 6).double(), normal(2)
    found = find_fixed_points(net, u, normal(20, 6, scale=0.5))
    assert (len(found), found.kinds, found.failed) == (1, ("stable",), 0)
    h = torch.zeros(1, 1, 6)
    for _ in range(300):
        h = net(u[None, None], h)[1].detach()
    assert_close(found.points[0], h[0, 0], rtol=0, atol=1e-9)
    assert float(found.eigenvalues[0].abs().max()) < 1


def test_a_map_is_judged_by_the_moduli_of_its_step() -> None:
    # x+ = 2 tanh(x) and x+ = -x / 2 in the other unit: 0 is a saddle, +-1.915 are stable.
    found = find_fixed_points(
        lambda u, h: torch.stack([2 * h[:, 0].tanh(), -h[:, 1] / 2], 1), x0=normal(30, 2)
    )
    root = scipy.optimize.brentq(lambda x: 2 * math.tanh(x) - x, 1, 3, xtol=1e-15)
    order = found.points[:, 0].argsort()
    assert_close(found.points[order, 0], torch.tensor([-root, 0.0, root]), rtol=0, atol=1e-10)
    assert [found.kinds[k] for k in order] == ["stable", "saddle", "stable"]
    turn = find_fixed_points(lambda u, h: h @ rotation(1.0).double().mT, x0=normal(4, 2))
    assert turn.kinds == ("marginal",)


def test_gates_of_the_state_do_not_move_the_fixed_points() -> None:
    # nu > 0 slows x' = nu o F and leaves its roots, not its eigenvalues.
    field = Subnetwork(SingularValueBounded("tanh"), 5, generator=rng(0))
    layer = CTRNN(2, field, gate="state", generator=rng(1)).double()
    u = normal(2)
    found = find_fixed_points(layer, u)
    assert (len(found), found.kinds) == (1, ("stable",))
    still = field.terms().driven(layer.encoder.weight, layer.encoder.bias)(found.points, u[None])
    assert float(still.detach().abs().max()) < 1e-8


def test_inputs_and_states_may_be_arrays() -> None:
    net, u, x0 = one_module("tanh", "x"), normal(2), normal(3, 6, seed=1)
    expected = find_fixed_points(net, u, x0).points
    assert torch.equal(find_fixed_points(net, u.numpy(), x0.numpy()).points, expected)
    assert torch.equal(find_fixed_points(net, u.tolist(), x0.tolist()).points, expected)


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (ConfigError, "starts must", {"starts": 0}),
        (ConfigError, "tolerance must", {"tolerance": 0.0}),
        (ConfigError, "spread must", {"spread": -1.0}),
        (ConfigError, "marginal must", {"marginal": math.inf}),
        (ShapeError, r"u must be \(m,\) with m = 2", {"u": torch.zeros(1, 2)}),
        (ShapeError, "u must be", {"u": torch.zeros(3)}),
        (DataError, "nan", {"u": torch.full((2,), torch.nan)}),
        (ShapeError, "x0 must be", {"x0": torch.zeros(3, 5)}),
        (ShapeError, "x0 must be a tensor or array of numbers; got str", {"x0": "here"}),
        (ShapeError, "not empty", {"x0": torch.zeros(0, 6)}),
        (DataError, "nan", {"x0": torch.full((1, 6), torch.nan)}),
    ],
)
def test_what_cannot_be_is_refused(error, words, changes) -> None:
    with pytest.raises(error, match=words):
        find_fixed_points(one_module("tanh", "x"), **changes)
