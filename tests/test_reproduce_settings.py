"""The settings that experiments need: certify_every, test_every_epoch, keep_epochs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cli_tools import TINY, Cli, table
from cli_tools import single as single
from ctrnn_assembly.data.task import Split
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.training import fit
from ctrnn_assembly.training.batches import noisy
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.run import Run, read_summary, read_table


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_certificates_come_every_so_many_epochs_and_last(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cli.train(run, "--epochs=5", "--certify-every=2")
    assert [row["rate"] != "" for row in table(run)] == [False, True, False, True, True]
    assert [row["certified"] for row in table(run)] == ["", "1", "", "1", "1"]
    assert [" rate " in line for line in done.err.splitlines() if line.startswith("epoch")] == [
        False, True, False, True, True
    ]  # fmt: skip
    assert np.isfinite(Run.open(run).column("certified")).tolist() == [False, True, False, True, True]
    whole = tmp_path / "whole"
    cli.train(whole, "--epochs=5")
    assert table(whole)[3] == table(run)[3]  # nothing else changes
    assert (whole / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_the_last_epoch_of_an_early_stop_has_a_certificate(cli: Cli, tmp_path: Path) -> None:
    settings = ("--epochs=9", "--certify-every=9", "--patience=2", "--learning-rate=1e-6")
    cli.train(tmp_path / "run", *settings)
    rows = table(tmp_path / "run")
    assert len(rows) < 9
    assert [row["rate"] != "" for row in rows] == [False] * (len(rows) - 1) + [True]


@pytest.mark.parametrize("resumed_after", [None, 51])
def test_a_plateau_ends_a_run_after_fifty_epochs_resumed_or_not(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed_after: int | None
) -> None:
    def validation(net: object, batches: object) -> torch.Tensor:  # flat from epoch 48 on
        epoch = len(read_table(tmp_path / "run" / "metrics.csv"))
        if epoch == resumed_after and not resumed:
            raise KeyboardInterrupt
        return torch.tensor([1000.0, 500.0 + 10 * max(0, 48 - epoch), 1000.0], dtype=torch.float64)

    resumed: list[bool] = []
    monkeypatch.setattr(fit, "evaluate", validation)
    tiny = ("--epochs=90", "--certify-every=90", "--plateau", "--limit-train=8", "--batch-size=8")
    first = cli("train", *TINY, *tiny, "--out", tmp_path / "run")
    if resumed_after is not None:
        assert first.code == 130
        resumed.append(True)
        assert cli("train", "--resume", tmp_path / "run").code == 0
    # Epochs 48 to 52 are the first five alike; their certificate is the run's only one.
    rows = table(tmp_path / "run")
    assert len(rows) == 53
    assert [row["rate"] != "" for row in rows] == [False] * 52 + [True]


def test_pictures_of_such_runs_are_drawn(cli: Cli, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "certificate.png"
    cli.train(run, "--epochs=5", "--certify-every=2")
    assert cli("plot", run, "--kind=certificate", "--out", file).code == 0
    assert file.stat().st_size > 10_000


def test_a_certificate_that_is_required_is_made_every_epoch() -> None:
    with pytest.raises(ConfigError, match="certify_every must be 1 where require_certificate is discr"):
        make_config({"certify_every": 2, "require_certificate": "discrete"})


@pytest.mark.parametrize("model", ["svd-combo", "lstm"])
def test_the_test_accuracy_is_reported_and_selects_nothing(cli: Cli, tmp_path: Path, model: str) -> None:
    plain, tested = tmp_path / "plain", tmp_path / "tested"
    cli.train(plain, "--epochs=4", "--model", model)
    cli.train(tested, "--epochs=4", "--model", model, "--test-every-epoch")
    assert "test_accuracy" not in table(plain)[0]
    rows = table(tested)
    shown = [float(row.pop("test_accuracy")) for row in rows]
    assert rows == table(plain)
    assert (plain / "model.safetensors").read_bytes() == (tested / "model.safetensors").read_bytes()
    summary = read_summary(tested)
    assert shown[summary["best_epoch"]] == summary["test_accuracy"]


def test_weights_of_chosen_epochs_are_kept(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cli.train(run, "--epochs=4", "--keep-epochs=1,4,9")
    kept = sorted(path.name for path in (run / "weights").iterdir())
    assert kept == ["epoch-0001.safetensors", "epoch-0004.safetensors"]
    model = Run.open(run, epoch=4).model
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, last[name]), name


def test_the_epoch_before_the_first_is_not_one_to_keep() -> None:
    with pytest.raises(ConfigError, match=r"keep_epochs.0 must be greater than or equal to 1; got 0"):
        make_config({"keep_epochs": [0]})


def test_a_final_run_trains_on_everything_and_keeps_the_last_epoch(cli: Cli, tmp_path: Path) -> None:
    args = ("train", "--model", "rnn", "--units", 4, "--modules", 1, "--epochs", 4, "--limit-train", 60)
    result = cli(*args, "--fit-all", "--test-every-epoch", "--out", tmp_path / "run")
    assert "nothing held out" in result.out
    summary = read_summary(tmp_path / "run")
    assert summary["val_accuracy"] is None
    assert summary["best_epoch"] == 3
    assert summary["test_accuracy"] == pytest.approx(
        float(table(tmp_path / "run")[-1]["test_accuracy"]), abs=1e-6
    )
    task = Run.open(tmp_path / "run").task
    assert len(task.train.joined(task.val)) == len(task.train) + len(task.val)
    with pytest.raises(ConfigError, match="no validation data to stop by; got patience 3"):
        make_config({"fit_all": True, "patience": 3})


def test_splits_of_different_lengths_are_joined() -> None:
    x, y = torch.zeros(2, 5, 1), torch.tensor([0, 1])
    whole, short = Split(x, y), Split(x + 1, y, torch.tensor([3, 5]))
    assert whole.joined(whole).lengths is None
    both = whole.joined(short)
    assert both.lengths is not None
    assert both.lengths.tolist() == [5, 5, 3, 5]
    assert both.x[:, 0, 0].tolist() == [0, 0, 1, 1]


def test_noise_is_that_of_each_channel_and_of_training_only(cli: Cli, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    u = torch.randn(400, 30, 2, generator=g) * torch.tensor([1.0, 10.0])
    lengths = torch.randint(5, 31, (400,), generator=g)
    u[torch.arange(30) >= lengths[:, None]] = 1e6  # what is not valid has no say in the scale
    added = noisy(u, lengths, 0.5, g) - u
    valid = torch.arange(30) < lengths[:, None]
    assert torch.allclose(added[valid].std(0), torch.tensor([0.5, 5.0]), rtol=0.05)
    assert torch.equal(noisy(u, None, 0.0, g), u)
    args = ("train", "--model", "rnn", "--units", 4, "--modules", 1, "--epochs", 1, "--limit-train", 60)
    for name, noise in (("none", 0.0), ("some", 0.5), ("again", 0.5)):
        cli(*args, "--input-noise", noise, "--out", tmp_path / name)
    none, some, again = (table(tmp_path / n)[0]["train_loss"] for n in ("none", "some", "again"))
    assert none != some
    assert some == again  # drawn by seed and epoch


def test_a_negative_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="input_noise must be greater than or equal to 0"):
        make_config({"input_noise": -1})
