"""An assembly taken apart: its weights and couplings."""

from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures import style


@style.printed
def draw_weights(layer: Any, title: str) -> Figure:
    """Heat maps of W and of L, each with its own colours; ConfigError for what has no field."""
    field = getattr(layer, "field", None)
    if field is None:
        got = f"{type(layer).__name__}, a baseline or a stack of layers"
        raise ConfigError(f"this picture is of one assembly; got {got}. Draw its curves.")
    figure, panels = style.new_figure(3.35, title, (1, 2))
    terms = field.terms().detach_cpu().double()
    matrices = {"W, within the modules": terms.weight(), "L, between the modules": terms.L}
    for axes, (title, A) in zip(panels, matrices.items(), strict=True):
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
        bar = figure.colorbar(image, ax=axes, shrink=0.85, extend="both")
        bar.outline.set_linewidth(0.5)
    return figure
