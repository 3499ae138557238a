"""The generalised Jacobian: J in the coordinates where the metric is the Euclidean norm.

    F = Theta' J Theta'^-1,    Theta' = Theta diag(tau)^1/2,    metric diag(tau) M

F has the eigenvalues of J. Distances in the metric change at a rate between the extreme eigenvalues
of sym(F) = (F + F^T) / 2, so -lmax(sym F) is the local contraction rate: at least the rate of a
certificate in that metric, and at most -alpha(J), minus the largest real part of an eigenvalue of J.

Source: THEORY sections 1 and 7; Lohmiller and Slotine 1998.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.jacobian import Jacobian, check_points, field_map
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms


@dataclass(frozen=True)
class Balanced:
    """The metric diag(tau) M, in float64.

    Attributes:
        metric: Theta, with inverses taken in float64. turned: Theta and Theta^-1 exchanged.
        root: tau^1/2, (n,).
    """

    metric: Metric
    turned: Metric
    root: Tensor

    @classmethod
    def of(cls, metric: Metric, tau: Tensor) -> Balanced:
        """From M and tau, (n,).

        Raises:
            ShapeError: if the sizes differ. DataError: if Theta is not finite or singular.
        """
        if metric.size != len(tau):
            raise ShapeError(f"the metric must be for {len(tau)} units; got one for {metric.size}.")
        factors = tuple(_in_double(factor) for factor in metric.factors)
        turned = tuple(Factor(f.theta_inv, f.theta) for f in factors)
        return cls(Metric(factors), Metric(turned), tau.sqrt())

    def matrix(self, J: Tensor) -> Tensor:
        """F, (n, n), for J (n, n)."""
        scaled = self.root[:, None] * J / self.root
        return self.turned.right_multiply(self.turned.left_divide(scaled))

    def symmetric_product(self, J: Jacobian, v: Tensor) -> Tensor:
        """sym(F) v for the only state of J and v (n,)."""
        forward = J.product(self.metric.left_divide(v[:, None]).mT / self.root) * self.root
        back = J.transposed(self.metric.right_multiply(v[None]) * self.root) / self.root
        return (self.turned.left_divide(forward.mT)[:, 0] + self.turned.right_multiply(back)[0]) / 2


@torch.no_grad()
def generalised_jacobian(
    field: Any, x: Tensor, u: Tensor | None = None, *, metric: Metric | None = None
) -> Tensor:
    """F at the states x, (batch, n, n), float64, per unit of time.

    Args:
        field: a `Subnetwork`, `Assembly`, `CTRNN` or `Terms`.
        x: states, (batch, n). u: inputs, (batch, m) or (1, m), or None.
        metric: M; by default the field's own. `Terms` have none.

    Raises:
        ConfigError: if there is no metric. ShapeError, DataError: for inputs that do not fit.
    """
    split = field_map(field)
    balanced = Balanced.of(require_metric(field, metric), split.terms.tau)
    J = split.jacobian(*check_points(split.terms, x, u)).matrix()
    return torch.stack([balanced.matrix(one) for one in J])


@torch.no_grad()
def local_rates(
    field: Any, x: Tensor, u: Tensor | None = None, *, metric: Metric | None = None
) -> Tensor:
    """-lmax(sym F) at the states x, (batch,), per unit of time; arguments as `generalised_jacobian`.

    Guarantee: each is at least the rate of a certificate in this metric, and their minimum over all
    states is the best rate that the metric can prove by slopes that the states reach.
    """
    F = generalised_jacobian(field, x, u, metric=metric)
    return -torch.linalg.eigvalsh(symmetric_part(F))[:, -1]


def own_metric(field: Any) -> Metric | None:
    """The field's own metric as its weights are now, or None."""
    return None if isinstance(field, Terms) else field.metric()


def require_metric(field: Any, metric: Metric | None) -> Metric:
    """The given metric, or the field's own.

    Raises:
        ConfigError: if there is neither.
    """
    found = own_metric(field) if metric is None else metric
    if found is None:
        raise ConfigError(
            "Terms have no metric of their own; got metric=None. Give metric=..., for the Euclidean "
            "norm Metric((Factor.identity(terms.n, terms.tau),))."
        )
    return found


def _in_double(factor: Factor) -> Factor:
    """The factor in float64 on the CPU, with its inverse taken there."""
    theta = factor.theta.detach().to("cpu", torch.float64)
    inverse, info = (theta.reciprocal(), 0) if factor.is_diagonal else torch.linalg.inv_ex(theta)
    if int(info) or not bool(torch.isfinite(theta).all() and torch.isfinite(inverse).all()):
        raise DataError(
            "the metric must be finite and positive definite; got a singular or infinite factor. "
            "Load or build the network again."
        )
    return Factor(theta, inverse)
