"""The trusted kernel: bounds on eigenvalues and norms that hold with float64 rounding accounted for.

Everything that a certificate claims ends here. Searches elsewhere may guess as they like; a guess counts
only if a Cholesky factorisation in floating point runs to its end on a matrix that is shifted by more
than all rounding errors can amount to.

Source: Rump, Verification of positive definiteness, BIT 46 (2006); Higham, Accuracy and stability of
numerical algorithms (2002), chapters 3 and 10.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from ctrnn_assembly.certificates.verifier import UNIT, gamma

DENSE = 1024  # above this size extreme eigenvalues are guessed by Lanczos, not by LAPACK
# Relative back-offs from an optimum that was searched without rigour.
BACK_OFFS = (1e-7, 1e-5, 1e-3, 1e-2, 0.1, 0.5)


def frobenius(A: Tensor) -> float:
    """An upper bound on the Frobenius norm: a sum of as many squares as A has entries, and a root."""
    return float(torch.linalg.matrix_norm(A)) * (1 + gamma(A.numel() + 2))


def product_error(A: Tensor, B: Tensor) -> Tensor:
    """Entrywise bound on the rounding error of the product A B."""
    return gamma(A.shape[-1] + 2) * (A.abs() @ B.abs())


def is_positive_definite(S: Tensor, error: float) -> bool:
    """Whether every symmetric matrix within `error` (spectral norm) of S is positive definite.

    If Cholesky in floating point succeeds on S - c I, then S - c I >= -gamma_{n+1} tr(S - c I) (Rump
    2006, theorem 2.3); c = error + twice that covers the shift's own rounding as well, and a further
    1e-280 of the largest entry covers underflow. Scaling by a power of two is exact.
    """
    top = float(S.abs().max()) if S.numel() else 0.0
    if not (math.isfinite(top) and math.isfinite(error)) or top < 1e-300:
        return False
    scale = 2.0 ** -math.frexp(top)[1]
    shifted = S * scale
    diagonal = shifted.diagonal()
    shift = error * scale + 2 * gamma(S.shape[0] + 3) * float(diagonal.abs().sum()) + 1e-280
    diagonal -= shift * (1 + 1e-12)
    return int(torch.linalg.cholesky_ex(shifted)[1]) == 0


def largest_proven(guess: float, proves: Callable[[float], bool]) -> float:
    """The first positive guess (1 - back-off) that is proven; 0 for none."""
    tries = (guess * (1 - share) for share in BACK_OFFS) if guess > 0 else ()
    return next((value for value in tries if proves(value)), 0.0)


def last_proven(largest: float, proves: Callable[[float], bool]) -> float:
    """A value up to `largest` that is proven, by back-offs, halving and bisection; 0 for none."""
    low, high = 0.0, largest
    for share in (0.0, *BACK_OFFS, *(1 - 0.5**k for k in range(2, 30))):
        value = (1 - share) * largest
        if proves(value):
            low = value
            break
        high = value
    for _ in range(12 if 0 < low < 0.98 * high else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if proves(middle) else (low, middle)
    return low


def largest_eigenvalue(S: Tensor, error: float = 0.0) -> float:
    """An upper bound on the largest eigenvalue of every symmetric matrix within `error` of S."""
    top = float(S.abs().max()) if S.numel() else 0.0
    if not (math.isfinite(top) and math.isfinite(error)):
        return math.inf
    if top < 1e-290:
        return len(S) * top + error
    scale = 2.0 ** -math.frexp(top)[1]
    S, error = S * scale, error * scale  # the largest entry is now between 1/2 and 1
    norm = frobenius(S)
    guess = guess_largest(S)
    slack = 4 * gamma(len(S) + 3) * norm
    while guess + slack < norm:
        bound = (guess + slack + error) * (1 + 4 * UNIT) + 1e-290
        bounded = -S
        bounded.diagonal().add_(bound)
        if is_positive_definite(bounded, error + 2 * UNIT * (norm + abs(bound))):
            return bound / scale
        slack *= 4
    return (norm + error) * (1 + 4 * UNIT) / scale


def spectral_norm(A: Tensor, error: float = 0.0) -> float:
    """An upper bound on the spectral norm of every matrix within `error` of A."""
    top = float(A.abs().max()) if A.numel() else 0.0
    if not math.isfinite(top):
        return math.inf
    if top == 0:
        return error
    scaled = A / top  # so that no square overflows; what underflows is below 1e-300 of the largest
    gram = _gram(scaled if A.shape[0] > A.shape[1] else scaled.mT)
    # max(A.shape) products a sum, |A|^T |A| in the Frobenius norm at most ||A||_F^2
    rounding = gamma(max(A.shape) + 4) * frobenius(scaled) ** 2 * (1 + 4 * UNIT)
    root = math.sqrt(max(0.0, largest_eigenvalue(gram, rounding)))
    return (top * root + error) * (1 + 16 * UNIT)


def _gram(A: Tensor) -> Tensor:
    """A^T A, of a large matrix with few entries by these alone."""
    if A.shape[0] <= DENSE or float((A != 0).sum()) > 0.1 * A.numel():
        return A.mT @ A
    entries = csr_array(A.numpy())
    return torch.from_numpy((entries.T @ entries).toarray())


def guess_largest(S: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix, unproven."""
    return top_eigenvalue(S) if len(S) <= DENSE else _lanczos(len(S), lambda v: S @ v)


def top_eigenvalue(S: Tensor) -> float:
    """The largest eigenvalue by LAPACK, unproven; infinite where it has none or LAPACK fails."""
    if not bool(torch.isfinite(S).all()):
        return math.inf
    try:
        return float(torch.linalg.eigvalsh(S)[-1])
    except torch.linalg.LinAlgError:  # entries of far too different sizes
        return math.inf


def top_vector(S: Tensor) -> Tensor:
    """An eigenvector of the largest eigenvalue by LAPACK, unproven; ones where LAPACK fails."""
    try:
        return torch.linalg.eigh(S)[1][:, -1]
    except torch.linalg.LinAlgError:
        return torch.ones_like(S[0])


def guess_norm(A: Tensor) -> float:
    """The spectral norm of a matrix with at least as many columns as rows, unproven."""
    small = len(A) <= 128
    square = top_eigenvalue(A @ A.mT) if small else _lanczos(len(A), lambda v: A @ (A.mT @ v))
    return math.sqrt(max(0.0, square))


def _lanczos(n: int, apply: Callable[[Tensor], Tensor]) -> float:
    """The largest eigenvalue to about six digits; the Frobenius bound takes over where it fails."""
    operator = LinearOperator((n, n), lambda v: apply(torch.from_numpy(np.ravel(v))), dtype=float)
    start = np.random.default_rng(0).standard_normal(n)
    try:
        return float(eigsh(operator, k=1, which="LA", tol=1e-6, v0=start, return_eigenvectors=False)[0])
    except ArpackError as error:
        found = getattr(error, "eigenvalues", np.array([]))
        return float(found[0]) if len(found) else math.inf


@dataclass(frozen=True)
class Balance:
    """left = tau^-1/2 Theta and right = Theta^-1 tau^-1/2 of one module, (n,) or (n, n).

    The true right is right (I + E) with ||E|| <= skew; 0 for diagonal metrics.
    """

    left: Tensor
    right: Tensor
    skew: float

    @classmethod
    def of(cls, theta: Tensor, tau: Tensor) -> Self:
        root = tau.rsqrt()
        if theta.ndim == 1:
            return cls(theta * root, root / theta, 0.0)
        inverse = torch.linalg.inv_ex(theta)[0]
        off = torch.eye(len(theta), dtype=theta.dtype) - theta @ inverse
        bound = float(torch.linalg.matrix_norm(off.abs() + product_error(theta, inverse)))
        return cls(theta * root[0], inverse * root[0], bound / (1 - bound) if bound < 0.5 else math.inf)

    @property
    def diagonal(self) -> bool:
        return self.left.ndim == 1

    @property
    def left_norm(self) -> float:
        """A bound on ||left||."""
        return (float(self.left.max()) if self.diagonal else spectral_norm(self.left)) * (1 + 1e-12)

    @property
    def right_norm(self) -> float:
        """A bound on the norm of the true right."""
        norm = float(self.right.max()) if self.diagonal else spectral_norm(self.right)
        return norm * (1 + self.skew) * (1 + 1e-12)

    def lower(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """left A, and a bound on the error of each entry."""
        if self.diagonal:
            product = self.left[:, None] * A
            return product, 8 * UNIT * product.abs()
        return self.left @ A, product_error(self.left, A) + 8 * UNIT * (self.left.abs() @ A.abs())

    def raise_(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """A right, and its error likewise."""
        if self.diagonal:
            product = A * self.right
            return product, 8 * UNIT * product.abs()
        product = A @ self.right
        rows = torch.linalg.vector_norm(product, dim=-1, keepdim=True) * self.skew
        return product, product_error(A, self.right) + 8 * UNIT * (A.abs() @ self.right.abs()) + rows


def balanced(A: Tensor, row: Balance, column: Balance) -> tuple[Tensor, float]:
    """left_i A right_j and a bound on its error in the Frobenius norm."""
    first, error = row.lower(A)
    second, more = column.raise_(first)
    right = column.right.abs()
    carried = error * right if column.diagonal else error @ right
    # A sum of two norms: each bound is off by second order of the others, far below 1 %.
    return second, 1.01 * (float(carried.norm()) * (1 + column.skew) + float(more.norm()))


def norm_within(change: float | Tensor, row: Balance, column: Balance) -> float:
    """sup of ||left A D right|| and of ||left D A right|| over diagonal |D| <= 1 and A within `change`.

    A is any matrix with ||A|| <= change, or with |A_ij| <= change_ij: THEORY section 14.
    """
    if not isinstance(change, Tensor):
        return change * row.left_norm * column.right_norm * (1 + 4 * UNIT) if change else 0.0
    if not bool(change.any()):
        return 0.0
    left, right = row.left.abs(), column.right.abs()
    half = left[:, None] * change if row.diagonal else left @ change
    whole = half * right if column.diagonal else half @ right
    return spectral_norm(whole) * (1 + column.skew) * (1 + 1e-9)


def norm_under_slopes(A: Tensor, row: Balance, column: Balance, *, inside: bool = False) -> float:
    """sup over diagonal |D| <= 1 of ||left A D right||, or of ||left D A right|| if phi is `inside`."""
    beside = row if inside else column
    if beside.diagonal or len(beside.left) == 1:
        return spectral_norm(*balanced(A, row, column))
    product, off = column.raise_(A) if inside else row.lower(A)
    outer = spectral_norm(row.left if inside else column.right)
    return spectral_norm(product, float(off.norm())) * outer * (1 + column.skew) * (1 + 1e-15)
