"""Jacobians of the field and of the steps: closed form, autograd, products, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly import ACTIVATIONS, CTRNN, SingularValueBounded, Subnetwork, couple
from ctrnn_assembly.diagnostics.linearise import (
    Behaviour,
    Linearisation,
    behaviour,
    flow_jacobian,
    linearise,
    step_jacobian,
)
from ctrnn_assembly.errors import ConfigError, CtrnnError, DataError, ShapeError
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.terms import Terms
from diagnostic_problems import field
from oracles import array
from solver_problems import FIELDS, mixed, normal, one_module, rng
from solver_problems import one_thread as one_thread

DT = 0.3


def by_autograd(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, u: Tensor) -> Tensor:
    """The Jacobians of f(x, u), (1, n) each, with respect to x, at states and inputs (batch, .)."""
    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda z, v=v: f(z[None], v[None])[0], one)
            for one, v in zip(x, u, strict=True)
        ]
    )


def step_by_autograd(terms: Terms, x: Tensor, u: Tensor, method: str) -> Tensor:
    return by_autograd(lambda z, v: solve(terms, z, u=v[None], dt=DT, solver=method).last, x, u)


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_the_jacobian_is_autograds_for_every_activation_and_form(phi: str, form: str) -> None:
    terms = one_module(phi, form)
    x, u = normal(3, terms.n), normal(3, 2, seed=1)
    expected = by_autograd(terms, x, u)
    assert_close(flow_jacobian(terms, u, x), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FIELDS)
def test_the_jacobian_is_autograds_for_every_assembly(name: str) -> None:
    net = FIELDS[name]()
    x, u = normal(2, net.size), normal(2, net.size, seed=1)
    terms = net.terms().detach_cpu()
    expected = by_autograd(terms, x, u)
    J = flow_jacobian(net, u, x)
    assert not J.requires_grad
    assert_close(J, expected, rtol=1e-12, atol=1e-13)


def test_the_formulas_of_the_theory() -> None:
    n = 5
    W, L = normal(n, n), normal(n, n, seed=1)
    tau, x, u = 0.5 + torch.rand(n), normal(1, n, seed=2), normal(1, n, seed=3)
    slope = lambda z: np.diag(1 - np.tanh(array(z)[0]) ** 2)  # noqa: E731
    scale = np.diag(1 / array(tau))
    J = array(flow_jacobian(field(W, "tanh", tau=tau, L=L), u, x)[0])
    np.testing.assert_allclose(J, scale @ (-np.eye(n) + array(W) @ slope(x) + array(L)), atol=1e-13)
    J = array(flow_jacobian(field(W, "tanh", form="r", tau=tau, L=L), u, x)[0])
    inner = slope(x @ W.mT + u)
    np.testing.assert_allclose(J, scale @ (-np.eye(n) + inner @ array(W) + array(L)), atol=1e-13)


@pytest.mark.parametrize("method", SCHEMES)
@pytest.mark.parametrize("name", FIELDS)
def test_the_step_and_its_jacobian_are_the_solvers(name: str, method: str) -> None:
    terms = FIELDS[name]().terms().detach_cpu()
    x, u = normal(2, terms.n), normal(2, terms.n, seed=1)
    step = behaviour(terms).step_map(DT, method)
    solved = solve(terms, x, u=u[:, None], dt=DT, solver=method).last
    assert_close(step(u, x), solved, rtol=1e-12, atol=1e-13)
    expected = step_by_autograd(terms, x, u, method)
    S = step_jacobian(terms, u, x, dt=DT, solver=method)
    assert_close(S, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", SCHEMES)
def test_the_step_of_an_r_module_without_coupling(method: str) -> None:
    terms = replace(one_module("tanh", "r"), L=None)
    x, u = normal(2, terms.n), normal(2, 2, seed=1)
    S = step_jacobian(terms, u, x, dt=DT, solver=method)
    assert_close(S, step_by_autograd(terms, x, u, method), rtol=1e-11, atol=1e-12)


def test_the_euler_step_is_one_plus_dt_times_the_field() -> None:
    net = mixed()
    x = normal(2, net.size)
    expected = torch.eye(net.size) + DT * flow_jacobian(net, None, x)
    assert_close(step_jacobian(net, None, x, dt=DT), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("method", [None, *SCHEMES])
@pytest.mark.parametrize("name", FIELDS)
def test_products_are_those_of_the_matrix(name: str, method: str | None) -> None:
    net = FIELDS[name]()
    known = behaviour(net)
    which = known.flow_map() if method is None else known.step_map(DT, method)
    x, u = normal(2, net.size), normal(2, net.size, seed=1)
    J = linearise(which, u, x)
    matrix, many = J.matrix(), normal(3, 2, net.size, seed=2)
    assert_close(J.value, which(u, x), rtol=1e-12, atol=1e-13)
    rows = many.transpose(0, 1)
    assert_close(J.product(many), (rows @ matrix.mT).transpose(0, 1), rtol=1e-12, atol=1e-12)
    assert_close(J.transposed(many), (rows @ matrix).transpose(0, 1), rtol=1e-12, atol=1e-12)


def test_a_layer_has_the_jacobian_of_its_own_step() -> None:
    parts = [Subnetwork(SingularValueBounded("tanh"), 4, form="r", generator=rng(k)) for k in range(2)]
    layer = CTRNN(3, couple(parts, "all"), dt=0.1, solver="imex", generator=rng(5)).double()
    x, u = normal(1, 8), normal(1, 3, seed=1)
    expected = by_autograd(lambda z, v: layer.step(v, z), x, u)
    assert_close(step_jacobian(layer, u, x, dt=0.1, solver="imex"), expected, rtol=1e-11, atol=1e-12)


def test_a_layer_of_another_solver_has_the_jacobian_of_that_solver() -> None:
    field = Subnetwork(SingularValueBounded("tanh"), 4, generator=rng(0))
    layer = CTRNN(3, field, dt=0.4, solver="rk4", generator=rng(5)).double()
    x, u = normal(1, 4), normal(1, 3, seed=1)
    expected = by_autograd(lambda z, v: layer.step(v, z), x, u)
    assert_close(step_jacobian(layer, u, x), expected, rtol=1e-11, atol=1e-12)
    assert_close(step_jacobian(layer, None, x), step_jacobian(layer, 0 * u, x))


def test_a_float32_field_is_cast_up_not_rounded_again() -> None:
    net = mixed().float()
    x = normal(1, net.size)
    terms = net.terms().detach_cpu()
    double = replace(
        terms,
        blocks=tuple(W.double() for W in terms.blocks),
        bias=terms.bias.double(),
        tau=terms.tau.double(),
        L=terms.L.double(),
    )
    assert_close(flow_jacobian(net, None, x), flow_jacobian(double, None, x), rtol=0, atol=0)
    assert flow_jacobian(net, None, x.float()).dtype == torch.float64


def test_one_input_serves_all_states() -> None:
    terms = one_module("tanh", "r")
    x, u = normal(3, terms.n), normal(1, 2, seed=1)
    assert_close(flow_jacobian(terms, u, x), flow_jacobian(terms, u.expand(3, 2), x))


# Any net, by behaviour


def plainly(net: nn.RNNBase, u: Tensor, packed: Tensor) -> Tensor:
    """One sample through a torch net, from one packed state to the next."""
    parts = packed.view(-1, net.num_layers, 1, net.hidden_size)
    state = tuple(parts) if isinstance(net, nn.LSTM) else parts[0]
    after = net(u[None, None], state)[1]
    return torch.cat([part.flatten() for part in (after if isinstance(after, tuple) else (after,))])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_torchs_nets_step_through_packed_states(kind: type[nn.RNNBase], layers: int) -> None:
    net = kind(3, 4, num_layers=layers, batch_first=layers == 2).double()
    known = behaviour(net)
    assert known.size == 4 * layers * (2 if kind is nn.LSTM else 1)
    x, u = normal(3, known.size), normal(3, 3, seed=1)
    S = step_jacobian(net, u, x)
    for b in range(3):
        assert_close(known.step(u, x)[b], plainly(net, u[b], x[b]).detach(), rtol=1e-12, atol=1e-14)
        expected = torch.autograd.functional.jacobian(lambda z, b=b: plainly(net, u[b], z), x[b])
        assert_close(S[b], expected, rtol=1e-11, atol=1e-13)
    assert_close(step_jacobian(net, None, x), step_jacobian(net, 0 * u, x), rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_cell_and_a_net_of_one_layer_are_one_map(kind: type[nn.RNNBase]) -> None:
    net = kind(3, 4)
    cell = getattr(nn, kind.__name__ + "Cell")(3, 4)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in net.state_dict().items()})
    x, u = normal(2, behaviour(net).size), normal(2, 3, seed=1)
    assert_close(step_jacobian(cell, u, x), step_jacobian(net, u, x), rtol=1e-12, atol=1e-14)


def test_a_function_of_your_own_has_a_jacobian() -> None:
    W, V = normal(4, 4), normal(4, 3, seed=1)
    x, u = normal(2, 4, seed=2), normal(2, 3, seed=3)
    S = step_jacobian(lambda u, h: torch.tanh(h @ W.mT + u @ V.mT), u, x)
    slope = 1 - torch.tanh(x @ W.mT + u @ V.mT) ** 2
    assert_close(S, slope[..., None] * W, rtol=1e-12, atol=1e-14)


def test_a_flow_of_your_own_has_euler_and_runge_kutta_steps() -> None:
    A, dt = normal(3, 3), 0.1
    mine, x = Behaviour(3, flow=lambda u: lambda x: x @ A.mT), normal(2, 3, seed=1)
    assert_close(flow_jacobian(mine, None, x), A.expand(2, 3, 3), rtol=1e-12, atol=1e-13)
    euler, second, fourth = (
        step_jacobian(mine, None, x, dt=dt, solver=s)[0] for s in ("euler", "midpoint", "rk4")
    )
    assert_close(euler, torch.eye(3) + dt * A, rtol=1e-12, atol=1e-13)
    Z = dt * A
    taylor = torch.eye(3) + Z + Z @ Z / 2 + Z @ Z @ Z / 6 + Z @ Z @ Z @ Z / 24
    assert_close(second, torch.eye(3) + Z + Z @ Z / 2, rtol=1e-12, atol=1e-13)
    assert_close(fourth, taylor, rtol=1e-12, atol=1e-13)


def test_the_closed_form_is_that_of_automatic_differentiation() -> None:
    net = FIELDS["hierarchy"]()
    terms, x, u = behaviour(net).terms, normal(2, net.size), normal(2, net.size, seed=1)
    for which in (behaviour(net).flow_map(), behaviour(net).step_map(DT, "imex")):
        closed, automatic = linearise(which, u, x), Linearisation(which, u, x)
        V = normal(3, 2, terms.n, seed=2)
        assert_close(closed.matrix(), automatic.matrix(), rtol=1e-12, atol=1e-13)
        assert_close(closed.product(V), automatic.product(V), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("change", [{"bidirectional": True}, {"proj_size": 2}])
def test_a_net_whose_state_is_not_its_output_is_refused(change: dict) -> None:
    with pytest.raises(ConfigError, match="state"):
        behaviour(nn.LSTM(3, 4, **change))


def test_a_net_with_weights_that_are_no_numbers_is_refused() -> None:
    net = nn.GRU(3, 4)
    net.weight_hh_l0.data[0, 0] = torch.nan
    with pytest.raises(DataError, match="weights"):
        step_jacobian(net, None, torch.zeros(1, 4))


def test_a_callable_must_keep_the_shape_and_depend_on_its_state() -> None:
    with pytest.raises(ShapeError, match="keep the shape"):
        step_jacobian(lambda u, h: h[:, :2], None, normal(1, 3))
    with pytest.raises(ConfigError, match="detach"):
        step_jacobian(lambda u, h: h.detach(), None, normal(1, 3))
    with pytest.raises(ConfigError, match="size=n"):
        behaviour(lambda u, h: h)


def nan_like(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ShapeError, "x must be", lambda t, x, u: flow_jacobian(t, u, x[0])),
        (ShapeError, "not empty", lambda t, x, u: flow_jacobian(t, None, x[:0])),
        (ShapeError, "x must be", lambda t, x, u: flow_jacobian(t, u, x[:, 1:])),
        (ShapeError, "u must be", lambda t, x, u: flow_jacobian(t, u[:, :1], x)),
        (ShapeError, "u must be", lambda t, x, u: flow_jacobian(t, u[:2], x)),
        (DataError, "nan", lambda t, x, u: flow_jacobian(t, u, nan_like(x))),
        (DataError, "nan", lambda t, x, u: flow_jacobian(t, nan_like(u), x)),
        (
            DataError,
            "weights",
            lambda t, x, u: flow_jacobian(replace(t, bias=nan_like(t.bias)), None, x),
        ),
        (ConfigError, "must be a flow", lambda t, x, u: flow_jacobian(lambda s, y: y, None, x)),
        (ConfigError, "must be a layer", lambda t, x, u: flow_jacobian(3, None, x)),
        (ConfigError, "own step only", lambda t, x, u: step_jacobian(torch.add, u, x, solver="imex")),
        (ConfigError, "dt must be positive", lambda t, x, u: step_jacobian(t, u, x, dt=0.0)),
        (ConfigError, "dt must be positive", lambda t, x, u: step_jacobian(t, u, x, dt=float("nan"))),
        (ConfigError, "imex", lambda t, x, u: step_jacobian(t, u, x, dt=0.1, solver="dopri5")),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(error, words, call) -> None:
    terms = one_module("tanh", "x")
    with pytest.raises(error, match=words) as caught:
        call(terms, normal(3, terms.n), normal(3, 2))
    assert isinstance(caught.value, CtrnnError)
    assert str(caught.value).rstrip().endswith(".")
