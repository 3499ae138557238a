"""Compiled loops on several threads: bit for bit what one finds, which is what the plain twin does."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import AdaDiagTanh, Pairs, Subnetwork, couple
from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.solvers import solve, threads
from ctrnn_assembly.solvers.layer import CompiledLayer, plain_layer
from ctrnn_assembly.solvers.threads import in_parts, summed
from solver_problems import F64, normal, rng

NETS = {
    "dense": lambda: Subnetwork(AdaDiagTanh("tanh"), 13, generator=rng()),
    "blocks": lambda: couple([Subnetwork(AdaDiagTanh("tanh"), 16) for _ in range(4)], [(0, 1)]),
    "pairs": lambda: Pairs(10, generator=rng()),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Even small problems are summed in parts."""
    monkeypatch.setattr(threads, "GRAIN", 1000)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def found(kind: str, batch: int, number: int, backend: str = "auto") -> list[Tensor]:
    """The last state and all gradients, with so many threads."""
    torch.set_num_threads(number)
    torch.manual_seed(0)
    net = NETS[kind]().double()
    u = normal(batch, 20000 // batch // net.size + 130, net.size, seed=1).requires_grad_()
    x0 = normal(batch, net.size, seed=2).requires_grad_()
    x = solve(net, x0, u=u, dt=0.1, save="last", backend=backend).last
    leaves = [*net.parameters(), u, x0]
    return [x, *torch.autograd.grad(x.square().sum(), leaves)]


@pytest.mark.parametrize("batch", [3, 11])
@pytest.mark.parametrize("kind", NETS)
def test_any_number_of_threads_finds_the_same(kind: str, batch: int) -> None:
    one, two, more = (found(kind, batch, number) for number in (1, 2, 5))
    assert all(a.equal(b) and a.equal(c) for a, b, c in zip(one, two, more, strict=True))


def layer(run: Callable[..., Any], number: int) -> list[Tensor]:
    """What a layer of 6 features and 2 pairs finds for 5 sequences, with so many threads."""
    torch.set_num_threads(number)
    shapes = [(1, 4, 2), (1, 4, 2), (4,), (6, 4), (4,), (4, 6), (6,), (6,), (6, 12), (12,)]
    tensors = [0.3 * normal(*shape, seed=k) for k, shape in enumerate(shapes)]
    x0, v, s, k = normal(5, 4), normal(5, 250, 6), normal(5, 250, 6, seed=1), normal(5, 6)
    leaves = [t.requires_grad_() for t in (s, x0, v, *tensors)]
    kind = (ACTIVATIONS["tanh"], ACTIVATIONS["gelu"], ACTIVATIONS["tanh"])
    out, last = run(kind, s, k, x0, v, *tensors)
    return [out, last, *torch.autograd.grad(out.square().sum() + last.sum(), leaves)]


def test_a_layer_on_several_threads_finds_what_one_and_the_plain_twin_find() -> None:
    one, two, more = (layer(CompiledLayer.apply, number) for number in (1, 2, 5))
    assert all(a.equal(b) and a.equal(c) for a, b, c in zip(one, two, more, strict=True))
    for a, b in zip(two, layer(plain_layer, 1), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", NETS)
def test_two_threads_find_what_the_plain_loop_finds(kind: str) -> None:
    for a, b in zip(found(kind, 11, 2), found(kind, 11, 1, "plain"), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_parts_are_consecutive_and_their_results_in_order() -> None:
    torch.set_num_threads(3)
    assert in_parts(lambda i, j: (i, j), 7, 9999) == [(0, 2), (2, 4), (4, 7)]
    assert in_parts(lambda i, j: (i, j), 2, 9999) == [(0, 1), (1, 2)]
    assert in_parts(lambda i, j: (i, j), 0, 9999) == [(0, 0)]

    def late(i: int, j: int) -> list[Tensor]:
        time.sleep((9 - i) / 1000)
        return [torch.tensor(10.0**i)]

    assert summed(late, 9, 2000)[0] == 1 + 1e3 + 1e6


def test_what_a_part_raises_is_raised() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        in_parts(lambda i, j: i // i, 4, 9999)


@pytest.mark.parametrize("flush", [False, True])
def test_threads_treat_denormal_numbers_as_the_one_that_waits(flush: bool) -> None:
    torch.set_num_threads(2)
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor has no such mode")
    tiny = torch.tensor([1e-310], dtype=F64)
    kept = in_parts(lambda i, j: bool(tiny * 1 != 0), 2, 9999)
    torch.set_flush_denormal(False)
    assert kept == [not flush] * 2


def test_a_forked_process_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    in_parts(lambda i, j: None, 2, 9999)
    child = os.fork()
    if child == 0:
        os._exit(in_parts(lambda i, j: j, 2, 9999)[1])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
