"""Time and memory of forward and backward: over the couplings C, over n, and over the steps T.

    python experiments/curves.py [--device cuda --backend persistent]

Everything of one curve is timed interleaved. What takes longer than --slow seconds is timed in fewer
rounds, as its rows say. Leaves results/DATE-curves-DEVICE.json and pictures/curves-DEVICE.png.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from keep import keep

from ctrnn_assembly.benchmark.contestants import CONTESTANTS, present
from ctrnn_assembly.benchmark.interleave import interleave
from ctrnn_assembly.benchmark.measure import Case, Timed, fill_memories, rates_of, row_of, timed, warm_up
from ctrnn_assembly.benchmark.problem import Size, make_problem
from ctrnn_assembly.benchmark.product import product_entry
from ctrnn_assembly.figures.style import (
    legend_below,
    line_style,
    log_axis,
    new_figure,
    printed,
    save_figure,
)

PICTURES = Path(__file__).parent / "pictures"
PAIRS = (0, 5, 20, 60, 120)
UNITS = (128, 256, 512, 1024, 2048)
STEPS = (64, 256, 1024, 4096, 16384)
LONGEST_STORED = 2048  # steps beyond which autograd's graph of a loop would not fit
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
Point = tuple[int, Size, str, str]  # where on the axis, size, coupling, contestant


def over_pairs(backend: str, batch: int) -> Iterator[Point]:
    """C = 0 to all 120 pairs of 16 x 32."""
    names = (f"ours-{backend}", f"ours-adadiag-{backend}", "plain-loop", "torchdyno-adadiag")
    for count in PAIRS:
        for name in names:
            if count or name != "torchdyno-adadiag":  # which has no assembly without a coupling
                yield count, Size(batch=batch), f"random:{count}" if count else "none", name


def over_units(backend: str, batch: int) -> Iterator[Point]:
    """n from 4 to 64 modules of 32 units: all pairs, and 5 of them."""
    for n in UNITS:
        size = Size(n=n, batch=batch)
        for name in (f"ours-{backend}", "plain-loop", "nn.RNN"):
            yield n, size, "all", name
        yield n, size, "random:5", f"ours-{backend}"


def over_steps(backend: str, batch: int) -> Iterator[Point]:
    """T from 64 to 16,384, with every state kept and with few."""
    for steps in STEPS:
        size = Size(steps=steps, batch=batch)
        yield steps, size, "random:5", f"ours-{backend}"
        yield steps, size, "random:5", f"ours-{backend}-sqrt"
        if steps <= LONGEST_STORED:
            yield steps, size, "random:5", "plain-loop"


CURVES = {
    "coupled pairs C": over_pairs,
    "units n": over_units,
    "steps T": over_steps,
}


def measure_curve(
    points: list[Point], device: str, rounds: int, slow: float, slow_rounds: int, memory: bool
) -> list[dict[str, Any]]:
    """One row a point."""
    entries, at = [], []
    for x, size, coupling, name in points:
        if present(BY_NAME[name], device):
            problem = make_problem(size, coupling, BY_NAME[name].blocks, device=device)
            case = Case(BY_NAME[name], problem, BY_NAME[name].build(problem))
            entries.append(timed(case, "forward_backward"))
            at.append(x)
    sizes = list(dict.fromkeys(entry.case.problem.size for entry in entries))
    products = {size: product_entry(size, device, "float32") for size in sizes}
    warm_up(entries, time.perf_counter, lambda stage, done, total: None)
    quick = [entry for entry in entries if entry.warm_up <= slow]
    interleave([*entries, *products.values()], slow_rounds)
    interleave([*quick, *products.values()], rounds - slow_rounds)
    if memory and device == "cpu":
        for size in sizes:
            here = [entry for entry in entries if entry.case.problem.size == size]
            fill_memories(here, size, lambda stage, done, total: None)
    return [{"x": x, **_row(entry, products)} for x, entry in zip(at, entries, strict=True)]


def _row(entry: Timed, products: dict[Size, Any]) -> dict[str, Any]:
    size = entry.case.problem.size
    return row_of(entry, rates_of([products[size]], size))


@printed
def curves_figure(found: dict[str, list[dict[str, Any]]], title: str) -> Any:
    """Above: medians and minima. Below: peak memory."""
    figure = new_figure(5.2, title)
    panels = figure.subplots(2, len(found), sharex="col")
    names = list(dict.fromkeys(label(row) for rows in found.values() for row in rows))
    for column, (axis, rows) in enumerate(found.items()):
        for name in dict.fromkeys(label(row) for row in rows):
            line = [row for row in rows if label(row) == name]
            style = line_style(names.index(name)) | {"markersize": 3, "linewidth": 1.2}
            x = [row["x"] for row in line]
            panels[0, column].plot(x, [row["median_s"] for row in line], **style)
            low = {**style, "linestyle": "none", "marker": "_", "markersize": 6}
            panels[0, column].plot(x, [row["min_s"] for row in line], **low)
            kept = [(row["x"], row["peak_mb"]) for row in line if row["peak_mb"]]
            if kept:
                panels[1, column].plot(*zip(*kept, strict=True), **style)
        panels[1, column].set_xlabel(axis)
        for axes in panels[:, column]:
            log_axis(axes)
            axes.set_xscale(
                "linear" if axis.endswith("C") else "log", **({} if axis.endswith("C") else {"base": 2})
            )
    for name in names:
        panels[0, 0].plot([], [], **line_style(names.index(name)), markersize=3, label=name)
    panels[0, 0].set_ylabel("seconds; - is the minimum")
    panels[1, 0].set_ylabel("peak memory (MB)")
    legend_below(figure, panels[0, 0], 3)
    return figure


def label(row: dict[str, Any]) -> str:
    """Contestant, with its coupling where that is not the axis."""
    return f"{row['name']}, {row['coupling']}" if row["curve"] != "coupled pairs C" else row["name"]


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--backend", default="adjoint", help="of ours")
@click.option("--batch", type=int, default=128)
@click.option("--rounds", type=int, default=7)
@click.option("--slow", type=float, default=5.0, help="seconds beyond which --slow-rounds are enough")
@click.option("--slow-rounds", type=int, default=3)
@click.option("--only", multiple=True, type=click.Choice(list(CURVES)), help="this curve only")
@click.option("--no-memory", is_flag=True)
def main(
    device: str,
    backend: str,
    batch: int,
    rounds: int,
    slow: float,
    slow_rounds: int,
    only: tuple[str, ...],
    no_memory: bool,
) -> None:
    """Measure the curves, write them, draw them."""
    slow_rounds = min(slow_rounds, rounds)
    found = {}
    for axis, points in CURVES.items():
        if not only or axis in only:
            rows = measure_curve(
                list(points(backend, batch)), device, rounds, slow, slow_rounds, not no_memory
            )
            found[axis] = [{"curve": axis, **row} for row in rows]
            click.echo(f"{axis}: {len(rows)} points")
    rows = [row for rows in found.values() for row in rows]
    print(keep(f"curves-{device}", {"rounds": rounds, "threads": torch.get_num_threads(), "rows": rows}))
    title = f"forward and backward, batch {batch}, 196 steps and 16 x 32 where not on the axis; {device}"
    picture = PICTURES / f"curves-{device}.png"
    save_figure(curves_figure(found, title), picture)
    print(picture)


if __name__ == "__main__":
    main()
