"""Bars of the medians of `ctrnn bench`, with the minima, one panel a coupling."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrnn_assembly.figures.style import COLOURS, new_figure, printed

BAR = 0.16  # inches


@printed
def speed_figure(report: dict[str, Any]) -> Figure:
    """Medians of forward and backward as bars; a stroke is the minimum."""
    groups: dict[str, list[Any]] = {}
    for row in report["rows"]:
        groups.setdefault(f"coupling {row['coupling']}", []).append(row)
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
    panels[-1].set_xlabel("milliseconds: median (bar) and minimum (stroke)")
    return figure


def _draw(axes: Axes, rows: list[Any]) -> None:
    for place, row in enumerate(rows):
        colour = COLOURS[0] if row["name"].startswith("ours-") else COLOURS[4]
        axes.barh(place, 1000 * row["median_s"], height=0.7, color=colour)
        axes.plot(1000 * row["min_s"], place, "|", color="black", markersize=6, markeredgewidth=1)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xscale("log")
