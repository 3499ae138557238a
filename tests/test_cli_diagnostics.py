"""`ctrnn spectrum`, `lyapunov`, `contraction`, `fixed-points`, `gsc`: numbers that obey the theory."""

import csv
import math
import re
import sys

import numpy as np
import pytest

from cli_tools import Cli
from stored_runs import store_run, strict_json

COMMANDS = ("spectrum", "lyapunov", "contraction", "fixed-points", "gsc")
QUICK = {
    "spectrum": ("--at", "0,16,32"),
    "lyapunov": ("--steps", 60, "--k", 3),
    "contraction": ("--pairs", 2),
    "fixed-points": ("--starts", 3),
    "gsc": ("--every", 32),
}


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A certified run: AdaDiag, whose Euler step of 0.03 is certified too."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    store_run(folder, model="adadiag-tanh", margin=0.3, dt=0.03, solver="euler")
    return folder


def result(cli, command, run, *args):
    done = cli(command, run, "--samples", 2, *QUICK[command], "--json", *args)
    assert done.code == 0, done.err
    return strict_json(done.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_a_table_and_writes_its_files(cli, run, tmp_path, monkeypatch, command):
    files = {name: tmp_path / "new" / f"{command}.{name}" for name in ("png", "csv", "npz")}
    done = cli(command, run, "--samples", 1, *QUICK[command], "--plot", files["png"],
               "--csv", files["csv"], "--npz", files["npz"])  # fmt: skip
    assert done.code == 0, done.err
    assert "adadiag-tanh on digits" in done.out
    assert files["png"].stat().st_size > 4000
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Without a picture nothing that draws, matplotlib above all, is imported.
    monkeypatch.setitem(sys.modules, "ctrnn_assembly.figures.diagnostics", None)
    found = strict_json(cli(command, run, "--samples", 1, *QUICK[command], "--json").out)
    assert [list(row) for row in rows] == [list(row) for row in found["rows"]]
    with np.load(files["npz"]) as arrays:
        numbers = [arrays[name] for name in arrays if arrays[name].dtype.kind != "U"]
        assert numbers
        assert all(np.isfinite(values).any() for values in numbers)


def test_local_rates_are_at_least_the_certified_one_and_at_most_minus_the_abscissa(cli, run):
    found = result(cli, "spectrum", run)
    certified = found["certificate"]["rate"]
    assert found["certificate"]["certified"]
    assert {row["weights"] for row in found["rows"]} == {"initial", "trained"}
    for row in found["rows"]:
        assert certified - 1e-9 <= row["local_rate"] <= -row["abscissa"] + 1e-9
        assert row["step_radius"] <= found["certificate"]["discrete"]["contraction_factor"] + 1e-12


def test_the_largest_exponent_is_at_most_the_certified_bound(cli, run):
    found = result(cli, "lyapunov", run)
    step = found["certificate"]["discrete"]
    assert found["certified_bound"] == pytest.approx(math.log(step["contraction_factor"]) / step["dt"])
    # Over a finite time the first frame may add half the log of the condition number.
    slack = math.log(found["certificate"]["metric"]["condition_number"]) / 2 / (60 * 0.03)
    exponents = [row["exponent"] for row in found["rows"]]
    assert exponents == sorted(exponents, reverse=True)
    assert exponents[0] <= found["certified_bound"] + slack + 1e-9


def test_no_run_is_said_to_have_a_bound_that_it_exceeds(cli, tmp_path):
    """Exponents are of the long run: in a short one a metric far from the identity leaves room."""
    store_run(tmp_path / "run", model="sparse-combo", density=0.3, magnitude=2.0, solver="imex")
    given = ("lyapunov", tmp_path / "run", "--steps=5", "--transient=0", "--samples=2")
    found, said = result(cli, *given), cli(*given).out
    lasting, of_these = re.search(r"at most (\S+) in the long run, (\S+) in these runs", said).groups()
    assert float(lasting) == pytest.approx(found["certified_bound"], abs=1e-5)
    assert found["certified_bound"] < found["rows"][0]["exponent"] <= float(of_these)


def test_the_running_estimate_ends_in_the_exponents(cli, run, tmp_path):
    rows = result(cli, "lyapunov", run, "--npz", tmp_path / "x.npz")["rows"]
    with np.load(tmp_path / "x.npz") as arrays:
        assert len(arrays["times"]) == len(arrays["history"]) == 60
        np.testing.assert_allclose(arrays["history"][-1], [row["exponent"] for row in rows])
        np.testing.assert_allclose(arrays["history"][29], [row["half_way"] for row in rows])


def test_distances_shrink_inside_the_certified_envelope_and_the_twin_parts(cli, run, tmp_path):
    found = result(cli, "contraction", run)
    # What rounding may have added is taken off: no tolerance is needed.
    assert found["factor"] <= found["certified_factor"]
    assert found["growth"] < 1
    for row in found["rows"]:
        assert row["metric"] <= row["certified_step"] + 1e-9  # close pairs: 1e-6 apart in float64
    growth = math.sqrt(found["certificate"]["metric"]["condition_number"])
    assert found["euclidean_peak"] <= growth + 1e-9
    store_run(tmp_path / "strong", model="adadiag-tanh", coupling_scale=20, solver="imex")
    strong = result(cli, "contraction", tmp_path / "strong", "--twin")
    assert strong["growth"] < 1
    assert strong["twin_growth"] is None or strong["twin_growth"] > 1


def test_distances_of_a_stack_are_euclidean_and_may_grow_before_they_shrink(cli, tmp_path):
    store_run(tmp_path / "deep", model="deep-lru", norm="none", mix="linear")
    found = result(cli, "contraction", tmp_path / "deep")
    assert found["certificate"]["discrete"]["certified"]
    assert found["certified_factor"] is None  # of one step in this distance there is none
    assert all(row["certified_continuous"] is None for row in found["rows"])
    growth = math.sqrt(found["certificate"]["metric"]["condition_number"])
    assert found["rows"][0]["certified_step"] == pytest.approx(growth)
    for row in found["rows"]:
        assert row["euclidean"] <= row["certified_step"] + 1e-9


def test_rounding_does_not_seem_to_refute_a_certificate(cli, tmp_path):
    """Steps of factor 0.97 down to the last bits of distances: an exact one may print as 0.97000004."""
    settings = {"model": "symmetric", "modules": 1, "coupling": "none", "margin": 0.999, "dt": 0.03}
    store_run(tmp_path / "run", **settings)
    found = result(cli, "contraction", tmp_path / "run", "--worst")
    assert found["certified_factor"] == pytest.approx(0.97, abs=1e-3)
    assert found["factor"] <= found["certified_factor"]


def test_theorem_6_is_monitored_where_it_applies(cli, run, tmp_path):
    settings = {"model": "absolute", "modules": 1, "coupling": "none", "activation": "tanh"}
    store_run(tmp_path / "run", **settings)
    said = result(cli, "contraction", tmp_path / "run", "--theorem6")
    assert {"theorem6_c", "theorem6_rate"} <= said.keys()
    assert said["theorem6_c"] <= 2
    done = cli("contraction", tmp_path / "run", "--theorem6", *QUICK["contraction"])
    assert "it proves nothing about any other" in done.out
    assert "Theorem 6" in cli.refuses("contraction", run, "--theorem6")  # coupled modules


def test_a_contracting_net_has_one_stable_fixed_point_an_input(cli, run):
    rows = result(cli, "fixed-points", run)["rows"]
    assert [row["sample"] for row in rows] == [0, 1]
    assert {row["kind"] for row in rows} == {"stable"}
    assert all(row["residual"] < 1e-8 for row in rows)


def test_the_jacobian_over_time_stays_below_its_certified_bound(cli, run):
    found = result(cli, "gsc", run)["rows"]
    for row in found:
        assert row["jacobian"] <= row["jacobian_bound"] * (1 + 1e-9)


def test_a_value_that_does_not_exist_is_no_number_in_the_table(cli, run):
    """The first state is zero, where GSC is NaN."""
    shown = cli("gsc", run, "--samples", 1, "--every", 32).out
    assert "nan" not in shown
    assert result(cli, "gsc", run)["rows"][0]["gsc"] is None


@pytest.mark.parametrize("model", ["adadiag-gated", "adadiag-gated-constant", "lstm", "lipschitz"])
@pytest.mark.parametrize("command", COMMANDS)
def test_gated_models_and_baselines_are_looked_at_too(cli, tmp_path, command, model):
    store_run(tmp_path / "run", model=model, solver="euler")
    found = result(cli, command, tmp_path / "run", "--plot", tmp_path / "x.svg")
    assert found["certificate"]["certified"] == (model == "adadiag-gated-constant")
    assert found["rows"]
    assert f"{model}: run" in (tmp_path / "x.svg").read_text()
    if model in ("lstm", "lipschitz"):
        error = cli.refuses(command, tmp_path / "run", "--solver", "imex")
        assert "has no solver" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_input_is_refused_in_one_sentence(cli, tmp_path, command):
    run = tmp_path / "run"
    store_run(run, model="adadiag-tanh")
    (tmp_path / "empty").mkdir()
    for samples in (0, 10**6):
        assert "samples must be in [1, " in cli.refuses(command, run, "--samples", samples)
    cli.refuses(command, tmp_path / "empty")
    cli.refuses(command, tmp_path / "nothing")
    assert "Did you mean 'imex'" in cli.refuses(command, run, "--solver", "imx")
    assert "Did you mean 'digits'" in cli.refuses(command, run, "--task", "digit")
    assert "--plot" in cli.refuses(command, run, "--plot", tmp_path / "picture.bmp")
    blocked = tmp_path / "file"
    blocked.write_text("")
    cli.refuses(command, run, "--plot", blocked / "picture.png")
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    cli.refuses(command, run)


@pytest.mark.parametrize(
    ("command", "options", "reason"),
    [
        ("spectrum", ("--at", "1000"), "in 0..64"),
        ("lyapunov", ("--k", 0), "in [1, 8]"),
        ("lyapunov", ("--k", 99999), "in [1, 8]"),
        ("lyapunov", ("--steps", 0), "steps"),
        ("contraction", ("--pairs", 0), "pairs must be at least 1"),
        ("fixed-points", ("--starts", 0), "starts"),
        ("gsc", ("--probes", 1), "probes"),
        ("gsc", ("--every", 0), "every"),
    ],
)
def test_wrong_numbers_are_refused(cli, run, command, options, reason):
    assert reason in cli.refuses(command, run, *options)


@pytest.mark.parametrize("options", [("--at", "a,b"), ("--samples", "x")])
def test_click_refuses_what_it_cannot_parse(cli, run, options):
    done = cli("spectrum", run, *options)
    assert done.code == 2
    assert "Error: Invalid value for" in done.err
