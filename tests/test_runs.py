"""Run folders: written whole or not at all, and read back with every damage named."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_tools import TINY, Cli
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.training.config import make_config, recipe
from ctrnn_assembly.training.run import (
    Run,
    RunBusyError,
    locked,
    model_from,
    read_config,
    read_summary,
    read_weights,
    save_weights,
    write,
)
from ctrnn_cli.main import main

SMALL = make_config({"modules": 2, "units": 4})


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    main(["train", *TINY, "--epochs=1", "--out", str(folder)], standalone_mode=False)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_write_leaves_the_old_file_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "below" / "a.txt"
    write(file, "old")
    write(file, b"older")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(file, "new")
    assert caught.value.filename == str(file)
    assert file.read_text() == "older"
    assert os.listdir(file.parent) == ["a.txt"]


def test_write_keeps_what_is_no_plain_file(tmp_path: Path) -> None:
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(pipe, "through")
    assert os.read(reader, 100) == b"through"
    assert pipe.is_fifo()
    os.close(reader)
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    write(link, "new")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("model", ["svd-combo", "sparse-combo", "triangular", "lstm"])
def test_weights_round_trip(tmp_path: Path, model: str) -> None:
    config = SMALL.model_copy(update={"model": model, "density": 0.4})
    saved = model_from(config, 1, 3)
    save_weights(tmp_path / "w", saved)
    loaded = model_from(config.model_copy(update={"seed": 1}), 1, 3)
    read_weights(tmp_path / "w").load(loaded)
    u = torch.randn(2, 5, 1)
    assert torch.equal(loaded(u), saved(u))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise", "folder"])
def test_damaged_weights_are_refused(cli: Cli, run: Path, damage: str) -> None:
    weights = run / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if damage == "folder":
        weights.mkdir()
    elif damage != "missing":
        damaged = {"empty": b"", "cut": content[: len(content) // 2], "noise": os.urandom(999)}
        weights.write_bytes(damaged[damage])
    error = cli.refuses("evaluate", run)
    assert str(weights) in error
    said = {"missing": "there are no weights", "folder": "Is a directory"}
    assert said.get(damage, "is not a readable safetensors file: it is cut short, damaged or") in error
    assert "eserializ" not in error


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(cli: Cli, run: Path, bad: float) -> None:
    state = load_file(run / "model.safetensors")
    state["readout.weight"][0, 0] = bad
    save_file(state, run / "model.safetensors")
    (run / "summary.json").unlink()  # whose hash tells before
    assert "holds NaN or infinite values, or complex ones, in 'readout.weight'" in cli.refuses(
        "evaluate", run
    )


@pytest.mark.parametrize("other", [{"units": 5}, {"model": "lstm"}, {"modules": 3}])
def test_weights_of_another_model_are_refused(cli: Cli, run: Path, other: dict) -> None:
    save_weights(run / "model.safetensors", model_from(SMALL.model_copy(update=other), 1, 10))
    (run / "summary.json").unlink()  # whose hash tells before
    error = cli.refuses("evaluate", run)
    assert "does not fit the model of its config.yaml" in error
    assert len(error) < 600


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "holds no run: it has no config.yaml"),
        ("epochs: [", "cannot be read as YAML"),
        ("", "must hold `key: value` lines"),
        ("epoks: 3", "got 'epoks'. Did you mean 'epochs'?"),
        ("model: nope", "model must be one of"),
        ("task: nope", "task must be one of"),
        ("dt: .nan", "dt must be a finite number"),
    ],
)
def test_a_damaged_configuration_is_refused(
    cli: Cli, run: Path, content: str | None, reason: str
) -> None:
    (run / "config.yaml").unlink()
    if content is not None:
        (run / "config.yaml").write_text(content, encoding="utf-8")
    assert reason in cli.refuses("evaluate", run)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("damage", ["cut", "noise", "pickle", "other", "nan"])
def test_a_damaged_checkpoint_is_refused(cli: Cli, run: Path, name: str, damage: str) -> None:
    (run / "summary.json").unlink()
    file = run / "checkpoints" / name
    stored = torch.load(file, weights_only=True)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "noise":
        file.write_bytes(os.urandom(999))
    elif damage == "pickle":
        torch.save({"model": replace}, file)  # a function: must not be unpickled
    elif damage == "other":
        del stored["model"]["readout.weight"]
        torch.save(stored, file)
    else:
        stored["model"]["readout.weight"][0, 0] = math.nan
        torch.save(stored, file)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    error = cli.refuses("train", "--resume", run)
    assert str(file) in error
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "damage", ["shape", "nan", "missing", "text", "further", "none", "empty", "settings"]
)
def test_a_damaged_optimiser_state_is_refused(cli: Cli, run: Path, damage: str) -> None:
    (run / "summary.json").unlink()
    file = run / "checkpoints" / "last.ckpt"
    stored = torch.load(file, weights_only=True)
    moments = stored["optimizer"]["state"]
    if damage == "shape":
        moments[0]["exp_avg"] = torch.zeros(3)
    elif damage == "nan":
        moments[0]["exp_avg_sq"].fill_(math.nan)
    elif damage == "missing":
        del moments[0]["exp_avg_sq"]
    elif damage == "text":
        moments[0]["step"] = "one"
    elif damage == "further":
        moments[99] = moments[0]
    elif damage == "settings":  # those of the configuration hold
        stored["optimizer"]["param_groups"][0] |= {"betas": "none", "params": [5]}
    else:
        stored["optimizer"] = {"none": None, "empty": {}}[damage]
    torch.save(stored, file)
    if damage == "settings":
        assert cli("train", "--resume", run).code == 0
        return
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    error = cli.refuses("train", "--resume", run)
    assert f"{file} does not fit the optimiser of its config.yaml" in error
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_missing_best_checkpoint_is_named(cli: Cli, run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "checkpoints" / "best.ckpt").unlink()
    assert "there are no weights at" in cli.refuses("train", "--resume", run)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_checkpoint_that_is_cut_short_is_refused_in_one_sentence(
    cli: Cli, run: Path, size: int
) -> None:
    (run / "summary.json").unlink()
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:size])
    error = cli.refuses("train", "--resume", run)
    what = f"{last} is not a readable checkpoint: it is cut short, damaged or of another program"
    assert f"{what}. Use an intact copy, or start a new run with its config.yaml." in error


def test_a_damaged_summary_is_refused_and_can_be_written_again(cli: Cli, run: Path) -> None:
    summary = read_summary(run)
    (run / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not readable JSON"):
        read_summary(run)
    assert "Delete it" in cli.refuses("train", "--resume", run)
    (run / "summary.json").unlink()
    assert read_summary(run) is None
    assert cli("train", "--resume", run).code == 0
    assert read_summary(run) == summary


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run folder"):
        read_config(tmp_path / "none")


def test_a_run_is_read_once_and_its_hash_is_of_the_bytes_that_are_loaded(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, reads, real = run / "model.safetensors", [], Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        reads.append(self.name)
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    opened = Run.open(run)
    assert reads == []
    digest = hashlib.sha256(real(file)).hexdigest()
    assert opened.weights.as_dict() == {"kind": "trained", "file": str(file), "sha256": digest}
    first = opened.model
    file.write_bytes(b"noise")  # what was hashed is what is loaded and certified, whatever happens
    for a, b in zip(first.parameters(), opened.build().parameters(), strict=True):
        assert torch.equal(a, b)
    assert opened.certificate.certified
    assert reads == ["model.safetensors"]


def test_a_run_that_is_not_finished_has_the_weights_of_its_last_epoch(run: Path) -> None:
    trained = Run.open(run)
    assert (trained.weights.kind, trained.summary["epochs"], len(trained.epochs)) == ("trained", 1, 1)
    (run / "summary.json").unlink()
    (run / "model.safetensors").rename(run / "m")
    going = Run.open(run)
    assert (going.weights.kind, going.summary) == ("checkpoint", None)
    file = run / "checkpoints" / "last.ckpt"
    assert going.weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    for a, b in zip(trained.model.parameters(), going.model.parameters(), strict=True):
        assert torch.equal(a, b)  # of one epoch
    assert going.title.endswith(", last epoch so far")
    initial = Run.open(run, initial=True)
    assert initial.weights.as_dict() == {"kind": "initial", "file": None, "sha256": None}
    file.unlink()
    with pytest.raises(DataError, match="has no weights yet"):
        _ = Run.open(run).weights
    assert Run.open(run).column("val_accuracy").tolist() == going.column("val_accuracy").tolist()


def test_a_source_is_a_run_a_file_or_a_recipe_with_changes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("modules: 2\nunits: 4\n", encoding="utf-8")
    from_file = Run.open(tmp_path / "c.yaml", dt=0.5, solver=None)
    assert (from_file.config.dt, from_file.config.solver, from_file.path) == (0.5, "euler", None)
    assert Run.open("digits").config == make_config(recipe("digits"))
    u, y, lengths = Run.open(tmp_path / "c.yaml").inputs("train", 3)
    assert (u.shape, u.dtype, y.shape, lengths) == ((3, 64, 1), torch.float64, (3,), None)
    model = from_file.build(double=True)
    assert model(u).shape == (3, 10)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert from_file.build(data=False).readout.out_features == 2  # reads no data
    with pytest.raises(
        ConfigError,
        match=r"got 'x': there is no run folder or file of that name, and a recipe must be one of ",
    ):
        Run.open("x")
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        Run.open("digit")
    with pytest.raises(ConfigError, match=r"samples must be in \[1, "):
        from_file.inputs("val", 0)


def test_a_run_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    hold = f"import filelock; lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire()"
    ask = [sys.executable, "-c", f"{hold}; print('held', flush=True); input()"]
    with locked(tmp_path), locked(tmp_path):  # the same process may hold it twice
        pass
    assert list(tmp_path.iterdir()) == []
    with subprocess.Popen(ask, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunBusyError, match="another process is training"), locked(tmp_path):
            pass
        other.communicate(b"\n")  # it ends
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("gain", [1.0, 1e30])
@pytest.mark.parametrize("model", ["svd-combo", "published-sparse-combo", "unconstrained", "rnn"])
def test_the_certificate_is_strict_json(model: str, gain: float) -> None:
    changes = {"model": model, "coupling_kind": "free", "coupling_scale": gain, "density": 0.4}
    certificate = model_from(SMALL.model_copy(update=changes), 1, 3).core.certificate()
    text = json.dumps(certificate.as_dict(), allow_nan=False)
    assert json.loads(text)["certified"] in (True, False)
