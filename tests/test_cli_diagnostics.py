"""`ctrnn spectrum`, `lyapunov`, `contraction`, `fixed-points`, `gsc`: numbers that obey the theory."""

import csv
import math

import numpy as np
import pytest

from cli_tools import Cli
from stored_runs import store_run, strict_json

COMMANDS = ("spectrum", "lyapunov", "contraction", "fixed-points", "gsc")
QUICK = {
    "spectrum": ("--every", 32),
    "lyapunov": ("--steps", 60, "--k", 3),
    "contraction": ("--pairs", 2),
    "fixed-points": ("--starts", 3),
    "gsc": ("--every", 32),
}


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


@pytest.fixture
def run(tmp_path):
    """A certified run: AdaDiag, whose Euler step of 0.03 is certified too."""
    store_run(tmp_path / "run", model="adadiag-tanh", margin=0.3, dt=0.03, solver="euler")
    return tmp_path / "run"


def result(cli, command, run, *args):
    done = cli(command, run, "--samples", 2, *QUICK[command], "--json", *args)
    assert done.code == 0, done.err
    return strict_json(done.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_a_table_and_writes_its_files(cli, run, tmp_path, command):
    for suffix in ("png", "svg", "pdf"):
        files = {name: tmp_path / f"{command}.{name}" for name in (suffix, "csv", "npz")}
        done = cli(command, run, "--samples", 1, *QUICK[command], "--plot", files[suffix],
                   "--csv", files["csv"], "--npz", files["npz"])  # fmt: skip
        assert done.code == 0, done.err
        assert "adadiag-tanh on digits" in done.out
        assert files[suffix].stat().st_size > 4000
        with files["csv"].open(newline="") as file:
            assert len(list(csv.DictReader(file))) >= 1
        with np.load(files["npz"]) as arrays:
            assert all(np.isfinite(arrays[name]).any() for name in arrays)


def test_local_rates_are_at_least_the_certified_one_and_at_most_minus_the_abscissa(cli, run):
    found = result(cli, "spectrum", run)
    certified = found["certificate"]["rate"]
    assert found["certificate"]["certified"]
    assert {row["weights"] for row in found["rows"]} == {"initial", "trained"}
    for row in found["rows"]:
        assert certified - 1e-9 <= row["local_rate"] <= -row["abscissa"] + 1e-9
        assert row["step_radius"] <= found["certificate"]["discrete"]["contraction_factor"] + 1e-12
    assert abs(found["blocks"]["coupling_abscissa"]) < 1e-6  # feedback: on the imaginary axis


def test_the_largest_exponent_is_at_most_the_certified_bound(cli, run):
    found = result(cli, "lyapunov", run)
    step = found["certificate"]["discrete"]
    assert found["certified_bound"] == pytest.approx(math.log(step["contraction_factor"]) / step["dt"])
    # Over a finite time the first frame may add half the log of the condition number.
    slack = math.log(found["certificate"]["metric"]["condition_number"]) / 2 / (60 * 0.03)
    exponents = [row["exponent"] for row in found["rows"]]
    assert exponents == sorted(exponents, reverse=True)
    assert exponents[0] <= found["certified_bound"] + slack + 1e-9


def test_distances_shrink_inside_the_certified_envelope_and_the_twin_parts(cli, run):
    found = result(cli, "contraction", run)
    assert found["largest_factor"] <= found["certified_factor"] + 1e-12
    assert found["growth"] < 1
    for row in found["rows"]:
        assert row["metric"] <= row["certified_step"] + 1e-12
    store_run(run.parent / "strong", model="adadiag-tanh", coupling_scale=20, solver="imex")
    strong = result(cli, "contraction", run.parent / "strong", "--twin")
    assert strong["growth"] < 1
    assert strong["twin_growth"] is None or strong["twin_growth"] > 1


def test_a_contracting_net_has_one_stable_fixed_point_an_input(cli, run):
    rows = result(cli, "fixed-points", run)["rows"]
    assert [row["sample"] for row in rows] == [0, 1]
    assert {row["kind"] for row in rows} == {"stable"}
    assert all(row["residual"] < 1e-8 for row in rows)


def test_the_jacobian_over_time_stays_below_its_certified_bound(cli, run):
    for row in result(cli, "gsc", run)["rows"]:
        assert row["jacobian"] <= row["jacobian_bound"] * (1 + 1e-9)
    squared = result(cli, "gsc", run, "--squared")["rows"][1]["gsc"]
    assert squared == pytest.approx(result(cli, "gsc", run)["rows"][1]["gsc"] ** 2)


def test_the_effective_depth_over_time_is_that_of_the_unrolled_steps(cli, run):
    depth = result(cli, "gsc", run, "--effective-depth")["effective_depth"]
    # Residual steps of about dt |J| = 0.06: far from 64 of them count at once, but several do.
    assert 3 <= depth <= 30


def test_gsc_of_a_baseline_and_refusals_of_what_needs_an_assembly(cli, tmp_path):
    store_run(tmp_path / "run", model="lstm")
    assert not result(cli, "gsc", tmp_path / "run")["certificate"]["certified"]
    for command in ("spectrum", "lyapunov", "contraction", "fixed-points"):
        assert "assembly" in cli.refuses(command, tmp_path / "run")


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_input_is_refused_in_one_sentence(cli, run, tmp_path, command):
    (tmp_path / "empty").mkdir()
    assert "at least 1" in cli.refuses(command, run, "--samples", 0)
    cli.refuses(command, tmp_path / "empty")
    cli.refuses(command, tmp_path / "nothing")
    assert "--plot" in cli.refuses(command, run, "--plot", tmp_path / "picture.bmp")
    blocked = tmp_path / "file"
    blocked.write_text("")
    cli.refuses(command, run, "--plot", blocked / "picture.png")
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    cli.refuses(command, run)


def test_wrong_numbers_are_refused(cli, run):
    assert "in 1..64" in cli.refuses("spectrum", run, "--every", 0)
    assert "in 1..64" in cli.refuses("spectrum", run, "--every", 65)
    assert "exclude" in cli.refuses("spectrum", run, "--every", 2, "--at", "3")
    cli.refuses("spectrum", run, "--at", "a,b")
    cli.refuses("spectrum", run, "--at", "1000")
    cli.refuses("spectrum", run, "--largest", 0)
    assert "in 1..8, the units" in cli.refuses("lyapunov", run, "--k", 0)
    assert "in 1..8, the units" in cli.refuses("lyapunov", run, "--k", 99999)
    cli.refuses("lyapunov", run, "--steps", 0)
    cli.refuses("contraction", run, "--pairs", 0)
    cli.refuses("fixed-points", run, "--starts", 0)
    cli.refuses("gsc", run, "--probes", 1)
