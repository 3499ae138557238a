"""How fast the solvers are, kept as JSON with all that it depends on.

    python experiments/speed.py table               # `ctrnn bench` at batch 128 and 16, for the README
    python experiments/speed.py curves              # over the couplings C, over n, and over the steps T
    python experiments/speed.py epoch --rounds 200 --slow 1 --slow-rounds 20 [--data-dir DATA]

table   Leaves results/DATE-speed-DEVICE.json, from which `experiments/tables.py` makes the table.
curves  Time and memory of forward and backward. Everything of one curve is timed interleaved; what takes
        longer than --slow seconds is timed in fewer rounds, as its rows say. Leaves
        results/DATE-curves-DEVICE.json and pictures/curves-DEVICE.png.
epoch   A full-length epoch of sequential MNIST, from measured batches: 60,000 sequences of 784 steps. An
        AdaDiag assembly of 16 x 32 with 5 couplings: the batch, forward, loss, backward, clipping and an
        Adam step, so with the making of weights from parameters. Beside it torchdyno's core. An epoch is
        the mean batch times 469. Without --data-dir the pixels are random, which changes nothing for the
        clock. Leaves results/DATE-epoch-estimate-DEVICE.json.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from keep import about, keep
from torch import Tensor, nn

from ctrnn_assembly.benchmark import CONTESTANTS, Problem, measure
from ctrnn_assembly.benchmark.contestants import HAS_TORCHDYNO, torchdyno_core
from ctrnn_assembly.benchmark.measure import NOISE, row_of
from ctrnn_assembly.benchmark.timing import Timing, fill_memories, product_timings, schedule
from ctrnn_assembly.data import load_task
from ctrnn_assembly.figures import style
from ctrnn_assembly.models import build_model
from ctrnn_assembly.training.batches import Batches

TORCHDYNO = "torchdyno-adadiag"
PICTURES = Path(__file__).parent / "pictures"
Settings = argparse.Namespace


def timed(timings: list[Timing], always: list[Timing], settings: Settings) -> None:
    """Warm up, then the rounds: --slow-rounds for what is slow, --rounds for the rest."""
    for timing in timings:
        timing.warm()
    quick = [timing for timing in timings if timing.warm_up <= settings.slow]
    few = min(settings.slow_rounds, settings.rounds)
    order = schedule([*timings, *always], few) + schedule([*quick, *always], settings.rounds - few)
    for timing in order:
        timing.seconds.append(timing.time())


def table(settings: Settings) -> dict[str, Any]:
    """`ctrnn bench` at two batch sizes."""
    size = {"device": settings.device, "rounds": settings.rounds}
    return {"runs": [measure(Problem(batch=batch), **size) for batch in (128, 16)]}


# Curves


Curve = dict[int, dict[str, tuple[str, ...]]]  # where on the axis: contestants by coupling
CURVES: dict[str, Curve] = {
    "coupled pairs C": {
        C: {
            f"random:{C}" if C else "none": ("ours-fused", "ours-adadiag-fused", "plain-loop", TORCHDYNO)
        }
        for C in (0, 5, 20, 60, 120)
    },
    "n": {
        n: {"all": ("ours-fused", "plain-loop", "nn.RNN"), "random:5": ("ours-fused",)}
        for n in (128, 256, 512, 1024, 2048)
    },
    "steps": {  # beyond 2,048, autograd's graph of a loop would not fit
        T: {"random:5": ("ours-fused", "ours-fused-sqrt", *["plain-loop"] * (T <= 2048))}
        for T in (64, 256, 1024, 4096, 16384)
    },
}


def measure_curve(axis: str, settings: Settings) -> list[dict[str, Any]]:
    """One row a point."""
    at, timings, products = [], [], {}
    for x, by_coupling in CURVES[axis].items():
        size = {"batch": settings.batch} | ({axis: x} if axis in ("n", "steps") else {})
        for coupling, names in by_coupling.items():
            for contestant in map(CONTESTANTS.__getitem__, names):
                where = {"coupling": coupling, "blocks": contestant.blocks, "device": settings.device}
                problem = Problem(**size, **where)
                if contestant.fits(problem):
                    timings.append(Timing.of(contestant, problem, "forward_backward"))
                    at.append(x)
                    if problem.n not in products:
                        products[problem.n] = product_timings(problem)
    timed(timings, [one for found in products.values() for one in found], settings)
    list(fill_memories(timings))
    rows = [row_of(timing, products[timing.problem.n]) for timing in timings]
    return [{"curve": axis, "x": x, **row} for x, row in zip(at, rows, strict=True)]


@style.printed
def curves_figure(found: dict[str, list[dict[str, Any]]], title: str) -> Any:
    """Above: medians and minima. Below: peak memory."""
    figure = style.new_figure(5.2, title)
    panels = figure.subplots(2, len(found), sharex="col", squeeze=False)
    lines: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for axis, rows in found.items():
        for row in rows:
            coupling = f", {row['coupling']}" if axis in ("n", "steps") else ""
            lines.setdefault(row["name"] + coupling, {}).setdefault(axis, []).append(row)
    for k, (name, by_axis) in enumerate(lines.items()):
        look = style.line_style(k) | {"markersize": 3, "linewidth": 1.2}
        panels[0, 0].plot([], [], **look, label=name)
        for (above, below), axis in zip(panels.T, found, strict=True):
            line = by_axis.get(axis, [])
            x = [row["x"] for row in line]
            above.plot(x, [row["median_s"] for row in line], **look)
            low = {**look, "linestyle": "none", "marker": "_", "markersize": 6}
            above.plot(x, [row["min_s"] for row in line], **low)
            below.plot(x, [row["peak_mb"] or float("nan") for row in line], **look)
    for (above, below), axis in zip(panels.T, found, strict=True):
        below.set_xlabel(axis)
        for axes in (above, below):
            style.log_axis(axes)
            if axis in ("n", "steps"):
                axes.set_xscale("log", base=2)
    panels[0, 0].set_ylabel("seconds; - is the minimum")
    panels[1, 0].set_ylabel("peak memory (MB)")
    style.legend_below(figure, [panels[0, 0]], 3)
    return figure


def curves(settings: Settings) -> dict[str, Any]:
    """Measure the curves and draw them."""
    found = {axis: measure_curve(axis, settings) for axis in settings.only or CURVES}
    title = f"forward and backward, batch {settings.batch}, 196 steps and 16 x 32 where not on the axis"
    picture = PICTURES / f"curves-{settings.device}.png"
    style.save_figure(curves_figure(found, f"{title}; {settings.device}"), picture)
    print(picture)
    return {"rounds": settings.rounds, "rows": [row for rows in found.values() for row in rows]}


# An epoch

SAMPLES, STEPS, CLASSES = 60_000, 784, 10
COUPLING = "random:5"


class TorchdynoClassifier(nn.Module):
    """torchdyno's AdaDiag core with a readout of the last state."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.core = torchdyno_core(problem, "tanh")
        self.readout = nn.Linear(problem.n, CLASSES)

    def forward(self, u: Tensor) -> Tensor:
        return self.readout(self.core.compute_states(u.transpose(0, 1))[-1])


def batches(settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of whole size, on the device."""
    size, device = settings.batch, settings.device
    if settings.data_dir is None:
        generator = torch.Generator().manual_seed(0)
        while True:
            u = torch.rand(size, STEPS, 1, generator=generator)
            yield u.to(device), torch.randint(CLASSES, (size,), generator=generator).to(device)
    task = load_task("smnist", data_dir=settings.data_dir)
    for u, y, _ in cycle(Batches(task, task.train, size, seed=0)):
        if len(y) == size:
            yield u.to(device), y.to(device)


def training_step(model: nn.Module, following: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Trains on the next batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-3)

    def step() -> None:
        u, y = next(following)
        optimiser.zero_grad()
        F.cross_entropy(model(u), y).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()

    return step


def epoch(settings: Settings) -> dict[str, Any]:
    """Time the batches in turn."""
    size = {"batch": settings.batch, "steps": STEPS, "device": settings.device}
    problem = Problem(coupling=COUPLING, blocks="diagonal", **size)
    chosen = {"activation": "relu", "coupling": COUPLING, "solver": settings.solver, "dt": problem.dt}
    models: dict[str, nn.Module] = {
        f"ours, {settings.model}": build_model(settings.model, 1, CLASSES, **chosen)
    }
    if HAS_TORCHDYNO:
        models["torchdyno, AdaDiag"] = TorchdynoClassifier(problem)
    following, count = batches(settings), -(-SAMPLES // settings.batch)
    loop = CONTESTANTS["plain-loop"]  # in name only: what is run is a step of training
    steps = (training_step(model.to(settings.device), following) for model in models.values())
    timings = [Timing(loop, problem, "forward_backward", step) for step in steps]
    timed(timings, [], settings)
    rows = [
        {
            "name": name,
            "batches_measured": len(timing.seconds),
            "batches_of_an_epoch": count,
            "mean_s": statistics.fmean(timing.seconds),
            "median_s": timing.median,
            "min_s": min(timing.seconds),
            "epoch_s": statistics.fmean(timing.seconds) * count,
            "noise": timing.noise,
        }
        for name, timing in zip(models, timings, strict=True)
    ]
    for row in rows:
        print(f"{row['name']}: {row['epoch_s']:.0f} s an epoch, {row['mean_s']:.3f} s a batch")
    return {
        "task": f"smnist, {SAMPLES} sequences of {STEPS} steps",
        "data": "random pixels" if settings.data_dir is None else "MNIST",
        "n": problem.n,
        "modules": problem.modules,
        "coupling": COUPLING,
        "batch": settings.batch,
        "noisy": any(row["noise"] > NOISE for row in rows),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=("table", "curves", "epoch"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="of epoch: batches")
    parser.add_argument("--batch", type=int, default=128, help="of curves and epoch")
    parser.add_argument("--slow", type=float, default=5.0, help="seconds beyond which these are enough:")
    parser.add_argument("--slow-rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=CURVES, help="this curve only")
    parser.add_argument("--data-dir", help="of epoch: folder with MNIST; else pixels are random")
    parser.add_argument("--model", default="adadiag-tanh", help="of epoch")
    parser.add_argument("--solver", default="euler", help="of epoch")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    makers = {"table": table, "curves": curves, "epoch": epoch}
    stem = {"table": "speed", "curves": "curves", "epoch": "epoch-estimate"}[settings.what]
    facts = {"threads": torch.get_num_threads(), **makers[settings.what](settings)}
    print(keep(f"{stem}-{settings.device}", {**about(__file__), **facts}))


if __name__ == "__main__":
    main()
