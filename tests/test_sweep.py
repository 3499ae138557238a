"""`ctrnn sweep`: every trial once whoever trains it, killed ones go on, validation alone chooses."""

import json
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from cli_tools import Cli, Fork, assert_same_run, signal_at, single, table  # noqa: F401
from ctrnn_assembly.errors import DataError
from ctrnn_assembly.reproduction import sweep
from ctrnn_assembly.reproduction.sweep import Trials
from ctrnn_assembly.training.config import TrainConfig
from ctrnn_assembly.training.fit import fit
from ctrnn_assembly.training.run import read_config

SETTINGS = """
settings: {modules: 2, units: 2, epochs: 4, batch_size: 64, limit_train: 40, limit_test: 30, device: cpu}
"""
LEARNING_RATE = "search: {learning_rate: {low: 1e-4, high: 1e-1, log: true}}\n"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def written(folder: Path, text: str) -> Path:
    file = folder / "some.yaml"
    file.write_text(SETTINGS + text, encoding="utf-8")
    return file


@pytest.mark.slow
def test_two_processes_killed_and_started_again_train_each_trial_once(cli: Cli, tmp_path: Path) -> None:
    """One is killed in its third trial, another interrupted in its fourth: an epoch has one step."""
    file, folder = written(tmp_path, LEARNING_RATE + "sampler: random\ntrials: 8\n"), tmp_path / "sweep"
    ends = signal_at(10, signal.SIGKILL), signal_at(13, signal.SIGINT)
    both = [process.wait() for process in [Fork(end, "sweep", file, "--out", folder) for end in ends]]
    assert [end.code for end in both] == [-signal.SIGKILL, 130], both
    assert "interrupted. What was saved before is kept." in both[1].err
    before = Trials(file, folder).rows()
    left = [
        folder / f"trial-{row['trial']:03}" / "seed-0" for row in before if row["state"] == "running"
    ]
    begun = {run: (run / "metrics.csv").read_text() for run in left if (run / "metrics.csv").exists()}
    assert begun
    assert 4 <= len(before) <= 8

    done = cli("sweep", file, "--out", folder, "--json")
    assert done.code == 0
    rows = json.loads(done.out)["trials"]
    assert sorted(row["trial"] for row in rows) == [*range(8)]
    assert {row["state"] for row in rows} == {"complete"}
    assert len({row["learning_rate"] for row in rows}) == 8
    for run, text in begun.items():
        assert (
            (run / "metrics.csv").read_text().startswith(text)
        )  # its times, too: they were not run again
        assert len(table(run)) == 4
        fit(read_config(run), tmp_path / "again" / run.parent.name, report=lambda line: None)
        assert_same_run(run, tmp_path / "again" / run.parent.name)
    trained = {run: (run / "model.safetensors").stat().st_mtime_ns for run in folder.glob("trial-*/*")}
    assert len(trained) == 8
    again = cli("sweep", file, "--out", folder)
    assert (again.code, again.err) == (0, "")
    assert "8 of 8 trials" in again.out
    assert all((run / "model.safetensors").stat().st_mtime_ns == time for run, time in trained.items())


def test_a_grid_has_every_combination_and_validation_chooses(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    search = "search: {learning_rate: [0.01, 1e18], model: [adadiag-tanh, lstm]}\n"
    file = written(tmp_path, search + "sampler: grid\nseeds: 2\n")
    done = cli("sweep", file, "--plot", tmp_path / "some.png", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["trials"]
    tried = {(float(row["learning_rate"]), row["model"]) for row in rows}
    assert len(rows) == 4
    assert tried == {(rate, model) for rate in (0.01, 1e18) for model in ("adadiag-tanh", "lstm")}
    scores = [row["score"] for row in rows if row["score"] is not None]
    assert scores == sorted(scores, reverse=True)
    for row in rows:
        runs = [*(tmp_path / "runs/some" / f"trial-{row['trial']:03}").glob("seed-*/summary.json")]
        found = [json.loads(run.read_text()) for run in runs]
        if row["state"] == "complete":
            assert {one["seed"] for one in found} == {0, 1}
            assert row["score"] == pytest.approx(fmean(one["val_accuracy"] for one in found))
            assert row["certified"] == 2 * (row["model"] != "lstm")
        else:
            assert row["reason"]
    assert ["test_accuracy" in row for row in rows] == [True, False, False, False]
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
    shown = cli("sweep", file, "--show")
    assert "4 of 4 trials" in shown.out
    assert shown.err == ""
    file.write_text(file.read_text().replace("seeds: 2", "seeds: 1"))
    assert "runs/some was begun with other settings (seeds 2 for 1)" in cli.refuses("sweep", file)


def test_a_trial_that_cannot_be_has_failed_with_its_reason(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, "search: {solver: [euler, runge]}\nsampler: grid\n")
    done = cli("sweep", file)
    assert done.code == 0, done.err
    assert "failed: got 'runge'" in done.out
    assert "complete" in done.out


def test_a_rate_is_never_rounded_up(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"trial": 0, "state": "complete", "score": 0.5, "certified": 1, "rate": 0.42548}
    monkeypatch.setattr(Trials, "rows", lambda self: [row])
    file = written(tmp_path, "search: {solver: [euler, imex]}\nsampler: grid\n")
    assert "0.4254 " in cli("sweep", file, "--show").out


def test_data_that_do_not_fit_one_trial_end_that_trial(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(config: TrainConfig, *args: Any, **how: Any) -> dict[str, Any]:
        if config.warm_up == 9:
            raise DataError("warm_up must leave a step; got 9.")
        return {"val_accuracy": 0.5, "val_r2": None}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "trained", trained)
    done = cli("sweep", written(tmp_path, "search: {warm_up: [9, 1]}\nsampler: grid\n"))
    assert done.code == 0, done.err
    assert "failed: warm_up must leave a step; got 9." in done.out
    assert "complete" in done.out


def test_what_is_tried_at_random_depends_on_the_number_of_a_trial_alone(tmp_path: Path) -> None:
    file = written(tmp_path, LEARNING_RATE + "sampler: random\ntrials: 3\n")

    def tried(folder: Path, claims: int) -> list[float]:
        """Each trial is claimed by so many processes, of which the last one ends it."""
        found = []
        for number in range(3):
            with ExitStack() as held:
                for _ in range(claims):
                    trial = Trials(file, folder).claim(held)
                    assert trial is not None
                    assert trial.number == number
                found.append(trial.params["learning_rate"])
                Trials(file, folder).study.tell(number, 0.5)
        with ExitStack() as held:
            assert Trials(file, folder).claim(held) is None
        return found

    first = tried(tmp_path / "one", 1)
    assert first == tried(tmp_path / "other", 2)
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("search: {learning_rat: [1]}\n", "got 'learning_rat'. Did you mean 'learning_rate'?"),
        ("search: {learning_rate: []}\n", "learning_rate must be a list, or low and high"),
        ("search: {learning_rate: 3}\n", "some.yaml: search.learning_rate must be a valid list; got 3"),
        ("search: {learning_rate: {low: 1, high: 0.1}}\n", "(low=1.0, high=0.1)"),
        ("search: {learning_rate: {low: 0, high: 1, log: true}}\n", "`low > 0` must hold"),
        (
            "search: {learning_rate: {low: -1, high: 1}}\n",
            "learning_rate must be greater than 0; got -1",
        ),
        ("search: {units: {low: 1.5, high: 3}}\n", "units must be a valid integer"),
        ("search: {units: {low: 1, high: 3}}\nsampler: grid\n", "a grid has lists only"),
        ("search: {units: [1, x]}\n", "units must be a valid integer; got 'x'"),
        ("search: {units: [1]}\nsearch: {units: [2]}\n", "stands in line 3 and again in line 4"),
        ("search: {units: [1]}\ntrails: 3\n", "got 'trails'. Did you mean 'trials'?"),
        ("sampler: random\n", "some.yaml: search must be there"),
        ("search: {units: [1]}\nsampler: bayes\n", "sampler must be 'grid'"),
        ("search: {units: [1]}\nrecipe: digit\n", "Did you mean 'digits'"),
        ("search: {model: [svd-comb, lstm]}\n", "got 'svd-comb'. Did you mean 'svd-combo'"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_trained(
    cli: Cli, tmp_path: Path, text: str, reason: str
) -> None:
    said = cli.refuses("sweep", written(tmp_path, text), "--out", tmp_path / "sweep")
    assert reason in said
    assert not [*(tmp_path / "sweep").glob("trial-*")]
    assert not (tmp_path / "sweep" / "sweep.yaml").exists()


def test_a_damaged_journal_is_refused_in_one_sentence(cli: Cli, tmp_path: Path) -> None:
    file = written(tmp_path, LEARNING_RATE)
    assert cli("sweep", file, "--out", tmp_path / "sweep", "--show").code == 0
    journal = tmp_path / "sweep" / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-20])
    for _ in range(2):  # what is written after the cut is cut off, too
        cli("sweep", file, "--out", tmp_path / "sweep", "--show")
    assert "journal.log is damaged" in cli.refuses("sweep", file, "--out", tmp_path / "sweep")


def test_without_optuna_the_command_says_what_to_install(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "ctrnn_assembly.reproduction.sweep")
    said = cli.refuses("sweep", written(tmp_path, LEARNING_RATE))
    assert "pip install 'ctrnn-assembly[sweep]'" in said
