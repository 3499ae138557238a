"""`ctrnn reproduce`: runs are made once, resumed, compared with the published, and the same again."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cli_tools import Cli, Fork, table
from cli_tools import single as single
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.reproduction import experiments, run
from ctrnn_assembly.reproduction.experiments import (
    Experiment,
    Job,
    experiment_names,
    parse_experiment,
)
from ctrnn_assembly.reproduction.results import (
    checked_result,
    compare,
    keep_result,
    ours,
    read_results,
    summary,
    summary_cells,
    yes,
)
from ctrnn_assembly.reproduction.run import run_job
from ctrnn_assembly.training.run import RunBusyError

TINY = """
about: a tiny one
source: nowhere
settings: {task: digits, modules: 2, units: 4, batch_size: 64, limit_train: 200, limit_test: 100,
           epochs: 3, certify_every: 2, device: cpu}
test_every_epoch: true
seeds: 2
rows:
  - {name: svd, published: [{value: 50, std: 1.5, n: 3, what: best}]}
  - {name: gated, settings: {model: adadiag-gated, dt: 1.0}}
  - {name: lstm, settings: {model: lstm}}
"""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def experiment(extra: str = "") -> Experiment:
    return parse_experiment("tiny", TINY + extra)


def job_of(row: str, seed: int = 0, *, text: str = TINY, fast: bool = False) -> Job:
    found = parse_experiment("tiny", text)
    return Job(found, *found.matching([row]), seed, fast)


def result_of(job: Job, folder: Path) -> dict[str, Any]:
    """Run a job in this process; its result."""
    run_job(job, folder / "runs", folder / "results")
    return checked_result(folder / "results", job)


def made(row: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A result as a run would leave it."""
    job = job_of(row, seed)
    proof = {"certified": True, "rate": 0.25, "discrete": {"certified": False}, "reasons": []}
    return {
        "experiment": "tiny", "row": row, "fast": False, "seed": seed, "commit": "0" * 40,
        "task": "digits", "hardware": "a test", "threads": 1, "parameters": 1234, "seconds": 10.0,
        "val_accuracy": 0.5, "test_accuracy": 0.5, "best_epoch_accuracy": 0.6,
        "final_epoch_accuracy": 0.4,
        "certificate_initial": proof, "certificate": proof,
        "config": job.config().model_dump(mode="json"), **changes,
    }  # fmt: skip


def test_the_list_shows_every_experiment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # a narrow terminal
    done = cli("reproduce", "--list")
    assert done.code == 0
    assert all(name in done.out for name in experiment_names())
    assert "not yet" in done.out
    listed = json.loads(cli("reproduce", "--list", "--json").out)
    assert [one["experiment"] for one in listed] == experiment_names()
    assert all(one["runs"] > 0 and one["done"] == one["seconds"] == 0 for one in listed)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "needs the name of an experiment"),
        (("nothing",), "experiment must be one of adadiag2025-figure2"),
        (("digits", "--rows=svd,none"), "row of digits must be one of published-sparse-combo"),
        (("--list", "nothing"), "experiment must be one of"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(cli: Cli, arguments: tuple[str, ...], reason: str) -> None:
    assert reason in cli.refuses("reproduce", *arguments)


def test_a_result_holds_what_makes_it_checkable(tmp_path: Path) -> None:
    result = result_of(job_of("svd", 1), tmp_path)
    assert result["command"] == "ctrnn reproduce tiny --rows svd --seed 1"
    assert (result["experiment"], result["row"], result["seed"]) == ("tiny", "svd", 1)
    assert (result["task"], result["model"], result["threads"]) == ("digits", "svd-combo", 1)
    assert len(result["date"]) == 10
    assert result["hardware"]
    assert {"python", "torch", "ctrnn-assembly"} <= result["versions"].keys()
    assert {"commit", "modified", "parameters", "seconds", "val_accuracy"} <= result.keys()
    for when in ("certificate_initial", "certificate"):
        assert {"certified", "rate", "discrete", "reasons"} <= result[when].keys()
    tested = result["curve"]["test_accuracy"]
    assert len(tested) == 3
    assert result["best_epoch_accuracy"] == pytest.approx(max(tested), abs=1e-6)
    assert result["final_epoch_accuracy"] == pytest.approx(tested[-1], abs=1e-6)
    assert result["test_accuracy"] == pytest.approx(tested[result["best_epoch"]], abs=1e-6)
    assert result["curve"]["rate"][0] is None  # certify_every 2, and the last
    assert None not in result["curve"]["rate"][1:]
    assert str(tmp_path) not in json.dumps(result)
    assert result["config"]["data_dir"] is None


@pytest.mark.parametrize("row", ["gated", "lstm"])
def test_a_result_that_was_deleted_comes_back_the_same(tmp_path: Path, row: str) -> None:
    job = job_of(row)
    first = result_of(job, tmp_path / "one")
    again = result_of(job, tmp_path / "one")  # from the finished run folder
    new = result_of(job, tmp_path / "other")  # trained again
    for result in (first, again, new):
        result.pop("seconds"), result["curve"].pop("seconds")
    assert first == again == new
    assert first["certificate"]["certified"] is False


def test_a_run_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    result_of(job_of("svd"), tmp_path)
    other = job_of("svd", text=TINY.replace("epochs: 3", "epochs: 4"))
    with pytest.raises(ConfigError, match=r"holds a run with other settings \(epochs 3 for 4\)"):
        result_of(other, tmp_path)
    with pytest.raises(ConfigError, match="is of other settings than tiny has now"):
        read_results(tmp_path / "results", other.experiment)


def test_a_run_that_diverges_is_a_result(tmp_path: Path) -> None:
    text = TINY.replace("epochs: 3", "epochs: 3, learning_rate: 1e18, gradient_clip_norm: 0")
    job = job_of("svd", text=text)
    result = result_of(job, tmp_path)
    assert "the state became" in result["stopped"]
    assert "test_accuracy" not in result
    line = compare(job.experiment.rows, [result])[0]
    assert (line["n"], line["stopped"], ours(line["test_accuracy"])) == (0, 1, "-")


@pytest.mark.slow
def test_measures_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SAMPLES", 2)
    monkeypatch.setattr(run, "FINER", 4)
    extra = """
lyapunov: [0, 1, 3, 50]
evaluate:
  - {name: same}
  - {name: imex, settings: {solver: imex}}
  - {name: half-step, settings: {substeps: 2}}
"""
    result = result_of(job_of("svd", text=TINY + extra), tmp_path)
    assert [one["epoch"] for one in result["lyapunov"]] == [0, 1, 3]
    for one in result["lyapunov"]:
        assert one["certified"]
        for name in ("step", "flow"):
            low, high = one[f"{name}_range"]
            assert low <= one[name] <= high
        assert one["flow_range"][1] < -one["rate"] + 0.5  # Euclidean, and over a finite time
    by_name = {one["name"]: one for one in result["evaluate"]}
    assert by_name["same"]["test_accuracy"] == result["test_accuracy"]
    assert abs(by_name["half-step"]["test_accuracy"] - result["test_accuracy"]) < 0.1
    assert by_name["imex"]["certificate"]["discrete"]["solver"] == "imex"
    result = result_of(job_of("gated", text=TINY + extra), tmp_path)
    assert not any(one["certified"] for one in result["lyapunov"])
    assert all(one["step"] is not None for one in result["lyapunov"])
    assert next(one for one in result["evaluate"] if one["name"] == "imex")["test_accuracy"] is None


def test_published_and_ours_stand_side_by_side() -> None:
    results = [made("svd", 0), made("svd", 1, test_accuracy=0.6), made("lstm", 0)]
    svd, gated, _ = compare(experiment().rows, results)
    assert ours(svd["test_accuracy"]) == "55.00 ± 7.07"
    assert ours(svd["best_epoch_accuracy"]) == "60.00 ± 0.00"
    assert (svd["n"], svd["seconds"], svd["parameters"]) == (2, 10.0, 1234)
    assert svd["published"][0]["value"] == 50
    assert svd["certificate"] == {"of": 2, "certified": 2, "rate": 0.25, "discrete": 0}
    assert (gated["n"], gated["test_accuracy"], gated["certificate"]) == (0, None, None)
    line = summary(experiment(), results)
    assert (line["done"], line["runs"]) == (3, 6)
    states = [summary_cells({**line, "done": done})["run"] for done in (0, 3, 6)]
    assert states == ["not yet run", "3 of 6 runs", "all 6 runs"]
    assert (yes(0, 3), yes(2, 3), yes(3, 3)) == ("no", "2 of 3", "yes")


def test_fast_results_are_never_beside_whole_ones(tmp_path: Path) -> None:
    keep_result(tmp_path, job_of("svd"), made("svd", 0))
    assert len(read_results(tmp_path, experiment())) == 1
    assert read_results(tmp_path, experiment(), fast=True) == []
    keep_result(tmp_path, job_of("svd"), made("svd", 0, fast=True))
    with pytest.raises(ConfigError, match="fast True for False"):
        read_results(tmp_path, experiment())


@pytest.mark.slow
def test_the_command_runs_skips_tells_and_names_what_fails(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TINY + "  - {name: broken, settings: {task: images}}\n"
    monkeypatch.setattr(experiments, "load_experiment", lambda name: parse_experiment(name, text))
    asked = ("reproduce", "tiny", "--fast", "--data-dir=nowhere")
    done = cli(*asked, "--rows=lstm,broken")
    assert done.code == 2
    assert "--fast: not comparable" in done.out
    assert "tiny-fast/lstm-seed0: test accuracy" in done.err
    assert "1 of 2 runs failed; the first: tiny-fast/broken-seed0: No image data at nowhere" in done.err
    assert "Traceback" not in done.err
    results = tmp_path / "runs" / "fast-results" / "tiny-fast"
    assert [path.name for path in results.glob("*.json")] == ["lstm-seed0.json"]
    stamp = (results / "lstm-seed0.json").stat().st_mtime_ns
    again = cli(*asked, "--rows=lstm", "--json")
    assert "1 of 1 runs have their result" in again.err
    assert (results / "lstm-seed0.json").stat().st_mtime_ns == stamp
    lines = json.loads(again.out)["experiments"]["tiny"]
    assert {line["row"]: line["n"] for line in lines} == {"lstm": 1}
    (results / "lstm-seed0.json").write_text("{")
    assert "is not the result of a run" in cli.refuses(*asked, "--rows=lstm")


def test_an_error_of_the_program_fails_one_run_and_leaves_its_traceback(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: Job, *given: Any) -> dict[str, Any]:
        if job.row.name == "svd":
            raise ZeroDivisionError("by nought")
        return {"test_accuracy": 0.5}

    monkeypatch.setattr(experiments, "load_experiment", lambda name: parse_experiment(name, TINY))
    monkeypatch.setattr(run, "run_job", broken)
    done = cli("reproduce", "tiny", "--seed=0")
    assert done.code == 2
    failed = Path("tiny/svd-seed0: ZeroDivisionError: by nought. See runs/reproduce/tiny/svd-seed0")
    assert f"1 of 3 runs failed; the first: {failed}/traceback.txt" in done.err
    assert "tiny/lstm-seed0: test accuracy 50.00 %" in done.err
    assert "Traceback" not in done.err
    kept = tmp_path / "runs" / "reproduce" / "tiny" / "svd-seed0" / "traceback.txt"
    assert "in broken" in kept.read_text()


@pytest.mark.slow
def test_an_interrupted_command_goes_on(cli: Cli, tmp_path: Path) -> None:
    text = TINY.replace("epochs: 3", "epochs: 200")

    def change() -> None:
        experiments.load_experiment = lambda name: parse_experiment(name, text)

    fork = Fork(change, "reproduce", "tiny", "--rows=lstm", "--seed=0")
    metrics = tmp_path / "runs" / "reproduce" / "tiny" / "lstm-seed0" / "metrics.csv"
    for _ in range(1800):
        if metrics.exists():
            break
        time.sleep(0.1)
    assert metrics.exists()
    os.kill(fork.process.pid, signal.SIGINT)
    done = fork.wait()
    assert done.code == 130
    assert "interrupted. What was saved before is kept." in done.err
    kept = table(metrics.parent)
    assert 0 < len(kept) < 200
    results = tmp_path / "results"
    job = job_of("lstm", text=text)
    run_job(job, tmp_path / "runs" / "reproduce", results)
    assert len(table(metrics.parent)) == 200
    assert table(metrics.parent)[: len(kept) - 1] == kept[:-1]
    assert checked_result(results, job)["test_accuracy"] > 0


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    job, runs, results = job_of("lstm"), tmp_path / "runs", tmp_path / "results"
    folder = runs / job.path
    folder.mkdir(parents=True)
    held = FileLock(folder / ".lock")  # not the one that this process may hold twice
    with held, pytest.raises(RunBusyError, match="another process is training"):
        run_job(job, runs, results)
    said: list[str] = []
    with held:
        assert run.run_all([job], runs, results, None, said.append) == []  # nor is it a failure
    assert "another process is training" in said[-1]
    assert not results.exists()
