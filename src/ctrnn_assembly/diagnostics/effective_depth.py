"""Effective depth: how many residual factors at once contribute to a chain's Jacobian or gradient.

Split every layer's Jacobian into a part that counts as shallow and a residual, J_t = S_t + R_t:

    skip connection, Euler step: S = I, or (1 - h) I         trained MLP: S from the initial weights

Expanding J_L ... J_1, let C_k be the sum of all products with exactly k residual factors. Exact, layer
by layer, without the 2^L products:

    C_k <- C_k S_t + C_{k-1} R_t,        C_0 = I, from the last layer to the first

The effective depth is the largest k with ||sum_{j >= k} C_j|| > tol ||sum_j C_j||: cutting off all
terms with more residual factors changes the whole by no more than tol. The norm is Frobenius' for the
matrix, and Euclid's for a gradient g, which stands for I: C_k^T g.

Cost: O(L^2) products with S and R; O(L^2 d^3) for matrices, O(L^2 d^2) for a gradient; memory O(L).

Source: Philipp, Song and Carbonell 2017 (arXiv 1712.05577) for the idea, which they define in words;
the precise form with a tolerance is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.linearise import Linearisation, behaviour, linearise
from ctrnn_assembly.errors import ConfigError, ShapeError

# V (terms, ...) at a layer's output -> (S^T V, R^T V) at its input
VJPs = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EffectiveDepth:
    """What residual products contribute.

    Attributes:
        depth: the effective depth, 0 to L.
        shares: ||sum_{j >= k} C_j|| / ||sum_j C_j|| for k = 0..L, (L + 1,) in float64; above 1 where
            the terms cancel each other, infinite or NaN if the whole vanishes.
        tol: the tolerance of `depth`.
    """

    depth: int
    shares: Tensor
    tol: float


def effective_depth(
    S: Sequence[Tensor] | Tensor,
    R: Sequence[Tensor] | Tensor,
    g: Tensor | None = None,
    *,
    tol: float = 1e-6,
) -> EffectiveDepth:
    """Effective depth of the product (S_L + R_L) ... (S_1 + R_1), or of a gradient through it.

    Args:
        S, R: the two parts of each layer's Jacobian, the first layer first, (..., n_t, n_{t-1});
            leading dimensions, such as samples, count as blocks of one Jacobian.
        g: the gradient at the output, (..., n_L) with the same leading dimensions.
        tol: what counts as nothing, in (0, 1).

    Raises:
        ShapeError: if the two differ in number or shape, or neighbours do not fit.
        ConfigError: if there is no layer, or tol is out of range.

    Example:
        >>> eye = torch.eye(2).expand(50, 2, 2)
        >>> effective_depth(eye, 0.1 * eye).depth
        17
    """
    pairs = _checked_pairs(S, R)
    last = pairs[-1][0]
    eye = torch.eye(last.shape[-2], dtype=last.dtype, device=last.device)
    rows = eye.expand(*last.shape[:-2], -1, -1) if g is None else g[..., None, :]
    vjps = [lambda V, s=s, r=r: (V @ s, V @ r) for s, r in pairs]
    return effective_depth_of_gradient(vjps, rows, tol=tol)


def effective_depth_of_gradient(vjps: Sequence[VJPs], g: Tensor, *, tol: float = 1e-6) -> EffectiveDepth:
    """Effective depth of the gradient (S_1 + R_1)^T ... (S_L + R_L)^T g.

    Args:
        vjps: for each layer, the first layer first, V -> (S^T V, R^T V) with V (terms, ...) shaped
            as the gradient at its output, behind a dimension of terms. Layers that couple samples
            (batch norm) need this form.
        g: the gradient at the last layer's output, any shape.
        tol: what counts as nothing, in (0, 1).

    Raises:
        ConfigError: if there is no layer, or tol is out of range.
    """
    if not 0 < tol < 1:
        raise ConfigError(f"tol must lie between 0 and 1; got {tol}. Use tol=1e-6.")
    if not len(vjps):
        raise ConfigError("vjps must have at least one layer; got none. Pass one a layer.")
    C = g.to(torch.float64)[None]
    for vjp in reversed(vjps):
        shallow, residual = vjp(C)
        nothing = torch.zeros_like(shallow[:1])
        C = torch.cat([shallow, nothing]) + torch.cat([nothing, residual])
        largest = C.abs().max()  # only ratios matter: scaled against overflow
        C = C / largest if 0 < float(largest) < float("inf") else C
    tails = C.flatten(1).flip(0).cumsum(0).flip(0).norm(dim=1)
    above = (tails > tol * tails[0]).nonzero()
    return EffectiveDepth(int(above.max()) if len(above) else 0, tails / tails[0], tol)


@torch.no_grad()
def effective_depth_over_time(
    net: Any,
    u: Tensor,
    g: Tensor,
    x0: Tensor | None = None,
    *,
    dt: float | None = None,
    solver: str | None = None,
    tol: float = 1e-6,
) -> EffectiveDepth:
    """Effective depth of a gradient back through the steps of one sequence, S = I and R = step - I.

    Args:
        net: see `linearise`. u: samples, (time, m). g: the gradient at the last state, (n,).
        x0: first state, (n,); by default 0.
        dt, solver: the step, by default the net's own.
        tol: what counts as nothing, in (0, 1).

    Raises:
        ConfigError, ShapeError, DataError: for arguments that do not fit.
    """
    known = behaviour(net, size=len(g))
    step, samples = known.step_map(dt, solver), known.inputs(u, "(time, m)")
    assert samples is not None
    x = known.states((torch.zeros(known.size) if x0 is None else x0)[None])
    vjps: list[VJPs] = []
    for sample in samples[:, None]:
        here = linearise(step, sample, x)
        vjps.append(partial(_skip_and_residual, here))
        x = here.value
    return effective_depth_of_gradient(vjps, g.detach().cpu(), tol=tol)


def _skip_and_residual(here: Linearisation, V: Tensor) -> tuple[Tensor, Tensor]:
    """V and (J^T - I) V, for V (terms, n)."""
    return V, here.transposed(V[None])[0] - V


def _checked_pairs(
    S: Sequence[Tensor] | Tensor, R: Sequence[Tensor] | Tensor
) -> list[tuple[Tensor, Tensor]]:
    """(S_t, R_t) in float64."""
    if len(S) != len(R) or not len(S):
        raise ConfigError(f"S and R need one matrix a layer each; got {len(S)} and {len(R)}.")
    pairs = [(s.to(torch.float64), r.to(torch.float64)) for s, r in zip(S, R, strict=True)]
    for t, (s, r) in enumerate(pairs):
        before = pairs[t - 1][0].shape[-2] if t and s.ndim > 1 else s.shape[-1]
        if s.ndim < 2 or s.shape != r.shape or s.shape[-1] != before:
            raise ShapeError(
                f"S[{t}] and R[{t}] must be (..., n, {before}) alike; got {tuple(s.shape)} and "
                f"{tuple(r.shape)}. Give the first layer first."
            )
    return pairs
