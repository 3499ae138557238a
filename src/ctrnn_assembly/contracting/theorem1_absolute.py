"""Theorems 1 and 4: rho(g |W|) < 1, equivalently P (g |W| - I) + (g |W| - I)^T P < 0, P diagonal.

An exact map onto the set that needs no eigenvalue: with v_ij = |V_ij| (a non-positive v_ii counts as 0
for a monotone phi), R_i = sum_j (v_ij + v_ji) / 2 and any b,

    X_ij = V_ij / sqrt((1 + R_i)(1 + R_j)),   W_ij = r X_ij exp(b_j - b_i) / g,   P = diag(exp(2 b)).

Then sym|X| z < z for z = sqrt(1 + R) > 0, so the rate in P is above 1 - r = margin. O(n^2). A triangular
W has rho(|W|) = max_i W_ii^+: Theorem 4 is the same map with zeros above the diagonal.

Source: Kozachkov et al. 2022 (arXiv 2106.08928); the map is ours (THEORY section 2).
"""

import torch
from torch import Tensor

from ctrnn_assembly.contracting.diagonal import DiagonalMetric, metzler_metric
from ctrnn_assembly.linalg import majorant, symmetric_part


class Absolute(DiagonalMetric):
    """Theorem 1, trainable; the raw tensor A is V."""

    theorem = "Theorem 1"
    init_scale = 0.5

    def inside(self, A: Tensor) -> Tensor:
        v = majorant(A, self.phi.monotone)
        scale = (1 + (v.sum(0) + v.sum(1)) / 2).rsqrt()
        return A * scale[:, None] * scale

    def outward(self, X: Tensor) -> Tensor:
        a = _barrier_minimiser(symmetric_part(majorant(X, self.phi.monotone)))
        return X * a[:, None] * a

    def metric_of(self, W: Tensor) -> Tensor:
        """The identity if it will do, else Theorem 1's."""
        S = symmetric_part(self.phi.g * majorant(W, self.phi.monotone))
        enough = float(torch.linalg.eigvalsh(S)[-1]) < self.radius * (1 - 1e-9)
        return torch.zeros_like(W[0]) if enough else metzler_metric(self, W)


class Triangular(Absolute):
    """Theorem 4; of the raw tensor A only the lower triangle counts."""

    theorem = "Theorem 4"
    init_scale = 1.0

    def inside(self, A: Tensor) -> Tensor:
        return super().inside(A.tril())

    def raw(self, W: Tensor) -> tuple[Tensor, Tensor]:
        above = float(W.triu(1).abs().max())
        if above > 0:
            raise self.outside("zeros above the diagonal", above, "Pass W.tril(), or use absolute.")
        return super().raw(W)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        full = Absolute(self.phi, margin=self.margin, init_scale=self.init_scale)
        return full.sample(n, generator).tril()


def _barrier_minimiser(Y: Tensor, tolerance: float = 1e-12) -> Tensor:
    """argmin over a > 0 of a^T (I - Y) a / 2 - sum log a, for rho(Y) < 1: a_i^2 = 1 + R_i.

    The objective is self-concordant, so Newton's step / (1 + decrement) converges from any start.
    """
    K = torch.eye(Y.shape[0], dtype=Y.dtype, device=Y.device) - Y
    a = torch.ones_like(Y[0])
    for _ in range(500):
        gradient = K @ a - 1 / a
        step = torch.linalg.solve(K + torch.diag(a**-2), gradient)
        decrement = float((gradient @ step).clamp(min=0).sqrt())
        a = a - step / (1 + decrement if decrement > 0.25 else 1)
        if decrement < tolerance:
            break
    return a
