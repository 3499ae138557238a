"""What the commands that inspect a network draw: distances, exponents, fixed points and gradients."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.diagnostics.contraction import Measurement
from ctrnn_assembly.diagnostics.fixed_points import FixedPoints
from ctrnn_assembly.diagnostics.lyapunov import Lyapunov
from ctrnn_assembly.figures import style
from ctrnn_assembly.figures.style import BLACK, COLOURS, GREY, PER_TAU, Array

KINDS = {"stable": (0, "o"), "marginal": (4, "D"), "saddle": (1, "s"), "unstable": (3, "^")}


@style.printed
def contraction_figure(
    found: Measurement, twin: Measurement | None, proven: Certificate, *, title: str
) -> Figure:
    """Left: distances in the metric, with the certified envelope. Right: Euclidean, and the twin.

    The twin's modules excite each other; where its distances grow beyond those of the pairs, they leave
    the panel at its top.
    """
    figure = style.new_figure(3.1, title)
    left, right = figure.subplots(1, 2)
    times = found.times.numpy()
    draw_pairs(left, times, found.distances.numpy(), COLOURS[0], "pairs")
    step = proven.step
    if proven.certified:
        curve = np.exp(-proven.rate * times)
        left.plot(times, curve, color=BLACK, linewidth=1.3, linestyle=":", label="exp(-rate t), flow")
    if step is not None and step.certified and step.contraction_factor is not None:
        label = f"certified: {step.contraction_factor:.5f} a step"
        curve = step.contraction_factor ** (times / step.dt)
        left.plot(times, curve, color=COLOURS[1], linewidth=1.5, linestyle="--", label=label)
    left.set_title("in the metric of the certificate")
    overshoot = draw_pairs(right, times, found.euclidean.numpy(), COLOURS[0], "pairs")
    right.set_title(f"Euclidean: at most {overshoot:.3g} times the start")
    if twin is not None:
        limits = right.get_ylim()
        label = "twin: the modules excite each other"
        draw_pairs(right, times, twin.euclidean.numpy(), COLOURS[3], label)
        right.set_ylim(limits[0], 3 * max(1.0, overshoot))
    for axes in (left, right):
        axes.set(xlabel="time (unit of tau)", ylabel="distance / distance at the start")
        style.log_axis(axes)
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.legend(fontsize=7)
    return figure


def draw_pairs(axes: Axes, times: Array, distances: Array, colour: str, label: str) -> float:
    """One thin line a pair, as long as it is finite and not zero; the largest value drawn."""
    axes.set_yscale("log")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = distances / distances[:, :1]
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    lines = axes.plot(times, values.T, color=colour, linewidth=0.7, alpha=0.7)
    lines[0].set_label(label)
    return float(np.nanmax(values))


@style.printed
def lyapunov_figure(found: Lyapunov, *, bound: float | None, title: str) -> Figure:
    """Left: the mean so far against time. Right: the spectrum, with the certified bound."""
    figure = style.new_figure(3.0, title)
    left, right = figure.subplots(1, 2)
    times, exponents, errors = found.times.numpy(), found.exponents.numpy(), found.errors.numpy()
    k = len(exponents)
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, k))
    for index, line in enumerate(found.history.numpy().T):
        name = {0: "largest", k - 1: f"number {k}"}.get(index)
        left.plot(times, line, color=colours[index], linewidth=1, label=name)
    left.set(xlabel="time (unit of tau)", ylabel=f"mean so far ({PER_TAU})", title="running estimate")
    bars = np.where(np.isfinite(errors), errors, 0)
    label = "exponent, standard error"
    right.errorbar(
        range(1, k + 1), exponents, bars, None, "o", label=label, color=COLOURS[0], ms=3, capsize=2
    )
    right.set(ylabel=f"exponent ({PER_TAU})", title="at the end")
    style.whole_numbers(right, "index")
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=0.8)
        if bound is not None:
            label = f"certified: at most {bound:.3g}"
            axes.axhline(bound, color=COLOURS[1], linewidth=1.1, linestyle="--", label=label)
        style.raised(axes, 0.4, fontsize=7, loc="upper right")
    return figure


@style.printed
def fixed_points_figure(
    found: Sequence[FixedPoints], *, rate: float | None = None, title: str
) -> Figure:
    """Eigenvalues of J by the kind of their fixed point, those of all inputs; the boundary Re = 0."""
    counts = ", ".join(str(len(points)) for points in found)
    figure = style.new_figure(3.4, f"{title}; fixed points of each input: {counts}", width=4.6)
    axes = figure.subplots()
    labels = {kind: f"{kind} fixed point" for kind in KINDS}
    for points in found:
        for kind, values in zip(points.kinds, points.eigenvalues.numpy(), strict=True):
            colour, marker = KINDS[kind]
            style.draw_eigenvalues(axes, values, COLOURS[colour], marker, labels.pop(kind, ""))
    if len(labels) == len(KINDS):
        style.empty(axes, "no fixed point was found")
        return figure
    axes.axvline(0, color=BLACK, linewidth=0.9)
    if rate is not None:
        label = f"-rate = {-rate:.3g}, certified"
        axes.axvline(-rate, color=COLOURS[1], linewidth=1.1, linestyle="--", label=label)
    axes.set(xlabel=f"Re of eig J ({PER_TAU})", ylabel=f"Im ({PER_TAU})")
    style.raised(axes, 0.2, fontsize=7, loc="upper left")
    return figure


@style.printed
def gsc_figure(rows: Sequence[dict[str, Any]], *, squared: bool = False, title: str) -> Figure:
    """The gradient scale coefficient GSC(t, T), and the norm of the Jacobian with its certified bound.

    A row has step, gsc, jacobian and jacobian_bound; None where there is no value.
    """
    curves = (
        ("gsc", "GSC(t, T)" + (" squared" if squared else ""), COLOURS[0], "o-"),
        ("jacobian", "||dx(T) / dx(t)||, root mean square", COLOURS[2], "s--"),
        ("jacobian_bound", "its certified bound", COLOURS[1], ":"),
    )
    figure = style.new_figure(3.2, title, width=4.8)
    axes = figure.subplots()
    axes.axhline(1, color=GREY, linewidth=0.8)
    for key, label, colour, line in curves:
        kept = [(row["step"], row[key]) for row in rows if row[key] is not None and row[key] > 0]
        if kept:
            points = zip(*kept, strict=True)
            axes.plot(*points, line, label=label, color=colour, markersize=3, linewidth=1.2)
    axes.set(xlabel="t (steps); the loss is at the last one", ylabel="gain from t to T", yscale="log")
    style.log_axis(axes)
    axes.legend(fontsize=7)
    return figure
