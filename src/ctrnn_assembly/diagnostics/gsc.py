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
prints the GSC once with and once without the square: `squared`. Not done: sparse Jacobians; values
below 1e-154, whose square is 0 in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ctrnn_assembly.diagnostics.products import (
    Layer,
    State,
    backward,
    blocks,
    checked_layers,
    couples_samples,
    energy,
    forward,
    pack,
    propagate,
    pull_copies,
    stretch,
    untouched,
)
from ctrnn_assembly.errors import ConfigError, ShapeError

Fixed = Literal["input", "output"]


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
        tensor([1., 1.], dtype=torch.float64)
    """
    layers = checked_layers(layers)
    _check_probes(probes)
    if fixed not in get_args(Fixed):
        raise ConfigError(f"fixed must be one of {', '.join(get_args(Fixed))}; got {fixed!r}.")
    with untouched(layers):
        states, links = (backward if fixed == "output" else forward)(layers, x)
        if coupled is None and (per_sample or probes is None):
            coupled = couples_samples(layers, x)
        if per_sample and coupled:
            raise ConfigError(
                "per_sample needs layers that treat samples apart; got layers that couple them, as "
                "batch norm in training mode does. Use per_sample=False, or call eval()."
            )
        at = states[-1] if fixed == "output" else states[0]
        vectors = blocks(at, bool(coupled), probes, generator)
        draws = propagate(links, vectors, probes is not None)
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
            stretch of `every` steps is a solve of its own), a baseline, nn.GRU.
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
    time = 1 if getattr(net, "batch_first", False) else 0  # the dimension
    times = (*range(0, input.shape[time], every), input.shape[time])
    parts = [input.narrow(time, a, b - a) for a, b in pairwise(times)]
    with untouched([net]):
        with torch.no_grad():
            like = net(input.narrow(time, 0, 1))[1] if h_0 is None else h_0
            flat = torch.zeros_like(pack(like)) if h_0 is None else pack(like)
        steps = [stretch(net, u, like, 1 - time) for u in parts]
        states, _ = forward(steps, flat)
        links = [pull_copies(step, f) for step, f in zip(steps, states, strict=False)]
        vectors = blocks(states[-1], False, probes, generator)
        draws = propagate(links[::-1], vectors, probes is not None).flip(0)
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


def _check_probes(probes: int | None) -> None:
    if probes is not None and probes < 2:
        raise ConfigError(f"probes must be at least 2, or None for the exact value; got {probes}.")


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
    sizes = torch.stack([energy(f[None])[0] for f in states])  # (points, B)
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
        error = None if error is None else torch.where(value > 0, error / (2 * value), value)

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
