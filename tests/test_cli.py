"""The command line as a user meets it: what it prints, what it refuses, what it leaves behind."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from cli_tools import TINY, Cli, table
from ctrnn_assembly.certificates.gates import Gate
from ctrnn_assembly.contracting import CONSTRAINTS
from ctrnn_assembly.data import TASKS
from ctrnn_assembly.data import task as data_task
from ctrnn_assembly.data.arrays import CIFAR10
from ctrnn_assembly.models import MODELS
from ctrnn_assembly.schemes import SOLVERS
from ctrnn_assembly.topology import TOPOLOGIES
from ctrnn_assembly.training import fit
from ctrnn_assembly.training.config import (
    FAST,
    FAST_SIDE,
    RECOMMENDED,
    TrainConfig,
    make_config,
    read_yaml,
    recipes,
    recommended,
)
from ctrnn_assembly.training.run import model_from, read_table
from ctrnn_cli.train import learnt_nothing
from fake_data import real_data, write_cifar, write_images, write_mnist, zip_folder

# What is recommended couples more pairs of modules than these small nets have.
IMAGES = ("--task=images", "--depth=1", "--width=4")
KNOWN = {
    "tasks": TASKS,
    "models": {name: model.summary for name, model in MODELS.items()},
    "theorems": CONSTRAINTS,
    "solvers": SOLVERS,
    "topologies": TOPOLOGIES,
    "gates": get_args(Gate),
    "diagnostics": ("spectrum", "lyapunov", "contraction", "fixed-points", "gsc"),
    "recipes": recipes(),
    "recommended": RECOMMENDED,
}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_list_json_has_every_name_with_one_line(cli: Cli) -> None:
    listed = json.loads(cli("list", "--json").out)
    assert {kind: list(names) for kind, names in listed.items()} == {
        kind: list(names) for kind, names in KNOWN.items()
    }
    for names in listed.values():
        assert all(about and "\n" not in about for about in names.values())


@pytest.mark.parametrize("kind", KNOWN)
def test_list_of_one_kind_has_that_kind_only(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert list(json.loads(cli("list", kind, "--json").out)) == [kind]
    shown = cli("list", kind).out
    assert all(name in shown for name in KNOWN[kind])


def test_help_has_an_option_for_every_setting(cli: Cli) -> None:
    text = cli("train", "--help").out
    for name in TrainConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    assert all(command in cli("--help").out for command in ("train", "evaluate", "list"))
    assert cli("--version").out.startswith("ctrnn, version ")


def test_settings_stand_in_named_sections(cli: Cli) -> None:
    text = cli("train", "--help").out
    places = [text.index(f"\n{title}:\n") for title in
              ("Run", "Data", "Network", "Solver", "Training", "Certificate", "Machine")]  # fmt: skip
    assert places == sorted(places)
    data = text[places[1] : places[2]]
    assert "--task" in data
    assert "--resize" in data
    assert "--solver" not in data
    solver, certificate, machine = (
        text[places[3] : places[4]],
        text[places[5] : places[6]],
        text[places[6] :],
    )
    assert "--dt" in solver
    assert "--require-certificate" in certificate
    assert "--device" in machine


def test_no_help_waits_for_torch() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom ctrnn_cli.main import COMMANDS, main\n"
        "for name in ('', *COMMANDS):\n"
        "    done = CliRunner().invoke(main, [*name.split(), '--help'])\n"
        "    assert done.exit_code == 0 and 'Usage' in done.output, done.output\n"
        "print([m for m in ('torch', 'matplotlib', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "meant"), [(["trian"], "train"), (["fixedpoints"], "fixed-points"),
                         (["train", "--modle=x"], "--model")]
)  # fmt: skip
def test_a_mistyped_command_or_option_is_answered_with_the_right_one(
    cli: Cli, words: list[str], meant: str
) -> None:
    done = cli(*words)
    assert done.code == 2
    assert "Did you mean" in done.err
    assert meant in done.err


def test_train_json_prints_the_summary_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cli.train(run, "--epochs=2", "--json")
    summary = json.loads(done.out)
    assert summary == json.loads((run / "summary.json").read_text())
    assert {"task", "model", "parameters", "epochs", "val_accuracy", "test_accuracy", "seconds",
            "seed", "versions", "certificate"} <= set(summary)  # fmt: skip
    assert 0 <= summary["test_accuracy"] <= 1
    assert summary["epochs"] == len(table(run)) == 2
    assert summary["certificate"]["certified"] is True
    assert summary["certificate"]["rate"] > 0
    start, what, note, forecast, *epochs = done.err.splitlines()
    assert start.startswith("starts from what is recommended for digits: model svd-combo, modules ")
    assert what.startswith("svd-combo, 152 trained parameters, on digits: ")
    assert forecast.startswith("about ")
    assert note.startswith("note: warmup_epochs 10 leaves no epoch of 2 after it")
    assert [line[:9] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert {file.name for file in run.iterdir()} == {
        "config.yaml", "metrics.csv", "checkpoints", "model.safetensors", "summary.json"
    }  # fmt: skip
    assert {f.name for f in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize("command", [
    ("train", "--out"), ("train", "--resume"), ("sweep", "none.yaml", "--out"),
    ("reproduce", "digits", "--runs"), ("reproduce", "digits", "--results"),
])  # fmt: skip
def test_a_folder_that_cannot_be_is_refused_before_any_work(
    cli: Cli, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        done = cli(*command, folder)
        said = f"error: {command[-1]} {folder} cannot be written: {tmp_path / 'file'} is not a writable"
        assert (done.code, done.err) == (2, f"{said} folder.\n")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_the_same_command_gives_the_same_result(cli: Cli, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cli.train(tmp_path / name, "--epochs=1")
    assert table(tmp_path / "a") == table(tmp_path / "b")
    # A run's own configuration makes that run again.
    done = cli("train", "--config", tmp_path / "a" / "config.yaml", "--out", tmp_path / "c")
    assert done.code == 0
    assert table(tmp_path / "a") == table(tmp_path / "c")
    # From another run's configuration one setting can be changed.
    assert cli("train", "--config", tmp_path / "a" / "config.yaml", "--seed=1",
               "--out", tmp_path / "d").code == 0  # fmt: skip
    assert table(tmp_path / "a") != table(tmp_path / "d")


def test_the_weights_kept_are_those_with_the_best_validation(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = json.loads(
        cli.train(run, "--epochs=4", "--learning-rate=0.05", "--batch-size=20", "--json").out
    )
    best = max(float(row["val_accuracy"]) for row in table(run))
    assert summary["val_accuracy"] == pytest.approx(best, abs=1e-6)  # the table's are float32
    assert float(table(run)[summary["best_epoch"]]["val_accuracy"]) == best


@pytest.mark.parametrize("model", ["svd-combo", "lstm", "published-sparse-combo"])
def test_evaluate_gives_the_summarys_accuracy(cli: Cli, tmp_path: Path, model: str) -> None:
    run = tmp_path / "run"
    summary = json.loads(cli.train(run, "--epochs=1", f"--model={model}", "--json").out)
    result = json.loads(cli("evaluate", run, "--json").out)
    assert result["test_accuracy"] == summary["test_accuracy"]
    assert result["certificate"] == summary["certificate"]
    assert f"test accuracy {summary['test_accuracy']:.4f}" in cli("evaluate", run).out


def test_evaluate_with_another_solver_and_dt(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cli.train(run, "--epochs=1")
    result = json.loads(cli("evaluate", run, "--solver=imex", "--dt=0.01", "--json").out)
    assert (result["solver"], result["dt"]) == ("imex", 0.01)
    assert result["certificate"]["discrete"]["solver"] == "imex"
    assert "solver must be one of" in cli.refuses("evaluate", run, "--solver=nope")
    assert "dt must be greater than 0" in cli.refuses("evaluate", run, "--dt=-1")
    assert "dt must be a finite number" in cli.refuses("evaluate", run, "--dt=nan")
    assert "there is no run folder" in cli.refuses("evaluate", tmp_path / "none")


def test_the_test_set_is_read_once_after_training(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real, reads = tmp_path / "run", data_task.checked, []

    def checked(what: str, *rest: object) -> object:
        if "test" in what:
            assert len(table(run)) == 2
            assert (run / "model.safetensors").exists()
            reads.append(what)
        return real(what, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(data_task, "checked", checked)
    cli.train(run, "--epochs=2")
    assert len(reads) == 1


UNKNOWN = {
    "--task=nope": ("task must be one of", TASKS),
    "--model=nope": ("model must be one of", MODELS),
    "--coupling=nope": ("coupling must be one of", TOPOLOGIES),
    "--solver=nope": ("solver must be one of", SOLVERS),
    "--activation=nope": (
        "activation must be one of",
        ("relu", "tanh", "identity", "sigmoid", "softplus"),
    ),
    "--recipe=nope": ("recipe must be one of", recipes()),
}


@pytest.mark.parametrize("option", UNKNOWN)
def test_an_unknown_name_lists_the_known_ones(cli: Cli, tmp_path: Path, option: str) -> None:
    reason, known = UNKNOWN[option]
    error = cli.refuses("train", *TINY, "--out", tmp_path / "run", option)
    assert reason in error
    assert "'nope'" in error
    assert "recommended" not in error
    assert all(name in error for name in known)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--epochs=0"], "epochs must be greater"),
        (["--batch-size=-1"], "batch_size must be greater"),
        (["--learning-rate=0"], "learning_rate must be greater"),
        (["--learning-rate=inf"], "learning_rate must be a finite number"),
        (["--dt=nan"], "dt must be a finite number"),
        (["--tau=-1"], "tau must be greater"),
        (["--density=0"], "density must be greater"),
        (["--margin=1"], "margin must be less"),
        (["--limit-train=0"], "limit_train must be greater"),
        (["--resize=0"], "resize must be greater"),
        (["--devices=0"], "devices must be greater"),
        (["--coupling=random:2"], "2 modules have 1 pairs"),
        (["--coupling=random:-1"], "must be a whole number >= 0; got 'random:-1'"),
        (["--solver=rk4", "--gradient=adjoint"], "gradient='adjoint' with the fixed-step solver"),
        (["--solver=euler", "--gradient=adjoint"], "leave out gradient"),
        (["--solver=scipy_solver"], "no direct gradient"),
        (["--model=sparse-combo", "--units=32", "--density=0.9", "--magnitude=30"],
         "density 0.9 and magnitude 30.0"),
    ],
)  # fmt: skip
def test_impossible_settings_leave_nothing_behind(
    cli: Cli, tmp_path: Path, options: list[str], reason: str
) -> None:
    assert reason in cli.refuses("train", *TINY, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")

    monkeypatch.setattr(fit, "train", refuse)
    error = cli.refuses("train", *TINY, "--out", tmp_path / "run")
    assert "out of memory. Lower --batch-size" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_named(cli: Cli, tmp_path: Path) -> None:
    error = cli.refuses("train", *TINY, "--device=cuda", "--out", tmp_path / "run")
    assert "1 x device 'cuda'" in error
    assert "not available" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [["--activation-place=z"], ["--epochs=x"], ["--milestones=a"], ["--nope"]]
)
def test_click_refuses_what_it_cannot_parse(cli: Cli, options: list[str]) -> None:
    done = cli("train", *options)
    assert done.code == 2
    assert "Error: " in done.err
    assert "Traceback" not in done.err


def test_a_bad_configuration_file_is_refused(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    assert "no configuration file" in cli.refuses("train", "--config", file)
    for content, reason in {
        "epochs: [": "cannot be read as YAML",
        "epoks: 3": "got 'epoks'. Did you mean 'epochs'?",
        "1: 2": "got '1':",
        "epochs: many": "epochs must be a valid integer",
    }.items():
        file.write_text(content, encoding="utf-8")
        assert reason in cli.refuses("train", "--config", file, "--out", tmp_path / "run")


def test_a_configuration_file_wins_over_a_recipe_and_options_over_both(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 1\nmodules: 3\nlimit_train: 60\n", encoding="utf-8")
    run = tmp_path / "run"
    done = cli("train", "--recipe=digits", "--config", file, "--modules=2", "--units=4", "--out", run)
    assert done.code == 0
    stored = read_yaml(run / "config.yaml")
    chosen = [stored[key] for key in ("epochs", "modules", "units", "solver", "limit_train")]
    assert chosen == [1, 2, 4, "exponential-euler", 60]


def test_a_run_is_never_overwritten(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    cli.train(run, "--epochs=1")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert "already holds a run" in cli.refuses("train", *TINY, "--epochs=1", "--out", run)
    assert "is finished" in cli.refuses("train", "--resume", run)
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    proof = "ctrnn_assembly.training.fit.missing_certificate"
    monkeypatch.setattr(proof, lambda *given: pytest.fail("refused only after a certificate"))
    assert "already holds a run" in cli.refuses("train", *TINY, "--epochs=1", "--out", run)
    assert "there is no run folder" in cli.refuses("train", "--resume", tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_an_unwritable_folder_is_named(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    below = file / "below"
    for out in (file, below):
        error = cli.refuses("train", *TINY, "--epochs=1", "--out", out)
        assert error == f"error: --out {out} cannot be written: {file} is not a writable folder."
    # Where the system says so only when it is tried.
    error = cli.refuses("train", *TINY, "--epochs=1", "--out", "/proc/none/run")
    assert error.startswith("error: cannot read or write /proc/none (")


def fake_series(folder: Path, part: str, bad: float) -> tuple[str, ...]:
    """Settings to train on ten short series a class, written below `folder`; one of `part` is bad."""
    (folder / "Fake").mkdir(exist_ok=True)
    for which in ("train", "test"):
        rng, lines = np.random.default_rng(0), ["@classLabel true a b", "@data"]
        for i in range(20):
            x = rng.normal(size=(2, 5))
            x[1, 3] = bad if (which, i) == (part, 7) else x[1, 3]
            lines.append(":".join([*(",".join(map(str, one)) for one in x), "ab"[i % 2]]))
        (folder / "Fake" / f"Fake_{which.upper()}.ts").write_text("\n".join(lines))
    return ("--task=series:Fake", "--depth=1", "--width=4", f"--data-dir={folder}")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_training_data_that_are_not_finite_are_refused(cli: Cli, tmp_path: Path, bad: float) -> None:
    fake = fake_series(tmp_path, "train", bad)
    error = cli.refuses("train", *TINY, *fake, "--out", tmp_path / "run")
    assert f"values must be finite; got {bad} at line 10, step 3, column 'x1'" in error
    assert not (tmp_path / "run").exists()


def test_a_bad_test_set_loses_no_training(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*TINY, *fake_series(tmp_path, "test", np.nan), "--epochs=1", "--out", run)
    assert "series:Fake test split: values must be finite" in cli.refuses("train", *settings)
    assert (run / "model.safetensors").exists()
    fake_series(tmp_path, "none", 0)  # mended
    assert cli("train", "--resume", run).code == 0


def test_images_of_ones_own(cli: Cli, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", {".": 20}, classes=("ant", "bee", "cat"), size=(6, 4))
    done = cli.train(tmp_path / "run", *IMAGES, "--data-dir", data, "--epochs=1", "--json")
    assert json.loads(done.out)["task"] == "images"
    assert cli("evaluate", tmp_path / "run").code == 0
    data.rename(tmp_path / "moved")
    assert "does not exist" in cli.refuses("evaluate", tmp_path / "run")
    assert cli("evaluate", tmp_path / "run", "--data-dir", tmp_path / "moved").code == 0


def test_augmentation_can_be_left_out(cli: Cli, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", {".": 20}, size=(8, 8))
    for flag in ("--augment", "--no-augment"):
        cli.train(tmp_path / flag, *IMAGES, "--data-dir", data, "--epochs=1", flag)
    assert table(tmp_path / "--augment") != table(tmp_path / "--no-augment")


def test_real_mnist_trains(cli: Cli, tmp_path: Path) -> None:
    data = real_data("MNIST")
    run = tmp_path / "run"
    small = ("--depth=1", "--width=4", "--resize=7", "--epochs=1", "--json")
    done = cli.train(run, "--task=psmnist", "--data-dir", data, *small)
    assert json.loads(done.out)["task"] == "psmnist-12008"


def test_without_out_a_run_gets_a_folder_of_its_own(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTRNN_RUN", "of a distributed run, which this is not")
    monkeypatch.setattr("time.strftime", lambda form: "one-second")
    done = [cli("train", *TINY, "--epochs=1") for _ in range(3)]
    assert [each.code for each in done] == [0, 0, 0]
    names = [f"digits-svd-combo-one-second{end}" for end in ("", "-2", "-3")]
    assert sorted(run.name for run in Path("runs").iterdir()) == names
    assert read_yaml(Path("runs") / names[0] / "config.yaml")["solver"] == "exponential-euler"
    assert all(f"runs/{name}" in each.out for name, each in zip(names, done, strict=True))
    cli.refuses("train", *TINY, "--activation=nope")
    assert len(list(Path("runs").iterdir())) == 3


def test_a_run_says_what_it_trains_before_it_does_and_how_far_an_epoch_is(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "LONG", 0.0)
    run = tmp_path / "run"
    said = cli.train(run, "--recipe=digits", "--epochs=2").err.splitlines()
    assert said[0] == "starts from the recipe digits"
    assert said[1] == (
        "svd-combo, 152 trained parameters, on digits: 200 sequences of 64 steps x 1, 2 epochs; device "
        f"cpu, run folder {run}"
    )
    told = [line for line in said if re.fullmatch(r"epoch \d/2: step \d of 4, \d+ s left of it", line)]
    assert [line.split(" of")[0] for line in told] == [
        f"epoch {e}/2: step {k}" for e in (1, 2) for k in (1, 2, 3)
    ]


def test_news_that_nobody_hears_end_no_training(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = os.pipe()
    heard, told = io.FileIO(ends[0]), io.FileIO(ends[1], "w")
    real = fit.train_step

    def train_step(*args: object) -> torch.Tensor:
        heard.close()  # as `| head -1` does
        return real(*args)

    monkeypatch.setattr(fit, "train_step", train_step)
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(told, write_through=True))
    cli.train(tmp_path / "run", "--epochs=3")
    with pytest.raises(BrokenPipeError):
        print("nobody hears this", file=sys.stderr)
    assert len(table(tmp_path / "run")) == 3
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_net_at_chance_is_said_to_be(cli: Cli, tmp_path: Path) -> None:
    done = cli.train(tmp_path / "run", "--epochs=1")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] <= summary["chance"] < 0.25
    recommended_for = (
        "`ctrnn train --task digits` alone takes what is recommended: modules 8, units 16, "
    )
    assert f"at chance │ {summary['chance']:.4f} is within reach" in " ".join(done.out.split())
    assert recommended_for in " ".join(done.out.split())
    own = make_config({"task": "mine"})
    for config, said in ((own, "try another"), (make_config(recommended("digits")), "try more epochs")):
        [(_, line)] = learnt_nothing(config, {"test_accuracy": 0.1, "chance": 0.1})
        assert said in line
        assert not learnt_nothing(config, {"test_accuracy": 0.11, "chance": 0.1})


def test_chance_is_the_commonest_class_and_what_luck_adds() -> None:
    y = torch.tensor([0] * 60 + [1] * 40)
    assert fit.chance(y) == pytest.approx(0.6 + 2 * (0.6 * 0.4 / 100) ** 0.5)
    assert fit.chance(y[:60]) == 1.0
    # Of nets that always say one class, in other test sets of that size, hardly one exceeds it.
    lucky = torch.distributions.Binomial(100, torch.tensor(0.6)).sample((10_000,)) / 100
    assert (lucky > fit.chance(y)).double().mean() < 0.03


RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


@pytest.mark.parametrize(
    "set_by",
    [dict.fromkeys(RANKS, "1"), {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "x"}],
    ids=["ranks", "slurm"],
)
def test_ranks_in_the_environment_of_a_lone_process_are_not_believed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_by: dict[str, str]
) -> None:
    for name, value in set_by.items():
        monkeypatch.setenv(name, value)
    cli.train(tmp_path / "run", "--epochs=1")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert "already holds a run" in cli.refuses("train", *TINY, "--seed=1", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_notebooks_backend_and_closed_streams_are_no_hindrance(tmp_path: Path) -> None:
    run, picture = tmp_path / "run", tmp_path / "c.png"
    train = ("train", *TINY, "--epochs=1", "--out", str(run))
    plot = ("plot", str(run), "--kind=curves", "--out", str(picture))
    both = f"from ctrnn_cli.main import main\nfor c in {train, plot}: main(c, standalone_mode=False)"
    env = {**os.environ, "MPLBACKEND": "module://no_notebook_is_here", "PYTHON": sys.executable}
    subprocess.run('"$PYTHON" -c "$BOTH" >&- 2>&-', shell=True, check=True, env=env | {"BOTH": both})
    assert (run / "summary.json").exists()
    assert picture.exists()


def test_without_stderr_the_summary_is_printed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)  # as of a process that starts with it closed
    assert str(tmp_path / "run") in cli.train(tmp_path / "run", "--epochs=1").out


def test_brackets_in_the_name_of_a_folder_are_no_markup(cli: Cli, tmp_path: Path) -> None:
    for name in ("run[/x]", "run[lr=0.1]", "[bold]run:smile:"):
        done = cli.train(tmp_path / name, "--epochs=1")
        assert name in done.out
        assert "Euclidean distances may grow" in done.out
        assert cli("evaluate", tmp_path / name, "--substeps=2").code == 0
        assert str(tmp_path / name) in cli("certify", tmp_path / name).out.replace("\n", "")


def test_a_logger_that_is_not_installed_is_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("TENSORBOARD", "TENSORBOARDX"):  # as it finds when they are not there
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard._{module}_AVAILABLE", False)
    error = cli.refuses("train", *TINY, "--logger", "tensorboard", "--out", tmp_path / "run")
    assert "logger 'tensorboard' is not installed. Use pip install" in error


def test_a_further_process_of_a_distributed_run_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    config = make_config({"device": "cpu", "devices": 2, "nodes": 2})
    assert fit.make_fabric(config).is_global_zero
    for name, rank, first in (
        ("LOCAL_RANK", 0, True),
        ("LOCAL_RANK", 1, False),
        ("NODE_RANK", 1, False),
    ):
        with monkeypatch.context() as patch:
            patch.setenv("LOCAL_RANK", "0")
            patch.setenv(name, str(rank))
            assert fit.make_fabric(config).is_global_zero == first


SMALL = ("--device=cpu", "--depth=1", "--width=4", "--threads=1")


def test_a_task_starts_from_what_is_recommended_for_it_and_says_so_and_what_it_takes(
    cli: Cli, tmp_path: Path
) -> None:
    write_mnist(tmp_path)
    run = tmp_path / "run"
    done = cli("train", "--task=psmnist", "--data-dir", tmp_path, *SMALL, "--fast", "--out", run)
    assert done.code == 0
    sizes = "model deep-adadiag, depth 1, width 4, solver exponential-euler"
    assert f"starts from what is recommended for psmnist: {sizes}" in done.err
    assert re.search(r"about \d+ s on this machine: 2 epochs of 2 steps of [\d.e-]+ s", done.err)
    config = read_yaml(run / "config.yaml")
    recipe = recipes()["deep-psmnist"]["settings"]
    assert {**recipe, "depth": 1, "width": 4, **FAST}.items() <= config.items()
    assert (config["resize"], len(read_table(run / "metrics.csv"))) == (FAST_SIDE, 2)


@pytest.mark.parametrize("task", ["smnist", "psmnist-42-raw", "scifar10-rgb", "images", "series:X_eq"])
def test_every_task_has_a_recipe_that_uses_all_its_settings(task: str) -> None:
    config = make_config({"task": task}, recommended(task))
    assert config.model == "deep-adadiag"
    assert not config.unused()


def test_a_model_of_another_family_takes_only_the_training_settings_that_are_recommended() -> None:
    assert set(RECOMMENDED.values()) <= recipes().keys()
    assert recommended("smnist", "deep-lru") == recommended("smnist")
    other = recommended("smnist", "svd-combo")
    assert other == {key: value for key, value in recommended("smnist").items() if key in other}
    assert {"epochs", "learning_rate"} <= other.keys()
    assert not {"model", "dt", "solver", "depth"} & other.keys()
    assert recommended("digits", "absolute") == recommended("digits")
    assert recommended("digits") | {"task": "digits"} == recipes()["digits"]["settings"]
    assert recommended("mine") == recommended("smnisty") == {}
    assert recommended("digits", "lstm") == recommended("digits")


@pytest.mark.parametrize("task", ["digits", "smnist", "series:X"])
@pytest.mark.parametrize("model", [name for name, model in MODELS.items() if model.gate])
def test_a_model_keeps_a_step_of_its_own(task: str, model: str) -> None:
    config = make_config(
        {"task": task, "modules": 2, "units": 2}, recommended(task, model), {"model": model}
    )
    assert (config.solver, config.dt) == ("euler", 1.0)
    model_from(config, 1, 10)


@pytest.mark.parametrize("source", ["batches", "zip"])
def test_the_headline_commands_work_on_batches_and_on_copies_and_name_what_was_read(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    data, run, picture = tmp_path / "data", tmp_path / "run", tmp_path / "s.png"
    if source == "batches":
        write_cifar(data, monkeypatch)
    else:
        data.mkdir()
        copies = write_images(tmp_path / "set", {"train": 4, "test": 2}, CIFAR10, (32, 32))
        zip_folder(copies, data / "set.zip")
    read = {"batches": "scifar10-rgb", "zip": "scifar10-rgb, CIFAR-10 (images)"}[source]
    where = ("--data-dir", data)
    trained = cli("train", "--task", "scifar10", "--fast", *where, *SMALL, "--out", run)
    assert f"deep-adadiag on {read} " in trained.out
    tested = cli("evaluate", run, "--solver", "dopri5")
    assert f"deep-adadiag on {read} (resized to 7 x 7" in tested.out
    assert cli("certify", run).code == 0
    assert f"on {read} (val)" in cli("spectrum", run, "--plot", picture).out
    assert picture.stat().st_size > 1000
    assert f"on {read} (val)" in cli("lyapunov", run, "--steps=50", "--transient=5").out
