"""How fast the solvers are, kept as JSON with all that it depends on.

    python experiments/speed.py table               # `ctrnn bench` at batch 128 and 16, for the README
    python experiments/speed.py curves              # over the couplings C, over n, and over the steps T
    python experiments/speed.py epoch [--data-dir DATA]

table   Leaves results/DATE-speed-DEVICE.json, from which `experiments/tables.py` makes the table.
curves  Time and memory of forward and backward. Everything of one curve is timed interleaved; what takes
        longer than --slow seconds is timed in fewer rounds, as its rows say. Leaves
        results/DATE-curves-DEVICE.json and pictures/curves-DEVICE.png.
epoch   A full-length epoch of sequential MNIST, from measured batches: 60,000 sequences of 784 steps. An
        AdaDiag assembly of 16 x 32 with 5 couplings: forward, loss, backward, clipping and an Adam step,
        so with the making of weights from parameters. Beside it torchdyno's core on the same batches,
        fewer of them, spread evenly among ours. An epoch is the mean batch times 469. Without --data-dir
        the pixels are random, which changes nothing for the clock. Leaves
        results/DATE-epoch-estimate-DEVICE.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from keep import about, keep
from torch import Tensor, nn

from ctrnn_assembly.benchmark import CONTESTANTS, Problem, measure
from ctrnn_assembly.benchmark.measure import fill_memories, row_of
from ctrnn_assembly.benchmark.rivals import has_torchdyno, torchdyno_core
from ctrnn_assembly.benchmark.timing import NOISE, Timing, product_timings, schedule
from ctrnn_assembly.data import load_task
from ctrnn_assembly.figures.style import (
    legend_below,
    line_style,
    log_axis,
    new_figure,
    printed,
    save_figure,
)
from ctrnn_assembly.models import build_model
from ctrnn_assembly.training.batches import Batches

BATCHES = (128, 16)
PICTURES = Path(__file__).parent / "pictures"


def table(settings: argparse.Namespace) -> None:
    """`ctrnn bench` at two batch sizes."""
    runs = [
        measure(Problem(batch=batch), device=settings.device, rounds=settings.rounds, budget=0)
        for batch in BATCHES
    ]
    facts = {"threads": torch.get_num_threads(), "runs": runs}
    print(keep(f"speed-{settings.device}", {**about(__file__), **facts}))


# Curves

Point = tuple[int, str, Problem]  # where on the axis, the contestant, what it solves


def over_pairs(backend: str, size: dict[str, Any]) -> Iterator[Point]:
    """C = 0 to all 120 pairs of 16 x 32."""
    for count in (0, 5, 20, 60, 120):
        for name in (f"ours-{backend}", f"ours-adadiag-{backend}", "plain-loop", "torchdyno-adadiag"):
            if count or name != "torchdyno-adadiag":  # which has no assembly without a coupling
                yield count, name, Problem(coupling=f"random:{count}" if count else "none", **size)


def over_units(backend: str, size: dict[str, Any]) -> Iterator[Point]:
    """n from 4 to 64 modules of 32 units: all pairs, and 5 of them."""
    for n in (128, 256, 512, 1024, 2048):
        for name in (f"ours-{backend}", "plain-loop", "nn.RNN"):
            yield n, name, Problem(n=n, **size)
        yield n, f"ours-{backend}", Problem(n=n, coupling="random:5", **size)


def over_steps(backend: str, size: dict[str, Any]) -> Iterator[Point]:
    """T from 64 to 16,384, with every state kept and with few."""
    for steps in (64, 256, 1024, 4096, 16384):
        names = [f"ours-{backend}", f"ours-{backend}-sqrt"]
        if steps <= 2048:  # beyond, autograd's graph of a loop would not fit
            names.append("plain-loop")
        for name in names:
            yield steps, name, Problem(steps=steps, coupling="random:5", **size)


CURVES = {"coupled pairs C": over_pairs, "units n": over_units, "steps T": over_steps}


def measure_curve(
    axis: str, points: Iterator[Point], settings: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row a point."""
    at, timings, products = [], [], {}
    for x, name, problem in points:
        contestant = CONTESTANTS[name]
        if contestant.is_present(problem.device):
            problem = replace(problem, blocks=contestant.blocks)
            timings.append(Timing.of(contestant, problem, "forward_backward"))
            at.append(x)
            if problem.n not in products:
                products[problem.n] = product_timings(problem)
    for timing in timings:
        timing.warm()
    quick = [timing for timing in timings if timing.warm_up <= settings.slow]
    few = min(settings.slow_rounds, settings.rounds)
    always = [one for found in products.values() for one in found]
    order = schedule([*timings, *always], few) + schedule([*quick, *always], settings.rounds - few)
    for timing in order:
        timing.seconds.append(timing.time())
    if not settings.no_memory:
        fill_memories(timings)
    rows = [row_of(timing, products[timing.problem.n]) for timing in timings]
    return [{"curve": axis, "x": x, **row} for x, row in zip(at, rows, strict=True)]


@printed
def curves_figure(found: dict[str, list[dict[str, Any]]], title: str) -> Any:
    """Above: medians and minima. Below: peak memory."""
    figure = new_figure(5.2, title)
    panels = figure.subplots(2, len(found), sharex="col", squeeze=False)
    names = list(dict.fromkeys(label(row) for rows in found.values() for row in rows))
    for (above, below), (axis, rows) in zip(panels.T, found.items(), strict=True):
        for k, name in enumerate(names):
            style = line_style(k) | {"markersize": 3, "linewidth": 1.2}
            line = [row for row in rows if label(row) == name]
            x = [row["x"] for row in line]
            above.plot(x, [row["median_s"] for row in line], **style)
            low = {**style, "linestyle": "none", "marker": "_", "markersize": 6}
            above.plot(x, [row["min_s"] for row in line], **low)
            kept = [row for row in line if row["peak_mb"]]
            below.plot([row["x"] for row in kept], [row["peak_mb"] for row in kept], **style)
        below.set_xlabel(axis)
        for axes in (above, below):
            log_axis(axes)
            if not axis.endswith("C"):
                axes.set_xscale("log", base=2)
    for k, name in enumerate(names):
        panels[0, 0].plot([], [], **line_style(k), markersize=3, label=name)
    panels[0, 0].set_ylabel("seconds; - is the minimum")
    panels[1, 0].set_ylabel("peak memory (MB)")
    legend_below(figure, panels[0, 0], 3)
    return figure


def label(row: dict[str, Any]) -> str:
    """Contestant, with its coupling where that is not the axis."""
    return f"{row['name']}, {row['coupling']}" if row["curve"] != "coupled pairs C" else row["name"]


def curves(settings: argparse.Namespace) -> None:
    """Measure the curves, write them, draw them."""
    found, device = {}, settings.device
    for axis in settings.only or CURVES:
        points = CURVES[axis](settings.backend, {"batch": settings.batch, "device": device})
        found[axis] = measure_curve(axis, points, settings)
        print(f"{axis}: {len(found[axis])} points")
    rows = [row for rows in found.values() for row in rows]
    facts = {"rounds": settings.rounds, "threads": torch.get_num_threads(), "rows": rows}
    print(keep(f"curves-{device}", {**about(__file__), **facts}))
    title = f"forward and backward, batch {settings.batch}, 196 steps and 16 x 32 where not on the axis"
    picture = PICTURES / f"curves-{device}.png"
    save_figure(curves_figure(found, f"{title}; {device}"), picture)
    print(picture)


# An epoch

SAMPLES, STEPS, CLASSES = 60_000, 784, 10
COUPLING = "random:5"
Batch = tuple[Tensor, Tensor]


class TorchdynoClassifier(nn.Module):
    """torchdyno's AdaDiag core with a readout of the last state."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.core = torchdyno_core(problem, "tanh")
        self.readout = nn.Linear(problem.n, CLASSES)

    def forward(self, u: Tensor) -> Tensor:
        return self.readout(self.core.compute_states(u.transpose(0, 1))[-1])


def batches(size: int, data_dir: str | None, device: str) -> Iterator[Batch]:
    """Endless batches of whole size, on the device."""
    if data_dir is None:
        generator = torch.Generator().manual_seed(0)
        while True:
            u = torch.rand(size, STEPS, 1, generator=generator)
            yield u.to(device), torch.randint(CLASSES, (size,), generator=generator).to(device)
    task = load_task("smnist", data_dir=data_dir)
    for u, y, _ in cycle(Batches(task, task.train, size, seed=0)):
        if len(y) == size:
            yield u.to(device), y.to(device)


def training_step(model: nn.Module, following: Iterator[Batch]) -> Callable[[], float]:
    """Trains on the next batch, and returns the seconds that it took."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-3)

    def step() -> float:
        u, y = next(following)
        start = time.perf_counter()
        optimiser.zero_grad()
        F.cross_entropy(model(u), y).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if u.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def estimate(name: str, seconds: list[float], batch: int) -> dict[str, Any]:
    """Seconds a batch, and an epoch of them."""
    count = -(-SAMPLES // batch)
    mean, median = statistics.fmean(seconds), statistics.median(seconds)
    return {
        "name": name,
        "batches_measured": len(seconds),
        "batches_of_an_epoch": count,
        "mean_s": mean,
        "median_s": median,
        "min_s": min(seconds),
        "epoch_s": mean * count,
        "noise": median / min(seconds),
    }


def epoch(settings: argparse.Namespace) -> None:
    """Time the batches in turn, write the estimate."""
    device, batch = settings.device, settings.batch
    problem = Problem(batch=batch, steps=STEPS, coupling=COUPLING, blocks="diagonal", device=device)
    ours = build_model(
        settings.model,
        1,
        CLASSES,
        activation="relu",
        coupling=COUPLING,
        solver=settings.solver,
        dt=problem.dt,
    )
    models: dict[str, nn.Module] = {f"ours, {settings.model}": ours}
    if has_torchdyno():
        models["torchdyno, AdaDiag"] = TorchdynoClassifier(problem)
    following = batches(batch, settings.data_dir, device)
    steps = {name: training_step(model.to(device), following) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():  # a warm-up
        step()
    for k in range(settings.measured):
        others = k % max(1, settings.measured // settings.others) == 0
        for name in list(steps)[: None if others else 1]:
            seconds[name].append(steps[name]())
    rows = [estimate(name, found, batch) for name, found in seconds.items()]
    for row in rows:
        print(f"{row['name']}: {row['epoch_s']:.0f} s an epoch, {row['mean_s']:.3f} s a batch")
    facts = {
        "task": f"smnist, {SAMPLES} sequences of {STEPS} steps",
        "data": "random pixels" if settings.data_dir is None else "MNIST",
        "n": problem.n,
        "modules": problem.modules,
        "coupling": COUPLING,
        "batch": batch,
        "noisy": any(row["noise"] > NOISE for row in rows),
        "rows": rows,
    }
    print(keep(f"epoch-estimate-{device}", {**about(__file__), **facts}))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=("table", "curves", "epoch"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="of table and curves")
    parser.add_argument("--batch", type=int, default=128, help="of curves and epoch")
    parser.add_argument("--backend", default="fused", help="of ours, in curves")
    parser.add_argument("--slow", type=float, default=5.0, help="seconds beyond which these are enough:")
    parser.add_argument("--slow-rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(CURVES), help="this curve only")
    parser.add_argument("--no-memory", action="store_true", help="of curves")
    parser.add_argument("--data-dir", help="of epoch: folder with MNIST; else pixels are random")
    parser.add_argument("--measured", type=int, default=200, help="batches of ours, in epoch")
    parser.add_argument("--others", type=int, default=20, help="batches of torchdyno's")
    parser.add_argument("--model", default="adadiag-tanh", help="of epoch")
    parser.add_argument("--solver", default="euler", help="of epoch")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    {"table": table, "curves": curves, "epoch": epoch}[settings.what](settings)


if __name__ == "__main__":
    main()
