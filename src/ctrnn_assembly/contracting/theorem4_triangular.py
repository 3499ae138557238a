"""Theorem 4: W triangular with g W_ii < 1.

A triangular W has rho(|W|) = max_i W_ii^+, so this is Theorem 1 on a triangle: the same map, with
the entries above the diagonal held at zero, and the same diagonal metric.

Source: Kozachkov et al. 2022, Theorem 4 (arXiv 2106.08928).
"""

import torch
from torch import Tensor

from ctrnn_assembly.contracting.theorem1_absolute import Absolute


class Triangular(Absolute):
    """Theorem 4; of the raw tensor A only the lower triangle counts."""

    theorem = "Theorem 4"
    default_scale = 1.0

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
