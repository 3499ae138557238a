"""Theorem 1, frozen and sparse: the modules of the Sparse Combo Net.

A random sparse W is drawn until rho(g |W|) < 1 (or scaled into the set) and then kept fixed; only
the couplings train. The metric is the diagonal P = diag(e / d) of THEORY sections 2 and 4.

Source: Kozachkov et al. 2022, Theorem 1 and section 4 (arXiv 2106.08928).
"""

from typing import Literal

import torch
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.contracting import diagonal
from ctrnn_assembly.contracting.diagonal import metzler_metric
from ctrnn_assembly.contracting.interface import Contracting, Form, check_square
from ctrnn_assembly.errors import ConfigError, ContractionError
from ctrnn_assembly.linalg import majorant, symmetric_part, working_precision
from ctrnn_assembly.metrics import Factor


class SparseAbsolute(Contracting):
    """Theorem 1, frozen and sparse: rho(g |W|) < 1; raw tensors W (n, n) and log theta (n,), buffers.

    A sample is `sparse_uniform`, drawn again, at most `tries` times, until W is in the set and cond(P)
    at most `max_condition`; `outside_set` "rescale" shrinks a W that is not in the set.
    Guarantee: rate >= margin / tau in diag(theta^2).
    """

    theorem = "Theorem 1"
    frozen = True
    axes = "nn", "n"

    def __init__(
        self,
        phi: str | Activation = "relu",
        *,
        margin: float = 0.01,
        density: float = 0.033,
        magnitude: float = 1.0,
        outside_set: Literal["reject", "rescale"] = "reject",
        max_condition: float = diagonal.MAX_CONDITION,
        tries: int = 1000,
    ) -> None:
        super().__init__(phi, margin=margin)
        if not 0 < density <= 1:
            raise ConfigError(f"density must be in (0, 1]; got {density}. Use density=0.033.")
        if not 0 < magnitude < float("inf"):
            raise ConfigError(f"magnitude must be positive and finite; got {magnitude}.")
        self.density, self.magnitude, self.outside_set = density, magnitude, outside_set
        self.max_condition, self.tries = diagonal.checked_condition(max_condition), tries

    def weight(self, W: Tensor, log_theta: Tensor) -> Tensor:  # type: ignore[override]
        return W.clone()  # an in-place change of the weight must not reach the frozen one

    def raw(self, W: Tensor) -> tuple[Tensor, Tensor]:
        log_theta = metzler_metric(self, W)
        diagonal.unsquash(log_theta, self.max_condition)  # raises if the metric is conditioned too badly
        return W.clone(), log_theta  # a copy: the caller may still change its own

    def metric(self, *raw: Tensor, form: Form) -> Factor:
        return Factor.diagonal(raw[1])

    def check(self, W: Tensor, log_theta: Tensor) -> None:
        """Refuse raw tensors, such as those of a file, that are slower than margin in diag(theta^2)."""
        check_square(W)
        W64, log_theta64 = working_precision(W, log_theta)
        S = symmetric_part(diagonal.balanced(self.phi.g * majorant(W64, self.phi.monotone), log_theta64))
        top = float(torch.linalg.eigvalsh(S)[-1]) if bool(torch.isfinite(S).all()) else float("nan")
        if not top <= 1 - self.margin:
            condition = f"g lmax(sym(P^1/2 |W| P^-1/2)) <= {1 - self.margin:.6g}"
            fix = "Build the module with the margin and the activation that the weights were made for."
            raise self.outside(condition, top, fix)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        for _ in range(self.tries):
            W = sparse_uniform(n, self.density, self.magnitude, generator)
            if self.outside_set == "rescale":  # so that rho(g |W|) <= 0.9 radius; acyclic weights stay
                B = self.phi.g * majorant(W.double(), self.phi.monotone)
                target = 0.9 * self.radius
                W = W * (target / max(target, float(torch.linalg.eigvals(B).abs().max())))
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


def sparse_uniform(
    n: int, density: float, magnitude: float, generator: torch.Generator | None = None
) -> Tensor:
    """round(density n^2) positions, entries uniform in (-magnitude, magnitude), zero diagonal."""
    W = torch.zeros(n * n)
    where = torch.randperm(n * n, generator=generator)[: round(density * n * n)]
    W[where] = magnitude * (2 * torch.rand(len(where), generator=generator) - 1)
    return W.view(n, n).fill_diagonal_(0)
