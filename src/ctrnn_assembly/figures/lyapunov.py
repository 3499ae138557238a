"""Convergence of the Lyapunov exponents, and the exponents with their standard errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctrnn_assembly.figures.style import PRINT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ctrnn_assembly.diagnostics.lyapunov import Lyapunov


def lyapunov_figure(found: Lyapunov, bound: float | None, *, title: str) -> Figure:
    """Left: the mean so far against time. Right: the spectrum, with the certified bound."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PRINT):
        figure = Figure(figsize=(7.2, 3.0), dpi=200, layout="constrained")
        left, right = figure.subplots(1, 2)
        k = len(found.exponents)
        colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, k))
        for index in range(k):
            left.plot(
                found.times.numpy(), found.trace[:, index].numpy(), color=colours[index], linewidth=1
            )
        left.set_xlabel("time (unit of tau)")
        left.set_ylabel("mean so far (1 / unit of tau)")
        left.set_title("convergence, dark: largest", fontsize=9)
        errors = found.errors.numpy()
        right.errorbar(
            np.arange(1, k + 1),
            found.exponents.numpy(),
            yerr=np.where(np.isfinite(errors), errors, 0),
            fmt="o",
            color="#0072B2",
            markersize=3,
            capsize=2,
            label="exponent, standard error",
        )
        right.set_xlabel("index")
        right.set_ylabel("exponent (1 / unit of tau)")
        right.set_title("spectrum", fontsize=9)
        for axes in (left, right):
            axes.axhline(0, color="0.35", linewidth=0.8)
            if bound is not None:
                label = f"certified: at most {bound:.3g}"
                axes.axhline(bound, color="#D55E00", linewidth=1.1, linestyle="--", label=label)
        low, high = right.get_ylim()
        right.set_ylim(low, high + 0.3 * (high - low))
        right.legend(fontsize=7, loc="upper right")
        figure.suptitle(title, fontsize=9, parse_math=False)
    return figure
