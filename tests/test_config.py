"""Settings are checked where they come in; a message says which, and what it must be."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from ctrnn_assembly.data import TASKS
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.models import MODELS
from ctrnn_assembly.schemes import SOLVERS
from ctrnn_assembly.settings import Group
from ctrnn_assembly.topology import named_pairs
from ctrnn_assembly.training.config import (
    TrainConfig,
    make_config,
    read_yaml,
    recipe,
    recipes,
    to_yaml,
)


def test_later_layers_win() -> None:
    config = make_config({"epochs": 3, "dt": 0.1}, {"epochs": 5})
    assert (config.epochs, config.dt, config.units) == (5, 0.1, 32)


@pytest.mark.parametrize(
    ("setting", "must"),
    [
        ({"epochs": 0}, "epochs must be greater than or equal to 1; got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be greater than 0; got -1.0"),
        ({"dt": float("nan")}, "dt must be a finite number; got nan"),
        ({"tau": float("inf")}, "tau must be a finite number; got inf"),
        ({"density": 1.5}, "density must be less than or equal to 1; got 1.5"),
        ({"magnitude": 0}, "magnitude must be greater than 0; got 0"),
        ({"activation_place": "z"}, "activation_place must be 'outside' or 'inside'; got 'z'"),
        ({"epochs": "many"}, "epochs must be a valid integer; got 'many'"),
        ({"milestones": [5, 0]}, "milestones.1 must be greater than or equal to 1; got 0"),
        ({"seed": 2**32}, "seed must be less than 4294967296"),
        ({"limit_train": 0}, "limit_train must be greater than or equal to 1"),
    ],
)
def test_an_impossible_value_is_refused(setting: dict[str, object], must: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(setting)
    assert must in str(caught.value)


@pytest.mark.parametrize("key", ["lr", 1])
def test_an_unknown_key_is_refused_with_the_known_ones(key: object) -> None:
    with pytest.raises(ConfigError, match=f"^got '{key}'[.:] .*setting must be one of ") as caught:
        make_config({key: 1})  # type: ignore[dict-item]
    assert all(name in str(caught.value) for name in TrainConfig.model_fields)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"schedule": "steps", "milestones": [5, 3]}, "milestones must increase; got (5, 3)"),
        ({"schedule": "steps", "milestones": [3, 3]}, "milestones must increase; got (3, 3)"),
        ({"schedule": "steps"}, "schedule steps must have milestones"),
        ({"keep_epochs": [2, 1]}, "keep_epochs must increase"),
        ({"fit_all": True, "patience": 2}, "fit_all leaves no validation data to stop by"),
        (
            {"certify_every": 2, "require_certificate": "discrete"},
            "certify_every must be 1 where require_certificate is discrete",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(settings)
    assert reason in str(caught.value)
    with pytest.raises(ValidationError, match=re.escape(reason)):  # at construction as well
        TrainConfig(**settings)


def test_settings_that_do_nothing_are_said() -> None:
    late = {"schedule": "steps", "milestones": [2, 80], "keep_epochs": [5], "patience": 9}
    assert make_config(late, {"epochs": 3, "warmup_epochs": 3}).unused() == [
        "milestones [80] lie beyond the last epoch, 3",
        "keep_epochs [5] lie beyond the last epoch, 3",
        "warmup_epochs 3 leaves no epoch of 3 after it",
        "patience 9 cannot end 3 epochs",
    ]
    assert make_config(late, {"epochs": 81}).unused() == []
    assert make_config({"milestones": [3], "lr_gamma": 0.5}).unused() == [
        "milestones [3] are not used by schedule cosine",
        "lr_gamma 0.5 is not used by schedule cosine",
    ]


def test_every_setting_has_a_group() -> None:
    groups = [field.title for field in TrainConfig.model_fields.values()]
    assert list(dict.fromkeys(groups)) == list(get_args(Group))


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = make_config({"milestones": [3, 4], "activation": "tanh", "precision": "64", "dt": 1e-5})
    (tmp_path / "c.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert make_config(read_yaml(tmp_path / "c.yaml")) == config


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1\nb: }", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"", "must hold `key: value` lines; got NoneType"),
        (b"- epochs", "must hold `key: value` lines; got list"),
        (b"!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        (b"epochs: 1\ndt: 1\nepochs: 2", "'epochs' stands in line 1 and again in line 3"),
        (b"{dt: 1, dt: 2}", "'dt' stands in line 1 and again in line 1"),
        (b"a:\n  b: 1\n  b: 1", "'b' stands in line 2 and again in line 3"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert reason in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_names_what_exists(name: str) -> None:
    config = make_config(recipe(name))
    assert config.model in MODELS
    assert config.solver in SOLVERS
    assert any(config.task.startswith(task.split(":")[0].split("[")[0]) for task in TASKS)
    named_pairs(config.coupling, config.modules)
    assert len(recipes()[name]["about"]) < 120
    assert set(recipes()[name]) == {"about", "settings"}


def test_published_recipes_have_the_published_settings() -> None:
    config = make_config(recipe("sparse-combo-scifar10"))
    published = (16, 32, 0.033, 64, 0.001, (140, 190), 0.1, 1e-5, 0.0, 200, 0.03)
    assert published == (
        config.modules,
        config.units,
        config.density,
        config.batch_size,
        config.learning_rate,
        config.milestones,
        config.lr_gamma,
        config.weight_decay,
        config.gradient_clip_norm,
        config.epochs,
        config.dt,
    )


def test_only_digits_starts_from_a_recipe_of_its_own() -> None:
    assert [name for name in recipes() if name in TASKS] == ["digits"]


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="recipe must be one of") as caught:
        recipe("nope")
    assert all(name in str(caught.value) for name in recipes())


def test_recipe_files_are_plain_yaml() -> None:
    for entry in recipes().values():
        assert yaml.safe_load(yaml.safe_dump(entry)) == entry
