"""The hand-written adjoint: every activation, finite differences, refusals, memory, autocast."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import Activation
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers import SOLVERS, solve
from ctrnn_assembly.terms import Edge, Terms
from solver_problems import DT, F64, mixed, normal, one_module, uniform
from solver_problems import one_thread as one_thread


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("phi", [*ACTIVATIONS, "own"])
def test_adjoint_equals_autograd_for_every_activation(phi: str, form: str) -> None:
    own = Activation("own", torch.sin, slope=(-1.0, 1.0))  # no derivative given
    terms = one_module("tanh" if phi == "own" else phi, form)
    if phi == "own":
        runs = Elementwise(((own, terms.n),))
        terms = replace(terms, pre=runs) if form == "x" else replace(terms, post=runs)
    edge = Edge(normal(6, 6, seed=30, scale=0.3), Elementwise(((ACTIVATIONS["softplus"], 6),)))
    terms = replace(terms, edges=(edge,))
    leaves = [normal(4, 6, seed=31), normal(4, 50, 2, seed=32), *terms.tensors()]
    for leaf in leaves:
        leaf.requires_grad_()
    results = []
    for backend in ("fused", "plain"):
        x = solve(terms, leaves[0], u=leaves[1], dt=0.1, backend=backend).x  # type: ignore[arg-type]
        results.append((x, torch.autograd.grad((x * normal(*x.shape, seed=33)).sum(), leaves)))
    assert_close(results[0][0], results[1][0], rtol=1e-12, atol=1e-12)
    for fused, plain in zip(results[0][1], results[1][1], strict=True):
        assert_close(fused, plain, rtol=1e-10, atol=1e-11)


def test_relu_has_zero_slope_at_zero_in_both_twins() -> None:
    # A zero state is the usual start; torch's relu has slope 0 there.
    grads = []
    for backend in ("fused", "plain"):
        terms = replace(one_module("relu", "x"), bias=torch.zeros(6, dtype=F64))
        x0 = torch.zeros(2, 6, dtype=F64, requires_grad=True)
        x = solve(terms, x0, torch.tensor([0.0, 0.5]), backend=backend).x  # type: ignore[arg-type]
        grads.append(torch.autograd.grad(x.sum(), x0)[0])
    assert_close(grads[0], grads[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["x", "r"])
def test_adjoint_passes_gradcheck(form: str) -> None:
    base = one_module("tanh", form, n=3)
    x0, u = normal(2, 3, seed=1), normal(2, 4, 2, seed=2)
    K = normal(3, 3, seed=3, scale=0.3)
    psi = Elementwise(((ACTIVATIONS["tanh"], 3),))

    def states(x0: Tensor, u: Tensor, *tensors: Tensor) -> Tensor:
        W, bias, tau, L, W_in, K = tensors
        terms = replace(base, blocks=(W,), bias=bias, tau=tau, L=L, W_in=W_in, edges=(Edge(K, psi),))
        return solve(terms, x0, u=u, dt=0.2).x

    inputs = [x0, u, *base.tensors(), K]
    assert torch.autograd.gradcheck(states, [v.detach().requires_grad_() for v in inputs])


def test_a_second_derivative_is_refused_and_the_plain_twin_has_it() -> None:
    # torch's own once_differentiable answers None here when allow_unused=True: a silent zero.
    x0, t = normal(2, 6).requires_grad_(), torch.tensor([0.0, 0.1, 0.2])
    terms = one_module("tanh", "x")
    loss = solve(terms, x0, t).x.square().sum()
    with pytest.raises(SolverError, match=r"no second derivatives.*plain"):
        torch.autograd.grad(loss, x0, create_graph=True)
    plain = lambda x: solve(terms, x, t, backend="plain").x  # noqa: E731
    assert torch.autograd.gradgradcheck(plain, x0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gradient_of_dt_is_refused(solver: str) -> None:
    dt = torch.full((5,), DT, dtype=F64, requires_grad=True)
    with pytest.raises(SolverError, match=r"no gradient with respect to times or dt.*plain"):
        solve(one_module("tanh", "x"), normal(2, 6), dt=dt, solver=solver)


def test_euler_plain_has_the_gradient_of_dt() -> None:
    dt = torch.full((5,), DT, dtype=F64, requires_grad=True)
    f = lambda dt: solve(one_module("tanh", "x"), normal(2, 6), dt=dt, backend="plain").x  # noqa: E731
    assert torch.autograd.gradcheck(f, dt)


@pytest.mark.parametrize("solver", ["euler", "imex", "rk4", "dopri5"])
def test_no_trajectory_outlives_its_solution(solver: str) -> None:
    net = mixed()
    x0, u = normal(2, net.size), normal(2, 5, net.size, seed=1)
    gc.collect()
    gc.disable()  # a reference cycle would then keep the states alive
    try:
        for _ in range(3):
            solution = solve(net, x0, u=u, dt=DT, solver=solver)
            solution.last.sum().backward()
            states = weakref.ref(solution.x.untyped_storage())
            del solution
            assert states() is None
    finally:
        gc.enable()


def test_a_solve_leaves_nothing_on_the_module() -> None:
    net = uniform()
    x0, u = normal(2, net.size), normal(2, 5, net.size, seed=1)

    def contents() -> list[tuple[str, ...]]:
        return [tuple(sorted(vars(module))) for module in net.modules()]

    before, names = contents(), list(net.state_dict())
    solve(net, x0, u=u, dt=DT).last.sum().backward()
    assert contents() == before
    assert list(net.state_dict()) == names


@pytest.mark.parametrize("solver", ["euler", "imex", "exponential-euler", "dopri5"])
def test_autocast_changes_nothing(solver: str) -> None:
    net = mixed().float()
    x0, u = normal(2, net.size).float(), normal(2, 5, net.size, seed=1).float()
    plain = solve(net, x0, u=u, dt=DT, solver=solver).x
    with torch.autocast("cpu", torch.bfloat16):
        x = solve(net, x0, u=u, dt=DT, solver=solver).x
    assert torch.equal(x, plain)


def test_the_adjoint_runs_in_full_precision_under_autocast() -> None:
    terms = one_module("tanh", "x")
    terms = Terms(
        tuple(W.float() for W in terms.blocks),
        terms.pre,
        terms.post,
        terms.bias.float(),
        terms.tau.float(),
    )
    x0 = normal(2, 6).float().requires_grad_()
    loss = solve(terms, x0, torch.linspace(0, 1, 9)).x.sum()
    (expected,) = torch.autograd.grad(loss, x0, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (inside,) = torch.autograd.grad(loss, x0)
    assert torch.equal(inside, expected)
