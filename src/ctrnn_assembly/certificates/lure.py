"""A module in Lur'e form, in coordinates where its metric is the Euclidean norm.

For a difference v of two states and slopes in [lo, hi], in y = tau^1/2 Theta v, a module is

    y' = A y + X w,    w o (Z y - w) >= 0,

a linear system with sector-bounded feedback. For any diagonal T > 0, B = X T^-1/2 and C = T^1/2 Z,

    d|y|^2/dt <= 2 y^T S y,    S = sym(A) + (B + C^T)(B + C^T)^T / 4.

Each matrix carries a bound on what float64 rounding did to it. Source: THEORY section 2.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Activation
from ctrnn_assembly.certificates.rounding import UNIT, gamma, product_error, spectral_norm
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms


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
    return second, 1.01 * (float(carried.norm()) * (1 + column.skew) + float(more.norm()))


def norm_under_slopes(A: Tensor, row: Balance, column: Balance, *, inside: bool = False) -> float:
    """sup over diagonal |D| <= 1 of ||left A D right||, or of ||left D A right|| if phi is `inside`.

    D commutes with a diagonal factor only.
    """
    beside = row if inside else column
    if beside.diagonal or len(beside.left) == 1:
        return spectral_norm(*balanced(A, row, column))
    product, off = column.raise_(A) if inside else row.lower(A)
    outer = spectral_norm(row.left if inside else column.right)
    return spectral_norm(product, float(off.norm())) * outer * (1 + column.skew) * (1 + 1e-15)


@dataclass(frozen=True)
class ModuleInMetric:
    """One module, phi outside (x-form) or `inside` (r-form); an inverse of theta is not trusted."""

    W: Tensor
    phi: Activation
    inside: bool
    theta: Tensor
    tau: Tensor

    @cached_property
    def balance(self) -> Balance:
        return Balance.of(self.theta, self.tau)


@dataclass(frozen=True)
class LureSystem:
    """A module in its metric: A, X, Z as above, (n, n), and g, the width of the slope interval.

    Bounds on rounding: A_error in the Frobenius norm, X_error of each column, Z_error of each row.
    """

    g: float
    A: Tensor
    X: Tensor
    Z: Tensor
    A_error: float
    X_error: Tensor
    Z_error: Tensor

    @classmethod
    def of(cls, module: ModuleInMetric) -> Self:
        W, balance, (lo, hi) = module.W, module.balance, module.phi.slope
        scaled, off = balanced(W, balance, balance)
        A = lo * scaled - torch.diag(1 / module.tau)
        A_error = abs(lo) * off + 8 * UNIT * float(torch.linalg.matrix_norm(A))
        g, eye = hi - lo, torch.eye(len(W), dtype=W.dtype)
        if g == 0:  # linear: no feedback is left
            nothing, exact = torch.zeros_like(W), torch.zeros_like(W[0])
            return cls(g, A, nothing, nothing, A_error, exact, exact)
        X, X_off = balance.lower(eye if module.inside else W)
        Z, Z_off = balance.raise_(W if module.inside else eye)
        X_error = torch.linalg.vector_norm(X_off, dim=0)
        Z_error = g * torch.linalg.vector_norm(Z_off + 4 * UNIT * Z.abs(), dim=1)
        return cls(g, A, X, g * Z, A_error, X_error, Z_error)

    def weigh(self, T: Tensor) -> tuple[Tensor, Tensor, float]:
        """B = X T^-1/2, C = T^1/2 Z, and a bound on the error of both, for a multiplier T (n,)."""
        root = T.sqrt()
        B, C = self.X / root, root[:, None] * self.Z
        error = torch.cat([self.X_error / root, self.Z_error * root]).norm()
        return B, C, float(error) + 8 * UNIT * float(B.norm() + C.norm())

    def s_procedure_matrix(self, T: Tensor) -> tuple[Tensor, float]:
        """S of the S-procedure for T, and a bound on its error in the spectral norm."""
        B, C, off = self.weigh(T)
        Y = B + C.mT
        size = float(Y.norm())
        S = symmetric_part(self.A) + Y @ Y.mT / 4
        rounding = gamma(len(S) + 8) * (size**2 + float(self.A.norm()))
        return symmetric_part(S), self.A_error + size * off + off**2 + rounding


def modules_of(terms: Terms, metric: Metric) -> list[ModuleInMetric]:
    """Every module of a field, in its part of the metric."""
    found, start = [], 0
    taus = terms.tau.double().split(terms.sizes)
    for W, factor, tau in zip(terms.blocks, metric.factors, taus, strict=True):
        pre, post = terms.pre.at(start), terms.post.at(start)
        inside = pre == ACTIVATIONS["identity"]
        phi = post if inside else pre
        found.append(ModuleInMetric(W.double(), phi, inside, factor.theta.double(), tau))
        start += len(tau)
    return found
