"""Heat maps of the weights: W, block-diagonal, and L between the blocks; then every block enlarged."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrnn_assembly.figures.style import (
    Array,
    borders,
    bound_of,
    colour_bar,
    empty,
    heat_map,
    new_figure,
    printed,
)

SHOWN, IN_A_ROW = 16, 8


@printed
def weights_figure(W: Array, blocks: tuple[Array, ...], L: Array | None, *, title: str) -> Figure:
    """Top: W and L, each with its own colours. Below: the blocks of W, in the colours of W."""
    sizes = tuple(len(block) for block in blocks)
    shown = blocks[:SHOWN] if len(blocks) > 1 else ()
    rows = -(-len(shown) // IN_A_ROW)
    figure = new_figure(3.35 + 1.05 * rows, title)
    frame = figure.add_gridspec(1 + bool(rows), 1, height_ratios=[3.1, 1.05 * rows][: 1 + bool(rows)])
    left, right = figure.add_subfigure(frame[0]).subplots(1, 2)
    bound = draw_matrix(left, W, sizes, "W, within the modules")
    if L is None:
        right.set_title("L, between the modules")
        empty(right, "no linear coupling")
    else:
        draw_matrix(right, L, sizes, "L, between the modules")
    if not rows:
        return figure
    count = "" if len(shown) == len(blocks) else f", the first {len(shown)} of {len(blocks)}"
    below = figure.add_subfigure(frame[1])
    below.suptitle(f"the modules enlarged, in the colours of W{count}", fontsize=9)
    grid = below.subplots(rows, IN_A_ROW, squeeze=False)
    for k, axes in enumerate(grid.flat):
        if k >= len(shown):
            axes.axis("off")
            continue
        heat_map(axes, shown[k], bound, side=128)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(str(k), fontsize=8, labelpad=2)
    return figure


def draw_matrix(axes: Axes, A: Array, sizes: tuple[int, ...], title: str) -> float:
    """One matrix with its colour bar; returns the limit of the colours."""
    bound, beyond = bound_of(A)
    image = heat_map(axes, A, bound)
    borders(axes, sizes)
    axes.set(title=title, xlabel="from unit", ylabel="to unit")
    colour_bar(image, axes, shrink=0.85, extend="both" if beyond else "neither")
    return bound
