"""Fused forward Euler: equal to torchdiffeq's Euler and to its plain twin, in value and gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchdiffeq
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import Assembly
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.terms import Terms
from solver_problems import DT, F64, FIELDS, mixed, nested, normal, uniform
from solver_problems import one_thread as one_thread

BATCH, M = 3, 2


def leaves_of(net: Assembly, drive: str, samples: int) -> dict[str, Tensor]:
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


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach()).norm() / b.detach().norm())


# torchdiffeq writes into one tensor a step, which costs its gradient T^2: the full length only twice.
CASES = [("uniform", "driven", 784), ("mixed", "driven", 784)]
CASES += [(name, "driven", 150) for name in FIELDS if name not in ("uniform", "mixed")]
CASES += [("mixed", "none", 150), ("mixed", "full", 150), ("uniform", "full", 150)]


@pytest.mark.parametrize(("name", "drive", "samples"), CASES)
def test_fused_euler_is_torchdiffeq_euler_in_states_and_all_gradients(
    name: str, drive: str, samples: int
) -> None:
    net = FIELDS[name]()
    leaves = leaves_of(net, drive, samples)
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
    wide = leaves_of(double, "driven", 784)
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
    leaves = leaves_of(net, "driven", 40)
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
