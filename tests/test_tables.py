"""A row a series: wide tables and .ts files; groups that stay together; gaps by choice."""

import csv
import json

import numpy as np
import pytest
import torch

from cli_tools import Cli, refused, single  # noqa: F401
from cli_tools import own_series as load
from ctrnn_assembly.data import Task
from ctrnn_assembly.errors import DataError

SMALL = ("--model=adadiag-tanh", "--modules=2", "--units=2", "--device=cpu", "--threads=1", "--epochs=1",
         "--solver=exponential-euler")  # fmt: skip
HEADER = """# a comment
@problemName toy data
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true 1 2
@data
"""


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


def series(n=24, T=8, seed=0):
    """Two channels of n series of 4 to T steps, and classes "1" and "2"."""
    g = np.random.default_rng(seed)
    lengths = g.integers(4, T + 1, n)
    return g.normal(size=(n, T, 2)).round(3), np.array(["1", "2"] * (n // 2)), lengths


def write_ts(path, head=HEADER, end="\n", n=24, mark="", seed=0):
    X, y, lengths = series(n, seed=seed)
    lines = [
        ":".join([*(",".join(map(str, x[:k, m])) for m in range(2)), label])
        for x, label, k in zip(X, y, lengths, strict=True)
    ]
    path.write_bytes((mark + head.replace("\n", end) + end.join(lines) + end).encode())
    return path


def write_wide(path, head=None, n=24, last="outcome", names=("low", "high"), mark=""):
    X, y, _ = series(n)
    head = head or [f"v{k}" for k in range(8)]
    rows = [[*x[:, 0], names[label == "2"]] for x, label in zip(X, y, strict=True)]
    lines = [",".join(map(str, row)) for row in [[*head, last], *rows]]
    path.write_text(mark + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def same(one, other):
    pairs = (one.train, other.train), (one.val, other.val), (one.load_test(), other.load_test())
    for a, b in pairs:
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert (a.lengths is None) == (b.lengths is None)


@pytest.mark.parametrize("how", [{}, {"end": "\r\n"}, {"mark": "\ufeff"},
                                 {"head": HEADER.replace("@d", "@D").replace("true 1 2", "True")},
                                 {"end": "\n\n"}])  # fmt: skip
def test_a_ts_file_reads_as_its_arrays(tmp_path, how):
    X, y, lengths = series()
    same(load(write_ts(tmp_path / "schön er.ts", **how)), Task.from_arrays(X, y, lengths))


def test_train_and_test_files_are_the_split(tmp_path, cli):
    train = write_ts(tmp_path / "Toy_TRAIN.ts")
    write_ts(tmp_path / "Toy_TEST.ts", n=10, seed=1)
    for task in (load(train), load(tmp_path)):
        assert (len(task.train), len(task.val), len(task.load_test())) == (19, 5, 10)
        assert "the split is that of Toy_TRAIN.ts and Toy_TEST.ts" in task.note
    assert load(tmp_path / "Toy_TEST.ts", test_fraction=0.2).note == ""  # alone, it is dealt
    run, out = tmp_path / "run", tmp_path / "p.csv"
    done = cli("train", "--data", tmp_path, *SMALL, "--out", run)
    assert done.code == 0, done.err
    assert "note: the split is that of" in done.err
    assert cli("predict", run, "--data", tmp_path / "Toy_TEST.ts", "--out", out).code == 0
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert [row["id"] for row in rows] == [str(i) for i in range(10)]
    y = [series(10, seed=1)[1][int(row["id"])] for row in rows]
    right = np.mean([row["prediction"] == one for row, one in zip(rows, y, strict=True)])
    assert right == json.loads((run / "summary.json").read_text())["test_accuracy"]
    (tmp_path / "Toy_TEST.ts").write_text(DATA + "1,2:1\n")
    assert "line 3 must have 2 channels" in cli.refuses("train", "--data", train)


def test_values_are_the_targets_of_a_ts_file(tmp_path):
    X, y, lengths = series()
    path = write_ts(tmp_path / "a.ts", head=HEADER.replace("@classLabel true 1 2", "@targetlabel true"))
    task = load(path, target="regression")
    assert torch.equal(
        task.train.y, Task.from_arrays(X, y.astype(float), lengths, target="regression").train.y
    )


DATA = "@classLabel true 1 2\n@data\n"
WRONG_TS = {
    "": "is empty",
    DATA: "is empty",
    "1,2:1\n": r"line 1 must be a tag.*got '1,2:1'",
    "@timestamps true\n" + DATA: "line 1 must be a tag, with @timestamps false",
    DATA + "1,2:1\n1,2:3\n": r"line 4 must end in one of the classes 1, 2; got '3'",
    DATA + "1,2:1,3:1\n1,2:1,3,4:1\n": r"line 4 must have 2 channels of as many values.*got 2:3:1",
    DATA + "1,2:1,3:1\n1,2:1\n": r"line 4 must have 2 channels.*got 2:1\. Is it cut",
    DATA + "1,2,x:1\n": r"line 3, step 2, column 'x0' must be a number; got 'x'",
    DATA + "1,2:1\n1,?:2\n": "leave none for",
    DATA + "1,2:1\n1,?:2\n" * 20: r"got nan at line 4, step 1, column 'x0'.*hold or mask",
    DATA + "1,2:1\n" * 30: "at least 2 classes",
    DATA + "1,2:1\n1,inf:2\n" * 20: r"got inf at line 4, step 1, column 'x0'",
}


@pytest.mark.parametrize("text", WRONG_TS)
def test_a_wrong_ts_file_is_refused_in_one_sentence(cli, tmp_path, text):
    refused(cli, tmp_path / "a.ts", text, WRONG_TS[text])


def test_a_wide_table_is_told_from_a_long_one_and_said(cli, tmp_path):
    X, y, _ = series()
    path, plain = write_wide(tmp_path / "a.csv"), Task.from_arrays(X[..., 0], np.array(["high", "low"])[
        (y == "1").astype(int)])  # fmt: skip
    same(load(path), plain)
    same(load(write_wide(tmp_path / "b.csv", mark="\ufeff", last="Label")), plain)
    timed = load(write_wide(tmp_path / "c.csv", head=[f"{k / 10}" for k in range(8)]))
    same(timed, plain)
    assert timed.sequence.spacing == pytest.approx(0.1)
    index = tmp_path / "d.csv"  # as a data frame writes it
    lines = path.read_text().splitlines()
    index.write_text("\n".join([f",{lines[0]}", *(f"{i},{x}" for i, x in enumerate(lines[1:]))]))
    same(load(index), plain)

    run, out = tmp_path / "run", tmp_path / "p.csv"
    done = cli("train", "--data", path, *SMALL, "--out", run)
    assert done.code == 0, done.err
    assert "read as a wide table: 24 series of 8 times, target 'outcome'" in done.err
    assert cli("predict", run, "--data", path, "--out", out).code == 0
    whole = out.read_text()
    path.write_text("\n".join(line.rpartition(",")[0] for line in lines))  # without a target
    assert cli("predict", run, "--data", path, "--out", out).code == 0
    assert out.read_text() == whole


def test_empty_cells_at_the_end_of_a_wide_row_are_past_its_end(tmp_path):
    X, y, lengths = series()
    lines = ["a,b,c,d,e,f,g,h,target"]
    lines += [",".join([*map(str, x[:k, 0]), *[""] * (8 - k), label])
              for x, label, k in zip(X, y, lengths, strict=True)]  # fmt: skip
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines))
    same(load(path), Task.from_arrays(X[..., 0], y, lengths))
    path.write_text("\n".join([lines[0], ",1,1,1,1,1,1,1,1", *lines[1:]]))
    with pytest.raises(DataError, match=r"got nan at row 2 of a wide table, time 'a'"):
        load(path)


WRONG_WIDE = {
    "0.5,0.1,0.3,u\n" + "1,2,3,v\n" * 9: r"row 1 must be a header.*got 0.5, 0.1, 0.3, u",
    "0.1,0.2,0.3,u\n" + "1,2,3,u\n1,2,3,v\n" * 9: "row 1 must be a header",
    "0,1,2,y\n" + "1,2,3,v\n" * 9: "at least 2 classes",
    "0,1,2,y\n1,2,3,v\n": "leave none for",
    "y\nu\nv\n": "one column for id",
    "0,1,2,y\n1,2,3,v\n1,2,x,v\n": r"row 3 of a wide table, time '2'.* must be a number; got 'x'",
}


@pytest.mark.parametrize("text", WRONG_WIDE)
def test_a_wrong_wide_table_is_refused_in_one_sentence(cli, tmp_path, text):
    refused(cli, tmp_path / "a.csv", text, WRONG_WIDE[text])


def test_a_target_beside_times_is_the_column_with_a_word(tmp_path):
    path = write_wide(tmp_path / "a.csv", head=range(8), last="y")
    first = [",".join([line.rpartition(",")[2], line.rpartition(",")[0]])
             for line in path.read_text().splitlines()]  # fmt: skip
    (tmp_path / "b.csv").write_text("\n".join(first))
    same(load(tmp_path / "b.csv"), load(path))
    (tmp_path / "c.csv").write_text("\n".join(first).replace("y", "-1", 1))
    with pytest.raises(DataError, match=r"row 1 must be a header, .*and of the target"):
        load(tmp_path / "c.csv")


def test_the_index_of_a_data_frame_is_no_time(tmp_path):
    plain, path = load(write_wide(tmp_path / "a.csv")), tmp_path / "b.csv"
    lines = (tmp_path / "a.csv").read_text().splitlines()
    path.write_text(
        "\n".join([f"Unnamed: 0,{lines[0]}", *(f"{i},{x}" for i, x in enumerate(lines[1:]))])
    )
    same(load(path), plain)


@pytest.mark.parametrize(
    ("head", "target", "reason"),
    [
        ("x,y,target", "per-step", "must have one column for id"),
        ("x,y", "forecast", "must have one column for id"),
        ("id,x,y,target", "per-step", "rows of a series must have one 'id', got each once"),
        ("id,date,x,target", "class", "rows of a series must have one 'id', got each once"),
    ],
)
def test_a_row_a_step_is_not_taken_for_a_row_a_series(tmp_path, head, target, reason):
    rows = [",".join(str(2000 + i + k) for k in range(head.count(",") + 1)) for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join([head, *rows]))
    with pytest.raises(DataError, match=reason):
        load(tmp_path / "a.csv", target=target)


def test_one_new_series_of_a_wide_table_may_have_an_id(cli, tmp_path):
    path, run, out = write_wide(tmp_path / "a.csv"), tmp_path / "run", tmp_path / "p.csv"
    assert cli("train", "--data", path, *SMALL, "--out", run).code == 0
    path.write_text("id,a,b,c\nnew,1,2,3\n")
    done = cli("predict", run, "--data", path, "--out", out)
    assert (done.code, "read as a wide table: 1 series of 3 times" in done.out) == (0, True)
    assert out.read_text().splitlines()[1].startswith("new,")


def test_no_group_is_on_two_sides(cli, tmp_path):
    X, y, lengths = series(60)
    X[:, 0, 0] = np.arange(60)  # tells the series apart
    person = np.arange(60) // 3 % 17
    np.savez(tmp_path / "a.npz", X=X, y=y, lengths=lengths, groups=person)
    np.savez(tmp_path / "b.npz", X=X, y=y, lengths=lengths, who=person)
    long = [
        f"{i},{X[i, k, 0]},{X[i, k, 1]},p{person[i]},{y[i]}"
        for i in range(60)
        for k in range(lengths[i])
    ]
    (tmp_path / "c.csv").write_text("\n".join(["id,x0,x1,who,target", *long]))
    files = [
        load(tmp_path / name, split_by=by)
        for name, by in (("a.npz", None), ("b.npz", "who"), ("c.csv", "who"))
    ]
    for task in (Task.from_arrays(X, y, lengths, groups=person), *files):
        mean, std = task.sequence.mean[0], task.sequence.std[0]
        parts = [
            part.x[:, 0, 0].double() * std + mean for part in (task.train, task.val, task.load_test())
        ]
        sides = [{int(person[round(float(x))]) for x in part} for part in parts]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 17
        assert sum(map(len, parts)) == 60
        assert len(sides[1]) == len(sides[2]) == 3  # 0.15 of 17
    with pytest.raises(DataError, match="must hold an array person"):
        load(tmp_path / "a.npz", split_by="person")
    with pytest.raises(DataError, match="split must have each group in one part"):
        Task.from_arrays(X, y, lengths, groups=person, split=["train", "val", "test"] * 20)
    assert "one column for group, named person" in cli.refuses(
        "train", "--data", tmp_path / "c.csv", "--split-by", "person"
    )
    run, out = tmp_path / "run", tmp_path / "p.csv"
    assert cli("train", "--data", tmp_path / "c.csv", "--split-by=who", *SMALL, "--out", run).code == 0
    assert cli("predict", run, "--data", tmp_path / "c.csv", "--out", out).code == 0


def test_a_mask_says_where_a_value_is(cli, tmp_path):
    X, y, lengths = series()
    X[2, 1, 0] = X[5, :, 1] = X[6, 2] = np.nan
    task = Task.from_arrays(X, y, lengths, missing="mask", val_fraction=0, test_fraction=0)
    x, valid = task.train.x, torch.arange(8) < torch.from_numpy(lengths)[:, None]
    assert task.n_input == x.shape[2] == 4
    seen = ~torch.from_numpy(np.isnan(X)) & valid[..., None]
    assert torch.equal(x[..., 2:].bool(), seen)
    assert (x[..., :2][~seen] == 0).all()
    held = Task.from_arrays(X, y, lengths, missing="hold", val_fraction=0, test_fraction=0).train.x
    assert held[2, 1, 0] == held[2, 0, 0]
    assert task.sequence.mean[0] == pytest.approx(np.nanmean(X[..., 0][valid.numpy()]))

    path, run, out = tmp_path / "a.npz", tmp_path / "run", tmp_path / "p.csv"
    np.savez(path, X=X, y=y, lengths=lengths)
    assert "hold or mask" in cli.refuses("train", "--data", path)
    done = cli("train", "--data", path, "--missing=mask", *SMALL, "--out", run)
    assert done.code == 0, done.err
    assert cli("evaluate", run).code == 0
    assert cli("predict", run, "--data", path, "--out", out).code == 0


def test_a_forecast_of_masked_series_is_of_the_channels_alone(cli, tmp_path):
    X, _, lengths = series()
    X[2, 1, 0] = np.nan
    task = Task.from_arrays(X, None, lengths, missing="mask", target="forecast")
    assert (task.n_input, task.n_class) == (4, 2)
    assert task.train.y[..., 0].isnan().any()  # no loss of what is not known
