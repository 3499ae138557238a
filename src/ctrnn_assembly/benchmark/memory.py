"""Peak memory of one solve: what the resident set grows by, in a process that has done nothing else.

In the process of the timings the resident set says little: the allocator keeps what other contestants
have freed. So one fresh process imports the library and then forks for every contestant: the child
builds its problem, warms up with two steps of one sample, sets its high-water mark back, solves once
and reads the mark. That costs one import altogether. Linux only; elsewhere there is no answer. On a
GPU the allocator itself keeps count, see `measure`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ctrnn_assembly.benchmark import torchdyno_core
from ctrnn_assembly.benchmark.contestants import CONTESTANTS
from ctrnn_assembly.benchmark.operations import Kind
from ctrnn_assembly.benchmark.problem import Size, make_problem

STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEGABYTE = 1e6
Job = tuple[str, str, Kind]  # name, coupling, kind


def peak_memories(size: Size, jobs: Sequence[Job], threads: int) -> Iterator[float | None]:
    """Megabytes (10^6 bytes) of each job, in order; None where they cannot be measured."""
    if not (STATUS.exists() and hasattr(os, "fork")):
        yield from (None for _ in jobs)
        return
    request = {"size": asdict(size), "jobs": list(jobs), "threads": threads}
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    # A session of its own: Ctrl-C reaches this process, which then ends that one and its forks.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for _ in jobs:
                line = process.stdout.readline()
                yield float(line) if line.strip() else None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def answer(request: dict[str, Any]) -> Iterator[float | None]:
    """The peak of every job of a request, each in a fork of this process."""
    if torchdyno_core.is_installed():
        import_module(torchdyno_core.MODULE)  # once, instead of in every fork
    size = Size(**request["size"])
    for name, coupling, kind in request["jobs"]:
        yield _forked(size, (name, coupling, kind), request["threads"])


def _forked(size: Size, job: Job, threads: int) -> float | None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(_peak(size, job, threads)).encode())
        finally:
            os._exit(0)  # none of what the parent would do at its end
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return float(found) if found else None


def _peak(size: Size, job: Job, threads: int) -> float:
    name, coupling, kind = job
    torch.set_num_threads(threads)
    contestant = next(c for c in CONTESTANTS if c.name == name)
    tiny = replace(size, batch=1, steps=2)
    contestant.build(make_problem(tiny, coupling, contestant.blocks)).run(kind)
    task = contestant.build(make_problem(size, coupling, contestant.blocks))
    if os.access(MARK, os.W_OK):
        MARK.write_text("5")
    before = _resident("VmRSS")
    task.run(kind)
    return (_resident("VmHWM") - before) / MEGABYTE


def _resident(field: str) -> int:
    """Bytes, of a line of the process's status."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Read a request, write a line a job."""
    for megabytes in answer(json.loads(sys.stdin.read())):
        print("" if megabytes is None else megabytes, flush=True)
