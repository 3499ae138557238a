"""An assembly taken apart: its weights and couplings."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures import style
from ctrnn_assembly.figures.style import Array
from ctrnn_assembly.topology import recognise

ENLARGED, IN_A_ROW = 16, 8  # blocks of W


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
    """Heat maps. Top: W and L, each with its own colours. Below: the blocks of W enlarged."""
    blocks, L = [block.numpy() for block in net.terms.blocks], net.terms.L
    shown = blocks[:ENLARGED] if len(blocks) > 1 else []
    rows = -(-len(shown) // IN_A_ROW)
    figure = style.new_figure(3.35 + 1.05 * rows, net.title)
    frame = figure.add_gridspec(1 + bool(rows), 1, height_ratios=[3.1, 1.05 * rows][: 1 + bool(rows)])
    left, right = figure.add_subfigure(frame[0]).subplots(1, 2)
    norm = draw_matrix(left, net.terms.weight().numpy(), net.terms.sizes, "W, within the modules")
    if L is None:
        right.set_title("L, between the modules")
        style.empty(right, "no linear coupling")
    else:
        draw_matrix(right, L.numpy(), net.terms.sizes, "L, between the modules")
    if not rows:
        return figure
    count = "" if len(shown) == len(blocks) else f", the first {len(shown)} of {len(blocks)}"
    below = figure.add_subfigure(frame[1])
    below.suptitle(f"the modules enlarged, in the colours of W{count}", fontsize=9)
    for k, axes in enumerate(below.subplots(rows, IN_A_ROW, squeeze=False).flat):
        if k >= len(shown):
            axes.axis("off")
            continue
        style.heat_map(axes, shown[k], norm, side=128)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(str(k), fontsize=8, labelpad=2)
    return figure


def draw_matrix(axes: Axes, A: Array, sizes: tuple[int, ...], title: str) -> Normalize:
    """One matrix with its colour bar; returns the scale of its colours."""
    bound, beyond = style.bound_of(A)
    norm = Normalize(-bound, bound)
    image = style.heat_map(axes, A, norm)
    style.borders(axes, sizes)
    axes.set(title=title, xlabel="from unit", ylabel="to unit")
    style.colour_bar(image, axes, shrink=0.85, extend="both" if beyond else "neither")
    return norm


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
    image = style.heat_map(axes, between, norm, colours=style.SEQUENTIAL, side=max(p, style.SIDE))
    image.set_extent((-0.5, p - 0.5, p - 0.5, -0.5))
    style.module_ticks(axes, p, vertical=True)
    axes.set(xlabel="from module", ylabel="to module", title=about)
    style.colour_bar(image, axes, "norm of L in the metric", shrink=0.85)
    return figure


NETWORK_FIGURES = {"weights": draw_weights, "coupling": draw_coupling}
