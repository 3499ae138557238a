"""Backends: what may run a solve, the check before one is trusted, recordings replayed on the CPU."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import Activation, AdaDiagTanh, SingularValueBounded, Subnetwork, couple
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.solvers import fused, solve
from ctrnn_assembly.solvers.cuda import check, graph
from ctrnn_assembly.solvers.fused import prepared, same_steps
from ctrnn_assembly.terms import Edge, Terms
from solver_problems import F64, normal, rng
from solver_problems import one_thread as one_thread

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU machine these backends run")


def integrate(*given: Any, **options: Any) -> Tensor:
    """The states of the fused loop."""
    return prepared(*given, **options)()


def field(kind: str = "blocks", pairs: str | list = "all") -> Terms:
    g = rng(1)
    constraint = SingularValueBounded("tanh") if kind == "blocks" else AdaDiagTanh("relu")
    parts = [Subnetwork(constraint, 4, generator=g) for _ in range(4)]
    terms = couple(parts, pairs, generator=g).double().terms().detach_cpu()
    return terms.driven(normal(16, 2, seed=3), normal(16, seed=4))


PROBLEM = (normal(3, 16, seed=1), normal(40, 3, 2, seed=2), torch.full((40, 1), 0.05, dtype=F64))
EULER = SCHEMES["euler"]
fused_euler = partial(integrate, EULER)


@pytest.fixture
def graph_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings are replayed by calling the function again."""
    monkeypatch.setattr(check, "unable", lambda *given: {"graph": None})


def everything(solver: object, terms: Terms, **options: object) -> list[Tensor]:
    """States and all gradients."""
    copy = terms.mapped(lambda t: t.detach().clone().requires_grad_())
    x0, drive, dt = PROBLEM
    leaves = [x0.clone().requires_grad_(), drive.clone().requires_grad_()]
    x = solver(copy, *leaves, dt, **options)  # type: ignore[operator]
    tensors = [*leaves, *copy.tensors()]
    return [x, *torch.autograd.grad((x * normal(*x.shape, seed=5)).sum(), tensors)]


@pytest.mark.parametrize("recompute", ["none", "sqrt"])
@pytest.mark.parametrize("save", ["all", "last"])
@pytest.mark.parametrize("pairs", ["all", [(0, 2)]])
@pytest.mark.parametrize("kind", ["blocks", "diagonal"])
def test_a_replayed_solve_equals_a_direct_one(
    kind: str, pairs: object, save: str, recompute: str, graph_on_cpu: None
) -> None:
    if save == "all" and recompute == "sqrt":
        pytest.skip("all states are kept anyway")
    for solver in (fused_euler, partial(integrate, SCHEMES["imex"])):
        for scale in (1.0, 0.5):  # the second is a replay with other values
            terms = field(kind, pairs)  # type: ignore[arg-type]
            terms = terms.mapped(lambda t, scale=scale: scale * t)
            if solver is not fused_euler:  # recorded imex is dense, with a gradient of all of L
                terms = replace(terms, pairs=())
            options = {"save": save, "recompute": recompute}
            direct = everything(solver, terms, **options)
            replay = everything(partial(solver, backend="graph"), terms, **options)
            for a, b in zip(direct, replay, strict=True):
                assert_close(a, b, rtol=1e-13, atol=1e-14)
    assert len(graph._recordings) <= graph.KEPT


def test_recordings_of_two_solves_do_not_share_memory(graph_on_cpu: None) -> None:
    terms, (x0, drive, dt) = field(), PROBLEM
    solver = partial(fused_euler, save="last", backend="graph")
    one, two = (x0.clone().requires_grad_(), (x0 + 1).requires_grad_())
    first, second = solver(terms, one, drive, dt), solver(terms, two, drive, dt)  # before any backward
    for x, start in ((first, one), (second, two)):
        (found,) = torch.autograd.grad(x.square().sum(), start)
        again = start.detach().clone().requires_grad_()
        (expected,) = torch.autograd.grad(
            fused_euler(terms, again, drive, dt, save="last").square().sum(), again
        )
        assert_close(found, expected, rtol=1e-13, atol=1e-14)


def chosen(candidate: Any, *given: Any) -> str:
    """Of a solve of euler the candidate, if the check finds it right, or the fused loop, by name."""
    form, *tensors = fused.fused_step(EULER, *given, "full")
    plan = fused.Plan(every=False, whole=True, few=False, length=fused.SEGMENT)
    loops = {"fast": partial(candidate, form, plan)}
    return check.first_right(loops, form, plan, given[1], *tensors)


right = fused.Integrate.apply


def wrong_states(*given: Any) -> Tensor:
    return 1.01 * right(*given)


def wrong_gradient_of_D(
    form: Any, plan: Any, x0: Any, u: Any, dt: Any, W: Any, D: Tensor, *A: Any
) -> Any:
    return right(form, plan, x0, u, dt, W, D.detach() + 0 * D, *A)


def no_number_for_D(form: Any, plan: Any, x0: Any, u: Any, dt: Any, W: Any, D: Any, *A: Any) -> Any:
    return right(form, plan, x0, u, dt, W, D + 0 * (D - D.detach()).abs().sqrt(), *A)


def stale(form: Any, plan: Any, x0: Tensor, *given: Any) -> Tensor:
    """A recording that keeps its first initial state."""
    first = KEPT_STATES.setdefault("first", x0.detach().clone())
    return right(form, plan, first + 0 * x0, *given)


KEPT_STATES: dict[str, Tensor] = {}


def broken(*given: object, **options: object) -> Tensor:
    raise RuntimeError("PTXAS error: out of registers\nand more")


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (wrong_states, "states or gradients differ from the fused loop's, by"),
        (wrong_gradient_of_D, "states or gradients differ from the fused loop's, by"),
        (no_number_for_D, "states or gradients differ from the fused loop's, by"),
        (stale, "states or gradients differ from the fused loop's, by"),
        (broken, "backend fast is not used: PTXAS error: out of registers."),
    ],
)
def test_a_backend_that_is_wrong_is_left_out_with_one_line(candidate: object, message: str) -> None:
    check._found_right.clear()
    terms = field()
    x0, drive, dt = PROBLEM
    with pytest.warns(RuntimeWarning, match=message):
        assert chosen(candidate, terms, x0, drive, dt) == "fused"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the second time it is known, and nothing is said
        assert chosen(candidate, terms, x0, drive, dt) == "fused"
    check._found_right.clear()


def test_a_backend_that_is_right_is_used_and_checked_once() -> None:
    check._found_right.clear()
    calls = []

    def counted(*given: Any) -> Tensor:
        calls.append(1)
        return right(*given)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert chosen(counted, field(), *PROBLEM) == "fast"
    assert len(calls) == 2  # the check runs it on other values first
    check._found_right.clear()


@CPU_ONLY
@pytest.mark.parametrize(
    ("backend", "settings", "message"),
    [
        ("graph", {}, "'graph' cannot run this: it needs CUDA; the state is on cpu. Use 'auto'"),
        (
            "persistent",
            {},
            "the state is on cpu, and Triton needs a CUDA device|Triton is not installed",
        ),
        ("graph", {"solver": "rk4"}, "is of the grid solvers"),
        ("plain", {"matmul_precision": "bf16"}, "is of the hand-written loops"),
        ("plain", {"recompute": "sqrt", "save": "last"}, "is of the hand-written loops"),
    ],
)
def test_a_backend_that_cannot_run_says_why(backend: str, settings: dict, message: str) -> None:
    x0, drive, _ = PROBLEM
    with pytest.raises(SolverError, match=message):
        solve(field(), x0, u=drive.transpose(0, 1), dt=0.05, backend=backend, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["euler", "imex", "exponential-euler"])
def test_auto_on_a_cpu_is_the_fused_loop(solver: str) -> None:
    x0, drive, _ = PROBLEM
    states = [
        solve(field(), x0, u=drive.transpose(0, 1), dt=0.05, solver=solver, backend=b).x  # type: ignore[arg-type]
        for b in ("auto", "fused")
    ]
    assert_close(states[0], states[1], rtol=0, atol=0)


def test_every_field_and_solve_of_another_kind_is_checked_anew() -> None:
    check._found_right.clear()
    x0, drive, dt = PROBLEM
    terms = field()
    edge = Edge(normal(16, 16, seed=7), Elementwise(((ACTIVATIONS["tanh"], 16),)))
    kinds = [
        (terms, x0, drive, dt),
        (replace(terms, edges=(edge,)), x0, drive, dt),
        (replace(terms, L=None, pairs=()), x0, drive, dt),
        (terms, x0, None, dt),  # the fused loop has no gradient of W_in here: it counts as zero
        (terms, x0, drive, torch.linspace(0.1, 0.2, 40, dtype=F64)[:, None]),
        (field("diagonal"), x0, drive, dt),
        (field(pairs=[(0, 2)]), x0, drive, dt),
    ]
    for given in kinds:
        for _ in range(2):
            chosen(right, *given)
    assert len(check._found_right) == len(kinds)
    assert all(check._found_right.values())
    check._found_right.clear()


def test_what_inference_mode_leaves_can_be_used_in_training(graph_on_cpu: None) -> None:
    graph._recordings.clear()
    check._found_right.clear()
    terms, (x0, drive, dt) = field(), PROBLEM
    solvers = [
        partial(fused_euler, save="last"),
        partial(fused_euler, save="last", recompute="sqrt"),
        partial(fused_euler, save="last", backend="graph"),
    ]
    for solver in solvers:
        expected = everything(solver, terms)
        graph._recordings.clear()
        with torch.inference_mode():
            solver(terms, x0.repeat(2, 1), drive.repeat(1, 2, 1), dt)
            solver(terms, x0, drive, dt)
        for a, b in zip(everything(solver, terms), expected, strict=True):
            assert_close(a, b, rtol=0, atol=0)
    with torch.inference_mode():
        chosen(right, terms, x0.clone(), drive, dt)
    check._found_right.clear()


def test_two_threads_do_not_mix_their_values(graph_on_cpu: None) -> None:
    terms, (x0, drive, dt) = field(), PROBLEM
    solver = partial(fused_euler, save="last", backend="graph")
    wrong = []

    def work(k: int) -> None:
        expected = fused_euler(terms, x0 + k, drive, dt, save="last")
        for _ in range(10):
            if not torch.equal(solver(terms, x0 + k, drive, dt), expected):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_states_are_given_back_after_the_backward_pass() -> None:
    terms, (x0, drive, dt) = field(), PROBLEM
    fused._free.clear()
    loss = fused_euler(terms, x0.clone().requires_grad_(), drive, dt, save="last").square().sum()
    assert not fused._free
    loss.backward()
    assert len(fused._free) == 1  # though the loss is still there


def test_semi_implicit_steps_of_several_lengths_refuse_settings_they_would_ignore() -> None:
    x0, drive, _ = PROBLEM
    u, dt = drive.transpose(0, 1), torch.linspace(0.1, 0.2, 40, dtype=F64)
    for settings in (
        {"matmul_precision": "bf16"},
        {"recompute": "sqrt", "save": "last"},
        {"backend": "fused"},
    ):
        with pytest.raises(
            SolverError, match="several lengths have no recompute, matmul_precision, backend"
        ):
            solve(field(), x0, u=u, dt=dt, solver="imex", **settings)  # type: ignore[arg-type]


def test_equal_times_that_were_rounded_are_equal_steps() -> None:
    for times in (torch.linspace(0, 2, 41), torch.arange(41) * 0.03):
        assert len(times.diff().unique()) > 1
        assert same_steps(times.diff()[:, None])
    assert not same_steps(torch.tensor([[0.1], [0.1001]]))
    assert not same_steps(torch.full((5, 2), 0.1))


def test_a_list_of_slopes_can_be_part_of_a_key() -> None:
    assert hash(Activation("own", torch.tanh, slope=[0.0, 1.0]))  # type: ignore[arg-type]


def test_what_cannot_run_is_said_once() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(2):
            check._say_once("persistent", "1 nonlinear coupling")
            check._say_once("graph", None)
    assert [str(one.message) for one in said] == [
        "backend persistent is not used: 1 nonlinear coupling."
    ]
