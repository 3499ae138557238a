"""Eigenvalues in the complex plane, of the step against the unit circle, and extremes over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctrnn_assembly.figures.style import PRINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ctrnn_assembly.certificates import Certificate
    from ctrnn_assembly.diagnostics.spectrum import Spectrum

GREY, BLUE, RED, BLACK = "#9A9A9A", "#0072B2", "#D55E00", "#000000"


def spectrum_figure(
    found: list[Spectrum], before: list[Spectrum], certificate: Certificate, *, title: str
) -> Figure:
    """Left: eigenvalues of J. Middle: of the step. Right: the largest real parts over time."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PRINT):
        figure = Figure(figsize=(7.4, 3.0), dpi=200, layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        draw_plane(left, found, before, certificate)
        draw_step(middle, found, before)
        draw_extremes(right, found, certificate)
        verdict = "certified" if certificate.certified else "NOT certified; eigenvalues prove nothing"
        figure.suptitle(f"{title} ({verdict})", fontsize=9, parse_math=False)
    return figure


def draw_plane(
    axes: Axes, found: list[Spectrum], before: list[Spectrum], certificate: Certificate
) -> None:
    """All eigenvalues of J, by time, with the boundary and the certified rate."""
    import matplotlib

    axes.set_title("Jacobian", fontsize=9)
    axes.set_xlabel("Re (1 / unit of tau)")
    axes.set_ylabel("Im (1 / unit of tau)")
    if before:
        values = np.concatenate([s.eigenvalues.numpy().ravel() for s in before])
        axes.plot(values.real, values.imag, "o", color=GREY, markersize=1.8, mew=0, label="initial")
    colours = matplotlib.colormaps["cividis"]
    longest = max(float(s.times[-1]) for s in found) or 1.0
    for s in found:
        for time, row in zip(s.times.tolist(), s.eigenvalues.numpy(), strict=True):
            axes.plot(row.real, row.imag, "o", color=colours(time / longest), markersize=1.8, mew=0)
    axes.plot([], [], "o", color=colours(0.5), markersize=3, mew=0, label="now, dark to light: time")
    axes.axvline(0, color=BLACK, linewidth=0.9)
    if certificate.certified:
        label = f"-rate = {-certificate.rate:.3g}"
        axes.axvline(-certificate.rate, color=RED, linewidth=1.1, linestyle="--", label=label)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.4 * (high - low))
    axes.legend(fontsize=6.5, loc="upper left")


def draw_step(axes: Axes, found: list[Spectrum], before: list[Spectrum]) -> None:
    """Eigenvalues of the step and the arc of the unit circle near them."""
    axes.set_title("one step", fontsize=9)
    axes.set_xlabel("Re")
    axes.set_ylabel("Im")
    stepped = [s.step_eigenvalues.numpy().ravel() for s in found if s.step_eigenvalues is not None]
    if not stepped:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "this solver has no fixed step", ha="center", transform=axes.transAxes)
        return
    values = np.concatenate(stepped)
    for s in before:
        if s.step_eigenvalues is not None:
            start = s.step_eigenvalues.numpy().ravel()
            axes.plot(start.real, start.imag, "o", color=GREY, markersize=2.4, mew=0)
    axes.plot(values.real, values.imag, ".", color=BLUE, markersize=2.4, mew=0)
    angle = np.linspace(-np.pi, np.pi, 4001)
    axes.plot(np.cos(angle), np.sin(angle), color=BLACK, linewidth=0.9, label="unit circle")
    width = max(float(np.ptp(values.real)), 1 - float(values.real.min()), 1e-3)
    height = max(float(np.abs(values.imag).max()), 1e-3)
    axes.set_xlim(float(values.real.min()) - 0.15 * width, 1 + 0.25 * width)
    axes.set_ylim(-1.3 * height, 1.3 * height)
    if height > 0.5:  # most of the circle is in sight
        axes.set_xlim(-1.15, 1.15)
        axes.set_ylim(-1.15, 1.15)
        axes.set_aspect("equal")
    axes.legend(fontsize=6.5, loc="center" if height > 0.5 else "lower left")


def draw_extremes(axes: Axes, found: list[Spectrum], certificate: Certificate) -> None:
    """The abscissa, and minus the local rate, over time."""
    axes.set_title("over time", fontsize=9)
    axes.set_xlabel("time (unit of tau)")
    axes.set_ylabel("largest real part (1 / unit of tau)")
    for k, s in enumerate(found):
        first = k == 0
        times = s.times.numpy()
        axes.plot(times, s.abscissa.numpy(), "o-", color=BLUE, markersize=2.5, linewidth=1,
                  label="of eig J" if first else None)  # fmt: skip
        if s.local_rates is not None:
            axes.plot(times, -s.local_rates.numpy(), "s--", color=RED, markersize=2.5, linewidth=1,
                      label="of sym J in the metric" if first else None)  # fmt: skip
    if certificate.certified:
        axes.axhline(-certificate.rate, color=BLACK, linewidth=1, linestyle=":", label="certified")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.45 * (high - low))
    axes.legend(fontsize=6.5, loc="upper right")
