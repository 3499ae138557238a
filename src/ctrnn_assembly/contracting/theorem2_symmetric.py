"""Theorem 2: W = W^T with g W < I.

Parametrisation without eigenvalues: for R > 0 symmetric and c in (0, 1),

    g W = 2 sqrt(c) R - R^2 = c I - (R - sqrt(c) I)^2 <= c I,

with metric M = R^-2 for the x-form (R^2 for the r-form) and rate 1 - c, the best possible. R is bounded,
so that the rounding of float32 weights cannot exceed the margin.
Source: Kozachkov et al. 2022, Theorem 2 (arXiv 2106.08928); metric and rate from THEORY section 2.
"""

import torch
from torch import Tensor

from ctrnn_assembly.contracting.interface import Contracting, Form
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.metrics import Factor

# R >= SMALLEST_R keeps cond(M) = cond(R)^2 finite.
SMALLEST_R = 0.05
LARGEST_R = 2.0  # ||R - SMALLEST_R I||_F < LARGEST_R sqrt(n)


class Symmetric(Contracting):
    """Theorem 2: W = W^T with g W < I; raw tensors E (n, n) and s (1,), the logit of c / (1 - margin).

    Guarantee: rate (1 - c) / tau >= margin / tau for every phi with slopes in [0, g].

    >>> W = torch.tensor([[0.5, 0.0], [0.0, -2.0]])  # only positive eigenvalues cost
    >>> 0.25 < certify(Subnetwork(Symmetric(), 2, weight=W), search="none").rate < 0.5
    True
    """

    theorem = "Theorem 2"
    monotone_only = True
    axes = "nn", "1"
    init_scale = 0.5  # standard deviation of E, of which the set takes E E^T / n

    def weight(self, E: Tensor, s: Tensor) -> Tensor:  # type: ignore[override]
        R = bounded_gram(E, SMALLEST_R, LARGEST_R)
        # c stays above a hundredth of its limit: at c = 0 no W with g lmax(W) > 0 is left.
        c = self.radius * torch.sigmoid(s)[..., None].clamp(min=0.01)
        return symmetric_part((2 * c.sqrt() * R - R @ R) / self.phi.g)

    def raw(self, W: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.phi.g * symmetric_part(W))
        if (top := float(values[-1])) >= self.radius:
            raise self.outside(f"g lmax(W) < {self.radius:.6g}", top, "Scale W down.")
        c = max(0.5 * (top + self.radius), 0.25 * self.radius)
        roots = c**0.5 + (c - values).clamp(min=0).sqrt()  # eigenvalues of R
        E = gram_root(self, "R", (roots, vectors), SMALLEST_R, LARGEST_R)
        return E, torch.logit(W.new_tensor([c / self.radius]))

    def metric(self, *raw: Tensor, form: Form) -> Factor:
        R = bounded_gram(raw[0], SMALLEST_R, LARGEST_R)
        x_form = Factor.dense(torch.linalg.inv(R), R)
        return x_form if form == "x" else x_form.inverse()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self(torch.randn(n, n, generator=generator) * self.init_scale, torch.zeros(1))


def bounded_gram(E: Tensor, shift: float, bound: float) -> Tensor:
    """shift I + G / (1 + ||G||_F / l) for G = E E^T / n and l = bound sqrt(n): G's part is below l."""
    n = E.shape[-1]
    # Normalised before the product: a diverging E would overflow E E^T.
    size = E.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1.0)
    G = (E / size) @ (E / size).mT / n
    squashed = G / (size**-2 + torch.linalg.matrix_norm(G, keepdim=True) / (bound * n**0.5))
    return squashed + shift * torch.eye(n, dtype=E.dtype, device=E.device)


def gram_root(
    rule: Contracting, name: str, pair: tuple[Tensor, ...], shift: float, bound: float
) -> Tensor:
    """An E whose bounded gram has these eigenvalues and eigenvectors, or an error of the `rule`."""
    values, vectors = pair
    n, rest = len(values), values - shift
    size, least = float(rest.norm()), float(values.min())
    if not least > shift:
        raise rule.outside(f"{name} > {shift} I", least, "It is the least eigenvalue; rescale W.")
    if not (share := size / (bound * n**0.5)) < 1:
        raise rule.outside(f"||{name} - {shift} I||_F < {bound} sqrt(n)", size, "Scale W down.")
    return (vectors * (rest / (1 - share)).mul(n).sqrt()) @ vectors.mT
