"""Contraction metrics M = Theta^T Theta, held by their factor so that coupling is well conditioned.

`Factor` is the metric of one module, diagonal or dense; `Metric` is the block-diagonal metric of an
assembly. Both give Theta and Theta^-1, because a coupling is stored in balanced form
L_ij = Theta_i^-1 K_ij Theta_j (THEORY section 5), which never forms M or M^-1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """The metric of one module: theta and its inverse, both (n,) if diagonal, else both (n, n).

    The overall scale of a metric is free for a module alone but scales its couplings, so
    `diagonal` and `dense` fix det M = 1 (the geometric mean of the eigenvalues of M is 1).
    """

    theta: Tensor
    theta_inv: Tensor

    @classmethod
    def identity(cls, n: int, like: Tensor) -> Factor:
        """M = I, of the dtype and device of `like`."""
        one = torch.ones(n, dtype=like.dtype, device=like.device)
        return cls(one, one)

    @classmethod
    def diagonal(cls, log_theta: Tensor) -> Factor:
        """M = diag(exp(2 log_theta)), normalised; log_theta is (n,)."""
        centred = log_theta - log_theta.mean()
        return cls(centred.exp(), (-centred).exp())

    @classmethod
    def dense(cls, theta: Tensor, theta_inv: Tensor) -> Factor:
        """M = theta^T theta, normalised; both arguments (n, n)."""
        scale = (torch.linalg.slogdet(theta)[1] / theta.shape[-1]).exp()
        return cls(theta / scale, theta_inv * scale)

    @property
    def size(self) -> int:
        return self.theta.shape[0]

    @property
    def is_diagonal(self) -> bool:
        return self.theta.ndim == 1

    def matrix(self) -> Tensor:
        """M, (n, n)."""
        return torch.diag(self.theta**2) if self.is_diagonal else self.theta.T @ self.theta

    def scaled(self, root: Tensor | float) -> Factor:
        """The factor of root^2 M."""
        return Factor(self.theta * root, self.theta_inv / root)

    def lower(self, K: Tensor) -> Tensor:
        """Theta^-1 K for K of shape (n, m)."""
        return self.theta_inv[:, None] * K if self.is_diagonal else self.theta_inv @ K

    def raise_right(self, K: Tensor) -> Tensor:
        """K Theta for K of shape (m, n)."""
        return K * self.theta if self.is_diagonal else K @ self.theta

    def balance(self, A: Tensor) -> Tensor:
        """Theta A Theta^-1, whose spectral norm is the norm of A in the metric; A is (n, n)."""
        if self.is_diagonal:
            return self.theta[:, None] * A * self.theta_inv
        return self.theta @ A @ self.theta_inv


@dataclass(frozen=True)
class Metric:
    """A block-diagonal metric: one `Factor` a leaf module, in the order of the state."""

    factors: tuple[Factor, ...]

    @property
    def size(self) -> int:
        return sum(factor.size for factor in self.factors)

    @property
    def is_diagonal(self) -> bool:
        return all(factor.is_diagonal for factor in self.factors)

    def matrix(self) -> Tensor:
        """M, (n, n), dense."""
        return torch.block_diag(*(factor.matrix() for factor in self.factors))

    def theta(self) -> Tensor:
        """Theta, (n, n), dense."""
        return torch.block_diag(*(f.theta.diag() if f.is_diagonal else f.theta for f in self.factors))

    def theta_inv(self) -> Tensor:
        """Theta^-1, (n, n), dense."""
        return torch.block_diag(
            *(f.theta_inv.diag() if f.is_diagonal else f.theta_inv for f in self.factors)
        )

    def scaled(self, root: Tensor | float) -> Metric:
        """The metric root^2 M."""
        return Metric(tuple(factor.scaled(root) for factor in self.factors))

    def detach_cpu(self) -> Metric:
        """The same metric on the CPU, without gradients."""
        return Metric(
            tuple(Factor(f.theta.detach().cpu(), f.theta_inv.detach().cpu()) for f in self.factors)
        )

    def lower(self, K: Tensor) -> Tensor:
        """Theta^-1 K for K of shape (n, m)."""
        if self.is_diagonal:
            return torch.cat([f.theta_inv for f in self.factors])[:, None] * K
        rows = K.split([f.size for f in self.factors], dim=0)
        return torch.cat([f.lower(r) for f, r in zip(self.factors, rows, strict=True)], 0)

    def raise_right(self, K: Tensor) -> Tensor:
        """K Theta for K of shape (m, n)."""
        if self.is_diagonal:
            return K * torch.cat([f.theta for f in self.factors])
        columns = K.split([f.size for f in self.factors], dim=1)
        return torch.cat([f.raise_right(c) for f, c in zip(self.factors, columns, strict=True)], dim=1)

    @classmethod
    def join(cls, metrics: list[Metric]) -> Metric:
        """The block-diagonal metric of several modules or assemblies."""
        return cls(tuple(factor for metric in metrics for factor in metric.factors))
