"""Seconds and peak memory: everything once a round, in a new order each, so that all see one machine.

Peak memory is what the resident set grows by in a process that has done nothing else: in that of the
timings the allocator keeps what other contestants have freed. So a server imports the library once and
forks for every contestant: the child builds its problem, warms up with two steps of one sample, sets its
high-water mark back, solves once and reads the mark. Linux only; elsewhere there is no answer. On a GPU
the allocator itself keeps count, in the warm-up.
"""

import multiprocessing
import os
import random
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from ctrnn_assembly.benchmark import contestants
from ctrnn_assembly.benchmark.contestants import CONTESTANTS, PRECISIONS, Contestant, Kind
from ctrnn_assembly.benchmark.problem import Problem

PRODUCT_SECONDS = 0.01  # of one timing of a product: many of them
MEGABYTE = 1e6
STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Clock = Callable[[], float]  # seconds


@dataclass
class Timing:
    """One contestant on one problem, forward or forward and backward, and its seconds so far.

    A single run of what is short would time the clock: `repeats` of them count as one.
    """

    contestant: Contestant
    problem: Problem
    kind: Kind
    run: Callable[[], object]
    repeats: int = 1
    seconds: list[float] = field(default_factory=list)
    warm_up: float = 0.0
    peak_mb: float | None = None

    @classmethod
    def of(cls, contestant: Contestant, problem: Problem, kind: Kind) -> "Timing":
        """A contestant built for the problem."""
        return cls(contestant, problem, kind, partial(contestant.build(problem).run, kind))

    @property
    def coupling(self) -> str:
        """As it is reported: contestants without a coupling are listed once, under "all"."""
        return self.problem.coupling if self.contestant.coupled else "all"

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def noise(self) -> float:
        """Median over minimum: 1 on a quiet machine."""
        least = min(self.seconds)
        return self.median / least if least > 0 else 1.0

    def time(self, clock: Clock = perf_counter) -> float:
        """Seconds of one run, with the work of a GPU finished before and after."""
        finish = torch.cuda.synchronize if self.problem.device == "cuda" else lambda: None
        finish()
        start = clock()
        for _ in range(self.repeats):
            self.run()
        finish()
        return (clock() - start) / self.repeats

    def warm(self, clock: Clock = perf_counter) -> None:
        """The first run; on a GPU also its peak memory, buffers that a backend keeps included."""
        on_gpu = self.problem.device == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        self.warm_up = self.time(clock)
        if on_gpu:
            self.peak_mb = (torch.cuda.max_memory_allocated() - before) / MEGABYTE


def schedule(timings: Sequence[Timing], rounds: int, seed: int = 0) -> list[Timing]:
    """Each once a round, in a new order each."""
    order = random.Random(seed)
    return [timing for _ in range(rounds) for timing in order.sample(list(timings), len(timings))]


def product_timings(problem: Problem) -> list[Timing]:
    """The machine's own products, as one step has them, in every precision that its device has."""
    one, found = replace(problem, steps=1), []
    for kind in PRECISIONS:
        if problem.device == "cuda" or kind != "tf32":
            build = partial(contestants.product, precision=kind)
            contestant = Contestant("product", build, precision=kind, coupled=False, dense=1)
            timing = Timing.of(contestant, one, "forward")
            timing.repeats = 10
            timing.time()
            timing.repeats = max(1, round(PRODUCT_SECONDS / max(timing.time(), 1e-7)))
            found.append(timing)
    return found


def fill_memories(timings: Sequence[Timing]) -> Iterator[None]:
    """Fill in the peaks (10^6 bytes) of a CPU, one at a time; those of a GPU are there already."""
    here = [timing for timing in timings if timing.problem.device == "cpu"] if STATUS.exists() else []
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__, *[contestants.TORCHDYNO] * contestants.HAS_TORCHDYNO])
    # A copy of a problem goes without the tensors that it has made.
    threads = torch.get_num_threads()
    jobs = [(one.contestant.name, replace(one.problem), one.kind, threads) for one in here]
    # Ctrl-C is the parent's.
    with server.Pool(1, signal.signal, (signal.SIGINT, signal.SIG_IGN), maxtasksperchild=1) as pool:
        for timing, peak in zip(here, pool.imap(_peak, jobs), strict=True):
            timing.peak_mb = peak
            yield


def _peak(job: tuple[str, Problem, Kind, int]) -> float:
    name, problem, kind, threads = job
    torch.set_num_threads(threads)
    build = CONTESTANTS[name].build
    build(replace(problem, batch=1, steps=2)).run(kind)
    workload = build(problem)
    if os.access(MARK, os.W_OK):
        MARK.write_text("5")
    before = _resident("VmRSS")
    workload.run(kind)
    return (_resident("VmHWM") - before) / MEGABYTE


def _resident(field: str) -> int:
    """Bytes, of a line of the process's status."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
