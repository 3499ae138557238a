"""Estimators by scikit-learn's rules: its own checks, searches over settings, series of all forms."""

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from cli_tools import single  # noqa: F401
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.sklearn import AssemblyClassifier, AssemblyRegressor
from ctrnn_assembly.training.run import Run

SMALL = {"model": "adadiag-tanh", "modules": 2, "units": 8, "dt": 0.5, "epochs": 10, "batch_size": 32,
         "solver": "exponential-euler", "learning_rate": 0.03, "random_state": 0}  # fmt: skip
# Checks that do not apply to series, with the reason: none. docs/howto/pipelines.md says the same.
LEFT_OUT: dict[str, str] = {}


def series(n=60, T=12, seed=0):
    """(n, 2, T): slow and fast sines, and noise that tells them apart as well; words for them."""
    g = np.random.default_rng(seed)
    fast = np.arange(n) % 2
    wave = np.sin(g.uniform(0, 6, (n, 1)) + np.arange(T) * (0.4 + fast[:, None]))
    return np.stack([wave, g.normal(fast[:, None], 1, (n, T))], 1), np.array(["slow", "fäst"])[fast]


@pytest.mark.slow
@parametrize_with_checks(
    [kind(**SMALL | {"units": 4, "epochs": 2}) for kind in (AssemblyClassifier, AssemblyRegressor)],
    expected_failed_checks=lambda estimator: LEFT_OUT,
)
def test_the_checks_of_scikit_learn(estimator, check):
    if check.func.__name__ == "check_regressors_train":  # one of 10 steps decides, which takes longer
        estimator.set_params(model="lstm", epochs=60, learning_rate=0.1)
    check(estimator)


def test_words_are_learnt_predicted_and_pickled():
    X, y = series(120)
    made = AssemblyClassifier(**SMALL).fit(X, y)
    assert list(made.classes_) == ["fäst", "slow"]
    assert made.n_features_in_ == 2
    assert made.certificate_.certified
    assert made.score(*series(seed=1)) > 0.9
    shares = made.predict_proba(X)
    assert shares.sum(1) == pytest.approx(1)
    assert (made.classes_[shares.argmax(1)] == made.predict(X)).all()
    again = pickle.loads(pickle.dumps(made))
    assert np.array_equal(again.predict_proba(X), shares)
    assert np.array_equal(clone(made).fit(X, y).predict_proba(X), shares)
    assert not np.array_equal(clone(made).set_params(random_state=1).fit(X, y).predict_proba(X), shares)


def test_unequal_lengths_are_a_list_and_padding_changes_nothing():
    X, y = series()
    ragged = [one[:, : 6 + i % 7] for i, one in enumerate(X)]
    made = AssemblyClassifier(**SMALL).fit(ragged, y)
    alone = np.concatenate([made.predict_proba([one]) for one in ragged])
    assert made.predict_proba(ragged) == pytest.approx(alone, abs=1e-6)
    whole = made.predict_proba(X)  # an array, of another length than any of training
    assert whole == pytest.approx(made.predict_proba(list(X)), abs=1e-12)
    with pytest.raises(DataError, match=r"must have the channels x0, x1, as in training; got x0"):
        made.predict(X[:, :1])
    with pytest.raises(DataError, match=r"series must all be \(2 channels, time\)"):
        made.predict([X[0], X[0][:1]])


def test_a_table_is_of_one_channel_and_goes_through_a_pipeline():
    X, y = series()
    pipe = make_pipeline(StandardScaler(), AssemblyClassifier(**SMALL)).fit(X[:, 0], y)
    assert pipe.predict(X[:, 0]).shape == (60,)
    one = AssemblyClassifier(**SMALL).fit(X[:, 0], y)
    same = AssemblyClassifier(**SMALL).fit(X[:, :1], y)
    assert np.array_equal(one.predict_proba(X[:, 0]), same.predict_proba(X[:, :1]))


def test_values_are_in_their_own_unit():
    X, _ = series(80)
    y = 1000 + 50 * X[:, 0, -1]
    made = AssemblyRegressor(**SMALL | {"epochs": 30}).fit(X, y)
    assert made.score(X, y) > 0.8
    assert made.predict(X).shape == (80,)
    both = AssemblyRegressor(**SMALL).fit(X, np.stack([y, -y], 1))
    assert both.predict(X).shape == (80, 2)


@pytest.mark.slow
def test_a_grid_search_over_settings():
    X, y = series()
    grid = {"units": [2, 8], "learning_rate": [1e-4, 0.05]}
    search = GridSearchCV(AssemblyClassifier(**SMALL), grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_["learning_rate"] == 0.05
    ragged = [one[:, : 6 + i % 7] for i, one in enumerate(X)]
    assert search.fit(ragged, y).best_score_ > 0.5


def test_a_fit_is_quiet_and_leaves_nothing_but_what_is_asked_for(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    X, y = series()
    threads, drawn = torch.get_num_threads(), torch.get_rng_state()
    AssemblyClassifier(**SMALL).fit(X, y)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), drawn)
    assert capfd.readouterr() == ("", "")
    assert [*tmp_path.rglob("*")] == [tmp_path / "tmp"]
    kept = AssemblyClassifier(**SMALL, run_dir=tmp_path / "runs", verbose=True).fit(X, y).fit(X, y)
    assert len([*(tmp_path / "runs").iterdir()]) == 2
    assert "epoch 10/10" in capfd.readouterr().err
    run = Run.open(kept.run_)
    assert run.weights.sha256 == kept.summary_["weights_sha256"]
    assert run.summary["test_accuracy"] is None  # nothing was held out for a test


def test_validation_takes_its_share_of_each_class_and_never_all_of_one():
    X, y = series(40)
    y[:1] = "rare"
    split = AssemblyClassifier(**SMALL).fit(X, y).summary_
    assert split["val_accuracy"] * 5 % 1 == pytest.approx(0, abs=1e-9)  # 2 or 3 of each: 5 in all
    few = AssemblyClassifier(**SMALL).fit(X[:4], y[:4])  # training data choose the epoch
    assert few.predict(X[:4]).shape == (4,)


def test_settings_are_checked_and_gaps_are_held_or_refused():
    X, y = series()
    with pytest.raises(ConfigError, match="units must be"):
        AssemblyClassifier(units=0).fit(X, y)
    with pytest.raises(ConfigError, match="got 'unit'"):
        AssemblyClassifier(config={"unit": 3}).fit(X, y)
    for share in (-0.5, 1.0):  # a negative one would count from the end
        with pytest.raises(ConfigError, match="val_fraction must be"):
            AssemblyClassifier(**SMALL, validation_fraction=share).fit(X, y)
    with pytest.raises(NotFittedError):
        _ = AssemblyClassifier().certificate_
    X[3, 0, 4] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        AssemblyClassifier(**SMALL).fit(X, y)
    held = AssemblyClassifier(**SMALL, missing="hold").fit(X, y)
    assert np.isfinite(held.predict_proba(X)).all()
