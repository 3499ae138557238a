"""Jacobians of the field and of the steps: closed form, autograd, products, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import ACTIVATIONS, CTRNN, SingularValueBounded, Subnetwork, couple
from ctrnn_assembly.diagnostics import field_jacobian, field_map, step_jacobian, step_map
from ctrnn_assembly.errors import ConfigError, CtrnnError, DataError, ShapeError
from ctrnn_assembly.solvers import GRID_METHODS, solve
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
    return by_autograd(lambda z, v: solve(terms, z, u=v[None], dt=DT, method=method).last, x, u)


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_the_jacobian_is_autograds_for_every_activation_and_form(phi: str, form: str) -> None:
    terms = one_module(phi, form)
    x, u = normal(3, terms.n), normal(3, 2, seed=1)
    expected = by_autograd(terms, x, u)
    assert_close(field_jacobian(terms, x, u), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FIELDS)
def test_the_jacobian_is_autograds_for_every_assembly(name: str) -> None:
    net = FIELDS[name]()
    x, u = normal(2, net.size), normal(2, net.size, seed=1)
    terms = net.terms().detach_cpu()
    expected = by_autograd(terms, x, u)
    J = field_jacobian(net, x, u)
    assert not J.requires_grad
    assert_close(J, expected, rtol=1e-12, atol=1e-13)


def test_the_formulas_of_the_theory() -> None:
    n = 5
    W, L = normal(n, n), normal(n, n, seed=1)
    tau, x, u = 0.5 + torch.rand(n), normal(1, n, seed=2), normal(1, n, seed=3)
    slope = lambda z: np.diag(1 - np.tanh(array(z)[0]) ** 2)  # noqa: E731
    scale = np.diag(1 / array(tau))
    J = array(field_jacobian(field(W, "tanh", tau=tau, L=L), x, u)[0])
    np.testing.assert_allclose(J, scale @ (-np.eye(n) + array(W) @ slope(x) + array(L)), atol=1e-13)
    J = array(field_jacobian(field(W, "tanh", form="r", tau=tau, L=L), x, u)[0])
    inner = slope(x @ W.mT + u)
    np.testing.assert_allclose(J, scale @ (-np.eye(n) + inner @ array(W) + array(L)), atol=1e-13)


@pytest.mark.parametrize("method", GRID_METHODS)
@pytest.mark.parametrize("name", FIELDS)
def test_the_step_and_its_jacobian_are_the_solvers(name: str, method: str) -> None:
    terms = FIELDS[name]().terms().detach_cpu()
    x, u = normal(2, terms.n), normal(2, terms.n, seed=1)
    step = step_map(terms, dt=DT, method=method)
    solved = solve(terms, x, u=u[:, None], dt=DT, method=method).last
    assert_close(step(x, u), solved, rtol=1e-12, atol=1e-13)
    expected = step_by_autograd(terms, x, u, method)
    S = step_jacobian(terms, x, u, dt=DT, method=method)
    assert_close(S, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", GRID_METHODS)
def test_the_step_of_an_r_module_without_coupling(method: str) -> None:
    terms = replace(one_module("tanh", "r"), L=None)
    x, u = normal(2, terms.n), normal(2, 2, seed=1)
    S = step_jacobian(terms, x, u, dt=DT, method=method)
    assert_close(S, step_by_autograd(terms, x, u, method), rtol=1e-11, atol=1e-12)


def test_the_euler_step_is_one_plus_dt_times_the_field() -> None:
    net = mixed()
    x = normal(2, net.size)
    expected = torch.eye(net.size) + DT * field_jacobian(net, x)
    assert_close(step_jacobian(net, x, dt=DT), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("method", [None, *GRID_METHODS])
@pytest.mark.parametrize("name", FIELDS)
def test_products_are_those_of_the_matrix(name: str, method: str | None) -> None:
    net = FIELDS[name]()
    split = field_map(net) if method is None else step_map(net, dt=DT, method=method)
    x, u = normal(2, net.size), normal(2, net.size, seed=1)
    J = split.jacobian(x, u)
    matrix, many, one = J.matrix(), normal(2, 3, net.size, seed=2), normal(2, net.size, seed=3)
    assert_close(J.product(many), many @ matrix.mT, rtol=1e-12, atol=1e-12)
    assert_close(J.transposed(many), many @ matrix, rtol=1e-12, atol=1e-12)
    assert_close(J.product(one), (matrix @ one[..., None])[..., 0], rtol=1e-12, atol=1e-12)
    assert_close(J.transposed(one), (matrix.mT @ one[..., None])[..., 0], rtol=1e-12, atol=1e-12)


def test_blocks_are_those_of_the_matrix() -> None:
    net = FIELDS["hierarchy"]()
    J = field_map(net).jacobian(normal(2, net.size), None)
    start = 0
    for block in J.blocks():
        k = slice(start, start + block.shape[1])
        assert_close(block, J.matrix()[:, k, k], rtol=1e-13, atol=1e-14)
        start = k.stop
    assert start == net.size


def test_a_layer_has_the_jacobian_of_its_own_step() -> None:
    parts = [Subnetwork(SingularValueBounded("tanh"), 4, form="r", generator=rng(k)) for k in range(2)]
    layer = CTRNN(3, couple(parts, "all"), dt=0.1, solver="imex", generator=rng(5)).double()
    x, u = normal(1, 8), normal(1, 3, seed=1)
    expected = by_autograd(lambda z, v: layer.step(v, z), x, u)
    assert_close(step_jacobian(layer, x, u, dt=0.1, method="imex"), expected, rtol=1e-11, atol=1e-12)


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
    assert_close(field_jacobian(net, x), field_jacobian(double, x), rtol=0, atol=0)
    assert field_jacobian(net, x.float()).dtype == torch.float64


def test_one_input_serves_all_states() -> None:
    terms = one_module("tanh", "r")
    x, u = normal(3, terms.n), normal(1, 2, seed=1)
    assert_close(field_jacobian(terms, x, u), field_jacobian(terms, x, u.expand(3, 2)))


def nan_like(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ShapeError, "x must be", lambda t, x, u: field_jacobian(t, x[0], u)),
        (ShapeError, "at least one state", lambda t, x, u: field_jacobian(t, x[:0], None)),
        (ShapeError, "x must be", lambda t, x, u: field_jacobian(t, x[:, 1:], u)),
        (ShapeError, "u must be", lambda t, x, u: field_jacobian(t, x, u[:, :1])),
        (ShapeError, "u must be", lambda t, x, u: field_jacobian(t, x, u[:2])),
        (DataError, "nan", lambda t, x, u: field_jacobian(t, nan_like(x), u)),
        (DataError, "nan", lambda t, x, u: field_jacobian(t, x, nan_like(u))),
        (DataError, "weights", lambda t, x, u: field_jacobian(replace(t, bias=nan_like(t.bias)), x)),
        (ConfigError, "flow_exponents", lambda t, x, u: field_jacobian(lambda s, y: y, x)),
        (ConfigError, "dt must be positive", lambda t, x, u: step_jacobian(t, x, u, dt=0.0)),
        (ConfigError, "dt must be positive", lambda t, x, u: step_jacobian(t, x, u, dt=float("nan"))),
        (ConfigError, "imex", lambda t, x, u: step_jacobian(t, x, u, dt=0.1, method="dopri5")),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(error, words, call) -> None:
    terms = one_module("tanh", "x")
    with pytest.raises(error, match=words) as caught:
        call(terms, normal(3, terms.n), normal(3, 2))
    assert isinstance(caught.value, CtrnnError)
    assert str(caught.value).rstrip().endswith(".")
