"""Run the command line in this process or another one, and compare run folders bit for bit."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ctrnn_assembly.data import Task, load_task
from ctrnn_assembly.errors import DataError
from ctrnn_cli.main import main

TINY = (
    "--modules=2", "--units=4", "--batch-size=64", "--limit-train=200", "--limit-test=100",
    "--device=cpu",
)  # fmt: skip


@pytest.fixture(autouse=True)
def single() -> Iterator[None]:
    """As users train."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


class Outcome(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


class Cli:
    """`cli("train", "--epochs=1")` runs ctrnn in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture

    def __call__(self, *args: object) -> Outcome:
        self.capture.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        code = stop.value.code
        assert code is None or isinstance(code, int)
        return Outcome(code or 0, *self.capture.readouterr())

    def train(self, run: Path, *args: object) -> Outcome:
        """A tiny training run that must succeed."""
        done = self("train", *TINY, "--out", run, *args)
        assert done.code == 0, done.err
        return done

    def refuses(self, *args: object) -> str:
        """The one sentence with which a command refuses, with exit code 2."""
        done = self(*args)
        assert done.code == 2, done
        assert done.out == ""
        last = done.err.strip().splitlines()[-1]
        assert last.startswith("error: "), done.err
        assert "Traceback" not in done.err
        return last


def other_process(code: str, *args: object) -> "subprocess.Popen[str]":
    """`ctrnn args` in a process of its own, after running `code` there, if there is any.

    It gets this process's number of threads: sums over threads round differently for another one.
    """
    script = f"{code}\nfrom ctrnn_cli.main import main\nmain()"
    start = ("-c", script) if code else ("-m", "ctrnn_cli.main")
    return subprocess.Popen(
        [sys.executable, *start, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def signal_at(step: int, name: str) -> str:
    """Code that sends this process a signal before its training step number `step`."""
    return f"""
import os, signal
import ctrnn_assembly.training.fit as fit
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
real, steps = fit.train_step, iter(range(10**6))
def train_step(*args):
    if next(steps) == {step}:
        os.kill(os.getpid(), signal.{name})
    return real(*args)
fit.train_step = train_step
"""


def table(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the column that no two runs share."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def checkpoint(run: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights and optimiser states in a checkpoint, by name."""
    loaded = torch.load(run / "checkpoints" / name, weights_only=True)
    moments = loaded["optimizer"]["state"]
    return loaded["model"] | {
        f"{i}.{key}": value for i, state in moments.items() for key, value in state.items()
    }


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs ended with the same weights, optimiser states and table, bit for bit."""
    assert table(one) == table(other)
    weights = "model.safetensors"
    assert (one / weights).read_bytes() == (other / weights).read_bytes()
    for name in ("best.ckpt", "last.ckpt"):
        a, b = checkpoint(one, name), checkpoint(other, name)
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, (name, different)


def own_series(path: Path, **options: Any) -> Task:
    """The task of a file of series."""
    return load_task("own", data_dir=path, **options)


def refused(cli: Cli, path: Path, text: str, said: str) -> None:
    """A file of series with this text is refused for what is `said`; by the command in a sentence."""
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        own_series(path)
    assert path.name in cli.refuses("train", "--data", path)
