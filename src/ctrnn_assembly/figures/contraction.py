"""Any between trajectories over time, with the certified envelope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ctrnn_assembly.figures.style import PRINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from ctrnn_assembly.certificates import Certificate

BLUE, ORANGE, PURPLE, BLACK = "#0072B2", "#D55E00", "#CC79A7", "#000000"


def contraction_figure(found: Any, twin: Any | None, certificate: Certificate, *, title: str) -> Figure:
    """Left: in the metric, with the envelope of the certificate. Right: Euclidean, and the twin."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PRINT):
        figure = Figure(figsize=(7.2, 3.1), dpi=200, layout="constrained")
        left, right = figure.subplots(1, 2)
        times = found.times.numpy()
        draw(left, times, found.metric, BLUE, "pairs, in the metric")
        draw_envelope(left, times, certificate)
        left.set_title("in the metric of the certificate", fontsize=9)
        draw(right, times, found.euclidean, BLUE, "pairs, Euclidean")
        if twin is not None:
            draw(right, times, twin.euclidean, PURPLE, "twin: free coupling")
        right.set_title("Euclidean", fontsize=9)
        for axes in (left, right):
            axes.set_yscale("log")
            axes.set_xlabel("time (unit of tau)")
            axes.set_ylabel("distance / distance at the start")
            axes.axhline(1, color="0.35", linewidth=0.8)
            axes.legend(fontsize=7, loc="upper left" if axes is right and twin is not None else "best")
        figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def draw(axes: Axes, times: np.ndarray, distances: Tensor, colour: str, label: str) -> None:
    """One thin line a pair, as long as it is finite and not zero."""
    values = (distances / distances[:, :1]).numpy()
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    lines = axes.plot(times, values.T, color=colour, linewidth=0.7, alpha=0.7)
    lines[0].set_label(label)


def draw_envelope(axes: Axes, times: np.ndarray, certificate: Certificate) -> None:
    """gain^k of a certified step, and exp(-rate t)."""
    step = certificate.step
    if certificate.certified:
        curve = np.exp(-certificate.rate * times)
        axes.plot(times, curve, color=BLACK, linewidth=1.3, linestyle=":", label="exp(-rate t), flow")
    if step is not None and step.certified and step.contraction_factor is not None:
        steps = times / step.dt
        label = f"certified: {step.contraction_factor:.5f} a step"
        axes.plot(
            times,
            step.contraction_factor**steps,
            color=ORANGE,
            linewidth=1.5,
            linestyle="--",
            label=label,
        )
