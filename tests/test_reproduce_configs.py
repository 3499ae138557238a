"""Every row of every experiment is a run that can be made, whole and with --fast."""

import re
from importlib import resources
from typing import Any

import pytest
import torch

from cli_tools import single as single
from ctrnn_assembly.data import TASKS
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.reproduction.experiments import (
    Experiment,
    Job,
    experiment_names,
    load_experiment,
    parse_experiment,
)
from ctrnn_assembly.training.config import TrainConfig, difference
from ctrnn_assembly.training.run import lasting, model_from

EXPERIMENTS = [load_experiment(name) for name in experiment_names()]
BUILDS = ("model", "modules", "units", "density", "magnitude", "outside_set", "activation",
          "activation_place", "coupling", "coupling_kind", "solver", "dt", "precision")  # fmt: skip
GOOD = "about: a\nsource: b\nrows:\n  - {name: one, settings: {task: digits}}\n"


def rows_of(experiment: Experiment) -> list[Job]:
    return [Job(experiment, row, 0, False) for row in experiment.rows]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=experiment_names())
def test_every_row_has_valid_settings(experiment: Experiment) -> None:
    for fast in (False, True):
        for job in experiment.jobs(fast=fast):
            config = job.config("/data")
            assert any(re.fullmatch(task.pattern, config.task) for task in TASKS.values())
            assert (config.seed, config.data_dir, config.threads) == (job.seed, "/data", 1)
            assert config.test_every_epoch == experiment.test_every_epoch
            assert set(config.keep_epochs) <= {*experiment.lyapunov} - {0}
            assert not fast or (config.epochs <= 2 and (config.limit_train or 0) <= 512)
    assert len(experiment.jobs(fast=True)) == len(experiment.rows)


@pytest.mark.slow
def test_every_row_builds_its_model_and_takes_a_step() -> None:
    seen: set[tuple[Any, ...]] = set()
    for job in (job for experiment in EXPERIMENTS for job in rows_of(experiment)):
        config = job.config()
        key = tuple(getattr(config, name) for name in BUILDS)
        if key in seen:
            continue
        seen.add(key)
        logits = model_from(config, 2, 3)(torch.zeros(1, 2, 2))
        assert logits.isfinite().all(), (job.experiment.name, job.name)


def test_published_figures_are_percentages_with_a_source() -> None:
    for experiment in EXPERIMENTS:
        for figure in (figure for row in experiment.rows for figure in row.published):
            assert 10 < figure.value < 100, (experiment.name, figure)
    named = {figure.value for e in EXPERIMENTS for row in e.rows for figure in row.published}
    assert {99.04, 96.94, 65.72, 88.71, 88.53, 88.89, 89.63, 98.15, 97.77} <= named


def test_the_japanese_vowels_have_the_runs_that_were_asked_for() -> None:
    experiment = load_experiment("japanese-vowels")
    config = Job(experiment, *experiment.matching(["adadiag-gated"]), 0).config()
    shape = (config.modules, config.units, config.coupling, config.epochs, config.batch_size)
    assert shape == (16, 32, "random:20", 250, 16)
    counts = {row.name: len(experiment.jobs([row.name])) for row in experiment.rows}
    assert counts["absolute"] == counts["svd-combo"] == counts["adadiag-constant"] == 5
    assert counts["published-sparse-combo"] == counts["lstm"] == counts["adadiag-gated"] == 2


def test_seeds_and_rows_can_be_chosen() -> None:
    experiment = load_experiment("digits")
    assert len(experiment.matching()) == len(experiment.rows)
    assert {job.path for job in experiment.jobs(["rnn", "lst*"], seeds=[0])} == {
        "digits/rnn-seed0", "digits/lstm-seed0"
    }  # fmt: skip
    assert [job.seed for job in experiment.jobs(["rnn"], seeds=[7])] == [7]
    assert [job.seed for job in experiment.jobs()][: len(experiment.rows)] == [0] * len(experiment.rows)


def test_the_command_of_a_run_names_no_folder() -> None:
    experiment = load_experiment("digits")
    job = Job(experiment, *experiment.matching(["rnn"]), 3)
    assert job.command(data=False) == "ctrnn reproduce digits --rows rnn --seed 3"
    assert job.command(data=True).endswith("--data-dir DATA")
    assert Job(experiment, job.row, 3, True).command(data=False).endswith("--seed 3 --fast")


def test_only_what_is_computed_makes_a_difference() -> None:
    one = TrainConfig()
    assert difference(one, one.model_copy(update={"data_dir": "x", "device": "cuda"})) == ""
    assert difference(one, one.model_copy(update={"epochs": 3})) == "epochs 100 for 3"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- rows", "must hold about, source and rows"),
        ("about: [", "must hold about, source and rows"),
        (GOOD.replace("source: b\n", ""), "some.yaml: source must be there"),
        (GOOD + "against: tow\n", "got 'tow': some.yaml: against must be one of one."),
        (GOOD + "sedes: 3\n", "got 'sedes'. Did you mean 'seeds'? some.yaml: setting"),
        (GOOD + "seeds: 0\n", "seeds must be greater than or equal to 1; got 0"),
        (GOOD.replace("one", "One!"), "rows.0.name must match"),
        (GOOD + "  - {name: one}\n", "rows must have different names; got 'one' twice"),
        (GOOD + "  - {name: two, published: [nobody]}\n", "published figure must be one of"),
        (GOOD + "  - {name: two, published: [{value: 3, what: guessed}]}\n", "what must be"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment("some", text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_of_a_row_is_refused() -> None:
    experiment = parse_experiment("some", GOOD.replace("task", "tusk"))
    with pytest.raises(ConfigError, match="got 'tusk'"):
        Job(experiment, experiment.rows[0], 0, False).config()


def test_the_experiments_are_in_the_package() -> None:
    assert (resources.files("ctrnn_experiments") / "digits.yaml").is_file()


def test_times_are_said_as_people_say_them() -> None:
    said = [lasting(seconds) for seconds in (3, 89, 100, 3 * 3600, 5 * 86400)]
    assert said == ["3 s", "89 s", "1.67 min", "3 h", "5 d"]
