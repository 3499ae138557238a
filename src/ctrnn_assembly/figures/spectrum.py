"""Eigenvalues in the complex plane: along a trajectory, and of the parts of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ctrnn_assembly.figures.style import (
    BLACK,
    COLOURS,
    GREY,
    draw_eigenvalues,
    empty,
    new_figure,
    printed,
)

if TYPE_CHECKING:
    from ctrnn_assembly.certificates import Certificate
    from ctrnn_assembly.diagnostics.spectrum import Spectrum

Values = NDArray[np.complex128]
RE, IM = "Re (1 / unit of tau)", "Im (1 / unit of tau)"


@printed
def spectrum_figure(
    found: Sequence[Spectrum], before: Sequence[Spectrum], certificate: Certificate, *, title: str
) -> Figure:
    """Left: eigenvalues of J. Middle: of the step. Right: the largest real parts over time.

    Args:
        found: along the trajectory of each sample. before: the same before training, or nothing.
    """
    verdict = "certified" if certificate.certified else "NOT certified; eigenvalues prove nothing"
    figure = new_figure(3.0, f"{title} ({verdict})")
    left, middle, right = figure.subplots(1, 3)
    draw_trajectory(left, found, before, certificate)
    draw_step(middle, found, before)
    draw_extremes(right, found, certificate)
    for axes, where in ((left, "upper left"), (right, "upper right")):
        if axes.get_legend_handles_labels()[1]:
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.45 * (high - low))
            axes.legend(fontsize=6.5, loc=where)
    return figure


def draw_trajectory(
    axes: Axes, found: Sequence[Spectrum], before: Sequence[Spectrum], certificate: Certificate
) -> None:
    """All eigenvalues of J, by time, with the boundary and the certified rate."""
    axes.set(title="Jacobian", xlabel=RE, ylabel=IM)
    if any(s.eigenvalues is None for s in found):
        empty(axes, "this network is a map, not a flow")
        return
    if before:
        values = np.concatenate(
            [s.eigenvalues.numpy().ravel() for s in before if s.eigenvalues is not None]
        )
        draw_eigenvalues(axes, values, GREY, label=f"before training, {samples(before)}")
    colours = matplotlib.colormaps["cividis"]
    longest = max(float(s.times[-1]) for s in found) or 1.0
    for s in found:
        assert s.eigenvalues is not None
        for time, row in zip(s.times.tolist(), s.eigenvalues.numpy(), strict=True):
            draw_eigenvalues(axes, row, colours(time / longest))
    label = f"now, {samples(found)}; dark to light: time"
    axes.plot([], [], "o", color=colours(0.5), markersize=3, mew=0, label=label)
    axes.axvline(0, color=BLACK, linewidth=0.9)
    if certificate.certified:
        look: dict[str, Any] = {"color": COLOURS[1], "linewidth": 1.1, "linestyle": "--"}
        axes.axvline(-certificate.rate, label=f"-rate = {-certificate.rate:.3g}", **look)


def samples(found: Sequence[Spectrum]) -> str:
    return f"{len(found)} sample{'s' if len(found) != 1 else ''}"


def draw_step(axes: Axes, found: Sequence[Spectrum], before: Sequence[Spectrum]) -> None:
    """Eigenvalues of the step, and the unit circle near them."""
    now, start = (
        [s.step_eigenvalues.numpy().ravel() for s in some if s.step_eigenvalues is not None]
        for some in (found, before)
    )
    if not now:
        axes.set_title("one step")
        empty(axes, "this solver has no fixed step")
        return
    if start:
        draw_eigenvalues(axes, np.concatenate(start), GREY)
    draw_values(axes, np.concatenate(now), "one step")
    draw_circle(axes)


def draw_extremes(axes: Axes, found: Sequence[Spectrum], certificate: Certificate) -> None:
    """The abscissa, and minus the local rate, over time."""
    axes.set(
        title="over time", xlabel="time (unit of tau)", ylabel="largest real part (1 / unit of tau)"
    )
    for k, s in enumerate(found):
        if s.abscissa is None:
            empty(axes, "this network is a map, not a flow")
            return
        labels = ("of eig J", "of sym J in the metric") if k == 0 else (None, None)
        look: dict[str, Any] = {"markersize": 2.5, "linewidth": 1}
        axes.plot(s.times.numpy(), s.abscissa.numpy(), "o-", color=COLOURS[0], label=labels[0], **look)
        if s.local_rates is not None:
            rates = -s.local_rates.numpy()
            axes.plot(s.times.numpy(), rates, "s--", color=COLOURS[1], label=labels[1], **look)
    if certificate.certified:
        axes.axhline(-certificate.rate, color=BLACK, linewidth=1, linestyle=":", label="certified")


@printed
def parts_figure(
    W: Values, L: Values | None, J: Values | None, step: Values | None, *, about_step: str, title: str
) -> Figure:
    """Eigenvalues of W, L, J and of one step; panels without eigenvalues say why.

    Args:
        W, L, J: eigenvalues, of J per unit of time. step: of one step of the solver.
        about_step: the solver and its dt, or why there are no eigenvalues.
    """
    figure = new_figure(5.4, title)
    (a, b), (c, d) = figure.subplots(2, 2)
    draw_values(a, W, "W")
    draw_values(b, L, "L", "no linear coupling")
    draw_values(c, J, "Jacobian just above x = 0 (1 / unit of tau)", about_step)
    draw_values(d, step, "one step of the solver" if step is None else about_step, about_step)
    make_square(a)
    if J is not None:
        shade_growth(c)
    if step is not None:
        draw_circle(d)
    return figure


def draw_values(axes: Axes, values: Values | None, title: str, reason: str = "") -> None:
    """One dot an eigenvalue; the axes are never so narrow that rounding errors fill them."""
    axes.set_title(title)
    if values is None:
        empty(axes, reason)
        return
    draw_eigenvalues(axes, values, COLOURS[0], size=3.0 if len(values) <= 128 else 2.2)
    least = 0.02 * max(float(np.abs(values).max()), 1e-9)
    for set_limits, part in ((axes.set_xlim, values.real), (axes.set_ylim, values.imag)):
        middle, half = (part.max() + part.min()) / 2, 0.55 * max(float(np.ptp(part)), least)
        set_limits(middle - half, middle + half)
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)
    axes.set(xlabel="real part", ylabel="imaginary part")


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
