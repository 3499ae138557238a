"""A killed run that is resumed ends as one that was not: the same weights, bit for bit on a CPU."""

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from cli_tools import TINY, Cli, Fork, assert_same_run, signal_at, table
from ctrnn_assembly.training import fit
from ctrnn_cli.main import main
from fake_data import write_images

STEPS = ("--epochs=5", "--schedule=steps", "--milestones=1,3", "--lr-gamma=0.5", "--warmup-epochs=1")
SETTINGS = {
    "cosine": ("--epochs=4", "--schedule=cosine"),
    "cosine after warm-up": ("--epochs=4", "--schedule=cosine", "--warmup-epochs=2"),
    "steps after warm-up": STEPS,
    "early stopping": ("--epochs=9", "--patience=2", "--learning-rate=1e-6"),
    "decay and no clipping": (
        "--epochs=3", "--optimizer=adamw", "--weight-decay=0.1", "--gradient-clip-norm=0",
    ),
    "frozen modules": ("--epochs=3", "--model=sparse-combo"),
    "projected weights": ("--epochs=3", "--model=adadiag-clip", "--learning-rate=0.5"),
    "double precision": ("--epochs=3", "--precision=64"),
    "lstm": ("--epochs=3", "--model=lstm"),
    "dropout and batch norm": (
        "--epochs=3", "--model=deep-adadiag", "--depth=1", "--width=4", "--dropout=0.3", "--pool=mean",
        "--recurrent-rate=0.25", "--schedule=one-cycle",
    ),
}  # fmt: skip


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`whole("--epochs=2")` is the tiny run of these settings that nothing breaks off, made once."""

    @cache
    def train(*settings: str) -> Path:
        run = tmp_path_factory.mktemp("whole") / "run"
        main(["train", *TINY, *settings, "--out", str(run)], standalone_mode=False)
        return run

    return train


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Break off training before the step with this number, in the middle of an epoch."""
    real, steps = fit.train_step, iter(range(step))

    def train_step(*args: object) -> torch.Tensor:
        if next(steps, None) is None:
            raise Killed
        return real(*args)

    monkeypatch.setattr(fit, "train_step", train_step)


@pytest.mark.slow
def test_after_kill_9_a_resumed_run_ends_the_same(cli: Cli, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", {"train": 90, "val": 6, "test": 6}, size=(6, 6))
    settings = ("--task=images", "--data-dir", data, "--device=cpu")
    settings += (
        "--depth=1",
        "--width=8",
        "--solver=exponential-euler",
        "--batch-size=40",
        "--learning-rate=0.02",
        *STEPS,
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli("train", *settings, "--out", whole).code == 0
    end = Fork(signal_at(10, signal.SIGKILL), "train", *settings, "--out", killed).wait()
    assert end.code == -signal.SIGKILL
    assert (killed / "checkpoints" / "last.ckpt").exists()
    assert len(table(killed)) == 2  # five steps an epoch
    assert cli("train", "--resume", killed).code == 0
    assert_same_run(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kill_9_at_any_moment_wherever_the_folder_goes_leaves_the_weights(
    cli: Cli, whole: Callable[..., Path], tmp_path: Path, seed: int
) -> None:
    # Of a model whose epochs are short: more of them, and of their files, fall into these moments.
    settings = ("--model=lstm", "--epochs=60", "--batch-size=16", "--learning-rate=0.1", "--threads=1")
    moments, killed, expected = random.Random(seed), 0, whole(*settings)
    run, settings = tmp_path / "0", (*TINY, *settings)
    arguments = (*settings, "--out", run)
    for k in range(1, 6):
        # A fork has imported everything: its moments are those of the run.
        process = get_context("fork").Process(target=cli, args=("train", *arguments))
        process.start()
        while not (run / ".lock").exists():  # it starts
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        run = run.rename(tmp_path / str(k)) if k % 2 else shutil.copytree(run, tmp_path / str(k))
        (run / ".lock").unlink(missing_ok=True)  # only to see the next one start: it locks nobody out
        arguments = ("--resume", run)
        if not (run / "config.yaml").exists():
            arguments = (*settings, "--out", run)
    assert killed == 5
    assert cli("train", *arguments).code == 0
    assert_same_run(expected, run)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_run_broken_off_in_an_epoch_resumes_exactly(
    cli: Cli,
    whole: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
) -> None:
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        stop_at(patch, 10)  # four steps an epoch
        with pytest.raises(Killed):
            cli("train", *TINY, *settings, "--out", broken)
    assert len(table(broken)) == 2
    assert not (broken / "summary.json").exists()
    (broken / "metrics.csv").unlink()  # the checkpoint has its rows
    assert cli("train", "--resume", broken, "--json").code == 0
    assert_same_run(whole(*settings), broken)


def test_early_stopping_stops_where_it_should(whole: Callable[..., Path]) -> None:
    rows = table(whole(*SETTINGS["early stopping"]))
    assert len({row["val_accuracy"] for row in rows}) == 1  # nothing improves at this rate
    assert len(rows) == 3  # the first epoch, and two without a better one


def test_a_run_killed_while_it_was_finishing_finishes(
    cli: Cli, whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(
            "ctrnn_assembly.training.run.save_weights", lambda *args: (_ for _ in ()).throw(Killed)
        )
        with pytest.raises(Killed):
            cli.train(broken, "--epochs=2")
    assert cli("train", "--resume", broken).code == 0
    assert_same_run(whole("--epochs=2"), broken)


def test_a_run_broken_off_in_its_first_epoch_starts_again(
    cli: Cli, whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Killed):
            cli.train(broken, "--epochs=2")
    assert not (broken / "checkpoints").exists()
    assert cli("train", "--resume", broken).code == 0
    assert_same_run(whole("--epochs=2"), broken)


def test_ctrl_c_says_how_to_go_on(cli: Cli, whole: Callable[..., Path], tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    done = Fork(signal_at(6, signal.SIGINT), "train", *TINY, "--epochs=3", "--out", stopped).wait()
    assert done.code == 130
    assert done.out == ""
    assert f"interrupted; `ctrnn train --resume {stopped}` goes on" in done.err
    assert cli("train", "--resume", stopped).code == 0
    assert_same_run(whole("--epochs=3"), stopped)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("ctrnn_assembly.training.run.load_task", "interrupted before anything was written"),
        ("ctrnn_assembly.training.run.model_from", "interrupted before anything was written"),
        ("ctrnn_assembly.training.fit.train_step", "goes on from the start: no epoch has ended"),
        ("ctrnn_assembly.training.fit.evaluate", "goes on from the start: no epoch has ended"),
    ],
)
def test_ctrl_c_before_the_first_epoch_ends_says_what_is_true(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(what, stop)
    done = cli("train", *TINY, "--out", tmp_path / "run")
    assert (done.code, done.out) == (130, "")
    assert said in done.err
    assert (tmp_path / "run").exists() == ("goes on" in said)


@pytest.mark.parametrize("where", ["moved", "copied"])
def test_a_run_that_was_moved_or_copied_goes_on_the_same(
    cli: Cli, whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    broken, there = tmp_path / "broken", tmp_path / "else" / "where"
    # Their best epoch is not the last.
    settings = ("--epochs=5", "--learning-rate=0.3", "--batch-size=16")
    with monkeypatch.context() as patch:
        stop_at(patch, 13 * 4 + 3)
        with pytest.raises(Killed):
            cli("train", *TINY, *settings, "--out", broken)
    there.parent.mkdir()
    if where == "moved":
        broken.rename(there)
    else:
        shutil.copytree(broken, there, copy_function=shutil.copyfile)  # without dates and permissions
        shutil.rmtree(broken)
    monkeypatch.chdir(there.parent)
    assert cli("train", "--resume", "where").code == 0
    assert_same_run(whole(*settings), there)


def test_two_processes_do_not_resume_one_run(
    cli: Cli, whole: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fork = Fork(signal_at(6, signal.SIGSTOP), "train", *TINY, "--epochs=3", "--out", run)
    while not (run / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.05)
    assert "another process is training" in cli.refuses("train", "--resume", run)
    os.kill(fork.process.pid, signal.SIGCONT)
    assert fork.wait().code == 0
    assert_same_run(whole("--epochs=3"), run)


@pytest.mark.parametrize("part", ["last.ckpt", "best.ckpt", "metrics.csv"])
def test_a_full_disk_keeps_what_was_saved(
    cli: Cli, whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    run = tmp_path / "run"
    settings = ("--epochs=3", "--learning-rate=0.05", "--batch-size=25")
    real, written = Path.write_bytes, []

    def write_bytes(self: Path, data: bytes) -> int:
        written.append(self.name)
        if part in self.name and sum(part in name for name in written) == 2:
            real(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        error = cli.refuses("train", *TINY, *settings, "--out", run)
    assert f"{part} (No space left on device). What was saved before is kept." in error
    assert not list(run.rglob(".*"))  # no half-written file stays
    assert cli("train", "--resume", run).code == 0
    assert_same_run(whole(*settings), run)


def test_only_where_a_run_runs_may_change(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Killed):
            cli.train(run, "--epochs=2")
    error = cli.refuses("train", "--resume", run, "--batch-size", 3)
    assert "keeps its settings; got batch_size 3 for 64" in error
    assert "drop --recipe, --config, --out" in cli.refuses("train", "--resume", run, "--out", "x")
    assert "devices must be greater" in cli.refuses("train", "--resume", run, "--devices", 0)
    assert cli("train", "--resume", run, "--epochs=2", "--device=cpu").code == 0
    assert "is finished" in cli.refuses("train", "--resume", run)
