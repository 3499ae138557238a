"""Run folders: written whole or not at all, and read back with every damage named."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_tools import Cli
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.run import (
    certificate_summary,
    load_checkpoint,
    load_weights,
    model_certificate,
    model_from,
    read_config,
    read_summary,
    save_weights,
    write,
)

SMALL = make_config({"modules": 2, "units": 4})


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    cli.train(folder, "--epochs=1")
    return folder


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


@pytest.mark.parametrize("model", ["svd-combo", "sparse-combo", "triangular", "lstm"])
def test_weights_round_trip(tmp_path: Path, model: str) -> None:
    config = SMALL.model_copy(update={"model": model, "density": 0.4})
    saved = model_from(config, 1, 3)
    save_weights(tmp_path / "w", saved)
    loaded = model_from(config.model_copy(update={"seed": 1}), 1, 3)
    load_weights(tmp_path / "w", loaded)
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
    assert ("there are no weights" if damage == "missing" else "not a readable safetensors") in error


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(cli: Cli, run: Path, bad: float) -> None:
    state = load_file(run / "model.safetensors")
    state["readout.weight"][0, 0] = bad
    save_file(state, run / "model.safetensors")
    assert "holds NaN or infinite values, or complex ones, in 'readout.weight'" in cli.refuses(
        "evaluate", run
    )


@pytest.mark.parametrize("other", [{"units": 5}, {"model": "lstm"}, {"modules": 3}])
def test_weights_of_another_model_are_refused(cli: Cli, run: Path, other: dict) -> None:
    save_weights(run / "model.safetensors", model_from(SMALL.model_copy(update=other), 1, 10))
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
        torch.save({"state_dict": replace}, file)  # a function: must not be unpickled
    elif damage == "other":
        del stored["state_dict"]["model.readout.weight"]
        torch.save(stored, file)
    else:
        stored["state_dict"]["model.readout.weight"][0, 0] = math.nan
        torch.save(stored, file)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    error = cli.refuses("train", "--resume", run)
    assert str(file) in error
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_missing_best_checkpoint_is_named(cli: Cli, run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "checkpoints" / "best.ckpt").unlink()
    assert "best.ckpt is not a readable checkpoint" in cli.refuses("train", "--resume", run)


def test_a_damaged_summary_is_refused_and_can_be_written_again(cli: Cli, run: Path) -> None:
    summary = read_summary(run)
    (run / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not readable JSON"):
        read_summary(run)
    assert "Delete it" in cli.refuses("train", "--resume", run)
    (run / "summary.json").unlink()
    with pytest.raises(DataError, match="is not finished"):
        read_summary(run)
    assert cli("train", "--resume", run).code == 0
    assert read_summary(run) == summary


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run folder"):
        read_config(tmp_path / "none")


def test_load_checkpoint_puts_the_weights_into_the_model(run: Path) -> None:
    model, other = (model_from(read_config(run), 1, 10) for _ in range(2))
    load_checkpoint(run / "checkpoints" / "best.ckpt", model)
    load_weights(run / "model.safetensors", other)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("gain", [1.0, 1e30])
@pytest.mark.parametrize("model", ["svd-combo", "published-sparse-combo", "unconstrained", "rnn"])
def test_the_certificate_is_strict_json(model: str, gain: float) -> None:
    changes = {"model": model, "coupling_kind": "free", "coupling_scale": gain, "density": 0.4}
    certificate = model_certificate(model_from(SMALL.model_copy(update=changes), 1, 3))
    text = json.dumps(certificate_summary(certificate), allow_nan=False)
    assert json.loads(text)["certified"] in (True, False)
