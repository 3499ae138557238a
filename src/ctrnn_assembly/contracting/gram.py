"""Positive semidefinite matrices of bounded size, for Theorems 2 and 3: E E^T / n, squashed.

Without a bound, the rounding of float32 weights could exceed the margin of the theorem.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bounded_gram(E: Tensor, limit: float) -> Tensor:
    """G / (1 + ||G||_F / limit) for G = E E^T / n: ||.||_F < limit for every finite E, (n, n)."""
    # Normalised before the product: a diverging E would overflow E E^T.
    size = E.detach().abs().max().clamp(min=1.0)
    G = (E / size) @ (E / size).mT / E.shape[0]
    return G / (size**-2 + torch.linalg.matrix_norm(G) / limit)


def gram_root(values: Tensor, vectors: Tensor, limit: float) -> Tensor | None:
    """An E whose bounded gram has these eigenvalues and eigenvectors; None if no E has."""
    share = float(values.norm()) / limit
    if share >= 1 or float(values.min()) <= 0:
        return None
    return (vectors * (values / (1 - share)).mul(len(values)).sqrt()) @ vectors.mT
