"""torchdiffeq's solvers: orders, tolerances, adjoints, any f(t, x), and failures that say why."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly.errors import ConfigError, SolverError
from ctrnn_assembly.inputs import CubicHermite, LinearInterpolation, Signal, ZeroOrderHold
from ctrnn_assembly.schemes import FIXED_STEP, SCHEMES, SOLVERS, TORCHDIFFEQ_SOLVERS
from ctrnn_assembly.solvers import solve
from solver_problems import DT, F64, mixed, nested, normal, one_module, order, tight, uniform
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
unconverged = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")


class Sine(Signal):
    """u(t) = sin(3 t) times the one sample: a smooth input."""

    def __call__(self, t: Tensor) -> Tensor:
        return self.samples[:, 0] * torch.sin(3 * t)


def known_order(solver: str) -> int:
    assert solver in ORDERS, f"torchdiffeq has a new fixed-step solver {solver!r}: add its order."
    return ORDERS[solver]


@unconverged
@pytest.mark.parametrize("solver", [*SCHEMES, *FIXED_STEP])
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


@unconverged
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


@unconverged
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


@unconverged
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
    signal, x0 = signal_of(kind, count=6), normal(2, 23, seed=1)
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


TIMES = torch.arange(6, dtype=F64) * 0.2
ENDS = torch.tensor([0.0, 0.5, 1.2], dtype=F64)


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
    fine = {"rtol": 1e-9, "atol": 1e-9}
    starts = normal(40, 2)  # which scipy interpolates: some of them by a rounding off
    assert torch.equal(
        solve(field, starts, t, solver="scipy_solver", gradient="adjoint").x[:, 0], starts
    )
    scipy = solve(field, x0, t, solver="scipy_solver", gradient="adjoint", **fine).last  # type: ignore[arg-type]
    direct = solve(field, x0, t, solver="dopri5", **fine).last  # type: ignore[arg-type]
    a, b = (torch.autograd.grad(x.sum(), field.A)[0] for x in (scipy, direct))
    assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", SCHEMES)
def test_grid_methods_refuse_the_settings_they_would_ignore(solver: str) -> None:
    net = mixed()
    x0, t = normal(1, net.size), torch.tensor([0.0, 0.1])
    with pytest.raises(SolverError, match="their exact gradient"):
        solve(net, x0, t, solver=solver, gradient="adjoint")
    with pytest.raises(SolverError, match="takes `substeps` steps an interval"):
        solve(net, x0, t, solver=solver, step_size=0.01)


def test_an_unknown_gradient_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 'exact'.* one of direct, adjoint, inexact-adjoint"):
        solve(Oscillator(), normal(1, 2), ENDS, solver="dopri5", gradient="exact")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["fused", "plain"])
def test_terms_remember_nothing_of_an_earlier_solve(backend: str) -> None:
    """Gradients after a solve without them, and states after a step of an optimiser."""
    terms = uniform().terms().mapped(lambda t: t.detach().clone().requires_grad_())
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
    tolerance = 1e-5 if solver == "adaptive_heun" else 1e-6  # of order 2, it takes ten times the steps
    x = solve(lorenz, x0, t, solver=solver, rtol=tolerance, atol=tolerance).last
    expected = tight(lorenz, x0, torch.tensor([0.0, 0.5], dtype=F64), 2000)[:, -1]
    assert_close(x, expected, rtol=0, atol=1e-2)  # states of size 20; midpoint is the worst


@pytest.mark.parametrize("solver", ["explicit_adams", "implicit_adams"])
def test_multistep_methods_refuse_unequal_steps(solver: str) -> None:
    t = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.5], dtype=F64)
    with pytest.raises(SolverError, match=r"needs equal steps; got steps from 0.1 to 0.2"):
        solve(lorenz, torch.ones(1, 3, dtype=F64), t, solver=solver)


def test_every_method_of_torchdiffeq_is_offered_once() -> None:
    assert {"dopri5", "dopri8", "bosh3", "rk4", "midpoint"} <= set(SOLVERS)
    assert len(set(SOLVERS)) == len(SOLVERS)
