"""An assembly taken apart for pictures: weights, strengths, metric and spectra as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ctrnn_assembly.diagnostics import coupling_spectrum, spectrum_at, weight_spectra
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.layers import CTRNN
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.solvers import GRID_METHODS
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.topology import recognise

Array = NDArray[np.float64]
Values = NDArray[np.complex128]

ABOVE_ZERO = 1e-9  # at 0 itself the slope of ReLU would be 0, and J = -I + L whatever W is


@dataclass(frozen=True)
class Anatomy:
    """The field of an assembly, in float64.

    Attributes:
        terms: W, L, tau and the activations. metric: M of the modules' own theorems.
    """

    core: nn.Module
    terms: Terms
    metric: Metric

    @classmethod
    @torch.no_grad()
    def of(cls, core: nn.Module, model: str) -> Anatomy:
        """Of a classifier's core.

        Raises:
            ConfigError: for a baseline, which has neither modules nor a metric.
        """
        if not isinstance(core, CTRNN):
            raise ConfigError(
                f"this picture is of an assembly; {model!r} is a baseline without modules. "
                "Use --kind curves or states."
            )
        terms, metric = core.field.terms().detach_cpu().double(), core.field.metric().detach_cpu()
        return cls(core, terms, Metric(tuple(_in_double(factor) for factor in metric.factors)))

    @property
    def blocks(self) -> tuple[Array, ...]:
        """W_i, (n_i, n_i) each."""
        return tuple(block.numpy() for block in self.terms.blocks)

    @property
    def coupling(self) -> Array | None:
        """L, (n, n), or None."""
        return None if self.terms.L is None else self.terms.L.numpy()

    @property
    def topology(self) -> str:
        """The name of the graph, or the number of its pairs."""
        return recognise(self.terms.pairs, len(self.terms.blocks))

    def strengths(self) -> Array:
        """Spectral norms in the metric, (p, p): W_i on the diagonal, L_ij, from j to i, beside it."""
        p = len(self.terms.blocks)
        found = np.zeros((p, p))
        factors = self.metric.factors
        for i, W in enumerate(self.terms.blocks):
            found[i, i] = float(torch.linalg.matrix_norm(factors[i].balance(W), ord=2))
        if self.terms.L is None:
            return found
        rows = [
            row.split(self.terms.sizes, dim=1) for row in self.terms.L.split(self.terms.sizes, dim=0)
        ]
        for i, j in [*self.terms.pairs, *(pair[::-1] for pair in self.terms.pairs)]:
            balanced = _turned(factors[j]).right_multiply(_turned(factors[i]).left_divide(rows[i][j]))
            found[i, j] = float(torch.linalg.matrix_norm(balanced, ord=2))
        return found

    def metric_eigenvalues(self) -> tuple[Array, ...]:
        """Of diag(tau) M, (n_i,) for each module; a dense M_i has one tau."""
        taus = self.terms.tau.split(self.terms.sizes)
        return tuple(
            (factor.theta.square() * tau).numpy()
            if factor.is_diagonal
            else (torch.linalg.svdvals(factor.theta).square() * tau[0]).numpy()
            for factor, tau in zip(self.metric.factors, taus, strict=True)
        )

    def spectra(self) -> dict[str, Any]:
        """Eigenvalues of W, L, J and of a step, and which step; None for what there is not.

        J is taken just above x = 0 under no input; that of gated models moves with the gates.
        """
        L = coupling_spectrum(self.terms).numpy() if self.terms.L is not None else None
        found: dict[str, Any] = {
            "W": torch.cat(weight_spectra(self.terms)).numpy(),
            "L": L,
            "J": None,
            "step": None,
            "about_step": "the gates move it",
        }
        core = self.core
        assert isinstance(core, CTRNN)
        if core.gates is not None and core.gates.kind != "constant":
            return found
        method = core.solver if core.solver in GRID_METHODS else None
        # The Terms, not the layer: local rates in a metric, which take as long again, are not drawn.
        terms = core.terms().detach_cpu()
        at = torch.full((1, self.terms.n), ABOVE_ZERO, dtype=torch.float64)
        here = spectrum_at(
            terms, None, at, dt=None if method is None else core.dt, solver=method or "euler"
        )
        found["J"] = here.eigenvalues[0].numpy()
        found["about_step"] = f"{core.solver} chooses its own steps"
        if here.step_eigenvalues is not None:
            found["step"] = here.step_eigenvalues[0].numpy()
            found["about_step"] = f"{core.solver}, dt {core.dt:g}"
        return found


def _in_double(factor: Factor) -> Factor:
    """Theta in float64, with its inverse taken there."""
    theta = factor.theta.double()
    return Factor(theta, 1 / theta if factor.is_diagonal else torch.linalg.inv(theta))


def _turned(factor: Factor) -> Factor:
    """Theta and Theta^-1 exchanged: `left_divide` multiplies by Theta, `right_multiply` by Theta^-1."""
    return Factor(factor.theta_inv, factor.theta)
