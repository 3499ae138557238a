"""Series of one's own: awkward files, three commands from one to predictions, and no leak."""

import csv
import json
import shutil
import signal

import numpy as np
import pytest
import torch

from cli_tools import Cli, Fork, assert_same_run, refused, signal_at, single  # noqa: F401
from cli_tools import own_series as load
from ctrnn_assembly.data import Task
from ctrnn_assembly.data.own import ENDINGS, Preparation
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.training.batches import Batches, evaluate, timed
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.fit import fit
from ctrnn_assembly.training.run import Run
from ctrnn_cli.main import main

SMALL = ("--model=adadiag-tanh", "--modules=2", "--units=4", "--dt=0.5", "--device=cpu", "--threads=1",
         "--epochs=3", "--batch-size=16", "--certify-every=3")  # fmt: skip


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file of series and a run on them."""
    folder = tmp_path_factory.mktemp("trained")
    data, run = write_csv(folder / "all.csv"), folder / "run"
    main(["train", "--data", str(data), *SMALL, "--out", str(run)], standalone_mode=False)
    return data, run


def series(n=40, T=12, seed=0):
    """Slow and fast sines of 6 to T steps, told apart by their frequency; classes 1 and 2."""
    g = np.random.default_rng(seed)
    y, lengths = 1 + np.arange(n) % 2, g.integers(6, T + 1, n)
    wave = np.sin(g.uniform(0, 6, (n, 1)) + np.arange(T) * y[:, None])
    return np.stack([100 + 10 * wave, g.normal(0, 3, (n, T))], -1), y, lengths


def write_csv(path, n=40, names="id,time,left,right,target", classes=("slow", "fäst"), **how):
    """The series as a long table."""
    X, y, lengths = series(n, seed=how.pop("seed", 0))
    lines = [names] + [
        ",".join(map(str, (f"s {i}", k, *X[i, k].round(4), classes[y[i] - 1])))
        for i in range(n)
        for k in range(lengths[i])
    ]
    text = how.pop("end", "\n").join(lines) + "\n"
    path.write_bytes(text.replace(",", how.pop("comma", ",")).encode(how.pop("encoding", "utf-8")))
    return path


def same(one, other):
    for part in ("train", "val"):
        a, b = getattr(one, part), getattr(other, part)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    assert one.classes == other.classes


def test_three_commands_from_a_csv_to_predictions(cli, tmp_path):
    data, new = write_csv(tmp_path / "gait.csv"), write_csv(tmp_path / "neu.csv", 5, seed=1)
    run, out = tmp_path / "run", tmp_path / "p.csv"
    done = cli("train", "--data", data, *SMALL, "--out", run)
    assert done.code == 0, done.err
    summary = json.loads((run / "summary.json").read_text())
    done = cli("evaluate", run)
    assert f"test accuracy {summary['test_accuracy']:.4f}" in done.out, done.err
    done = cli("predict", run, "--data", new, "--out", out)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].endswith("5 series of neu.csv.")
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert [row["id"] for row in rows] == [f"s {i}" for i in range(5)]
    assert list(rows[0]) == ["id", "prediction", "probability_fäst", "probability_slow"]
    for row in rows:
        shares = {name: float(row[f"probability_{name}"]) for name in ("fäst", "slow")}
        assert row["prediction"] == max(shares, key=shares.get)
        assert sum(shares.values()) == pytest.approx(1)


def test_predictions_are_those_of_evaluate(cli, trained, tmp_path):
    """On the very test series: the normalisation of the run, and not one of the new file."""
    data, out = trained[0], tmp_path / "p.csv"
    run = shutil.copytree(trained[1], tmp_path / "run")
    assert cli("predict", run, "--data", data, "--out", out).code == 0
    lines = data.read_text(encoding="utf-8").splitlines()
    one = tmp_path / "one.csv"  # a file of one series, whose own statistics are others
    one.write_text("\n".join([lines[0], *(x for x in lines if x.startswith("s 7,"))]), encoding="utf-8")
    assert cli("predict", run, "--data", one).code == 0
    whole = {row["id"]: row for row in csv.DictReader(out.open(encoding="utf-8"))}
    [row] = csv.DictReader((run / "predictions.csv").open(encoding="utf-8"))
    assert row["prediction"] == whole["s 7"]["prediction"]
    for name in ("probability_fäst", "probability_slow"):
        assert float(row[name]) == pytest.approx(float(whole["s 7"][name]), rel=1e-5)
    opened = Run.open(run)
    test = opened.task.load_test()
    correct = evaluate(opened.model, Batches(opened.task, test, 8)).tolist()[1]
    assert correct / len(test) == json.loads((run / "summary.json").read_text())["test_accuracy"]


@pytest.mark.slow
def test_a_killed_run_of_own_data_resumes_bit_for_bit(cli, tmp_path):
    data = write_csv(tmp_path / "a.csv")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli("train", "--data", data, *SMALL, "--out", whole).code == 0
    end = Fork(signal_at(4, signal.SIGKILL), "train", "--data", data, *SMALL, "--out", killed).wait()
    assert end.code == -signal.SIGKILL
    moved = tmp_path / "elsewhere" / "a.csv"
    moved.parent.mkdir()
    data.rename(moved)
    done = cli("train", "--resume", killed, "--data", moved)
    assert done.code == 0, done.err
    assert_same_run(whole, killed)


def test_a_run_refuses_other_data_than_its_own(cli, tmp_path):
    data, run = write_csv(tmp_path / "a.csv"), tmp_path / "run"
    assert cli("train", "--data", data, *SMALL, "--out", run).code == 0
    write_csv(data, seed=5)
    assert "is not what the run was trained on" in cli.refuses("evaluate", run)


def test_the_normalisation_depends_on_training_series_alone():
    X, y, lengths = series()
    part = np.array(["train"] * 28 + ["val"] * 6 + ["test"] * 6)
    one = Task.from_arrays(X, y, lengths, split=part)
    train = X[:28][np.arange(12) < lengths[:28, None]]
    assert one.sequence.mean == pytest.approx(train.mean(0))
    assert one.sequence.std == pytest.approx(train.std(0))
    X = X.copy()
    X[28:] *= 1000
    X[np.arange(12) >= lengths[:, None]] = np.nan  # nor on what stands past the end of a series
    other = Task.from_arrays(X, y, lengths, split=part)
    assert other.sequence == one.sequence
    assert torch.equal(other.train.x, one.train.x)


def test_shares_are_dealt_class_by_class_and_every_series_once():
    X, y, lengths = series(200)
    X[:, 0, 0] = np.arange(200)  # tells the series apart
    task = Task.from_arrays(X, y, lengths, val_fraction=0.1, test_fraction=0.3, seed=3)
    test = task.load_test()
    assert (len(task.train), len(task.val), len(test)) == (120, 20, 60)
    for part in (task.train, task.val, test):
        assert abs(int(torch.bincount(part.y).diff())) <= 1
    ids = torch.cat([part.x[:, 0, 0] for part in (task.train, task.val, test)])
    assert len(ids.unique()) == 200
    same(task, Task.from_arrays(X, y, lengths, val_fraction=0.1, test_fraction=0.3, seed=4))


@pytest.mark.parametrize(
    "how",
    [
        {"encoding": "utf-8-sig"},
        {"end": "\r\n"},
        {"comma": " , "},
        {"comma": ";"},
        {"comma": "\t"},
        {"names": "Series,T,left,right,LABEL"},
        {"end": "\n\n"},
    ],
)
def test_an_awkward_csv_reads_as_the_plain_one(tmp_path, how):
    plain = load(write_csv(tmp_path / "plain.csv"))
    same(load(write_csv(tmp_path / "schön er.csv", **how)), plain)
    assert plain.classes == ("fäst", "slow")


def test_rows_in_any_order_and_dates_are_the_same_series(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    plain = load(path)
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    rows = [row.replace(f",{k},", f",2024-05-{k + 1:02}T12:00,", 1) for row in rows
            for k in [int(row.split(",")[1])]]  # fmt: skip
    mixed = sorted(rows, key=lambda row: (int(row.split(",")[0][2:]), row[::-1]))
    path.write_text("\n".join([header, *mixed]), encoding="utf-8")
    same(load(path), plain)


def test_npz_npy_and_folders_read_as_arrays(tmp_path):
    X, y, lengths = series()
    plain = Task.from_arrays(X, y, lengths)
    np.savez(tmp_path / "a.npz", X=X, y=y, lengths=lengths)
    same(load(tmp_path / "a.npz"), plain)
    same(load(tmp_path), plain)
    folder = tmp_path / "both"
    folder.mkdir()
    np.save(folder / "X.npy", X)
    np.save(folder / "y.npy", y)
    same(load(folder), Task.from_arrays(X, y))
    same(load(folder / "X.npy"), Task.from_arrays(torch.from_numpy(X), torch.from_numpy(y)))


def test_parts_that_are_not_said_are_dealt_and_shares_of_nothing_are_none(tmp_path):
    X, y, _ = series()
    X[:, 0, 0] = np.arange(40)  # tells the series apart
    said = ["train"] * 28 + ["test"] * 12
    task = Task.from_arrays(X, y, split=said, val_fraction=0.1)
    assert (len(task.train), len(task.val), len(task.load_test())) == (24, 4, 12)
    assert task.load_test().x[0, 0, 0] > task.train.x[:, 0, 0].max()
    ids = torch.cat([part.x[:, 0, 0] for part in (task.train, task.val, task.load_test())])
    assert len(ids.unique()) == 40
    whole = Task.from_arrays(X, y, val_fraction=0, test_fraction=0)
    assert (len(whole.train), len(whole.val), whole.tested) == (40, 40, False)
    with pytest.raises(DataError, match="test split is empty"):
        whole.load_test()
    config = make_config({"model": "adadiag-tanh", "modules": 2, "units": 2, "epochs": 1})
    summary = fit(config, tmp_path / "run", task=whole, report=str)
    assert (summary["test_accuracy"], summary["chance"]) == (None, None)
    assert summary["val_accuracy"] >= 0


def test_classes_are_ints_from_one_or_texts_in_their_order():
    X, y, _ = series()
    assert Task.from_arrays(X, y).classes == ("1", "2")
    assert Task.from_arrays(X, y.astype(float)).classes == ("1", "2")
    assert Task.from_arrays(X, y * 9).classes == ("9", "18")
    assert Task.from_arrays(X, np.array(["ja", "nein"])[y - 1]).classes == ("ja", "nein")
    for task in (Task.from_arrays(X, y), Task.from_arrays(X, y * 9)):
        assert task.train.y.min() == 0
        assert task.train.y.max() == 1


def test_a_constant_column_and_huge_values_stay_finite():
    X, y, _ = series()
    X = np.concatenate([X, np.full((40, 12, 1), 1 / 3), 1e308 * np.sign(X[..., 1:])], -1)
    x = Task.from_arrays(X, y).train.x
    assert x.isfinite().all()
    assert x[..., 2].abs().max() < 1e-6
    assert x[..., 3].std() == pytest.approx(1, abs=0.01)


def test_missing_values_are_refused_with_their_place_or_held(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    lines = path.read_text(encoding="utf-8").splitlines()
    for row, cell in ((1, ""), (4, "NaN"), (5, "?")):
        a = lines[row].split(",")
        lines[row] = ",".join([*a[:2], cell, *a[3:]])
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"got nan at row 2, column 'left'.*--missing hold"):
        load(path)
    part = load(path, missing="hold", val_fraction=0.01, test_fraction=0.01).train
    held = part.x[part.x[:, 0, 0] == 0]  # nothing was before: the mean
    assert len(held) == 1
    assert held[0, 3, 0] == held[0, 2, 0] == held[0, 4, 0] != held[0, 5, 0]
    X, y, _ = series()
    X[3, 4, 1] = np.inf
    for missing in ("refuse", "hold"):
        with pytest.raises(DataError, match=r"got inf at series '3', step 4, column 'x1'"):
            Task.from_arrays(X, y, missing=missing)


HEAD = "id,time,v,target\n"
WRONG = {
    "": "is empty",
    HEAD: "is empty",
    HEAD + "a,0,1,u\n": "leave none for",
    HEAD + "".join(f"{i // 2},{i},1,u\n" for i in range(60)): "at least 2 classes",
    HEAD + "".join(f"{i},0,1,u\n" for i in range(30)): "rows of a series must have one 'id'",
    HEAD + "a,0,1,u\na,1,2,w\n": r"target must be there, one for each id; got 'w' at row 3",
    HEAD + "a,0,1,\n": r"target must be there, one for each id; got '' at row 2",
    HEAD + "a,0,1,u\na,1,x,u\n": r"row 3, column 'v' must be a number; got 'x'",
    HEAD + "a,soon,1,u\n": r"row 2, column 'time' must be a number or an ISO date; got 'soon'",
    HEAD + "a,0,1,u\na,1\n": "row 3 must have 4 cells.*got 2",
    HEAD
    + "a,0,1,u\n# checked,1,1,u\n": "row 3 must .* be no comment; got 4, first '# checked'. Mend it",
    "# by me,,,\n" + HEAD + "a,0,1,u\n": "row 1 must .* be no comment; got 4, first '# by me'",
    "#" + HEAD + "a,0,1,u\n": "row 1 must .* be no comment; got 4, first '#id'",
    "id,v,v,target\na,0,1,u\n": "row 1 must have 3 cells",
    "name,t,v,target\na,0,1,u\n": r"one column for id, named id, series.*; got the header name, t",
    "name,v,target\na,0,u\n": r"row 2 of a wide table, time 'name'.* must be a number; got 'a'",
    "id,v\na,0\na,1\n": "one column for target",
    "id,target\na,0\na,0\n": "has no channel",
    "id,v,label,target\na,0,u,u\n": "one column for target",
    HEAD + "".join(f"{i},{k // 2},1,{i % 2}\n" for i in range(30) for k in range(4)): (
        r"times must increase.*got 0.0 at row 2\. Remove one"
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_csv_is_refused_in_one_sentence(cli, tmp_path, text):
    refused(cli, tmp_path / "a.csv", text, WRONG[text])


def test_wrong_arrays_and_files_are_refused(tmp_path):
    X, y, lengths = series()
    wrong = [
        (X[0], y), (X[:0], y[:0]), (X, y[:-1]), (X, y + 0.5), (X, y, lengths + 20), (X, y, lengths[:3]),
        (X.astype(str) + "a", y), (X, y, None, np.zeros(5)),
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(DataError, match="must hold X"):
            Task.from_arrays(*given)
    with pytest.raises(DataError, match="must be train, val or test; got 'dev'"):
        Task.from_arrays(X, y, split=["dev"] * 40)
    with pytest.raises(ConfigError, match="must leave a part for train"):
        Task.from_arrays(X, y, val_fraction=0.6, test_fraction=0.5)
    np.savez(tmp_path / "a.npz", X=np.array([{}], dtype=object), y=y)
    np.savez(tmp_path / "b.npz", Z=X)
    (tmp_path / "c.npz").write_bytes(b"PK no zip")
    (tmp_path / "d.csv").write_bytes("id,v,target\na,1,ä".encode("latin-1"))
    (tmp_path / "e.txt").write_text("")
    for name in ("a.npz", "b.npz", "c.npz", "d.csv", "e.txt", "none.csv", ""):
        with pytest.raises(DataError):
            load(tmp_path / name)
    assert ENDINGS == (".npz", ".npy", ".csv", ".ts")


def test_times_become_dt_and_the_note_says_that_no_step_is_proven_for_it(tmp_path):
    X, y, _ = series()
    regular = Task.from_arrays(X, y, times=1e9 + 0.04 * np.arange(12))
    assert regular.train.dt is None
    assert regular.sequence.spacing == pytest.approx(0.04)
    t = np.cumsum(np.array([1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 3, 1.0])) - 1
    task = Task.from_arrays(X, y, times=7 * t)
    assert task.train.dt[0].tolist() == [1, 1, 1, 1, 1, 1, 2, 1, 1, 3, 1, 1]
    assert "1 to 3 times dt apart: what is proven of a step is of dt" in task.note
    config = make_config({"model": "adadiag-tanh", "modules": 2, "units": 3, "epochs": 1, "dt": 0.1})
    summary = fit(config, tmp_path / "run", task=task, report=lambda line: None)
    assert summary["note"] == task.note
    run = Run(tmp_path / "run", config)
    run.task, net = task, run.model
    with pytest.raises(ConfigError, match="radii and diagnostics are of equal steps"):
        run.inputs("val")
    u, dt = task.val.x, 0.1 * task.val.dt
    given = timed(net, task.val.given)
    assert torch.equal(given["dt"], dt)
    assert torch.equal(net(u, **given), net.read(net.core(u, dt=dt)[0][:, -1]))
    assert not torch.allclose(net(u, **given), net(u))
    strict = config.model_copy(update={"require_certificate": "discrete"})
    with pytest.raises(ConfigError, match="no step is certified of samples unequally far apart"):
        fit(strict, tmp_path / "c", task=task, report=lambda line: None)
    with pytest.raises(ConfigError, match="a baseline has no dt"):
        fit(make_config({"model": "lstm", "modules": 2, "units": 3}), tmp_path / "b", task=task)


def test_arrays_are_trained_on_in_python_and_learnt(tmp_path):
    X, y, lengths = series(120)
    X[..., 1] += 3 * y[:, None]
    task = Task.from_arrays(X, y, lengths)
    config = make_config({"model": "adadiag-tanh", "modules": 2, "units": 4, "dt": 0.5, "epochs": 8,
                          "learning_rate": 0.05, "batch_size": 16, "certify_every": 8})  # fmt: skip
    summary = fit(config, tmp_path / "run", task=task, report=lambda line: None)
    assert summary["task"] == "arrays"
    assert summary["test_accuracy"] > 0.8
    assert Preparation.read(tmp_path / "run" / "data.json") == task.sequence
    assert Run.open(tmp_path / "run").config.task == "own"
    with pytest.raises(ConfigError, match="Name it with --data"):
        _ = Run.open(tmp_path / "run").task


def test_a_folder_of_many_files_is_told_what_it_lacks(cli, tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("id,target,x\n", encoding="utf-8")
    said = cli.refuses("train", "--data", tmp_path)
    assert "or a folder with one such file. Name it with --data; many series go into one table." in said


def test_data_and_a_task_are_one_too_many(cli, tmp_path):
    assert "Drop it" in cli.refuses("train", "--data", tmp_path, "--task", "digits")
    assert "Name it with --data" in cli.refuses("train", "--task", "own")


def test_predict_refuses_other_channels_and_runs_of_other_tasks(cli, trained, tmp_path):
    run, out = shutil.copytree(trained[1], tmp_path / "run"), tmp_path / "p.csv"
    other = write_csv(tmp_path / "b.csv", names="id,time,left,up,target")
    assert "must have the channels left, right" in cli.refuses(
        "predict", run, "--data", other, "--out", out
    )
    (run / "data.json").write_text('{"channels": [')
    said = cli.refuses("predict", run, "--data", other, "--out", out)
    assert "data.json is not of a run of series, or damaged. Name one." in said
    (run / "data.json").unlink()
    assert "is not of a run of series" in cli.refuses("predict", run, "--data", other, "--out", out)
    assert not out.exists()


def test_series_have_no_side_to_resize():
    with pytest.raises(ConfigError, match="resize is for images; got 8 for arrays"):
        Task.from_arrays(np.random.default_rng(0).normal(size=(20, 4)), [0, 1] * 10, resize=8)
