"""The pieces of training: schedules, batch order, divergence, tables, distributed shares."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import profile
from torch.testing import assert_close

from cli_tools import TINY, Cli, table
from ctrnn_assembly.data import Task, load_task
from ctrnn_assembly.errors import DataError
from ctrnn_assembly.layers import CTRNN
from ctrnn_assembly.training import fit
from ctrnn_assembly.training.batches import Batches, measure
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.run import Run, model_from, read_table


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits", limit_train=50, limit_test=20)


def factors(**settings: object) -> list[float]:
    config = make_config({"epochs": 4, "learning_rate": 2.0, **settings})
    return [config.learning_rate_at(step, 2) / 2 for step in range(8)]


def test_learning_rate_schedules() -> None:
    assert factors(schedule="constant") == [1.0] * 8
    cut = factors(schedule="steps", milestones=(1, 3), lr_gamma=0.1)
    assert_close(cut, [1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    half = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert_close(factors(schedule="cosine"), half)
    warm = factors(schedule="cosine", warmup_epochs=2)
    assert_close(warm, [0.25, 0.5, 0.75, 1.0, *(half[0], half[2], half[4], half[6])])
    assert factors(schedule="steps", milestones=(3,), warmup_epochs=1)[:3] == [0.5, 1.0, 1.0]


def flushed() -> bool:
    small = torch.tensor(2.0**-100, dtype=torch.float32)
    return bool(small * 2.0**-40 == 0)


def test_denormals_are_flushed_within_only() -> None:
    assert not flushed()
    with fit.denormals_flushed():
        assert flushed()
        with fit.denormals_flushed():  # whoever had it on before keeps it on
            pass
        assert flushed()
    assert not flushed()
    with pytest.raises(ValueError, match="within"), fit.denormals_flushed():
        raise ValueError("within")
    assert not flushed()


def test_training_flushes_and_certificates_do_not(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: dict[str, set[bool]] = {"train_step": set(), "certificate": set()}

    def watch(where: object, name: str) -> None:
        plain = getattr(where, name)

        def watched(*args: object, **options: object) -> object:
            modes[name].add(flushed())
            return plain(*args, **options)

        monkeypatch.setattr(where, name, watched)

    watch(fit, "train_step")
    watch(CTRNN, "certificate")
    cli.train(tmp_path / "run", "--epochs=1", "--solver=euler")
    assert modes == {"train_step": {True}, "certificate": {False}}
    assert not flushed()


def labels(batches: Batches, epoch: int) -> list[int]:
    batches.epoch = epoch
    return torch.cat([y for _, y, _ in batches]).tolist()


def test_the_order_of_batches_follows_seed_and_epoch_alone(task: Task) -> None:
    one = Batches(task, task.train, 16, seed=1)
    assert len(one) == 4
    first = labels(one, 0)
    torch.manual_seed(7)
    assert labels(Batches(task, task.train, 16, seed=1), 0) == first
    assert labels(one, 1) != first
    assert labels(one, 0) == first
    assert labels(Batches(task, task.train, 16, seed=2), 0) != first
    assert sorted(first) == sorted(task.train.y.tolist())
    assert labels(Batches(task, task.train, 16), 0) == task.train.y.tolist()


def test_processes_share_an_epoch(task: Task) -> None:
    whole = labels(Batches(task, task.train, 16, seed=1), 0)
    shares = []
    for rank in range(3):
        share = Batches(task, task.train, 16, seed=1, share=(rank, 3))
        shares.append(labels(share, 0))
        assert len(share) == 2
    assert all(len(share) == 17 for share in shares)  # 50 samples, and the first one again
    assert [y for together in zip(*shares, strict=True) for y in together] == [*whole, whole[0]]


def test_accuracy_is_of_the_whole_split(task: Task) -> None:
    model = model_from(make_config({"modules": 1, "units": 4}), task.n_input, 10)
    u = task.sequence(task.val.x)
    assert measure(model, task, task.val)["accuracy"] == float(
        (model(u).argmax(-1) == task.val.y).double().mean()
    )


DIVERGING = ("--coupling-kind=free", "--solver=euler")


def test_a_net_whose_states_overflow_is_refused_before_anything_is_written(
    cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    error = cli.refuses("train", *TINY, "--out", run, *DIVERGING, "--dt=5", "--coupling-scale=20")
    assert "solver 'euler': the state became" in error
    assert 1e30 < float(error.split("before it was ")[1].split(". ")[0]) < math.inf
    assert not run.exists()


def test_weights_that_diverge_in_an_epochs_last_step_are_not_saved(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*DIVERGING, "--batch-size=200", "--learning-rate=1e9")
    error = cli.refuses("train", *TINY, "--out", run, *settings)
    assert "epoch 1, validation after step 1" in error
    assert not list((run / "checkpoints").glob("*"))


def test_divergence_keeps_the_last_good_checkpoint(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", fit.train_epoch

    def blow_up(training: fit.Training, *args: Any, **options: Any) -> Any:
        if training.epoch == 2:
            torch.nn.init.constant_(training.net.core.encoder.weight, 1e38)
        return real(training, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fit, "train_epoch", blow_up)
        error = cli.refuses("train", *TINY, "--out", run, "--epochs=3", *DIVERGING)
    assert "in epoch 3, step 1" in error
    assert "checkpoint is kept" in error
    assert len(table(run)) == 2
    assert cli("train", "--resume", run).code == 0
    cli.train(tmp_path / "other", "--epochs=3", *DIVERGING)
    assert table(run) == table(tmp_path / "other")


@pytest.mark.parametrize("precision", ["64", "bf16"])
def test_other_precisions(cli: Cli, tmp_path: Path, precision: str) -> None:
    run = tmp_path / "run"
    done = cli.train(run, "--epochs=1", f"--precision={precision}", "--json")
    model = Run.open(run).model
    expected = torch.float64 if precision == "64" else torch.float32
    assert {p.dtype for p in model.parameters()} == {expected}
    assert (
        json.loads(cli("evaluate", run, "--json").out)["test_accuracy"]
        == (json.loads(done.out)["test_accuracy"])
    )


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    assert read_table(file) == []
    for content in ("a,b\n1,2\n", "epoch,seconds\nx,1\n", "epoch,seconds\n1\n"):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match="not a table of epochs"):
            read_table(file)


@pytest.mark.slow
def test_two_processes_train_like_one(cli: Cli, tmp_path: Path) -> None:
    """Batches of 32 in each of two processes have the mean gradient of one batch of 64."""
    one, two = tmp_path / "one", tmp_path / "two"
    settings = ("--epochs=2", "--precision=64", "--learning-rate=0.02", "--json")
    alone = json.loads(cli.train(one, *settings, "--batch-size=64").out)
    command = [sys.executable, "-m", "ctrnn_cli.main", "train", *TINY, *settings, "--batch-size=32"]
    done = subprocess.run([*command, "--devices=2", "--out", two], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)  # one process prints
    assert together["epochs"] == 2
    for name in ("val_accuracy", "test_accuracy", "best_epoch"):
        assert together[name] == alone[name]
    models = [Run.open(run).model for run in (one, two)]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_close(b, a, rtol=1e-10, atol=1e-12)
    for a, b in zip(table(one), table(two), strict=True):
        assert a["learning_rate"] == b["learning_rate"]
    assert sorted(file.name for file in two.iterdir()) == sorted(file.name for file in one.iterdir())


def test_a_profiled_run_says_where_its_time_went_and_ends_as_any_other(cli: Cli, tmp_path: Path) -> None:
    settings = ("--epochs=1", "--model=adadiag-tanh", "--solver=imex", "--batch-size=100", "--resize=4")
    plain = cli.train(tmp_path / "plain", *settings, "--json")
    profiled = cli.train(tmp_path / "profiled", *settings, "--json", "--profile")
    assert "time of training" not in plain.err
    assert all(stage in profiled.err for stage in fit.STAGES)
    assert "time of training: stages" in profiled.err
    assert json.loads(profiled.out)["epochs"] == 1
    weights = [tmp_path / run / "model.safetensors" for run in ("plain", "profiled")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


PROFILED = {
    "model": "adadiag-tanh", "modules": 2, "units": 4, "epochs": 2, "resize": 4, "limit_train": 200,
    "batch_size": 20,
}  # fmt: skip


def test_a_profile_counts_what_a_stage_calls_for_it(tmp_path: Path) -> None:
    recorder = profile(acc_events=True)
    fit.fit(make_config(PROFILED), tmp_path / "run", report=lambda line: None, profile=recorder)
    found = {event.key: event for event in recorder.key_averages()}
    assert [found[stage].count for stage in fit.STAGES] == [5, 5, 5, 5, 1, 1]
    inside = found["forward"].cpu_time_total
    assert inside > found["forward"].self_cpu_time_total > 0
    assert found["aten::mm"].self_cpu_time_total > 0


def test_a_line_of_an_epoch_rounds_bounds_to_the_safe_side() -> None:
    row = {"epoch": 0, "train_loss": 1.0, "train_accuracy": 0.5, "val_accuracy": 0.5, "seconds": 1.0}
    row |= {"certified": True, "rate": 0.123459, "step_certified": True, "step_factor": 0.999961}
    assert "rate 0.1234  step certified (factor 0.999961)" in fit.epoch_line(row, 2)
    row |= {"certified": False, "rate": -0.123411}
    assert fit.epoch_line(row, 2).endswith("rate -0.1235 not certified  1.0 s")
