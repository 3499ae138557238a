"""What happens between epochs: metrics.csv with the certificate, checkpoints, early stopping.

With `test_every_epoch` the table has the accuracy on the test set as well, because published figures
often are those of the best test epoch. It is there to report: validation selects the weights.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ctrnn_assembly.certificates import STEP_PROOFS, Certificate
from ctrnn_assembly.certificates.result import finite
from ctrnn_assembly.errors import DataError, TrainingError
from ctrnn_assembly.training.config import TrainConfig
from ctrnn_assembly.training.run import save_weights, write


class EpochTable(pl.Callback):
    """metrics.csv: one row an epoch, with the certificate; rows of a resumed run are kept.

    A run that has lost the certificate it is required to have stops here, after the row is written and
    before a checkpoint is taken: Lightning calls the callbacks that save after all others.
    """

    def __init__(self, config: TrainConfig, run: Path, report: Callable[[dict[str, Any]], None]) -> None:
        self.config, self.run, self.report = config, run, report
        self.path = run / "metrics.csv"
        self.rows: list[dict[str, Any]] = read_table(self.path)
        self.started = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        row: dict[str, Any] = {"epoch": trainer.current_epoch}
        row |= {name: float(trainer.callback_metrics[name]) for name in names}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(time.monotonic() - self.started, 3)
        due = self.is_due(row["epoch"])
        certificate = cast(Any, module).certificate() if due else None
        row |= certificate_columns(certificate) if due else dict.fromkeys(COLUMNS)
        if self.config.test_every_epoch:
            row["test_accuracy"] = cast(Any, module).test_accuracy()
        self.rows = [old for old in self.rows if int(old["epoch"]) < row["epoch"]] + [row]
        if trainer.is_global_zero:
            write_table(self.path, self.rows)
            self.report(row)
        missing = missing_certificate(self.config, certificate)
        if missing:
            raise TrainingError(
                f"epoch {row['epoch'] + 1} lost the {self.config.require_certificate} certificate: "
                f"{missing} {kept(row['epoch'])} Start again with "
                f"--config {self.run / 'config.yaml'} and that change."
            )

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Lightning decides to stop early after this table is written.
        if self.rows and self.rows[-1]["certified"] in (None, "") and trainer.is_global_zero:
            self.rows[-1] |= certificate_columns(cast(Any, module).certificate())
            write_table(self.path, self.rows)

    def is_due(self, epoch: int) -> bool:
        """Whether this epoch, counted from 0, is certified; the last one always is."""
        return (epoch + 1) % self.config.certify_every == 0 or epoch + 1 == self.config.epochs


class KeptWeights(pl.Callback):
    """weights/epoch-N.safetensors after the epochs that the configuration names, counted from 1."""

    def __init__(self, config: TrainConfig, run: Path) -> None:
        self.epochs, self.run = config.keep_epochs, run

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done in self.epochs and trainer.is_global_zero:
            save_weights(kept_weights(self.run, done), cast(Any, module).model)


def kept_weights(run: Path, epoch: int) -> Path:
    """Where the weights after an epoch, counted from 1, are kept."""
    return run / "weights" / f"epoch-{epoch:04}.safetensors"


def kept(epoch: int) -> str:
    """What is left of a run that stops in this epoch, counted from 0."""
    before = "that of the epoch before is kept" if epoch else "there is none before it"
    return f"No checkpoint is taken of this epoch; {before}."


COLUMNS = ("certified", "rate", "step_certified", "step_factor", "max_dt")


def certificate_columns(certificate: Certificate | None) -> dict[str, Any]:
    """The certificate of an epoch, for its row: 0 or 1, and bounds, None where there is no number.

    max_dt is None where every dt is certified, if step_certified is 1; step_factor where none is proven.
    """
    step = None if certificate is None else certificate.step
    return {
        "certified": int(certificate is not None and certificate.certified),
        "rate": finite(None if certificate is None else certificate.rate),
        "step_certified": int(step is not None and step.certified),
        "step_factor": finite(None if step is None else step.contraction_factor),
        "max_dt": finite(None if step is None else step.max_dt),
    }


def missing_certificate(config: TrainConfig, certificate: Certificate | None) -> str:
    """Why the certificate is not what `require_certificate` asks for, and what to do; empty if it is."""
    if config.require_certificate == "none":
        return ""
    if certificate is None:
        return f"none is defined for {config.model!r}. Use svd-combo, for example."
    if not certificate.certified:
        return "; ".join(certificate.reasons) + "."
    step = certificate.step
    assert step is not None
    if config.require_certificate == "continuous" or step.certified:
        return ""
    if config.solver == "euler" and not config.keep_step_certified:
        change = "Use --keep-step-certified, --solver imex, or a lower --dt."
    elif config.solver in ("euler", "imex"):
        change = "Use a lower --dt."
    else:
        change = f"Use --solver {'imex' if config.solver in STEP_PROOFS else 'euler or imex'}."
    return f"{step.reason}. {change}"


def callbacks(config: TrainConfig, run: Path, report: Callable[[dict[str, Any]], None]) -> list[Any]:
    """Checkpoints, table and early stopping of a run."""
    every_epoch: dict[str, Any] = {
        "dirpath": run / "checkpoints",
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best = ModelCheckpoint(filename="best", monitor="val_score", mode="max", **every_epoch)
    # Not save_last: that copies the best epoch, and a resumed run would go back to it.
    last = ModelCheckpoint(filename="last", **every_epoch)
    found: list[Any] = [EpochTable(config, run, report), best, last]
    if config.keep_epochs:
        found.insert(1, KeptWeights(config, run))
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
