"""The gradient scale coefficient back through time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ctrnn_assembly.figures.style import COLOURS, GREY, new_figure, printed


@printed
def gsc_figure(rows: Sequence[dict[str, Any]], *, squared: bool = False, title: str) -> Figure:
    """GSC(t, T) and the norm of the Jacobian with its certified bound, on a logarithmic scale.

    Args:
        rows: with keys step, gsc, jacobian and jacobian_bound; None where there is no value.
    """
    curves = (
        ("gsc", "GSC(t, T)" + (" squared" if squared else ""), COLOURS[0], "o-"),
        ("jacobian", "||dx(T) / dx(t)||, root mean square", COLOURS[2], "s--"),
        ("jacobian_bound", "its certified bound", COLOURS[1], ":"),
    )
    figure = new_figure(3.2, title, width=4.8)
    axes = figure.subplots()
    for key, label, colour, style in curves:
        kept = [(row["step"], row[key]) for row in rows if row[key] is not None and row[key] > 0]
        if kept:
            look: dict[str, Any] = {"color": colour, "markersize": 3, "linewidth": 1.2}
            axes.plot(*zip(*kept, strict=True), style, label=label, **look)
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set(xlabel="t (steps); the loss is at the last one", ylabel="gain from t to T", yscale="log")
    axes.legend(fontsize=7)
    return figure
