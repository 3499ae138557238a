"""AdaDiag: diagonal W with g |w| <= kappa = 1 - margin, in the identity metric.

The rate is at least margin, exactly 1 - g max_i w_i^+ (a negative w costs nothing in continuous time).
The published clip and tanh can reach rate 0, tanh in float32 beyond |theta| of 9.1.

Source: De Caro et al. 2025 (ESANN), section 2; corrections E13 of THEORY.
"""

import torch
from torch import Tensor

from ctrnn_assembly.contracting.interface import Contracting


class AdaDiagTanh(Contracting):
    """g W = diag(kappa tanh(theta)); raw tensor theta (n,), of samples uniform within init_scale.

    Guarantee: rate >= margin / tau in M = I, both forms, also with any skew-symmetric coupling.

    >>> AdaDiagTanh(margin=0.1)(torch.tensor([-9.0, 0.0, 9.0])).diagonal()
    tensor([-0.9000,  0.0000,  0.9000])
    """

    theorem = "AdaDiag tanh"
    diagonal = True
    axes = ("n",)

    def bounded(self, theta: Tensor) -> Tensor:
        """g w, within [-kappa, kappa]."""
        return self.radius * torch.tanh(theta)

    def unbounded(self, gw: Tensor) -> Tensor:
        """The inverse, for gw within (-kappa, kappa)."""
        return torch.atanh(gw / self.radius)

    def weight(self, theta: Tensor) -> Tensor:  # type: ignore[override]
        return torch.diag_embed(self.bounded(theta) / self.phi.g)

    def raw(self, W: Tensor) -> tuple[Tensor]:
        if (off := float((W - torch.diag(W.diagonal())).abs().max())) > 0:
            raise self.outside("a diagonal W", off, "Pass torch.diag(w).")
        ratio = self.phi.g * W.diagonal() / self.radius
        if (worst := float(ratio.abs().max())) > 1 + 1e-7:
            raise self.outside(f"g |w| <= {self.radius:.6g}", worst * self.radius, "Scale w down.")
        # Just inside, so that the inverse of tanh is finite.
        return (self.unbounded(self.radius * ratio.clamp(-1 + 1e-7, 1 - 1e-7)),)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self(self.init_scale * (2 * torch.rand(n, generator=generator) - 1))


class AdaDiagClip(AdaDiagTanh):
    """g W = diag(clamp(theta, -kappa, kappa)); has no gradient outside, hence `project_`.

    >>> AdaDiagClip(margin=0.1)(torch.tensor([-9.0, 0.5, 9.0])).diagonal()
    tensor([-0.9000,  0.5000,  0.9000])
    """

    theorem = "AdaDiag clip"

    def bounded(self, theta: Tensor) -> Tensor:
        return theta.clamp(-self.radius, self.radius)

    def unbounded(self, gw: Tensor) -> Tensor:
        return gw

    @torch.no_grad()
    def project_(self, theta: Tensor) -> None:
        """Put theta back inside (-kappa, kappa), in place; training does after each optimiser step."""
        # Not onto kappa itself: there torch's clamp has no gradient either, and theta would stick.
        inside = self.radius * (1 - 1e-6)
        theta.clamp_(-inside, inside)
