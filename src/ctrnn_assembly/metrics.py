"""Contraction metrics M = Theta^T Theta, held by their factor so that coupling is well conditioned.

Both Theta and Theta^-1 are held, because a coupling is stored in balanced form
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

    The scale of a metric is free for a module alone but scales its couplings: `diagonal` and `dense` fix
    det M = 1.

    >>> Factor.diagonal(torch.tensor([1.0, 2.0]).log()).eigenvalues()
    tensor([0.5000, 2.0000])
    """

    theta: Tensor
    theta_inv: Tensor

    @classmethod
    def identity(cls, n: int | torch.Size, like: Tensor) -> Factor:
        """M = I, of n units or (..., n), of the dtype and device of `like`."""
        one = like.new_ones(n)
        return cls(one, one)

    @classmethod
    def diagonal(cls, log_theta: Tensor) -> Factor:
        """M = diag(exp(2 log_theta)), normalised; log_theta is (..., n)."""
        centred = log_theta - log_theta.mean(-1, keepdim=True)
        return cls(centred.exp(), (-centred).exp())

    @classmethod
    def dense(cls, theta: Tensor, theta_inv: Tensor) -> Factor:
        """M = theta^T theta, normalised; both arguments (..., n, n)."""
        scale = (torch.linalg.slogdet(theta)[1] / theta.shape[-1]).exp()[..., None, None]
        return cls(theta / scale, theta_inv * scale)

    @property
    def is_diagonal(self) -> bool:
        return self.theta.ndim == 1

    def inverse(self) -> Factor:
        return Factor(self.theta_inv, self.theta)

    def eigenvalues(self) -> Tensor:
        """Of M, (n,), in no order: the squared singular values of Theta."""
        return (self.theta if self.is_diagonal else torch.linalg.svdvals(self.theta)).square()


@dataclass(frozen=True)
class Metric:
    """A block-diagonal metric: one `Factor` a leaf module, in the order of the state.

    >>> metric = Metric((Factor(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.5])),))  # M = diag(1, 4)
    >>> W = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    >>> [round(certify(W, metric=one, search="none").rate, 3) for one in (metric, metric.inverse())]
    [0.5, -1.0]
    """

    factors: tuple[Factor, ...]

    @classmethod
    def join(cls, metrics: list[Metric]) -> Metric:
        return cls(tuple(factor for metric in metrics for factor in metric.factors))

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        return [len(factor.theta) for factor in self.factors]

    @property
    def is_diagonal(self) -> bool:
        return all(factor.is_diagonal for factor in self.factors)

    def inverse(self) -> Metric:
        """Theta and Theta^-1 exchanged, so that `left_divide` multiplies by Theta."""
        return Metric(tuple(factor.inverse() for factor in self.factors))

    def scaled(self, root: Tensor) -> Metric:
        """The metric diag(root) M diag(root), of Theta diag(root), for root (n,) > 0.

        With root = sqrt(tau) that is diag(tau) M where tau and M commute, as a metric of modules needs.
        """
        pairs = zip(self.factors, root.split(self.sizes), strict=True)
        parts = ((f, r, r if f.is_diagonal else r[:, None]) for f, r in pairs)
        return Metric(tuple(Factor(f.theta * r, f.theta_inv / rows) for f, r, rows in parts))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Metric:
        return Metric(tuple(Factor(change(f.theta), change(f.theta_inv)) for f in self.factors))

    def detach_cpu(self) -> Metric:
        """The same metric on the CPU, without gradients."""
        return self.mapped(lambda tensor: tensor.detach().cpu())

    def matrix(self) -> Tensor:
        """M, (n, n), dense, as `theta`."""
        return self.theta().mT @ self.theta()

    def theta(self) -> Tensor:
        return torch.block_diag(*(f.theta.diag() if f.is_diagonal else f.theta for f in self.factors))

    def left_divide(self, K: Tensor) -> Tensor:
        """Theta^-1 K for K of shape (n, m)."""
        return _multiply([f.theta_inv for f in self.factors], K)

    def right_multiply(self, K: Tensor) -> Tensor:
        """K Theta for K of shape (m, n)."""
        return _multiply([f.theta if f.is_diagonal else f.theta.mT for f in self.factors], K.mT).mT


def _multiply(thetas: list[Tensor], K: Tensor) -> Tensor:
    """blkdiag(thetas) K for K (n, m), by blocks of rows; a theta is (n_i, n_i) or its diagonal."""
    if all(theta.ndim == 1 for theta in thetas):
        return torch.cat(thetas)[:, None] * K
    pairs = zip(thetas, K.split([len(theta) for theta in thetas]), strict=True)
    return torch.cat([t[:, None] * row if t.ndim == 1 else t @ row for t, row in pairs])
