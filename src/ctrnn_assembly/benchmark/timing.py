"""Rounds: everything is timed once a round, in a new order each, so that all see the same machine."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import torch

from ctrnn_assembly.benchmark.contestants import (
    PRECISIONS,
    Contestant,
    Kind,
    dense_entries,
    product,
)
from ctrnn_assembly.benchmark.problem import Problem

NOISE = 1.25  # median over minimum, above which a machine is too noisy to trust its medians
PRODUCT_SECONDS = 0.01  # of one timing of a product: many of them
MEGABYTE = 1e6
Clock = Callable[[], float]  # seconds


@dataclass
class Timing:
    """One contestant on one problem, forward or forward and backward, and its seconds so far."""

    contestant: Contestant
    problem: Problem
    kind: Kind
    run: Callable[[], object]
    repeats: int = 1  # a single run of what is short would time the clock
    seconds: list[float] = field(default_factory=list)
    warm_up: float = 0.0
    peak_mb: float | None = None

    @classmethod
    def of(cls, contestant: Contestant, problem: Problem, kind: Kind) -> Timing:
        """A contestant built for the problem."""
        return cls(contestant, problem, kind, partial(contestant.build(problem).run, kind))

    @property
    def device(self) -> str:
        return self.problem.device

    @property
    def coupling(self) -> str:
        """As it is reported: what has no coupling counts once, under the coupling "all"."""
        return self.problem.coupling if self.contestant.coupled else "all"

    @property
    def label(self) -> str:
        return f"{self.contestant.name} {self.coupling} {self.device} {self.kind}"

    @property
    def operations(self) -> int:
        return self.contestant.operations(self.problem, self.kind)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def noise(self) -> float:
        """Median over minimum: 1 on a quiet machine."""
        return self.median / self.minimum if self.minimum > 0 else 1.0

    def time(self, clock: Clock = perf_counter) -> float:
        """Seconds of one run, with the work of a GPU finished before and after."""
        _finish(self.device)
        start = clock()
        for _ in range(self.repeats):
            self.run()
        _finish(self.device)
        return (clock() - start) / self.repeats

    def warm(self, clock: Clock = perf_counter) -> None:
        """The first run; on a GPU also its peak memory, buffers that a backend keeps included."""
        if self.device != "cuda":
            self.warm_up = self.time(clock)
            return
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.warm_up = self.time(clock)
        self.peak_mb = (torch.cuda.max_memory_allocated() - before) / MEGABYTE


def schedule(timings: Sequence[Timing], rounds: int, seed: int = 0) -> list[Timing]:
    """Each once a round, in a new order each."""
    order = random.Random(seed)
    return [timing for _ in range(rounds) for timing in order.sample(list(timings), len(timings))]


def product_timings(problem: Problem) -> list[Timing]:
    """The machine's own products, as one step has them, in every precision that its device has."""
    one = Problem(**{**problem.size, "steps": 1}, device=problem.device)
    found = []
    for precision in PRECISIONS:
        if problem.device == "cuda" or precision != "tf32":
            build = partial(product, precision=precision)
            contestant = Contestant("product", build, dense_entries, precision=precision, coupled=False)
            timing = Timing.of(contestant, one, "forward")
            timing.repeats = 10
            timing.time()
            timing.repeats = max(1, round(PRODUCT_SECONDS / max(timing.time(), 1e-7)))
            found.append(timing)
    return found


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
