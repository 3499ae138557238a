"""An assembly taken apart for pictures: weights, strengths of the couplings, metric and eigenvalues.

Everything is float64, as plain arrays. The field itself is drawn, without gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ctrnn_assembly.certificates.wording import up
from ctrnn_assembly.diagnostics import flow_jacobian, step_jacobian
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures.graph import graph_figure
from ctrnn_assembly.figures.spectrum import parts_figure
from ctrnn_assembly.figures.style import (
    COLOURS,
    GREY,
    Array,
    log_axis,
    module_ticks,
    new_figure,
    printed,
)
from ctrnn_assembly.figures.weights import weights_figure
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.solvers import GRID_SOLVERS
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.topology import recognise

ABOVE_ZERO = 1e-9  # at 0 itself the slope of ReLU would be 0, and J = -I + L whatever W is


@dataclass(frozen=True)
class NetworkArrays:
    """The field of a layer.

    Attributes:
        layer: the layer itself. title: what to call it.
        terms: W, L, tau and the activations. metric: M of the modules' own theorems.
    """

    layer: Any
    title: str
    terms: Terms
    metric: Metric

    @classmethod
    @torch.no_grad()
    def of(cls, layer: Any, title: str) -> NetworkArrays:
        """Of a layer with a field.

        Raises:
            ConfigError: for a baseline, which has neither modules nor a metric.
        """
        field = getattr(layer, "field", None)
        if field is None:
            raise ConfigError(
                f"this picture is of an assembly; {type(layer).__name__} is a baseline without modules. "
                "Draw its curves or states."
            )
        factors = tuple(_in_double(factor) for factor in field.metric().detach_cpu().factors)
        return cls(layer, title, field.terms().detach_cpu().double(), Metric(factors))

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.terms.sizes

    def strengths(self) -> Array:
        """Spectral norms in the metric, (p, p): W_i on the diagonal, L_ij, from j to i, beside it."""
        W, p, pairs = self.terms.weight(), len(self.sizes), self.terms.pairs
        A = W if self.terms.L is None else W + self.terms.L
        K = self.metric.theta() @ A @ self.metric.theta_inv()
        blocks = [row.split(self.sizes, dim=1) for row in K.split(self.sizes, dim=0)]
        found = np.zeros((p, p))
        for i, j in [*((k, k) for k in range(p)), *pairs, *(pair[::-1] for pair in pairs)]:
            found[i, j] = _norm(blocks[i][j])
        return found

    def metric_eigenvalues(self) -> tuple[Array, ...]:
        """Of diag(tau) M, (n_i,) for each module; a dense M_i has one tau."""
        taus = self.terms.tau.split(self.sizes)
        thetas = [factor.theta for factor in self.metric.factors]
        return tuple(
            (
                theta.square() * tau if theta.ndim == 1 else torch.linalg.svdvals(theta) ** 2 * tau[0]
            ).numpy()
            for theta, tau in zip(thetas, taus, strict=True)
        )

    def spectra(self) -> dict[str, Any]:
        """Eigenvalues of W, L, J and of a step, and which step; None for what there is not.

        J is taken just above x = 0 under no input.
        """
        layer = self.layer
        x = torch.full((1, self.terms.n), ABOVE_ZERO, dtype=torch.float64)
        u = x.new_zeros(1, layer.input_size)
        L, fixed = self.terms.L, layer.solver in GRID_SOLVERS
        step = _eigenvalues(step_jacobian(layer, u, x)[0]) if fixed else None
        return {
            "W": _eigenvalues(self.terms.weight()),
            "L": None if L is None else _eigenvalues(L),
            "J": _eigenvalues(flow_jacobian(layer, u, x)[0]),
            "step": step,
            "about_step": layer.solver + (f", dt {layer.dt:g}" if fixed else " chooses its own steps"),
        }


def draw_weights(net: NetworkArrays) -> Figure:
    """W within the modules and L between them."""
    blocks = tuple(block.numpy() for block in net.terms.blocks)
    L = None if net.terms.L is None else net.terms.L.numpy()
    return weights_figure(net.terms.weight().numpy(), blocks, L, title=net.title)


def draw_graph(net: NetworkArrays) -> Figure:
    """Modules and couplings."""
    pairs = net.terms.pairs
    topology = recognise(pairs, len(net.sizes))
    units = "-".join(str(size) for size in sorted({min(net.sizes), max(net.sizes)}))
    count = f"{len(pairs)} pair{'s' if len(pairs) != 1 else ''}"
    named = topology if topology in ("none", count) else f"{topology}, {count}"
    title = f"{net.title}: {len(net.sizes)} x {units} units, coupling {named}"
    return graph_figure(net.strengths(), pairs, topology, title=title)


def draw_spectra(net: NetworkArrays) -> Figure:
    """Eigenvalues of W, L, the Jacobian and a step."""
    return parts_figure(**net.spectra(), title=f"{net.title}: eigenvalues")


@printed
def draw_metric(net: NetworkArrays) -> Figure:
    """The eigenvalues of the network's own metric: a rising row of dots for each module."""
    eigenvalues = net.metric_eigenvalues()
    low, high = (float(f([f(values) for values in eigenvalues])) for f in (np.min, np.max))
    kind = "diagonal" if net.metric.is_diagonal else "block-diagonal"
    figure = new_figure(2.9, f"{net.title}: metric of the modules, {kind}")
    axes = figure.subplots()
    size = max(1.0, min(4.0, 900 / net.terms.n))
    for k, values in enumerate(eigenvalues):
        across = k + np.linspace(-0.36, 0.36, len(values)) if len(values) > 1 else np.array([k])
        axes.plot(across, np.sort(values), "o", color=COLOURS[k % 2], markersize=size, mew=0)
    for value in (low, high):
        axes.axhline(value, color=GREY, linewidth=0.7, linestyle=(0, (4, 2)))
    room = max((high / low) ** 0.15, 1.6)
    axes.set_ylim(low / room, high * room)
    log_axis(axes)
    module_ticks(axes, len(eigenvalues))
    axes.set_xlabel("module; its eigenvalues from the smallest to the largest")
    axes.set_ylabel("eigenvalue of diag(tau) M")
    place: dict[str, Any] = {"ha": "right", "va": "center", "transform": axes.get_yaxis_transform()}
    said = f"condition number {up(high / low)}"
    axes.text(0.995, high * room**0.5, said, fontsize=8, color=GREY, **place)
    return figure


NETWORK_FIGURES = {
    "weights": draw_weights,
    "graph": draw_graph,
    "metric": draw_metric,
    "spectra": draw_spectra,
}


def _norm(A: Tensor) -> float:
    return float(torch.linalg.matrix_norm(A, ord=2))


def _eigenvalues(A: Tensor) -> NDArray[np.complex128]:
    return torch.linalg.eigvals(A).numpy()


def _in_double(factor: Factor) -> Factor:
    """Theta in float64, with its inverse taken there."""
    theta = factor.theta.double()
    return Factor(theta, 1 / theta if factor.is_diagonal else torch.linalg.inv(theta))
