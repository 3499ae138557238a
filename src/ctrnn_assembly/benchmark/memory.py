"""Peak memory of one solve: what the resident set grows by, in a process that has done nothing else.

In the process of the timings the resident set says little: the allocator keeps what other contestants
have freed. So a server imports the library once and forks for every contestant: the child builds its
problem, warms up with two steps of one sample, sets its high-water mark back, solves once and reads the
mark. Linux only; elsewhere there is no answer. On a GPU the allocator itself keeps count, see `timing`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ctrnn_assembly.benchmark import rivals
from ctrnn_assembly.benchmark.contestants import CONTESTANTS, Kind
from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.benchmark.timing import MEGABYTE

STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Job = tuple[str, Problem, Kind]  # the name of a contestant, what it solves, and how


def peak_memories(jobs: Sequence[Job]) -> Iterator[float | None]:
    """Megabytes (10^6 bytes) of each job, in order; None where they cannot be measured."""
    if not STATUS.exists():
        yield from (None for _ in jobs)
        return
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__, *([rivals.TORCHDYNO] if rivals.has_torchdyno() else [])])
    # A copy of a problem goes without the tensors that it has made.
    copies = [(name, replace(problem), kind, torch.get_num_threads()) for name, problem, kind in jobs]
    with server.Pool(1, _leave_ctrl_c_to_the_parent, maxtasksperchild=1) as pool:
        yield from pool.imap(_peak, copies, chunksize=1)


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
