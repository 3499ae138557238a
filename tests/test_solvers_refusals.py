"""What `solve` refuses, each with a message that says what to do."""

from __future__ import annotations

import math

import pytest
import torch

from ctrnn_assembly.errors import ConfigError, DataError, ShapeError, SolverError
from ctrnn_assembly.inputs import ZeroOrderHold
from ctrnn_assembly.solvers import GRID_SOLVERS, SOLVERS, solve
from solver_problems import DT, F64, mixed, normal, one_module
from solver_problems import one_thread as one_thread

TERMS = one_module("tanh", "x")
X0, U = normal(3, 6), normal(3, 8, 2, seed=1)
SOME = (*GRID_SOLVERS, "rk4", "dopri5")


REFUSED = [
    ({"solver": "eulr", "dt": DT}, ConfigError, "one of euler, .*dopri5.*'eulr'. Did you mean 'euler'"),
    ({}, SolverError, "either the times t or the step length dt"),
    ({"dt": DT, "t": torch.linspace(0, 1, 9)}, SolverError, "either the times t or the step length dt"),
    ({"dt": -DT}, SolverError, "dt must be positive and finite; got .-0.03"),
    ({"dt": 0.0}, SolverError, "dt must be positive"),
    ({"dt": math.nan}, SolverError, "dt must be positive and finite"),
    ({"dt": torch.full((7,), DT)}, ShapeError, "one sample a step, 7 of them; got 8"),
    ({"dt": torch.full((2, 8), DT)}, ShapeError, r"\(batch, time\) with batch 3; got \(2, 8\)"),
    ({"dt": DT, "u": None}, SolverError, "dt as a number needs samples"),
    ({"t": torch.tensor([0.0])}, SolverError, "k >= 2"),
    ({"t": torch.tensor([0.0, 1.0, 1.0])}, SolverError, "finite and increase"),
    ({"t": torch.tensor([0.0, math.nan])}, SolverError, "finite and increase"),
    ({"t": torch.tensor([0.0, math.inf])}, SolverError, "finite and increase"),
    ({"t": torch.zeros(2, 9)}, SolverError, r"t must be \(k,\)"),
    ({"dt": DT, "u": U[0]}, ShapeError, r"u must be \(batch, time, m\)"),
    ({"dt": DT, "u": U[:, 0, 0]}, ShapeError, r"u must be \(batch, time, m\)"),
    ({"dt": DT, "u": U[:2]}, ShapeError, "batch 3 and m = 2"),
    ({"dt": DT, "u": U[..., :1]}, ShapeError, "batch 3 and m = 2"),
    ({"dt": DT, "u": U / 0}, DataError, "the input must be finite"),
    ({"dt": DT, "x0": X0[0]}, ShapeError, r"x0 must be \(batch, 6\)"),
    ({"dt": DT, "x0": X0[:, :5]}, ShapeError, r"x0 must be \(batch, 6\)"),
    ({"dt": DT, "x0": X0.long()}, ShapeError, "floating point"),
    ({"dt": DT, "x0": X0.float()}, ShapeError, r"dtype and device of the field, torch.float64"),
    ({"dt": DT, "lengths": torch.tensor([1, 2])}, ShapeError, r"lengths must be \(3,\)"),
    ({"dt": DT, "lengths": torch.tensor([1, 2, 9])}, ShapeError, r"0\.\.8"),
    ({"dt": DT, "lengths": torch.tensor([1, 2, -1])}, ShapeError, r"0\.\.8"),
    ({"dt": DT, "lengths": torch.tensor([1.0, 2, 3])}, ShapeError, "whole numbers"),
    ({"dt": DT, "solver": "rk4", "step_size": 0.0}, SolverError, "step_size must be positive"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED)
def test_wrong_arguments_are_refused(changes: dict, error: type[Exception], message: str) -> None:  # type: ignore[type-arg]
    arguments = {"x0": X0, "u": U} | changes
    with pytest.raises(error, match=f"(?s){message}"):
        solve(TERMS, **arguments)


@pytest.mark.parametrize("solver", [m for m in SOLVERS if m not in GRID_SOLVERS])
def test_shared_grids_are_asked_for_where_needed(solver: str) -> None:
    with pytest.raises(SolverError, match="needs one time grid for the whole batch"):
        solve(TERMS, X0, u=U, dt=torch.full((3, 8), DT), solver=solver)


def test_a_signal_cannot_follow_per_sample_steps() -> None:
    signal = ZeroOrderHold(U, torch.arange(8, dtype=F64))
    with pytest.raises(SolverError, match="a Signal has one time grid"):
        solve(TERMS, X0, u=signal, dt=torch.full((3, 8), DT))


def test_an_input_of_width_one_is_not_spread_over_all_units() -> None:
    net = mixed()
    with pytest.raises(ShapeError, match="m = 23"):
        solve(net, normal(2, 23), u=normal(2, 4, 1), dt=DT)


@pytest.mark.parametrize("solver", ["euler", "imex", "rk4"])
def test_no_step_at_all_is_refused(solver: str) -> None:
    terms = one_module("tanh", "x")
    with pytest.raises(ShapeError, match="at least one step"):
        solve(terms, normal(2, 6), u=torch.zeros(2, 0, 2, dtype=F64), dt=0.1, solver=solver)
