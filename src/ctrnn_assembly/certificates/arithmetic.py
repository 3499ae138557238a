"""How near two states come in the arithmetic that runs, where exact Euler steps F contract by q < 1.

If what is computed is off by rho |x| + kappa in the metric, and |F(0)| <= c, the distance ends at

    e <= 2 (rho (c + kappa) / (1 - q - rho) + kappa) / (1 - q).

With h = dt / tau, slopes g, and a of what adds up (and of x, where torch itself rounds operands), b also
of the casts of dt W and dt L, of operands, and of phi, rho = || |Theta| N |Theta^-1| || for

    N = a I + b h (|L| + I + g_post |W| g_pre + sum_e |K_e| g_e).

Source: THEORY section 15.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.activations import Elementwise
from ctrnn_assembly.certificates.result import Certificate, Meeting
from ctrnn_assembly.certificates.rounding import spectral_norm
from ctrnn_assembly.certificates.verifier import Ball, inverse
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms

# Unit roundoffs of rounded operands; tf32's may be cut off.
OPERANDS = {"full": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-8}
OF_TORCH = {"highest": "full", "high": "tf32", "medium": "bf16"}  # torch.set_float32_matmul_precision
OF_PHI = 16  # roundings of |phi(0)| + g |x| that bound those of the library's phi; measured: 5


def of_products(like: Tensor) -> str:
    """To what torch itself may round operands of products of such tensors."""
    try:
        return OF_TORCH[torch.get_float32_matmul_precision()] if like.dtype == torch.float32 else "full"
    except RuntimeError:  # a switch of a single backend, torch 2.9's, is at less than float32
        return "bf16"


@torch.no_grad()
def in_arithmetic(found: Certificate, terms: Terms, precision: str, gated: bool = False) -> Certificate:
    """`found`, of exact steps, with its `Meeting`, or its step refused, for terms as they are stored."""
    step, dtype, metric = found.step, terms.tau.dtype, found.metric.matrix
    if step is None or not step.certified or metric is None:
        return found
    precision = max(precision, own := of_products(terms.tau), key=OPERANDS.__getitem__)
    name = str(dtype).removeprefix("torch.")
    name += "" if precision == "full" else f" with operands of products rounded to {precision}"
    if step.solver != "euler" or gated or found.declared or dtype == torch.float16:  # underflows soon
        if precision == "full" and dtype in (torch.float32, torch.float64):
            return found
        reason = f"no proof is known of {step.solver} steps in {name}; use 'full' and float64"
        return replace(found, step=replace(step, certified=False, max_dt=0.0, reason=reason))
    unit, low = torch.finfo(dtype).eps / 2, OPERANDS[precision]
    if low:  # sums are in float32, or on a GPU perhaps as rounded as operands
        unit = low if terms.tau.device.type == "cuda" else max(unit, 2.0**-24)
    dt, q = max(step.lengths or (step.dt,)), step.contraction_factor or 0.0
    leak = OPERANDS[own] * (terms.L is not None)  # plain steps are products with I + h (L - I)
    rho, *ends = _rounding(terms.detach_cpu().double(), metric, dt, unit, low, leak)
    left = (1 - q - rho) * 0.99  # for the rounding of these few numbers
    if not left > 0:
        reason = f"exact steps contract by {q:.6g}, but rounding in {name} may move a state by {rho:.2g}"
        reason += " of its size in a step, and keep states apart; use longer steps or a higher precision"
        return replace(found, step=replace(step, certified=False, max_dt=0.0, reason=reason))
    if terms.W_in is None:  # of an encoder that is called, which may send on more than U
        return found
    scale = 2 / ((1 - q) * 0.99 * math.sqrt(found.metric.smallest))  # to Euclidean distances
    floors = (scale * (rho * (c + kappa) / left + kappa) for c, kappa in ends)
    return replace(found, step=replace(step, meeting=Meeting(name, *floors)))


def _rounding(terms: Terms, metric: Metric, dt: float, unit: float, low: float, leak: float) -> Any:
    """rho, and (c, kappa) without inputs and what inputs of size 1 add; all increase with dt."""
    pre, post, h = _bounds(terms.pre), _bounds(terms.post), dt / terms.tau
    W, eye = terms.weight().abs(), torch.eye(terms.n, dtype=torch.float64)
    L = eye if terms.L is None else terms.L.abs() + eye
    reads, fixed = post[0][:, None] * W * pre[0], post[0] * (terms.bias.abs() + W @ pre[1]) + post[1]
    for edge in terms.edges:
        g, zero = _bounds(edge.psi)
        reads, fixed = reads + edge.K.abs() * g, fixed + edge.K.abs() @ zero
    given = eye if terms.W_in is None else terms.W_in.abs()
    matrices = (W, L, given, *(edge.K for edge in terms.edges))
    count = 8 + sum(int((A != 0).sum(1).max()) for A in matrices)  # sums leave zeros out
    sums = count * unit + 3 * leak, (count + OF_PHI) * unit + 3 * low
    a, b = (s / (1 - s) if s < 1 else math.inf for s in sums)
    # What underflows is as if there were numbers of size `floor` beside all others.
    floor = 1e-30 if unit > 1e-10 else 1e-280
    N = a * eye + b * h[:, None] * (L + reads) + floor
    c, per_input = h * fixed, h * post[0] * given.sum(1)
    factors = []  # |Theta^-1| and |Theta| of diag(tau) M
    for f in metric.mapped(Tensor.double).scaled(terms.tau.sqrt()).factors:
        found = Ball((1 / f.theta).numpy()) if f.is_diagonal else inverse(Ball(f.theta.numpy()))
        factors.append(Factor(torch.from_numpy(abs(found.mid) + found.off), f.theta.abs()))
    balanced = Metric(tuple(factors))

    def size(v: Tensor) -> float:
        return float(balanced.left_divide(v[:, None]).norm())

    kappa = size(b * c + floor * (1 + N.sum(1)))
    rho = spectral_norm(balanced.right_multiply(balanced.left_divide(N))) * (1 + 1e-9)
    return rho, (size(c), kappa), (size(per_input), size(b * per_input + floor))


def _bounds(phi: Elementwise) -> tuple[Tensor, Tensor]:
    """g and |phi(0)| of every unit, (n,)."""
    g = torch.tensor([one.g for one in phi.units], dtype=torch.float64)
    return g, phi(torch.zeros_like(g)).abs()
