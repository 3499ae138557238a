"""Training keeps the certificate: every epoch's is logged, and a run can be required not to lose it. The
oracle is a step's exact factor, over all slopes."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cli_tools import TINY, Cli, table
from ctrnn_assembly.certificates import certify
from ctrnn_assembly.layers import CTRNN
from ctrnn_assembly.models import build_model
from ctrnn_assembly.training.fit import certificate_columns
from ctrnn_assembly.training.run import (
    model_from,
    read_config,
    read_weights,
)
from oracles import array, vertices

# Certified at the start, and by its third epoch driven out of the Euler step's reach.
LOSING = (
    "--solver=euler", "--coupling-scale=1", "--learning-rate=0.5", "--warmup-epochs=0", "--epochs=3",
    "--model=adadiag-clip",
)  # fmt: skip
STRONG = ("--coupling-scale=30", "--learning-rate=0.1", "--epochs=2", "--model=adadiag-tanh")


@pytest.fixture(autouse=True)
def as_users_train(seeded: None) -> None:
    """In float32; `seeded` restores the default dtype."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in table(run)]


def euler_factor(field: CTRNN, dt: float) -> float:
    """max over all slopes in [0, 1] of ||I + dt J|| in the metric tau M: convex, so at a vertex."""
    terms, metric = field.terms(), field.metric()
    W, tau = array(terms.weight()), array(terms.tau)
    n = len(tau)
    L = array(terms.L)
    inside = np.array([terms.pre.units[k].name == "identity" for k in range(n)])
    D = vertices([(0.0, 1.0)] * n)
    J = np.where(inside, D, 1.0)[:, :, None] * W * np.where(inside, 1.0, D)[:, None, :] - np.eye(n) + L
    theta = array(metric.theta()) * np.sqrt(tau)
    step = theta @ (np.eye(n) + dt * J / tau[:, None]) @ np.linalg.inv(theta)
    return float(np.linalg.norm(step, 2, axis=(1, 2)).max())


def trained_factor(run: Path, file: str) -> float:
    """The exact factor of the weights in a run's file."""
    config = read_config(run)
    model = model_from(config, 1, 10)
    read_weights(run / file).load(model)
    return euler_factor(model.core, config.dt)


def test_every_epoch_says_what_is_certified(cli: Cli, tmp_path: Path) -> None:
    done = cli.train(tmp_path / "run", *LOSING, "--json")
    rows, summary = table(tmp_path / "run"), json.loads(done.out)
    assert [row["certified"] for row in rows] == ["1", "1", "1"]  # in continuous time
    assert rows[0]["step_certified"] == "1"
    assert rows[-1]["step_certified"] == "0"
    for row in rows:
        assert float(row["rate"]) >= 0.01 - 1e-6
        is_certified = row["step_certified"] == "1"
        assert (float(row["step_factor"]) < 1) == is_certified
        assert (float(row["max_dt"]) >= 0.03) == is_certified
    lines = [line for line in done.err.splitlines() if line.startswith("epoch")]
    assert "step certified (factor 0.99" in lines[0]
    assert "step not certified (factor 1.0" in lines[-1]
    assert summary["certificate_initial"]["discrete"]["certified"] is True
    before = model_from(read_config(tmp_path / "run"), 1, 10).core.certificate()
    assert summary["certificate_initial"] == before.as_dict()


def test_the_table_has_numbers_or_nothing(cli: Cli, tmp_path: Path) -> None:
    cli.train(tmp_path / "lstm", "--epochs=1", "--model=lstm")
    row = table(tmp_path / "lstm")[0]
    names = ("certified", "rate", "step_certified", "step_factor", "max_dt")
    assert [row[name] for name in names] == ["0", "", "0", "", "0.0"]
    done = cli.train(tmp_path / "exact", "--epochs=1", "--solver=exponential-euler")
    row = table(tmp_path / "exact")[0]
    assert (row["step_certified"], row["max_dt"]) == ("1", "")  # every dt
    assert "step certified" in done.err
    done = cli.train(tmp_path / "rk4", "--epochs=1", "--solver=rk4", "--dt=0.01", "--coupling-scale=1")
    assert [table(tmp_path / "rk4")[0][name] for name in names[2:]] == ["0", "", "0.0"]
    assert "step not certified  " in done.err


def test_numbers_that_are_not_finite_stay_out_of_the_table() -> None:
    field = build_model("svd-combo", 1, 3, modules=2, units=2).core.field
    torch.nn.init.constant_(field.coupling.K.values, math.nan)
    columns = certificate_columns(certify(field, dt=0.03))
    nothing = {"certified": 0, "rate": None, "step_certified": 0, "step_factor": None, "max_dt": 0.0}
    assert columns == nothing


def test_a_run_that_would_lose_the_step_stops_before_it_is_saved(cli: Cli, tmp_path: Path) -> None:
    free, run = tmp_path / "free", tmp_path / "run"
    cli.train(free, *LOSING)
    lost = column(free, "step_certified").index(0)
    assert lost > 0
    error = cli.refuses("train", *TINY, "--out", run, *LOSING, "--require-certificate=discrete")
    assert f"epoch {lost + 1} lost the discrete certificate: the bound on the step's factor is" in error
    assert "--solver imex, or more --substeps" in error
    assert "that of the epoch before is kept" in error
    assert error.count(". ") <= 4
    assert table(run) == table(free)[: lost + 1]  # the row shows what happened
    saved = {file.name: file.read_bytes() for file in (run / "checkpoints").iterdir()}
    assert saved.keys() == {"best.ckpt", "last.ckpt"}
    for name in saved:
        assert trained_factor(run, f"checkpoints/{name}") < 1
    assert len(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["rows"]) == lost
    # It goes on under the same condition, to the same end.
    assert cli.refuses("train", "--resume", run) == error
    assert saved == {file.name: file.read_bytes() for file in (run / "checkpoints").iterdir()}
    other = "--require-certificate=none"
    assert "a resumed run keeps its settings" in cli.refuses("train", "--resume", run, other)


def test_a_run_that_loses_the_continuous_certificate_stops(cli: Cli, tmp_path: Path) -> None:
    settings = ("--model=unconstrained", "--learning-rate=0.5", "--warmup-epochs=0", "--epochs=4")
    required = (*TINY, *settings, "--require-certificate=continuous")
    error = cli.refuses("train", *required, "--out", tmp_path / "run")
    assert "lost the continuous certificate: module" in error
    assert "is not shown to contract in its metric" in error
    assert table(tmp_path / "run")[-1]["certified"] == "0"


@pytest.mark.parametrize("gain", [1, 300])
def test_imex_is_certified_whatever_the_coupling(cli: Cli, tmp_path: Path, gain: int) -> None:
    run = tmp_path / "run"
    settings = (*LOSING[2:], f"--coupling-scale={gain}", "--solver=imex")
    cli.train(run, *settings, "--require-certificate=discrete")
    assert column(run, "step_certified") == [1, 1, 1]
    if gain == 300:
        assert json.loads((run / "summary.json").read_text())["certificate"]["coupling"]["norm"] > 100
        refused = (*settings[:-1], "--solver=euler", "--require-certificate=discrete")
        error = cli.refuses("train", *TINY, "--out", tmp_path / "other", *refused)
        assert "before training; the bound on the step's factor is" in error
        assert not (tmp_path / "other").exists()


REQUIRE = "--require-certificate=discrete"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            [REQUIRE, "--dt=3", "--coupling=none"],
            r"the bound on the step's factor is 4\..*the largest certified dt is 1\.",
        ),
        ([REQUIRE, "--dt=3"], "the model must have the discrete certificate before training"),
        (
            [REQUIRE, "--coupling-scale=30"],
            r"the bound on the step's factor is.*Use --solver imex, or more --substeps\.",
        ),
        ([REQUIRE, "--solver=rk4"], "no proof is known for steps of rk4. Use --solver euler or imex."),
        ([REQUIRE, "--solver=imex", "--dt=3"], "the largest certified dt is 1"),
        ([REQUIRE, "--model=lstm"], "LSTM is a baseline: no certificate is defined for it"),
        ([REQUIRE, "--coupling-kind=free", "--coupling-scale=9"], "the coupling costs more than"),
        (["--require-certificate=continuous", "--model=rnn"], "VanillaRNN is a baseline"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    cli: Cli, tmp_path: Path, options: list[str], reason: str
) -> None:
    quick = "--model=adadiag-tanh"  # quickly certified: without couplings its metric is diagonal
    settings = (*TINY, "--solver=euler", "--coupling-scale=1", quick, *options)
    assert re.search(reason, cli.refuses("train", *settings, "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_continuous_certificate_needs_no_step(cli: Cli, tmp_path: Path) -> None:
    cli.train(tmp_path / "run", *STRONG, "--solver=euler", "--require-certificate=continuous")
    assert column(tmp_path / "run", "step_certified") == [0, 0]
