"""Published accuracies, from the package's published.yaml, for runs that may be compared with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import yaml

from ctrnn_assembly.errors import ConfigError

if TYPE_CHECKING:  # Lightning takes seconds to import
    from ctrnn_cli.history import History


@dataclass(frozen=True)
class Published:
    """One published test accuracy, in per cent.

    Attributes:
        task: without its version. network: as the source calls it.
        selection: which number of the source's it is.
        source: where it is printed.
        name: under which an experiment compares itself with it.
        what: of the best test epoch, or as reported. std, n: over so many runs, where that is printed.
        models: beside which of the library's models to show it; empty for all.
    """

    name: str
    task: str
    network: str
    accuracy: float
    selection: str
    source: str
    what: str
    std: float | None = None
    n: int | None = None
    models: tuple[str, ...] = field(default=())


@cache
def all_published() -> list[Published]:
    """Every row of the file."""
    text = (resources.files("ctrnn_assembly") / "published.yaml").read_text(encoding="utf-8")
    return [Published(**{**row, "models": tuple(row.get("models", ()))}) for row in yaml.safe_load(text)]


def named_published(name: str) -> Published:
    """One row by name.

    Raises:
        ConfigError: if there is none.
    """
    rows = {row.name: row for row in all_published()}
    if name not in rows:
        raise ConfigError(f"published figure must be one of {', '.join(rows)}; got {name!r}.")
    return rows[name]


def published_for(histories: Sequence[History]) -> list[Published]:
    """What may be drawn beside these runs: nothing unless all have one task, whole and at full size."""
    tasks = {versionless(history.task) for history in histories}
    if len(tasks) != 1 or not all(whole(history) for history in histories):
        return []
    models = {history.config.model for history in histories}
    return [
        row
        for row in all_published()
        if {row.task} == tasks and (not row.models or models & set(row.models))
    ]


def versionless(task: str) -> str:
    """psmnist-12008-raw -> psmnist, scifar10-rgb -> scifar10; scifar10-planar is another task."""
    return re.sub(r"(-\d+)?(-raw)?$", "", task).removesuffix("-rgb")


def whole(history: History) -> bool:
    """Whether the task was neither resized nor cut."""
    config = history.config
    return config.resize is None and config.limit_train is None and config.limit_test is None
