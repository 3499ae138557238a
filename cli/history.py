"""What a run folder tells without its weights: configuration, table of epochs, summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.training.config import TrainConfig
from ctrnn_assembly.training.run import read_config, read_summary, read_table


@dataclass(frozen=True)
class History:
    """A run folder as it is now.

    Attributes:
        rows: of metrics.csv, one an epoch, as text; columns may be missing in older runs.
        summary: summary.json; empty if the run is not finished.
    """

    run: Path
    config: TrainConfig
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    @classmethod
    def read(cls, run: Path) -> History:
        """Everything that is there.

        Raises:
            ConfigError: if it is no run folder; DataError: if a file is damaged.
        """
        if run.is_dir() and not (run / "config.yaml").exists():
            raise ConfigError(
                f"{run} holds no run: it has no config.yaml. Name a folder that `ctrnn train --out` "
                "made."
            )
        config = read_config(run)
        rows = read_table(run / "metrics.csv")
        summary = read_summary(run) if (run / "summary.json").exists() else {}
        if not isinstance(summary, dict):
            raise DataError(f"{run / 'summary.json'} must hold an object; got {type(summary).__name__}.")
        return cls(run, config, rows, summary)

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def task(self) -> str:
        """The canonical name if it is known, else that of the configuration."""
        return str(self.summary.get("task", self.config.task))

    @property
    def task_as_used(self) -> str:
        """The task, and what was done to it if it is not the whole one."""
        config = self.config
        done = {
            "resized to": None if config.resize is None else f"{config.resize} x {config.resize}",
            "train cut to": config.limit_train,
            "test cut to": config.limit_test,
        }
        said = [f"{name} {value}" for name, value in done.items() if value is not None]
        return f"{self.task} ({', '.join(said)})" if said else self.task

    @property
    def epochs(self) -> NDArray[np.float64]:
        """The numbers of the epochs, from 1."""
        return 1 + self.column("epoch")

    def has(self, name: str) -> bool:
        """Whether metrics.csv has such a column."""
        return bool(self.rows) and name in self.rows[0]

    def column(self, name: str) -> NDArray[np.float64]:
        """One column, (epochs,): NaN where there is no value.

        Raises:
            DataError: for a value that is no number.
        """
        try:
            return np.array([float(row.get(name) or "nan") for row in self.rows])
        except ValueError as error:
            raise DataError(
                f"{self.run / 'metrics.csv'} must hold numbers in {name!r}: {error}. Mend the file."
            ) from None

    def certified(self, name: str) -> NDArray[np.bool_]:
        """`certified` or `step_certified`; of older runs, from the bounds themselves."""
        if self.has(name):
            return self.column(name) > 0
        return self.column("rate") > 0 if name == "certified" else self.column("step_factor") < 1

    def judged(self) -> NDArray[np.bool_]:
        """The epochs that have a certificate in the table: not all with `certify_every`."""
        if self.has("certified"):
            return np.isfinite(self.column("certified"))
        return np.ones(len(self.rows), dtype=bool)

    def number(self, name: str) -> float:
        """A number of the summary, NaN if it is not there."""
        value = self.summary.get(name)
        return float(value) if isinstance(value, int | float) else math.nan


def read_histories(runs: Sequence[Path]) -> list[History]:
    """Runs that have a table of epochs.

    Raises:
        DataError: if one has none.
    """
    found = [History.read(run) for run in runs]
    for history in found:
        if not history.rows:
            raise DataError(
                f"{history.run} has no metrics.csv with an epoch in it: none has ended. "
                f"`ctrnn train --resume {history.run}` goes on."
            )
    return found


def short_names(runs: Sequence[Path]) -> list[str]:
    """The names of the folders, with as many folders above them as tell them apart."""
    full = [run.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in full) + 1):
        names = ["/".join(path.parts[-depth:]) for path in full]
        if len(set(names)) == len(set(full)):
            break
    return names
