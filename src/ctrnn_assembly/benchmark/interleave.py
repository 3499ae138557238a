"""Rounds: every entry is timed once a round, in a new order each, so that all see the same machine."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

NOISE = 1.25  # median over minimum, above which a machine is too noisy to trust its medians


@dataclass
class Entry:
    """Something to time, and its seconds so far."""

    key: tuple[str, ...]
    run: Callable[[], object]
    device: str = "cpu"
    repeats: int = 1  # a single run of what is short would time the clock
    seconds: list[float] = field(default_factory=list)

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

    def time(self, clock: Callable[[], float]) -> float:
        """Seconds of one run, with the work of a GPU finished before and after."""
        _finish(self.device)
        start = clock()
        for _ in range(self.repeats):
            self.run()
        _finish(self.device)
        return (clock() - start) / self.repeats


def interleave(
    entries: Sequence[Entry],
    rounds: int,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    done: Callable[[], object] = lambda: None,
) -> None:
    """Time every entry once a round; what was timed stays in the entries if it is interrupted."""
    order = random.Random(seed)
    for _ in range(rounds):
        for entry in order.sample(list(entries), len(entries)):
            entry.seconds.append(entry.time(clock))
            done()


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
