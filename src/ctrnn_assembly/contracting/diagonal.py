"""What Theorems 1, 4 and 5 share: a trained diagonal metric P = diag(exp(2 b)), of bounded condition.

The exponent is squashed, b -> beta tanh(b / beta), beta = log(max_condition) / 4, so that cond(P) stays
below `max_condition`: couplings are multiplied by up to sqrt(cond P) (THEORY section 4).
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ctrnn_assembly.contracting.interface import Contracting, Form
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.linalg import log_metzler_scaling, majorant
from ctrnn_assembly.metrics import Factor

MAX_CONDITION = 1e6


class DiagonalMetric(Contracting):
    """W = (1 - margin) exp(b_j - b_i) X_ij / g with X = inside(A); raw tensors A (n, n) and b (n,).

    Guarantee: rate >= margin / tau in P, both forms, for every phi with |slopes| <= g.
    """

    axes = "nn", "n"
    settings = Contracting.settings | {"max_condition": "(1, inf)"}
    max_condition: float = MAX_CONDITION  # of P

    @abstractmethod
    def inside(self, A: Tensor) -> Tensor:
        """X, (n, n), with a rate above 0 in M = I for g = 1, for any finite A (n, n)."""

    @abstractmethod
    def outward(self, X: Tensor) -> Tensor:
        """The inverse of `inside`."""

    @abstractmethod
    def metric_of(self, W: Tensor) -> Tensor:
        """log theta, (n,), of a diagonal metric that shows a rate above the margin, or an error."""

    def weight(self, A: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        X = self.radius * self.inside(A)
        return balanced(X, -squash(b, self.max_condition)) / self.phi.g

    def raw(self, W: Tensor) -> tuple[Tensor, Tensor]:
        log_theta = self.metric_of(W)
        A = self.outward(balanced(self.phi.g * W, log_theta) / self.radius)
        return A, unsquash(log_theta, self.max_condition)

    def metric(self, *raw: Tensor, form: Form) -> Factor:
        return Factor.diagonal(squash(raw[1], self.max_condition))


def balanced(W: Tensor, log_theta: Tensor) -> Tensor:
    """theta W theta^-1, for W (..., n, n) and log theta (..., n)."""
    return W * (log_theta[..., None] - log_theta[..., None, :]).exp()


def metzler_metric(rule: Contracting, W: Tensor) -> Tensor:
    """log theta, (n,), with lmax(sym(g theta |W| theta^-1)) < radius, if rho(g |W|) < radius."""
    B = rule.phi.g * majorant(W, rule.phi.monotone)
    if (log_theta := log_metzler_scaling(B, rule.radius)) is not None:
        return log_theta
    fix = "Scale W down, or use the constraint unconstrained (no certificate)."
    rho = float(torch.linalg.eigvals(B).abs().max())
    raise rule.outside(f"rho(g |W|) < {rule.radius:.6g}", rho, fix)


def squash(b: Tensor, max_condition: float) -> Tensor:
    beta = math.log(max_condition) / 4
    return beta * torch.tanh(b / beta)


def unsquash(log_theta: Tensor, max_condition: float) -> Tensor:
    """The raw b of an exponent, centred first; an error if its condition number reaches the bound."""
    centred = log_theta - (log_theta.max() + log_theta.min()) / 2
    beta = math.log(max_condition) / 4
    if bool((centred.abs() >= beta).any()):
        condition = float((4 * centred.abs().max()).exp())
        must = f"the metric's condition number must be below {max_condition:g}; got {condition:.3g}"
        raise ContractionError(f"{must}. Use smaller or sparser weights, or raise max_condition.")
    return beta * torch.atanh(centred / beta)
