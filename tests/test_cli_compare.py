"""`ctrnn compare`: what differs between runs, means with intervals over seeds, and what is proven."""

import json
import statistics

import pytest
from scipy.stats import t as student

from cli_tools import Cli, single  # noqa: F401
from ctrnn_assembly.reproduction.results import half_interval
from stored_runs import store_run

SMALL = ("--fast", "--modules=2", "--units=4", "--epochs=1", "--device=cpu", "--threads=1",
         "--limit-train=40", "--limit-test=50")  # fmt: skip


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


def test_an_interval_of_normal_values_holds_their_mean_19_times_of_20():
    import numpy as np

    g, held = np.random.default_rng(0), 0
    for _ in range(2000):
        values = g.normal(3, 2, 4).tolist()
        held += abs(statistics.fmean(values) - 3) <= half_interval(values)
    assert held / 2000 == pytest.approx(0.95, abs=0.015)
    assert half_interval([1.0]) is None


def test_runs_are_grouped_over_seeds_and_told_apart_by_what_differs(cli, tmp_path):
    runs = {name: tmp_path / name for name in ("a0", "a1", "a2", "lstm")}
    for name, run in runs.items():
        options = ("--model=lstm",) if name == "lstm" else ("--model=adadiag-tanh", f"--seed={name[1]}")
        assert cli("train", *SMALL, *options, "--out", run).code == 0
    found = json.loads(cli("compare", *runs.values(), "--json").out)
    assert "model" in found["differ"]
    assert not {"seed", "epochs", "units"} & {*found["differ"]}
    ours, lstm = found["columns"]
    paths = [runs[k] for k in ("a0", "a1", "a2")]
    reached = [json.loads((run / "summary.json").read_text())["test_accuracy"] for run in paths]
    half = student.ppf(0.975, 2) * statistics.stdev(reached) / 3**0.5
    assert ours["test_accuracy"] == pytest.approx(statistics.fmean(reached))
    assert ours["test_accuracy_half_interval"] == pytest.approx(half)
    assert ours["runs"] == ", ".join(map(str, paths))
    assert (ours["certified"], ours["of_runs"], lstm["certified"]) == (3, 3, 0)
    assert ours["rate"] > 0
    assert lstm["rate"] is lstm["test_accuracy_half_interval"] is None
    shown = cli("compare", *runs.values()).out
    for text in (
        f"{statistics.fmean(reached):.4g}",
        f"{half:.4g}",
        "adadiag-tanh",
    ):
        assert text in shown
    assert "test r2" not in shown
    assert "half_interval" in shown
    assert "half_interval" not in cli("compare", runs["a0"]).out  # of one run there is none
    file = runs["a0"] / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(json.dumps(summary | {"certificate": summary["certificate"] | {"rate": 0.42548}}))
    assert "0.4254 " in cli("compare", runs["a0"]).out  # a bound is never rounded up

    assert "the same settings and seed" in cli.refuses("compare", runs["a0"], runs["a1"], runs["a0"])
    (runs["a1"] / "summary.json").unlink()
    assert "is not finished. `ctrnn train --resume" in cli.refuses("compare", *runs.values())
    assert "there is no run folder" in cli.refuses("compare", tmp_path / "none")


@pytest.mark.parametrize("name", ["task", "certificate", "parameters", "test_accuracy", None])
def test_a_damaged_summary_is_one_sentence(cli, tmp_path, name):
    """Values that are texts, or not there."""
    store_run(tmp_path / "run", model="svd-combo")
    whole = {"task": "digits", "test_accuracy": 1.0, "seconds": 1.0, "parameters": 1}
    whole["certificate"] = {"certified": False, "rate": None, "discrete": None}
    summary = tmp_path / "run" / "summary.json"
    summary.write_text(json.dumps(whole))
    assert cli("compare", tmp_path / "run").code == 0
    for damaged in (whole | {name: "x"}, {k: x for k, x in whole.items() if k != name}, {}):
        summary.write_text(json.dumps(damaged))
        assert cli("compare", tmp_path / "run").code in (0, 2)
