"""Run the command line in this process or a fork of it, and compare run folders bit for bit."""

import csv
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import pytest
import torch

from ctrnn_assembly.data import Task, load_task
from ctrnn_assembly.errors import DataError
from ctrnn_assembly.training import fit
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


class Fork:
    """`ctrnn args` in a fork of this process, which has imported everything, after `before` there."""

    def __init__(self, before: Callable[[], None], *args: object) -> None:
        self.out, self.err = (TemporaryFile("w+", buffering=1) for _ in range(2))  # noqa: SIM115
        self.process = get_context("fork").Process(target=self.run, args=(before, *map(str, args)))
        self.process.start()

    def run(self, before: Callable[[], None], *args: str) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
        before()
        with redirect_stdout(self.out), redirect_stderr(self.err):
            main(args)

    def wait(self, seconds: float = 120) -> Outcome:
        """How it ended; the code of a process that a signal killed is below 0."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it runs on after {seconds} s"
        texts = [os.pread(file.fileno(), 10**6, 0).decode() for file in (self.out, self.err)]
        return Outcome(self.process.exitcode, *texts)


def signal_at(step: int, which: signal.Signals) -> Callable[[], None]:
    """What sends its process a signal before its training step number `step`."""

    def change() -> None:
        real, steps = fit.train_step, iter(range(10**6))

        def train_step(*args: Any) -> torch.Tensor:
            if next(steps) == step:
                os.kill(os.getpid(), which)
            return real(*args)

        fit.train_step = train_step

    return change


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
