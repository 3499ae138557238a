"""How small a perturbation of the input changes a classifier's answer: proven bounds, and an attack.

Two copies of a net from one start, whose inputs differ by delta_t, are bounded by the positive linear
system of `cascade`, of impulse response h: what the readout sees moves by at most sum_t w_t |delta_t|,
w_t = h_{T-t} for the last output, its mean over the outputs for the mean. Logit y then falls behind j by
at most ||r_y - r_j|| times as much, r the readout's rows in that metric. A CTRNN is one layer.

The claim is of float64, of slopes as declared, and of margins less 1e-9 (|W| (1 + |x|) + |b|) for a
readout W x + b, whose terms may cancel: far more than float64 rounds. Source: THEORY section 13.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctrnn_assembly.certificates import cascade
from ctrnn_assembly.certificates.cascade import SLACK, LayerBound, entering, leaving, norm_bound
from ctrnn_assembly.certificates.certify import parametrized, unsteady
from ctrnn_assembly.certificates.result import CascadeFacts
from ctrnn_assembly.errors import ConfigError, check_within
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.recurrent import is_unchanged
from ctrnn_assembly.schemes import SCHEMES, step_pair
from ctrnn_assembly.stack import Stack

NORMS = ("largest", "rms")  # of |delta_t| over time
TINY = 1e-300


@torch.no_grad()
def certified_radii(
    model: SequenceClassifier, u: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (samples, k), and the radii below which their class stays, (2, samples), by `NORMS`.

    u: (samples, time, m), of a model in float64; lengths: valid samples of each, by default all.

    Raises: ConfigError, with the reason, for a model of which no radius is proven.
    """
    (core, found), readout = _proven(model), model.readout
    if found.of_layers:
        layers = core.bounds(core.dt, core.solver)
        entry, rows, off = norm_bound(core.encoder.weight), readout.weight, 0.0
    else:
        terms, entry, metric = core.terms().detach_cpu(), 1.0, found.metric.matrix.detach_cpu()
        g = terms.pre.g if model.readout_input == "rate" else 1.0
        if model.readout_input == "rate" and not (terms.pre.is_identity or metric.is_diagonal):
            raise ConfigError("no radius is proven of firing rates in a dense metric; read states.")
        _, C = step_pair(SCHEMES[found.step.solver], terms, terms.tau.new_tensor(found.step.dt))
        gain = entering(terms, metric, C, terms.W_in)
        layers = [LayerBound(found, input_gain=gain, output_gain=1.0)]
        rows, off = leaving(terms, metric, g * readout.weight)
    h = impulse_response(layers, entry, u.shape[1], core.substeps)
    gains = pooled_gains(h, model.pool, found.cascade)
    seen = model.pooled(core(u, lengths=lengths)[0], lengths)
    seen = core.firing_rates(seen) if model.readout_input == "rate" else seen
    logits, bias = readout(seen), 0.0 if readout.bias is None else readout.bias.abs()
    y, rows = logits.argmax(1, keepdim=True), rows.to(logits)
    rounding = 1e-9 * ((1 + seen.abs()) @ readout.weight.abs().mT + bias).amax(1, keepdim=True)
    margins = (logits.gather(1, y) - logits - rounding).clamp(min=0)
    apart = (rows[y[:, 0], None] - rows).norm(dim=-1) * (1 + SLACK) + 2 * off  # (samples, k)
    kept = (margins / apart).nan_to_num(0.0, posinf=torch.inf).scatter(1, y, torch.inf).amin(1)
    last = torch.full_like(y[:, 0], u.shape[1]) if lengths is None else lengths
    radii = kept * (1 - SLACK) / gains.to(logits)[:, last - 1]
    if found.of_layers and core.gated:  # what is perturbed must be within the claim too
        room = (core.input_range - u.abs().amax((1, 2))).clamp(min=0)
        radii = torch.minimum(radii, torch.stack([room, room / u.shape[1] ** 0.5]))
    return logits, radii


def impulse_response(layers: Sequence[LayerBound], entry: float, time: int, substeps: int) -> Tensor:
    """h, (time,), rounded up: every term is a sum of products of nonnegative numbers."""
    rows = cascade.linear_system([cascade.held(layer, substeps) for layer in layers], entry)
    gamma, e, out = rows[:-1, :-1], rows[:-1, -1], rows[-1, :-1]
    h = [rows[-1, -1]]
    for _ in range(time - 1):
        h.append(out @ e)
        e = gamma @ e
    return torch.from_numpy(np.array(h)) * (1 + SLACK)


def pooled_gains(h: Tensor, pool: str, facts: CascadeFacts | None = None) -> Tensor:
    """After 1, 2, ... samples, for one unit of each norm, (2, time), or a stack's own where smaller."""
    H, count = h.cumsum(0), torch.arange(1, len(h) + 1)
    last = pool == "last"
    peak = H if last else H.cumsum(0) / count
    square = count * h.square().cumsum(0) if last else H.square().cumsum(0) / count
    if facts is not None:  # at all times: the mean moves by no more than the root mean square
        peak = peak.clamp(max=facts.peak_gain)
        square = torch.minimum(square, facts.l2_gain**2 * (count if last else torch.ones_like(h)))
    return torch.stack([peak, square.sqrt()])


def _proven(model: SequenceClassifier) -> tuple[Any, Any]:
    """The core of a model that is no other map than its weights say, and its certificate of a step."""
    core: Any = model.core
    if any(part.training for part in model.modules()):
        raise ConfigError("no radius is proven in training mode; call model.eval().")
    if model.pool not in ("last", "mean"):
        raise ConfigError(f"a radius is of one answer a sequence; got pool={model.pool!r}. Use 'last'.")
    if reason := unsteady(lambda: parametrized(model)):
        raise ConfigError(f"no radius is proven: {reason}.")
    found = core.certificate()
    if not found.step.certified:
        reason = (*found.reasons, found.step.reason)[0]
        raise ConfigError(f"no radius is proven, as the step is not certified: {reason}.")
    kinds = (SequenceClassifier, Stack if isinstance(core, Stack) else CTRNN, nn.Linear, nn.Linear)
    for part, kind in zip((model, core, model.readout, core.encoder), kinds, strict=True):
        if type(part) is not kind or not is_unchanged(part, kind):
            name = type(part).__name__
            raise ConfigError(f"no radius is proven of {name} with hooks or methods of its own.")
    if isinstance(core, Stack) and core.one_field:
        raise ConfigError("no radius is proven of all layers as one field; use one_field=False.")
    products = getattr(core, "options", {}).get("matmul_precision", "full")
    if model.readout.weight.dtype != torch.float64 or products != "full":
        raise ConfigError(
            f"a radius is of float64; got {products} products. Use 'full', and model.double()."
        )
    return core, found


def attack(
    model: Callable[..., Tensor],
    u: Tensor,
    lengths: Tensor | None = None,
    *,
    norm: str,
    steps: int = 10,
    restarts: int = 1,
    rate: float = 0.25,
    rounds: int = 10,
) -> Tensor:
    """The size of the smallest perturbation found that changes each class, (samples,); inf for none.

    Projected gradient descent: the gap between the logit of the class and the next one is lowered by
    steepest descent in the norm of the perturbation, projected onto a ball whose radius is bisected for
    each sample. Cost: rounds x restarts x steps gradients.

    Args:
        model: (u, lengths=...) -> logits (samples, k) of inputs u (samples, time, m), each of its own.
        norm: "largest", of |delta_t|_2 over time, or "rms", their root mean square.
        steps, restarts: of descent at a radius, from 0 first and then from random points of the sphere.
        rate: length of a step, as a share of the radius. rounds: radii, doubled first, then bisected.

    Source: Madry et al. 2018 (arXiv 1706.06083).
    """
    check_within("[1, inf)", steps=steps, restarts=restarts, rounds=rounds)
    check_within("(0, inf)", rate=rate)
    time, generator = torch.arange(u.shape[1], device=u.device), torch.Generator().manual_seed(0)
    last = time.new_full((len(u),), len(time)) if lengths is None else lengths
    valid = (time < last[:, None]).to(u)[..., None]

    def sizes(d: Tensor) -> Tensor:
        """|d_t|, (samples, time, 1), or the root of their mean square, (samples, 1, 1)."""
        squares = d.square().sum(-1, keepdim=True)
        if norm == "rms":
            squares = squares.sum(1, keepdim=True) / last[:, None, None]
        return squares.sqrt().clamp(min=TINY)

    def gap(d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Between the class and the next; its steepest ascent, of size 1; and how far that raises it."""
        d = d.detach().requires_grad_()
        with warnings.catch_warnings():  # of inputs beyond those that a certificate speaks of
            warnings.simplefilter("ignore")
            logits = model(u + d, lengths=lengths)
        found = logits.gather(1, y)[:, 0] - logits.scatter(1, y, -torch.inf).amax(1)
        slope = torch.autograd.grad(found.sum(), d)[0]
        steepest = slope / sizes(slope)
        return found.detach(), steepest, (slope * steepest).sum((1, 2))

    with torch.no_grad():
        y = model(u, lengths=lengths).argmax(-1, keepdim=True)
    start = torch.zeros_like(u)
    value, first, falls = gap(start)
    radius = (value / falls.clamp(min=TINY)).clamp(1e-12, 1e12)  # if the net were linear
    low, best = torch.zeros_like(radius), torch.full_like(radius, torch.inf)
    for _ in range(rounds):
        ball = radius[:, None, None]
        for restart in range(restarts):
            d, way = start, first
            if restart:
                d = valid * torch.randn(u.shape, generator=generator).to(u)
                d = ball * d / sizes(d)
                way = gap(d)[1]
            for _ in range(steps):
                d = d - rate * ball * way
                d = d * (ball / sizes(d)).clamp(max=1)
                value, way, _ = gap(d)
                size = sizes(d).amax((1, 2))
                best = torch.where((value < 0) & (size < best), size, best)
        low = torch.where(best > radius, radius, low)
        radius = torch.where(best.isinf(), 2 * radius, (low + best.clamp(max=1e12)) / 2)
    return best
