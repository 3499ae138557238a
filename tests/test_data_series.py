"""UCR/UEA series: hand-written .ts files, and the sets that ship with aeon where it is installed."""

import builtins

import pytest
import torch

from ctrnn_assembly.data import load_task
from ctrnn_assembly.errors import ConfigError, DataError

HEADER = """@problemName Toy
@timestamps false
@missing {missing}
@univariate false
@dimension 2
@equalLength {equal}
@seriesLength 3
@classLabel true up down
@data
"""


@pytest.fixture
def _aeon():
    pytest.importorskip("aeon", reason="the extra 'series' (aeon) is not installed")


def write_toy(folder, train, test, equal="true"):
    home = folder / "Toy"
    home.mkdir()
    for part, rows in (("TRAIN", train), ("TEST", test)):
        text = HEADER.format(equal=equal, missing="true" if "?" in "".join(rows) else "false")
        (home / f"Toy_{part}.ts").write_text(text + "\n".join(rows) + "\n")
    return home


ROWS = [f"{i},2,3:4,5,6:{label}" for i in range(10) for label in ("up", "down")]


def test_series_are_transposed_split_and_labelled(tmp_path):
    write_toy(tmp_path, ROWS, ROWS[:4])
    task = load_task("series:Toy", data_dir=tmp_path)
    assert (task.n_steps, task.n_input, task.classes) == (3, 2, ("down", "up"))
    assert (len(task.train), len(task.val), len(task.load_test())) == (16, 4, 4)
    assert torch.bincount(task.val.y).tolist() == [2, 2]
    assert task.train.lengths is None
    assert task.train.x[0, :, 1].tolist() == [4, 5, 6]
    test = task.load_test()
    assert test.x[2].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert test.y.tolist() == [1, 0, 1, 0]
    assert torch.equal(task.sequence(test.x, torch.Generator()), test.x)


def test_unequal_series_are_padded_with_zeros_and_give_lengths(tmp_path):
    short = [f"{i}:4:{label}" for i in range(5) for label in ("up", "down")]
    write_toy(tmp_path, ROWS[:10] + short, ["1,2,3,4,5:1,2,3,4,5:up"], equal="false")
    task = load_task("series:Toy", data_dir=tmp_path)
    lengths = torch.cat([task.train.lengths, task.val.lengths])
    assert sorted(lengths.tolist()) == [1] * 10 + [3] * 10
    for split in (task.train, task.val):
        after = torch.arange(3) >= split.lengths[:, None]
        assert (split.x[after] == 0).all()
        assert (split.x[~after][:, 1] > 0).all()
    assert task.n_steps == 3
    assert task.load_test().x.shape == (1, 5, 2)  # longer than any training series


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "", "is empty"),
        (lambda text: text[: text.index("@data")], "is empty"),
        (lambda text: text[: len(text) - 8], r"line 29 must have 2 channels.*Is it cut"),
        (
            lambda text: text[: len(text) - 3],
            "line 29 must end in one of the classes up, down; got 'do'",
        ),
        (lambda text: text.replace("2,3:4", "2:4", 1), "line 10 must have 2 channels of as many values"),
        (lambda text: text.replace("2,3", "x,3", 1), "line 10, step 1, column 'x0' must be a number"),
        (lambda text: text.replace("2,3", "?,3", 1), "got nan at line 10, step 1, column 'x0'"),
        (lambda text: text.replace("2,3", "inf,3", 1), "got inf at line 10, step 1, column 'x0'"),
    ],
)
def test_damaged_series_files_are_named_errors(tmp_path, damage, words):
    file = write_toy(tmp_path, ROWS, ROWS) / "Toy_TRAIN.ts"
    file.write_text(damage(file.read_text()))
    with pytest.raises(DataError, match=words):
        load_task("series:Toy", data_dir=tmp_path)


def test_no_test_file_is_read_before_load_test(tmp_path):
    home = write_toy(tmp_path, ROWS, ROWS)
    (home / "Toy_TEST.ts").write_text("broken")
    task = load_task("series:Toy", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"Toy_TEST.ts: line 1 must be a tag"):
        task.load_test()


def test_a_class_that_only_test_has_is_refused(tmp_path):
    write_toy(tmp_path, ROWS[::2], ROWS)
    with pytest.raises(DataError, match="a class must have a training sample; got 'down'"):
        load_task("series:Toy", data_dir=tmp_path).load_test()


@pytest.mark.usefixtures("_aeon")
def test_a_missing_set_names_its_files_and_folder(tmp_path):
    # Not a name that aeon could download, so this needs no network.
    with pytest.raises(
        DataError, match=r"NoSuchSet_TRAIN\.ts and NoSuchSet_TEST\.ts, as of .* into"
    ) as e:
        load_task("series:NoSuchSet", data_dir=tmp_path)
    assert str(tmp_path / "NoSuchSet") in str(e.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_aeon")
def test_resize_and_paths_in_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="resize is for images"):
        load_task("series:JapaneseVowels", resize=8)
    with pytest.raises(ConfigError, match="task must be one of"):
        load_task("series:../secret", data_dir=tmp_path)


def test_without_aeon_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "aeon":
            raise ImportError("No module named 'aeon'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'ctrnn-assembly\[series\]'"):
        load_task("series:JapaneseVowels")


@pytest.mark.usefixtures("_aeon")
def test_japanese_vowels_ships_with_aeon(tmp_path):
    task = load_task("series:JapaneseVowels", data_dir=tmp_path)
    test = task.load_test()
    assert (len(task.train), len(task.val), len(test)) == (216, 54, 370)
    assert (task.n_input, task.n_class, task.n_steps) == (12, 9, 26)
    assert int(test.lengths.max()) == 29
    assert int(task.train.lengths.min()) >= 7
    assert list(tmp_path.iterdir()) == []  # nothing was downloaded
