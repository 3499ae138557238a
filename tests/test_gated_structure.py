"""Gated loops over every structure of a field equal plain steps, in all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ctrnn_assembly import AdaDiagTanh, Hierarchy, NegativeProduct, Subnetwork, couple
from ctrnn_assembly.assembly import Assembly
from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.gates import Gate
from ctrnn_assembly.layers import CTRNN
from solver_problems import F64, normal, rng
from solver_problems import one_thread as one_thread

GATES: tuple[Gate, ...] = ("shared", "input", "congruence", "state")


def field(kind: str, form: str) -> Any:
    """Few pairs, all pairs, dense modules of several sizes, or nonlinear edges.

    A congruence gate of modules with a dense metric is one number a module.
    """
    g = rng(1)
    if kind == "edges":
        parts = [Subnetwork(AdaDiagTanh("tanh"), k, form=form, generator=g) for k in (3, 5)]  # type: ignore[arg-type]
        return Assembly(parts, Hierarchy((3, 5), [(0, 1)], psi="softplus", generator=g, init_scale=1.0))
    if kind == "sizes":
        parts = [Subnetwork(NegativeProduct("tanh"), k, form=form, generator=g) for k in (2, 4)]  # type: ignore[arg-type]
        return couple(parts, generator=g, init_scale=1.0)
    parts = [Subnetwork(AdaDiagTanh("tanh"), 3, form=form, generator=g) for _ in range(5)]  # type: ignore[arg-type]
    pairs: Any = {"few": [(0, 3), (1, 4)], "all": "all", "none": "none"}[kind]
    return couple(parts, pairs, generator=g, init_scale=1.0)


def layer(gate: Gate, kind: str = "few", form: str = "x", **settings: Any) -> CTRNN:
    net = CTRNN(2, field(kind, form), gate=gate, gate_bounds=(0.1, 0.9), batch_first=True, **settings)
    net = net.double()
    with torch.no_grad():
        for k, p in enumerate(net.gates.parameters()):  # type: ignore[union-attr]
            p.copy_(normal(*p.shape, seed=50 + k))
        net.encoder.bias.copy_(normal(net.hidden_size, seed=60))
    return net


def compared(net: CTRNN, save: str, steps: int = 12, **given: Any) -> None:
    """By the layer's own loop, and by its plain `step`s."""
    u, h0 = normal(3, steps, 2, seed=2), normal(3, net.hidden_size, seed=3)
    leaves = [*net.parameters(), u.requires_grad_(), h0.requires_grad_()]
    found = []
    for plain in (False, True):
        if plain:
            net._way = lambda dt: net._by_steps  # type: ignore[assignment,method-assign]
        x = net.last(u, h0[None], **given) if save == "last" else net(u, h0[None], **given)[0]
        loss = (x * normal(*x.shape, seed=4)).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, allow_unused=True)
        found.append((x, *first, *second))
    names = ["states", *2 * [*(name for name, _ in net.named_parameters()), "u", "h0"]]
    for name, fast, expected in zip(names, *found, strict=True):
        assert expected is None or float(expected.detach().abs().max()) > 1e-9, f"nothing in {name}"
        assert_close(fast, expected, rtol=1e-10, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("kind", ["few", "all", "none", "sizes", "edges"])
@pytest.mark.parametrize("gate", GATES)
def test_every_gate_and_structure_equals_plain_steps(gate: Gate, kind: str, form: str) -> None:
    compared(layer(gate, kind, form, dt=0.5), "all")


@pytest.mark.parametrize("save", ["all", "last"])
@pytest.mark.parametrize("gate", GATES)
def test_lengths_and_substeps(gate: Gate, save: str) -> None:
    for more in ({}, {"lengths": torch.tensor([12, 1, 7])}):
        compared(layer(gate, dt=0.5, substeps=2), save, **more)


def test_congruence_by_imex() -> None:
    compared(layer("congruence", dt=0.5, solver="imex"), "last")


def test_steps_of_several_lengths() -> None:
    net, dt = layer("input"), 0.2 + torch.rand(3, 12, generator=rng(5), dtype=F64)
    u = normal(3, 12, 2)
    x = torch.zeros(3, net.hidden_size, dtype=F64)
    for k in range(12):
        x = torch.stack([x[b] + dt[b, k] * net.flow(u[b : b + 1, k])(x[b : b + 1])[0] for b in range(3)])
    assert_close(net.last(u, dt=dt), x, rtol=1e-12, atol=1e-12)


def test_an_overflow_says_when_it_began() -> None:
    net = layer("state", dt=0.5)
    nn.init.constant_(net.encoder.weight, 1e308)
    for call in (net, net.last):
        with pytest.raises(SolverError, match=r"became .*inf.* at t = 0.5, step 1"):
            call(normal(2, 9, 2).abs() + 10)
