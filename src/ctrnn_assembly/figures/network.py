"""An assembly taken apart: its weights and couplings."""

from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures import style
from ctrnn_assembly.figures.style import Array
from ctrnn_assembly.topology import recognise


class NetworkArrays:
    """The field of a layer without its gates, and the metric of its modules' own theorems, in float64.

    ConfigError for a baseline, which has neither.
    """

    def __init__(self, layer: Any, title: str) -> None:
        field = getattr(layer, "field", None)
        if field is None:
            raise ConfigError(
                f"this picture is of one assembly; got {type(layer).__name__}, a baseline or a stack of "
                "layers. Draw its curves."
            )
        self.layer, self.title = layer, title
        self.terms = field.terms().detach_cpu().double()
        self.metric = field.metric().detach_cpu().mapped(torch.Tensor.double)

    def strengths(self) -> Array:
        """Spectral norms in the metric, (p, p): W_i on the diagonal, L_ij, from j to i, beside it."""
        terms, theta = self.terms, self.metric.theta()
        A = terms.weight() if terms.L is None else terms.weight() + terms.L
        K = torch.linalg.solve(theta, theta @ A, left=False)
        blocks = [row.split(terms.sizes, dim=1) for row in K.split(terms.sizes, dim=0)]
        found = np.zeros((len(blocks), len(blocks)))
        own = ((k, k) for k in range(len(blocks)))
        for i, j in [*own, *terms.pairs, *(pair[::-1] for pair in terms.pairs)]:
            found[i, j] = float(torch.linalg.matrix_norm(blocks[i][j], ord=2))
        return found


@style.printed
def draw_weights(net: NetworkArrays) -> Figure:
    """Heat maps of W and of L, each with its own colours."""
    figure = style.new_figure(3.35, net.title)
    matrices = {"W, within the modules": net.terms.weight(), "L, between the modules": net.terms.L}
    for axes, (title, A) in zip(figure.subplots(1, 2), matrices.items(), strict=True):
        axes.set_title(title)
        if A is None:
            style.empty(axes, "no linear coupling")
            continue
        bound = style.bound_of(A.numpy())
        image = style.heat_map(axes, A.numpy(), Normalize(-bound, bound))
        style.borders(axes, net.terms.sizes)
        axes.set(xlabel="from unit", ylabel="to unit")
        style.colour_bar(image, axes, shrink=0.85, extend="both")
    return figure


@style.printed
def draw_coupling(net: NetworkArrays) -> Figure:
    """The norms of L between modules, in the metric, as a matrix: row from column."""
    strengths, pairs, sizes = net.strengths(), net.terms.pairs, net.terms.sizes
    p, topology = len(sizes), recognise(pairs, len(sizes))
    units = "-".join(str(size) for size in sorted({min(sizes), max(sizes)}))
    count = f"{len(pairs)} pair{'s' if len(pairs) != 1 else ''}"
    named = topology if topology in ("none", count) else f"{topology}, {count}"
    figure = style.new_figure(3.9, f"{net.title}: {p} x {units} units, coupling {named}", width=5.2)
    axes = figure.subplots()
    own = [f"{norm:.3g}" for norm in (strengths.diagonal().min(), strengths.diagonal().max())]
    about = f"norm in the metric; of W: {' to '.join(dict.fromkeys(own))}"
    between = np.where((np.eye(p) > 0) | (strengths <= 0), np.nan, strengths)
    if np.isnan(between).all():
        style.empty(axes, f"no linear coupling\n{about}")
        return figure
    low, high = float(np.nanmin(between)), float(np.nanmax(between))
    norm = Normalize(low if low < 0.99 * high else 0.9 * low, high)
    image = style.heat_map(axes, between, norm, colours=style.SEQUENTIAL)
    image.set_extent((-0.5, p - 0.5, p - 0.5, -0.5))
    style.module_ticks(axes, p, vertical=True)
    axes.set(xlabel="from module", ylabel="to module", title=about)
    style.colour_bar(image, axes, "norm of L in the metric", shrink=0.85)
    return figure


NETWORK_FIGURES = {"weights": draw_weights, "coupling": draw_coupling}
