"""Bars of the medians of `ctrnn bench`, with the minima, one panel a coupling."""

from typing import Any

from matplotlib.figure import Figure

from ctrnn_assembly.figures.style import COLOURS, new_figure, printed


@printed
def speed_figure(report: dict[str, Any]) -> Figure:
    """Medians of forward and backward as bars; a stroke is the minimum."""
    groups: dict[str, list[Any]] = {}
    for row in report["rows"]:
        groups.setdefault(f"coupling {row['coupling']}", []).append(row)
    counts = [len(group) for group in groups.values()]
    height = 0.9 + 0.45 * len(groups) + 0.32 * sum(counts)
    figure = new_figure(height, f"{report['size']}; {report['hardware']}")
    panels = figure.subplots(len(groups), squeeze=False, sharex=True, height_ratios=counts)[:, 0]
    for axes, (coupling, rows) in zip(panels, groups.items(), strict=True):
        names = [row["name"] for row in rows]
        colours = [COLOURS[0 if name.startswith("ours-") else 4] for name in names]
        axes.barh(names, [1000 * row["median_s"] for row in rows], height=0.7, color=colours)
        axes.plot([1000 * row["min_s"] for row in rows], names, "k|", markersize=6, markeredgewidth=1)
        axes.set_title(coupling, fontsize=8, loc="left")
        axes.tick_params(axis="y", labelsize=7)
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.set_xscale("log")
    panels[-1].set_xlabel("milliseconds: median (bar) and minimum (stroke)")
    return figure
