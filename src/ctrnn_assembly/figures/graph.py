"""The assembly as a graph: modules, couplings, and how strong they are in the metric."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from ctrnn_assembly.figures.style import (
    NUMBERED,
    SEQUENTIAL,
    Array,
    colour_bar,
    empty,
    enlarged,
    framed,
    module_ticks,
    new_figure,
    printed,
)

Pairs = tuple[tuple[int, int], ...]


@printed
def graph_figure(strengths: Array, pairs: Pairs, topology: str, *, title: str) -> Figure:
    """Left: the graph. Right: the same strengths as a matrix, row from column.

    Args:
        strengths: (p, p), spectral norms in the metric of L_ij; the diagonal, of W_i, is named only.
    """
    p = len(strengths)
    own, between = strengths.diagonal(), np.where(np.eye(p) > 0, np.nan, strengths)
    between = np.where(between > 0, between, np.nan)
    figure = new_figure(3.7, title)
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    if not pairs or np.isnan(between).all():
        draw_modules(left, places(p, topology))
        empty(right, f"no linear coupling\nnorm of W in the metric: {span(own)}")
        return figure
    low, high = float(np.nanmin(between)), float(np.nanmax(between))
    colours = ScalarMappable(Normalize(low if low < 0.99 * high else 0.9 * low, high), SEQUENTIAL)
    draw_couplings(left, strengths, pairs, places(p, topology), colours)
    draw_modules(left, places(p, topology))
    edges = (-0.5, p - 0.5, p - 0.5, -0.5)
    look: dict[str, Any] = {"cmap": SEQUENTIAL, "norm": colours.norm, "interpolation": "none"}
    right.imshow(enlarged(between), extent=edges, **look)
    framed(right)
    right.set(xlabel="from module", ylabel="to module")
    module_ticks(right, p, vertical=True)
    right.set_title(f"norms in the metric; of W: {span(own)}")
    colour_bar(colours, right, "norm of L in the metric", shrink=0.85)
    return figure


def span(values: Array) -> str:
    """The smallest and the largest."""
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"


def places(p: int, topology: str) -> Array:
    """Where the modules stand, (p, 2): on a circle, clockwise from the top; the hub of a star inside."""
    if p == 1:
        return np.zeros((1, 2))
    hub = topology == "star"
    angles = np.pi / 2 - 2 * np.pi * np.arange(p - hub) / (p - hub)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.concatenate([np.zeros((1, 2)), ring]) if hub else ring


def radius_of(p: int) -> float:
    """Of a module's disc, so that neighbours on the circle do not touch."""
    return min(0.13, 2.2 / p)


def draw_couplings(
    axes: Axes, strengths: Array, pairs: Pairs, at: Array, colours: ScalarMappable
) -> None:
    """Strong ones last, so that they lie on top; an arrow where only one direction is coupled."""
    widest = max(0.8, min(3.0, 90 / len(pairs)))
    for i, j in sorted(pairs, key=lambda pair: max(strengths[pair], strengths[pair[::-1]])):
        there, back = strengths[j, i], strengths[i, j]
        strength = max(there, back)
        width = 0.3 + (widest - 0.3) * strength / (colours.norm.vmax or 1.0)
        style: dict[str, Any] = {"color": colours.to_rgba(strength), "linewidth": width}
        start, end = (at[i], at[j]) if there >= back else (at[j], at[i])
        if min(there, back) > 0:
            axes.plot(*np.stack([start, end]).T, **style, zorder=1)
            continue
        inset = (end - start) / float(np.linalg.norm(end - start)) * radius_of(len(at)) * 1.1
        arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **style}
        axes.annotate("", end - inset, start + inset, arrowprops=arrow, zorder=1)


def draw_modules(axes: Axes, at: Array) -> None:
    """A numbered disc each."""
    p = len(at)
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": "black", "linewidth": 0.9, "zorder": 2}
    for k, (x, y) in enumerate(at):
        axes.add_patch(Circle((x, y), radius_of(p), **look))
        if p <= 2 * NUMBERED:
            size = 9 if p <= 16 else 6
            axes.text(x, y, str(k), ha="center", va="center", fontsize=size, zorder=3)
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    axes.axis("off")
