"""Sets whose metric is diagonal: trained, P = diag(exp(2 b)) of Theorems 1 and 5, or the identity.

The exponent is squashed, b -> beta tanh(b / beta) with beta = log(max_condition) / 4, so that no
optimiser step can make cond(P) exceed `max_condition`: couplings are multiplied by up to
sqrt(cond P), and beyond about 1e6 float32 gradients explode (THEORY section 4).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.contracting.interface import Contracting, Form, check_square, outside
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.linalg import log_metzler_scaling, majorant, working_precision
from ctrnn_assembly.metrics import Factor

MAX_CONDITION = 1e6


class IdentityMetric(Contracting):
    """A set of weights whose metric is M = I."""

    def factor(self, *raw: Tensor, form: Form) -> Factor:
        return Factor.identity(raw[0].shape[0], *working_precision(raw[0][:0]))


class DiagonalMetric(Contracting):
    """W = (1 - margin) exp(b_j - b_i) X_ij / g with X = inside(A); raw tensors A (n, n) and b (n,).

    `inside` maps any A to the X that contract at a rate above 0 in the identity metric, for g = 1.

    Args:
        max_condition: largest condition number of the metric.
        init_scale: sqrt(n) times the standard deviation of the A of a sample.
    """

    default_scale: ClassVar[float] = 1.0

    def __init__(
        self,
        phi: str | Activation = "tanh",
        *,
        margin: float = 0.01,
        max_condition: float = MAX_CONDITION,
        init_scale: float | None = None,
    ) -> None:
        super().__init__(phi, margin=margin)
        check_max_condition(max_condition)
        self.max_condition = max_condition
        self.init_scale = self.default_scale if init_scale is None else init_scale

    @abstractmethod
    def inside(self, A: Tensor) -> Tensor:
        """X, (n, n), for any finite A (n, n), float64."""

    @abstractmethod
    def raw(self, X: Tensor) -> Tensor:
        """An A with inside(A) = X."""

    @abstractmethod
    def metric_of(self, W: Tensor) -> Tensor:
        """log theta, (n,), of a diagonal metric that shows a rate above the margin.

        Raises:
            ContractionError: if none is found.
        """

    def forward(self, A: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        A64, b64 = working_precision(A, b)
        log_theta = squash(b64, self.max_condition)
        X = self.radius * self.inside(A64)
        return (X * (log_theta - log_theta[:, None]).exp() / self.phi.g).to(A.dtype)

    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        check_square(W)
        (W64,) = working_precision(W.detach())
        log_theta = self.metric_of(W64)
        A = self.raw(balanced(self.phi.g * W64, log_theta) / self.radius)
        return A.to(W.dtype), unsquash(log_theta, self.max_condition).to(W.dtype)

    def factor(self, *raw: Tensor, form: Form) -> Factor:
        (b,) = working_precision(raw[1])
        return Factor.diagonal(squash(b, self.max_condition))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        A = torch.randn(n, n, generator=generator) * self.init_scale / n**0.5
        return self(A, torch.zeros(n))


def balanced(W: Tensor, log_theta: Tensor) -> Tensor:
    """theta W theta^-1."""
    return W * (log_theta[:, None] - log_theta).exp()


def metzler_metric(rule: Contracting, W: Tensor) -> Tensor:
    """log theta, (n,), with lmax(sym(g theta |W| theta^-1)) < radius, from two solves.

    Raises:
        ContractionError: if rho(g |W|) is not below the radius.
    """
    B = rule.phi.g * majorant(W, rule.phi.monotone)
    log_theta = log_metzler_scaling(B, rule.radius)
    if log_theta is None:
        raise outside(
            rule.theorem,
            f"rho(g |W|) < {rule.radius:.6g}",
            float(torch.linalg.eigvals(B).abs().max()),
            "Scale W down, or use the constraint unconstrained (no certificate).",
        )
    return log_theta


def squash(b: Tensor, max_condition: float) -> Tensor:
    """The exponent actually used, |.| < log(max_condition) / 4."""
    beta = math.log(max_condition) / 4
    return beta * torch.tanh(b / beta)


def unsquash(log_theta: Tensor, max_condition: float) -> Tensor:
    """The raw b of a given exponent, centred first.

    Raises:
        ContractionError: if the metric's condition number is not below `max_condition`.
    """
    centred = log_theta - (log_theta.max() + log_theta.min()) / 2
    beta = math.log(max_condition) / 4
    ratio = centred / beta
    if bool((ratio.abs() >= 1).any()):
        condition = float((4 * centred.abs().max()).exp())
        raise ContractionError(
            f"the metric's condition number must be below {max_condition:g}; got {condition:.3g}. "
            "Use smaller or sparser weights, or raise max_condition."
        )
    return beta * torch.atanh(ratio)


def check_max_condition(max_condition: float) -> None:
    """Refuse a bound that admits no metric but the identity."""
    if not 1 < max_condition < float("inf"):
        raise ContractionError(f"max_condition must be above 1 and finite; got {max_condition}.")
