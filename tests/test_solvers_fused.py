"""The fused loop: every structure equals torchdiffeq's Euler and the plain twin, in gradients too."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import (
    Activation,
    AdaDiagTanh,
    Assembly,
    SingularValueBounded,
    SparseAbsolute,
    Subnetwork,
    couple,
)
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.errors import DataError, SolverError
from ctrnn_assembly.schemes import SCHEMES, SOLVERS
from ctrnn_assembly.solvers import fused, solve
from ctrnn_assembly.solvers.fused import fused_step, pooled
from ctrnn_assembly.terms import Edge, Terms
from solver_problems import DT, F64, FIELDS, mixed, nested, normal, one_module, rng, uniform
from solver_problems import one_thread as one_thread

BATCH, M = 3, 2


def driven_leaves(net: Assembly, drive: str, samples: int) -> dict[str, Tensor]:
    """Everything a gradient should reach: x0, tau, inputs, input weights, raw parameters."""
    leaves = dict(net.named_parameters())
    leaves["x0"] = normal(BATCH, net.size, seed=20).requires_grad_()
    leaves["tau"] = net.tau.clone().requires_grad_()
    if drive != "none":
        m = M if drive == "driven" else net.size
        leaves["u"] = normal(BATCH, samples, m, seed=21).requires_grad_()
    if drive == "driven":
        leaves["W_in"] = normal(net.size, M, seed=22).requires_grad_()
    return leaves


def terms_of(net: Assembly, leaves: dict[str, Tensor]) -> Terms:
    terms = replace(net.terms(), tau=leaves["tau"])
    return terms.driven(leaves["W_in"]) if "W_in" in leaves else terms


def gradients(states: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a loss that weighs every state of every time differently; states are (batch, time, n)."""
    loss = (states * normal(*states.shape, seed=23).to(states)).sum() / states.shape[1]
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    reached = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
    frozen = {name for name in leaves if name not in reached}
    assert not frozen, f"no gradient reaches {frozen}"
    return reached


def torchdiffeq_euler(terms: Terms, x0: Tensor, u: Tensor | None, t: Tensor) -> Tensor:
    def f(t: Tensor, x: Tensor) -> Tensor:
        return terms(x, None if u is None else u[:, round(float(t) / DT)])

    return torchdiffeq.odeint(f, x0, t, method="euler").transpose(0, 1)


# torchdiffeq writes into one tensor a step, which costs its gradient T^2: the full length only twice.
CASES = [("uniform", "driven", 784), ("mixed", "driven", 784)]
CASES += [(name, "driven", 150) for name in FIELDS if name not in ("uniform", "mixed")]
CASES += [("mixed", "none", 150), ("mixed", "full", 150), ("uniform", "full", 150)]


@pytest.mark.parametrize(("name", "drive", "samples"), CASES)
def test_fused_euler_is_torchdiffeq_euler_in_states_and_all_gradients(
    name: str, drive: str, samples: int
) -> None:
    net = FIELDS[name]()
    leaves = driven_leaves(net, drive, samples)
    u = leaves.get("u")
    t = DT * torch.arange(samples + 1, dtype=F64)
    time = {"t": t} if u is None else {"dt": DT}
    ours = solve(terms_of(net, leaves), leaves["x0"], u=u, solver="euler", **time).x
    reference = torchdiffeq_euler(terms_of(net, leaves), leaves["x0"], u, t)
    assert relative(ours, reference) < 1e-10
    expected = gradients(reference, leaves)
    assert float(reference[:, -1].detach().std()) > 1e-2  # the states carry something to compare
    for key, gradient in gradients(ours, leaves).items():
        assert relative(gradient, expected[key]) < 1e-10, key


@pytest.mark.parametrize("build", [uniform, mixed, nested])
def test_float32_states_and_gradients_agree_with_float64(build: Callable[[], Assembly]) -> None:
    # 784 roundings of 6e-8 each: 1e-5 of the norm for states, 1e-4 for sums over batch and time.
    double = build()
    single = copy.deepcopy(double).float()
    wide = driven_leaves(double, "driven", 784)
    narrow = {k: v.detach().float().requires_grad_() for k, v in wide.items()}
    narrow |= dict(single.named_parameters())
    for leaves in (wide, narrow):
        states = solve(
            terms_of(double if leaves is wide else single, leaves), leaves["x0"], u=leaves["u"], dt=DT
        ).x
        if leaves is wide:
            reference, expected = states, gradients(states, wide)
    assert states.dtype == torch.float32
    assert relative(states, reference) < 1e-5
    for key, gradient in gradients(states, narrow).items():
        assert relative(gradient, expected[key]) < 1e-4, key


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", ["per step", "per sample"])
def test_fused_equals_plain_with_irregular_steps_and_lengths(name: str, kind: str) -> None:
    net = FIELDS[name]()
    shape = (40,) if kind == "per step" else (BATCH, 40)
    dt = 0.01 + 0.05 * torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    lengths = torch.tensor([40, 7, 0])
    leaves = driven_leaves(net, "driven", 40)
    results = {}
    for backend in ("fused", "plain"):
        terms = terms_of(net, leaves)
        x = solve(terms, leaves["x0"], u=leaves["u"], dt=dt, lengths=lengths, backend=backend).x  # type: ignore[arg-type]
        results[backend] = x, gradients(x, leaves)
    assert_close(results["fused"][0], results["plain"][0], rtol=1e-12, atol=1e-12)
    for key, gradient in results["fused"][1].items():
        assert_close(gradient, results["plain"][1][key], rtol=1e-10, atol=1e-12, msg=key)


@pytest.mark.parametrize("steps", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("batch", [1, 4])
def test_fused_equals_plain_on_both_sides_of_the_chunk(steps: int, batch: int) -> None:
    net = mixed()
    x0 = normal(batch, net.size, seed=1).requires_grad_()
    u = normal(batch, steps, net.size, seed=2).requires_grad_()
    leaves = {"x0": x0, "u": u, **dict(net.named_parameters())}
    fused, plain = (solve(net, x0, u=u, dt=DT, backend=b).x for b in ("fused", "plain"))
    assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    expected = gradients(plain, leaves)
    for key, gradient in gradients(fused, leaves).items():
        assert_close(gradient, expected[key], rtol=1e-10, atol=1e-13, msg=key)


def test_only_the_gradients_asked_for_are_computed() -> None:
    net = mixed().requires_grad_(False)
    W_in = normal(net.size, M, seed=1).requires_grad_()
    x0, u = normal(BATCH, net.size), normal(BATCH, 9, M, seed=2)
    results = []
    for backend in ("fused", "plain"):
        x = solve(net.terms().driven(W_in), x0, u=u, dt=DT, backend=backend).x  # type: ignore[arg-type]
        results.append(torch.autograd.grad(x.square().sum(), W_in)[0])
    assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


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
    for ours, plain in zip(results[0][1], results[1][1], strict=True):
        assert_close(ours, plain, rtol=1e-10, atol=1e-11)


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


def second_derivatives(states: Tensor, leaves: dict[str, Tensor]) -> list[Tensor]:
    """Of the norm of all first gradients, whose loss weighs every state differently."""
    loss = (states * normal(*states.shape, seed=23)).square().sum()
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))]


@pytest.mark.parametrize("name", ["mixed", "nested", "hierarchy", "few blocks"])
@pytest.mark.parametrize(("solver", "save", "dt"), [("euler", "all", None), ("imex", "last", DT)])
def test_fused_second_derivatives_are_those_of_the_plain_loop(
    name: str, solver: str, save: Any, dt: float | None
) -> None:
    g = rng(6)
    few = [Subnetwork(AdaDiagTanh("tanh"), 3, generator=g).double() for _ in range(6)]
    net = couple(few, "random:3", generator=g).double() if name == "few blocks" else FIELDS[name]()
    leaves = driven_leaves(net, "driven", 5)
    steps = dt or DT * torch.arange(1, 6, dtype=F64)
    found = []
    for backend in ("fused", "plain"):
        terms = terms_of(net, leaves)
        options = {"u": leaves["u"], "dt": steps, "solver": solver, "save": save, "backend": backend}
        found.append(second_derivatives(solve(terms, leaves["x0"], **options).x, leaves))
    for ours, plain in zip(*found, strict=True):
        assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_fused_second_derivatives_count_an_input_computed_from_the_state_once() -> None:
    x0, terms = normal(2, 6).requires_grad_(), one_module("tanh", "x")
    assert torch.autograd.gradgradcheck(lambda x: solve(terms, x, u=x[:, None, :2], dt=DT).x, x0)


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


PAIRS = {
    0: [],
    1: [(0, 3)],
    3: [(0, 1), (0, 4), (2, 3)],
    10: None,
}  # of 10; few, and so many that L is dense


def net(kind: str, pairs: int, form: str = "x", phi: str = "tanh", k: int = 4, p: int = 5) -> Assembly:
    g = rng(1)
    sets = {
        "blocks": SingularValueBounded(phi),
        "diagonal": AdaDiagTanh(phi),
        "frozen": SparseAbsolute(phi, density=0.2),
    }
    taus = torch.linspace(0.5, 2, k) if kind != "frozen" else 1.0
    parts = [Subnetwork(sets[kind], k, form=form, tau=taus, generator=g) for _ in range(p)]  # type: ignore[arg-type]
    chosen = PAIRS[pairs]
    return couple(parts, "all" if chosen is None else chosen, generator=g).double()


def leaves_of(field: Assembly, batch: int = 3, steps: int = 40, m: int = 2) -> dict[str, Tensor]:
    leaves = dict(field.named_parameters())
    leaves |= {
        "x0": normal(batch, field.size, seed=1),
        "u": normal(batch, steps, m, seed=2),
        "W_in": normal(field.size, m, seed=3),
        "tau": field.tau.clone(),
    }
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def run(
    field: Assembly, leaves: dict[str, Tensor], **settings: object
) -> tuple[Tensor, dict[str, Tensor]]:
    """States and the gradients of a loss that weighs each of them differently."""
    terms = replace(field.terms(), tau=leaves["tau"]).driven(leaves["W_in"])
    x = solve(terms, leaves["x0"], u=leaves["u"], dt=DT, **settings).x  # type: ignore[arg-type]
    loss = (x * normal(*x.shape, seed=4).to(x)).sum()
    return x, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_same(a: tuple, b: tuple, rtol: float = 1e-10) -> None:
    assert_close(a[0], b[0], rtol=rtol, atol=1e-11)
    for name, gradient in a[1].items():
        assert_close(
            gradient, b[1][name], rtol=rtol, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("save", ["all", "last"])
@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("kind", ["blocks", "diagonal", "frozen"])
def test_every_structure_equals_the_plain_twin(kind: str, pairs: int, form: str, save: str) -> None:
    field = net(kind, pairs, form)
    leaves = leaves_of(field)
    assert_same(run(field, leaves, save=save), run(field, leaves, backend="plain", save=save))


@pytest.mark.parametrize("phi", ACTIVATIONS)
@pytest.mark.parametrize("form", ["x", "r"])
def test_few_pairs_with_every_activation(phi: str, form: str) -> None:
    field = net("blocks", 3, form, phi)
    leaves = leaves_of(field)
    assert_same(run(field, leaves), run(field, leaves, backend="plain"))


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("steps", [1, 2, 31, 32, 33, 65])
@pytest.mark.parametrize("batch", [1, 4])
def test_any_number_of_steps_and_samples(pairs: int, steps: int, batch: int) -> None:
    field = net("blocks", pairs)
    leaves = leaves_of(field, batch, steps)
    for settings in ({}, {"save": "last"}, {"save": "last", "recompute": "sqrt"}):
        plain = {"backend": "plain", "save": settings.get("save", "all")}
        assert_same(run(field, leaves, **settings), run(field, leaves, **plain))


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("kind", ["per step", "per sample"])
def test_irregular_steps(pairs: int, kind: str) -> None:
    field = net("blocks", pairs)
    leaves = leaves_of(field)
    dt = 0.01 + 0.05 * torch.rand(
        *((40,) if kind == "per step" else (3, 40)), generator=rng(3), dtype=F64
    )
    found = []
    for settings in (
        {},
        {"backend": "plain"},
        {"save": "last", "recompute": "sqrt"},
        {"backend": "plain", "save": "last"},
    ):
        terms = replace(field.terms(), tau=leaves["tau"]).driven(leaves["W_in"])
        x = solve(terms, leaves["x0"], u=leaves["u"], dt=dt, **settings).x  # type: ignore[arg-type]
        grads = torch.autograd.grad((x * normal(*x.shape, seed=4)).sum(), list(leaves.values()))
        found.append((x, dict(zip(leaves, grads, strict=True))))
    assert_same(found[0], found[1])
    assert_same(found[2], found[3])


@pytest.mark.parametrize("solver", ["imex", "exponential-euler"])
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("form", ["x", "r"])
def test_semi_implicit_steps_equal_their_plain_twin(solver: str, pairs: int, form: str) -> None:
    field = net("blocks", pairs, form)
    leaves = leaves_of(field)
    plain = run(field, leaves, solver=solver, backend="plain")
    assert_same(run(field, leaves, solver=solver), plain)


@pytest.mark.parametrize("pairs", [0, 1, 10])
@pytest.mark.parametrize("form", ["x", "r"])
def test_an_activation_that_orders_its_values_anew(form: str, pairs: int) -> None:
    shuffled = Activation("own", lambda x: torch.tanh(x).contiguous(), slope=(0.0, 1.0))
    field = net("blocks", pairs, form, shuffled)  # type: ignore[arg-type]
    usual = net("blocks", pairs, form)
    for solver in ("euler", "imex"):
        found = run(field, leaves_of(field), solver=solver)
        assert_same(found, run(usual, leaves_of(usual), solver=solver))


def test_few_pairs_multiply_only_coupled_blocks() -> None:
    # The cost of a step: numbers of W and of L that are multiplied.
    def step(kind: str, pairs: int) -> tuple[Tensor, Tensor | None]:
        dt = torch.full((1, 1), DT)
        given = net(kind, pairs).terms(), normal(1, 20), None, dt, "full"
        _, _, _, W, _, P, *_ = fused_step(SCHEMES["euler"], *given)  # type: ignore[arg-type]
        return W, P

    for pairs, blocks in ((0, 0), (1, 2), (3, 6)):
        P = step("blocks", pairs)[1]
        assert (0 if P is None else P.numel()) == 16 * blocks
    assert step("blocks", 10)[1].shape == (20, 20)  # type: ignore[union-attr]
    assert step("diagonal", 1)[0].numel() == 20


def test_an_entry_outside_the_pairs_is_refused_not_dropped() -> None:
    terms = net("blocks", 1).terms()
    L = terms.L.clone()  # type: ignore[union-attr]
    L[0, 4] = 0.1  # block (0, 1)
    with pytest.raises(DataError, match="zero outside the coupled pairs"):
        solve(replace(terms, L=L), normal(2, 20), torch.tensor([0.0, 0.1]))
    dense = replace(terms, L=L, pairs=())
    x, y = (
        solve(dense, normal(2, 20), torch.tensor([0.0, 0.1]), backend=m).x for m in ("fused", "plain")
    )
    assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_an_entry_off_the_diagonal_is_refused_not_dropped() -> None:
    terms = net("diagonal", 1).terms()
    first = terms.blocks[0].clone()
    first[0, 1] = 0.1
    other = replace(terms, blocks=(first, *terms.blocks[1:]))
    t = torch.tensor([0.0, 0.1])
    for solver in ("euler", "imex"):
        with pytest.raises(DataError, match="must be diagonal; got entries elsewhere"):
            solve(other, normal(2, 20), t, solver=solver)
    dense = replace(other, diagonal=False)
    x, y = (solve(dense, normal(2, 20), t, backend=m).x for m in ("fused", "plain"))
    assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_modules_of_different_sizes_that_are_all_diagonal() -> None:
    parts = [
        Subnetwork(AdaDiagTanh("relu"), n, tau=tau, generator=rng(n)) for n, tau in ((3, 1.0), (5, 0.7))
    ]
    field = couple(parts, "all", generator=rng(0)).double()
    leaves = leaves_of(field)
    assert_same(run(field, leaves), run(field, leaves, backend="plain"))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach()).norm() / b.detach().norm())


def test_second_derivatives_of_rounded_products_are_those_of_whole_ones() -> None:
    found = []
    for precision in ("full", "bf16"):
        terms = one_module("tanh", "x").mapped(lambda x: x.detach().float())
        W, x0 = terms.blocks[0].requires_grad_(), torch.ones(2, terms.n, dtype=torch.float32)
        how: Any = {"matmul_precision": precision, "backend": "fused"}
        x = solve(terms, x0, torch.arange(5.0) / 10, **how).last
        (first,) = torch.autograd.grad(x.sum(), W, create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), W)))
    for one, other in zip(*found, strict=True):
        assert float(one.detach().norm()) > 0
        assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("pairs", [1, 10])
@pytest.mark.parametrize("solver", ["euler", "imex"])
def test_bf16_products_keep_the_state_in_float32(pairs: int, solver: str) -> None:
    # Operands have 8 bits: 1e-2 of the norm. A bfloat16 state would lose most increments of 0.03 f.
    field = net("blocks", pairs)
    leaves = leaves_of(field, steps=200)
    x, gradients = run(field, leaves, solver=solver)
    single = net("blocks", pairs).float()
    narrow = {name: leaf.detach().float().requires_grad_() for name, leaf in leaves.items()}
    narrow |= dict(single.named_parameters())
    y, found = run(single, narrow, solver=solver, matmul_precision="bf16")
    assert y.dtype == torch.float32
    assert relative(y, x) < 1e-2
    assert relative(y, x) > 1e-6  # they were rounded
    for name, gradient in found.items():
        assert relative(gradient, gradients[name]) < 3e-2, name  # sums of rounded products


def test_states_are_kept_until_nothing_can_ask_for_them() -> None:
    # Buffers are used again: two graphs at once, and a graph walked twice, must not share one.
    field = net("blocks", 1)
    leaves = leaves_of(field)
    other = {**leaves, "x0": normal(3, 20, seed=9).requires_grad_()}
    alone = [run(field, each, save="last") for each in (leaves, other)]
    weights = [*field.parameters()]
    losses = []
    for each in (leaves, other):
        terms = replace(field.terms(), tau=each["tau"]).driven(each["W_in"])
        x = solve(terms, each["x0"], u=each["u"], dt=DT, save="last").x
        losses.append((x * normal(*x.shape, seed=4)).sum())
    for loss, (_, expected) in zip(losses, alone, strict=True):
        for _ in range(2):
            found = torch.autograd.grad(loss, weights, retain_graph=True)
            for (name, _), gradient in zip(field.named_parameters(), found, strict=True):
                assert_close(gradient, expected[name], rtol=1e-12, atol=1e-12)


def test_the_memory_of_one_solve_serves_the_next_and_is_bounded() -> None:
    terms = net("blocks", 10).terms().detach_cpu()
    fused._free[:] = [torch.empty(10**6), torch.empty(10**6)]  # of other solves, far too large
    places = set()
    for k in range(6):
        buffer = pooled((10, 3), terms.tau)
        places.add(buffer.data_ptr())
        del buffer
        x0 = normal(2, 20).requires_grad_()
        loss = solve(terms, x0, u=normal(2, 30 + k, 20), dt=DT, save="last").x.sum()
        loss.backward(retain_graph=k % 2 == 0)
        del loss
        assert len(fused._free) <= fused.KEPT
    assert len(places) < 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recompute": "sqrt"}, "needs save='last'"),
        ({"recompute": "sqrt", "save": "last", "lengths": torch.tensor([1, 2])}, "and no lengths"),
        ({"recompute": "sqrt", "save": "last", "backend": "plain"}, "of the hand-written loops"),
        ({"matmul_precision": "bf16", "solver": "rk4"}, "is of the grid solvers"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(settings: dict, message: str) -> None:
    terms: Terms = net("blocks", 1).terms()
    with pytest.raises(SolverError, match=message):
        solve(terms, normal(2, 20), u=normal(2, 5, 20), dt=DT, **settings)


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_terms_keep_neither_the_graph_nor_the_values_of_a_use_before(solver: str) -> None:
    """One `Terms` over leaves, used without gradients, by a fused solve, and after a change in place."""
    made = net("blocks", 3).terms().detach_cpu()
    terms = replace(made, blocks=tuple(W.clone().requires_grad_() for W in made.blocks))
    x0, u = normal(2, made.n), normal(2, 3, made.n)

    def last(solver: str, **settings: str) -> Tensor:
        return solve(terms, x0, u=u, dt=DT, solver=solver, **settings).last

    with torch.no_grad():
        before = last(solver)
    last("euler")
    grads = torch.autograd.grad(last(solver).sum(), terms.blocks)
    assert all(bool(g.abs().max() > 0) for g in grads)
    with torch.no_grad():
        for W in terms.blocks:
            W.mul_(0.5)
        changed = replace(terms, blocks=tuple(W.clone() for W in terms.blocks))
        expected = solve(changed, x0, u=u, dt=DT, solver=solver).last
        assert_close(last(solver), expected)
        assert not torch.equal(expected, before)
