"""One-step maps that treat the coupling exactly: IMEX and exponential Euler.

Both are x+ = P x + Q g(x, u), with g = post(W pre(x) + b + W_in u) + sum_e K_e psi_e(x) explicit:

    imex:               P = R (I - H), Q = R H,      R = (I - H L)^-1,  H = diag(dt / tau)
    exponential-euler:  P = exp(dt A), Q = A^-1 (P - I) diag(1 / tau),  A = diag(1 / tau)(-I + L)

For L skew in M, ||R||_M <= 1: the IMEX factor is the largest of the modules' own Euler factors and does
not depend on the coupling, where forward Euler diverges for large ||L|| (THEORY section 6). Both are
of order 1. Cost: one inverse (or matrix exponential) a solve and distinct dt, in float64, then one
dense product more than Euler a step. `semi_implicit` is a plain loop under autograd, the twin of
`semi_implicit_adjoint`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.linalg import working_precision
from ctrnn_assembly.terms import Terms

Matrices = Callable[[Terms, Tensor], tuple[Tensor, Tensor]]


def imex_matrices(terms: Terms, dt: Tensor) -> tuple[Tensor, Tensor]:
    """P and Q of the IMEX step for a 0-dimensional dt: (n, n), or without L their diagonals, (n,)."""
    tau, step = working_precision(terms.tau, dt)
    h = step / tau
    if terms.L is None:
        P, Q = 1 - h, h
    else:
        (L,) = working_precision(terms.L)
        eye = torch.eye(terms.n, dtype=h.dtype, device=h.device)
        R = torch.linalg.inv(eye - h[:, None] * L)
        P, Q = R * (1 - h), R * h
    return P.to(terms.tau.dtype), Q.to(terms.tau.dtype)


def exponential_matrices(terms: Terms, dt: Tensor) -> tuple[Tensor, Tensor]:
    """P and Q of the exponential Euler step for a 0-dimensional dt, shaped as in `imex_matrices`."""
    tau, step = working_precision(terms.tau, dt)
    if terms.L is None:
        P = torch.exp(-step / tau)
        Q = -torch.expm1(-step / tau)
    else:
        (L,) = working_precision(terms.L)
        eye = torch.eye(terms.n, dtype=tau.dtype, device=tau.device)
        A = (L - eye) / tau[:, None]
        P = torch.linalg.matrix_exp(step * A)
        integral, info = torch.linalg.solve_ex(A, P - eye)
        if int(info):
            raise SolverError(
                "exponential-euler needs an invertible L - I; got an L with the eigenvalue 1. "
                "Use feedback coupling, which never has it, or method='imex'."
            )
        Q = integral / tau
    return P.to(terms.tau.dtype), Q.to(terms.tau.dtype)


def semi_implicit(
    terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor, matrices: Matrices
) -> Tensor:
    """All states, (time + 1, batch, n); arguments as `euler.euler`, plus the step's matrices."""
    lengths, which = dt.unique(return_inverse=True)
    maps = [matrices(terms, length) for length in lengths]
    P, Q = (  # (distinct dt, n, n) each
        torch.stack([torch.diag(m) if m.ndim == 1 else m for m in each])
        for each in zip(*maps, strict=True)
    )
    states = [x0]
    for k, index in enumerate(which):
        x = states[-1]
        g = terms.nonlinear(x, terms.inject(None if drive is None else drive[k]))
        if len(index) == 1:
            states.append(x @ P[index[0]].mT + g @ Q[index[0]].mT)
        else:  # every sample has its own step
            states.append((P[index] @ x[..., None] + Q[index] @ g[..., None])[..., 0])
    return torch.stack(states)
