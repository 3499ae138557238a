"""The gradient scale coefficient: how a relative change grows between two layers, or two times.

    GSC(k, l) = ||J||_qm |f_k| / |f_l|,    J = df_l / df_k,    ||J||_qm = ||J||_F / sqrt(columns of J)

k is the earlier place, farther from the loss. ||J||_qm is the root mean square of |J v| over random
unit vectors v, so the GSC is the relative change of f_l for a random relative change of f_k. Gradients
"explode" if log GSC is linear in depth. For a contracting recurrent net whose step has the factor q in
the metric M, ||J||_qm <= ||J||_2 <= sqrt(cond M) q^(T - t).

A batch counts as one vector F_l = (f_l(x_1), ..., f_l(x_B)), which is the only correct form if samples
are coupled (batch norm); if they are not, it is the form with expectations,
sqrt(mean ||J_b||_qm^2) sqrt(mean |f_k|^2) / sqrt(mean |f_l|^2).

Cost: one Jacobian product of the whole batch costs about a backward pass. Exact values take n of them
(n features at the fixed end), or B n if samples are coupled; the estimate takes `probes`, whatever n is:
E |u^T J|^2 = ||J||_F^2 for random signs u (Hutchinson). It is unbiased for the square of the GSC.

Source: Philipp, Song and Carbonell 2017 (arXiv 1712.05577). A report of 2018 on its reproducibility
prints the GSC once with and once without the square: `squared`. Not done: sparse Jacobians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from ctrnn_assembly.errors import ConfigError, DataError, ShapeError

Layer = Callable[[Tensor], Tensor]
Link = Callable[[Tensor], Tensor]  # (m, B, features there) -> (m, B, features here)
State = Tensor | tuple[Tensor, ...]
Fixed = Literal["input", "output"]

CHUNK = 2**18  # numbers in a block of vectors: small enough for a cache


@dataclass(frozen=True)
class GradientScale:
    """GSC at the points of a chain: its layers 0 (the input) to L, or its times 0 to T.

    Attributes:
        value: GSC, or its square, (points,), or (batch, points) for single samples. NaN where it
            would be 0/0 or divides by nothing: |f_k| = 0 (a zero initial state) or |f_l| = 0.
        jacobian: ||J||_qm, never squared, the shape of `value`.
        size: |f| as a root mean square over the batch, or of the sample; the shape of `value`.
        standard_error: of `value`, the shape of `value`; None if exact. That of the square is
            unbiased, that of the root is its first-order approximation.
        points: layer or time of each entry.
        squared: whether `value` is the square.
        products: Jacobian products of the whole batch that were taken.
    """

    value: Tensor
    jacobian: Tensor
    size: Tensor
    standard_error: Tensor | None
    points: tuple[int, ...]
    squared: bool
    products: int


def gsc(
    layers: Sequence[Layer] | nn.Sequential,
    x: Tensor,
    *,
    fixed: Fixed = "output",
    per_sample: bool = False,
    squared: bool = False,
    probes: int | None = None,
    coupled: bool | None = None,
    generator: torch.Generator | None = None,
) -> GradientScale:
    """GSC over the depth of a chain f_l = layers[l - 1](f_{l-1}), f_0 = x.

    For any other pair (k, l) pass `layers[k:l]` and f_k. Put dropout in eval mode; batch norm is
    taken as it is, by the batch in training mode, and its running statistics are not touched.

    Args:
        layers: callables (B, ...) -> (B, ...), or an nn.Sequential.
        x: input, (B, ...), floating point; the products are in its dtype.
        fixed: "output" gives GSC(k, L) for k = 0..L by vector-Jacobian products, "input" gives
            GSC(0, l) for l = 0..L by Jacobian-vector products.
        per_sample: one value for each sample; refused if layers couple the samples.
        squared: return GSC^2.
        probes: random signs to estimate from, at least 2; None for the exact value.
        coupled: whether some layer couples samples; None to find out by one product a layer.
        generator: of the random signs.

    Raises:
        ShapeError, DataError: for an unusable x, or a layer whose output is unusable.
        ConfigError: for a setting out of range, or per_sample with coupled samples.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.diag(torch.tensor([2.0, 1.0])))
        >>> gsc(net, torch.ones(1, 2)).value
        tensor([1., 1.])
    """
    layers = _checked_layers(layers)
    _check_probes(probes)
    if fixed not in get_args(Fixed):
        raise ConfigError(f"fixed must be one of {', '.join(get_args(Fixed))}; got {fixed!r}.")
    with _untouched(layers):
        states, links = (_backward if fixed == "output" else _forward)(layers, x)
        if coupled is None and (per_sample or probes is None):
            coupled = couples_samples(layers, x)
        if per_sample and coupled:
            raise ConfigError(
                "per_sample needs layers that treat samples apart; got layers that couple them, as "
                "batch norm in training mode does. Use per_sample=False, or call eval()."
            )
        at = states[-1] if fixed == "output" else states[0]
        blocks = _blocks(at, bool(coupled), probes, generator)
        draws = _propagate(links, blocks, probes is not None)
    draws = draws.flip(0) if fixed == "output" else draws
    products = probes or at[0].numel() * (len(at) if coupled else 1)
    return _scale(draws, states, tuple(range(len(states))), fixed, per_sample, squared, products)


def gsc_over_time(
    net: nn.Module,
    input: Tensor,
    h_0: State | None = None,
    *,
    every: int = 1,
    per_sample: bool = False,
    squared: bool = False,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> GradientScale:
    """GSC(t, T) of a recurrent net: how gradients grow or fade from the last step back to step t.

    The Jacobian is that of the state after step T by the state after step t, through the solver's
    own steps: prod (I + h J_t) for forward Euler. An LSTM's state is (h, c) as one vector.

    Args:
        net: called as nn.RNN is, output, h_n = net(input, h_0): a `CTRNN` (for adaptive solvers each
            stretch of `every` steps is a solve of its own), a `GatedCTRNN`, a baseline, nn.GRU.
        input: (T, B, m), or (B, T, m) if net.batch_first.
        h_0: initial state as the net takes it; zero if None, and then GSC(0, T) is NaN.
        every: GSC at t = 0, every, 2 every, ..., T; larger is cheaper.
        per_sample, squared, probes, generator: see `gsc`.

    Returns:
        a `GradientScale` with `points` the times t. The exact value takes as many products through
        the whole sequence as there are numbers in a state.

    Raises:
        ShapeError, DataError: for an unusable input. ConfigError: for a setting out of range.
    """
    _check_probes(probes)
    if every < 1:
        raise ConfigError(f"every must be at least 1; got {every}. Use every=1 for all steps.")
    if getattr(net, "bidirectional", False):
        raise ConfigError(f"the net must run forward in time only; got {net}. Measure each way alone.")
    if input.ndim != 3 or 0 in input.shape:
        raise ShapeError(f"input must be a non-empty (time, batch, m); got {tuple(input.shape)}.")
    samples = 0 if not getattr(net, "batch_first", False) else 1  # the dimension of time
    times = (*range(0, input.shape[samples], every), input.shape[samples])
    parts = [input.narrow(samples, a, b - a) for a, b in pairwise(times)]
    with _untouched([net]):
        with torch.no_grad():
            like = net(input.narrow(samples, 0, 1), h_0)[1]
            like = like if h_0 is None else h_0
            flat = _pack(like) * (0 if h_0 is None else 1)
        steps = [_stretch(net, u, like, 1 - samples) for u in parts]
        states, _ = _forward(steps, flat)
        links = [_pull_copies(step, f) for step, f in zip(steps, states, strict=False)]
        blocks = _blocks(states[-1], False, probes, generator)
        draws = _propagate(links[::-1], blocks, probes is not None).flip(0)
    products = probes or states[-1].shape[1]
    return _scale(draws, states, times, "output", per_sample, squared, products)


def preactivation_statistics(preactivations: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Standard deviation and sign diversity of what each nonlinearity sees, (layers,) each.

    Both are taken over the observations, unit by unit. Deviation: the root of the units' mean
    variance. Diversity: the units' mean of min(P, N) / (P + N), with P positive and N negative
    values; 0.5 at best, and 0 for units that never change sign, or are always 0.

    Args:
        preactivations: for each layer, (B, ...) with B >= 2.

    Raises:
        ShapeError: if a layer has fewer than 2 observations.
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


def couples_samples(layers: Sequence[Layer] | nn.Sequential, x: Tensor) -> bool:
    """Whether a layer's output for some sample depends on another sample, as with batch norm.

    Asked of the gradient: that of the first half of the outputs by the second half of the inputs is
    exactly zero if samples are treated apart. One vector-Jacobian product a layer.
    """
    layers = _checked_layers(layers)
    half = len(x) // 2
    with _untouched(layers):
        states, links = _backward(layers, x)
    for out, link in zip(states[:0:-1], links, strict=True):
        signs = torch.ones_like(out).flatten(1)
        signs[:, ::2] = -1  # a normalised layer's outputs may add up to a constant
        signs[half:] = 0
        if bool((link(signs.view(1, *out.shape))[0, half:] != 0).any()) and half:
            return True
    return False


def _checked_layers(layers: Sequence[Layer] | nn.Sequential) -> list[Layer]:
    if not isinstance(layers, (Sequence, nn.Sequential, nn.ModuleList)) or not len(layers):
        raise ConfigError(
            "layers must be a non-empty list of callables or nn.Sequential; got "
            f"{type(layers).__name__}. Pass [layer_1, layer_2, ...]."
        )
    return list(layers)


def _check_probes(probes: int | None) -> None:
    if probes is not None and probes < 2:
        raise ConfigError(f"probes must be at least 2, or None for the exact value; got {probes}.")


def _backward(layers: Sequence[Layer], x: Tensor) -> tuple[list[Tensor], list[Link]]:
    """f_0 = x to f_L, and V -> V df_k/df_{k-1} from the last layer to the first."""
    states, links = [_checked_input(x)], []
    for layer in layers:
        with torch.enable_grad():
            f = states[-1].requires_grad_()
            y = layer(f.clone())  # a copy: the layer may work in place
        links.append(_pull(f, y))
        states.append(_checked_state(y.detach(), x, len(states)))
    return [f.detach() for f in states], links[::-1]


def _pull(f: Tensor, y: Tensor) -> Link:
    """V -> V dy/df for V of (m, B, ...), by batched vector-Jacobian products."""
    if not y.requires_grad:  # a constant
        return lambda V: V.new_zeros(len(V), *f.shape)
    return lambda V: torch.autograd.grad(
        y, f, V, retain_graph=True, is_grads_batched=True, materialize_grads=True
    )[0]


@torch.no_grad()
def _forward(layers: Sequence[Layer], x: Tensor) -> tuple[list[Tensor], list[Link]]:
    """f_0 = x to f_L, and V -> df_{k+1}/df_k V from the first layer to the last."""
    states = [_checked_input(x)]
    for layer in layers:
        states.append(_checked_state(layer(states[-1].clone()), x, len(states)))
    return states, [_push(layer, f) for layer, f in zip(layers, states, strict=False)]


def _push(layer: Layer, f: Tensor) -> Link:
    """V -> dy/df V for V of (m, B, ...), by batched Jacobian-vector products."""
    return vmap(lambda v: jvp(lambda x: layer(x.clone()), (f,), (v,))[1])


def _checked_input(x: Tensor) -> Tensor:
    if x.ndim < 2 or not x.numel() or not x.is_floating_point():
        raise ShapeError(f"x must be a floating-point (B, ...); got {tuple(x.shape)}, {x.dtype}.")
    return _checked_state(x.detach(), x, 0)


def _checked_state(f: Tensor, x: Tensor, k: int) -> Tensor:
    if f.ndim < 2 or len(f) != len(x):
        raise ShapeError(f"layer {k} must give (B, ...) with B = {len(x)}; got {tuple(f.shape)}.")
    if not bool(torch.isfinite(f).all()):
        raise DataError(f"f_{k} must be finite; got NaN or infinite values. Scale net or x down.")
    return f


@contextmanager
def _untouched(layers: Iterable[object]) -> Iterator[None]:
    """Without gradients of parameters, and without updates of batch norm's running statistics."""
    modules = [layer for layer in layers if isinstance(layer, nn.Module)]
    frozen = [p for m in modules for p in m.parameters() if p.requires_grad]
    found = [n for m in modules for n in m.modules() if isinstance(n, _BatchNorm)]
    norms = [n for n in dict.fromkeys(found) if n.training and n.track_running_stats]
    try:
        for p in frozen:
            p.requires_grad_(False)
        for n in norms:
            n.track_running_stats = False  # in training mode: use the batch, and leave the rest alone
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)
        for n in norms:
            n.track_running_stats = True


def _blocks(
    at: Tensor, coupled: bool, probes: int | None, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Vectors at one end of the chain, (m, B, ...) like `at`: random signs, or all unit vectors.

    If samples are not coupled, one block row holds the same unit vector for every sample.
    """
    batch, n = len(at), at[0].numel()
    rows = max(1, CHUNK // at.numel())
    total = probes or (batch * n if coupled else n)
    for start in range(0, total, rows):
        index = torch.arange(start, min(start + rows, total), device=at.device)
        m = len(index)
        if probes is not None:
            device = at.device if generator is None else generator.device
            bits = torch.randint(2, (m, *at.shape), generator=generator, device=device)
            yield bits.to(at) * 2 - 1
            continue
        block = at.new_zeros(m, batch * n if coupled else n)
        block.scatter_(1, index[:, None], 1)
        block = block if coupled else block[:, None].expand(m, batch, n)
        yield block.reshape(m, *at.shape)


def _pull_copies(step: Layer, f: Tensor) -> Link:
    """As `_pull`, by one backward pass over m copies of the batch.

    Solvers with their own backward pass and cuDNN's nets cannot be vectorised over cotangents, but
    take any batch; `step` treats its samples apart and repeats its input.
    """

    def link(V: Tensor) -> Tensor:
        with torch.enable_grad():
            x = f.repeat(len(V), 1).requires_grad_()
            return torch.autograd.grad(step(x), x, V.reshape(x.shape))[0].view(len(V), *f.shape)

    return link


def _stretch(net: nn.Module, u: Tensor, like: State, batch_dim: int) -> Layer:
    """The map of packed states (m B, N) over a stretch of input u, which all m copies see."""

    def step(flat: Tensor) -> Tensor:
        repeats = [1, 1, 1]
        repeats[batch_dim] = len(flat) // u.shape[batch_dim]
        return _pack(net(u.repeat(*repeats), _unpack(flat, like))[1])

    return step


def _pack(state: State) -> Tensor:
    """(layers, B, n) each -> (B, N)."""
    parts = (state,) if isinstance(state, Tensor) else state
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)


def _unpack(flat: Tensor, like: State) -> State:
    """The inverse of `_pack`, for any number of samples."""
    parts = (like,) if isinstance(like, Tensor) else like
    sizes = [part.shape[0] * part.shape[2] for part in parts]
    split = flat.split(sizes, dim=1)
    shaped = [
        s.view(len(flat), part.shape[0], part.shape[2]).transpose(0, 1).contiguous()
        for s, part in zip(split, parts, strict=True)
    ]
    return shaped[0] if isinstance(like, Tensor) else tuple(shaped)


def _propagate(links: Sequence[Link], blocks: Iterable[Tensor], keep: bool) -> Tensor:
    """|V|^2 before and after each link, (points, m, B): every random draw, or their sum (m = 1)."""
    found: list[Tensor] = []
    for V in blocks:
        energies = [_energy(V)]
        for link in links:
            V = link(V)
            energies.append(_energy(V))
        part = torch.stack(energies)
        found.append(part if keep else part.sum(1, keepdim=True))
    return torch.cat(found, dim=1) if keep else torch.stack(found).sum(0)


def _energy(V: Tensor) -> Tensor:
    """Squared norms of V (m, B, ...), (m, B), in float64 where there is one."""
    wide = V.dtype if V.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(V.flatten(2), dim=2, dtype=wide).square()


def _scale(
    draws: Tensor,
    states: Sequence[Tensor],
    points: tuple[int, ...],
    fixed: Fixed,
    per_sample: bool,
    squared: bool,
    products: int,
) -> GradientScale:
    """The coefficients from squared norms of Jacobian products (points, m, B) and the states."""
    columns = [f[0].numel() for f in states] if fixed == "output" else [states[0][0].numel()]
    sizes = torch.stack([_energy(f[None])[0] for f in states])  # (points, B)
    if not per_sample:
        draws, sizes = draws.mean(2, keepdim=True), sizes.mean(1, keepdim=True)
    near, far = (sizes, sizes[-1:]) if fixed == "output" else (sizes[:1], sizes)
    ratio = torch.where((near > 0) & (far > 0), near / far, float("nan"))  # (points, B or 1)
    squares = draws / draws.new_tensor(columns)[:, None, None]  # of ||J||_qm
    mean, m = squares.mean(1), squares.shape[1]
    value = mean * ratio
    error = squares.std(1) / m**0.5 * ratio if m > 1 else None
    if not squared:
        value = value.sqrt()
        error = None if error is None else error / (2 * value)

    def shaped(t: Tensor) -> Tensor:
        return t.mT if per_sample else t[:, 0]

    return GradientScale(
        value=shaped(value),
        jacobian=shaped(mean.sqrt()),
        size=shaped(sizes.sqrt()),
        standard_error=None if error is None else shaped(error),
        points=points,
        squared=squared,
        products=products,
    )
