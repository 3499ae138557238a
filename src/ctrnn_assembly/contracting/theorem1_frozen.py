"""Theorem 1, frozen and sparse: the modules of the Sparse Combo Net.

A random sparse W is drawn until rho(g |W|) < 1 (or scaled into the set) and then kept fixed; only
the couplings train. The metric is the diagonal P = diag(e / d) with d = (rI - B)^-1 1 and
e = (rI - B^T)^-1 1 for B = g |W| (THEORY sections 2 and 4). The released code of the paper accepts
M = I / 2 for every network because its test multiplies element by element; here P is built, checked,
and draws whose metric is conditioned worse than `max_condition` are refused.

Source: Kozachkov et al. 2022, Theorem 1 and section 4 (arXiv 2106.08928).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.contracting.diagonal import (
    MAX_CONDITION,
    balanced,
    check_max_condition,
    metzler_metric,
    unsquash,
)
from ctrnn_assembly.contracting.interface import Contracting, Form, check_square, outside
from ctrnn_assembly.errors import ConfigError, ContractionError
from ctrnn_assembly.linalg import majorant, symmetric_part, working_precision
from ctrnn_assembly.metrics import Factor


class SparseAbsolute(Contracting):
    """Theorem 1, frozen and sparse: rho(g |W|) < 1; raw tensors W (n, n) and log theta (n,), buffers.

    Args:
        density: share of the n^2 entries that are drawn, 0 < density <= 1.
        magnitude: entries are uniform in (-magnitude, magnitude); the diagonal is 0.
        outside_set: "reject" draws again until W is in the set; "rescale" shrinks a W that is not.
        max_condition: largest accepted condition number of the metric.
        tries: draws before giving up.

    Guarantee: continuous-time contraction at rate >= margin / tau in diag(theta^2), both forms.
    """

    theorem = "Theorem 1"
    frozen = True

    def __init__(
        self,
        phi: str | Activation = "relu",
        *,
        margin: float = 0.01,
        density: float = 0.033,
        magnitude: float = 1.0,
        outside_set: Literal["reject", "rescale"] = "reject",
        max_condition: float = MAX_CONDITION,
        tries: int = 1000,
    ) -> None:
        super().__init__(phi, margin=margin)
        check_max_condition(max_condition)
        if not 0 < density <= 1:
            raise ConfigError(f"density must be in (0, 1]; got {density}. Use density=0.033.")
        if not 0 < magnitude < float("inf"):
            raise ConfigError(f"magnitude must be positive and finite; got {magnitude}.")
        self.density, self.magnitude, self.outside_set = density, magnitude, outside_set
        self.max_condition, self.tries = max_condition, tries

    def forward(self, W: Tensor, log_theta: Tensor) -> Tensor:  # type: ignore[override]
        return W.clone()  # an in-place change of the weight must not reach the frozen one

    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        check_square(W)
        (W64,) = working_precision(W.detach())
        log_theta = metzler_metric(self, W64)
        unsquash(log_theta, self.max_condition)  # raises if the metric is conditioned too badly
        # A copy: W must not change with a tensor that the caller still holds.
        return W.detach().clone(), log_theta.to(W.dtype)

    def check(self, W: Tensor, log_theta: Tensor) -> None:
        """Refuse raw tensors, such as those of a file, whose metric does not show the rate.

        Raises:
            ContractionError: if W contracts slower than margin in diag(theta^2).
        """
        check_square(W)
        W64, theta64 = working_precision(W, log_theta)
        B = self.phi.g * majorant(W64, self.phi.monotone)
        S = symmetric_part(balanced(B, theta64))
        top = float(torch.linalg.eigvalsh(S)[-1]) if bool(torch.isfinite(S).all()) else float("nan")
        if not top <= 1 - self.margin:
            raise outside(
                self.theorem,
                f"g lmax(sym(P^1/2 |W| P^-1/2)) <= {1 - self.margin:.6g}",
                top,
                "Build the module with the margin and the activation that the weights were made for.",
            )

    def factor(self, *raw: Tensor, form: Form) -> Factor:
        return Factor.diagonal(*working_precision(raw[1]))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        for _ in range(self.tries):
            W = sparse_uniform(n, self.density, self.magnitude, generator)
            if self.outside_set == "rescale":
                W = self._rescaled(W)
            try:
                self.right_inverse(W)
            except ContractionError:
                continue
            return W
        raise ContractionError(
            f"no module of {n} units with density {self.density} and magnitude {self.magnitude} "
            f"met Theorem 1 with cond(P) <= {self.max_condition:g} in {self.tries} draws. Lower "
            "the density or the magnitude, or use outside_set='rescale'."
        )

    def _rescaled(self, W: Tensor) -> Tensor:
        """W, scaled so that rho(g |W|) is at most 0.9 (1 - margin); acyclic weights stay."""
        B = self.phi.g * majorant(W.double(), self.phi.monotone)
        rho = float(torch.linalg.eigvals(B).abs().max())
        target = 0.9 * self.radius
        return W * (target / rho) if rho > target else W


def sparse_uniform(
    n: int, density: float, magnitude: float, generator: torch.Generator | None = None
) -> Tensor:
    """round(density n^2) positions, entries uniform in (-magnitude, magnitude), zero diagonal."""
    W = torch.zeros(n * n)
    where = torch.randperm(n * n, generator=generator)[: round(density * n * n)]
    W[where] = magnitude * (2 * torch.rand(len(where), generator=generator) - 1)
    return W.view(n, n).fill_diagonal_(0)
