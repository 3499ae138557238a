"""A certificate of layers that drive each other upwards, from the proofs of the layers alone.

Let e_l be the distance of two states of layer l in its metric, both nets under one input. If its step
has the factor q_l for every drive, and everything between the layers a Lipschitz constant,

    e+ <= Gamma e,    Gamma lower triangular, Gamma_ll = q_l,

so that e_t <= Gamma^t e_0: the whole net forgets at any rate slower than its slowest layer. With s_l the
distance of the inputs of layer l, in the same sample,

    e_l+ <= q_l e_l + input_gain s_l,    s_l+1 <= passed s_l + output_gain e_l+,    s_1 = 0.

For q* above all q_l, d = (q* I - Gamma)^-1 1 > 0 and max_l e_l / d_l shrinks by q* at every step.

Source: THEORY section 11.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ctrnn_assembly.certificates.result import (
    CascadeFacts,
    Certificate,
    CouplingFacts,
    LayerFacts,
    MetricFacts,
    Module,
    StepCertificate,
)

SLACK = 1e-9  # relative, of every entry of Gamma: more than the rounding of all that is formed here
LONGEST = 2**40  # samples


@dataclass(frozen=True)
class LayerBound:
    """What `certify_cascade` needs of one layer.

    Attributes:
        certificate: of its field alone, with the step.
        missing: which constant it lacks, and what to change; then the others mean nothing.
        input_gain, output_gain, passed: Lipschitz constants, see the module.
    """

    certificate: Certificate
    missing: str = ""
    input_gain: float = 0.0
    output_gain: float = 0.0
    passed: float = 0.0


def certify_cascade(
    layers: Sequence[LayerBound], dt: float, solver: str, *, entry: float = 1.0
) -> Certificate:
    """Of the whole net: in continuous time any rate below the slowest layer's, and its step.

    `entry` is the Lipschitz constant of what leads from the input to the first layer.
    """
    for index, layer in enumerate(layers):
        why = layer.missing or ("" if layer.certificate.certified else layer.certificate.reasons[0])
        gains = (layer.input_gain, layer.output_gain, layer.passed)
        if why or not all(map(math.isfinite, gains)):
            why = why or f"a Lipschitz constant is not finite: {gains}"
            return Certificate.refused(f"layer {index}: {why}", dt=dt, solver=solver)
    certificates = [layer.certificate for layer in layers]
    slowest = min(certificates, key=lambda one: one.rate)
    whole = replace(
        slowest,
        rate=slowest.rate * (1 - 1e-6),
        modules=tuple(map(_module, range(len(layers)), certificates)),
        coupling=CouplingFacts("cascade", (), *_worst(certificates)),
        rounding=max(one.rounding for one in certificates),
        metric=MetricFacts("cascade", "layers", 0.0, math.inf),
        declared=tuple(sorted({name for one in certificates for name in one.declared})),
    )
    steps = [one.step for one in certificates if one.step is not None]
    largest = min(step.max_dt for step in steps)
    refused = next((k for k, step in enumerate(steps) if not step.certified), None)
    if refused is not None:
        reason = f"layer {refused}: {steps[refused].reason}"
        return replace(whole, step=StepCertificate(solver, dt, False, None, largest, reason))
    gamma = gain_matrix(layers)
    own = [samples_until(np.array([[q]]), 1e-3) for q in gamma.diagonal()]
    samples = samples_until(gamma, 1e-3)
    factor, growth = weighted_factor(gamma, [one.metric for one in certificates])
    if not factor < 1:
        reason = "the gains between layers are too large for float64; lower the norms of C and the mix"
        return replace(whole, step=StepCertificate.refused(solver, dt, reason))
    gain = input_gain(layers, entry)
    parts = zip(certificates, layers, gamma.diagonal(), own, strict=True)
    facts = tuple(
        LayerFacts(k, one.rate, float(q), layer.input_gain, layer.output_gain, n)
        for k, (one, layer, q, n) in enumerate(parts)
    )
    return replace(
        whole,
        step=StepCertificate(solver, dt, True, factor, largest),
        metric=MetricFacts("cascade", "layers", 1.0, growth * growth),
        cascade=CascadeFacts(facts, samples, max(own), int(np.argmax(own)), gain, gain),
    )


def gain_matrix(layers: Sequence[LayerBound]) -> np.ndarray:
    """Gamma, (layers, layers), every entry an upper bound."""
    rows, s = [], np.zeros(len(layers))
    for k, layer in enumerate(layers):
        step = layer.certificate.step
        assert step is not None
        assert step.contraction_factor is not None
        row = layer.input_gain * s
        row[k] += step.contraction_factor
        s = layer.passed * s + layer.output_gain * row
        rows.append(row * (1 + SLACK))
    return np.array(rows)


def input_gain(layers: Sequence[LayerBound], entry: float) -> float:
    """From the input to the output, in the largest norm over time, and as well in l2 over time.

    From equal states sup e_l <= input_gain sup s_l / (1 - q_l), as sum_t q^t = 1 / (1 - q); the same sum
    bounds the convolution in l2.
    """
    for layer in layers:
        step = layer.certificate.step
        assert step is not None
        assert step.contraction_factor is not None
        kept = layer.input_gain / (1 - step.contraction_factor)
        entry *= (layer.passed + layer.output_gain * kept) * (1 + SLACK)
    return entry


def samples_until(gamma: np.ndarray, share: float) -> float:
    """The smallest t with Gamma^k 1 <= share for all k >= t, or inf; by powers of two, bit by bit.

    e = Gamma^t 1 <= share and Gamma e <= e is looked for: from then on e does not grow. Every product of
    powers has a relative slack for its rounding.
    """

    def small(power: np.ndarray) -> bool:
        e = power.sum(1) * (1 + SLACK)
        return bool((e <= share).all() and (gamma @ e <= e * (1 - 1e-13)).all())

    powers = [gamma]
    while not small(powers[-1]):
        with np.errstate(over="ignore", invalid="ignore"):
            powers.append(powers[-1] @ powers[-1] * (1 + SLACK))
        if 2 ** len(powers) > LONGEST or not np.isfinite(powers[-1]).all():
            return math.inf
    t, product = 0, np.eye(len(gamma))
    for bit in reversed(range(len(powers) - 1)):
        longer = product @ powers[bit] * (1 + SLACK)
        if not small(longer):
            t, product = t + 2**bit, longer
    return t + 1


def weighted_factor(gamma: np.ndarray, metrics: Sequence[MetricFacts] = ()) -> tuple[float, float]:
    """q* and the share by which Euclidean distances may grow before they shrink.

    With eigenvalues of layer l's metric in [a_l, b_l], by default 1, that is
    sqrt(sum d_l^2 / a_l) max sqrt(b_l) / d_l. Of the q* between the slowest layer's factor and 1, it is
    the one that reaches a thousandth first.
    """
    found, slowest, one = [], gamma.diagonal().max(), np.ones(len(gamma))
    low, high = (np.sqrt([getattr(m, k) for m in metrics] or one) for k in ("smallest", "largest"))
    for left in np.linspace(0.05, 0.95, 19):
        q = 1 - (1 - slowest) * left
        d = np.linalg.solve(q * np.eye(len(gamma)) - gamma, one)
        if (d > 0).all() and np.isfinite(d).all():
            proven = float(np.max(gamma @ d / d)) * (1 + SLACK)  # for any positive d
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                growth = float(np.linalg.norm(d / d.max() / low) * (high * (d.max() / d)).max())
            found.append((proven, growth * (1 + SLACK)))
    usable = [(q, growth) for q, growth in found if q < 1 and math.isfinite(growth)]
    best = min(usable, key=lambda one: math.log(1e3 * one[1]) / -math.log(one[0]), default=None)
    return best or (1.0, math.inf)


def _module(index: int, found: Certificate) -> Module:
    """A layer in one row: what its modules have at least."""
    size, margin = sum(one.size for one in found.modules), min(one.margin for one in found.modules)
    theorems = " + ".join(dict.fromkeys(one.theorem for one in found.modules))
    return Module(index, size, theorems, margin, found.rate, True)


def _worst(certificates: Sequence[Certificate]) -> tuple[float, float, float, int]:
    found = [one.coupling for one in certificates]
    residual, norm, cost = (max(getattr(one, k) for one in found) for k in ("residual", "norm", "cost"))
    return residual, norm, cost, sum(one.edges for one in found)
