"""Adaptive methods: tolerances met for every input, few evaluations, clear failures."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.inputs import CubicHermite, Linear, Signal, ZeroOrderHold
from ctrnn_assembly.solvers import FIXED_STEP, GRID_METHODS, METHODS, solve
from ctrnn_assembly.solvers.adaptive import TORCHDIFFEQ_METHODS
from solver_problems import DT, F64, mixed, normal, one_module, tight
from solver_problems import one_thread as one_thread

ADAPTIVE = [m for m in TORCHDIFFEQ_METHODS if m not in FIXED_STEP]
TERMS = one_module("tanh", "x")
X0 = normal(2, 6, seed=1)


def signal_of(kind: type[Signal], count: int = 12, width: float = 0.3) -> Signal:
    return kind(normal(2, count, 2, seed=2, scale=3.0), torch.arange(count, dtype=F64) * width)


def reference(signal: Signal, t: Tensor, substeps: int) -> Tensor:
    return tight(lambda s, x: TERMS(x, signal(s)), X0, t, substeps)


# Largest error at the end, in units of the tolerance. The tolerance is of the root mean square of one
# step; some 20 to 500 of them add up. fehlberg2 judges its error by a difference of only 1/512.
UNITS = dict.fromkeys(ADAPTIVE, 200.0) | {"fehlberg2": 1000.0}


@pytest.mark.parametrize("kind", [ZeroOrderHold, Linear, CubicHermite])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_tolerance_is_met_across_jumps_and_kinks(method: str, kind: type[Signal]) -> None:
    terms = mixed().terms().driven(normal(23, 2, seed=9))
    signal, x0 = signal_of(kind), normal(2, 23, seed=1)
    t = torch.cat([signal.times, signal.times[-1:] + 0.3])
    with torch.no_grad():
        expected = tight(lambda s, x: terms(x, signal(s)), x0, t, 40)[:, -1]
        evaluations = []
        for rtol in (1e-3, 1e-5):
            x = solve(terms, x0, t[[0, -1]], u=signal, method=method, rtol=rtol, atol=rtol)
            assert float((x.last - expected).abs().max()) < UNITS[method] * rtol
            evaluations.append(x.evaluations)
    assert evaluations[1] > evaluations[0]


def test_states_between_the_samples_are_given_too() -> None:
    signal = signal_of(ZeroOrderHold)
    t = torch.tensor([0.1, 0.15, 0.3, 0.31, 2.0, 3.55], dtype=F64)
    dense = torch.cat([t, signal.times[(signal.times > 0.1) & (signal.times < 3.55)]]).unique()
    x = solve(TERMS, X0, t, u=signal, method="dopri5", rtol=1e-9, atol=1e-9).x
    assert_close(x, reference(signal, dense, 60)[:, torch.searchsorted(dense, t)], rtol=0, atol=1e-6)


def test_known_jumps_cost_far_fewer_evaluations_than_hidden_ones() -> None:
    signal = signal_of(ZeroOrderHold, count=30)
    t = torch.cat([signal.times, signal.times[-1:] + 0.3])
    expected = reference(signal, t, 60)
    known = solve(TERMS, X0, t, u=signal, method="dopri5", rtol=1e-6, atol=1e-6)
    hidden = solve(lambda s, x: TERMS(x, signal(s)), X0, t, method="dopri5", rtol=1e-6, atol=1e-6)
    assert known.evaluations * 3 < hidden.evaluations
    assert float((known.x - expected).abs().max()) < float((hidden.x - expected).abs().max()) * 2


@pytest.mark.parametrize("step_size", [DT, DT / 2, 1.0])
def test_a_first_step_that_ends_on_a_jump_hides_no_jump(step_size: float) -> None:
    # torchdiffeq 0.2.5 loses every further jump_t then: 35 times the evaluations, tolerance missed.
    u = normal(2, 20, 2, seed=3)
    free = solve(TERMS, X0, u=u, dt=DT, method="dopri5", rtol=1e-6, atol=1e-6)
    x = solve(TERMS, X0, u=u, dt=DT, method="dopri5", rtol=1e-6, atol=1e-6, step_size=step_size)
    assert x.evaluations <= 1.5 * free.evaluations
    signal = ZeroOrderHold(u, free.t[:-1])
    assert_close(x.x, reference(signal, free.t, 20), rtol=0, atol=1e-5)


def test_float32_states_see_every_held_sample_once() -> None:
    # Each sample is a pulse for one unit; a skipped or repeated one is an error of 0.03.
    u = torch.zeros(1, 784, 2, dtype=F64)
    u[0, torch.randperm(784, generator=torch.Generator().manual_seed(0))[:300]] = 1.0
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
        for method, atol in (("dopri5", 1e-4), ("rk4", 1e-5), ("heun2", 1e-5)):
            x0 = torch.zeros(1, 23, dtype=F64)
            options = {"dt": DT, "method": method, "rtol": 1e-5, "atol": 1e-5}
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
            method="dopri5",
        )


def says_where(message: str) -> bool:
    return bool(re.search(r"at t = \S+, largest state norm \S+, after \d+ evaluations", message))


def test_an_exhausted_step_budget_is_explained() -> None:
    t = torch.tensor([0.0, 50.0], dtype=F64)
    with pytest.raises(SolverError, match="used all of its 3 steps") as caught:
        solve(TERMS, X0, t, method="dopri5", max_steps=3)
    assert says_where(str(caught.value))
    assert "max_steps" in str(caught.value)


def test_an_underflow_of_the_step_is_explained() -> None:
    # A hidden jump of a size that no tolerance accepts: the step shrinks below the resolution of t.
    t = torch.tensor([0.0, 2.0], dtype=F64)
    jump = lambda s, x: 1e12 * (s > 1.0) * torch.sin(1e9 * s) + 0 * x  # noqa: E731
    with pytest.raises(SolverError, match="below the resolution of time") as caught:
        solve(jump, X0, t, method="dopri5", rtol=1e-13, atol=1e-13)
    assert says_where(str(caught.value))


def test_a_state_that_is_not_finite_is_explained() -> None:
    t = torch.tensor([0.0, 10.0], dtype=F64)
    with pytest.raises(SolverError, match="not finite") as caught:
        solve(lambda s, x: torch.where(s > 1, torch.nan, x), X0, t, method="dopri5")
    assert says_where(str(caught.value))


def lorenz(t: Tensor, x: Tensor) -> Tensor:
    a, b, c = x.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


@pytest.mark.parametrize("method", TORCHDIFFEQ_METHODS)
def test_any_field_works_with_torchdiffeqs_methods(method: str) -> None:
    x0 = torch.tensor([[1.0, 1.0, 1.0], [-2.0, 3.0, 20.0]], dtype=F64)
    t = torch.linspace(0, 0.5, 501 if method in FIXED_STEP else 11, dtype=F64)
    x = solve(lorenz, x0, t, method=method, rtol=1e-6, atol=1e-6).last
    expected = tight(lorenz, x0, torch.tensor([0.0, 0.5], dtype=F64), 2000)[:, -1]
    assert_close(x, expected, rtol=0, atol=1e-2)  # states of size 20; midpoint is the worst


@pytest.mark.parametrize("method", GRID_METHODS)
def test_grid_methods_refuse_a_plain_function(method: str) -> None:
    with pytest.raises(SolverError, match=r"needs the tensors of the field.*rk4 or dopri5"):
        solve(lorenz, torch.ones(1, 3), torch.tensor([0.0, 1.0]), method=method)


def test_an_input_beside_a_plain_function_is_refused_not_ignored() -> None:
    with pytest.raises(SolverError, match="Call your input inside f"):
        solve(lorenz, torch.ones(1, 3), dt=0.1, u=torch.ones(1, 4, 3), method="rk4")


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_multistep_methods_refuse_unequal_steps(method: str) -> None:
    t = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.5], dtype=F64)
    with pytest.raises(SolverError, match=r"needs equal steps; got steps from 0.1 to 0.2"):
        solve(lorenz, torch.ones(1, 3, dtype=F64), t, method=method)


def test_every_method_of_torchdiffeq_is_offered_once() -> None:
    assert {"dopri5", "dopri8", "bosh3", "rk4", "midpoint"} <= set(METHODS)
    assert len(set(METHODS)) == len(METHODS)
