"""One process at a time in a run folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

BUSY = 3  # exit code: another process has the run


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder; exit with `BUSY` if another process does."""
    try:
        import fcntl
    except ModuleNotFoundError:  # not a Unix: nothing keeps two processes apart there
        yield
        return
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_name(f".{run.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo(f"error: another process is training {run}.", err=True)
            sys.exit(BUSY)
        yield
