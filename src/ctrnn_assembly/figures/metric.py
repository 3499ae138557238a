"""The eigenvalues of the metric, module by module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ctrnn_assembly.figures.style import COLOURS, GREY, NUMBERED, Array, log_axis, new_figure, printed

if TYPE_CHECKING:  # a second to import
    from matplotlib.figure import Figure


@printed
def metric_figure(eigenvalues: tuple[Array, ...], condition: str, *, title: str) -> Figure:
    """A rising row of dots for each module, from its smallest to its largest eigenvalue.

    Args:
        eigenvalues: of diag(tau) M, (n_i,) for each module.
        condition: the condition number of the whole, as text.
    """
    figure = new_figure(2.9, title)
    axes = figure.subplots()
    p = len(eigenvalues)
    marker = max(1.0, min(4.0, 900 / sum(len(values) for values in eigenvalues)))
    dots: dict[str, Any] = {"markersize": marker, "markeredgewidth": 0}
    for k, values in enumerate(eigenvalues):
        across = k + np.linspace(-0.36, 0.36, len(values)) if len(values) > 1 else np.array([k])
        axes.plot(across, np.sort(values), "o", color=COLOURS[k % 2], **dots)
    every = np.concatenate(eigenvalues)
    low, high = float(every.min()), float(every.max())
    for value in (low, high):
        axes.axhline(value, color=GREY, linewidth=0.7, linestyle=(0, (4, 2)))
    room = max((high / low) ** 0.15, 1.6)
    axes.set_ylim(low / room, high * room)
    log_axis(axes)
    axes.set_xlim(-0.7, p - 0.3)
    if p <= NUMBERED:
        axes.set_xticks(range(p), [str(k) for k in range(p)])
    axes.set_xlabel("module; its eigenvalues from the smallest to the largest")
    axes.set_ylabel("eigenvalue of diag(tau) M")
    axes.text(0.995, high * room**0.5, f"condition number {condition}", ha="right", va="center",
              fontsize=8, color=GREY, transform=axes.get_yaxis_transform())  # fmt: skip
    return figure
