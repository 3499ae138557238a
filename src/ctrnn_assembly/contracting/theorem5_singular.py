"""Theorem 5: g^2 W^T P W < P for a diagonal P > 0 (the SVD Combo Net).

Equivalently the largest singular value of P^1/2 W P^-1/2 is below 1/g; P must be diagonal (a full P
fails). Parametrisation onto the set, without an SVD: [I; A] = Q R (reduced QR) gives X = A R^-1, the
lower half of Q, with singular values below 1; then W = r exp(b_j - b_i) X_ij / g and P =
diag(exp(2 b)). The published form U Sigma V^T with Sigma = exp(-z^2)/g reaches 1/g, rate 0, at z=0;
here s <= r < 1. The QR form keeps s(X) <= 1 to the last bit however A is conditioned, where a
Cholesky factor of I + A^T A breaks down. One QR of a (2n, n) matrix.

Source: Kozachkov et al. 2022, Theorem 5 (arXiv 2106.08928); the map is ours (THEORY section 2).
"""

from __future__ import annotations

import torch
from scipy.linalg import matrix_balance
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.contracting.diagonal import (
    MAX_CONDITION,
    check_max_condition,
    squash,
    unsquash,
)
from ctrnn_assembly.contracting.interface import Contracting, Form, check_square, outside
from ctrnn_assembly.linalg import log_metzler_scaling, majorant, working_precision
from ctrnn_assembly.metrics import Factor


class SingularValueBounded(Contracting):
    """Theorem 5: g^2 W^T P W < P for a diagonal P; raw tensors A (n, n) and b (n,).

    Guarantee: continuous-time contraction at rate >= margin / tau in diag(exp(2 b)), both forms,
    for every phi with |slopes| <= g.
    """

    theorem = "Theorem 5"

    def __init__(
        self,
        phi: str | Activation = "tanh",
        *,
        margin: float = 0.01,
        max_condition: float = MAX_CONDITION,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__(phi, margin=margin)
        check_max_condition(max_condition)
        self.max_condition = max_condition
        self.init_scale = init_scale

    def forward(self, A: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        A64, b64 = working_precision(A, b)
        log_theta = squash(b64, self.max_condition)
        n = A.shape[0]
        # Columns of [I; A] scaled alike leave Q unchanged and keep a diverging A from overflowing.
        size = A64.detach().abs().max().clamp(min=1.0)
        eye = torch.eye(n, dtype=A64.dtype, device=A.device)
        Q, R = torch.linalg.qr(torch.cat([eye / size, A64 / size]))
        X = Q[n:] * R.diagonal().sign()  # the R of Cholesky has a positive diagonal
        return (self.radius * X * (log_theta - log_theta[:, None]).exp() / self.phi.g).to(A.dtype)

    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        n = check_square(W)
        (W64,) = working_precision(W.detach())
        log_theta = self._metric_of(W64)
        X = self.phi.g * W64 * (log_theta[:, None] - log_theta).exp() / self.radius
        # X = A C^-T with C C^T = I + A^T A, so I - X^T X = K K^T with K = C^-1, and A = X K^-T.
        eye = torch.eye(n, dtype=X.dtype, device=X.device)
        K = torch.linalg.cholesky(eye - X.mT @ X)
        A = torch.linalg.solve_triangular(K.mT, X, upper=True, left=False)
        return A.to(W.dtype), unsquash(log_theta, self.max_condition).to(W.dtype)

    def factor(self, *raw: Tensor, form: Form) -> Factor:
        (b,) = working_precision(raw[1])
        return Factor.diagonal(squash(b, self.max_condition))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        A = torch.randn(n, n, generator=generator) * self.init_scale / n**0.5
        return self(A, torch.zeros(n))

    def _metric_of(self, W: Tensor) -> Tensor:
        """log theta with s(g P^1/2 W P^-1/2) < radius: I, Theorem 1's metric, or balancing."""
        zero = torch.zeros(W.shape[0], dtype=W.dtype, device=W.device)
        B = self.phi.g * majorant(W, monotone=False)
        candidates = [zero, log_metzler_scaling(B, self.radius), _balancing(W)]
        smallest = float("inf")
        for log_theta in candidates:
            if log_theta is None:
                continue
            balanced = self.phi.g * W * (log_theta[:, None] - log_theta).exp()
            s = float(torch.linalg.matrix_norm(balanced, ord=2))
            if s < self.radius * (1 - 1e-9):
                return log_theta
            smallest = min(smallest, s)
        raise outside(
            self.theorem,
            f"g s(P^1/2 W P^-1/2) < {self.radius:.6g} in one of three diagonal metrics",
            smallest,
            "Scale W down.",
        )


def _balancing(W: Tensor) -> Tensor:
    """log theta of Osborne's balancing, which equalises row and column norms of theta W theta^-1."""
    _, (scale, _) = matrix_balance(W.cpu().numpy(), permute=False, separate=True)
    return -torch.from_numpy(scale).to(W).log()
