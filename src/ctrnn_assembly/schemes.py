"""`SCHEMES`: every one-step rule on a time grid is one pair of matrices, its row of this table.

`SOLVERS` are the names of all solvers, torchdiffeq's among them.

    x+ = A x + C g(x, u),    g = post(W pre(x) + b + W_in u) + sum_e K_e psi_e(x),    h = dt / tau

g is all of tau x' but the leak and the linear coupling L, which A and C hold; h is diagonal:

| scheme | A | C |
|---|---|---|
| euler | I + h (L - I) | h |
| imex | R (I - h) | R h, R = (I - h L)^-1 |
| exponential-euler | exp(G) | int_0^1 exp(s G) ds h, G = h (L - I) |

Every row has A - I = C (L - I), so that its fixed points are those of the field. All are of order 1. The
Jacobian of a step is A + C N, with N the Jacobian of g. What contracts: THEORY section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torchdiffeq._impl.odeint import SOLVERS as _TORCHDIFFEQ  # no public list of its methods
from torchdiffeq._impl.solvers import FixedGridODESolver

from ctrnn_assembly.errors import ConfigError, unknown
from ctrnn_assembly.linalg import exponential, plain_exponential, remembered, working_precision
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import known

inverse = remembered(torch.linalg.inv)
Pair = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Scheme:
    """A one-step rule.

    Args:
        pair: (h, L) -> (A, C) for h = dt / tau (..., n) and L (n, n) or None, differentiable in both. A
            and C are (..., n, n), or (..., n) where they are diagonal: all of them without L.
        increment: (h, L) -> (A - I, C) where both are proportional to h; None elsewhere.
    """

    name: str
    summary: str
    pair: Pair
    increment: Pair | None = None


def _euler(h: Tensor, L: Tensor | None, one: float = 1.0) -> tuple[Tensor, Tensor]:
    return _diagonal_and_coupling(one - h, h, L), h


def _imex(h: Tensor, L: Tensor | None) -> tuple[Tensor, Tensor]:
    if L is None:
        return 1 - h, h
    R = inverse(_diagonal_and_coupling(torch.ones_like(h), -h, L))
    return R * (1 - h)[..., None, :], R * h[..., None, :]


def _exponential_euler(h: Tensor, L: Tensor | None) -> tuple[Tensor, Tensor]:
    if L is None:
        return torch.exp(-h), -torch.expm1(-h)
    G = _diagonal_and_coupling(-h, h, L)
    A, integral = exponential(G) if known(G) else plain_exponential(G)
    return A, integral * h[..., None, :]


def _diagonal_and_coupling(d: Tensor, h: Tensor, L: Tensor | None) -> Tensor:
    """diag(d) + diag(h) L, (..., n, n), or d itself without L."""
    return d if L is None else torch.addcmul(torch.diag_embed(d), h[..., None], L)


_ROWS = (
    Scheme("euler", "forward Euler", _euler, partial(_euler, one=0.0)),
    Scheme("imex", "implicit in the coupling L, contracts whatever its norm is", _imex),
    Scheme("exponential-euler", "exact in -x + L x, the rest held over the step", _exponential_euler),
)
SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in _ROWS}
# torchdiffeq's "euler" is ours, and "fixed_adams" an old name of implicit_adams.
TORCHDIFFEQ_SOLVERS = tuple(sorted({*_TORCHDIFFEQ} - {"euler", "fixed_adams"}))
FIXED_STEP = tuple(k for k in TORCHDIFFEQ_SOLVERS if issubclass(_TORCHDIFFEQ[k], FixedGridODESolver))
ADAPTIVE = tuple(name for name in TORCHDIFFEQ_SOLVERS if name not in FIXED_STEP)  # choose their steps
SOLVERS = (*SCHEMES, *TORCHDIFFEQ_SOLVERS)


def unknown_solver(name: str) -> ConfigError:
    """The error for a name that no solver has: also suggests what has it in its summary."""
    meant = [scheme.name for scheme in SCHEMES.values() if name in scheme.summary.split()]
    return unknown("solver", name, SOLVERS, meant=meant)


def step_pair(scheme: Scheme, terms: Terms, dt: Tensor) -> tuple[Tensor, Tensor]:
    """A and C of steps dt (...,), (..., n, n) or (..., n), in float64 inside and rounded once."""
    tau, step = working_precision(terms.tau, dt)
    L = None if terms.L is None else working_precision(terms.L)[0]
    A, C = scheme.pair(step[..., None] / tau, L)
    return A.to(terms.tau.dtype), C.to(terms.tau.dtype)


@dataclass(frozen=True)
class AffineMap:
    """(u, x) -> A x + C g(x, u) for u (batch, m) or None, x (batch, n); A and C as of `times`."""

    terms: Terms
    A: Tensor
    C: Tensor

    def __call__(self, u: Tensor | None, x: Tensor) -> Tensor:
        return times(self.A, x) + times(self.C, self.terms.nonlinear(x, self.terms.inject(u)))


def affine_step(scheme: Scheme, terms: Terms, dt: float | Tensor) -> AffineMap:
    """(u, x) -> x+ for a number dt, or one a sample, (batch,), by plain, differentiable operations."""
    lengths = torch.as_tensor(dt, dtype=terms.tau.dtype, device=terms.tau.device).reshape(-1)
    return AffineMap(terms, *step_pair(scheme, terms, lengths))


def integrate(scheme: Scheme, terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor) -> Tensor:
    """All states of a plain loop over `affine_step`: the reference of every faster loop.

    Args:
        x0: (batch, n).
        drive: inputs held over each step, (time, batch, m), or None.
        dt: step lengths, (time, 1) or (time, batch); a step of length 0 leaves the state alone.

    Returns: (time + 1, batch, n), x0 first. Differentiable as `affine_step` is.
    """
    if dt.requires_grad or unpack_dual(dt).tangent is not None:
        lengths, which = dt.flatten(), torch.arange(dt.numel(), device=dt.device).view_as(dt)
    else:  # one pair for each distinct length
        lengths, which = dt.unique(return_inverse=True)
    A, C = step_pair(scheme, terms, lengths)
    states = [x0]
    for k, index in enumerate(which):
        x, u = states[-1], None if drive is None else drive[k]
        g = terms.nonlinear(x, terms.inject(u))  # no call of an `AffineMap`: it would be one more frame
        states.append(times(A[index], x) + times(C[index], g))
    return torch.stack(states)


def repeated(step: Callable[..., Tensor], count: int) -> Callable[..., Tensor]:
    """(*u, x) -> x after so many steps under one u."""

    def steps(*given: Any) -> Tensor:
        *u, x = given
        for _ in range(count):
            x = step(*u, x)
        return x

    return step if count == 1 else steps


def times(A: Tensor, x: Tensor) -> Tensor:
    """A x for x (..., batch, n) and A (1 or batch, n), the diagonal, or (1 or batch, n, n)."""
    if A.ndim == 2:
        return A * x
    return x @ A[0].mT if len(A) == 1 else (A @ x[..., None])[..., 0]
