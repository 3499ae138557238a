"""One-way coupling, and the scaled metric in which it contracts.

Source: Kozachkov et al. 2022, hierarchical combination (arXiv 2106.08928); scales from THEORY section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from ctrnn_assembly.activations import Activation, Elementwise, activation
from ctrnn_assembly.coupling import BlockMatrix, Start
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.linalg import working_precision
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Edge
from ctrnn_assembly.topology import Pair, check_pairs


class Hierarchy(nn.Module):
    """One-way coupling: module j drives module i for each pair j < i, linear or through psi.

    Args:
        psi: None for K x_j, else the activation of K psi(x_j); its slope bound enters the gain.

    Guarantee: the assembly contracts at any rate below the smallest of its modules, in the scaled
    metric blkdiag(kappa_i M_i) that `Assembly.metric` returns (THEORY section 5).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        pairs: Sequence[Pair],
        *,
        psi: str | Activation | None = None,
        **start: Unpack[Start],
    ) -> None:
        super().__init__()
        self.pairs = check_pairs(pairs, len(sizes))
        self.psi = None if psi is None else activation(psi)
        down = [(j, i) for i, j in self.pairs]  # row = driven module, column = driving module
        self.K = BlockMatrix(sizes, down, **start)

    def matrix(self, metrics: list[Metric]) -> Tensor | None:
        """L, (n, n), or None when the edges are nonlinear."""
        return self.K() if self.psi is None else None

    def edges(self) -> tuple[Edge, ...]:
        if self.psi is None:
            return ()
        return (Edge(self.K(), Elementwise(((self.psi, self.K.n),))),)

    def gains(self, metrics: list[Metric], taus: list[Tensor]) -> Tensor:
        """gamma_ij >= sup ||Theta_i tau_i^-1/2 df_i/dx_j tau_j^-1/2 Theta_j^-1||, (p, p)."""
        K, sizes = self.K().to(metrics[0].factors[0].theta), self.K.sizes
        rows = [row.split(sizes, dim=1) for row in K.split(sizes, dim=0)]
        gains = K.new_zeros(len(sizes), len(sizes))
        for j, i in self.pairs:
            weight = (metrics[i].theta() / taus[i].sqrt()) @ rows[i][j]
            right = metrics[j].theta_inv() / taus[j].sqrt()[:, None]
            if self.psi is None:
                gain = torch.linalg.matrix_norm(weight @ right, ord=2)
            elif metrics[j].is_diagonal:  # the slopes commute with Theta_j^-1
                gain = self.psi.g * torch.linalg.matrix_norm(weight @ right, ord=2)
            else:
                norm = torch.linalg.matrix_norm(right, ord=2)
                gain = self.psi.g * torch.linalg.matrix_norm(weight, ord=2) * norm
            gains = gains.index_put((torch.tensor(i), torch.tensor(j)), gain)
        return gains


def hierarchy_scales(gains: Tensor, rates: Tensor) -> Tensor:
    """kappa of the metric blkdiag(kappa_i M_i) in which a hierarchy contracts at min(rates) / 2.

    H = gains - diag(rates) is Metzler; for l below -alpha(H), d = -(H + l I)^-1 1 and
    e = -(H + l I)^-T 1 are positive, and kappa = e / d (THEORY section 5).

    Args:
        gains: gamma_ij of the edge j -> i, (p, p), strictly lower triangular up to order.
        rates: of the modules, (p,), > 0.

    Raises:
        ContractionError: if kappa spans more orders of magnitude than the dtype of `gains` holds.
    """
    G, lam = working_precision(gains, rates)
    H = G - torch.diag(lam)
    shifted = -(H + lam.min() / 2 * torch.eye(len(lam)).to(H))
    one = torch.ones_like(lam)
    d = torch.linalg.solve_ex(shifted, one)[0]  # not finite rather than an error
    e = torch.linalg.solve_ex(shifted.mT, one)[0]
    kappa = (e / d).to(gains.dtype)
    if not bool((kappa > 0).all() and torch.isfinite(kappa).all()):
        raise ContractionError(
            f"the hierarchy's metric must be representable in {gains.dtype}; got scales "
            f"{(e / d).detach().tolist()}. Lower the gains, or shorten the chain."
        )
    return kappa
