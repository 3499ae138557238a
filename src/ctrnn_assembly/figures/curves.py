"""Accuracy and loss of one or more runs, with published accuracies as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrnn_assembly.figures.style import (
    GREY,
    legend_below,
    line_style,
    log_axis,
    new_figure,
    printed,
    whole_epochs,
)

if TYPE_CHECKING:  # a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("--", ":", "-.")


@printed
def curves_figure(
    histories: Sequence[Any], names: Sequence[str], published: Sequence[Any], *, title: str
) -> Figure:
    """Left: accuracy of validation, training and test. Right: the losses."""
    figure = new_figure(3.3 + 0.15 * (len(histories) + len(published)), title)
    left, right = figure.subplots(1, 2)
    for k, (history, name) in enumerate(zip(histories, names, strict=True)):
        draw_run(left, history, name, k, "accuracy", 100)
        draw_run(right, history, name, k, "loss", 1)
        draw_test(left, history, k)
    left.plot([], [], "*", color=GREY, markersize=8, label="test, at the epoch kept")
    for axes in (left, right):
        axes.plot([], [], color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), label="training")
        whole_epochs(axes)
    for line, dashes in zip(published, DASHES, strict=False):
        label = f"{line.network}: {line.value:g} % ({line.note})\n{line.source}"
        left.axhline(line.value, color="black", linestyle=dashes, linewidth=1, label=label)
    left.set_ylabel("accuracy (%)")
    right.set_ylabel("cross-entropy (nats)")
    if all((history.column("val_loss") > 0).any() for history in histories):
        log_axis(right)
    legend_below(figure, left, 2)
    return figure


def draw_run(axes: Axes, history: Any, name: str, k: int, what: str, scale: float) -> None:
    """Validation as a full line, training as a thin dashed one of the same colour."""
    style = line_style(k)
    epochs = history.epochs
    axes.plot(
        epochs,
        scale * history.column(f"val_{what}"),
        **style,
        linewidth=1.5,
        markersize=3.5,
        markevery=max(1, len(epochs) // 12),
        label=f"{name}, validation",
    )
    axes.plot(
        epochs,
        scale * history.column(f"train_{what}"),
        color=style["color"],
        linewidth=0.9,
        linestyle=(0, (4, 2)),
    )


def draw_test(axes: Axes, history: Any, k: int) -> None:
    """A star at the epoch whose weights were kept."""
    epoch, accuracy = history.number("best_epoch"), history.number("test_accuracy")
    if np.isfinite(epoch) and np.isfinite(accuracy):
        colour = line_style(k)["color"]
        edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(epoch + 1, 100 * accuracy, "*", color=colour, markersize=9, zorder=4, **edge)
