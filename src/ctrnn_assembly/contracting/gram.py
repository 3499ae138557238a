"""Positive definite matrices of bounded size for Theorems 2 and 3: shift I + E E^T / n, squashed.

Without a bound, the rounding of float32 weights could exceed the margin of the theorem.
"""

import torch
from torch import Tensor


def bounded_gram(E: Tensor, shift: float, bound: float) -> Tensor:
    """shift I + G / (1 + ||G||_F / l) for G = E E^T / n and l = bound sqrt(n): G's part is below l."""
    n = E.shape[0]
    # Normalised before the product: a diverging E would overflow E E^T.
    size = E.detach().abs().max().clamp(min=1.0)
    G = (E / size) @ (E / size).mT / n
    squashed = G / (size**-2 + torch.linalg.matrix_norm(G) / (bound * n**0.5))
    return squashed + shift * torch.eye(n, dtype=E.dtype, device=E.device)


def gram_root(values: Tensor, vectors: Tensor, shift: float, bound: float) -> Tensor | None:
    """An E whose bounded gram has these eigenvalues and eigenvectors; None if no E has."""
    n, rest = len(values), values - shift
    share = float(rest.norm()) / (bound * n**0.5)
    if share >= 1 or float(rest.min()) <= 0:
        return None
    return (vectors * (rest / (1 - share)).mul(n).sqrt()) @ vectors.mT
