"""Gradients back through a chain of layers or times: how they scale, and how deep they really go.

The gradient scale coefficient says how a relative change grows between two places:

    GSC(k, l) = ||J||_qm |f_k| / |f_l|,    J = df_l / df_k,    ||J||_qm = ||J||_F / sqrt(columns of J)

k is the earlier place, farther from the loss. ||J||_qm is the root mean square of |J v| over random
unit vectors v, so the GSC is the relative change of f_l for a random relative change of f_k. Gradients
"explode" if log GSC is linear in depth. For a contracting recurrent net whose step has the factor q in
the metric M, ||J||_qm <= sqrt(cond M) q^(T - t).

A batch counts as one vector, which is the only correct form if samples are coupled (batch norm); if they
are not, it is sqrt(mean ||J_b||_qm^2) sqrt(mean |f_k|^2) / sqrt(mean |f_l|^2).

Cost: exact values take n Jacobian products of the batch (n features at the output), or B n if its B
samples are coupled, each about a backward pass; the estimate takes `probes`, whatever n is:
E |u^T J|^2 = ||J||_F^2 for random signs u (Hutchinson), unbiased for the square of the GSC.

The effective depth says how many residual factors at once contribute to the gradient. Split every
layer's Jacobian into a part that counts as shallow and a residual, J_t = S_t + R_t:

    skip connection, Euler step: S = I, or (1 - h) I         trained MLP: S from the initial weights

Expanding J_L ... J_1, let C_k be the sum of all products with exactly k residual factors. Exact, layer
by layer, without the 2^L products:

    C_k <- C_k S_t + C_{k-1} R_t,        C_0 = I, from the last layer to the first

The effective depth is the largest k with ||sum_{j >= k} C_j^T g|| > tol ||sum_j C_j^T g|| for a gradient
g at the output: cutting off all terms with more residual factors changes the whole by no more than tol.
With the rows of I for g it is that of the Jacobian in Frobenius' norm. Cost: O(L^2) products with S and
R; memory O(L).

Source: Philipp, Song and Carbonell 2017 (arXiv 1712.05577), who define the effective depth in words; the
precise form with a tolerance is ours. A report of 2018 on its reproducibility prints the GSC once with
and once without the square: `squared`. Not done: sparse Jacobians; values below 1e-154, whose square is
0 in float64.
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
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError

Layer = Callable[[Tensor], Tensor]
VJP = Callable[[Tensor], Tensor]  # V, (m, B, ...) at a layer's output, to V J at its input
VJPs = Callable[[Tensor], tuple[Tensor, Tensor]]  # V (terms, ...), to (S^T V, R^T V)

CHUNK = 2**18  # numbers in a block of vectors: small enough for a cache
FAR = 1e9  # vectors shorter than 1 / FAR or longer are rescaled, before single precision runs out


@dataclass(frozen=True)
class GradientScale:
    """GSC at the points of a chain: its layers 0 (the input) to L, or its times 0 to T.

    Attributes:
        value: GSC, or its square, (points,), or (batch, points) for single samples. NaN where |f_k| = 0
            (a zero initial state) or |f_l| = 0.
        jacobian, size: ||J||_qm, never squared, and |f| as a root mean square over the batch, or of the
            sample; as `value`.
        standard_error: of `value`; None if exact. That of the square is unbiased, that of the root is
            its first-order approximation.
        points: layer or time of each entry. products: Jacobian products of the whole batch.
    """

    value: Tensor
    jacobian: Tensor
    size: Tensor
    standard_error: Tensor | None
    points: tuple[int, ...]
    products: int


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


def gsc(
    layers: Sequence[Layer] | nn.Sequential,
    x: Tensor,
    *,
    per_sample: bool = False,
    squared: bool = False,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> GradientScale:
    """GSC(k, L), k = 0..L, over the depth of a chain f_l = layers[l - 1](f_{l-1}), f_0 = x.

    For any other pair (k, l) pass `layers[k:l]` and f_k. Put dropout in eval mode; batch norm is
    taken as it is, by the batch in training mode. The layers are copied and stay as they are.

    Args:
        layers: callables (B, ...) -> (B, ...). x: input, floating point, (B, ...).
        per_sample: one value for each sample; refused if layers couple the samples.
        squared: return GSC^2.
        probes: random signs to estimate from, at least 2; None for the exact value.
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
    coupled = (per_sample or probes is None) and _couples_samples(states, products)
    if per_sample and coupled:
        raise ConfigError(
            "per_sample needs layers that treat samples apart; got layers that couple them, as "
            "batch norm in training mode does. Use per_sample=False, or call eval()."
        )
    states, points = [f.detach() for f in states], range(len(states))
    return _scale(states, products, points, coupled, per_sample, squared, probes, generator)


@torch.no_grad()
def gsc_over_time(
    net: Any,
    u: Tensor,
    x0: Tensor | None = None,
    *,
    dt: float | None = None,
    solver: str | None = None,
    every: int = 1,
    per_sample: bool = False,
    squared: bool = False,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> GradientScale:
    """GSC(t, T) of a recurrent net: how gradients grow or fade from the last step back to step t.

    The state after step T by that after step t, through the net's own steps: prod (I + h J_t) for
    forward Euler. An LSTM's state is (h, c) as one vector.

    Args:
        u: samples, (batch, T, m). x0: initial states, (batch, n); zero if None: GSC(0, T) is then NaN.
        every: GSC at the `points` t = 0, every, 2 every, ..., T; all else as in `gsc`.
    """
    if every < 1:
        raise ConfigError(f"every must be at least 1; got {every}. Use every=1 for all steps.")
    known, samples, x = prepare(net, u, x0, "(batch, time, m)", "x0 (batch, n)")
    assert samples is not None
    states, products = [x], list[VJP]()
    for here in linearise_along(known.step_map(dt, solver), samples.unbind(1), x):
        states.append(_checked_state(here.value, x, len(states)))
        products.insert(0, here.transposed)
    times = (*range(0, len(products), every), len(products))
    return _scale(states, products, times, False, per_sample, squared, probes, generator)


def effective_depth_of_gradient(vjps: Sequence[VJPs], g: Tensor, *, tol: float = 1e-6) -> EffectiveDepth:
    """Effective depth of the gradient (S_1 + R_1)^T ... (S_L + R_L)^T g.

    Args:
        vjps: for each layer, the first one first, V -> (S^T V, R^T V); V is (terms, ...) for a g (...).
        tol: what counts as nothing, in (0, 1).

    Example:
        >>> effective_depth_of_gradient([lambda V: (V, 0.1 * V)] * 50, torch.ones(2)).depth
        17
    """
    if not 0 < tol < 1:
        raise ConfigError(f"tol must lie between 0 and 1; got {tol}. Use tol=1e-6.")
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

    def split(back: VJP, V: Tensor) -> tuple[Tensor, Tensor]:
        return V, back(V) - V

    steps = linearise_along(known.step_map(dt, solver), samples[:, None], x)
    vjps = [partial(split, here.transposed) for here in steps]
    return effective_depth_of_gradient(vjps, g.detach().cpu()[None], tol=tol)


def preactivation_statistics(preactivations: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Standard deviation and sign diversity of what each nonlinearity sees, (layers,) each.

    Over observations of (B, ...), B >= 2, for each layer. Deviation: the root of the units' mean
    variance. Diversity: the units' mean of min(P, N) / (P + N), P positive and N negative values; 0.5 at
    best, and 0 for units that never change sign, or are always 0.
    """
    deviation, diversity = [], []
    for k, z in enumerate(preactivations):
        if z.ndim < 2 or len(z) < 2:
            raise ShapeError(f"preactivations[{k}] must be (B, ...) with B >= 2; got {tuple(z.shape)}.")
        units = z.detach().flatten(1)
        positive, negative = (units > 0).sum(0), (units < 0).sum(0)
        deviation.append(units.var(0, correction=0).mean().sqrt())
        share = torch.minimum(positive, negative) / (positive + negative).clamp(min=1)
        diversity.append(share.mean().to(z))
    return torch.stack(deviation), torch.stack(diversity)


def _copied(layers: Sequence[Layer] | nn.Sequential) -> list[Layer]:
    """The layers with modules copied: without gradients of weights or running statistics to update."""
    if not isinstance(layers, (Sequence, nn.Sequential, nn.ModuleList)) or not len(layers):
        raise ConfigError(
            "layers must be a non-empty list of callables or nn.Sequential; got "
            f"{type(layers).__name__}. Pass [layer_1, layer_2, ...]."
        )
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
    """Whether a layer's output for some sample depends on another sample, as with batch norm.

    The gradient of the first half of the outputs by the second half of the inputs is exactly zero if
    samples are treated apart.
    """
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
    """Vectors at one end of the chain, (m, B, ...) like `at`: random signs, or all unit vectors.

    If samples are not coupled, one block row holds the same unit vector for every sample.
    """
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
        scale = energies[0].new_ones(len(V))
        for product in products:
            V = product(V)
            energy = _energy(V)
            energies.append(energy * scale[:, None].square())
            size = energy.sum(1).sqrt()
            far = torch.isfinite(size) & (size > 0) & ((size > FAR) | (size * FAR < 1))
            if bool(far.any()):  # products are linear
                factor = torch.where(far, size, 1.0)
                V, scale = V / factor.to(V).view(-1, *[1] * (V.ndim - 1)), scale * factor
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
    per_sample: bool,
    squared: bool,
    probes: int | None,
    generator: torch.Generator | None,
) -> GradientScale:
    """The coefficients at points of a chain, from its states and, the last one first, its products."""
    if probes is not None and probes < 2:
        raise ConfigError(f"probes must be at least 2, or None for the exact value; got {probes}.")
    last, is_random = states[-1], probes is not None
    total = probes or last[0].numel() * (len(last) if coupled else 1)
    blocks = _blocks(last, total, coupled, is_random, generator)
    draws = _propagate(products, blocks, is_random).flip(0)[list(points)]  # (points, m, B)
    sizes = torch.stack([_energy(states[k][None])[0] for k in points])  # (points, B)
    columns = draws.new_tensor([states[k][0].numel() for k in points])
    draws, sizes = (draws.movedim(2, 0), sizes.mT) if per_sample else (draws.mean(2), sizes.mean(1))
    end = sizes[..., -1:]
    ratio = torch.where((sizes > 0) & (end > 0), sizes / end, float("nan"))
    squares = draws / columns[:, None]  # of ||J||_qm
    mean, m = squares.mean(-1), squares.shape[-1]
    value = mean * ratio
    error = squares.std(-1) / m**0.5 * ratio if m > 1 else None
    if not squared:
        value = value.sqrt()
        error = None if error is None else torch.where(value > 0, error / (2 * value), value)
    return GradientScale(value, mean.sqrt(), sizes.sqrt(), error, tuple(points), total)
