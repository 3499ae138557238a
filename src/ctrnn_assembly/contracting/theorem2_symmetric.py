"""Theorem 2: W = W^T with g W < I.

Parametrisation without eigenvalues: for R > 0 symmetric and c in (0, 1),

    g W = 2 sqrt(c) R - R^2 = c I - (R - sqrt(c) I)^2 <= c I,

with metric M = R^-2 for the x-form (R^2 for the r-form) and rate 1 - c, the best possible.
R = eps I + G with G = E E^T / n squashed to ||G||_F < bound sqrt(n). Onto the symmetric W whose R fits
below the bound.

Source: Kozachkov et al. 2022, Theorem 2 (arXiv 2106.08928); metric and rate from THEORY section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.contracting.gram import bounded_gram, gram_root
from ctrnn_assembly.contracting.interface import Contracting, Form, check_square, outside
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.linalg import symmetric_part, working_precision
from ctrnn_assembly.metrics import Factor

# R >= SMALLEST_R keeps cond(M) = cond(R)^2 finite.
SMALLEST_R = 0.05


class Symmetric(Contracting):
    """Theorem 2: W = W^T with g W < I; raw tensors E (n, n) and s (1,), the logit of c / (1 - margin).

    Guarantee: continuous-time contraction at rate 1 - c >= margin (per tau) in M = R^-2 (x-form)
    or R^2 (r-form), for every phi with slopes in [0, g].
    """

    theorem = "Theorem 2"
    monotone_only = True

    def __init__(
        self, phi: str | Activation = "tanh", *, margin: float = 0.01, bound: float = 2.0
    ) -> None:
        super().__init__(phi, margin=margin)
        if not 1 < bound <= 10:
            raise ContractionError(f"bound on R must be in (1, 10]; got {bound}. Use bound=2.0.")
        self.bound = bound

    def forward(self, E: Tensor, s: Tensor) -> Tensor:  # type: ignore[override]
        R, root_c = self._root(E, s)
        return symmetric_part((2 * root_c * R - R @ R) / self.phi.g).to(E.dtype)

    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        n = check_square(W)
        (W64,) = working_precision(W.detach())
        skew = float((W64 - W64.mT).abs().max())
        if skew > 1e-6 * max(1.0, float(W64.abs().max())):
            raise outside(self.theorem, "a symmetric W", skew, "Symmetrise it: (W + W.T) / 2.")
        values, vectors = torch.linalg.eigh(self.phi.g * symmetric_part(W64))
        top = float(values[-1])
        if top >= self.radius:
            raise outside(self.theorem, f"g lmax(W) < {self.radius:.6g}", top, "Scale W down.")
        c = max(0.5 * (top + self.radius), 0.25 * self.radius)
        roots = c**0.5 + (c - values).clamp(min=0).sqrt()  # eigenvalues of R
        limit = self.bound * n**0.5
        E = gram_root(roots - SMALLEST_R, vectors, limit)
        if E is None:
            raise outside(
                self.theorem,
                f"||R - {SMALLEST_R} I||_F < bound sqrt(n)",
                float((roots - SMALLEST_R).norm()),
                f"Raise bound (now {self.bound}) or scale W down.",
            )
        s = torch.logit(torch.tensor([c / self.radius], dtype=W64.dtype, device=W.device))
        return E.to(W.dtype), s.to(W.dtype)

    def factor(self, *raw: Tensor, form: Form) -> Factor:
        R, _ = self._root(*raw)
        R_inv = torch.linalg.inv(R)
        theta, theta_inv = (R_inv, R) if form == "x" else (R, R_inv)
        return Factor.dense(theta, theta_inv)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        E = torch.randn(n, n, generator=generator) * 0.5
        return self(E, torch.zeros(1))

    def _root(self, E: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """R and sqrt(c), in working precision."""
        E64, s64 = working_precision(E, s)
        n = E.shape[0]
        eye = torch.eye(n, dtype=E64.dtype, device=E.device)
        # c stays above a hundredth of its limit: at c = 0 no W with g lmax(W) > 0 is left.
        c = self.radius * torch.sigmoid(s64).clamp(min=0.01)
        return bounded_gram(E64, self.bound * n**0.5) + SMALLEST_R * eye, c.sqrt()
