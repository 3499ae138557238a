"""What others would use: the plain loop, torchdiffeq, `nn.RNN`, `nn.LSTM`, and torchdyno's assembly.

Each as fast as it can be made with little effort: weights are stacked once a solve, the input is given
without a search, torchdiffeq keeps no state but the last (else its backward pass is quadratic in T).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torchdiffeq
from torch import Tensor, nn

from ctrnn_assembly.benchmark.problem import Problem

TORCHDYNO = "torchdyno.models.rnn_assembly"
Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Workload:
    """A contestant prepared for one problem.

    Args:
        last: solves it, and returns the last state, (batch, n).
        parameters: what a gradient is asked of.
    """

    last: Callable[[], Tensor]
    parameters: Sequence[Tensor]

    def run(self, kind: str) -> None:
        """Inference without a graph; or a loss of the last state, and the gradients."""
        if kind == "forward":
            with torch.no_grad():
                self.last()
        else:
            self.gradients()

    def gradients(self) -> tuple[Tensor, ...]:
        """Of the mean square of the last state."""
        return torch.autograd.grad(self.last().square().mean(), self.parameters)


def field(problem: Problem) -> Field:
    """f(x, u) of the problem, for x (batch, n) and u (batch, 1); the weights stacked once."""
    terms, (batch, n) = problem.terms, problem.x0.shape
    k, p = problem.units, problem.modules
    W = torch.stack(terms.blocks).mT  # (p, k, k)

    def f(x: Tensor, u: Tensor) -> Tensor:
        assert terms.W_in is not None
        blocks = terms.pre(x).view(batch, p, k).transpose(0, 1)
        inner = torch.bmm(blocks, W).transpose(0, 1).reshape(batch, n)
        z = inner + torch.addmm(terms.bias, u, terms.W_in.mT)
        out = terms.post(z) - x
        return out if terms.L is None else torch.addmm(out, x, terms.L.mT)

    return f


def plain_loop(problem: Problem) -> Workload:
    """x + dt f(x, u), step by step under autograd."""
    samples, x0 = problem.u.unbind(1), problem.x0

    def last() -> Tensor:
        f, x = field(problem), x0
        for u in samples:
            x = x + problem.dt * f(x, u)
        return x

    return Workload(last, problem.parameters)


def torchdiffeq_euler(problem: Problem) -> Workload:
    """odeint(method="euler") on the same grid."""
    u, x0 = problem.u.unbind(1), problem.x0
    grid = problem.dt * torch.arange(problem.steps + 1, dtype=x0.dtype, device=x0.device)

    def last() -> Tensor:
        f, samples = field(problem), iter(u)
        found = torchdiffeq.odeint(
            lambda t, x: f(x, next(samples)),  # Euler evaluates once a step, in order
            x0,
            grid[[0, -1]],
            method="euler",
            options={"grid_constructor": lambda f, y0, t: grid},
        )
        return found[-1]

    return Workload(last, problem.parameters)


def rnn(problem: Problem) -> Workload:
    """nn.RNN with relu, from identity weights, whose gradient does not fade."""
    layer = nn.RNN(1, problem.n, nonlinearity="relu", batch_first=True)
    nn.init.eye_(dict(layer.named_parameters())["weight_hh_l0"])
    return _layer(layer, problem)


def lstm(problem: Problem) -> Workload:
    """nn.LSTM with open forget gates, so that its gradient does not fade."""
    layer = nn.LSTM(1, problem.n, batch_first=True)
    with torch.no_grad():
        # Gates come as input, forget, cell, output.
        dict(layer.named_parameters())["bias_ih_l0"].view(4, -1)[1] = 5.0
    return _layer(layer, problem)


def _layer(layer: nn.RNNBase, problem: Problem) -> Workload:
    u = problem.u
    layer.to(u.device, u.dtype)
    return Workload(lambda: layer(u)[0][:, -1], list(layer.parameters()))


def has_torchdyno() -> bool:
    """Whether torchdyno is installed."""
    return find_spec("torchdyno") is not None


def torchdyno(problem: Problem, constrained: Literal["tanh", "fixed"] | None) -> Workload:
    """Blocks bounded by tanh, frozen, or without a constraint and trained; so is its coupling."""
    core, sequence = torchdyno_core(problem, constrained), problem.u.transpose(0, 1)

    def last() -> Tensor:
        core.train(torch.is_grad_enabled())  # in evaluation it reuses the matrices of its first call
        return core.compute_states(sequence)[-1]

    used = (core._blocks._blocks, core._couplings._couplings)
    return Workload(last, [tensor for tensor in used if tensor.requires_grad])


def torchdyno_core(problem: Problem, constrained: Literal["tanh", "fixed"] | None) -> Any:
    """torchdyno's module with the weights, the coupling and the step of a problem.

    Its input matrix is created as (m, n) and used as (n, m), so ours is put in its place; it stays
    frozen, as it is there.
    """
    assembly = import_module(TORCHDYNO).RNNAssembly
    terms, k = problem.terms, problem.units
    assert terms.L is not None
    assert terms.W_in is not None
    L = terms.L.detach().cpu()
    couplings = [L[i * k : (i + 1) * k, j * k : (j + 1) * k] for i, j in problem.pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it copies a tensor by torch.tensor
        core = assembly(
            input_size=1,
            out_size=1,
            blocks=[W.detach().cpu() for W in terms.blocks],
            coupling_blocks=couplings,
            coupling_topology=list(problem.pairs),
            eul_step=problem.dt,
            activation="relu",
            constrained_blocks=constrained,
        )
    core._input_mat = nn.Parameter(terms.W_in.detach().clone(), requires_grad=False)
    return core.to(problem.device)
