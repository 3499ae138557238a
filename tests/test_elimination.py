"""(I - P)^-1 by block elimination: the inverse, its transpose, its cost, and what it refuses."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import AdaDiagTanh, Assembly, Subnetwork, couple
from ctrnn_assembly.activations import ACTIVATIONS, around
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.solvers.elimination import Eliminated, elimination
from ctrnn_assembly.solvers.fused import fused_step
from ctrnn_assembly.solvers.operators import BlockPattern
from ctrnn_assembly.terms import Terms
from solver_problems import F64, normal, rng
from solver_problems import one_thread as one_thread

K = 3
GRAPHS = {
    "one pair": [(1, 3)],
    "disjoint": [(0, 1), (2, 3), (4, 6)],
    "chain": [(0, 1), (1, 2), (2, 3), (3, 4)],
    "star": [(0, 5), (1, 5), (2, 5), (5, 6)],
    "ring": [(0, 1), (1, 2), (2, 3), (0, 3)],
    "full": [*combinations(range(7), 2)],
}


def blocks(pairs: list[tuple[int, int]]) -> tuple[Tensor, BlockPattern, Tensor]:
    """P as blocks, its pattern, and P dense, (7 K, 7 K)."""
    both = sorted({edge for i, j in pairs for edge in ((i, j), (j, i))})
    P = normal(len(both), K, K, seed=len(both))
    dense = P.new_zeros(7 * K, 7 * K)
    for (i, j), block in zip(both, P, strict=True):
        dense[K * i : K * (i + 1), K * j : K * (j + 1)] = block
    return P, BlockPattern(7, *zip(*both, strict=True)), dense


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_products_are_the_inverse_and_its_transpose(graph: str) -> None:
    P, pattern, dense = blocks(GRAPHS[graph])
    found = elimination(P, pattern, 1000)
    assert found is not None
    places, A = found
    x = normal(5, 7 * K)
    R = torch.linalg.inv(torch.eye(7 * K, dtype=F64) - dense)
    for operator, expected in ((Eliminated(A, places), R), (Eliminated(A, places).transposed(), R.mT)):
        rows = x.unflatten(1, (7, K)).transpose(0, 1).contiguous()
        operator.apply_(rows)
        assert_close(rows.transpose(0, 1).flatten(1), x @ expected.mT, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("graph", "inner"), [("one pair", 1), ("disjoint", 3), ("chain", 3), ("star", 1)]
)
def test_a_forest_costs_a_product_for_each_block_and_each_inner_module(graph: str, inner: int) -> None:
    P, pattern, _ = blocks(GRAPHS[graph])
    found = elimination(P, pattern, 1000)
    assert found is not None
    assert len(found[0]) == len(found[1]) == len(P) + inner
    assert elimination(P, pattern, len(P) + inner - 1) is None


@pytest.mark.parametrize("off", [1.0, 1 + 1e-14])
def test_a_pivot_that_vanishes_is_refused_and_the_solve_is_right(off: float) -> None:
    # I - P12 P21 = 0 of the path 0 - 1 - 2 - 3, which is not singular itself.
    pairs = [(0, 1), (1, 2), (2, 3)]
    P, pattern, dense = blocks(pairs)
    one = torch.eye(K, dtype=F64)
    for i, j, block in ((0, 1, one), (1, 0, one), (2, 3, one), (3, 2, one * off)):
        P[list(zip(pattern.rows, pattern.columns, strict=True)).index((i, j))] = block
        dense[K * i : K * (i + 1), K * j : K * (j + 1)] = block
    assert elimination(P, pattern, 1000) is None
    n = 7 * K
    pre, post = around(ACTIVATIONS["tanh"], n)
    W = tuple(normal(K, K, seed=k) for k in range(7))
    terms = Terms(W, pre, post, normal(n), torch.ones(n, dtype=F64), L=dense, pairs=tuple(pairs))
    x0, t = normal(2, n, seed=1), torch.tensor([0.0, 1.0, 2.0])
    found = [solve(terms, x0, t, solver="imex", backend=way).x for way in ("auto", "plain")]  # type: ignore[arg-type]
    assert_close(*found, rtol=1e-9, atol=1e-9)


def net(pairs: int, kind: str, form: str) -> Assembly:
    g = rng(3)
    parts = [Subnetwork(AdaDiagTanh("tanh"), 3, form=form, generator=g) for _ in range(8)]  # type: ignore[arg-type]
    chosen: list[tuple[int, int]] = [(0, 2), (0, 4), (1, 5), (3, 7), (5, 6), (2, 7)][:pairs]
    return couple(parts, chosen, kind=kind, generator=g, init_scale=5.0).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 32, 33, 70])
@pytest.mark.parametrize("kind", ["feedback", "hierarchy", "free"])
@pytest.mark.parametrize("form", ["x", "r"])
def test_imex_of_few_pairs_equals_the_plain_twin(form: str, kind: str, steps: int) -> None:
    field = net(5, kind, form)
    leaves = [*field.parameters(), normal(3, 24, seed=1), normal(3, steps, 24, seed=2)]
    x0, u = (leaf.requires_grad_() for leaf in leaves[-2:])
    dt = torch.full((1, 1), 0.3, dtype=F64)
    form_of, *_ = fused_step(SCHEMES["imex"], field.terms(), x0, None, dt, "full", True)
    assert form_of.implicit  # by elimination
    for save, more in (("all", {}), ("last", {}), ("last", {"recompute": "sqrt"})):
        found = []
        for settings in (more, {"backend": "plain"}):
            x = solve(field, x0, u=u, dt=0.3, solver="imex", save=save, **settings).x  # type: ignore[arg-type]
            loss = (x * normal(*x.shape, seed=4)).sum()
            found.append((x, *torch.autograd.grad(loss, leaves)))
        for fast, plain in zip(*found, strict=True):
            assert_close(fast, plain, rtol=1e-10, atol=1e-11)


def test_float32_stays_accurate_where_the_coupling_is_stiff() -> None:
    field = net(5, "feedback", "x")
    with torch.no_grad():
        for values in field.coupling.parameters():  # type: ignore[union-attr]
            values.mul_(1e3)
    x0, u = normal(3, 24, seed=1), normal(3, 40, 24, seed=2)
    exact = solve(field, x0, u=u, dt=0.3, solver="imex").x
    single = solve(field.float(), x0.float(), u=u.float(), dt=0.3, solver="imex").x
    assert float(((single.double() - exact).norm() / exact.norm()).detach()) < 1e-5
