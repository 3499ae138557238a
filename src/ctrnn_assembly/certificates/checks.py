"""What must hold before anything can be proven: finite tensors, positive tau, a usable metric."""

from __future__ import annotations

import torch

from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms

# Products of three larger entries overflow, and an infinite bound must never look like a proof.
LARGEST = 1e50


def unusable(terms: Terms, metric: Metric) -> str:
    """Why nothing can be proven, as a sentence, or an empty string."""
    tensors = [*terms.tensors(), *(factor.theta for factor in metric.factors)]
    for tensor in tensors:
        if tensor.is_complex() or tensor.layout != torch.strided or tensor.dtype == torch.bool:
            return f"weights, metric and time constants must be real and dense; got {tensor.dtype}"
    shapes = _bad_shapes(terms, metric)
    if shapes:
        return shapes
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        return "a weight, metric or time constant is NaN or infinite; retrain or use an intact copy"
    tau = terms.tau.double()
    if not bool((tau > 0).all()):
        return f"every time constant must be positive; the smallest is {float(tau.min()):.6g}"
    largest = max(float(tensor.abs().max()) for tensor in tensors if tensor.numel())
    if largest > LARGEST or float(1 / tau.min()) > LARGEST:
        return (
            f"the largest entry is {largest:.3g} and the smallest time constant {float(tau.min()):.3g}; "
            f"beyond {LARGEST:g} and its inverse float64 cannot prove anything"
        )
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


def _bad_shapes(terms: Terms, metric: Metric) -> str:
    """Which tensor has the wrong shape, or an empty string."""
    blocks = [tuple(W.shape) for W in terms.blocks]
    if not blocks or any(len(s) != 2 or s[0] != s[1] or s[0] < 1 for s in blocks):
        return f"every module needs a square weight; got shapes {blocks[:4]}"
    n = sum(s[0] for s in blocks)
    thetas = [tuple(factor.theta.shape) for factor in metric.factors]
    fits = [theta in ((s[0],), s) for theta, s in zip(thetas, blocks, strict=False)]
    if len(thetas) != len(blocks) or not all(fits):
        return f"the metric has factors of shapes {thetas[:4]}, the field modules of {blocks[:4]}"
    square = [terms.L] if terms.L is not None else []
    square += [edge.K for edge in terms.edges]
    wrong = [tuple(A.shape) for A in square if A.shape != (n, n)]
    if wrong or terms.tau.shape != (n,):
        return f"couplings must be ({n}, {n}) and tau ({n},); got {wrong[:4]}, {tuple(terms.tau.shape)}"
    maps = (terms.pre, terms.post, *(edge.psi for edge in terms.edges))
    if any(sum(size for _, size in m.runs) != n for m in maps):
        return f"every activation must be declared for all {n} units"
    return ""


def _bad_factor(factor: Factor) -> str:
    """Why Theta is no factor of a positive definite metric, or an empty string."""
    if factor.is_diagonal:
        low, high = float(factor.theta.min()), float(factor.theta.max())
        limit = 1e-14
        if low <= 0:
            return f"must have a positive factor theta; the smallest entry is {low:.3g}"
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
