"""What an experiment costs: measured where it was run, and a rough estimate where it was not."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from ctrnn_assembly.models import find_model
from ctrnn_assembly.topology import named_pairs
from ctrnn_assembly.training.config import TrainConfig
from ctrnn_cli.experiments import Experiment, Job, jobs

# One step of a batch, forward and backward, on one CPU core: a fixed part, and so many operations a
# sample for each weight that is multiplied, at this many a second (`ctrnn bench --threads 1`).
FIXED, PASSES, SPEED = 3e-4, 6, 1.5e11
# Training samples and steps of the tasks; of a series that is not here, those of a middling one.
SIZES = {
    "digits": (1078, 64),
    "smnist": (58000, 784),
    "psmnist": (58000, 784),
    "scifar10": (48000, 1024),
}
SERIES = {
    "JapaneseVowels": (216, 26),
    "Adiac": (312, 176),
    "FordA": (2880, 500),
    "FordB": (2908, 500),
    "HandMovementDirection": (128, 400),
    "PEMS-SF": (213, 144),
}
MIDDLING = (500, 200)


def estimate(config: TrainConfig) -> float:
    """Seconds of a run on one CPU core, right within a factor of three or so."""
    samples, steps = size(config)
    step = FIXED + PASSES * config.batch_size * weights(config) / SPEED
    return config.epochs * math.ceil(samples / config.batch_size) * steps * step


def weights(config: TrainConfig) -> int:
    """The weights that a step multiplies: of the modules, and of the coupled pairs both ways."""
    if find_model(config.model).is_baseline:
        gates = 4 if config.model == "lstm" else 1
        return gates * (config.modules * config.units) ** 2
    pairs = named_pairs(config.coupling, config.modules, torch.Generator())
    return (2 * len(pairs) + config.modules) * config.units**2


def size(config: TrainConfig) -> tuple[int, int]:
    """Training samples and steps."""
    task = re.split(r"[-:]", config.task)[0]
    known = SERIES.get(config.task.removeprefix("series:"), MIDDLING)
    samples, steps = known if task == "series" else SIZES.get(task, MIDDLING)
    if config.resize is not None:
        steps = config.resize**2
    return min(samples, config.limit_train or samples), steps


def cost(
    experiment: Experiment, results: Sequence[dict[str, Any]], *, fast: bool = False
) -> tuple[float, float]:
    """Seconds that the runs took that are there, and those estimated for the others."""
    taken = {(r["row"], r["seed"]): r.get("seconds", 0.0) for r in results}
    missing = [j for j in jobs(experiment, fast=fast) if (j.row.name, j.seed) not in taken]
    return sum(taken.values()), sum(_expected(job, results) for job in missing)


def _expected(job: Job, results: Sequence[dict[str, Any]]) -> float:
    """As long as another seed took, else the estimate."""
    same = [r["seconds"] for r in results if r["row"] == job.row.name and "seconds" in r]
    return sum(same) / len(same) if same else estimate(job.config())


def lasting(seconds: float) -> str:
    """A time as people say it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return (
                f"{seconds / length:.3g} {unit}" if seconds < 1e7 else f"{seconds / length:,.0f} {unit}"
            )
    return f"{seconds:.0f} s"


def cost_text(taken: float, missing: float) -> str:
    """`93 s`, `~2.1 h` (estimated), or `93 s + ~2.1 h`."""
    parts = [lasting(taken)] if taken else []
    parts += [f"~{lasting(missing)}"] if missing else []
    return " + ".join(parts) or "-"
