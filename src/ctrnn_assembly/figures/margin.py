"""How much of the certificate is left, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrnn_assembly.figures.style import (
    GREY,
    Array,
    empty,
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


@printed
def margin_figure(histories: Sequence[Any], names: Sequence[str], *, title: str) -> Figure:
    """The certified rate, the factor of one step, and, where it is known, the largest certified step."""
    known = any(history.has("max_dt") for history in histories)
    figure = new_figure(3.0 + 0.15 * ((len(histories) + 3) // 2), title)
    panels = figure.subplots(1, 2 + known)
    draw_panel(panels[0], histories, "rate", "certified")
    panels[0].axhline(0, color=GREY, linewidth=0.8)
    panels[0].set_title("continuous time", fontsize=9)
    panels[0].set_ylabel("rate, at least (1 / unit of tau)")
    draw_panel(panels[1], histories, "step_factor", "step_certified")
    panels[1].axhline(1, color=GREY, linewidth=0.8)
    panels[1].set_title("one step of the solver", fontsize=9)
    panels[1].set_ylabel("factor of the distance, at most")
    if known:
        draw_longest(panels[2], histories, names)
    for axes in panels:
        if axes.lines:
            whole_epochs(axes)
    for k, name in enumerate(names):
        panels[0].plot([], [], **line_style(k), markersize=4, linewidth=1.3, label=name)
    for face, label in ((GREY, "certified"), ("white", "not certified")):
        panels[0].plot([], [], "o", color=GREY, markerfacecolor=face, markersize=4, label=label)
    legend_below(figure, panels[0], 4)
    return figure


def draw_panel(axes: Axes, histories: Sequence[Any], column: str, verdict: str) -> None:
    """One line a run: full markers where the epoch is certified, hollow ones where it is not."""
    for k, history in enumerate(histories):
        value = history.column(column)
        if np.isfinite(value).any():
            draw_verdicts(axes, history, value, history.certified(verdict), line_style(k))
    axes.ticklabel_format(useOffset=False, axis="y")
    if not axes.lines:
        empty(axes, "no bound is known")


def draw_longest(axes: Axes, histories: Sequence[Any], names: Sequence[str]) -> None:
    """The largest certified dt against the run's own; runs for which every dt is certified are named."""
    axes.set_title("largest certified dt", fontsize=9)
    endless = []
    for k, (history, name) in enumerate(zip(histories, names, strict=True)):
        longest, certified = history.column("max_dt"), history.certified("step_certified")
        if history.has("max_dt") and (certified & ~np.isfinite(longest)).any():
            endless.append(name)
        shown = np.where(longest > 0, longest, np.nan)
        if np.isfinite(shown).any():
            draw_verdicts(axes, history, shown, certified, line_style(k))
            style: dict[str, Any] = {"color": line_style(k)["color"], "linewidth": 1}
            axes.axhline(history.config.dt, linestyle=(0, (4, 2)), **style)
    said = "every dt is certified" if len(endless) == len(names) else "every dt is certified of\n"
    said += "" if len(endless) == len(names) else "\n".join(endless)
    if not axes.lines:
        empty(axes, said if endless else "no dt is certified")
        return
    axes.set_ylabel("dt (unit of tau)")
    log_axis(axes)
    axes.plot([], [], color=GREY, linewidth=1, linestyle=(0, (4, 2)), label="dt of the run")
    legend = axes.legend(loc="best", fontsize=8, title=said if endless else None, title_fontsize=8)
    legend.get_title().set_parse_math(False)


def draw_verdicts(
    axes: Axes, history: Any, value: Array, certified: np.ndarray, style: dict[str, Any]
) -> None:
    """A line with a marker at every certificate, or at so many that they can be told apart."""
    judged = history.judged()
    epochs, value, certified = history.epochs[judged], value[judged], certified[judged]
    axes.plot(epochs, value, color=style["color"], linewidth=1.3)
    every = max(1, len(epochs) // 15)
    shown = np.arange(len(epochs)) % every == 0
    style = {"linestyle": "", "markersize": 4, **style}
    for chosen, face in ((certified & shown, style["color"]), (~certified & shown, "white")):
        axes.plot(epochs[chosen], value[chosen], markerfacecolor=face, **style)
