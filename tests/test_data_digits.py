"""The embedded digits, and what all tasks share: names, limits, checks, lazy imports."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ctrnn_assembly.data import TASKS, Split, load_task
from ctrnn_assembly.data.task import checked, dealt
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.training.config import make_config


def test_digits_have_the_stated_shape_values_and_split_sizes():
    task = load_task("digits")
    test = task.load_test()
    assert (len(task.train), len(task.val), len(test)) == (1257, 180, 360)
    assert (task.name, task.n_steps, task.n_input, task.n_class) == ("digits", 64, 1, 10)
    for split in (task.train, task.val, test):
        assert split.x.dtype == torch.uint8
        assert split.y.dtype == torch.int64
        assert set(split.y.tolist()) == set(range(10))
    u = task.sequence(task.train.x)
    assert (u.shape, u.dtype) == ((1257, 64, 1), torch.float32)
    assert (u.min(), u.max()) == (0, 1)
    torch.testing.assert_close(u[7, 9, 0], task.train.x[7, 0, 1, 1] / 16.0, rtol=0, atol=0)


def test_digits_splits_are_disjoint_complete_and_independent_of_the_seed():
    task, other = load_task("digits"), load_task("digits", seed=9)
    parts = (task.train, task.val, task.load_test())
    images = torch.cat([p.x for p in parts]).flatten(1)
    # Every image of the set is different, so distinct rows mean distinct samples.
    assert len(images.unique(dim=0)) == len(images) == 1797
    assert torch.equal(task.train.x, other.train.x)
    assert torch.equal(task.load_test().x, other.load_test().x)


def test_each_fold_has_its_share_of_every_class():
    y = np.repeat(np.arange(3), [100, 50, 10])
    folds = dealt(y, 10, {str(k): (k,) for k in range(10)})
    assert len(folds.pop("train")) == 0
    assert all(np.bincount(y[fold]).tolist() == [10, 5, 1] for fold in folds.values())
    assert sorted(torch.cat([*folds.values()]).tolist()) == list(range(160))


def test_limits_draw_by_seed_and_cut_val_too():
    a, b = load_task("digits", limit_train=50, seed=1), load_task("digits", limit_train=50, seed=2)
    again = load_task("digits", limit_train=50, limit_test=7, seed=1)
    assert (len(a.train), len(a.val), len(again.load_test())) == (50, 50, 7)
    assert torch.equal(a.train.x, again.train.x)
    assert not torch.equal(a.train.x, b.train.x)
    assert len(load_task("digits", limit_train=10**6).train) == 1257


def test_resize_shortens_the_sequence():
    task = load_task("digits", resize=4)
    assert (task.n_steps, task.train.x.shape[2:]) == (16, (4, 4))
    assert task.load_test().x.shape == (360, 1, 4, 4)
    # Anti-aliasing averages: brightness stays within what rounding to whole levels allows.
    whole = load_task("digits")
    assert abs(task.train.x.float().mean() - whole.train.x.float().mean()) < 0.5


@pytest.mark.parametrize("field", ["resize", "limit_train", "limit_test"])
def test_impossible_sizes_are_refused(field):
    with pytest.raises(ConfigError, match=f"{field} must be greater than or equal to 1; got 0"):
        load_task("digits", **{field: 0})


@pytest.mark.parametrize("name", ["mnist", "psmnist-", "psmnist-1-RAW", "series:", "digits2", ""])
def test_an_unknown_task_lists_the_known_ones(name):
    with pytest.raises(ConfigError, match="task must be one of digits, smnist, psmnist") as caught:
        load_task(name)
    assert all(known in str(caught.value) for known in TASKS)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (Split(torch.zeros(2, 3, 1), torch.tensor([0, 1, 1])), "2 samples but 3 labels"),
        (Split(torch.zeros(2, 3, 1), torch.tensor([0, 2])), "must lie in 0..1; got 0..2"),
        (Split(torch.full((2, 3, 1), torch.nan), torch.tensor([0, 1])), "NaN .* 2 of 2"),
        (Split(torch.full((2, 3, 1), torch.inf), torch.tensor([0, 1])), "infinite"),
    ],
)
def test_an_unsound_split_is_refused(split, words):
    with pytest.raises(DataError, match=words):
        checked("toy split", split, 2)


def test_the_data_folder_is_argument_then_environment_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CTRNN_DATA_DIR", str(tmp_path / "env"))
    assert make_config({"data_dir": str(tmp_path)}).folder == tmp_path
    assert make_config().folder == tmp_path / "env"
    monkeypatch.delenv("CTRNN_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_config().folder == tmp_path / ".cache" / "ctrnn"


def test_loading_digits_imports_no_optional_library():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import torch, numpy; import ctrnn_assembly\n"
        "already = set(sys.modules)\n"
        "import ctrnn_assembly.data as data; data.load_task('digits').load_test()\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - already}\n"
        "print(sorted(new & {'torchvision', 'PIL', 'aeon', 'scipy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
