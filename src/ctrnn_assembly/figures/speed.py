"""Bars of the medians of `ctrnn bench`, with the minima, one panel a coupling and device."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrnn_assembly.figures.style import COLOURS, new_figure, printed

OURS, OTHERS = COLOURS[0], COLOURS[4]
BAR = 0.16  # inches


@printed
def speed_figure(report: dict[str, Any]) -> Figure:
    """Forward and backward as full bars, forward as pale ones; a stroke is the minimum."""
    groups = list(dict.fromkeys((row["coupling"], row["device"]) for row in report["rows"]))
    counts = [len(_names(report, group)) for group in groups]
    title = (
        f"n {report['n']} = {report['modules']} x {report['units']}, batch {report['batch']}, "
        f"{report['steps']} steps; {report['hardware']}"
    )
    figure = new_figure(0.9 + sum(0.45 + 2 * BAR * count for count in counts), title)
    panels = figure.subplots(
        len(groups), 1, squeeze=False, sharex=True, height_ratios=counts
    )[:, 0]  # fmt: skip
    for axes, group in zip(panels, groups, strict=True):
        _draw(axes, report, group)
    panels[-1].set_xlabel("milliseconds: median (bar) and minimum (stroke); pale: forward only")
    return figure


def _names(report: dict[str, Any], group: tuple[str, str]) -> list[str]:
    coupling, device = group
    rows = (r for r in report["rows"] if (r["coupling"], r["device"]) == (coupling, device))
    return list(dict.fromkeys(row["name"] for row in rows))


def _draw(axes: Axes, report: dict[str, Any], group: tuple[str, str]) -> None:
    coupling, device = group
    names = _names(report, group)
    for row in report["rows"]:
        if (row["coupling"], row["device"]) == group:
            _bar(axes, names.index(row["name"]), row)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_title(f"coupling {coupling}, {device}", fontsize=8, loc="left")


def _bar(axes: Axes, place: int, row: dict[str, Any]) -> None:
    backward = row["kind"] == "forward_backward"
    y = place - 0.2 if backward else place + 0.2
    colour = OURS if row["name"].startswith("ours-") else OTHERS
    axes.barh(y, 1000 * row["median_s"], height=0.38, color=colour, alpha=1 if backward else 0.4)
    axes.plot(1000 * row["min_s"], y, "|", color="black", markersize=6, markeredgewidth=1)
