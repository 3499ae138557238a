"""`solve` itself: grids, per-sample steps, lengths, what it saves, and what it refuses."""

from __future__ import annotations

import math
import sys
from types import FrameType

import pytest
import torch
from torch.testing import assert_close

from ctrnn_assembly import CTRNN
from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError, SolverError
from ctrnn_assembly.inputs import CubicHermite, LinearInterpolation, Signal, ZeroOrderHold
from ctrnn_assembly.schemes import SCHEMES, SOLVERS
from ctrnn_assembly.solvers import solve
from solver_problems import DT, F64, FIELDS, mixed, normal, one_module
from solver_problems import one_thread as one_thread

TERMS = one_module("tanh", "x")
X0, U = normal(3, 6), normal(3, 8, 2, seed=1)
SOME = (*SCHEMES, "rk4", "dopri5")


@pytest.mark.parametrize("solver", SOME)
def test_time_given_in_three_ways_is_the_same(solver: str) -> None:
    t = torch.cat([torch.zeros(1, dtype=F64), torch.full((8,), DT, dtype=F64).cumsum(0)])
    number = solve(TERMS, X0, u=U, dt=DT, solver=solver)
    steps = solve(TERMS, X0, u=U, dt=torch.full((8,), DT), solver=solver)
    times = solve(TERMS, X0, t, u=U, solver=solver)
    assert number.x.shape == (3, 9, 6)
    assert torch.equal(number.x[:, 0], X0)
    assert_close(number.t, t, rtol=0, atol=1e-15)
    # torch.full((8,), DT) may be float32: DT to 1e-8.
    assert_close(steps.x, number.x, rtol=1e-6, atol=1e-6)
    assert_close(times.x, number.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", SOME)
def test_arrays_and_lists_are_taken(solver: str) -> None:
    lengths, dt = torch.tensor([8, 0, 3]), torch.full((8,), DT)
    expected = solve(TERMS, X0, u=U, dt=dt, lengths=lengths, solver=solver).x
    for state, u in ((X0.numpy(), U.numpy()), (X0.tolist(), U.tolist())):
        for ends in (lengths.numpy(), lengths.tolist()):
            found = solve(TERMS, state, u=u, dt=dt.tolist(), lengths=ends, solver=solver)
            assert_close(found.x, expected, rtol=1e-6, atol=1e-6)  # dt in float32 and float64


@pytest.mark.parametrize("solver", SOME)
@pytest.mark.parametrize("lengths", [None, [8, 0, 3]])
def test_last_is_the_last_of_all(solver: str, lengths: list[int] | None) -> None:
    valid = None if lengths is None else torch.tensor(lengths)
    every = solve(TERMS, X0, u=U, dt=DT, solver=solver, lengths=valid)
    last = solve(TERMS, X0, u=U, dt=DT, solver=solver, lengths=valid, save="last")
    assert last.x.shape == (3, 1, 6)
    assert torch.equal(last.last, every.x[:, -1])
    assert torch.equal(last.t, every.t[-1:])


@pytest.mark.parametrize("solver", SOME)
def test_a_state_stays_from_its_length_on_and_padding_does_not_matter(solver: str) -> None:
    lengths = torch.tensor([8, 0, 3])
    padded = U.clone().requires_grad_()
    x = solve(TERMS, X0, u=padded, dt=DT, solver=solver, lengths=lengths).x
    # Adaptive steps are chosen for the whole batch, so they agree within the tolerance only.
    tolerance = 1e-5 if solver == "dopri5" else 1e-13
    for k, length in enumerate([8, 0, 3]):
        if length:
            alone = solve(TERMS, X0[[k]], u=U[[k], :length], dt=DT, solver=solver).x[0]
            assert_close(x[k, : length + 1], alone, rtol=tolerance, atol=tolerance)
        assert torch.equal(x[k, length:], x[k, length].expand(9 - length, -1))
    (g,) = torch.autograd.grad(x.sum(), padded)
    # torchdiffeq lets a little gradient through its choice of the first step.
    leak = 1e-9 if solver == "dopri5" else 0.0
    assert float(g[2, 3:].abs().max()) <= leak
    assert float(g[1].abs().max()) <= leak
    assert float(g[2, :3].abs().min()) > 1e-6


@pytest.mark.parametrize("solver", SCHEMES)
def test_per_sample_steps_equal_separate_solves(solver: str) -> None:
    dt = 0.01 + 0.1 * torch.rand(3, 8, generator=torch.Generator().manual_seed(2), dtype=F64)
    together = solve(TERMS, X0, u=U, dt=dt, solver=solver)
    assert together.t.shape == (3, 9)
    for k in range(3):
        alone = solve(TERMS, X0[[k]], u=U[[k]], dt=dt[k], solver=solver)
        assert_close(together.x[k], alone.x[0], rtol=1e-12, atol=1e-12)
        assert_close(together.t[k], alone.t, rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", SOME)
@pytest.mark.parametrize("kind", [ZeroOrderHold, LinearInterpolation, CubicHermite])
def test_a_signal_may_have_other_times_than_the_solve(solver: str, kind: type[Signal]) -> None:
    signal = kind(normal(3, 4, 2, seed=3), torch.tensor([0.0, 0.11, 0.2, 0.43], dtype=F64))
    t = torch.linspace(0, 0.6, 61, dtype=F64)
    x = solve(TERMS, X0, t, u=signal, solver=solver).x
    fine = solve(TERMS, X0, t, u=signal, solver="rk4", step_size=0.001).x
    # First-order methods at dt = 0.01 on a field of slope about 10.
    assert_close(x, fine, rtol=0, atol=1e-5 if solver in ("rk4", "dopri5") else 0.15)
    if solver in SCHEMES:
        samples = torch.stack([signal(s) for s in t[:-1]], 1)
        assert torch.equal(x, solve(TERMS, X0, t, u=samples, solver=solver).x)


def test_a_solution_says_how_it_came_about() -> None:
    grid = solve(TERMS, X0, u=U, dt=DT)
    assert (grid.solver, grid.steps, grid.evaluations) == ("euler", 8, 8)
    adaptive = solve(TERMS, X0, u=U, dt=DT, solver="dopri5")
    assert adaptive.steps is None
    assert adaptive.evaluations > 8 * 6


def test_whole_number_times_are_times() -> None:
    a = solve(TERMS, X0, torch.arange(4), solver="rk4").x
    assert_close(a, solve(TERMS, X0, torch.arange(4.0, dtype=F64), solver="rk4").x, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["fused", "plain"])
@pytest.mark.parametrize("solver", SCHEMES)
@pytest.mark.parametrize("name", ["uniform", "mixed", "hierarchy"])
def test_a_step_is_at_most_six_frames_deep(name: str, solver: str, backend: str) -> None:
    # From the layer's forward to the arithmetic of a step: what a reader, or a debugger, goes through.
    layer = CTRNN(2, FIELDS[name](), solver=solver, backend=backend, batch_first=True).double()  # type: ignore[arg-type]
    u, stacks = normal(3, 5, 2), []
    activations = [getattr(phi.function, "__code__", None) for phi in ACTIVATIONS.values()]

    def look(frame: FrameType, event: str, _: object) -> None:
        stack = []
        while frame is not None:
            # An activation itself, softplus for one, may be a Python function: the user's arithmetic.
            if "ctrnn_assembly" in frame.f_code.co_filename and frame.f_code not in activations:
                stack.append(frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        stacks.append(tuple(reversed(stack)))

    layer(u)
    sys.setprofile(look)
    try:
        layer(u)
    finally:
        sys.setprofile(None)
    loop = "roll" if backend == "fused" else "integrate"
    inside = [stack for stack in stacks if loop in stack]
    inside = inside[len(inside) // 2 :]  # the first step caches what all of them share
    assert any(len(stack) > 4 for stack in inside)
    assert max(map(len, inside)) <= 6, " ".join(max(inside, key=len))


REFUSED = [
    (
        {"solver": "eulr", "dt": DT},
        ConfigError,
        "^got 'eulr'. Did you mean 'euler'.* euler, .*dopri5",
    ),
    ({}, SolverError, "either the times t or the step length dt"),
    ({"dt": DT, "t": torch.linspace(0, 1, 9)}, SolverError, "either the times t or the step length dt"),
    ({"dt": -DT}, SolverError, "dt must be positive and finite; got .-0.03"),
    ({"dt": 0.0}, SolverError, "dt must be positive"),
    ({"dt": math.nan}, SolverError, "dt must be positive and finite"),
    ({"dt": torch.full((7,), DT)}, ShapeError, "one sample a step, 7 of them; got 8"),
    ({"dt": torch.full((2, 8), DT)}, ShapeError, r"\(batch, time\) with batch 3; got \(2, 8\)"),
    ({"dt": DT, "u": None}, SolverError, "dt as a number needs samples"),
    ({"t": torch.tensor([0.0])}, ShapeError, "one sample a step, 0 of them.*LinearInterpolation"),
    ({"t": []}, SolverError, "finite, and only increase or only decrease"),
    ({"t": torch.tensor([0.0, 1.0, 0.5])}, SolverError, r"only increase.*\[0.0, 1.0, 0.5\]"),
    ({"t": torch.tensor([0.0, math.nan])}, SolverError, "finite, and only increase"),
    ({"t": torch.tensor([0.0, math.inf])}, SolverError, "finite, and only increase"),
    ({"t": torch.zeros(2, 9)}, SolverError, r"t must be \(k,\)"),
    ({"dt": DT, "u": U[0]}, ShapeError, r"u must be \(batch, time, m\)"),
    ({"dt": DT, "u": U[:, 0, 0]}, ShapeError, r"u must be \(batch, time, m\)"),
    ({"dt": DT, "u": U[:2]}, ShapeError, "batch 3 and m = 2"),
    ({"dt": DT, "u": U[..., :1]}, ShapeError, "batch 3 and m = 2"),
    ({"dt": DT, "u": U / 0}, DataError, "the input must be finite"),
    ({"dt": DT, "x0": X0[0]}, ShapeError, r"x0 must be \(batch, 6\)"),
    ({"dt": DT, "x0": X0[:, :5]}, ShapeError, r"x0 must be \(batch, 6\)"),
    ({"dt": DT, "x0": X0.long()}, ShapeError, "float64 on cpu, as the field; got .* torch.int64"),
    (
        {"dt": DT, "x0": X0.float()},
        ShapeError,
        r"float64 on cpu, as the field; got \(3, 6\) torch.float32 on cpu",
    ),
    ({"dt": DT, "x0": None}, ShapeError, "x0 must be a tensor or array of numbers; got NoneType"),
    ({"dt": DT, "u": math.sin}, ShapeError, "u must be a tensor or array of numbers; got builtin"),
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


@pytest.mark.parametrize("solver", [m for m in SOLVERS if m not in SCHEMES])
def test_shared_grids_are_asked_for_where_needed(solver: str) -> None:
    with pytest.raises(SolverError, match="needs one time grid for the whole batch"):
        solve(TERMS, X0, u=U, dt=torch.full((3, 8), DT), solver=solver)


def test_a_signal_cannot_follow_per_sample_steps() -> None:
    signal = ZeroOrderHold(U, torch.arange(8, dtype=F64))
    with pytest.raises(SolverError, match="a Signal has one grid"):
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
