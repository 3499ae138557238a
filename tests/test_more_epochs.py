"""A finished run goes on with more epochs, and a new one starts from the weights of another."""

from pathlib import Path

import pytest
import torch

from cli_tools import TINY, Cli, assert_same_run, single  # noqa: F401
from ctrnn_assembly.training.run import Run, read_summary

SETTINGS = (*TINY, "--model=adadiag-tanh", "--schedule=constant", "--learning-rate=0.01", "--threads=1")


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 2 epochs."""
    from ctrnn_cli.main import main

    run = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.raises(SystemExit):
        main(["train", *SETTINGS, "--epochs=2", "--out", str(run)])
    return run


def copy(run: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, to))


def test_a_finished_run_with_more_epochs_is_the_longer_run(cli, finished, tmp_path):
    """Bit for bit, where the rate does not depend on the number of epochs."""
    run, whole = copy(finished, tmp_path / "run"), tmp_path / "whole"
    assert cli("train", *SETTINGS, "--epochs=4", "--out", whole).code == 0
    done = cli("train", "--resume", run, "--epochs=4")
    assert done.code == 0, done.err
    assert_same_run(whole, run)
    assert Run.open(run).config.epochs == read_summary(run)["epochs"] == 4
    assert "is finished. Use more --epochs" in cli.refuses("train", "--resume", run)
    assert "a resumed run keeps its settings; got epochs 3" in cli.refuses(
        "train", "--resume", run, "--epochs=3"
    )


def test_stopped_while_it_goes_on_it_is_resumed_without_naming_the_epochs(
    cli, finished, tmp_path, monkeypatch
):
    from ctrnn_assembly.training import fit

    run, whole = copy(finished, tmp_path / "run"), tmp_path / "whole"
    assert cli("train", *SETTINGS, "--epochs=4", "--out", whole).code == 0
    real, left = fit.train_step, iter(range(2))

    def train_step(*given: object) -> torch.Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(fit, "train_step", train_step)
        assert cli("train", "--resume", run, "--epochs=4").code == 130
    assert read_summary(run) is None
    assert cli("train", "--resume", run).code == 0
    assert_same_run(whole, run)


def test_a_run_starts_from_the_weights_and_settings_of_another(cli, finished, tmp_path):
    new = tmp_path / "new"
    done = cli("train", "--init-from", finished, "--epochs=1", "--learning-rate=1e-12", "--out", new)
    assert done.code == 0, done.err
    assert f"starts from {finished}" in done.err
    first, then = Run.open(finished), Run.open(new)
    assert then.config.model == "adadiag-tanh"
    for name, x in first.model.state_dict().items():
        torch.testing.assert_close(then.model.state_dict()[name], x, rtol=1e-5, atol=1e-8)
    assert then.summary["certificate_initial"]["rate"] == first.summary["certificate"]["rate"]
    assert then.config.init_from == str(finished)


def test_weights_of_another_size_or_of_no_run_are_refused(cli, finished, tmp_path):
    refused = cli.refuses("train", "--init-from", finished, "--units=5", "--out", tmp_path / "a")
    assert "cannot be started from" in refused
    assert "Use its model and its sizes" in refused
    assert "there is no run folder" in cli.refuses("train", "--init-from", tmp_path / "none")
    assert not (tmp_path / "a" / "config.yaml").exists()
