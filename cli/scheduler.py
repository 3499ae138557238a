"""Run the jobs of experiments, each in a process of its own, some at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import click

from ctrnn_cli.comparison import checked_result, result_path
from ctrnn_cli.experiments import Job

BUSY = 3  # exit code of a run that another process has
PATIENCE = 60  # seconds for a run to end after it was asked to


@dataclass(frozen=True)
class Places:
    """Where runs, results and data are."""

    runs: Path
    results: Path
    data_dir: str | None


@dataclass
class Started:
    """A run that is on."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    since: float = field(default_factory=time.monotonic)


def run_all(asked: Sequence[Job], places: Places, *, at_once: int) -> tuple[list[str], bool]:
    """Run what has no result yet; returns a sentence for each failure, and whether it was interrupted.

    Ctrl-C and SIGTERM end the runs after their last whole epoch.

    Raises:
        ConfigError: for a result that is there but of other settings.
    """
    missing = [job for job in asked if not _has_result(job, places)]
    if len(missing) < len(asked):
        click.echo(f"{len(asked) - len(missing)} of {len(asked)} runs have their result", err=True)
    waiting, on, failures = list(missing), list[Started](), list[str]()
    try:
        with interruptible():
            while waiting or on:
                while waiting and len(on) < at_once:
                    on.append(start(waiting.pop(0), places))
                    _say(on[-1], f"started, {len(waiting)} wait; {on[-1].log}")
                time.sleep(0.1)
                for one in [one for one in on if one.process.poll() is not None]:
                    on.remove(one)
                    failures += ended(one, places)
    except KeyboardInterrupt:
        stop(on)
        return failures, True
    return failures, False


def start(job: Job, places: Places) -> Started:
    """Start a run; what it says goes to a log beside its folder."""
    log = places.runs / job.folder / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    where = ["--runs", str(places.runs), "--results", str(places.results)]
    where += ["--data-dir", places.data_dir] if places.data_dir is not None else []
    where += ["--fast"] if job.fast else []
    what = [job.experiment.name, job.row.name, str(job.seed)]
    threads = str(job.config().threads or os.cpu_count())
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ctrnn_cli.experiment_run", *what, *where],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": threads},
            start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
        )
    return Started(job, process, log)


def ended(one: Started, places: Places) -> list[str]:
    """Say how a run ended; a sentence if it failed."""
    seconds = f"{time.monotonic() - one.since:.0f} s"
    code = one.process.returncode
    if code == 0:
        result = checked_result(result_path(places.results, one.job), one.job)
        stopped = result.get("stopped")
        _say(one, stopped or f"test accuracy {100 * result['test_accuracy']:.2f} %, {seconds}")
        return []
    said = one.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = said[-1].removeprefix("error: ") if said else f"exit code {code}"
    _say(one, ("left out: " if code == BUSY else "failed: ") + reason)
    return [f"{one.job.name}: {reason}"]


def stop(on: Sequence[Started]) -> None:
    """Ask the runs to end, and wait; what they saved is whole whenever they do."""
    for one in on:
        one.process.terminate()
    until = time.monotonic() + PATIENCE
    for one in on:
        try:
            one.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _has_result(job: Job, places: Places) -> bool:
    path = result_path(places.results, job)
    if not path.exists():
        return False
    checked_result(path, job)
    return True


def _say(one: Started, what: str) -> None:
    click.echo(f"{one.job.experiment.name} {one.job.name}: {what}", err=True)
