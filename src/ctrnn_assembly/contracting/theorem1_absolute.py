"""Theorem 1, trainable: rho(g |W|) < 1 through positive scalings.

Condition: g |W| - I Hurwitz, equivalently P (g|W| - I) + (g|W| - I)^T P < 0 for a diagonal P > 0.
The paper says that no unconstrained parametrisation was known to its authors; this one is exact and
onto, and needs no eigenvalue: with v_ij = |V_ij| (a non-positive v_ii counts as 0 for a monotone
phi), R_i = sum_j (v_ij + v_ji) / 2 and any b,

    X_ij = r V_ij / sqrt((1 + R_i)(1 + R_j)),   W_ij = X_ij exp(b_j - b_i) / g,   P = diag(exp(2 b)).

Then sym|X| z < r z for z = sqrt(1 + R) > 0, so the rate in P is above 1 - r = margin. O(n^2).
Not done: the rate is not read off exactly here; the certificate computes it.

Source: Kozachkov et al. 2022, Theorem 1 (arXiv 2106.08928); the map is ours (THEORY section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.contracting.diagonal import (
    MAX_CONDITION,
    check_max_condition,
    squash,
    unsquash,
)
from ctrnn_assembly.contracting.interface import Contracting, Form, check_square, outside
from ctrnn_assembly.linalg import log_metzler_scaling, majorant, symmetric_part, working_precision
from ctrnn_assembly.metrics import Factor


class Absolute(Contracting):
    """Theorem 1, trainable: rho(g |W|) < 1; raw tensors V (n, n) and b (n,).

    Guarantee: continuous-time contraction at rate >= margin / tau in the diagonal metric
    diag(exp(2 b)), both forms, for every phi with |slopes| <= g.
    """

    theorem = "Theorem 1"

    def __init__(
        self,
        phi: str | Activation = "tanh",
        *,
        margin: float = 0.01,
        max_condition: float = MAX_CONDITION,
        init_scale: float = 0.5,
    ) -> None:
        super().__init__(phi, margin=margin)
        check_max_condition(max_condition)
        self.max_condition = max_condition
        self.init_scale = init_scale

    def forward(self, V: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        V64, b64 = working_precision(V, b)
        log_theta = squash(b64, self.max_condition)
        v = majorant(V64, self.phi.monotone)
        scale = (1 + (v.sum(0) + v.sum(1)) / 2).rsqrt()
        X = self.radius * V64 * scale[:, None] * scale
        return (X * (log_theta - log_theta[:, None]).exp() / self.phi.g).to(V.dtype)

    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        check_square(W)
        (W64,) = working_precision(W.detach())
        log_theta = self._metric_of(W64)
        X = self.phi.g * W64 * (log_theta[:, None] - log_theta).exp()
        a = _barrier_minimiser(symmetric_part(majorant(X, self.phi.monotone)) / self.radius)
        V = X * a[:, None] * a / self.radius
        b = unsquash(log_theta, self.max_condition)
        return V.to(W.dtype), b.to(W.dtype)

    def factor(self, *raw: Tensor, form: Form) -> Factor:
        (b,) = working_precision(raw[1])
        return Factor.diagonal(squash(b, self.max_condition))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        V = torch.randn(n, n, generator=generator) * self.init_scale / n**0.5
        return self(V, torch.zeros(n))

    def _metric_of(self, W: Tensor) -> Tensor:
        """log theta of a diagonal metric that shows a rate above 1 - radius: I if it will do."""
        B = self.phi.g * majorant(W, self.phi.monotone)
        if float(torch.linalg.eigvalsh(symmetric_part(B))[-1]) < self.radius * (1 - 1e-9):
            return torch.zeros(W.shape[0], dtype=W.dtype, device=W.device)
        log_theta = log_metzler_scaling(B, self.radius)
        if log_theta is None:
            rho = float(torch.linalg.eigvals(B).abs().max())
            raise outside(
                self.theorem,
                f"rho(g |W|) < {self.radius:.6g}",
                rho,
                "Scale W down, or use the constraint unconstrained (no certificate).",
            )
        return log_theta


def _barrier_minimiser(Y: Tensor, tolerance: float = 1e-12) -> Tensor:
    """argmin over a > 0 of a^T (I - Y) a / 2 - sum log a, for rho(Y) < 1; damped Newton.

    The optimum satisfies a_i^2 = 1 + R_i for the raw V = X_ij a_i a_j / r: it inverts the map.
    The objective is self-concordant, so the step 1 / (1 + decrement) converges from any start.
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
