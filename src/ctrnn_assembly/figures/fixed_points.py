"""Eigenvalues of the Jacobian at the fixed points, in the complex plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ctrnn_assembly.figures.style import BLACK, COLOURS, draw_eigenvalues, empty, new_figure, printed

if TYPE_CHECKING:
    from ctrnn_assembly.diagnostics.fixed_points import FixedPoints

STYLES = {"stable": (0, "o"), "marginal": (4, "D"), "saddle": (1, "s"), "unstable": (3, "^")}


@printed
def fixed_points_figure(
    found: Sequence[FixedPoints], *, rate: float | None = None, title: str
) -> Figure:
    """One marker an eigenvalue, by the kind of its fixed point, with the boundary Re = 0.

    Args:
        found: the fixed points of each input. rate: the certified rate, if there is one.
    """
    counts = ", ".join(str(len(points)) for points in found)
    figure = new_figure(3.4, f"{title}\nfixed points of each input: {counts}", width=4.6)
    axes = figure.subplots()
    labels = {kind: f"{kind} fixed point" for kind in STYLES}
    for points in found:
        for kind, values in zip(points.kinds, points.eigenvalues.numpy(), strict=True):
            colour, marker = STYLES[kind]
            draw_eigenvalues(axes, values, COLOURS[colour], marker, labels.pop(kind, None))
    if len(labels) == len(STYLES):
        empty(axes, "no fixed point was found")
        return figure
    axes.axvline(0, color=BLACK, linewidth=0.9)
    if rate is not None:
        label = f"-rate = {-rate:.3g}, certified"
        axes.axvline(-rate, color=COLOURS[1], linewidth=1.1, linestyle="--", label=label)
    axes.set(xlabel="Re (1 / unit of tau)", ylabel="Im (1 / unit of tau)")
    axes.margins(y=0.2)
    axes.legend(fontsize=7, loc="upper left")
    return figure
