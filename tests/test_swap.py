"""The same weights under other solvers: `evaluate --solver`, `--substeps`, `--dt` and `--swap`."""

import json
from pathlib import Path

import pytest
import torch

from cli_tools import Cli
from cli_tools import single as single
from ctrnn_assembly.training.run import Run
from ctrnn_assembly.training.swap import Swap, measured
from stored_runs import store_run, strict_json

# A coupling so fast that Euler explodes at this step, as in the digits recipe.
FAST = {
    "coupling_scale": 20.0,
    "solver": "exponential-euler",
    "dt": 0.12,
    "model": "svd-combo",
    "resize": 4,
}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    store_run(tmp_path / "run", **FAST)
    return tmp_path / "run"


def test_an_explosion_is_warned_of_and_the_trained_accuracy_stands_beside(cli: Cli, run: Path) -> None:
    done = cli("evaluate", run, "--solver=euler")
    assert done.code == 0
    assert "warning: euler: states explode, to " in done.err
    assert "Its accuracy means nothing" in done.err
    assert "exponential-euler (trained)" in done.out
    assert "the largest certified dt is" in done.out
    found = strict_json(cli("evaluate", run, "--solver=euler", "--json").out)
    trained, euler = found["rows"]
    assert found["solver"] == "euler"
    assert all(found[name] == euler[name] for name in ("test_accuracy", "largest_state"))
    assert euler["largest_state"] > 1e4 > 1e3 * trained["largest_state"]
    own = cli("evaluate", run, "--json")
    assert trained["test_accuracy"] == strict_json(own.out)["test_accuracy"]
    assert own.err == ""


def test_finer_steps_of_euler_end_the_explosion(cli: Cli, run: Path) -> None:
    done = cli("evaluate", run, "--solver=euler", "--substeps=256", "--json")
    found = strict_json(done.out)
    assert done.err == ""
    assert found["certificate"]["discrete"]["dt"] == 0.12 / 256
    exact = strict_json(cli("evaluate", run, "--solver=rk4", "--substeps=4", "--json").out)
    assert found["largest_state"] == pytest.approx(exact["largest_state"], rel=0.1)


def test_another_dt_says_that_it_changes_the_physics(cli: Cli, run: Path) -> None:
    assert "changes the physics" in " ".join(cli("evaluate", "--help").out.split())
    done = cli("evaluate", run, "--dt=0.24")
    assert "note: --dt changes the physics" in done.err
    assert "a sample lasts 0.24 instead of 0.12" in done.err
    assert cli("evaluate", run, "--substeps=2").err == ""


def test_swap_makes_the_table_and_the_picture(cli: Cli, run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "swap.svg"
    done = cli("evaluate", run, "--swap=euler,euler:64,imex,rk4,dopri5", "--plot", picture)
    assert done.code == 0
    for name in ("exponential-euler (trained)", "euler:64", "imex", "rk4", "dopri5", "its own"):
        assert name in done.out
    drawn = picture.read_text()
    assert "euler:64" in drawn
    assert "test accuracy" in drawn
    columns = tmp_path / "swap.csv"
    rows = strict_json(cli("evaluate", run, "--swap=imex,dopri5", "--json", "--csv", columns).out)[
        "rows"
    ]
    written = [line.split(",")[0] for line in columns.read_text().splitlines()]
    assert written == ["solver", *(row["solver"] for row in rows)]
    assert [row["solver"] for row in rows] == ["exponential-euler (trained)", "imex", "dopri5"]
    assert [row["step"] for row in rows] == [0.12, 0.12, None]
    assert rows[1]["verdict"].startswith("contracting, factor <= ")
    assert [row["certified"] for row in rows] == [True, True, False]
    assert rows[2]["verdict"] == "no proof is known for steps of dopri5"


def test_swap_names_what_a_solver_cannot_solve(cli: Cli, run: Path, tmp_path: Path) -> None:
    store_run(tmp_path / "gated", model="adadiag-gated-input", dt=1.0)
    done = cli("evaluate", tmp_path / "gated", "--swap=imex,euler:2", "--json")
    _, imex, euler = strict_json(done.out)["rows"]
    assert done.code == 0
    assert imex["test_accuracy"] is None
    assert "gates that read input or state are solved by euler" in imex["verdict"]
    assert "warning: imex: gates that read" in done.err
    assert euler["test_accuracy"] is not None
    assert "solver must be one of" in cli.refuses("evaluate", run, "--swap=euler,nope")
    assert "drop the others" in cli.refuses("evaluate", run, "--swap=euler", "--solver=imex")
    assert "like euler,euler:8" in cli("evaluate", run, "--swap=euler:x").err
    assert "chooses its own steps" in cli.refuses("evaluate", run, "--solver=dopri5", "--substeps=2")


def test_training_takes_substeps_and_an_adaptive_solver_needs_none(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    run, slow = tmp_path / "run", ("--coupling-scale=1", "--solver=euler", "--substeps=2")
    cli.train(run, "--epochs=1", "--limit-test=20", "--resize=3", *slow)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["config"]["substeps"] == 2
    assert summary["certificate"]["discrete"]["dt"] == 0.015
    found = strict_json(cli("evaluate", run, "--solver=dopri5", "--json").out)
    assert found["substeps"] == 1
    assert [row["solver"] for row in found["rows"]] == ["euler:2 (trained)", "dopri5"]
    assert found["rows"][0]["test_accuracy"] == summary["test_accuracy"]
    assert "in the 16 steps of a sample" in cli("certify", run, "--substeps=16").out


def test_the_largest_states_are_those_of_all_units_and_sequences(run: Path) -> None:
    opened = Run.open(run)
    found, model, u = measured(opened), opened.model, opened.task.sequence(opened.task.load_test().x)
    with torch.no_grad():
        states = model.core(u)[0]
    torch.testing.assert_close(found.largest, states.abs().amax((0, 2)))
    assert found.largest_state == float(found.largest.max())
    right = model(u).argmax(-1) == opened.task.load_test().y
    assert found.measures["accuracy"] == float(right.double().mean())


def test_states_that_are_not_finite_are_warned_of(run: Path) -> None:
    trained = Swap(Run.open(run), 0.5, torch.tensor([1.0, 2.0]))
    assert trained.warning(trained) == ""
    euler = Run.open(run, solver="euler", substeps=3)
    for broken in (torch.nan, torch.inf):
        said = Swap(euler, 0.5, torch.tensor([1.0, broken])).warning(trained)
        assert said.startswith("euler:3: states are not finite. Its accuracy means nothing")
    exploded = Swap(euler, 0.5, torch.tensor([300.0])).warning(trained)
    assert "explode, to 3e+02, under exponential-euler, as trained, to 2." in exploded
    assert Swap(euler, 0.5, torch.tensor([150.0])).warning(trained) == ""
    lost = Swap(Run.open(run), 0.5, torch.tensor([torch.nan]))
    assert "states are not finite" in lost.warning(lost)
    assert Swap(euler, 0.5, torch.tensor([1.0])).warning(lost) == ""
    large = Swap(Run.open(run), 0.5, torch.tensor([1e7]))
    assert "states explode, to 1e+07" in large.warning(large)


def test_diagnostics_of_the_command_line_take_substeps(cli: Cli, run: Path) -> None:
    few = ("--samples=1", "--steps=20", "--k=1", "--solver=euler")
    fine = cli("lyapunov", run, *few, "--substeps=64")
    assert "euler 0.12 in 64 substeps" in fine.out
    found = strict_json(cli("lyapunov", run, *few, "--substeps=64", "--json").out)
    coarse = strict_json(cli("lyapunov", run, *few, "--json").out)
    assert found["certificate"]["discrete"]["substeps"] == 64
    assert found["rows"][0]["exponent"] < 0.1 < 1 < coarse["rows"][0]["exponent"]
