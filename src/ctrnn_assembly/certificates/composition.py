"""The rate of an assembly from the rates of its parts, without looking inside them.

| coupling | rate of the whole | metric |
|---|---|---|
| none, generalised negative feedback | min of the parts' | blkdiag(M_i) |
| hierarchy, gains G | -lmax(sym(kappa^1/2 (G - diag(rates)) kappa^-1/2)) | blkdiag(kappa_i M_i) |

Both can be nested to any depth. `certify` on the flattened assembly, in the same metric, gives at least
these rates up to rounding, if nonlinear edges join single modules. Between parts of several modules it
counts such an edge by the norms of its blocks, which are up to sqrt(modules) larger than the norm of the
whole edge: then the composed rate can be the better bound.

Source: Kozachkov et al. 2022, section 3; THEORY section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctrnn_assembly.certificates.rounding import largest_eigenvalue
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.linalg import symmetric_part


def feedback_rate(rates: Sequence[float]) -> float:
    """The rate of parts under generalised negative feedback in their metrics: the smallest one."""
    if not rates:
        raise ContractionError("an assembly needs at least one part; got none.")
    return min(rates)


def hierarchy_rate(rates: Sequence[float], gains: Tensor, kappa: Tensor) -> float:
    """The rate of parts under one-way coupling, in the metric blkdiag(kappa_i M_i).

    Args:
        rates: of the parts, per unit of time.
        gains: gamma_ij of the edge j -> i, (p, p), in the metrics diag(tau_i) M_i.
        kappa: positive scales, (p,), as `hierarchy.hierarchy_scales` makes them.

    Raises:
        ContractionError: if a scale is not positive or not finite.
    """
    kappa = kappa.double()
    if not bool((kappa > 0).all() and torch.isfinite(kappa).all()):
        raise ContractionError(f"the scales kappa must be positive and finite; got {kappa.tolist()}.")
    root = kappa.sqrt()
    scaled = root[:, None] * gains.double() / root
    S = symmetric_part(scaled) - torch.diag(torch.tensor(rates, dtype=torch.float64))
    return -largest_eigenvalue(S, 1e-15 * len(S) * (1 + float(scaled.norm()) + float(S.norm())))
