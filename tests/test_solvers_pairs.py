"""The compiled loop of pairs against its plain twin: states and all gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ctrnn_assembly.activations import ACTIVATIONS, Activation, Elementwise
from ctrnn_assembly.errors import DataError
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.schemes import SCHEMES, integrate
from ctrnn_assembly.solvers import pairs, solve
from ctrnn_assembly.terms import Terms
from solver_problems import F64, normal

N, BATCH, STEPS = 6, 4, 7
LENGTHS = {
    "one": torch.full((STEPS, 1), 0.3, dtype=F64),
    "several": torch.linspace(0.1, 0.5, STEPS, dtype=F64)[:, None],
    "each": 0.01 + torch.rand(STEPS, BATCH, dtype=F64, generator=torch.Generator().manual_seed(3)),
}


def problem(phi: str) -> Terms:
    """Three driven pairs, w of both signs."""
    maps = [Elementwise(((ACTIVATIONS[name], N),)) for name in (phi, "identity")]
    turn, even = normal(N // 2, seed=1), torch.arange(0, N, 2)
    L = torch.zeros(N, N, dtype=F64)
    L[even, even + 1], L[even + 1, even] = -turn, turn
    tau = (1 + normal(N // 2, seed=2).abs()).repeat_interleave(2)
    blocks = tuple((0.5 * normal(N, seed=3)).view(-1, 1, 1).unbind(0))
    joined = tuple((k, k + 1) for k in range(0, N, 2))
    given = {"L": L, "W_in": normal(N, 3, seed=5), "pairs": joined, "diagonal": True}
    terms = Terms(blocks, *maps, normal(N, seed=4), tau, **given)
    return terms.mapped(lambda tensor: tensor.requires_grad_())


def results(run, scheme, terms, dt):
    x0, u = normal(BATCH, N, seed=6).requires_grad_(), normal(STEPS, BATCH, 3, seed=7).requires_grad_()
    x = run(SCHEMES[scheme], terms, x0, u, dt)
    leaves = (x0, u, *terms.blocks, terms.bias, terms.tau, terms.W_in)
    loss = (x * normal(*x.shape, seed=8)).sum()
    *found, d_L = torch.autograd.grad(loss, (*leaves, terms.L))
    return x, *found, d_L[terms.L != 0]  # the twin also has a gradient where L is zero by construction


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("phi", ACTIVATIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiled_and_plain_loop_agree_with_all_gradients(scheme, phi, kind):
    terms = problem(phi)
    assert pairs.is_paired(terms, normal(BATCH, N))
    ours, plain = (results(run, scheme, terms, LENGTHS[kind]) for run in (pairs.integrate, integrate))
    for a, b in zip(ours, plain, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_float32_agrees_to_the_precision_of_its_tanh():
    terms = problem("tanh")
    low = terms.mapped(lambda tensor: tensor.detach().float())
    x0, u = normal(BATCH, N), normal(STEPS, BATCH, 3)
    given = (SCHEMES["exponential-euler"], low, x0.float(), u.float(), LENGTHS["one"].float())
    # The ratio of polynomials is within 5e-7 of tanh.
    assert_close(pairs.integrate(*given), integrate(*given), rtol=3e-6, atol=3e-6)


def test_second_derivatives_are_those_of_the_plain_loop():
    terms, found = problem("tanh"), []
    for run in (pairs.integrate, integrate):
        x0 = normal(BATCH, N, seed=6).requires_grad_()
        x = run(SCHEMES["imex"], terms, x0, normal(STEPS, BATCH, 3), LENGTHS["several"])
        first = torch.autograd.grad(x.square().sum(), (x0, terms.tau), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x0, terms.bias))
        found.append((*first, *second))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_solve_takes_it_by_itself(monkeypatch):
    calls, real = [], pairs.integrate
    monkeypatch.setattr(pairs, "integrate", lambda *given: calls.append(1) or real(*given))
    field = Pairs(N).double()
    x0, u = normal(BATCH, N), normal(BATCH, STEPS, N)
    found = {b: solve(field, x0, u=u, dt=1.0, solver="imex", backend=b).x for b in ("auto", "plain")}
    assert len(calls) == 1
    assert_close(found["auto"], found["plain"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "change", ["edges elsewhere", "another phi", "phi inside", "two units a module"]
)
def test_other_fields_are_left_to_the_other_loops(change):
    terms, another = problem("tanh").detach_cpu(), Activation("tanh", torch.sin, slope=(-1.0, 1.0))
    changed = {
        "edges elsewhere": replace(terms, pairs=((0, 1), (2, 4), (3, 5))),
        "another phi": replace(terms, pre=Elementwise(((another, N),))),
        "phi inside": replace(terms, pre=terms.post, post=terms.pre),
        "two units a module": replace(terms, blocks=(torch.eye(2, dtype=F64),) * 3),
    }
    assert not pairs.is_paired(changed[change], normal(BATCH, N))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_approximations_of_float32_and_their_slopes_are_within_a_millionth(name):
    x = torch.linspace(-12, 12, 4001)
    phi, slope = pairs.pointwise(ACTIVATIONS[name], np.dtype(np.float32))
    found = torch.tensor([(phi(a), slope(a, phi(a))) for a in x.numpy()])
    exact = x.double().requires_grad_()
    y = ACTIVATIONS[name](exact)
    (dy,) = torch.autograd.grad(y.sum(), exact)
    # The slope of gelu_tanh multiplies the error of the sigmoid, by 2 c x (1 + 3 a x^2) at most.
    atol = 2.5e-6 if name == "gelu_tanh" else 1.2e-6
    assert_close(found.double(), torch.stack([y, dy], 1).detach(), rtol=0, atol=atol)


def test_an_activation_of_ones_own_under_a_known_name_is_not_taken_for_it():
    own = Activation("tanh", torch.sin, (-1.0, 1.0))
    terms = problem("tanh").detach_cpu()
    changed = replace(terms, pre=Elementwise(((own, N),)))
    assert not pairs.is_paired(changed, normal(BATCH, N))


def test_softplus_of_float32_keeps_its_digits():
    x = torch.linspace(-80, 20, 4001)
    value = pairs.pointwise(ACTIVATIONS["softplus"], np.dtype(np.float32))[0]
    found = torch.tensor([float(value(a)) for a in x.numpy()], dtype=F64)
    assert_close(found, ACTIVATIONS["softplus"](x.double()), rtol=5e-7, atol=0)


def test_entries_of_L_outside_the_pairs_are_refused():
    """What is certified is the whole of L, also of Terms made by hand."""
    given = problem("tanh").mapped(torch.Tensor.detach)
    given.L[0, 2], given.L[2, 0] = 0.3, -0.3
    with pytest.raises(DataError, match="outside the coupled pairs"):
        solve(given, normal(BATCH, N, seed=6), u=normal(BATCH, STEPS, 3, seed=7), dt=0.3, solver="euler")
