"""What others would use: the plain loop, torchdiffeq, `nn.RNN` and `nn.LSTM`.

Each as fast as it can be made with little effort: weights are stacked once a solve, the input is given
without a search, torchdiffeq keeps no state but the last (else its backward pass is quadratic in T).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchdiffeq
from torch import Tensor, nn

from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.benchmark.task import Task

Field = Callable[[Tensor, Tensor], Tensor]


def field(problem: Problem) -> Field:
    """f(x, u) of the problem, for x (batch, n) and u (batch, 1); the weights stacked once."""
    terms, (batch, n) = problem.terms, problem.x0.shape
    k, p = problem.size.units, problem.size.modules
    W = torch.stack(terms.blocks).mT  # (p, k, k)

    def f(x: Tensor, u: Tensor) -> Tensor:
        assert terms.W_in is not None
        blocks = terms.pre(x).view(batch, p, k).transpose(0, 1)
        inner = torch.bmm(blocks, W).transpose(0, 1).reshape(batch, n)
        z = inner + torch.addmm(terms.bias, u, terms.W_in.mT)
        out = terms.post(z) - x
        return out if terms.L is None else torch.addmm(out, x, terms.L.mT)

    return f


def plain_loop(problem: Problem) -> Task:
    """x + dt f(x, u), step by step under autograd."""

    def last() -> Tensor:
        f, x = field(problem), problem.x0
        for u in problem.u.unbind(1):
            x = x + problem.size.dt * f(x, u)
        return x

    return Task(last, problem.parameters)


def plain_imex(problem: Problem) -> Task:
    """The implicit step by a solve of (I - h L) x+ = (1 - h) x + h g(x, u); a reference, not timed."""
    n, h, L = problem.size.n, problem.size.dt, problem.terms.L

    def last() -> Tensor:
        f, x = field(problem), problem.x0
        eye = torch.eye(n, dtype=x.dtype, device=x.device)
        implicit = eye if L is None else eye - h * L
        for u in problem.u.unbind(1):
            slow = f(x, u) + x if L is None else f(x, u) + x - x @ L.mT
            x = torch.linalg.solve(implicit, ((1 - h) * x + h * slow).mT).mT
        return x

    return Task(last, problem.parameters)


def torchdiffeq_euler(problem: Problem) -> Task:
    """odeint(method="euler") on the same grid."""
    steps = problem.size.steps
    grid = problem.size.dt * torch.arange(steps + 1, dtype=problem.u.dtype, device=problem.device)

    def last() -> Tensor:
        f, samples = field(problem), iter(problem.u.unbind(1))
        found = torchdiffeq.odeint(
            lambda t, x: f(x, next(samples)),  # Euler evaluates once a step, in order
            problem.x0,
            grid[[0, -1]],
            method="euler",
            options={"grid_constructor": lambda f, y0, t: grid},
        )
        return found[-1]

    return Task(last, problem.parameters)


def rnn(problem: Problem) -> Task:
    """nn.RNN with relu, from identity weights, whose gradient does not fade."""
    layer = nn.RNN(1, problem.size.n, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        dict(layer.named_parameters())["weight_hh_l0"].copy_(torch.eye(problem.size.n))
    return _layer(layer, problem)


def lstm(problem: Problem) -> Task:
    """nn.LSTM with open forget gates, so that its gradient does not fade."""
    layer = nn.LSTM(1, problem.size.n, batch_first=True)
    with torch.no_grad():
        # Gates come as input, forget, cell, output.
        dict(layer.named_parameters())["bias_ih_l0"].view(4, -1)[1] = 5.0
    return _layer(layer, problem)


def _layer(layer: nn.RNNBase, problem: Problem) -> Task:
    layer.to(problem.device, problem.u.dtype)

    def last() -> Tensor:
        return layer(problem.u)[0][:, -1]

    return Task(last, list(layer.parameters()))
