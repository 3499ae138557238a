"""Theorem 5: g^2 W^T P W < P for a diagonal P > 0 (the SVD Combo Net).

Equivalently the largest singular value of P^1/2 W P^-1/2 is below 1/g; P must be diagonal. The map onto
the set is one reduced QR, [I; A] = Q R, which gives X = A R^-1 with singular values below 1.
Source: Kozachkov et al. 2022, Theorem 5 (arXiv 2106.08928); the map is ours (THEORY section 2).
"""

import torch
from scipy.linalg import matrix_balance
from torch import Tensor

from ctrnn_assembly.contracting.diagonal import DiagonalMetric, balanced
from ctrnn_assembly.linalg import log_metzler_scaling, majorant


def below_one(A: Tensor) -> Tensor:
    """X with ||X|| < 1, for any finite A, both (..., n, n)."""
    n = A.shape[-1]
    # Columns of [I; A] scaled alike leave Q unchanged and keep a diverging A from overflowing.
    size = A.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1.0)
    Q, R = torch.linalg.qr(torch.cat([torch.eye(n).to(A) / size, A / size], -2))
    return Q[..., n:, :] * R.diagonal(0, -2, -1).sign()[..., None, :]  # Cholesky's R has a diagonal > 0


def above(X: Tensor) -> Tensor:
    """The inverse of `below_one`."""
    # X = A C^-T with C C^T = I + A^T A, so I - X^T X = K K^T with K = C^-1, and A = X K^-T.
    K = torch.linalg.cholesky(torch.eye(len(X)).to(X) - X.mT @ X)
    return torch.linalg.solve_triangular(K.mT, X, upper=True, left=False)


class SingularValueBounded(DiagonalMetric):
    """Theorem 5: g^2 W^T P W < P with a diagonal P; see `DiagonalMetric`.

    >>> certify(Subnetwork(SingularValueBounded("relu", margin=0.2), 8, tau=0.1)).rate >= 2
    True
    """

    theorem = "Theorem 5"

    inside, outward = staticmethod(below_one), staticmethod(above)

    def metric_of(self, W: Tensor) -> Tensor:
        """The identity, Theorem 1's metric or Osborne's balancing: the first that will do."""
        # Balancing equalises the norms of the rows and columns of theta W theta^-1.
        scale = matrix_balance(W.cpu().numpy(), permute=False, separate=True)[1][0]
        theorem1 = log_metzler_scaling(self.phi.g * majorant(W, monotone=False), self.radius)
        scalings = theorem1, -torch.from_numpy(scale).log()
        smallest = float("inf")
        for log_theta in (torch.zeros_like(W[0]), *(s.to(W) for s in scalings if s is not None)):
            s = float(torch.linalg.matrix_norm(balanced(self.phi.g * W, log_theta), ord=2))
            if s < self.radius * (1 - 1e-9):
                return log_theta
            smallest = min(smallest, s)
        condition = f"g s(P^1/2 W P^-1/2) < {self.radius:.6g} in one of three diagonal metrics"
        raise self.outside(condition, smallest, "Scale W down.")
