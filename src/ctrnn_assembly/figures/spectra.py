"""Eigenvalues in the complex plane: of W, of L, of the Jacobian at the origin, and of one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctrnn_assembly.figures.style import COLOURS, GREY, empty, new_figure, printed

if TYPE_CHECKING:  # a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = NDArray[np.complex128]


@printed
def spectra_figure(
    W: Values, L: Values | None, J: Values | None, step: Values | None, *, about_step: str, title: str
) -> Figure:
    """Four panels; those without eigenvalues say why.

    Args:
        W, L, J: eigenvalues, of J per unit of time. step: of one step of the solver.
        about_step: the solver and its dt, or why there are no eigenvalues.
    """
    figure = new_figure(5.4, title)
    panels = figure.subplots(2, 2)
    draw_values(panels[0, 0], W, "W", "")
    draw_values(panels[0, 1], L, "L", "no linear coupling")
    draw_values(panels[1, 0], J, "Jacobian at x = 0 (1 / unit of tau)", about_step)
    draw_values(panels[1, 1], step, "one step of the solver", about_step)
    make_square(panels[0, 0])
    if J is not None:
        shade_growth(panels[1, 0])
    if step is not None:
        panels[1, 1].set_title(f"one step: {about_step}", fontsize=9)
        draw_circle(panels[1, 1])
    return figure


def draw_values(axes: Axes, values: Values | None, title: str, reason: str) -> None:
    """One dot an eigenvalue; the axes are never so narrow that rounding errors fill them."""
    axes.set_title(title, fontsize=9)
    if values is None:
        empty(axes, reason)
        return
    dots: dict[str, Any] = {"markersize": 3.5 if len(values) <= 128 else 2.2, "markeredgewidth": 0}
    axes.plot(values.real, values.imag, "o", color=COLOURS[0], alpha=0.7, **dots)
    least = 0.02 * max(float(np.abs(values).max()), 1e-9)
    for set_limits, part in ((axes.set_xlim, values.real), (axes.set_ylim, values.imag)):
        middle, half = (part.max() + part.min()) / 2, 0.55 * max(float(np.ptp(part)), least)
        set_limits(middle - half, middle + half)
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)
    axes.set_xlabel("real part")
    axes.set_ylabel("imaginary part")


def shade_growth(axes: Axes) -> None:
    """The half-plane in which an eigenvalue of J means growth."""
    low, high = axes.get_xlim()
    high = max(high, 0.1 * (high - low))
    axes.axvspan(0, 1e6, color=COLOURS[1], alpha=0.12, linewidth=0)
    axes.set_xlim(low, high)


def draw_circle(axes: Axes) -> None:
    """The unit circle: whole where the dots go round it, else the arc beside them, stretched."""
    angles = np.linspace(0, 2 * np.pi, 20_001)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.plot(np.cos(angles), np.sin(angles), color=COLOURS[1], linewidth=1.1, zorder=1)
    axes.set_xlim(left, max(right, 1 + 0.05 * (1 - left)))
    axes.set_ylim(low, high)
    if high > 0.5:
        make_square(axes)


def make_square(axes: Axes) -> None:
    """The same unit on both axes, with room for what was in their limits."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    half = max(right - left, high - low) / 2
    axes.set_xlim((left + right) / 2 - half, (left + right) / 2 + half)
    axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
    axes.set_aspect("equal")
