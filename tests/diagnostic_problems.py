"""Fields in closed form for the tests of the diagnostics."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Elementwise, activation
from ctrnn_assembly.terms import Terms
from solver_problems import normal


def field(
    W: Tensor,
    phi: str = "identity",
    *,
    form: str = "x",
    bias: Tensor | None = None,
    tau: Tensor | None = None,
    L: Tensor | None = None,
    W_in: Tensor | None = None,
) -> Terms:
    """One module of any weights, in float64."""
    n = len(W)
    maps = (
        Elementwise(((activation(phi), n),)),
        Elementwise(((ACTIVATIONS["identity"], n),)),
    )
    pre, post = maps if form == "x" else maps[::-1]
    return Terms(
        (W.double(),),
        pre,
        post,
        torch.zeros(n) if bias is None else bias,
        torch.ones(n) if tau is None else tau,
        L=L,
        W_in=W_in,
    )


def skew(n: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """A random skew matrix, (n, n)."""
    K = normal(n, n, seed=seed, scale=scale)
    return K - K.mT


def rotation(omega: float) -> Tensor:
    """L = [[0, -omega], [omega, 0]]."""
    return omega * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
