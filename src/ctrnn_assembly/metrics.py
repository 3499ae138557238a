"""Contraction metrics M = Theta^T Theta, held by their factor so that coupling is well conditioned.

`Factor` is the metric of one module, diagonal or dense; `Metric` is the block-diagonal metric of an
assembly. Both give Theta and Theta^-1, because a coupling is stored in balanced form
L_ij = Theta_i^-1 K_ij Theta_j (THEORY section 5), which never forms M or M^-1.
"""

from __future__ import annotations

from collections.abc import Callable
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

    def inverse(self) -> Factor:
        """The factor with Theta and Theta^-1 exchanged, so that `left_divide` multiplies by Theta."""
        return Factor(self.theta_inv, self.theta)

    def scaled(self, root: Tensor | float) -> Factor:
        """The factor Theta diag(root) of diag(root) M diag(root), for a number or (n,); root > 0.

        With root = sqrt(tau) that is diag(tau) M where tau and M commute, as a metric of modules needs.
        """
        rows = isinstance(root, Tensor) and root.ndim == 1 and not self.is_diagonal
        return Factor(self.theta * root, self.theta_inv / (root[:, None] if rows else root))  # type: ignore[index]

    def matrix(self) -> Tensor:
        """M, (n, n)."""
        return torch.diag(self.theta**2) if self.is_diagonal else self.theta.T @ self.theta

    def left_divide(self, K: Tensor) -> Tensor:
        """Theta^-1 K for K of shape (n, m)."""
        return self.theta_inv[:, None] * K if self.is_diagonal else self.theta_inv @ K

    def right_multiply(self, K: Tensor) -> Tensor:
        """K Theta for K of shape (m, n)."""
        return K * self.theta if self.is_diagonal else K @ self.theta

    def balance(self, A: Tensor) -> Tensor:
        """Theta A Theta^-1, whose spectral norm is the norm of A in the metric; A is (n, n)."""
        turned = self.inverse()
        return turned.right_multiply(turned.left_divide(A))

    def eigenvalues(self) -> Tensor:
        """Of M, (n,), in no order: the squared singular values of Theta."""
        return (self.theta if self.is_diagonal else torch.linalg.svdvals(self.theta)).square()


@dataclass(frozen=True)
class Metric:
    """A block-diagonal metric: one `Factor` a leaf module, in the order of the state."""

    factors: tuple[Factor, ...]

    @classmethod
    def join(cls, metrics: list[Metric]) -> Metric:
        """The block-diagonal metric of several modules or assemblies."""
        return cls(tuple(factor for metric in metrics for factor in metric.factors))

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """The sizes of the modules."""
        return [factor.size for factor in self.factors]

    @property
    def is_diagonal(self) -> bool:
        return all(factor.is_diagonal for factor in self.factors)

    def inverse(self) -> Metric:
        """The metric with Theta and Theta^-1 exchanged."""
        return Metric(tuple(factor.inverse() for factor in self.factors))

    def scaled(self, root: Tensor | float) -> Metric:
        """diag(root) M diag(root), for a number or (n,); see `Factor.scaled`."""
        each = [root] * len(self.factors)
        if isinstance(root, Tensor) and root.ndim == 1:
            each = list(root.split(self.sizes))
        return Metric(tuple(f.scaled(r) for f, r in zip(self.factors, each, strict=True)))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Metric:
        """The metric with every tensor changed."""
        return Metric(tuple(Factor(change(f.theta), change(f.theta_inv)) for f in self.factors))

    def detach_cpu(self) -> Metric:
        """The same metric on the CPU, without gradients."""
        return self.mapped(lambda tensor: tensor.detach().cpu())

    def matrix(self) -> Tensor:
        """M, (n, n), dense."""
        return torch.block_diag(*(factor.matrix() for factor in self.factors))

    def theta(self) -> Tensor:
        """Theta, (n, n), dense."""
        return torch.block_diag(*(f.theta.diag() if f.is_diagonal else f.theta for f in self.factors))

    def theta_inv(self) -> Tensor:
        """Theta^-1, (n, n), dense."""
        return self.inverse().theta()

    def left_divide(self, K: Tensor) -> Tensor:
        """Theta^-1 K for K of shape (n, m)."""
        if self.is_diagonal:
            return torch.cat([f.theta_inv for f in self.factors])[:, None] * K
        rows = K.split(self.sizes, dim=0)
        return torch.cat([f.left_divide(r) for f, r in zip(self.factors, rows, strict=True)], dim=0)

    def right_multiply(self, K: Tensor) -> Tensor:
        """K Theta for K of shape (m, n)."""
        if self.is_diagonal:
            return K * torch.cat([f.theta for f in self.factors])
        columns = K.split(self.sizes, dim=1)
        return torch.cat(
            [f.right_multiply(c) for f, c in zip(self.factors, columns, strict=True)], dim=1
        )

    def balance(self, A: Tensor) -> Tensor:
        """Theta A Theta^-1, whose spectral norm is the norm of A in the metric; A is (n, n)."""
        turned = self.inverse()
        return turned.right_multiply(turned.left_divide(A))
