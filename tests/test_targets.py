"""Other targets than a class: values, every step, a forecast; masks, measures, three commands."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cli_tools import Cli, single  # noqa: F401
from ctrnn_assembly.data import Task
from ctrnn_assembly.data.targets import balanced, known, loss_of, measures_of
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.training.batches import Batches, evaluate, measure
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.fit import fit
from ctrnn_assembly.training.run import Run, merit

SMALL = {"model": "adadiag-tanh", "modules": 2, "units": 4, "dt": 0.5, "device": "cpu", "threads": 1,
         "batch_size": 16, "certify_every": 99, "learning_rate": 0.03}  # fmt: skip
OPTIONS = tuple(f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items())
QUIET = {"report": lambda line: None}


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


def series(n=40, T=14, seed=0):
    """Noise u, (n, T, 1), and its leaky sum y_t = 0.7 y_{t-1} + u_t, (n, T), in units of a thousand."""
    g = np.random.default_rng(seed)
    u = g.normal(size=(n, T, 1))
    y = np.zeros((n, T))
    for t in range(T):
        y[:, t] = 0.7 * y[:, t - 1] * (t > 0) + u[:, t, 0]
    return u, 1000 + 50 * y, g.integers(6, T + 1, n)


def write_csv(path, u, y, lengths, form="{:.4f}"):
    rows = [
        f"s{i},{k},{u[i, k, 0]:.4f},{form.format(y[i, k])}"
        for i in range(len(u))
        for k in range(lengths[i])
    ]
    path.write_text("\n".join(["id,time,force,target", *rows]), encoding="utf-8")
    return path


def test_measures_are_those_of_their_formulas_over_what_is_known():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (5, 7), generator=g)
    y[torch.rand(5, 7, generator=g) < 0.3] = -1
    outputs = torch.randn(5, 7, 4, generator=g)  # a fourth class, which never occurs but is named
    guess, told = outputs.argmax(-1)[y >= 0], y[y >= 0]
    f1 = []
    for c in set(guess.tolist()) | set(told.tolist()):
        both = ((guess == c) & (told == c)).sum()
        f1.append(2 * both / ((guess == c).sum() + (told == c).sum()))
    found = measures_of(outputs, y)
    assert found["accuracy"] == (guess == told).double().mean()
    torch.testing.assert_close(found["f1"], torch.stack(f1).mean().double(), rtol=1e-6, atol=0)

    y = torch.randn(5, 7, 3, generator=g)
    y[..., 2] = 4.0  # constant: no R2
    y[torch.rand(5, 7, 3, generator=g) < 0.3] = torch.nan
    f = torch.randn(5, 7, 3, generator=g)
    found = measures_of(f, y)
    r2 = []
    for k in range(3):
        a, b = y[..., k][known(y[..., k])].double(), f[..., k][known(y[..., k])].double()
        assert found["mse"][k] == pytest.approx(float((a - b).square().mean()))
        r2.append(1 - (a - b).square().sum() / (a - a.mean()).square().sum())
    assert found["r2"] == pytest.approx(float(torch.stack(r2[:2]).mean()))
    assert measures_of(y.nan_to_num(0), y)["r2"] == 1


def test_the_loss_and_its_gradient_do_not_see_what_is_not_known():
    g = torch.Generator().manual_seed(1)
    for y in (torch.tensor([[0, 2, -1], [1, -1, -1]]),
              torch.tensor([[0.5, 2, torch.nan], [1, torch.nan, torch.nan]])[..., None]):  # fmt: skip
        k = 1 if y.is_floating_point() else 3
        outputs = torch.randn(2, 3, k, generator=g).requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(outputs, y), outputs)
        hidden = ~(known(y).all(-1) if k == 1 else known(y))
        assert not gradient[hidden].any()
        assert gradient[~hidden].all()
        other = torch.where(hidden[..., None], 1e9, outputs.detach())
        assert loss_of(other, y) == loss_of(outputs, y)


def test_balanced_classes_weigh_as_much_as_equally_many():
    """The weighted loss of 1 and 3 samples is that of one sample of each class, repeated."""
    y = torch.tensor([0, 1, 1, 1, -1])
    weights = balanced(y, 2)
    torch.testing.assert_close(weights, torch.tensor([2.0, 2 / 3]))
    outputs = torch.tensor([[0.3, 1.0]]).expand(5, 2)
    even = F.cross_entropy(outputs[:2], torch.tensor([0, 1]))
    torch.testing.assert_close(loss_of(outputs, y, weights), even)
    with pytest.raises(ConfigError, match="class_weights are for classes"):
        balanced(torch.ones(3, 1), 1)


def test_warm_up_padding_and_gaps_have_no_target():
    u, y, lengths = series()
    y[3, 4] = np.nan
    task = Task.from_arrays(u, y, lengths, target="per-step", warm_up=3)
    for part in (task.train, task.val, task.load_test()):
        steps = torch.arange(14)
        inside = (steps >= 3) & (steps < part.lengths[:, None])
        assert (known(part.y[..., 0]) <= inside).all()
        assert int((inside & ~known(part.y[..., 0])).sum()) <= 1
    y[:, 3:] = np.nan
    with pytest.raises(
        DataError, match=r"must have a target beyond warm_up 3 and ahead 1; got '.*steps' at"
    ):
        Task.from_arrays(u, y, lengths, target="per-step", warm_up=3)


def test_a_forecast_is_of_the_channels_some_steps_later_of_the_same_series():
    u = np.arange(40.0)[:, None, None] * 100 + np.arange(14.0)[:, None] + np.array([0, 0.5])
    lengths = np.where(np.arange(40) % 2, 14, 9)
    task = Task.from_arrays(u, lengths=lengths, target="forecast", ahead=4)
    part, mean, std = task.train, *(torch.tensor(x) for x in (task.sequence.mean, task.sequence.std))
    x, y = part.x.double() * std + mean, part.y.double() * std + mean
    torch.testing.assert_close(y[:, :5], x[:, :5] + 4, rtol=1e-4, atol=1e-3)
    assert not known(part.y)[part.lengths == 9][:, 5:].any()
    assert known(part.y)[part.lengths == 14][:, :10].all()
    assert not known(part.y)[:, 10:].any()
    with pytest.raises(DataError, match="must have a target"):
        Task.from_arrays(u, lengths=lengths, target="forecast", ahead=9)


def test_values_are_normalised_by_the_training_part_and_measured_in_their_own_unit(tmp_path):
    u, y, _ = series(200)
    part = np.array(["train"] * 160 + ["val"] * 20 + ["test"] * 20)
    one = Task.from_arrays(u, y[:, -1], split=part, target="regression")
    y[160:] += 1e4
    other = Task.from_arrays(u, y[:, -1], split=part, target="regression")
    assert other.sequence == one.sequence
    ((mean, _),) = one.sequence.values.values()
    assert mean == pytest.approx(y[:160, -1].mean())
    config = make_config(SMALL, {"epochs": 12})
    summary = fit(config, tmp_path / "run", task=one, **QUIET)
    run = Run.open(tmp_path / "run")
    run.task = one
    assert run.config.target == "regression"
    assert summary["test_accuracy"] is summary["chance"] is summary["val_f1"] is None
    test = one.load_test()
    with torch.no_grad():
        said = np.array(one.unit) * run.model(test.x).numpy() + mean
    told = np.array(one.unit) * test.y.numpy() + mean
    assert summary["test_mse"] == pytest.approx(((said - told) ** 2).mean(), rel=1e-4)
    assert summary["test_r2"] == pytest.approx(1 - ((said - told) ** 2).mean() / told.var(), rel=1e-4)
    assert summary["test_r2"] > 0.8
    best = min(run.epochs, key=lambda row: row["val_loss"])  # and not the last or the first
    assert summary["best_epoch"] == best["epoch"]
    assert merit(best) == max(map(merit, run.epochs))
    loss, _, count = evaluate(run.model, Batches(one, one.val, 7)).tolist()
    assert loss / count == pytest.approx(best["val_loss"], rel=1e-5)


def test_three_commands_for_every_step_of_a_csv(cli, tmp_path):
    u, y, lengths = series(120)
    data, new = (
        write_csv(tmp_path / "a.csv", u, y, lengths),
        write_csv(tmp_path / "b.csv", u[:5], y[:5], lengths),
    )
    run, out = tmp_path / "run", tmp_path / "p.csv"
    done = cli(
        "train",
        "--data",
        data,
        "--target=per-step",
        "--warm-up=2",
        "--epochs=25",
        *OPTIONS,
        "--out",
        run,
    )
    assert done.code == 0, done.err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test_r2"] > 0.9
    assert f"R2 {summary['test_r2']:.4f}, MSE {summary['test_mse']:.4f}" in done.out
    assert f"R2 {summary['test_r2']:.4f}" in cli("evaluate", run).out
    assert "test R2" in cli("evaluate", run, "--swap", "euler:2").out
    assert cli("predict", run, "--data", new, "--out", out).code == 0
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert list(rows[0]) == ["id", "step", "time", "prediction"]
    assert [(row["id"], row["time"]) for row in rows] == [
        (f"s{i}", str(k)) for i in range(5) for k in range(lengths[i])
    ]
    late = [row for row in rows if int(row["step"]) >= 2]
    wrong = [float(row["prediction"]) - y[int(row["id"][1:]), int(row["step"])] for row in late]
    assert np.square(wrong).mean() < 0.15 * y.var()
    page = tmp_path / "r.html"
    assert cli("report", run, "--out", page).code == 0
    assert f"R2 {summary['test_r2']:.4f}" in page.read_text(encoding="utf-8")
    assert cli("plot", run, "--kind", "curves", "--out", tmp_path / "s.png").code == 0
    assert "--radius is of classes" in cli.refuses("evaluate", run, "--radius")


@pytest.mark.slow
def test_classes_at_every_step_where_they_are_whole_numbers_or_texts(cli, tmp_path):
    u, y, lengths = series(120)
    signs = np.where(y > 1000, 1, -1)
    data, run, out = tmp_path / "a.csv", tmp_path / "run", tmp_path / "p.csv"
    write_csv(data, u, signs, lengths, "{}")
    lines = data.read_text().splitlines()
    data.write_text(
        "\n".join([*lines[:4], lines[4].rpartition(",")[0] + ",", *lines[5:]])
    )  # no answer there
    done = cli("train", "--data", data, "--target=per-step", "--class-weights=balanced", "--epochs=12",
               *OPTIONS, "--out", run)  # fmt: skip
    assert done.code == 0, done.err
    task, summary = Run.open(run).task, json.loads((run / "summary.json").read_text())
    assert task.classes == ("1", "-1")
    assert summary["test_accuracy"] > 0.85
    assert summary["test_mse"] is None
    assert measure(Run.open(run).model, task, task.load_test())["f1"] == pytest.approx(
        summary["test_f1"]
    )
    assert cli("predict", run, "--data", data, "--out", out).code == 0
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert len(rows) == lengths.sum()
    assert list(rows[0]) == ["id", "step", "time", "prediction", "probability_1", "probability_-1"]
    told = Task.from_arrays(u, np.where(y > 1000, "up", "down"), target="per-step")
    assert told.classes == ("down", "up")
    assert told.train.y.shape == (len(told.train), 14)


@pytest.mark.slow
def test_a_forecast_beats_the_last_value_and_predicts_each_channel(cli, tmp_path):
    g = np.random.default_rng(0)
    t = np.arange(30)
    rows = []
    for i in range(80):
        wave = np.sin(0.5 * t + g.uniform(0, 6))
        rows += [f"{i},{w:.4f},{3 * w + 7:.4f}" for w in wave]
    data, run, out = tmp_path / "a.csv", tmp_path / "run", tmp_path / "p.csv"
    data.write_text("\n".join(["id,a,b", *rows]))
    done = cli("train", "--data", data, "--target=forecast", "--ahead=3", "--warm-up=5", "--epochs=20",
               *OPTIONS, "--out", run)  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads((run / "summary.json").read_text())["test_r2"] > 0.5
    assert cli("predict", run, "--data", data, "--out", out).code == 0
    assert list(next(csv.DictReader(out.open()))) == ["id", "step", "prediction_a", "prediction_b"]


def test_a_loss_of_your_own(tmp_path):
    u, y, _ = series(60)
    task = Task.from_arrays(u, y[:, -1], target="regression")
    huber = replace(task, loss=F.smooth_l1_loss)
    summary = fit(make_config(SMALL, {"epochs": 1}), tmp_path / "run", task=huber, **QUIET)
    run = Run.open(tmp_path / "run")
    with torch.no_grad():
        expected = F.smooth_l1_loss(run.model(task.val.x), task.val.y)
    assert run.epochs[0]["val_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert summary["val_mse"] > 0


def test_what_does_not_fit_a_target_is_one_sentence(cli, tmp_path):
    u, y, lengths = series()
    wrong = [
        (y[:, :3], {"target": "per-step"}), (y[:-1, -1], {"target": "regression"}), (y, {}),
        (y[..., None, None], {"target": "per-step"}), (y[:, -1], {}),
    ]  # fmt: skip
    for told, options in wrong:
        with pytest.raises(DataError, match=r"must hold X .*y of target"):
            Task.from_arrays(u, told, **options)
    y[2, -1] = np.inf
    for target, told in (("regression", y[:, -1]), ("per-step", y)):
        with pytest.raises(DataError, match="a target must be finite; got inf at series '2'"):
            Task.from_arrays(u, told, target=target)
    for options, said in (
        ({"target": "mean"}, "'per-step' or 'forecast'; got"), ({"ahead": 0}, "ahead must be"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            Task.from_arrays(u, y[:, -1], **options)
    y[2, -1] = 0
    data = write_csv(tmp_path / "a.csv", u, y, lengths)
    assert "name another --target" in cli.refuses("train", "--data", data)
    assert "target must be there" in cli.refuses("train", "--data", data, "--target=regression")
    assert "for series of your own" in cli.refuses("train", "--task=digits", "--target=regression")
    told = cli.refuses(
        "train",
        "--data",
        write_csv(data, u, y, lengths),
        "--target=per-step",
        "--class-weights=balanced",
    )
    assert "class_weights are for classes" in told
    lines = data.read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ",much"
    data.write_text("\n".join(lines))
    assert "row 4, column 'target' must be a number; got 'much'" in cli.refuses(
        "train", "--data", data, "--target=per-step"
    )
