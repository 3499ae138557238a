"""What must hold before anything can be proven: finite tensors, positive tau, a usable metric."""

from __future__ import annotations

import torch

from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms

# Squares of larger entries overflow, and an infinite bound must never look like a proof.
LARGEST = 1e50


def unusable(terms: Terms, metric: Metric) -> str:
    """Why nothing can be proven, as a sentence, or an empty string."""
    sizes = tuple(factor.size for factor in metric.factors)
    if sizes != terms.sizes:
        return f"the metric has blocks of sizes {sizes}, the field modules of {terms.sizes}"
    tensors = [*terms.tensors(), *(f.theta for f in metric.factors)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        return "a weight, metric or time constant is NaN or infinite; retrain or use an intact copy"
    if not bool((terms.tau > 0).all()):
        return f"every time constant must be positive; the smallest is {float(terms.tau.min()):.6g}"
    largest = max(float(tensor.abs().max()) for tensor in tensors if tensor.numel())
    if largest > LARGEST or float(1 / terms.tau.min()) > LARGEST:
        return f"the largest entry is {largest:.3g}; above {LARGEST:g} float64 cannot prove anything"
    start = 0
    for k, (factor, t) in enumerate(zip(metric.factors, terms.tau.split(terms.sizes), strict=True)):
        reason = _bad_factor(factor)
        if reason:
            return f"the metric of module {k} {reason}"
        if not factor.is_diagonal and bool((t != t[0]).any()):
            return f"module {k} has a dense metric, which needs one time constant; got several"
        pre, post = ({m.at(start + u) for u in range(len(t))} for m in (terms.pre, terms.post))
        if len(pre) > 1 or len(post) > 1 or not {ACTIVATIONS["identity"]} & (pre | post):
            return f"module {k} needs one activation, before or after W"
        start += len(t)
    return ""


def _bad_factor(factor: Factor) -> str:
    """Why Theta is no factor of a positive definite metric, or an empty string."""
    if factor.is_diagonal:
        low, high = float(factor.theta.min()), float(factor.theta.max())
        limit = 1e-14
    else:
        values = torch.linalg.svdvals(factor.theta.double())
        low, high, limit = float(values[-1]), float(values[0]), 1e-7
    if high <= 1 / LARGEST or low <= limit * high:
        ratio = (high / low) ** 2 if low > 0 else float("inf")
        return (
            f"is singular or too ill-conditioned for a proof in float64 (condition number {ratio:.3g}); "
            "sample the module again with a smaller max_condition"
        )
    return ""
