"""Gradients back through a chain of layers or times: how they scale, and how deep they really go.

The gradient scale coefficient says how a relative change grows between an earlier place k and l:

    GSC(k, l) = ||J||_qm |f_k| / |f_l|,    J = df_l / df_k,    ||J||_qm = ||J||_F / sqrt(columns of J)

Gradients "explode" if log GSC is linear in depth. A batch counts as one vector, the only correct form if
samples are coupled (batch norm). Exact values cost a Jacobian product of the batch, about a backward
pass, for each of the n features at the output, or B n if the B samples are coupled; an estimate takes
`probes` of random signs (Hutchinson).

The effective depth says how many residual factors at once contribute to the gradient: with each layer's
Jacobian J_t = S_t + R_t, C_k sums all products in J_L ... J_1 with exactly k residual factors R,

    C_k <- C_k S_t + C_{k-1} R_t,        C_0 = I, from the last layer to the first,

and it is the largest k with ||sum_{j >= k} C_j^T g|| > tol ||sum_j C_j^T g|| for a gradient g at the
output. Cost: O(L^2) products.

Source: Philipp, Song and Carbonell 2017 (arXiv 1712.05577), who define the effective depth in words; the
form with a tolerance is ours (THEORY section 9). Not done: values below 1e-154, whose square is 0.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ctrnn_assembly.diagnostics.linearise import linearise_along, prepare, vjp
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError, check_within

Layer = Callable[[Tensor], Tensor]
VJP = Callable[[Tensor], Tensor]  # V, (m, B, ...) at a layer's output, to V J at its input
VJPs = Callable[[Tensor], tuple[Tensor, Tensor]]  # V (terms, ...) for a g (...), to (S^T V, R^T V)

CHUNK = 2**18  # numbers in a block of vectors: small enough for a cache


@dataclass(frozen=True)
class GradientScale:
    """GSC at the points of a chain: its layers 0 (the input) to L, or its times 0 to T.

    Attributes:
        value: GSC, (points,); NaN where the states are 0, as initial ones may be.
        jacobian, size: ||J||_qm, and |f|, a root mean square over the batch; as `value`.
        standard_error: of `value`, of first order; None if exact.
        points: layer or time of each entry. products: Jacobian products of the whole batch.
    """

    value: Tensor
    jacobian: Tensor
    size: Tensor
    standard_error: Tensor | None
    points: tuple[int, ...]
    products: int


def gsc(
    layers: Sequence[Layer] | nn.Sequential,
    x: Tensor,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> GradientScale:
    """GSC(k, L), k = 0..L, over the depth of a chain f_l = layers[l - 1](f_{l-1}), f_0 = x.

    Put dropout in eval mode; batch norm is taken as it is, by the batch in training mode. The layers,
    callables (B, ...) -> (B, ...), are copied and stay as they are. `probes` random signs, at least 2,
    give an estimate; None the exact value.
    """
    if x.ndim < 2 or not x.numel() or not x.is_floating_point():
        raise ShapeError(f"x must be a floating-point (B, ...); got {tuple(x.shape)}, {x.dtype}.")
    states, products = [_checked_state(x.detach(), x, 0)], list[VJP]()
    for layer in _copied(layers):
        with torch.enable_grad():
            f = states[-1].requires_grad_()
            y = layer(f.clone())  # a copy: the layer may work in place
        products.insert(0, partial(vjp, y, f))
        states.append(_checked_state(y.detach(), x, len(states)))
    coupled = probes is None and _couples_samples(states, products)
    states, points = [f.detach() for f in states], range(len(states))
    return _scale(states, products, points, coupled, probes, generator)


@torch.no_grad()
def gsc_over_time(
    net: Any,
    u: Tensor,
    x0: Tensor | None = None,
    *,
    dt: float | None = None,
    solver: str | None = None,
    every: int = 1,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> GradientScale:
    """GSC(t, T) of a recurrent net: the state after its step T by that after step t.

    Args:
        u: samples, (batch, T, m). x0: (batch, n); by default where it starts; GSC(0, T) is NaN at 0.
        every: GSC at t = 0, every, 2 every, ..., T; all else as in `gsc`.

    >>> gsc_over_time(lambda u, x: x**2, torch.zeros(1, 3, 1), torch.ones(1, 2)).value
    tensor([8., 4., 2., 1.], dtype=torch.float64)
    """
    check_within("[1, inf)", "Use every=1 for all steps.", every=every)
    known, samples, x = prepare(net, u, x0, "(batch, time, m)", "x0 (batch, n)")
    assert samples is not None
    states, products = [x], list[VJP]()
    for here in linearise_along(known.step_map(dt, solver), samples.unbind(1), x):
        states.append(_checked_state(here.value, x, len(states)))
        products.insert(0, here.transposed)
    times = (*range(0, len(products), every), len(products))
    return _scale(states, products, times, False, probes, generator)


def effective_depth_of_gradient(
    vjps: Sequence[VJPs], g: Tensor, *, tol: float = 1e-6
) -> tuple[int, Tensor]:
    """Of the gradient (S_1 + R_1)^T ... (S_L + R_L)^T g; vjps from the first layer to the last.

    Returns: the depth, 0 to L, and ||sum_{j >= k} C_j^T g|| / ||sum_j C_j^T g||, k = 0..L, in float64:
        above 1 where terms cancel each other, infinite or NaN if the whole vanishes.

    >>> effective_depth_of_gradient([lambda V: (V, 0.1 * V)] * 50, torch.ones(2))[0]
    17
    """
    check_within("(0, 1)", "Use tol=1e-6.", tol=tol)
    if not len(vjps):
        raise ConfigError("vjps must have at least one layer; got none. Pass one a layer.")
    C = g.to(torch.float64)[None]
    for split in reversed(vjps):
        shallow, residual = split(C)
        nothing = torch.zeros_like(shallow[:1])
        C = torch.cat([shallow, nothing]) + torch.cat([nothing, residual])
        largest = C.abs().max()  # only ratios matter: scaled against overflow
        C = C / largest if 0 < float(largest) < float("inf") else C
    tails = C.flatten(1).flip(0).cumsum(0).flip(0).norm(dim=1)
    above = (tails > tol * tails[0]).nonzero()
    return int(above.max()) if len(above) else 0, tails / tails[0]


def _copied(layers: Sequence[Layer] | nn.Sequential) -> list[Layer]:
    """The layers with modules copied: without gradients of weights or running statistics to update."""
    if not isinstance(layers, (Sequence, nn.Sequential, nn.ModuleList)) or not len(layers):
        must = "layers must be a non-empty list of callables or nn.Sequential"
        raise ConfigError(f"{must}; got {type(layers).__name__}. Pass [layer_1, layer_2, ...].")
    copies = [deepcopy(layer) if isinstance(layer, nn.Module) else layer for layer in layers]
    for part in nn.ModuleList(copy for copy in copies if isinstance(copy, nn.Module)).modules():
        part.requires_grad_(False)
        if isinstance(part, _BatchNorm) and part.training:
            part.track_running_stats = False  # use the batch
    return copies


def _checked_state(f: Tensor, x: Tensor, k: int) -> Tensor:
    if f.ndim < 2 or len(f) != len(x):
        raise ShapeError(f"layer {k} must give (B, ...) with B = {len(x)}; got {tuple(f.shape)}.")
    if not bool(torch.isfinite(f).all()):
        raise DataError(f"f_{k} must be finite; got NaN or infinite values. Scale net or x down.")
    return f


def _couples_samples(states: Sequence[Tensor], products: Sequence[VJP]) -> bool:
    """Whether some layer's first half of outputs has a gradient by its second half of inputs."""
    half = len(states[0]) // 2
    for out, product in zip(states[:0:-1], products, strict=True):
        signs = torch.ones_like(out).flatten(1)
        signs[:, ::2] = -1  # a normalised layer's outputs may add up to a constant
        signs[half:] = 0
        if half and bool((product(signs.view(1, *out.shape))[0, half:] != 0).any()):
            return True
    return False


def _blocks(
    at: Tensor, total: int, coupled: bool, random: bool, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Random signs, or unit vectors, one for all samples unless they are coupled: (m, B, ...) each."""
    rows = max(1, CHUNK // at.numel())
    for start in range(0, total, rows):
        m = min(rows, total - start)
        if random:
            device = at.device if generator is None else generator.device
            bits = torch.randint(2, (m, *at.shape), generator=generator, device=device)
            yield bits.to(at) * 2 - 1
            continue
        block = at.new_zeros(m, total)
        block.diagonal(start).fill_(1)
        block = block if coupled else block[:, None].expand(m, len(at), total)
        yield block.reshape(m, *at.shape)


def _propagate(products: Sequence[VJP], blocks: Iterable[Tensor], keep: bool) -> Tensor:
    """|V|^2 before and after each product, (points, m, B): every random draw, or their sum (m = 1)."""
    found: list[Tensor] = []
    for V in blocks:
        energies = [_energy(V)]
        scale = energies[0].new_ones(len(V), 1)
        for product in products:
            V = product(V)
            energy = _energy(V)
            energies.append(energy * scale.square())
            size = energy.sum(1, keepdim=True).sqrt()
            size = torch.where(torch.isfinite(size) & (size > 0), size, 1.0)  # products are linear
            V, scale = V / size.to(V).view(-1, *[1] * (V.ndim - 1)), scale * size
        part = torch.stack(energies)
        found.append(part if keep else part.sum(1, keepdim=True))
    return torch.cat(found, dim=1) if keep else torch.stack(found).sum(0)


def _energy(V: Tensor) -> Tensor:
    """Squared norms of V (m, B, ...), (m, B), in float64 where there is one."""
    wide = V.dtype if V.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(V.flatten(2), dim=2, dtype=wide).square()


def _scale(
    states: Sequence[Tensor],
    products: Sequence[VJP],
    points: Sequence[int],
    coupled: bool,
    probes: int | None,
    generator: torch.Generator | None,
) -> GradientScale:
    """The coefficients at points of a chain, from its states and, the last one first, its products."""
    check_within("[2, inf)", "Use None for the exact value.", probes=2 if probes is None else probes)
    last, is_random = states[-1], probes is not None
    total = probes or last[0].numel() * (len(last) if coupled else 1)
    blocks = _blocks(last, total, coupled, is_random, generator)
    draws = _propagate(products, blocks, is_random).flip(0)[list(points)]  # (points, m, B)
    sizes = torch.stack([_energy(states[k][None]).mean() for k in points])  # (points,)
    columns = draws.new_tensor([states[k][0].numel() for k in points])
    ratio = torch.where((sizes > 0) & (sizes[-1] > 0), sizes / sizes[-1], float("nan"))
    squares = draws.mean(2) / columns[:, None]  # of ||J||_qm
    mean, m = squares.mean(-1), squares.shape[-1]
    value, error = (mean * ratio).sqrt(), None
    if m > 1:
        error = torch.where(value > 0, squares.std(-1) / m**0.5 * ratio / (2 * value), value)
    return GradientScale(value, mean.sqrt(), sizes.sqrt(), error, tuple(points), total)
