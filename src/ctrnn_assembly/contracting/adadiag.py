"""AdaDiag: diagonal W with g |w| <= kappa < 1, in the identity metric.

    tanh:  w = kappa tanh(theta) / g        clip:  w = clamp(theta, -kappa, kappa) / g

kappa = 1 - margin, so the rate is at least margin, exactly 1 - g max_i w_i^+ (a negative w costs
nothing in continuous time). The published clip sends |w| > 1 to 0.99 but leaves |w| = 1 and
(0.99, 1) alone, so its rate can be 0; a plain tanh rounds to 1 in float32 beyond |theta| of 9.1.

Source: De Caro et al. 2025 (ESANN), section 2; corrections E13 of THEORY.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrnn_assembly.contracting.diagonal import IdentityMetric
from ctrnn_assembly.contracting.interface import Contracting, check_square, outside
from ctrnn_assembly.linalg import working_precision


class AdaDiagTanh(IdentityMetric):
    """w = kappa tanh(theta) / g; raw tensor theta (n,).

    Guarantee: continuous-time contraction at rate >= margin / tau in M = I, both forms, also with
    any skew-symmetric coupling.
    """

    theorem = "AdaDiag tanh"
    diagonal = True

    def forward(self, theta: Tensor) -> Tensor:  # type: ignore[override]
        (theta64,) = working_precision(theta)
        return torch.diag(self.radius * torch.tanh(theta64) / self.phi.g).to(theta.dtype)

    def right_inverse(self, W: Tensor) -> tuple[Tensor]:
        return (torch.atanh(_diagonal_ratio(self, W)).to(W.dtype),)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self(2 * torch.rand(n, generator=generator) - 1)


class AdaDiagClip(IdentityMetric):
    """w = clamp(theta, -kappa, kappa) / g; raw tensor theta (n,).

    The clamp has no gradient outside, so call `project_` on the raw tensor after each optimiser
    step (training does); the guarantee holds with or without it.

    Guarantee: as `AdaDiagTanh`.
    """

    theorem = "AdaDiag clip"
    diagonal = True

    def forward(self, theta: Tensor) -> Tensor:  # type: ignore[override]
        return torch.diag(theta.clamp(-self.radius, self.radius) / self.phi.g)

    def right_inverse(self, W: Tensor) -> tuple[Tensor]:
        return ((self.radius * _diagonal_ratio(self, W)).to(W.dtype),)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self(2 * torch.rand(n, generator=generator) - 1)

    @torch.no_grad()
    def project_(self, theta: Tensor) -> None:
        """Put theta back inside (-kappa, kappa), in place."""
        # Not onto kappa itself: there torch's clamp has no gradient either, and theta would stick.
        inside = self.radius * (1 - 1e-6)
        theta.clamp_(-inside, inside)


def _diagonal_ratio(constraint: Contracting, W: Tensor) -> Tensor:
    """g w / kappa of a diagonal W in the set, float64."""
    check_square(W)
    (W64,) = working_precision(W.detach())
    off = float((W64 - torch.diag(W64.diagonal())).abs().max())
    if off > 0:
        raise outside(constraint.theorem, "a diagonal W", off, "Pass torch.diag(w).")
    ratio = constraint.phi.g * W64.diagonal() / constraint.radius
    worst = float(ratio.abs().max())
    if worst > 1 + 1e-7:
        raise outside(
            constraint.theorem,
            f"g |w| <= {constraint.radius:.6g}",
            worst * constraint.radius,
            "Scale w down.",
        )
    # Just inside, so that the inverse of tanh is finite.
    return ratio.clamp(-1 + 1e-7, 1 - 1e-7)
