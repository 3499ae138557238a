"""Published accuracies, and those of the package's published.yaml for runs that may be compared."""

from __future__ import annotations

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
    """A published test accuracy, in per cent.

    Attributes:
        what: of the best test epoch, of the last one, or as the paper says without a word on it.
        std, n: over so many runs, where that is printed.
        note: which number of the source's it is.
        name, task, network, source: in published.yaml: its name, the task without its version, the
            network as the source calls it, and where it is printed.
        models: beside which of the library's models a plot shows it; empty for all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: float
    what: Literal["best", "final", "reported"]
    std: float | None = None
    n: int | None = None
    note: str = ""
    name: str = ""
    task: str = ""
    network: str = ""
    source: str = ""
    models: tuple[str, ...] = ()

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
    """One row by name.

    Raises:
        ConfigError: if there is none.
    """
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
