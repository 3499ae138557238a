"""Run the jobs of experiments, each in a process of its own, some at a time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess

from ctrnn_assembly.errors import CtrnnError
from ctrnn_assembly.reproduction.experiments import Job
from ctrnn_assembly.reproduction.results import checked_result, has_result
from ctrnn_assembly.reproduction.run import Draw, Places, run_job

PATIENCE = 60  # seconds for a run to end after it was asked to


def run_all(
    jobs: Sequence[Job], places: Places, *, at_once: int, draw: Draw, say: Callable[[str], None]
) -> tuple[list[str], bool]:
    """Run what has no result yet; Ctrl-C and SIGTERM end the runs after their last whole epoch.

    Args:
        draw: see `run_job`; a function of a module, for other processes call it.
        say: told, in a sentence, of every start and end.

    Returns:
        a sentence for each failure, and whether it was interrupted.

    Raises:
        ConfigError: for a result that is there but of other settings.
    """
    waiting = [job for job in jobs if not has_result(places.results, job)]
    say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs have their result")
    on, failures = dict[Job, SpawnProcess](), list[str]()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or on:
            while waiting and len(on) < at_once:
                job = waiting.pop(0)
                on[job] = get_context("spawn").Process(target=alone, args=(job, places, draw))
                os.environ["OMP_NUM_THREADS"] = str(job.config().threads or os.cpu_count())
                on[job].start()
                say(f"{job.path}: started, {len(waiting)} wait; {places.log(job)}")
            time.sleep(0.1)
            for job in [job for job, process in on.items() if not process.is_alive()]:
                code = on.pop(job).exitcode
                if code == 0:
                    result = checked_result(places.results, job)
                    accuracy = f"test accuracy {100 * result.get('test_accuracy', 0):.2f} %"
                    say(f"{job.path}: {result.get('stopped') or accuracy}")
                    continue
                said = places.log(job).read_text(encoding="utf-8", errors="replace").strip()
                reason = said.rpartition("\n")[2].removeprefix("error: ") or f"exit code {code}"
                say(f"{job.path}: failed: {reason}")
                failures.append(f"{job.path}: {reason}")
    except KeyboardInterrupt:
        _stop(list(on.values()))
        return failures, True
    finally:
        signal.signal(signal.SIGTERM, before)
    return failures, False


def alone(job: Job, places: Places, draw: Draw) -> None:
    """A run, in a process of its own, which talks to a log beside the run folder."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the process that started this one, which passes it on once
    places.log(job).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(places.log(job), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        run_job(job, places, draw)
    except (CtrnnError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _stop(processes: Sequence[SpawnProcess]) -> None:
    """Ask processes to end, and wait; what they saved is whole whenever they do."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.1, until - time.monotonic()))
        process.kill()
