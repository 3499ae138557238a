"""The trusted kernel: bounds on eigenvalues and norms that hold with float64 rounding accounted for.

Everything that a certificate claims ends here. Searches elsewhere may guess as they like; a guess counts
only if a Cholesky factorisation in floating point runs to its end on a matrix that is shifted by more
than all rounding errors can amount to.

Source: Rump, Verification of positive definiteness, BIT 46 (2006); Higham, Accuracy and stability of
numerical algorithms (2002), chapters 3 and 10.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

UNIT = 2.0**-53  # the unit roundoff of float64
DENSE = 1024  # above this size extreme eigenvalues are guessed by Lanczos, not by LAPACK


def gamma(k: int) -> float:
    """k u / (1 - k u): the relative error of a sum of k products, in any order."""
    return k * UNIT / (1 - k * UNIT)


def product_error(A: Tensor, B: Tensor) -> Tensor:
    """Entrywise bound on the rounding error of the product A B."""
    return gamma(A.shape[-1] + 2) * (A.abs() @ B.abs())


def is_positive_definite(S: Tensor, error: float) -> bool:
    """Whether every symmetric matrix within `error` (spectral norm) of S is positive definite.

    If Cholesky in floating point succeeds on S - c I, then S - c I >= -gamma_{n+1} tr(S - c I) (Rump
    2006, theorem 2.3); c = error + twice that covers the shift's own rounding as well.
    """
    if not (math.isfinite(error) and bool(torch.isfinite(S).all())):
        return False
    n = S.shape[0]
    diagonal = S.diagonal()
    shift = error + 2 * gamma(n + 3) * float(diagonal.abs().sum())
    shifted = S.clone()
    shifted.diagonal().copy_(diagonal - shift * (1 + 1e-12))
    return int(torch.linalg.cholesky_ex(shifted)[1]) == 0


def largest_eigenvalue(S: Tensor, error: float = 0.0) -> float:
    """An upper bound on the largest eigenvalue of every symmetric matrix within `error` of S.

    Infinite if S or `error` is not finite.
    """
    norm = float(torch.linalg.matrix_norm(S))
    if not (math.isfinite(norm) and math.isfinite(error)):
        return math.inf
    n = S.shape[0]
    guess = guess_largest(S)
    slack = 4 * gamma(n + 3) * norm + 1e-300
    while guess + slack < norm:
        bounded = -S
        bounded.diagonal().add_(guess + slack)
        if is_positive_definite(bounded, error + 2 * UNIT * (norm + abs(guess) + slack)):
            return guess + slack
        slack = 4 * slack + error
    return norm * (1 + gamma(n * n + 2)) + error


def spectral_norm(A: Tensor, error: float = 0.0) -> float:
    """An upper bound on the spectral norm of every matrix within `error` of A."""
    top = float(A.abs().max()) if A.numel() else 0.0
    if not math.isfinite(top):
        return math.inf
    if top == 0:
        return error
    scaled = A / top  # so that no square overflows or underflows
    gram = scaled.mT @ scaled if A.shape[0] > A.shape[1] else scaled @ scaled.mT
    rounding = gamma(max(A.shape) + 4) * float((scaled**2).sum()) * (1 + 1e-12)
    return top * math.sqrt(max(0.0, largest_eigenvalue(gram, rounding))) * (1 + 8 * UNIT) + error


def guess_largest(S: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix, unproven."""
    n = S.shape[0]
    if n <= DENSE:
        return float(torch.linalg.eigvalsh(S)[-1])
    return _lanczos(LinearOperator((n, n), lambda v: S @ torch.from_numpy(np.ravel(v)), dtype=float))


def guess_norm(A: Tensor) -> float:
    """The spectral norm of a matrix with at least as many columns as rows, unproven."""
    n = A.shape[0]
    if n <= 128:
        return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(A @ A.mT)[-1])))

    def apply(v: np.ndarray) -> Tensor:
        return A @ (A.mT @ torch.from_numpy(np.ravel(v)))

    return math.sqrt(max(0.0, _lanczos(LinearOperator((n, n), apply, dtype=float))))


def _lanczos(operator: LinearOperator) -> float:
    """The largest eigenvalue to about six digits; the Frobenius bound takes over where it fails."""
    start = np.random.default_rng(0).standard_normal(operator.shape[0])
    try:
        return float(eigsh(operator, k=1, which="LA", tol=1e-6, v0=start, return_eigenvectors=False)[0])
    except ArpackError as error:
        found = getattr(error, "eigenvalues", np.array([]))
        return float(found[0]) if len(found) else math.inf
