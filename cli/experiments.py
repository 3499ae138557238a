"""What an experiment is: a YAML file with its rows, and the runs that they ask for.

    about, source       what it is, and which table or figure of which paper
    recipe, settings    what all rows start from: a recipe of the package, settings of `TrainConfig`
    rows                each: name, and its own recipe, settings, seeds, published figures
    seeds               runs of a row, with seeds 0, 1, ...
    test_every_epoch    whether the best test epoch is reported, as many papers do
    fast                settings that shrink it further under --fast
    evaluate            other solvers and steps to test the trained weights with
    lyapunov            epochs after which the largest exponent is measured; 0 is before training
    pictures            kinds of `ctrnn plot` to draw of each run

A published figure is written here, or in published.yaml if `ctrnn plot` draws it as well; then it is
named here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.training.config import TrainConfig, make_config, recipe
from ctrnn_cli.published import named_published

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
# Lightly trained on a few small samples: enough to see that a row runs.
FAST = {"epochs": 2, "limit_train": 256, "limit_test": 256, "warmup_epochs": 0}
FAST_SIDE = 7
# Where and how a run is made may change; what it computes may not.
FREE = {"data_dir", "device", "devices", "nodes", "threads", "logger", "certify_every", "keep_epochs"}


class Part(BaseModel):
    """A part of the file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(Part):
    """A published accuracy in per cent.

    Attributes:
        what: of the best test epoch, of the last one, or as the paper says without a word on it.
        n: runs behind it.
    """

    value: float
    std: float | None = None
    n: int | None = None
    what: Literal["best", "final", "reported"]
    note: str = ""

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:g}"
        count = "" if self.n is None else f", n={self.n}"
        return f"{self.value:g}{spread} ({self.what}{count})"


class Row(Part):
    """One line of the table."""

    name: Name
    recipe: str | None = None
    settings: dict[str, Any] = {}
    seeds: int | None = Field(None, ge=1)
    published: tuple[Figure, ...] = ()


class Evaluation(Part):
    """The trained weights, tested with other settings; each sample held for `repeat` steps of dt."""

    name: Name
    settings: dict[str, Any] = {}
    repeat: int = Field(1, ge=1)


class Experiment(Part):
    """One file."""

    name: Name
    about: str
    source: str
    recipe: str | None = None
    settings: dict[str, Any] = {}
    rows: tuple[Row, ...] = Field(min_length=1)
    seeds: int = Field(1, ge=1)
    test_every_epoch: bool = False
    fast: dict[str, Any] = {}
    evaluate: tuple[Evaluation, ...] = ()
    lyapunov: tuple[Annotated[int, Field(ge=0)], ...] = ()
    pictures: tuple[Literal["curves", "certificate", "weights", "graph", "metric"], ...] = ()

    def highest(self) -> str:
        """The highest published figure, and the row it is of."""
        figures = [(figure, row.name) for row in self.rows for figure in row.published]
        if not figures:
            return "-"
        figure, name = max(figures, key=lambda one: one[0].value)
        return f"{figure}: {name}"

    def measures(self) -> dict[str, Any]:
        """What is measured beyond training, as plain values."""
        asked = self.model_dump(mode="json", include={"evaluate", "lyapunov"})
        return {name: value for name, value in asked.items() if value}

    def row(self, name: str) -> Row:
        """One row by name."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class Job:
    """One run: a row with a seed, whole or fast."""

    experiment: Experiment
    row: Row
    seed: int
    fast: bool

    @property
    def name(self) -> str:
        """Of its run folder and of its result."""
        return f"{self.row.name}-seed{self.seed}"

    @property
    def folder(self) -> str:
        """Where runs and results of its experiment are; fast ones are never beside whole ones."""
        return f"{self.experiment.name}-fast" if self.fast else self.experiment.name

    def config(self, data_dir: str | None = None) -> TrainConfig:
        """Its configuration.

        Raises:
            ConfigError: if the file asks for what is not there.
        """
        e, row = self.experiment, self.row
        layers: list[dict[str, Any]] = [{"threads": 1}]  # sums over threads round differently
        layers += [recipe(e.recipe)] if e.recipe else []
        layers += [e.settings]
        layers += [recipe(row.recipe)] if row.recipe else []
        layers += [row.settings, {"test_every_epoch": e.test_every_epoch, "data_dir": data_dir}]
        if self.fast:
            image = str(make_config(*layers).task).startswith(("smnist", "psmnist", "scifar", "images"))
            layers += [FAST, {"resize": FAST_SIDE} if image else {}, e.fast]
        config = make_config(*layers, {"seed": self.seed})
        keep = [epoch for epoch in e.lyapunov if 0 < epoch <= config.epochs]
        return make_config(config.model_dump(), {"keep_epochs": keep})

    def command(self, *, data: bool) -> str:
        """What makes its result again; DATA stands for a folder that was named."""
        options = f" --data-dir DATA{' --fast' if self.fast else ''}" if data else " --fast" * self.fast
        chosen = f"--rows {self.row.name} --seed {self.seed}"
        return f"ctrnn reproduce {self.experiment.name} {chosen}{options}"


def jobs(
    experiment: Experiment,
    *,
    rows: Iterable[str] = (),
    seeds: int | None = None,
    only: Iterable[int] = (),
    fast: bool = False,
) -> list[Job]:
    """The runs of an experiment, seed by seed, so that every row has its first early.

    Args:
        rows: names, or patterns like `svd-*`; all if there are none.
        seeds: runs of each row instead of the file's number. only: these seeds instead.

    Raises:
        ConfigError: if a pattern matches no row.
    """
    found = []
    for row in matching(experiment, rows):
        asked = range(seeds or (1 if fast else row.seeds or experiment.seeds))
        found += [Job(experiment, row, seed, fast) for seed in list(only) or asked]
    return sorted(found, key=lambda job: job.seed)


def matching(experiment: Experiment, patterns: Iterable[str]) -> list[Row]:
    """The rows that match one of the patterns; all if there are none.

    Raises:
        ConfigError: if a pattern matches no row.
    """
    patterns = list(patterns) or ["*"]
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in experiment.rows):
            known = ", ".join(row.name for row in experiment.rows)
            raise ConfigError(f"{experiment.name} has no row {pattern!r}. Its rows: {known}.")
    return [r for r in experiment.rows if any(fnmatchcase(r.name, p) for p in patterns)]


def difference(one: TrainConfig, other: TrainConfig) -> str:
    """The first setting in which two configurations differ, with both values; empty if in none."""
    for key in TrainConfig.model_fields:
        a, b = getattr(one, key), getattr(other, key)
        if key not in FREE and a != b:
            return f"{key} {a!r} for {b!r}"
    return ""


def experiment_names() -> list[str]:
    """All experiments, in alphabetical order."""
    return sorted(e.name.removesuffix(".yaml") for e in _folder().iterdir() if e.name.endswith(".yaml"))


@cache
def load_experiment(name: str) -> Experiment:
    """One experiment by name.

    Raises:
        ConfigError: if the name is unknown, or its file does not say what an experiment is.
    """
    if name not in experiment_names():
        known = ", ".join(experiment_names())
        raise ConfigError(f"experiment must be one of {known}; got {name!r}.")
    text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_experiment(name, text)


def parse_experiment(name: str, text: str) -> Experiment:
    """An experiment from the text of its file.

    Raises:
        ConfigError: naming the key, its value and what it must be.
    """
    try:
        loaded = yaml.safe_load(text)
        for row in loaded["rows"]:
            row["published"] = [_figure(figure) for figure in row.get("published", ())]
        experiment = Experiment.model_validate({**loaded, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name}.yaml: {key}: {first['msg']}; got {first['input']!r}.") from None
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name}.yaml must hold about, source and rows; got {reason}.") from None
    names = [row.name for row in experiment.rows]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError(f"{name}.yaml: rows must have different names; got {double!r} twice.")
    return experiment


def _figure(figure: Any) -> Any:
    """A figure as it stands here, or that of published.yaml with this name."""
    if not isinstance(figure, str):
        return figure
    found = named_published(figure)
    return {
        "value": found.accuracy,
        "std": found.std,
        "n": found.n,
        "what": found.what,
        "note": found.selection,
    }


def _folder() -> Traversable:
    return resources.files("ctrnn_experiments")
