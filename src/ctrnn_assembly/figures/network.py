"""An assembly taken apart: its weights and couplings."""

from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures import style
from ctrnn_assembly.figures.style import Array
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms


def field_of(layer: Any) -> tuple[Terms, Metric]:
    """A layer's field without its gates, and its own metric, in float64; ConfigError for a baseline."""
    field = getattr(layer, "field", None)
    if field is None:
        raise ConfigError(
            f"this picture is of one assembly; got {type(layer).__name__}, a baseline or a stack of "
            "layers. Draw its curves."
        )
    return field.terms().detach_cpu().double(), field.metric().detach_cpu().mapped(torch.Tensor.double)


def strengths(terms: Terms, metric: Metric) -> Array:
    """Spectral norms in the metric, (p, p): W_i on the diagonal, L_ij, from j to i, beside it."""
    A = terms.weight() if terms.L is None else terms.weight() + terms.L
    K = metric.inverse().left_divide(metric.inverse().right_multiply(A))
    rows = (row.split(terms.sizes, dim=1) for row in K.split(terms.sizes, dim=0))
    return np.array([[float(torch.linalg.matrix_norm(block, ord=2)) for block in row] for row in rows])


@style.printed
def draw_weights(layer: Any, title: str) -> Figure:
    """Heat maps of W and of L, each with its own colours."""
    figure, terms = style.new_figure(3.35, title), field_of(layer)[0]
    matrices = {"W, within the modules": terms.weight(), "L, between the modules": terms.L}
    for axes, (title, A) in zip(figure.subplots(1, 2), matrices.items(), strict=True):
        axes.set_title(title)
        if A is None:
            style.empty(axes, "no linear coupling")
            continue
        bound = style.bound_of(A.numpy())
        image = style.heat_map(axes, A.numpy(), Normalize(-bound, bound))
        # Thin lines between modules, unless there are so many that they would hide the entries.
        for edge in np.cumsum(terms.sizes)[:-1] if len(terms.sizes) <= style.NUMBERED else ():
            axes.axhline(edge, color="0.75", linewidth=0.3)
            axes.axvline(edge, color="0.75", linewidth=0.3)
        axes.set(xlabel="from unit", ylabel="to unit")
        style.colour_bar(image, axes, shrink=0.85, extend="both")
    return figure


@style.printed
def draw_coupling(layer: Any, title: str) -> Figure:
    """The norms of L between modules, in the metric, as a matrix: row from column."""
    terms, metric = field_of(layer)
    norms, p = strengths(terms, metric), len(terms.sizes)
    figure = style.new_figure(3.9, f"{title}: coupling of {p} modules", width=5.2)
    axes = figure.subplots()
    own = [f"{norm:.3g}" for norm in (norms.diagonal().min(), norms.diagonal().max())]
    about = f"norm in the metric; of W: {' to '.join(dict.fromkeys(own))}"
    between = np.where((np.eye(p) > 0) | (norms <= 0), np.nan, norms)
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
