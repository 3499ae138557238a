"""Published accuracies, and those of the package's published.yaml for runs that may be compared."""

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from ctrnn_assembly.errors import unknown
from ctrnn_assembly.training.run import Run


class PublishedAccuracy(BaseModel):
    """A published test accuracy, in per cent; name and what follows it are for published.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
    return {row["name"]: PublishedAccuracy.model_validate(row) for row in yaml.safe_load(text)}


def named_published(name: str) -> PublishedAccuracy:
    """One row by name; ConfigError if there is none."""
    if (found := all_published().get(name)) is None:
        raise unknown("published figure", name, all_published())
    return found


def published_for(runs: Sequence[Run]) -> list[PublishedAccuracy]:
    """What may be drawn beside runs: nothing unless all have one task, neither resized nor cut."""
    if any(c.resize or c.limit_train or c.limit_test for c in (run.config for run in runs)):
        return []
    tasks = {versionless((run.summary or {}).get("task", run.config.task)) for run in runs}
    models = {run.config.model for run in runs}
    rows = [row for row in all_published().values() if {row.task} == tasks]
    return [row for row in rows if not row.models or models & set(row.models)]


def versionless(task: str) -> str:
    """psmnist-12008-raw -> psmnist, scifar10-rgb -> scifar10; scifar10-planar is another task."""
    return re.sub(r"(-\d+)?(-raw)?$", "", task).removesuffix("-rgb")
