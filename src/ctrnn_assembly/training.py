"""Training with Lightning: a task, a model, a run folder.

The order of the batches of an epoch, and its augmentation, depend on (seed, epoch) only, and
checkpoints are taken between epochs: a run that was killed and resumed ends with the same weights, bit
for bit on a CPU, as one that was not. Validation accuracy selects the weights that are kept; the test
set is read once, after training.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from ctrnn_assembly.config import TrainConfig
from ctrnn_assembly.data import Split, Task
from ctrnn_assembly.errors import DataError, TrainingError
from ctrnn_assembly.recurrent import CTRNN, SequenceClassifier
from ctrnn_assembly.runs import model_certificate, write

Batch = tuple[Tensor, Tensor, Tensor | None]


class Batches:
    """Batches (input, class, lengths) of a split that lies in memory.

    With a seed they are shuffled, and augmented, by a generator seeded with (seed, epoch). Each
    process of a distributed run takes its share, unless `whole`.
    """

    def __init__(
        self,
        task: Task,
        split: Split,
        batch_size: int,
        *,
        seed: int | None = None,
        whole: bool = False,
    ) -> None:
        self.task, self.split, self.batch_size, self.seed = task, split, batch_size, seed
        self.whole = whole
        self.epoch = 0

    def to(self, device: torch.device) -> None:
        """Move the data to the device if they fit into half of its free memory."""
        if device.type != "cuda":
            return
        size = self.split.x.numel() * self.split.x.element_size()
        if size < torch.cuda.mem_get_info(device)[0] / 2:
            lengths = None if self.split.lengths is None else self.split.lengths.to(device)
            self.split = Split(self.split.x.to(device), self.split.y.to(device), lengths)

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.split) / self._share()[1]) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        generator = None
        order = torch.arange(len(self.split))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(len(self.split), generator=generator)
        rank, count = self._share()
        # Every process gets the same number of samples: the first ones are repeated.
        short = -len(order) % count
        order = torch.cat([order, order[:short]])[rank::count]
        for index in order.to(self.split.x.device).split(self.batch_size):
            lengths = None if self.split.lengths is None else self.split.lengths[index]
            yield self.task.sequence(self.split.x[index], generator), self.split.y[index], lengths

    def _share(self) -> tuple[int, int]:
        return (0, 1) if self.whole else _processes()


class Training(pl.LightningModule):
    """Cross-entropy of the last state's readout; Adam; certificate every epoch."""

    def __init__(self, model: SequenceClassifier, config: TrainConfig, train: Batches) -> None:
        super().__init__()
        self.model, self.config, self.train_batches = model, config, train

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss, correct = self._loss(batch)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(self._diverged(batch, f"step {index + 1}"))
        self._log("train", batch, loss, correct)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        loss, correct = self._loss(batch)
        if not bool(torch.isfinite(loss)):  # the epoch's last steps: no checkpoint is taken of them
            steps = f"validation after step {len(self.train_batches)}"
            raise TrainingError(self._diverged(batch, steps))
        self._log("val", batch, loss, correct)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if isinstance(self.model.core, CTRNN):
            self.model.core.field.project_()

    def on_train_start(self) -> None:
        for loader in (self.trainer.train_dataloader, self.trainer.val_dataloaders):
            if isinstance(loader, Batches):
                loader.to(self.device)

    def on_train_epoch_start(self) -> None:
        # Batches is a lazy iterator: the order is drawn after this, at the first batch.
        self.train_batches.epoch = self.current_epoch

    def configure_optimizers(self) -> Any:
        config = self.config
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = kind(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, learning_rate_factor(config, len(self.train_batches))
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        u, y, lengths = batch
        logits = self.model(u, lengths=lengths)
        return F.cross_entropy(logits.float(), y), (logits.argmax(-1) == y).float().mean()

    def _log(self, part: str, batch: Batch, loss: Tensor, correct: Tensor) -> None:
        for name, value in (("loss", loss.detach()), ("accuracy", correct)):
            self.log(
                f"{part}_{name}",
                value,
                on_step=False,
                on_epoch=True,
                prog_bar=(part, name) in (("train", "loss"), ("val", "accuracy")),
                batch_size=len(batch[1]),
                sync_dist=_processes()[1] > 1,
            )

    @torch.no_grad()
    def _diverged(self, batch: Batch, step: str) -> str:
        norms = self.model.core(batch[0], lengths=batch[2])[0].norm(dim=-1)
        finite = norms[norms.isfinite()]
        norm = f"{float(finite.max()):.4g}" if len(finite) else "NaN"
        return (
            f"the loss became NaN or infinite in epoch {self.current_epoch + 1}, {step}; the largest "
            f"finite state norm is {norm}. The last good checkpoint is kept. Lower learning_rate or "
            "dt, or use solver imex."
        )


def learning_rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate over its peak, as a function of the step alone, so that resuming is exact."""
    total = config.epochs * steps_per_epoch

    def factor(step: int) -> float:
        epoch = step // steps_per_epoch
        warm = config.warmup * steps_per_epoch
        if step < warm:
            return (step + 1) / warm
        if config.schedule == "steps":
            return float(config.decay ** sum(epoch >= m for m in config.milestones))
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
        return 1.0

    return factor


class EpochTable(pl.Callback):
    """metrics.csv: one row an epoch, with the certificate; rows of a resumed run are kept."""

    def __init__(self, path: Path, report: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.report = path, report
        self.rows: list[dict[str, Any]] = read_table(path)
        self.started = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Training)
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        row: dict[str, Any] = {"epoch": trainer.current_epoch}
        row |= {name: float(trainer.callback_metrics[name]) for name in names}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(time.monotonic() - self.started, 3)
        certificate = model_certificate(module.model)
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


@torch.no_grad()
def accuracy(model: SequenceClassifier, task: Task, split: Split, batch_size: int = 256) -> float:
    """The share of a split that is classified correctly."""
    model.eval()
    parameter = next(model.parameters())
    correct = 0
    for u, y, lengths in Batches(task, split, batch_size, whole=True):
        logits = model(
            u.to(parameter), lengths=None if lengths is None else lengths.to(parameter.device)
        )
        correct += int((logits.argmax(-1).cpu() == y).sum())
    return correct / len(split)


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


def _processes() -> tuple[int, int]:
    """Rank and number of processes."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
