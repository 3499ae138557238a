"""Adaptive methods: tolerances met for every input, few evaluations, clear failures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.inputs import CubicHermite, LinearInterpolation, Signal, ZeroOrderHold
from ctrnn_assembly.solvers import FIXED_STEP, solve
from ctrnn_assembly.solvers.adaptive import TORCHDIFFEQ_SOLVERS
from solver_problems import DT, F64, mixed, normal, one_module, tight
from solver_problems import one_thread as one_thread

ADAPTIVE = [m for m in TORCHDIFFEQ_SOLVERS if m not in FIXED_STEP]
TERMS = one_module("tanh", "x")
X0 = normal(2, 6, seed=1)


def signal_of(kind: type[Signal], count: int = 12, width: float = 0.3) -> Signal:
    return kind(normal(2, count, 2, seed=2, scale=3.0), torch.arange(count, dtype=F64) * width)


def reference(signal: Signal, t: Tensor, substeps: int) -> Tensor:
    return tight(lambda s, x: TERMS(x, signal(s)), X0, t, substeps)


# Largest error at the end, in units of the tolerance. The tolerance is of the root mean square of one
# step; some 20 to 500 of them add up. fehlberg2 judges its error by a difference of only 1/512.
UNITS = dict.fromkeys(ADAPTIVE, 200.0) | {"fehlberg2": 1000.0}


@pytest.mark.parametrize("kind", [ZeroOrderHold, LinearInterpolation, CubicHermite])
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_the_tolerance_is_met_across_jumps_and_kinks(solver: str, kind: type[Signal]) -> None:
    terms = mixed().terms().driven(normal(23, 2, seed=9))
    signal, x0 = signal_of(kind), normal(2, 23, seed=1)
    t = torch.cat([signal.times, signal.times[-1:] + 0.3])
    with torch.no_grad():
        expected = tight(lambda s, x: terms(x, signal(s)), x0, t, 40)[:, -1]
        evaluations = []
        for rtol in (1e-3, 1e-5):
            x = solve(terms, x0, t[[0, -1]], u=signal, solver=solver, rtol=rtol, atol=rtol)
            assert float((x.last - expected).abs().max()) < UNITS[solver] * rtol
            evaluations.append(x.evaluations)
    assert evaluations[1] > evaluations[0]


def test_states_between_the_samples_are_given_too() -> None:
    signal = signal_of(ZeroOrderHold)
    t = torch.tensor([0.1, 0.15, 0.3, 0.31, 2.0, 3.55], dtype=F64)
    dense = torch.cat([t, signal.times[(signal.times > 0.1) & (signal.times < 3.55)]]).unique()
    x = solve(TERMS, X0, t, u=signal, solver="dopri5", rtol=1e-9, atol=1e-9).x
    assert_close(x, reference(signal, dense, 60)[:, torch.searchsorted(dense, t)], rtol=0, atol=1e-6)


def test_known_jumps_cost_far_fewer_evaluations_than_hidden_ones() -> None:
    signal = signal_of(ZeroOrderHold, count=30)
    t = torch.cat([signal.times, signal.times[-1:] + 0.3])
    expected = reference(signal, t, 60)
    known = solve(TERMS, X0, t, u=signal, solver="dopri5", rtol=1e-6, atol=1e-6)
    hidden = solve(lambda s, x: TERMS(x, signal(s)), X0, t, solver="dopri5", rtol=1e-6, atol=1e-6)
    assert known.evaluations * 3 < hidden.evaluations
    assert float((known.x - expected).abs().max()) < float((hidden.x - expected).abs().max()) * 2


@pytest.mark.parametrize("step_size", [DT, DT / 2, 1.0])
def test_a_first_step_that_ends_on_a_jump_hides_no_jump(step_size: float) -> None:
    # torchdiffeq 0.2.5 loses every further jump_t then: 35 times the evaluations, tolerance missed.
    u = normal(2, 20, 2, seed=3)
    free = solve(TERMS, X0, u=u, dt=DT, solver="dopri5", rtol=1e-6, atol=1e-6)
    x = solve(TERMS, X0, u=u, dt=DT, solver="dopri5", rtol=1e-6, atol=1e-6, step_size=step_size)
    assert x.evaluations <= 1.5 * free.evaluations
    signal = ZeroOrderHold(u, free.t[:-1])
    assert_close(x.x, reference(signal, free.t, 20), rtol=0, atol=1e-5)


def test_float32_states_see_every_held_sample_once() -> None:
    # Each sample is a pulse for one unit; a skipped or repeated one is an error of 0.03.
    u = torch.zeros(1, 400, 2, dtype=F64)
    u[0, torch.randperm(400, generator=torch.Generator().manual_seed(0))[:150]] = 1.0
    terms = mixed().terms().driven(normal(23, 2))
    narrow = type(terms)(
        tuple(W.detach().float() for W in terms.blocks),
        terms.pre,
        terms.post,
        terms.bias.detach().float(),
        terms.tau.float(),
        L=terms.L.detach().float(),  # type: ignore[union-attr]
        W_in=terms.W_in.float(),  # type: ignore[union-attr]
    )
    with torch.no_grad():
        for solver, atol in (("dopri5", 1e-4), ("rk4", 1e-5), ("heun2", 1e-5)):
            x0 = torch.zeros(1, 23, dtype=F64)
            options = {"dt": DT, "solver": solver, "rtol": 1e-5, "atol": 1e-5}
            wide = solve(terms, x0, u=u, **options).x  # type: ignore[arg-type]
            single = solve(narrow, x0.float(), u=u.float(), **options).x  # type: ignore[arg-type]
            assert single.dtype == torch.float32
            assert_close(single.double(), wide, rtol=0, atol=atol)


def test_times_that_float32_cannot_tell_apart_are_refused() -> None:
    t = 1e6 + torch.arange(5, dtype=F64) * DT
    with pytest.raises(SolverError, match=r"float32 cannot tell neighbouring samples apart"):
        solve(
            type(TERMS)(
                tuple(W.float() for W in TERMS.blocks),
                TERMS.pre,
                TERMS.post,
                TERMS.bias.float(),
                TERMS.tau.float(),
            ),
            X0.float(),
            t,
            u=torch.zeros(2, 4, 6),
            solver="dopri5",
        )
