"""A certificate of layers that drive each other upwards, from the proofs of the layers alone.

e_l, the distance of layer l's states in its metric, and s_l, that of its inputs, of two nets obey

    e_l+ <= q_l e_l + input_gain s_l,    s_l+1 <= passed s_l + output_gain e_l+,    s_1 = 0,

so that e+ <= Gamma e, Gamma lower triangular, Gamma_ll = q_l, the factor of the layer's step. Where
every layer is also a `dissipation.LayerSystem`, the smaller number of samples and l2 gain of both proofs
are taken. Lipschitz constants of what leads into a field, by `entering`, and out of it, by `leaving`,
have rounding in them. Source: THEORY sections 11 and 13.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.certificates import result
from ctrnn_assembly.certificates.dissipation import LayerSystem, forgetting
from ctrnn_assembly.certificates.modules import modules_of
from ctrnn_assembly.certificates.result import Certificate, MetricFacts, StepCertificate
from ctrnn_assembly.certificates.rounding import spectral_norm
from ctrnn_assembly.linalg import one_thread
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms

FORMED = 1e-10  # relative to the norms of its factors: more than the rounding of any matrix here
SLACK = 1e-9  # relative, of every entry of Gamma: more than the rounding of all that is formed here
LONGEST = 2**40  # samples
RATES = (0.9, 1.05, 1.2, 1.35, 1.55, 1.8)  # in units of that of Gamma


@dataclass(frozen=True)
class LayerBound:
    """What `certify_cascade` needs of one layer: Lipschitz constants, or which one is `missing`.

    `certificate` is of its field alone, with the step; `system` is None where its proof does not apply.
    """

    certificate: Certificate
    missing: str = ""
    input_gain: float = 0.0
    flow_gain: float = 0.0
    output_gain: float = 0.0
    passed: float = 0.0
    system: LayerSystem | None = None


@one_thread()
def certify_cascade(
    layers: Sequence[LayerBound],
    dt: float,
    solver: str,
    *,
    entry: float = 1.0,
    substeps: int = 1,
    one_field: bool = False,
) -> Certificate:
    """Of the whole net: in continuous time any rate below the slowest layer's, and its step.

    `entry` is the Lipschitz constant of what leads to the first layer. The layers' proofs are of steps
    of dt / substeps; a step of the sampled stack is of all of a sample's, named euler:4.
    """
    for index, layer in enumerate(layers):
        why = layer.missing or ("" if layer.certificate.certified else layer.certificate.reasons[0])
        gains = (layer.input_gain, layer.flow_gain, layer.output_gain, layer.passed)
        if why or not all(map(math.isfinite, gains)):
            why = why or f"a Lipschitz constant is not finite: {gains}"
            return Certificate.refused(f"layer {index}: {why}", dt=dt, solver=solver)
    certificates = [layer.certificate for layer in layers]
    whole = _of_fields(certificates)
    steps = [one.step for one in certificates if one.step is not None]
    # Of the sampled stack a step is all of a sample's: `each` of them under one input of each layer.
    each, count = (1, substeps) if one_field else (substeps, 1)
    name = f"{solver}:{each}" if each > 1 else solver
    largest, length = each * min(step.max_dt for step in steps), dt / count
    refused = next((k for k, step in enumerate(steps) if not step.certified), None)
    if refused is not None:
        reason = f"layer {refused}: {steps[refused].reason}"
        whole = replace(whole, step=StepCertificate(name, length, False, None, largest, reason, count))
        return _with_flow(whole, layers, dt, entry) if one_field else whole
    layers = [held(layer, each) for layer in layers]
    gamma = linear_system(layers, one_field=one_field)[:-1, :-1]
    own = [samples_until(np.array([[q]]), 1e-3) for q in gamma.diagonal()]
    factor, growth = weighted_factor(gamma, [one.metric for one in certificates])
    if not factor < 1:
        reason = "the gains between layers are too large for float64; lower the norms of C and the mix"
        return replace(whole, step=StepCertificate.refused(name, length, reason))
    whole = replace(whole, step=StepCertificate(name, length, True, factor, largest, "", count))
    samples, l2_gain = weighted_proof(layers, factor, entry)
    own.append(min(samples_until(gamma, 1e-3), samples))
    own = [min(n, own[-1]) for n in own]  # a layer alone is the whole with equal states elsewhere
    memory = [math.ceil(n / count) if math.isfinite(n) else n for n in own]
    gain = input_gain(layers, [one.input_gain for one in layers] / (1 - gamma.diagonal()), entry)
    # Of one field every step of a sample sees its input: their squares add up.
    both = gain, min(gain * math.sqrt(count) * (1 + SLACK), l2_gain)
    return _with_facts(whole, layers, gamma.diagonal() ** count, memory, growth, both)


def _of_fields(certificates: Sequence[Certificate]) -> Certificate:
    """Any rate below the slowest field's is one of all together, in a metric that is known later."""
    slowest = min(certificates, key=lambda one: one.rate)
    found = [one.coupling for one in certificates]
    residual, norm, cost = (max(getattr(one, k) for one in found) for k in ("residual", "norm", "cost"))
    edges = sum(one.edges for one in found)
    return replace(
        slowest,
        rate=slowest.rate * (1 - 1e-6),
        modules=tuple(map(_module, range(len(certificates)), certificates)),
        coupling=result.CouplingFacts("cascade", (), residual, norm, cost, edges),
        rounding=max(one.rounding for one in certificates),
        metric=MetricFacts("cascade", "layers", 0.0, math.inf),
        declared=tuple(sorted({name for one in certificates for name in one.declared})),
    )


def _with_flow(whole: Certificate, layers: Sequence[LayerBound], dt: float, entry: float) -> Certificate:
    """The facts of the exact solution: d > 0 with H d <= -l d bounds e(t) by max d / min d e^{-l t}."""
    H = linear_system(layers, flow=True)[:-1, :-1]
    short = 1 / float(-H.diagonal().min())  # with it I + short H >= 0, and q* of it is 1 - short l
    step = np.eye(len(H)) + short * H
    metrics = [layer.certificate.metric for layer in layers]
    (q, spread), (_, growth) = weighted_factor(step), weighted_factor(step, metrics)
    if not q < 1:
        return whole
    rates = -H.diagonal()
    memory = [math.ceil(math.log(1e3) / (rate * dt)) for rate in rates]
    memory.append(math.ceil(math.log(1e3 * spread) * short / ((1 - q) * dt)))
    steady, factors = [one.flow_gain for one in layers] / rates, np.exp(-rates * dt) * (1 + SLACK)
    peak, moved = input_gain(layers, steady, entry), steady * -np.expm1(-rates * dt) * (1 + SLACK)
    layers = [replace(one, input_gain=gain) for one, gain in zip(layers, moved.tolist(), strict=True)]
    return _with_facts(whole, layers, factors, memory, growth, (peak, math.inf))


def _with_facts(
    whole: Certificate,
    layers: Sequence[LayerBound],
    factors: np.ndarray,
    memory: Sequence[float],
    growth: float,
    gains: tuple[float, float],
) -> Certificate:
    """`memory` is each layer's, then that of the whole, in samples; gains the peak's and that of l2."""
    facts = tuple(
        result.LayerFacts(k, layer.certificate.rate, float(q), layer.input_gain, layer.output_gain, n)
        for k, (layer, q, n) in enumerate(zip(layers, factors, memory, strict=False))
    )
    *own, samples = memory
    cascade = result.CascadeFacts(facts, samples, max(own), int(np.argmax(own)), *gains)
    return replace(whole, metric=MetricFacts("cascade", "layers", 1.0, growth**2), cascade=cascade)


def held(layer: LayerBound, substeps: int) -> LayerBound:
    step = layer.certificate.step
    assert step is not None
    assert step.contraction_factor is not None
    gain = layer.input_gain * float(np.sum(step.contraction_factor ** np.arange(substeps)))
    found = replace(layer.certificate, step=replace(step, substeps=substeps))
    return replace(layer, certificate=found, input_gain=gain * (1 + SLACK))


def linear_system(
    layers: Sequence[LayerBound], entry: float = 1.0, *, one_field: bool = False, flow: bool = False
) -> np.ndarray:
    """(Gamma, b; c, d), (layers + 1, layers + 1), every entry an upper bound.

    e+ <= Gamma e + b |delta| and |output| <= c e + d |delta| for an input difference delta of a sample;
    of the flow, e' <= H e + b |delta|.
    """
    rows, unit = [], np.eye(len(layers) + 1)
    s = entry * unit[-1]
    for k, layer in enumerate(layers):
        step = layer.certificate.step
        q = math.inf if step is None else step.sample_factor or math.inf
        own, gain = (-layer.certificate.rate, layer.flow_gain) if flow else (q, layer.input_gain)
        row = gain * s + own * unit[k]
        rows.append(row + SLACK * abs(row))
        s = layer.passed * s + layer.output_gain * (unit[k] if one_field or flow else row)
    return np.array([*rows, s * (1 + SLACK)])


def input_gain(layers: Sequence[LayerBound], steady: np.ndarray, entry: float) -> float:
    """sup |out| / sup |in| over time, as in l2; `steady` is sup e_l / sup s_l from equal states."""
    for layer, states in zip(layers, steady.tolist(), strict=True):
        entry *= (layer.passed + layer.output_gain * states) * (1 + SLACK)
    return entry


def weighted_proof(layers: Sequence[LayerBound], factor: float, entry: float) -> tuple[float, float]:
    """Samples until a thousandth, and the l2 gain, by weighted sums over time; infinite if unproven."""
    systems = [layer.system for layer in layers if layer.system is not None]
    if len(systems) < len(layers) or (still := forgetting(systems, 1.0)) is None:
        return math.inf, math.inf
    samples, l2_gain = math.inf, entry * math.prod(1 + gamma for gamma in still[1]) * (1 + SLACK)
    for rate in RATES:
        rho = 1 - rate * (1 - factor)
        found = forgetting(systems, rho) if 0 < rho < 1 else None
        if found is None:
            break
        proven = math.ceil(math.log(1e3 * found[0]) / -math.log(rho) * (1 + SLACK)) + 1
        if proven > samples:
            break
        samples = proven
    return samples, l2_gain


def samples_until(gamma: np.ndarray, share: float) -> float:
    """The smallest t that is found with Gamma^t 1 <= share, and no growth from there on, or inf."""

    def small(t: int) -> bool:
        e = np.linalg.matrix_power(gamma * (1 + SLACK), t).sum(1) * (1 + SLACK)
        return bool((e <= share).all() and (gamma @ e <= e * (1 - 1e-13)).all())

    with np.errstate(over="ignore", invalid="ignore"):
        t = 1 + bisect_left(range(1, LONGEST), True, key=small)
    return t if t < LONGEST else math.inf


def weighted_factor(gamma: np.ndarray, metrics: Sequence[MetricFacts] = ()) -> tuple[float, float]:
    """q*, soonest at a thousandth, and how far Euclidean distances may grow (THEORY section 11)."""
    found, slowest, one = [], gamma.diagonal().max(), np.ones(len(gamma))
    low, high = (np.sqrt([getattr(m, k) for m in metrics] or one) for k in ("smallest", "largest"))
    for left in np.linspace(0.05, 0.95, 19) if np.isfinite(gamma).all() else ():
        q = 1 - (1 - slowest) * left
        if q <= slowest:  # but for rounding it is larger
            break
        d = np.linalg.solve(q * np.eye(len(gamma)) - gamma, one)
        if (d > 0).all() and np.isfinite(d).all():
            proven = float(np.max(gamma @ d / d)) * (1 + SLACK)  # for any positive d
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                growth = float(np.linalg.norm(d / d.max() / low) * (high * (d.max() / d)).max())
            found.append((proven, growth * (1 + SLACK)))
    usable = [(q, growth) for q, growth in found if q < 1 and math.isfinite(growth)]
    forgot = [math.log(1e3 * growth) / -math.log(max(q, 1e-300)) for q, growth in usable]
    return usable[int(np.argmin(forgot))] if usable else (1.0, math.inf)


def _module(index: int, found: Certificate) -> result.Module:
    size, margin = sum(one.size for one in found.modules), min(one.margin for one in found.modules)
    theorems = " + ".join(dict.fromkeys(one.theorem for one in found.modules))
    return result.Module(index, size, theorems, margin, found.rate, True)


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
    columns = W_out.cpu().double().split(terms.sizes, -1)
    for W, module in zip(columns, modules_of(terms, metric), strict=True):
        rows, error = module.balance.raise_(W)
        made.append(rows * (1 + module.balance.skew))
        off += float(error.norm())
    return torch.cat(made, 1), off
