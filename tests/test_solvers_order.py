"""Every fixed-step solver converges at its order, +- 0.15, by regression of log error on log step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly.inputs import CubicHermite, LinearInterpolation, Signal, ZeroOrderHold
from ctrnn_assembly.solvers import FIXED_STEP, GRID_SOLVERS, solve
from solver_problems import F64, normal, one_module, order, tight
from solver_problems import one_thread as one_thread

ORDERS = {
    "euler": 1,
    "imex": 1,
    "exponential-euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": 3,  # three-step Adams-Bashforth, started by rk4
    "implicit_adams": 4,  # three-step Adams-Moulton
}
STEPS = (32, 64, 128, 256)
# implicit_adams stops its corrector at rtol; at the default 1e-6 the last steps lose order to it, and
# at 1e-9 the first ones warn that four corrections did not reach it.
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
pytestmark = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")


class Sine(Signal):
    """u(t) = sin(3 t) times the one sample: a smooth input."""

    def __call__(self, t: Tensor) -> Tensor:
        return self.samples[:, 0] * torch.sin(3 * t)


def known_order(solver: str) -> int:
    assert solver in ORDERS, f"torchdiffeq has a new fixed-step solver {solver!r}: add its order."
    return ORDERS[solver]


@pytest.mark.parametrize("solver", [*GRID_SOLVERS, *FIXED_STEP])
def test_order_on_a_driven_nonlinear_field(solver: str) -> None:
    terms = one_module("tanh", "x")
    x0, sine = normal(2, 6, seed=1), Sine(normal(2, 1, 2, seed=2), torch.zeros(1, dtype=F64))
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    reference = tight(lambda t, x: terms(x, sine(t)), x0, ends, 2000)[:, -1]
    errors = []
    for n in STEPS:
        t = torch.linspace(0, 1, n + 1, dtype=F64)
        errors.append(
            float((solve(terms, x0, t, u=sine, solver=solver, **TIGHT).last - reference).norm())
        )
    assert order(errors, [1 / n for n in STEPS]) == pytest.approx(known_order(solver), abs=0.15)
    assert errors[-1] < 1e-2 * float(reference.norm())


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_order_on_a_linear_field_against_the_matrix_exponential(solver: str) -> None:
    A = normal(5, 5, seed=3)
    A = A - A.mT - torch.eye(5, dtype=F64)
    x0 = normal(3, 5, seed=4)
    exact = x0 @ torch.matrix_exp(A).mT
    errors = []
    for n in STEPS:
        t = torch.linspace(0, 1, n + 1, dtype=F64)
        errors.append(
            float((solve(lambda t, x: x @ A.mT, x0, t, solver=solver, **TIGHT).last - exact).norm())
        )
    assert order(errors, [1 / n for n in STEPS]) == pytest.approx(known_order(solver), abs=0.15)


@pytest.mark.parametrize("kind", [ZeroOrderHold, LinearInterpolation])
@pytest.mark.parametrize("solver", FIXED_STEP)
def test_jumps_and_kinks_of_the_input_cost_no_order(solver: str, kind: type[Signal]) -> None:
    # Substeps that never divide an interval between samples would step across a jump: order 1.
    terms, x0 = one_module("tanh", "x"), normal(2, 6, seed=1)
    t = torch.tensor([0.0, 0.17, 0.5, 0.61, 1.0], dtype=F64)
    signal = kind(normal(2, 5, 2, seed=5, scale=3.0), t)
    reference = tight(lambda s, x: terms(x, signal(s)), x0, t, 200)
    errors = []
    for n in STEPS:
        x = solve(terms, x0, t[[0, -1]], u=signal, solver=solver, step_size=1 / n, **TIGHT).last
        errors.append(float((x - reference[:, -1]).norm()))
    # Uneven intervals make the steps uneven by up to 10 %; an Adams solver starts each by a more
    # accurate rk4, whose share falls with n. Hence the wider band; a jump missed gives order 1.
    assert order(errors, [1 / n for n in STEPS]) == pytest.approx(known_order(solver), abs=0.5)


def test_step_size_gives_the_states_at_every_time_asked_for() -> None:
    terms, x0 = one_module("tanh", "x"), normal(2, 6, seed=1)
    t = torch.tensor([0.0, 0.21, 0.5, 0.777, 1.0], dtype=F64)
    signal = CubicHermite(normal(2, 5, 2, seed=5), t)
    x = solve(terms, x0, t, u=signal, solver="rk4", step_size=0.01).x
    assert_close(x, tight(lambda s, x: terms(x, signal(s)), x0, t, 100), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_long_held_inputs_stay_bounded(solver: str) -> None:
    # Adams methods of torchdiffeq's default order 12 reach 1e23 here.
    terms, x0 = one_module("tanh", "x"), normal(2, 6, seed=1)
    u = normal(2, 100, 2, seed=6)
    x = solve(terms, x0, u=u, dt=0.05, solver=solver).x
    signal = ZeroOrderHold(u, torch.arange(100, dtype=F64) * 0.05)
    t = torch.arange(101, dtype=F64) * 0.05
    reference = tight(lambda s, x: terms(x, signal(s)), x0, t, 20)
    assert_close(x, reference, rtol=0, atol=2e-2 if known_order(solver) == 2 else 1e-3)
