"""Adjoint gradients through torchdiffeq: equal to direct ones where exact, refused where not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly.errors import ConfigError, SolverError
from ctrnn_assembly.inputs import CubicHermite, LinearInterpolation, Signal, ZeroOrderHold
from ctrnn_assembly.solvers import FIXED_STEP, GRID_SOLVERS, solve
from solver_problems import F64, mixed, nested, normal, uniform
from solver_problems import one_thread as one_thread

TIMES = torch.arange(6, dtype=F64) * 0.4
ENDS = torch.tensor([0.0, 1.0, 2.4], dtype=F64)


class Oscillator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.tensor([[0.0, 1.0], [-2.0, -0.1]], dtype=F64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x @ self.A.mT


@pytest.mark.parametrize("kind", [ZeroOrderHold, LinearInterpolation, CubicHermite])
def test_adjoint_equals_direct_for_every_parameter_and_sample(kind: type[Signal]) -> None:
    net = mixed()
    leaves = dict(net.named_parameters())  # the raw tensors behind the parametrisations
    assert any("parametrizations.weight.original" in name for name in leaves)
    leaves["x0"] = normal(2, net.size).requires_grad_()
    leaves["samples"] = normal(2, 6, 2, seed=1).requires_grad_()
    leaves["W_in"] = normal(net.size, 2, seed=2).requires_grad_()
    found = {}
    for gradient in ("direct", "adjoint"):
        terms = net.terms().driven(leaves["W_in"])
        x = solve(
            terms,
            leaves["x0"],
            ENDS,
            u=kind(leaves["samples"], TIMES),
            solver="dopri5",
            rtol=1e-9,
            atol=1e-9,
            gradient=gradient,  # type: ignore[arg-type]
        ).x
        loss = (x * normal(*x.shape, seed=3)).sum()
        found[gradient] = torch.autograd.grad(loss, list(leaves.values()))
    for name, adjoint, direct in zip(leaves, found["adjoint"], found["direct"], strict=True):
        assert float(direct.norm()) > 0, name
        # Both solve to 1e-9 a step; some hundred steps.
        assert float((adjoint - direct).norm() / direct.norm()) < 1e-6, name


def test_adjoint_reaches_the_raw_tensors_of_nested_modules_by_backward() -> None:
    net = nested()
    u = normal(2, 3, net.size, seed=1)
    for gradient in ("direct", "adjoint"):
        net.zero_grad()
        x = solve(net, normal(2, net.size), u=u, dt=0.3, solver="dopri5", gradient=gradient).last  # type: ignore[arg-type]
        x.square().sum().backward()
        grads = {name: p.grad for name, p in net.named_parameters()}
        assert all(g is not None and float(g.norm()) > 0 for g in grads.values())
        if gradient == "direct":
            expected = grads
    for name, g in grads.items():
        assert_close(g, expected[name], rtol=1e-3, atol=1e-5, msg=name)  # rtol 1e-6 a step


def test_adjoint_works_for_any_module_and_refuses_a_bare_function() -> None:
    field, x0, t = Oscillator(), normal(1, 2), torch.tensor([0.0, 2.0], dtype=F64)
    grads = []
    for gradient in ("direct", "adjoint"):
        x = solve(field, x0, t, solver="dopri5", rtol=1e-9, atol=1e-9, gradient=gradient)  # type: ignore[arg-type]
        grads.append(torch.autograd.grad(x.last.sum(), field.A)[0])
    assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-8)
    with pytest.raises(SolverError, match=r"make f an nn\.Module"):
        solve(lambda t, x: field(t, x), x0, t, solver="dopri5", gradient="adjoint")


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_adjoint_with_fixed_steps_must_be_asked_for_by_name(solver: str) -> None:
    field, x0, t = Oscillator(), normal(1, 2), torch.linspace(0, 1, 6, dtype=F64)
    with pytest.raises(SolverError, match=r"different discretisation.*inexact-adjoint"):
        solve(field, x0, t, solver=solver, gradient="adjoint")
    grads = []
    for gradient in ("direct", "inexact-adjoint"):
        x = solve(field, x0, t, solver=solver, gradient=gradient, step_size=0.07).last  # type: ignore[arg-type]
        grads.append(torch.autograd.grad(x.sum(), field.A)[0])
    assert_close(grads[0], grads[1], rtol=0.02, atol=0.02)  # it is inexact
    assert float((grads[0] - grads[1]).abs().max()) > 1e-12  # and this is why it is refused


def test_scipy_has_an_adjoint_and_refuses_a_direct_gradient() -> None:
    field, x0, t = Oscillator(), normal(1, 2), torch.tensor([0.0, 2.0], dtype=F64)
    with pytest.raises(SolverError, match=r"no direct gradient.*no_grad"):
        solve(field, x0, t, solver="scipy_solver")
    with torch.no_grad():
        assert not solve(field, x0, t, solver="scipy_solver").x.requires_grad
    tight = {"rtol": 1e-9, "atol": 1e-9}
    scipy = solve(field, x0, t, solver="scipy_solver", gradient="adjoint", **tight).last  # type: ignore[arg-type]
    direct = solve(field, x0, t, solver="dopri5", **tight).last  # type: ignore[arg-type]
    a, b = (torch.autograd.grad(x.sum(), field.A)[0] for x in (scipy, direct))
    assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", GRID_SOLVERS)
def test_grid_methods_refuse_the_settings_they_would_ignore(solver: str) -> None:
    net = mixed()
    x0, t = normal(1, net.size), torch.tensor([0.0, 0.1])
    with pytest.raises(SolverError, match="exact gradient of these steps"):
        solve(net, x0, t, solver=solver, gradient="adjoint")
    with pytest.raises(SolverError, match="takes one step an interval"):
        solve(net, x0, t, solver=solver, step_size=0.01)


def test_an_unknown_gradient_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of direct, adjoint, inexact-adjoint; got 'exact'"):
        solve(Oscillator(), normal(1, 2), ENDS, solver="dopri5", gradient="exact")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["fused", "plain"])
def test_terms_remember_nothing_of_an_earlier_solve(backend: str) -> None:
    """Gradients after a solve without them, and states after a step of an optimiser."""
    terms = uniform().terms().trainable_copy()
    x0, settings = normal(2, terms.n), {"backend": backend}
    t = 0.1 * torch.arange(4, dtype=F64)
    with torch.no_grad():
        before = solve(terms, x0, t, solver="euler", **settings).last
    gradients = torch.autograd.grad(
        solve(terms, x0, t, solver="euler", **settings).last.sum(), terms.blocks
    )
    assert all(float(g.abs().max()) > 0 for g in gradients)
    with torch.no_grad():
        for W in terms.blocks:
            W.add_(0.1)
        assert float((solve(terms, x0, t, solver="euler", **settings).last - before).abs().max()) > 1e-3
