"""Solves that fail say why; any f(t, x) works with the methods that need no tensors."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers import FIXED_STEP, GRID_SOLVERS, SOLVERS, solve
from ctrnn_assembly.solvers.adaptive import TORCHDIFFEQ_SOLVERS
from solver_problems import F64, normal, one_module, tight
from solver_problems import one_thread as one_thread

TERMS = one_module("tanh", "x")
X0 = normal(2, 6, seed=1)


def says_where(message: str) -> bool:
    return bool(re.search(r"at t = \S+, largest state norm \S+, after \d+ evaluations", message))


def test_an_exhausted_step_budget_is_explained() -> None:
    t = torch.tensor([0.0, 50.0], dtype=F64)
    with pytest.raises(SolverError, match="used all of its 3 steps") as caught:
        solve(TERMS, X0, t, solver="dopri5", max_steps=3)
    assert says_where(str(caught.value))
    assert "max_steps" in str(caught.value)


def test_an_underflow_of_the_step_is_explained() -> None:
    # A hidden jump of a size that no tolerance accepts: the step shrinks below the resolution of t.
    t = torch.tensor([0.0, 2.0], dtype=F64)
    jump = lambda s, x: 1e12 * (s > 1.0) * torch.sin(1e9 * s) + 0 * x  # noqa: E731
    with pytest.raises(SolverError, match="below the resolution of time") as caught:
        solve(jump, X0, t, solver="dopri5", rtol=1e-13, atol=1e-13)
    assert says_where(str(caught.value))


def test_a_state_that_is_not_finite_is_explained() -> None:
    t = torch.tensor([0.0, 10.0], dtype=F64)
    with pytest.raises(SolverError, match="not finite") as caught:
        solve(lambda s, x: torch.where(s > 1, torch.nan, x), X0, t, solver="dopri5")
    assert says_where(str(caught.value))


def test_scipy_has_a_budget_too() -> None:
    t = torch.tensor([0.0, 0.5, 2.0], dtype=F64)  # x' = x^2 from 1 is infinite at t = 1
    with pytest.raises(SolverError, match="used all of its 500 steps") as caught:
        solve(lambda s, x: x**2, X0[:1, :1] / X0[0, 0], t, solver="scipy_solver", max_steps=500)
    assert says_where(str(caught.value))


def lorenz(t: Tensor, x: Tensor) -> Tensor:
    a, b, c = x.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


@pytest.mark.parametrize("solver", TORCHDIFFEQ_SOLVERS)
def test_any_field_works_with_torchdiffeqs_methods(solver: str) -> None:
    x0 = torch.tensor([[1.0, 1.0, 1.0], [-2.0, 3.0, 20.0]], dtype=F64)
    t = torch.linspace(0, 0.5, 501 if solver in FIXED_STEP else 11, dtype=F64)
    x = solve(lorenz, x0, t, solver=solver, rtol=1e-6, atol=1e-6).last
    expected = tight(lorenz, x0, torch.tensor([0.0, 0.5], dtype=F64), 2000)[:, -1]
    assert_close(x, expected, rtol=0, atol=1e-2)  # states of size 20; midpoint is the worst


@pytest.mark.parametrize("solver", GRID_SOLVERS)
def test_grid_methods_refuse_a_plain_function(solver: str) -> None:
    with pytest.raises(SolverError, match=r"needs the tensors of the field.*rk4 or dopri5"):
        solve(lorenz, torch.ones(1, 3), torch.tensor([0.0, 1.0]), solver=solver)


def test_an_input_beside_a_plain_function_is_refused_not_ignored() -> None:
    with pytest.raises(SolverError, match="Call your input inside f"):
        solve(lorenz, torch.ones(1, 3), dt=0.1, u=torch.ones(1, 4, 3), solver="rk4")


@pytest.mark.parametrize("solver", ["explicit_adams", "implicit_adams"])
def test_multistep_methods_refuse_unequal_steps(solver: str) -> None:
    t = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.5], dtype=F64)
    with pytest.raises(SolverError, match=r"needs equal steps; got steps from 0.1 to 0.2"):
        solve(lorenz, torch.ones(1, 3, dtype=F64), t, solver=solver)


def test_every_method_of_torchdiffeq_is_offered_once() -> None:
    assert {"dopri5", "dopri8", "bosh3", "rk4", "midpoint"} <= set(SOLVERS)
    assert len(set(SOLVERS)) == len(SOLVERS)
