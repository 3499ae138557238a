"""Training keeps the certificate: every epoch's is logged, a run can be required not to lose it, and the
coupling can be scaled so that it does not. The oracle is a step's exact factor, over all slopes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cli_tools import TINY, Cli, table
from ctrnn_assembly.assembly import Assembly, couple
from ctrnn_assembly.certificates import Certificate, certify, largest_coupling
from ctrnn_assembly.contracting import CONSTRAINTS, AdaDiagTanh, SingularValueBounded, Symmetric
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.layers import CTRNN
from ctrnn_assembly.models import build_model
from ctrnn_assembly.subnetwork import Subnetwork
from ctrnn_assembly.training.fit import certificate_columns
from ctrnn_assembly.training.projection import StepProjection
from ctrnn_assembly.training.run import (
    model_from,
    read_config,
    read_weights,
)
from oracles import array, of_exact_steps, vertices

# Certified at the start, and by its third epoch driven out of the Euler step's reach.
LOSING = (
    "--solver=euler", "--coupling-scale=1", "--learning-rate=0.5", "--warmup-epochs=0", "--epochs=3",
    "--model=adadiag-clip",
)  # fmt: skip
STRONG = ("--coupling-scale=30", "--learning-rate=0.1", "--epochs=2", "--density=0.4")


@pytest.fixture(autouse=True)
def as_users_train(seeded: None) -> None:
    """In float32; `seeded` restores the default dtype."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in table(run)]


def euler_factor(field: Assembly | CTRNN, dt: float, L: np.ndarray | None = None) -> float:
    """max over all slopes in [0, 1] of ||I + dt J|| in the metric tau M: convex, so at a vertex."""
    terms, metric = field.terms(), field.metric()
    W, tau = array(terms.weight()), array(terms.tau)
    n = len(tau)
    L = array(terms.L) if L is None else L
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


def random_skew(sizes: tuple[int, ...], generator: torch.Generator) -> np.ndarray:
    """A random skew matrix without entries inside a module, of norm 1."""
    n = sum(sizes)
    S = array(torch.randn(n, n, generator=generator, dtype=torch.float64))
    own = np.repeat(np.arange(len(sizes)), sizes)
    S = (S - S.T) * (own[:, None] != own)
    return S / np.linalg.norm(S, 2)


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
    assert "--keep-step-certified, --solver imex, or more --substeps" in error
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
    for other in ("--require-certificate=none", "--keep-step-certified"):
        assert "a resumed run keeps its settings" in cli.refuses("train", "--resume", run, other)


def test_a_run_that_loses_the_continuous_certificate_stops(cli: Cli, tmp_path: Path) -> None:
    settings = ("--model=unconstrained", "--learning-rate=0.5", "--warmup-epochs=0", "--epochs=4")
    required = (*TINY, *settings, "--require-certificate=continuous")
    error = cli.refuses("train", *required, "--out", tmp_path / "run")
    assert "lost the continuous certificate: module" in error
    assert "is not shown to contract in its metric" in error
    assert table(tmp_path / "run")[-1]["certified"] == "0"


@pytest.mark.parametrize(
    "model",
    [
        "svd-combo",
        "adadiag-clip",
        "adadiag-tanh",
        "adadiag-gated-constant",
        "sparse-combo",
        "absolute",
        "symmetric",
        "product",
    ],
)
def test_a_projected_run_keeps_the_step_at_every_epoch(cli: Cli, tmp_path: Path, model: str) -> None:
    run = tmp_path / "run"
    settings = (*STRONG, f"--model={model}", "--solver=euler")
    cli.train(tmp_path / "free", *settings)
    assert 1 not in column(tmp_path / "free", "step_certified")
    kept = ("--keep-step-certified", "--require-certificate=discrete", "--json")
    summary = json.loads(cli.train(run, *settings, *kept).out)
    assert column(run, "step_certified") == [1, 1]
    assert max(column(run, "step_factor")) < 1
    for name in ("certificate_initial", "certificate"):
        assert summary[name]["discrete"]["certified"] is True
    assert 0.5 < trained_factor(run, "model.safetensors") < 1  # exactly, whatever `certify` says
    assert trained_factor(run, "checkpoints/last.ckpt") < 1
    assert trained_factor(tmp_path / "free", "model.safetensors") > 1


def test_the_projection_keeps_what_training_would_lose(cli: Cli, tmp_path: Path) -> None:
    cli.train(tmp_path / "run", *LOSING, "--keep-step-certified")
    assert column(tmp_path / "run", "step_certified") == [1, 1, 1]


@pytest.mark.parametrize("gain", [1, 300])
def test_imex_is_certified_whatever_the_coupling(cli: Cli, tmp_path: Path, gain: int) -> None:
    run = tmp_path / "run"
    settings = (*LOSING[2:], f"--coupling-scale={gain}", "--solver=imex")
    done = cli.train(run, *settings, "--require-certificate=discrete", "--keep-step-certified")
    assert "keep_step_certified does nothing for solver imex" in done.err
    assert column(run, "step_certified") == [1, 1, 1]
    if gain == 300:
        assert json.loads((run / "summary.json").read_text())["certificate"]["coupling"]["norm"] > 100
        refused = (*settings[:-1], "--solver=euler", "--require-certificate=discrete")
        error = cli.refuses("train", *TINY, "--out", tmp_path / "other", *refused)
        assert "before training; the bound on the step's factor is" in error
        assert not (tmp_path / "other").exists()


KEEP, REQUIRE = "--keep-step-certified", "--require-certificate=discrete"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([KEEP, "--solver=rk4"], "no proof is known for steps of rk4. Use --solver euler or imex."),
        ([KEEP, "--coupling-kind=hierarchy"], "a hierarchy changes its metric with its size"),
        ([KEEP, "--coupling-kind=free"], "a free coupling has no certificate to keep"),
        ([KEEP, "--model=lstm"], "LSTM has no terms"),
        ([KEEP, "--dt=3"], "the bound on the step's factor is 4."),
        ([KEEP, "--dt=3"], "the largest certified dt is 1."),
        ([KEEP, "--dt=3"], "the model must have the discrete certificate before training"),
        ([REQUIRE, "--coupling-scale=30"], "the bound on the step's factor is"),
        (
            [REQUIRE, "--coupling-scale=30"],
            "Use --keep-step-certified, --solver imex, or more --substeps.",
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
    settings = (*TINY, "--solver=euler", "--coupling-scale=1", *options)
    assert reason in cli.refuses("train", *settings, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_continuous_certificate_needs_no_step(cli: Cli, tmp_path: Path) -> None:
    cli.train(tmp_path / "run", *STRONG, "--solver=euler", "--require-certificate=continuous")
    assert column(tmp_path / "run", "step_certified") == [0, 0]


def test_modules_that_lose_their_own_step_stop_a_projected_run(cli: Cli, tmp_path: Path) -> None:
    """A symmetric W may have any negative eigenvalue, which Euler steps over, coupled or not."""
    settings = (
        "--model=symmetric",
        "--solver=euler",
        "--dt=0.5",
        "--learning-rate=0.5",
        "--warmup-epochs=0",
        "--resize=2",  # of more samples the states overflow first
    )
    error = cli.refuses("train", *TINY, "--out", tmp_path / "run", *settings, "--keep-step-certified")
    assert "lost the discrete certificate: the bound on the step's factor is" in error
    assert "Use more --substeps." in error
    assert "there is none before it" in error
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_divergence_is_called_divergence_in_a_projected_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StepProjection.after_step

    def explode(self: StepProjection) -> None:
        real(self)
        self.core.field.coupling.K.values.data.fill_(math.nan)

    monkeypatch.setattr(StepProjection, "after_step", explode)
    settings = (*LOSING, "--keep-step-certified", "--batch-size=200")  # one step an epoch
    error = cli.refuses("train", *TINY, "--out", tmp_path / "run", *settings)
    assert "the solver stopped in epoch 1, validation after step 1: solver" in error


def nested(gain: float) -> Assembly:
    """Two areas of different modules and time constants, coupled inside and between."""
    a = couple([Subnetwork(SingularValueBounded("tanh"), 3) for _ in range(2)], init_scale=gain)
    b = couple(
        [Subnetwork(AdaDiagTanh("relu"), 2, tau=2.0), Subnetwork(Symmetric("tanh"), 2)], init_scale=gain
    )
    return couple([a, b], init_scale=gain)


def layer(field: Assembly, dt: float = 0.03) -> CTRNN:
    return CTRNN(2, field, batch_first=True, dt=dt, solver="euler")


def test_all_levels_of_a_nested_assembly_are_scaled_together() -> None:
    field = nested(20.0)
    levels = field.levels()
    assert [(units.start, units.stop) for _, units in levels] == [(0, 10), (0, 6), (6, 10)]
    before = [coupling.K.values.detach().clone() for coupling, _ in levels]
    projection = StepProjection(layer(field))
    ratios = torch.cat([c.K.values.detach() / old for (c, _), old in zip(levels, before, strict=True)])
    assert float(ratios.max()) < 0.5
    assert float(ratios.max() - ratios.min()) < 1e-6  # float32
    theta = array(field.metric().theta())
    norm = np.linalg.norm(theta @ array(field.terms().L) @ np.linalg.inv(theta), 2)
    assert projection.norm() <= projection.omega
    assert norm == pytest.approx(projection.omega, rel=1e-5)  # on the boundary, but for float32
    assert projection.certificate.step.certified
    assert of_exact_steps(projection.certificate) == of_exact_steps(certify(field, dt=0.03))
    assert euler_factor(field, 0.03) < 1


def test_a_projected_coupling_stays_as_it_is_bit_for_bit() -> None:
    field = nested(20.0)
    projection = StepProjection(layer(field))
    first = [p.detach().clone() for p in field.parameters()]
    projection.project()
    for old, new in zip(first, field.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_coupling_inside_the_ball_is_not_touched() -> None:
    field = nested(0.1)
    before = [p.detach().clone() for p in field.parameters()]
    projection = StepProjection(layer(field))
    projection.after_step()
    for old, new in zip(before, field.parameters(), strict=True):
        assert torch.equal(old, new)


def test_steps_stay_near_the_ball_and_the_epochs_end_inside() -> None:
    model = build_model("svd-combo", 1, 3, modules=6, units=8, coupling_scale=5.0, dt=0.03)
    projection = StepProjection(model.core)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        with torch.no_grad():
            K = model.core.field.coupling.K.values
            K += 0.05 * torch.randn(K.shape, generator=generator)
        projection.after_step()
    assert projection.norm() < 1.02 * projection.omega  # power iteration is from below
    projection.project()
    assert projection.norm() <= projection.omega


def test_what_is_not_certified_in_the_ball_is_scaled_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """omega is for a skew L; should the rounded one fail, only a certificate ends the scaling."""
    model = build_model("svd-combo", 1, 3, modules=2, units=4, coupling_scale=30.0, dt=0.03)
    projection = StepProjection(model.core)
    refused = certify(model.core.field, dt=3.0)
    limit = 0.95 * projection.omega

    real = CTRNN.certificate

    def strict(self: CTRNN) -> Certificate:
        return refused if projection.norm() > limit else real(self)

    monkeypatch.setattr(CTRNN, "certificate", strict)
    projection.project()
    assert projection.certificate.step.certified
    assert 0.85 * projection.omega < projection.norm() < limit
    limit = 0.0
    projection.project()
    assert not projection.certificate.step.certified


def test_without_a_coupling_there_is_only_the_modules_own_step() -> None:
    field = couple([Subnetwork(SingularValueBounded("tanh"), 3) for _ in range(2)], "none")
    projection = StepProjection(layer(field))
    projection.after_step()
    assert projection.norm() == 0
    assert projection.certificate.step.certified
    assert not StepProjection(layer(field, dt=3.0)).certificate.step.certified


def test_only_feedback_can_be_scaled_at_any_level() -> None:
    inner = couple([Subnetwork(SingularValueBounded("tanh"), 2) for _ in range(2)], kind="hierarchy")
    field = couple([inner, Subnetwork(SingularValueBounded("tanh"), 2)])
    with pytest.raises(ConfigError, match="needs coupling_kind feedback"):
        StepProjection(layer(field))


@pytest.mark.parametrize("dt", [0.03, 0.3])
@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("name", ["absolute", "symmetric", "product", "singular", "adadiag-tanh"])
def test_every_coupling_in_the_ball_contracts(name: str, form: str, dt: float) -> None:
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(0)
    parts = [
        Subnetwork(CONSTRAINTS[name]("tanh", margin=0.1), 3, form=form, tau=tau, generator=generator)
        for tau in (1.0, 2.0, 1.0)
    ]
    field = couple(parts, generator=generator)
    omega = largest_coupling(field.terms(), field.metric(), dt)
    theta = array(field.metric().theta())
    assert omega > 0
    for _ in range(5):
        S = omega * random_skew((3, 3, 3), generator)
        assert euler_factor(field, dt, np.linalg.inv(theta) @ S @ theta) < 1


def test_the_ball_is_the_whole_one_for_two_coupled_units() -> None:
    """AdaDiag: for two units of one w > 0 the disc bound is exact: omega^2 = (1 - w) (2 / dt - 1)."""
    torch.set_default_dtype(torch.float64)
    w, dt = 0.9, 0.03
    W = torch.tensor([[w]])
    field = couple([Subnetwork(AdaDiagTanh("tanh", margin=0.05), 1, weight=W) for _ in range(2)])
    omega = largest_coupling(field.terms(), field.metric(), dt)
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    assert omega == pytest.approx(math.sqrt((1 - w) * (2 / dt - 1)), rel=1e-3)
    assert euler_factor(field, dt, omega * turn) < 1 < euler_factor(field, dt, 1.001 * omega * turn)
