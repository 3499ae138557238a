"""Theorem 4: W triangular with g W_ii < 1.

A triangular W has rho(|W|) = max_i W_ii^+, so this is Theorem 1 on a triangle: the same map, with
the entries above the diagonal held at zero, and the same diagonal metric. Any feed-forward chain of
units is in the set, at any strength that the bound on the metric's condition number admits.

Source: Kozachkov et al. 2022, Theorem 4 (arXiv 2106.08928).
"""

import torch
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.contracting.diagonal import MAX_CONDITION
from ctrnn_assembly.contracting.interface import Contracting, Form
from ctrnn_assembly.contracting.theorem1_absolute import Absolute
from ctrnn_assembly.metrics import Factor


class Triangular(Contracting):
    """Theorem 4: triangular with g W_ii < 1; raw tensors V (n, n), its lower triangle, and b (n,).

    Guarantee: continuous-time contraction at rate >= margin / tau in diag(exp(2 b)), both forms.
    """

    theorem = "Theorem 4"

    def __init__(
        self,
        phi: str | Activation = "tanh",
        *,
        margin: float = 0.01,
        max_condition: float = MAX_CONDITION,
    ) -> None:
        super().__init__(phi, margin=margin)
        self.absolute = Absolute(phi, margin=margin, max_condition=max_condition, init_scale=1.0)

    def weight(self, V: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        return self.absolute.weight(V.tril(), b)

    def raw(self, W: Tensor) -> tuple[Tensor, Tensor]:
        above = float(W.triu(1).abs().max())
        if above > 0:
            raise self.outside("zeros above the diagonal", above, "Pass W.tril(), or use absolute.")
        return self.absolute.raw(W)

    def metric(self, *raw: Tensor, form: Form) -> Factor:
        return self.absolute.metric(*raw, form=form)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.absolute.sample(n, generator).tril()
