"""What happens between epochs: metrics.csv with the certificate, checkpoints, early stopping."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ctrnn_assembly.config import TrainConfig
from ctrnn_assembly.errors import DataError
from ctrnn_assembly.recurrent import SequenceClassifier
from ctrnn_assembly.runs import model_certificate, write


class EpochTable(pl.Callback):
    """metrics.csv: one row an epoch, with the certificate; rows of a resumed run are kept."""

    def __init__(self, path: Path, report: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.report = path, report
        self.rows: list[dict[str, Any]] = read_table(path)
        self.started = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        row: dict[str, Any] = {"epoch": trainer.current_epoch}
        row |= {name: float(trainer.callback_metrics[name]) for name in names}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(time.monotonic() - self.started, 3)
        certificate = model_certificate(cast(SequenceClassifier, module.model))
        if certificate is not None:
            row["rate"] = certificate.rate
            row["step_gain"] = certificate.step.gain if certificate.step else None
        self.rows = [old for old in self.rows if int(old["epoch"]) < row["epoch"]] + [row]
        if trainer.is_global_zero:
            write_table(self.path, self.rows)
            self.report(row)


def callbacks(config: TrainConfig, run: Path, report: Callable[[dict[str, Any]], None]) -> list[Any]:
    """Checkpoints, table and early stopping of a run."""
    every_epoch: dict[str, Any] = {
        "dirpath": run / "checkpoints",
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best = ModelCheckpoint(filename="best", monitor="val_accuracy", mode="max", **every_epoch)
    # Not save_last: that copies the best epoch, and a resumed run would go back to it.
    last = ModelCheckpoint(filename="last", **every_epoch)
    found: list[Any] = [EpochTable(run / "metrics.csv", report), best, last]
    if config.patience:
        # Between epochs, before the checkpoint is taken, so that a resumed run stops where this does.
        stop = EarlyStopping(
            "val_accuracy", mode="max", patience=config.patience, check_on_train_epoch_end=True
        )
        found.insert(0, stop)
    return found


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv; none if there is no file.

    Raises:
        DataError: if it is not such a table.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for row in rows:
            int(row["epoch"]), float(row["seconds"])
    except (KeyError, TypeError, ValueError, csv.Error):
        raise DataError(f"{path} is not a table of epochs. Delete it to go on without it.") from None
    return rows


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV, atomically."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, buffer.getvalue())
