"""Effective depth: how many residual factors at once contribute to the gradient through a chain.

Split every layer's Jacobian into a part that counts as shallow and a residual, J_t = S_t + R_t:

    skip connection, Euler step: S = I, or (1 - h) I         trained MLP: S from the initial weights

Expanding J_L ... J_1, let C_k be the sum of all products with exactly k residual factors. Exact, layer
by layer, without the 2^L products:

    C_k <- C_k S_t + C_{k-1} R_t,        C_0 = I, from the last layer to the first

The effective depth is the largest k with ||sum_{j >= k} C_j^T g|| > tol ||sum_j C_j^T g|| for a gradient
g at the output: cutting off all terms with more residual factors changes the whole by no more than tol.
With the rows of I for g it is that of the Jacobian in Frobenius' norm.

Cost: O(L^2) products with S and R; memory O(L).

Source: Philipp, Song and Carbonell 2017 (arXiv 1712.05577) for the idea, which they define in words;
the precise form with a tolerance is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.linearise import linearise_along, prepare
from ctrnn_assembly.errors import ConfigError

# V (terms, ...) at a layer's output -> (S^T V, R^T V) at its input
VJPs = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EffectiveDepth:
    """What residual products contribute.

    Attributes:
        depth: 0 to L.
        shares: ||sum_{j >= k} C_j^T g|| / ||sum_j C_j^T g|| for k = 0..L, (L + 1,) in float64; above 1
            where the terms cancel each other, infinite or NaN if the whole vanishes.
    """

    depth: int
    shares: Tensor


def effective_depth_of_gradient(vjps: Sequence[VJPs], g: Tensor, *, tol: float = 1e-6) -> EffectiveDepth:
    """Effective depth of the gradient (S_1 + R_1)^T ... (S_L + R_L)^T g.

    Args:
        vjps: for each layer, the first layer first, V -> (S^T V, R^T V) with V (terms, ...) shaped
            as the gradient at its output, behind a dimension of terms.
        g: the gradient at the last layer's output, any shape. tol: what counts as nothing, in (0, 1).

    Example:
        >>> effective_depth_of_gradient([lambda V: (V, 0.1 * V)] * 50, torch.ones(2)).depth
        17
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
    return EffectiveDepth(int(above.max()) if len(above) else 0, tails / tails[0])


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
        u: samples, (time, m). g: the gradient at the last state, (n,). x0: first state, (n,).
    """
    x0 = g.new_zeros(len(g)) if x0 is None else x0
    known, samples, x = prepare(net, u, x0, "(time, m)", "x0 (n,)")
    assert samples is not None
    steps = linearise_along(known.step_map(dt, solver), samples[:, None], x)
    vjps: list[VJPs] = [lambda V, back=here.transposed: (V, back(V) - V) for here in steps]
    return effective_depth_of_gradient(vjps, g.detach().cpu()[None], tol=tol)
