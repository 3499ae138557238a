"""Lyapunov exponents: the running estimate over time, and the spectrum with its standard errors."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ctrnn_assembly.figures.style import COLOURS, GREY, Array, new_figure, printed


@printed
def lyapunov_figure(
    times: Array,
    running: Array,
    exponents: Array,
    errors: Array,
    *,
    bound: float | None = None,
    title: str,
) -> Figure:
    """Left: the mean so far against time. Right: the spectrum, with the certified bound.

    Args:
        times: (T,). running: the mean of each exponent up to a time, (T, k).
        exponents, errors: the last of them and their standard errors, (k,); NaN where unknown.
        bound: the certified largest exponent, if there is one.
    """
    figure = new_figure(3.0, title)
    left, right = figure.subplots(1, 2)
    k = len(exponents)
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, k))
    for index, line in enumerate(running.T):
        name = {0: "largest", k - 1: f"number {k}"}.get(index)
        left.plot(times, line, color=colours[index], linewidth=1, label=name)
    left.set(xlabel="time (unit of tau)", ylabel="mean so far (1 / unit of tau)")
    left.set_title("running estimate")
    bars = np.where(np.isfinite(errors), errors, 0)
    look: dict[str, object] = {"fmt": "o", "color": COLOURS[0], "markersize": 3, "capsize": 2}
    label = "exponent, standard error"
    right.errorbar(np.arange(1, k + 1), exponents, yerr=bars, label=label, **look)
    right.set(xlabel="index", ylabel="exponent (1 / unit of tau)")
    right.set_title("at the end")
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=0.8)
        if bound is not None:
            label = f"certified: at most {bound:.3g}"
            axes.axhline(bound, color=COLOURS[1], linewidth=1.1, linestyle="--", label=label)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.3 * (high - low))
        axes.legend(fontsize=7, loc="upper right", ncols=2)
    return figure
