"""Distances between trajectories over time, with the certified envelope."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrnn_assembly.figures.style import BLACK, COLOURS, GREY, Array, new_figure, printed

if TYPE_CHECKING:
    from ctrnn_assembly.certificates import Certificate


@printed
def contraction_figure(
    times: Array,
    metric: Array,
    euclidean: Array,
    certificate: Certificate,
    *,
    twin: Array | None = None,
    title: str,
) -> Figure:
    """Left: in the metric, with the envelope of the certificate. Right: Euclidean, and the twin.

    The right panel shows how far the pairs themselves grow before they shrink; a twin that grows
    further leaves the panel at its top.

    Args:
        times: (T + 1,). metric, euclidean: distances of pairs of trajectories, (pairs, T + 1).
        twin: Euclidean distances of the twin, (pairs, T + 1), whose modules excite each other.
    """
    figure = new_figure(3.1, title)
    left, right = figure.subplots(1, 2)
    draw_pairs(left, times, metric, COLOURS[0], "pairs")
    draw_envelope(left, times, certificate)
    left.set_title("in the metric of the certificate")
    overshoot = draw_pairs(right, times, euclidean, COLOURS[0], "pairs")
    right.set_title(f"Euclidean: at most {overshoot:.3g} times the start")
    if twin is not None:
        limits = right.get_ylim()
        draw_pairs(right, times, twin, COLOURS[3], "twin: the modules excite each other")
        right.set_ylim(limits[0], 3 * max(1.0, overshoot))
    for axes in (left, right):
        axes.set(yscale="log", xlabel="time (unit of tau)", ylabel="distance / distance at the start")
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.legend(fontsize=7)
    return figure


def draw_pairs(axes: Axes, times: Array, distances: Array, colour: str, label: str) -> float:
    """One thin line a pair, as long as it is finite and not zero; the largest value drawn."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = distances / distances[:, :1]
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    lines = axes.plot(times, values.T, color=colour, linewidth=0.7, alpha=0.7)
    lines[0].set_label(label)
    return float(np.nanmax(values))


def draw_envelope(axes: Axes, times: Array, certificate: Certificate) -> None:
    """factor^k of a certified step, and exp(-rate t)."""
    step = certificate.step
    if certificate.certified:
        curve = np.exp(-certificate.rate * times)
        axes.plot(times, curve, color=BLACK, linewidth=1.3, linestyle=":", label="exp(-rate t), flow")
    if step is not None and step.certified and step.contraction_factor is not None:
        label = f"certified: {step.contraction_factor:.5f} a step"
        curve = step.contraction_factor ** (times / step.dt)
        axes.plot(times, curve, color=COLOURS[1], linewidth=1.5, linestyle="--", label=label)
