"""The fused solvers use W and L by their structure: every structure equals the plain twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
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
from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.errors import DataError, SolverError
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.solvers import buffers, solve
from ctrnn_assembly.solvers.buffers import pooled
from ctrnn_assembly.solvers.fused import fused_step
from ctrnn_assembly.terms import Terms
from solver_problems import DT, F64, normal, rng
from solver_problems import one_thread as one_thread

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
    buffers._free[:] = [torch.empty(10**6), torch.empty(10**6)]  # of other solves, far too large
    places = set()
    for k in range(6):
        buffer = pooled((10, 3), terms.tau)
        places.add(buffer.data_ptr())
        del buffer
        x0 = normal(2, 20).requires_grad_()
        loss = solve(terms, x0, u=normal(2, 30 + k, 20), dt=DT, save="last").x.sum()
        loss.backward(retain_graph=k % 2 == 0)
        del loss
        assert len(buffers._free) <= buffers.KEPT
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
