"""Eigenvalues in the complex plane: along a trajectory, and of the parts of a network."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.diagnostics.spectrum import Spectrum
from ctrnn_assembly.figures import style
from ctrnn_assembly.figures.style import BLACK, COLOURS, GREY, PER_TAU

Values = NDArray[np.complex128]
MAP = "this network is a map, not a flow"


@style.printed
def spectrum_figure(
    found: Sequence[Spectrum], before: Sequence[Spectrum], certificate: Certificate, *, title: str
) -> Figure:
    """Left: eigenvalues of J. Middle: of the step. Right: the largest real parts over time.

    `found` are those along the trajectory of each sample, `before` the same before training, if known.
    """
    verdict = "certified" if certificate.certified else "NOT certified; eigenvalues prove nothing"
    figure = style.new_figure(3.4, f"{title} ({verdict})")
    left, middle, right = figure.subplots(1, 3)
    flow = draw_along(left, found, before, "eigenvalues", "Jacobian", MAP)
    if flow and certificate.certified:
        label = f"certified: -rate = {-certificate.rate:.3g}"
        left.axvline(-certificate.rate, color=COLOURS[1], linewidth=1.1, linestyle="--", label=label)
    if flow:
        left.set(xlabel=f"real part ({PER_TAU})", ylabel=f"imaginary part ({PER_TAU})")
    reason = "this solver has no fixed step"
    if draw_along(middle, found, before, "step_eigenvalues", "one step", reason):
        draw_circle(middle)
    draw_extremes(right, found, certificate)
    style.legend_below(figure, [left, middle, right], 3)
    return figure


def draw_along(
    axes: Axes, found: Sequence[Spectrum], before: Sequence[Spectrum], name: str, title: str, reason: str
) -> bool:
    """All eigenvalues of this name, dark to light by time; says the reason if there are none."""
    axes.set_title(title)
    old, new = (
        [getattr(s, name).numpy() for s in some if getattr(s, name) is not None]
        for some in (before, found)
    )
    if not new:
        style.empty(axes, reason)
        return False
    samples = [f"{len(some)} sample{'s' if len(some) != 1 else ''}" for some in (before, found)]
    for values in old:
        style.draw_eigenvalues(axes, values.ravel(), COLOURS[3], label=f"before training, {samples[0]}")
    colours = matplotlib.colormaps["cividis"]
    longest = max(float(s.times[-1]) for s in found) or 1.0
    for s, values in zip(found, new, strict=True):
        for time, row in zip(s.times.tolist(), values, strict=True):
            style.draw_eigenvalues(axes, row, colours(time / longest))
    label = f"now, {samples[1]}; dark to light: time"
    axes.plot([], [], "o", color=colours(0.0), markersize=3, mew=0, label=label)
    set_limits(axes, np.concatenate([values.ravel() for values in [*old, *new]]))
    if name == "eigenvalues":
        axes.set_xlim(right=max(axes.get_xlim()[1], 0.05))
    return True


def draw_extremes(axes: Axes, found: Sequence[Spectrum], certificate: Certificate) -> None:
    """The abscissa, and minus the local rate, over time."""
    axes.set_title("largest real part over time")
    if any(s.abscissa is None for s in found):
        style.empty(axes, MAP)
        return
    axes.set(xlabel="time (unit of tau)", ylabel=PER_TAU)
    for s in found:
        assert s.abscissa is not None
        curves = [(s.abscissa, COLOURS[0], "o-", "of eig J")]
        if s.local_rates is not None:
            curves.append((-s.local_rates, COLOURS[2], "s--", "of sym J in the metric"))
        for values, colour, line, label in curves:
            times = s.times.numpy()
            axes.plot(times, values.numpy(), line, color=colour, label=label, markersize=2.5, lw=1)
    if certificate.certified:
        axes.axhline(-certificate.rate, color=COLOURS[1], linewidth=1.1, linestyle="--")


@style.printed
def parts_figure(
    W: Values, L: Values | None, J: Values | None, step: Values | None, *, about_step: str, title: str
) -> Figure:
    """Eigenvalues of W, L, J and of one step; panels without eigenvalues say why.

    `about_step` names the solver and its dt, or says why there are no eigenvalues.
    """
    figure = style.new_figure(5.4, title)
    (a, b), (c, d) = figure.subplots(2, 2)
    draw_values(a, W, "W")
    draw_values(b, L, "L", "no linear coupling")
    draw_values(c, J, f"Jacobian just above x = 0 ({PER_TAU}); shaded: growth", about_step)
    draw_values(d, step, f"{about_step}; unit circle" if step is not None else "one step", about_step)
    make_square(a)
    if J is not None:
        low, high = c.get_xlim()
        c.axvspan(0, 1e6, color=COLOURS[1], alpha=0.12, linewidth=0)
        c.set_xlim(low, max(high, 0.1 * (high - low)))
    if step is not None:
        draw_circle(d)
    return figure


def draw_values(axes: Axes, values: Values | None, title: str, reason: str = "") -> None:
    """One dot an eigenvalue, and the axes Re = 0 and Im = 0."""
    axes.set_title(title)
    if values is None:
        style.empty(axes, reason)
        return
    style.draw_eigenvalues(axes, values, COLOURS[0], size=3.0 if len(values) <= 128 else 2.2)
    set_limits(axes, values)
    axes.set(xlabel="real part", ylabel="imaginary part")


def set_limits(axes: Axes, values: Values) -> None:
    """Round the values, but not so narrow that rounding errors fill a panel; with both axes."""
    least = 0.02 * max(float(np.abs(values).max()), 1e-9)
    for limits, part in ((axes.set_xlim, values.real), (axes.set_ylim, values.imag)):
        middle, half = (part.max() + part.min()) / 2, 0.55 * max(float(np.ptp(part)), least)
        limits(middle - half, middle + half)
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)


def draw_circle(axes: Axes) -> None:
    """The unit circle: whole where the dots go round it, else the arc beside them, stretched."""
    angles = np.linspace(0, 2 * np.pi, 20_001)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.plot(np.cos(angles), np.sin(angles), color=BLACK, linewidth=0.9, zorder=1, label="unit circle")
    axes.set(xlabel="real part", ylabel="imaginary part", ylim=(low, high))
    axes.set_xlim(left, max(right, 1 + 0.05 * (1 - left)))
    if high > 0.5:
        make_square(axes)


def make_square(axes: Axes) -> None:
    """The same unit on both axes, with room for what was in their limits."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    half = max(right - left, high - low) / 2
    axes.set_xlim((left + right) / 2 - half, (left + right) / 2 + half)
    axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
    axes.set_aspect("equal")
