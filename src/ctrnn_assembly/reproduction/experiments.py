"""What an experiment is: a YAML file with its rows, and the runs that they ask for.

    about, source       what it is, and which table or figure of which paper
    recipe, settings    what all rows start from: a recipe of the package, settings of `TrainConfig`
    rows                each: name, and its own recipe, settings, seeds, published accuracies
    seeds               runs of a row, with seeds 0, 1, ...
    against             a row, from which every other's paired difference is printed
    test_every_epoch    whether the best test epoch is reported, as many papers do
    fast                settings that shrink it further under --fast
    evaluate            other solvers and steps to test the trained weights with
    lyapunov            epochs after which the largest exponent is measured; 0 is before training

A published accuracy is written here, or in published.yaml, if `ctrnn plot` draws it, and named here.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator

from ctrnn_assembly.errors import ConfigError, check_known, unknown
from ctrnn_assembly.settings import Part, parsed
from ctrnn_assembly.training.config import TrainConfig, load_yaml, make_config, recipe, trial
from ctrnn_assembly.training.run import Run

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


class PublishedAccuracy(Part):
    """A published test accuracy, in per cent; name and what follows it are for published.yaml."""

    value: float
    what: Literal["best", "final", "reported"]  # test epoch; reported: the paper does not say which
    std: float | None = None
    n: int | None = None  # runs
    note: str = ""  # which number of the source's it is
    name: str = ""
    task: str = ""  # without its version
    network: str = ""  # as the source calls it
    source: str = ""
    models: tuple[str, ...] = ()  # of the library, beside which a plot shows it; empty for all

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:g}"
        count = "" if self.n is None else f", n={self.n}"
        return f"{self.value:g}{spread} ({self.what}{count})"


@cache
def all_published() -> dict[str, PublishedAccuracy]:
    """Every row of published.yaml by name."""
    text = (resources.files("ctrnn_assembly") / "published.yaml").read_text(encoding="utf-8")
    return {row["name"]: PublishedAccuracy.model_validate(row) for row in load_yaml(text)}


class Row(Part):
    name: Name
    recipe: str | None = None
    settings: dict[str, Any] = Field({})
    seeds: int | None = Field(None, ge=1)
    published: tuple[PublishedAccuracy, ...] = ()

    @field_validator("published", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        names, known = [one for one in given if isinstance(one, str)], all_published()
        if gone := set(names) - set(known):
            raise unknown("published figure", gone.pop(), known)
        return [known[one] if isinstance(one, str) else one for one in given]


class Evaluation(Part):
    """The trained weights, tested with other settings."""

    name: Name
    settings: dict[str, Any] = Field({})


class Experiment(Part):
    name: Name
    about: str
    source: str
    recipe: str | None = None
    settings: dict[str, Any] = Field({})
    rows: tuple[Row, ...] = Field(min_length=1)
    seeds: int = Field(1, ge=1)
    against: str | None = None
    test_every_epoch: bool = False
    fast: dict[str, Any] = Field({})
    evaluate: tuple[Evaluation, ...] = ()
    lyapunov: tuple[Annotated[int, Field(ge=0)], ...] = ()

    def measures(self) -> dict[str, Any]:
        """What is measured beyond training, as plain values."""
        asked = self.model_dump(mode="json", include={"evaluate", "lyapunov"})
        return {name: value for name, value in asked.items() if value}

    def matching(self, patterns: Iterable[str] = ()) -> list[Row]:
        """The rows with one of these names or patterns like svd-*, each of which must match; or all."""
        names, patterns = [row.name for row in self.rows], list(patterns) or ["*"]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise unknown(f"row of {self.name}", pattern, names)
        return [row for row in self.rows if any(fnmatchcase(row.name, p) for p in patterns)]

    def jobs(
        self, rows: Iterable[str] = (), *, seeds: Sequence[int] = (), fast: bool = False
    ) -> list["Job"]:
        """The runs of `matching` rows, of these seeds or the file's number of them, seed by seed."""
        found = []
        for row in self.matching(rows):
            asked = seeds or range(1 if fast else row.seeds or self.seeds)
            found += [Job(self, row, seed, fast) for seed in asked]
        return sorted(found, key=lambda job: job.seed)


@dataclass(frozen=True, eq=False)
class Job:
    """One run: a row with a seed, whole or fast."""

    experiment: Experiment
    row: Row
    seed: int
    fast: bool = False

    @property
    def path(self) -> str:
        """Of its run folder and its result; fast ones are never beside whole ones."""
        return f"{self.experiment.name}{'-fast' * self.fast}/{self.row.name}-seed{self.seed}"

    def config(self, data_dir: str | None = None) -> TrainConfig:
        """Its configuration; ConfigError if the file asks for what is not there."""
        e, row = self.experiment, self.row
        layers: list[dict[str, Any]] = [{"threads": 1}]  # sums over threads round differently
        for part in (e, row):
            layers += [recipe(part.recipe) if part.recipe else {}, part.settings]
        layers.append({"test_every_epoch": e.test_every_epoch, "data_dir": data_dir})
        if self.fast:
            layers += [trial(make_config(*layers).task), e.fast]
        config = make_config(*layers, {"seed": self.seed})
        keep = tuple(epoch for epoch in e.lyapunov if 0 < epoch <= config.epochs)
        return make_config(config.model_dump(), {"keep_epochs": keep})

    def command(self, *, data: bool) -> str:
        """What makes its result again; DATA stands for a folder that was named."""
        options = f"--seed {self.seed}" + " --data-dir DATA" * data + " --fast" * self.fast
        return f"ctrnn reproduce {self.experiment.name} --rows {self.row.name} {options}"


def experiment_names() -> list[str]:
    files = resources.files("ctrnn_experiments").iterdir()
    return sorted(e.name.removesuffix(".yaml") for e in files if e.name.endswith(".yaml"))


@cache
def load_experiment(name: str) -> Experiment:
    """One experiment by name; ConfigError if there is none."""
    check_known("experiment", name, experiment_names())
    file = resources.files("ctrnn_experiments") / f"{name}.yaml"
    return parse_experiment(name, file.read_text(encoding="utf-8"))


def parse_experiment(name: str, text: str) -> Experiment:
    """An experiment from the text of its file; ConfigError names the key, its value and the remedy."""
    try:
        experiment = parsed(Experiment, {**load_yaml(text), "name": name}, f"{name}.yaml")
    except (yaml.YAMLError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name}.yaml must hold about, source and rows; got {reason}.") from None
    names = [row.name for row in experiment.rows]
    if (double := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise ConfigError(f"{name}.yaml: rows must have different names; got {double!r} twice.")
    if experiment.against not in (None, *names):
        raise unknown(f"{name}.yaml: against", experiment.against, names)
    return experiment


def published_for(runs: Sequence[Run]) -> list[PublishedAccuracy]:
    """What may be drawn beside runs: nothing unless all have one task, neither resized nor cut."""
    if any(c.resize or c.limit_train or c.limit_test for c in (run.config for run in runs)):
        return []
    tasks = {versionless(run.task_name) for run in runs}
    models = {run.config.model for run in runs}
    rows = [row for row in all_published().values() if {row.task} == tasks]
    return [row for row in rows if not row.models or models & set(row.models)]


def versionless(task: str) -> str:
    """psmnist-12008-raw -> psmnist, scifar10-rgb -> scifar10; scifar10-planar is another task."""
    return re.sub(r"(-\d+)?(-raw)?$", "", task).removesuffix("-rgb")
