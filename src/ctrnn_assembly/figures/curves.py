"""Runs over their epochs, what their weights are worth elsewhere, searches of settings, and times."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrnn_assembly.errors import DataError
from ctrnn_assembly.figures import style
from ctrnn_assembly.reproduction.experiments import PublishedAccuracy
from ctrnn_assembly.training.run import Run
from ctrnn_assembly.training.swap import Swap

DASHED = (0, (4, 2))
DASHES = ("--", ":", "-.")
OURS = ("ours", "auto-", "euler-", "imex-")  # contestants whose names begin so
BOUNDS: Any = (  # title, label, column, its verdict, and the value beyond which nothing is proven
    ("continuous time", f"rate, at least ({style.PER_TAU})", "rate", "certified", 0.0),
    ("one step of the solver", "factor of the distance, at most", "step_factor", "step_certified", 1.0),
    ("largest certified dt", "dt (unit of tau)", "max_dt", "step_certified", None),
)


@style.printed
def curves_figure(runs: Sequence[Run], published: Sequence[PublishedAccuracy] = ()) -> Figure:
    """Left: accuracies, published ones as lines. Right: losses. DataError if no epoch has ended."""
    tasks, names = described(runs)
    figure, (left, right) = style.new_figure(3.3 + 0.15 * (len(runs) + len(published)), tasks, (1, 2))
    for k, (run, name) in enumerate(zip(runs, names, strict=True)):
        draw_run(left, run, name, k, "accuracy", 100)
        draw_run(right, run, name, k, "loss", 1)
        summary = run.summary or {}
        epoch, accuracy = summary.get("best_epoch"), summary.get("test_accuracy")
        if isinstance(epoch, int) and isinstance(accuracy, float):
            colour = style.line_style(k)["color"]
            left.plot(epoch + 1, 100 * accuracy, "*", color=colour, ms=9, zorder=4, mec="white", mew=0.6)
    left.plot([], [], "*", color=style.GREY, markersize=8, label="test, at the epoch kept")
    left.plot([], [], color=style.GREY, linewidth=0.9, linestyle=DASHED, label="training")
    for axes in (left, right):
        style.whole_numbers(axes, "epoch")
    for line, dashes in zip(published, DASHES, strict=False):
        label = f"{line.network}: {line.value:g} % ({line.note})\n{line.source}"
        left.axhline(line.value, color=style.BLACK, linestyle=dashes, linewidth=1, label=label)
    left.set_ylabel("accuracy (%)")
    right.set_ylabel("cross-entropy (nats), or squared error")
    if all((run.column("val_loss") > 0).any() for run in runs):
        style.log_axis(right)
    style.legend_below(figure, [left], 2)
    return figure


def draw_run(axes: Axes, run: Run, name: str, k: int, what: str, scale: float) -> None:
    """Validation as a full line, training as a thin dashed one of the same colour."""
    look, epochs = style.line_style(k), 1 + run.column("epoch")
    values, every = scale * run.column(f"val_{what}"), max(1, len(epochs) // 12)
    label = f"{name}, validation"
    axes.plot(epochs, values, **look, linewidth=1.5, markersize=3.5, markevery=every, label=label)
    training = scale * run.column(f"train_{what}")
    axes.plot(epochs, training, color=look["color"], linewidth=0.9, linestyle=DASHED)


@style.printed
def margin_figure(runs: Sequence[Run]) -> Figure:
    """The certified rate, the factor of one step, and the largest certified dt beside the run's own."""
    tasks, names = described(runs)
    height = 3.0 + 0.15 * ((len(runs) + 3) // 2)
    figure, panels = style.new_figure(height, f"{tasks}: what is left of the certificate", (1, 3))
    for axes, (title, label, column, verdict, boundary) in zip(panels, BOUNDS, strict=True):
        axes.set(title=title, ylabel=label)
        drawn = [run for k, run in enumerate(runs) if draw_verdicts(axes, run, column, verdict, k)]
        if not drawn:
            endless = all((run.column(verdict) > 0).all() for run in runs)
            style.empty(axes, "every dt is certified" if endless else "nothing is certified")
            continue
        style.whole_numbers(axes, "epoch")
        axes.ticklabel_format(useOffset=False, axis="y")
        dashes: Any = DASHED if boundary is None else "-"
        steps = {run.config.dt / run.config.substeps for run in drawn}
        for value in steps if boundary is None else (boundary,):
            axes.axhline(value, color=style.GREY, linewidth=0.8, linestyle=dashes)
    for k, name in enumerate(names):
        panels[0].plot([], [], **style.line_style(k), markersize=4, linewidth=1.3, label=name)
    for face, label in ((style.GREY, "certified"), ("white", "not certified")):
        panels[0].plot([], [], "o", color=style.GREY, markerfacecolor=face, markersize=4, label=label)
    panels[0].plot([], [], color=style.GREY, linewidth=0.8, linestyle=DASHED, label="step of the run")
    style.legend_below(figure, [panels[0]], 4)
    return figure


@style.printed
def swap_figure(found: Sequence[Swap], *, title: str) -> Figure:
    """Left: accuracy under each solver, the one of training first. Right: how large the states grow."""
    title = f"{title}: the same weights under other solvers"
    figure, (left, right) = style.new_figure(1.7 + 0.22 * len(found), title, (1, 2))
    for k, one in enumerate(found):
        look, accuracy = style.line_style(k), 100 * (one.measures.get("accuracy") or math.nan)
        left.plot(accuracy, k, **look, markerfacecolor=look["color"] if one.certified else "white")
        times = one.run.config.dt * np.arange(1, len(one.largest) + 1)
        right.plot(times, one.largest.numpy(), color=look["color"], linewidth=1.3)
    trained = 100 * (found[0].measures.get("accuracy") or 0)
    left.axvline(trained, color=style.GREY, linewidth=0.8, linestyle=DASHED)
    left.set_yticks(range(len(found)), [f"{s.name}{' (trained)' * (s is found[0])}" for s in found])
    left.set(xlabel="test accuracy (%)", xlim=(0, 102), ylim=(len(found) - 0.5, -0.5))
    right.set(xlabel="time (unit of tau)", ylabel="largest |x|, in the same colours")
    style.log_axis(right)
    for face, label in ((style.GREY, "its step is certified"), ("white", "its step is not certified")):
        left.plot([], [], "o", color=style.GREY, markerfacecolor=face, label=label)
    style.legend_below(figure, [left], 2)
    return figure


@style.printed
def radius_figure(radii: Mapping[str, style.Array], *, title: str) -> Figure:
    """Accuracy over the size of a perturbation, from the radius of each sample: 0 if it is wrong."""
    figure, axes = style.new_figure(3.2, f"{title}: accuracy under perturbed inputs")
    for k, (name, found) in enumerate(radii.items()):
        known = np.sort(found[found > 0])
        left = 100 * np.arange(len(known), 0, -1) / len(found)
        dashes: Any = DASHED if name.startswith("attack") else "-"
        axes.step(known, left, where="pre", label=name, color=style.COLOURS[k], linestyle=dashes)
    axes.set(xscale="log", ylim=(0, 101), xlabel="perturbation of the input", ylabel="test accuracy (%)")
    style.legend_below(figure, [axes], 4)
    return figure


@style.printed
def sweep_figure(
    rows: Sequence[Mapping[str, Any]], importance: Mapping[str, float], *, title: str
) -> Figure:
    """Left: the share of the variance that a setting explains. Right: validation of each trial."""
    figure, (left, right) = style.new_figure(2.6 + 0.15 * len(importance), title, (1, 2))
    left.barh(list(importance), list(importance.values()), color=style.COLOURS[0], height=0.6)
    left.set(xlabel="importance (fANOVA)", xlim=(0, 1))
    left.invert_yaxis()
    if not importance:
        style.empty(left, "all trials have the same score")
    done = sorted((row["trial"], row["score"], row) for row in rows if row["score"] is not None)
    for trial, score, row in done:
        whole = row["certified"] == row["runs"]
        right.plot(trial, score, "o", color=style.COLOURS[0], mfc=None if whole else "white", ms=4)
    best = np.maximum.accumulate([score for _, score, _ in done])
    right.step([trial for trial, *_ in done], best, where="post", color=style.GREY, linewidth=0.9)
    right.set(ylabel="validation", title="line: the best so far; full dots: certified")
    style.whole_numbers(right, "trial")
    return figure


@style.printed
def speed_figure(report: dict[str, Any]) -> Figure:
    """Medians of forward and backward as bars from 0, each work on its axis; a stroke is the minimum."""
    groups: dict[str, list[Any]] = {}
    for row in report["rows"]:
        groups.setdefault(row["work"], []).append(row)
    counts = [len(group) for group in groups.values()]
    height = 0.9 + 0.45 * len(groups) + 0.32 * sum(counts)
    given: Any = {"squeeze": False, "height_ratios": counts}
    figure, panels = style.new_figure(height, report["hardware"], (len(groups), 1), **given)
    for axes, (work, rows) in zip(panels[:, 0], groups.items(), strict=True):
        names = [row["name"] for row in rows]
        colours = [style.COLOURS[0 if name.startswith(OURS) else 4] for name in names]
        axes.barh(names, [1000 * row["median_s"] for row in rows], height=0.7, color=colours)
        axes.plot([1000 * row["min_s"] for row in rows], names, "k|", markersize=6, markeredgewidth=1)
        sizes = "; ".join(dict.fromkeys(row["size"] for row in rows))
        axes.set_title(fill(f"{work}: {sizes}", 90), fontsize=8, loc="left")
        axes.tick_params(axis="y", labelsize=7)
        axes.margins(y=0.01)
        axes.invert_yaxis()
    panels[-1, 0].set_xlabel("milliseconds: median (bar) and minimum (stroke)")
    return figure


def draw_verdicts(axes: Axes, run: Run, column: str, verdict: str, k: int) -> bool:
    """A line with markers, full where the epoch is certified; False where no epoch has a value."""
    values, epochs, look = run.column(column), 1 + run.column("epoch"), style.line_style(k)
    known = np.isfinite(values) & np.isfinite(run.column("certified"))
    epochs, values, holds = epochs[known], values[known], run.column(verdict)[known] > 0
    axes.plot(epochs, values, color=look["color"], linewidth=1.3)
    shown = np.arange(len(epochs)) % max(1, len(epochs) // 15) == 0
    for chosen, face in ((holds & shown, look["color"]), (~holds & shown, "white")):
        at = epochs[chosen], values[chosen]
        axes.plot(*at, markerfacecolor=face, linestyle="", markersize=4, **look)
    return bool(known.any())


def described(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The tasks of the runs, each once, and short names; refuses runs that have no epoch to draw."""
    for run in runs:
        if not run.epochs:
            fix = f"`ctrnn train --resume {run.path}` goes on."
            raise DataError(f"{run.path} has no metrics.csv with an epoch in it: none has ended. {fix}")
    tasks = ", ".join(dict.fromkeys(run.task_as_used for run in runs))
    return tasks, short_names([run.path or Path(run.config.model) for run in runs])


def short_names(runs: Sequence[Path]) -> list[str]:
    """The names of the folders, with as many folders above them as tell them apart."""
    full, depth = [run.resolve().parts for run in runs], 1
    while len({parts[-depth:] for parts in full}) < len(set(full)):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in full]
