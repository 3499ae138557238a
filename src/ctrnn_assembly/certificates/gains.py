"""Lipschitz constants of what leads into a field and out of it, distances of states in diag(tau) M.

Theta is the factor of diag(tau) M: an input matrix W_in has the norm of Theta C W_in for a step with the
pair (A, C), and a readout the norm of W_out Theta^-1. Rounding is accounted for.

Source: THEORY sections 11 and 13.
"""

import torch
from torch import Tensor

from ctrnn_assembly.certificates.rounding import Balance, spectral_norm
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms

FORMED = 1e-10  # relative to the norms of its factors: more than the rounding of any matrix here


def norm_bound(A: Tensor) -> float:
    """Verified, of A in float64 and all within FORMED ||A||_F of it."""
    A = A.detach().cpu().double()
    return spectral_norm(A, FORMED * float(A.norm()))


def entering(terms: Terms, metric: Metric, C: Tensor, W_in: Tensor) -> float:
    """||Theta C D W_in|| over the slopes D of post, for C (n, n) or its diagonal, (n,)."""
    theta = metric.scaled(terms.tau.sqrt()).theta()
    moved, g = theta @ (C.diag() if C.ndim == 1 else C), terms.post.g
    size = FORMED * float(theta.norm() * C.norm())
    if terms.post.is_identity or (C.ndim == 1 and metric.is_diagonal):  # D stands at the left, too
        return g * spectral_norm(moved @ W_in, size * float(W_in.norm()))
    return g * spectral_norm(moved, size) * norm_bound(W_in)


def leaving(terms: Terms, metric: Metric, W_out: Tensor) -> tuple[Tensor, float]:
    """W_out Theta^-1, (k, n), and a bound on its error."""
    made, off = [], 0.0
    columns, taus = (A.cpu().double().split(terms.sizes, -1) for A in (W_out, terms.tau))
    for W, factor, tau in zip(columns, metric.factors, taus, strict=True):
        balance = Balance.of(factor.theta.cpu().double(), tau)
        rows, error = balance.raise_(W)
        made.append(rows * (1 + balance.skew))
        off += float(error.norm())
    return torch.cat(made, 1), off
