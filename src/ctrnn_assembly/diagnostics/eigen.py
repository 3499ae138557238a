"""Eigenvalues of one Jacobian: all of them by LAPACK, or the leading ones by ARPACK.

LAPACK takes about 25 n^3 operations and 4 n^2 numbers: 4 s and 0.3 GB for n = 2048 on one core. ARPACK
needs products only, but converges where the leading eigenvalues stand apart. Feedback coupling spreads
them along a line of nearly equal real parts, where it does not; and up to n = 2048 it is no faster even
where it does, so that up to there the leading ones are cut from all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.generalised import Balanced
from ctrnn_assembly.diagnostics.jacobian import Jacobian
from ctrnn_assembly.errors import ConfigError, SolverError
from ctrnn_assembly.linalg import symmetric_part

Order = Literal["real", "modulus"]

DENSE = 2048  # up to this size LAPACK is as fast
RESTARTS = 100
TOLERANCE = 1e-10


def eigenvalues(A: Tensor, order: Order = "real", largest: int | None = None) -> Tensor:
    """Eigenvalues of A (n, n), (n,) or the `largest` of them, complex128, in descending order."""
    return descending(torch.linalg.eigvals(A), order)[:largest]


def leading(J: Jacobian, order: Order, largest: int | None) -> Tensor:
    """The eigenvalues of the only state's Jacobian with the largest real part or modulus.

    Args:
        largest: how many, 1..n, or None for all.

    Raises:
        SolverError: if ARPACK does not converge.
    """
    n = J.terms.n
    if largest is None or by_lapack(n, largest):
        return eigenvalues(J.matrix()[0], order, largest)
    from scipy.sparse.linalg import eigs

    found = _arpack(eigs, lambda v: J.product(v[None])[0], n, largest, "LR" if order == "real" else "LM")
    return descending(torch.from_numpy(found), order)


def by_lapack(n: int, largest: int | None) -> bool:
    """Whether all n eigenvalues are computed, even if fewer are wanted."""
    return largest is None or n <= DENSE or largest >= n - 1


def largest_symmetric(J: Jacobian, balanced: Balanced, largest: int | None = None) -> float:
    """lmax(sym F) of the only state's Jacobian in the metric, by ARPACK where `leading` would use it.

    Raises:
        SolverError: if ARPACK does not converge.
    """
    n = J.terms.n
    if by_lapack(n, largest):
        F = balanced.matrix(J.matrix()[0])
        return float(torch.linalg.eigvalsh(symmetric_part(F))[-1])
    from scipy.sparse.linalg import eigsh

    return float(_arpack(eigsh, lambda v: balanced.symmetric_product(J, v), n, 1, "LA")[0])


def descending(values: Tensor, order: Order) -> Tensor:
    """The values by falling real part or modulus; of a conjugate pair, the upper one first."""
    key = values.real if order == "real" else values.abs()
    by_imaginary = values.imag.argsort(descending=True)
    return values[by_imaginary[key[by_imaginary].argsort(descending=True, stable=True)]]


def check_largest(largest: int | None, n: int) -> None:
    """Refuse a number of eigenvalues that there is not.

    Raises:
        ConfigError: if it is not in 1..n.
    """
    if largest is not None and not 1 <= largest <= n:
        raise ConfigError(
            f"the number of eigenvalues must be in 1..{n}, the number of units; got {largest}. "
            f"Use largest={min(20, n)}, or None for all."
        )


def _arpack(
    solver: Callable[..., np.ndarray],
    product: Callable[[Tensor], Tensor],
    n: int,
    largest: int,
    which: str,
) -> np.ndarray:
    """scipy's `eigs` or `eigsh` of v -> A v, for v (n,)."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator

    def apply(v: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(np.ascontiguousarray(v.reshape(-1)))).numpy()

    try:
        return solver(
            LinearOperator((n, n), matvec=apply, dtype=np.float64),
            k=largest,
            which=which,
            ncv=min(n, max(80, 4 * largest)),
            v0=np.random.default_rng(0).standard_normal(n),
            tol=TOLERANCE,
            maxiter=RESTARTS,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        raise SolverError(
            f"ARPACK found {len(error.eigenvalues)} of {largest} leading eigenvalues of {n} in "
            f"{RESTARTS} restarts: they lie too close, as feedback coupling makes them. Use "
            f"largest=None, all by LAPACK: about {4 * (n / 2048) ** 3:.0f} s and "
            f"{64e-9 * n**2:.1f} GB a state."
        ) from error
