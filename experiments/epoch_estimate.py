"""A full-length epoch of sequential MNIST, from measured batches: 60,000 sequences of 784 steps.

    python experiments/epoch_estimate.py [--device cuda --data-dir DATA]

An AdaDiag assembly of 16 x 32 with 5 couplings, batch 128: forward, loss, backward, clipping and an
Adam step, so with the making of weights from parameters. Beside it torchdyno's core on the same batches,
fewer of them, spread evenly among ours. An epoch is the mean batch times 469. Without --data-dir the
pixels are random, which changes nothing for the clock. Leaves results/DATE-epoch-estimate-DEVICE.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import click
import torch
import torch.nn.functional as F
from keep import keep
from torch import Tensor, nn

from ctrnn_assembly.benchmark import Size
from ctrnn_assembly.benchmark.interleave import NOISE, Entry
from ctrnn_assembly.benchmark.problem import make_problem
from ctrnn_assembly.benchmark.torchdyno_core import build_core, is_installed
from ctrnn_assembly.data import load_task
from ctrnn_assembly.models import build_model
from ctrnn_assembly.training.batches import Batches

SAMPLES, STEPS, CLASSES = 60_000, 784, 10
COUPLING = "random:5"
Batch = tuple[Tensor, Tensor]


class TorchdynoClassifier(nn.Module):
    """torchdyno's AdaDiag core with a readout of the last state."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.core = build_core(make_problem(size, COUPLING, "diagonal"), "tanh")
        self.readout = nn.Linear(size.n, CLASSES)

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


def training_step(model: nn.Module, following: Iterator[Batch]) -> Callable[[], None]:
    """One step on the next batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-3)

    def step() -> None:
        u, y = next(following)
        optimiser.zero_grad()
        F.cross_entropy(model(u), y).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()

    return step


def estimate(entry: Entry, batch: int) -> dict[str, Any]:
    """Seconds a batch, and an epoch of them."""
    count = -(-SAMPLES // batch)
    mean = statistics.fmean(entry.seconds)
    return {
        "name": entry.key[0],
        "batches_measured": len(entry.seconds),
        "batches_of_an_epoch": count,
        "mean_s": mean,
        "median_s": entry.median,
        "min_s": entry.minimum,
        "epoch_s": mean * count,
        "noise": entry.noise,
    }


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--data-dir", help="folder with MNIST; random pixels if not given")
@click.option("--batch", type=int, default=128)
@click.option("--measured", type=int, default=200, help="batches of ours")
@click.option("--others", type=int, default=20, help="batches of torchdyno's")
@click.option("--model", default="adadiag-tanh")
@click.option("--solver", default="euler")
def main(
    device: str, data_dir: str | None, batch: int, measured: int, others: int, model: str, solver: str
) -> None:
    """Time the batches in turn, write the estimate."""
    size = Size(batch=batch, steps=STEPS)
    ours = build_model(model, 1, CLASSES, phi="relu", coupling=COUPLING, solver=solver, dt=size.dt)
    following = batches(batch, data_dir, device)
    entries = [Entry((f"ours, {model}",), training_step(ours.to(device), following), device)]
    if is_installed():
        other = TorchdynoClassifier(size).to(device)
        entries.append(Entry(("torchdyno, AdaDiag",), training_step(other, following), device))
    for entry in entries:  # a warm-up
        entry.time(time.perf_counter)
    for k in range(measured):
        chosen = entries if k % max(1, measured // others) == 0 else entries[:1]
        for entry in chosen:
            entry.seconds.append(entry.time(time.perf_counter))
    rows = [estimate(entry, batch) for entry in entries]
    for row in rows:
        click.echo(f"{row['name']}: {row['epoch_s']:.0f} s an epoch, {row['mean_s']:.3f} s a batch")
    facts = {
        "task": f"smnist, {SAMPLES} sequences of {STEPS} steps",
        "data": "random pixels" if data_dir is None else "MNIST",
        "n": size.n,
        "modules": size.modules,
        "coupling": COUPLING,
        "batch": batch,
        "noisy": any(row["noise"] > NOISE for row in rows),
        "rows": rows,
    }
    print(keep(f"epoch-estimate-{device}", facts))


if __name__ == "__main__":
    main()
