"""`ctrnn certify`: exit codes, JSON, the table, the figure, and which weights it speaks of."""

import json
import random
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_tools import Cli
from ctrnn_assembly.certificates.result import down, factor, up
from ctrnn_assembly.models import MODELS
from ctrnn_assembly.training.config import make_config, read_yaml
from ctrnn_assembly.training.run import model_from
from stored_runs import SMALL, store_run, strict_json

KEYS = {
    "model", "units", "weights", "certified", "rate", "slowest_time_constant", "rounding", "discrete",
    "metric", "modules", "coupling", "cascade", "claim", "reasons", "declared", "verdict", "verdicts",
}  # fmt: skip
PARTS = {
    "weights": {"kind", "file", "sha256"},
    "discrete": {
        *("solver", "dt", "substeps", "certified", "contraction_factor", "max_dt", "reason"),
        *("lengths", "meeting"),
    },
    "metric": {"kind", "origin", "smallest", "largest", "condition_number"},
    "coupling": {"topology", "pairs", "residual", "norm", "cost", "edges"},
}
MODULE = {"index", "size", "theorem", "margin", "rate", "certified"}
MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "120")
    return Cli(capsys)


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the curves that are drawn: each takes a proof of its own."""
    monkeypatch.setattr(import_module("ctrnn_assembly.certificates.certify"), "POINTS", 5)


def certified(cli: Cli, *args: object) -> dict:
    """What certify says as JSON, with the exit code that belongs to it."""
    done = cli("certify", *args, "--json")
    assert done.err == ""
    found = strict_json(done.out)
    assert done.code == (
        0 if found["certified"] else 1 if "refuted" in found["verdicts"].values() else 3
    )
    return found


@pytest.mark.parametrize("model", MODELS)
def test_json_has_the_same_keys_for_every_model(cli: Cli, tmp_path: Path, model: str) -> None:
    store_run(tmp_path / "run", model=model)
    found = certified(cli, tmp_path / "run")
    assert found.keys() == KEYS
    for part, keys in PARTS.items():
        assert found[part].keys() == keys, part
    assert all(module.keys() == MODULE for module in found["modules"])
    assert found["certified"] == (not found["reasons"])
    refused = MODELS[model].is_baseline or model == "deep-free"
    assert len(found["modules"]) == (0 if refused else 2)


@pytest.mark.parametrize("model", ["svd-combo", "symmetric", "adadiag-gated-shared"])
def test_it_says_what_the_library_says(cli: Cli, tmp_path: Path, model: str) -> None:
    config = store_run(tmp_path / "run", model=model)
    found = certified(cli, tmp_path / "run")
    certificate = model_from(config, 1, 10).core.certificate()
    assert certificate is not None
    expected = strict_json(json.dumps(certificate.as_dict()))
    assert {key: found[key] for key in expected} == expected


def test_before_and_after_training(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cli.train(run, "--epochs=1")
    after = certified(cli, run)
    before = certified(cli, run, "--initial")
    assert after["weights"]["kind"] == "trained"
    assert after["weights"]["file"] == str(run / "model.safetensors")
    assert before["weights"] == {"kind": "initial", "file": None, "sha256": None}
    assert before["rate"] != after["rate"]
    summary = strict_json((run / "summary.json").read_text(encoding="utf-8"))["certificate"]
    assert {key: after[key] for key in summary} == summary
    assert certified(cli, run / "config.yaml") == before
    assert "trained, with the best validation accuracy" in cli("certify", run).out
    assert "initial, before training" in cli("certify", run, "--initial").out


def test_a_run_that_is_not_finished_has_the_weights_of_its_last_epoch(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cli.train(run, "--epochs=1")
    finished = certified(cli, run)
    (run / "summary.json").unlink()
    (run / "model.safetensors").unlink()
    found = certified(cli, run)
    assert found["weights"]["kind"] == "checkpoint"
    assert found["weights"]["file"] == str(run / "checkpoints" / "last.ckpt")
    assert found["rate"] == finished["rate"]  # one epoch: the last is the best
    assert "the run is not finished" in cli("certify", run).out
    (run / "checkpoints" / "last.ckpt").unlink()
    assert "has no weights yet" in cli.refuses("certify", run)
    assert certified(cli, run, "--initial")["weights"]["kind"] == "initial"


def test_a_finished_run_without_its_weights_is_refused(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cli.train(run, "--epochs=1")
    (run / "model.safetensors").unlink()
    assert "there are no weights at" in cli.refuses("certify", run)


@pytest.mark.parametrize("source", ["digits", "adadiag-tanh-smnist-c5"])
def test_a_recipe_is_certified_before_training(cli: Cli, source: str) -> None:
    found = certified(cli, source)
    assert found["weights"]["kind"] == "initial"
    assert found["discrete"]["certified"]
    assert found["discrete"]["contraction_factor"] < 1


def test_a_configuration_is_certified(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("modules: 3\nunits: 4\ncoupling: chain\n", encoding="utf-8")
    found = certified(cli, file)
    assert found["coupling"]["topology"] == "chain"
    assert found["coupling"]["pairs"] == [[0, 1], [1, 2]]


def test_the_published_sparse_combo_net_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert read_settings(cli, tmp_path, "published-sparse-combo")["density"] == 0.033
    file = tmp_path / "published-sparse-combo.yaml"
    done = cli("certify", file)
    assert done.code == 3  # no witness is searched for among 512 units
    assert done.out.startswith("NOT certified: module ")


def test_a_sparse_combo_net_of_that_sparsity_is_certified(cli: Cli, tmp_path: Path) -> None:
    assert read_settings(cli, tmp_path, "sparse-combo")["density"] == 0.033
    found = certified(cli, tmp_path / "sparse-combo.yaml")
    assert found["certified"]
    assert found["rate"] >= 0.01
    assert found["units"] == 512
    assert 1 <= found["metric"]["condition_number"] < 1e6
    assert found["coupling"]["residual"] < 1e-6


def read_settings(cli: Cli, folder: Path, model: str) -> dict:
    """A configuration file of 16 x 32 units with the paper's density, as certify will read it."""
    file = folder / f"{model}.yaml"
    file.write_text(f"model: {model}\nmodules: 16\nunits: 32\ndensity: 0.033\n", encoding="utf-8")
    return read_yaml(file)


@pytest.mark.parametrize("model", [n for n, m in MODELS.items() if m.is_baseline])
def test_baselines_are_not_certified(cli: Cli, tmp_path: Path, model: str) -> None:
    store_run(tmp_path / "run", model=model)
    found = certified(cli, tmp_path / "run")
    assert not found["certified"]
    assert found["rate"] is None
    assert not found["discrete"]["certified"]
    assert "has no solver" in cli.refuses("certify", tmp_path / "run", "--dt=0.5")
    assert found["weights"]["kind"] == "trained"
    assert "is a baseline" in found["reasons"][0]
    done = cli("certify", tmp_path / "run", "--plot", tmp_path / "b.svg")
    assert done.code in (1, 3)  # some initial weights are refuted
    assert "NOT certified: " in done.out
    assert "is a baseline" in done.out
    assert (tmp_path / "b.svg").exists()


def test_dt_and_solver_replace_those_of_the_run(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    store_run(run, dt=0.02, solver="imex")
    own = certified(cli, run)
    assert (own["discrete"]["dt"], own["discrete"]["solver"]) == (0.02, "imex")
    assert own["discrete"]["certified"]
    other = certified(cli, run, "--dt=0.05", "--solver=euler")
    assert (other["discrete"]["dt"], other["discrete"]["solver"]) == (0.05, "euler")
    assert other["discrete"]["certified"]
    assert other["rate"] == own["rate"]
    exponential = certified(cli, run, "--solver=exponential-euler")
    assert exponential["discrete"]["certified"]
    assert exponential["discrete"]["max_dt"] is None  # every dt


def test_the_step_has_a_verdict_of_its_own(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    store_run(run, model="adadiag-tanh")
    found = certified(cli, run, "--dt=50")
    assert found["certified"]
    assert not found["discrete"]["certified"]
    step = found["discrete"]
    assert f"largest certified dt is {down(step['max_dt'], 6)}" in step["reason"]
    done = cli("certify", run, "--dt=50")
    assert done.code == 0
    assert "in continuous time, but NOT its euler step of 50" in done.out
    assert cli("certify", run, "--dt=50", "--require-step").code == 1
    assert cli("certify", run, "--require-step").code == 0


@pytest.mark.parametrize("solver", ["dopri5", "rk4"])
def test_no_proof_is_claimed_for_other_solvers(cli: Cli, tmp_path: Path, solver: str) -> None:
    store_run(tmp_path / "run", solver=solver)
    found = certified(cli, tmp_path / "run")
    assert found["certified"]
    assert found["discrete"]["contraction_factor"] is None
    assert found["discrete"]["reason"] == f"no proof is known for steps of {solver}"
    assert cli("certify", tmp_path / "run", "--require-step").code == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--dt=nan"], "dt must be a finite number"),
        (["--dt=inf"], "dt must be a finite number"),
        (["--dt=-0.1"], "dt must be greater"),
        (["--dt=0"], "dt must be greater"),
        (["--solver=nope"], "solver must be one of euler"),
        (["--plot=figure.jpg"], "--plot must end in .png, .svg, .pdf"),
        (["--plot=figure"], "--plot must end in .png, .svg, .pdf"),
    ],
)
@pytest.mark.parametrize("model", ["svd-combo", "lstm"])
def test_impossible_options_are_refused(
    cli: Cli, tmp_path: Path, model: str, options: list[str], reason: str
) -> None:
    store_run(tmp_path / "run", model=model)
    assert reason in cli.refuses("certify", tmp_path / "run", *options)


@pytest.mark.parametrize("options", [["--dt=x"], ["--search=nope"], ["--nope"]])
def test_click_refuses_what_it_cannot_parse(cli: Cli, tmp_path: Path, options: list[str]) -> None:
    done = cli("certify", *([tmp_path, *options]))
    assert done.code == 2
    assert "Error: " in done.err
    assert "Traceback" not in done.err


def test_an_unknown_source_lists_the_recipes(cli: Cli, tmp_path: Path) -> None:
    error = cli.refuses("certify", tmp_path / "none")
    assert "there is no run folder or file of that name, and a recipe must be one of" in error
    assert "sparse-combo-psmnist" in error
    assert "holds no run" in cli.refuses("certify", tmp_path)


@pytest.mark.parametrize("suffix", MAGIC)
def test_a_figure_is_drawn_in_three_formats(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    store_run(tmp_path / "run", model="adadiag-tanh")
    if suffix != ".svg":  # its curves are proven in that format
        proofs = import_module("ctrnn_assembly.certificates.certify")
        monkeypatch.setattr(proofs, "step_curves", lambda *_, **__: ())
    plain = certified(cli, tmp_path / "run")
    one, same = tmp_path / "new" / f"a{suffix}", tmp_path / f"b{suffix}"
    assert certified(cli, tmp_path / "run", "--plot", one) == plain
    assert one.read_bytes().startswith(MAGIC[suffix])
    assert one.stat().st_size > 3000
    assert str(same) in cli("certify", tmp_path / "run", "--plot", same).out.replace("\n", "")
    assert one.read_bytes() == same.read_bytes()


@pytest.mark.parametrize(
    "model", ["published-sparse-combo", "adadiag-gated-constant", "adadiag-gated-shared"]
)
def test_a_figure_of_other_models_changes_nothing_that_is_said(
    cli: Cli, tmp_path: Path, model: str
) -> None:
    store_run(tmp_path / "run", model=model)
    file = tmp_path / "f.svg"
    assert certified(cli, tmp_path / "run", "--plot", file) == certified(cli, tmp_path / "run")
    assert file.read_bytes().startswith(MAGIC[".svg"])
    assert file.stat().st_size > 3000


def test_a_figure_says_what_it_shows(cli: Cli, tmp_path: Path) -> None:
    store_run(tmp_path / "run", dt=0.25, coupling_scale=20.0)
    file = tmp_path / "f.SVG"
    found = certified(cli, tmp_path / "run", "--plot", file)
    text = file.read_text(encoding="utf-8")
    assert not found["discrete"]["certified"]
    for shown in (
        "euler, dt 0.25: not certified",
        f"euler: up to {down(found['discrete']['max_dt'])}",
        f"the whole: {down(found['rate'])}",
        "exponential-euler",
        "unit of tau",
        "(certified)",
    ):
        assert shown in text


def test_a_figure_that_cannot_be_written_is_named(cli: Cli, tmp_path: Path) -> None:
    store_run(tmp_path / "run")
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "f.png"
    assert str(tmp_path / "file") in cli.refuses("certify", tmp_path / "run", "--plot", below)


def test_the_table_shows_what_the_json_says(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    store_run(run, model="sparse-combo")
    found, shown = certified(cli, run), cli("certify", run).out
    first = shown.splitlines()[0]
    assert first.startswith("certified: contracts at a rate of at least ")
    assert first.endswith("and so does the euler step of 0.03")
    for value in (
        down(found["rate"]),
        up(found["slowest_time_constant"]),
        up(found["metric"]["condition_number"]),
        factor(found["discrete"]["contraction_factor"]),
        down(found["discrete"]["max_dt"]),
        f"all, 1 pair, norm {up(found['coupling']['norm'])}",
        found["weights"]["sha256"][:16],
        *(down(module["margin"]) for module in found["modules"]),
    ):
        assert value in shown


def test_many_modules_are_summarised(cli: Cli, tmp_path: Path) -> None:
    store_run(tmp_path / "run", modules=21, units=2, model="symmetric")
    shown = cli("certify", tmp_path / "run").out
    found = certified(cli, tmp_path / "run")
    assert "16 more" in shown
    assert len(found["modules"]) == 21
    worst = sorted(found["modules"], key=lambda module: module["margin"])
    assert all(down(module["margin"]) in shown for module in worst[:5])
    assert f">= {down(worst[5]['margin'])}" in shown


def test_a_metric_of_little_use_is_a_warning(cli: Cli, tmp_path: Path) -> None:
    settings = {"coupling_kind": "hierarchy", "coupling": "chain", "coupling_scale": 30.0}
    store_run(tmp_path / "run", modules=8, units=1, **settings)
    found = certified(cli, tmp_path / "run")
    assert found["certified"]
    assert found["metric"]["condition_number"] > 1e6
    shown = cli("certify", tmp_path / "run").out
    assert "WARNING, of little use: Euclidean" in shown
    store_run(tmp_path / "other")
    assert "WARNING" not in cli("certify", tmp_path / "other").out


def test_the_search_can_be_left_out(cli: Cli, tmp_path: Path) -> None:
    """A chain of strong weights contracts, though not in the identity that the model gives."""
    run = tmp_path / "run"
    store_run(run, model="unconstrained", coupling="none")
    state = load_file(run / "model.safetensors")
    for name in (name for name in state if "weight.original" in name):
        state[name] = 8 * torch.diag(torch.ones(3), 1)
    save_file(state, run / "model.safetensors")
    plot = tmp_path / "f.svg"
    found = certified(cli, run, "--plot", plot)
    assert found["certified"]
    assert found["metric"]["origin"].startswith("search")
    assert f"euler: up to {down(found['discrete']['max_dt'])}" in plot.read_text(encoding="utf-8")
    assert not certified(cli, run, "--search=none")["certified"]


@pytest.mark.parametrize("model", [n for n, m in MODELS.items() if not m.is_baseline])
def test_the_field_does_not_depend_on_the_data(model: str) -> None:
    config = make_config(SMALL, {"model": model, "coupling": "random:1"})
    cores = [model_from(config, *sizes).core for sizes in ((1, 2), (3, 7))]
    one, other = (core.layers if MODELS[model].is_stack else core.field for core in cores)  # type: ignore[union-attr]
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):  # type: ignore[union-attr,operator]
        assert torch.equal(a, b)


def test_numbers_are_rounded_to_the_side_that_claims_less() -> None:
    rng = random.Random(0)
    for _ in range(1000):
        value = rng.uniform(-1, 1) * 10.0 ** rng.randint(-12, 12)
        assert float(down(value)) <= value <= float(up(value))
        assert float(up(value)) - float(down(value)) <= 2e-3 * abs(value)
        gain = 1 - 10.0 ** rng.uniform(-9, 0)
        assert gain <= float(factor(gain)) < 1
    assert (down(0.25), up(0.25), factor(0.5), down(-float("inf"))) == ("0.25", "0.25", "0.5", "-inf")


def test_certify_imports_no_heavy_library(tmp_path: Path) -> None:
    store_run(tmp_path / "run")
    heavy = "lightning", "lightning_fabric", "torchvision", "matplotlib", "PIL", "aeon"
    code = (
        "import sys\nfrom ctrnn_cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "certify", str(tmp_path / "run")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"
