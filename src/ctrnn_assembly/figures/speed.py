"""Bars of the medians of `ctrnn bench`, with the minima, one panel a coupling."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrnn_assembly.figures.style import COLOURS, new_figure, printed

BAR = 0.16  # inches


@printed
def speed_figure(report: dict[str, Any]) -> Figure:
    """Forward and backward as full bars, forward as pale ones; a stroke is the minimum."""
    groups: dict[str, dict[str, list[Any]]] = {}  # title -> name -> rows
    for row in report["rows"]:
        group = groups.setdefault(f"coupling {row['coupling']}", {})
        group.setdefault(row["name"], []).append(row)
    counts = [len(group) for group in groups.values()]
    title = (
        f"n {report['n']} = {report['modules']} x {report['units']}, batch {report['batch']}, "
        f"{report['steps']} steps; {report['hardware']}"
    )
    figure = new_figure(0.9 + sum(0.45 + 2 * BAR * count for count in counts), title)
    panels = figure.subplots(len(groups), squeeze=False, sharex=True, height_ratios=counts)[:, 0]
    for axes, (name, group) in zip(panels, groups.items(), strict=True):
        _draw(axes, group)
        axes.set_title(name, fontsize=8, loc="left")
    panels[-1].set_xlabel("milliseconds: median (bar) and minimum (stroke); pale: forward only")
    return figure


def _draw(axes: Axes, group: dict[str, list[Any]]) -> None:
    for place, (name, rows) in enumerate(group.items()):
        colour = COLOURS[0] if name.startswith("ours-") else COLOURS[4]
        for row in rows:
            backward = row["kind"] == "forward_backward"
            y = place - 0.2 if backward else place + 0.2
            axes.barh(y, 1000 * row["median_s"], height=0.38, color=colour, alpha=1 if backward else 0.4)
            axes.plot(1000 * row["min_s"], y, "|", color="black", markersize=6, markeredgewidth=1)
    axes.set_yticks(range(len(group)), list(group), fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xscale("log")
