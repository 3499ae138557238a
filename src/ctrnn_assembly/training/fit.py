"""Training with Lightning: a task, a model, a run folder.

The order of the batches of an epoch, and its augmentation, depend on (seed, epoch) only, and
checkpoints are taken between epochs: a run that was killed and resumed ends with the same weights, bit
for bit on a CPU, as one that was not. Validation accuracy, and among equals the validation loss, selects
the weights that are kept; the test set is read once, after training, and with `test_every_epoch` after
each epoch, to be reported only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.errors import ContractionError, TrainingError
from ctrnn_assembly.layers import SequenceClassifier
from ctrnn_assembly.training.batches import Batch, Batches, processes
from ctrnn_assembly.training.callbacks import kept
from ctrnn_assembly.training.config import TrainConfig
from ctrnn_assembly.training.projection import StepProjection
from ctrnn_assembly.training.run import model_certificate


class Training(pl.LightningModule):
    """Cross-entropy of the last state's readout; Adam; certificate every epoch.

    Raises:
        ConfigError, ContractionError: if `keep_step_certified` cannot do what it says, see
            `StepProjection`, which scales the initial coupling at once.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        config: TrainConfig,
        train: Batches,
        test: Callable[[], float] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.train_batches, self.test = model, config, train, test
        self.projection = StepProjection(model) if config.keep_step_certified else None

    def certificate(self) -> Certificate | None:
        """Of the weights before training, or at the end of an epoch; None for a baseline."""
        if self.projection is not None:
            return self.projection.certificate
        return model_certificate(self.model)

    def test_accuracy(self) -> float:
        """Of the weights as they are; nothing is selected by it."""
        assert self.test is not None
        mode = self.model.training
        accuracy = self.test()
        self.model.train(mode)
        return accuracy

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss, correct = self._loss(batch)
        # Looking at a number makes a GPU wait: there only at times. Validation looks in any case.
        looks = not loss.is_cuda or index % 50 == 0
        if looks and not bool(torch.isfinite(loss)):
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
        with denormals_flushed():  # forward, backward and step; no certificate is computed in them
            super().optimizer_step(*args, **kwargs)
        field = getattr(self.model.core, "field", None)  # a baseline has none
        if field is not None:
            field.project_()
        if self.projection is not None:
            self.projection.after_step()

    def on_validation_start(self) -> None:
        # After the epoch's last step; neither validation nor a checkpoint has seen the weights yet.
        if self.projection is not None:
            try:
                self.projection.project()
            except ContractionError as error:
                raise TrainingError(
                    f"epoch {self.current_epoch + 1} lost the discrete certificate: {error} "
                    f"{kept(self.current_epoch)}"
                ) from None

    def on_train_start(self) -> None:
        if self.projection is not None:
            self.projection.start()  # a resumed run has other weights by now than it was built with
        for loader in (self.trainer.train_dataloader, self.trainer.val_dataloaders):
            if isinstance(loader, Batches):
                loader.to(self.device)

    def on_train_epoch_start(self) -> None:
        # Batches is a lazy iterator: the order is drawn after this, at the first batch.
        self.train_batches.epoch = self.current_epoch
        if self.projection is not None:
            self.projection.start_epoch()

    def on_train_epoch_end(self) -> None:
        # What the best epoch is chosen by: correct answers, and among equals the lower loss, as a
        # fraction of one answer. A small validation set has many equals.
        accuracy, loss = (self.trainer.callback_metrics[f"val_{name}"] for name in ("accuracy", "loss"))
        correct = torch.round(accuracy * len(self.trainer.val_dataloaders.split))  # type: ignore[union-attr]
        self.log("val_score", correct - loss / (1 + loss))

    def configure_optimizers(self) -> Any:
        config = self.config
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = kind(
            trained,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            # One kernel for all parameters; it cannot clip gradients that a scaler has scaled.
            fused=trained[0].is_cuda and config.precision in ("32", "64"),
        )
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
                sync_dist=processes()[1] > 1,
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


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below 1e-38 are zero in this thread, on CPUs that can do so.

    A gradient that fades through time ends among them, and a CPU computes with them many times slower:
    the backward pass of `nn.LSTM` over 196 steps took 15 s with them and 1 s without, to the same
    gradients.
    """
    # PyTorch sets the mode and does not tell it.
    flushed_before = torch.tensor(1e-40, dtype=torch.float32).item() == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)


def learning_rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate over its peak, as a function of the step alone, so that resuming is exact."""
    total = config.epochs * steps_per_epoch

    def factor(step: int) -> float:
        epoch = step // steps_per_epoch
        warm = config.warmup_epochs * steps_per_epoch
        if step < warm:
            return (step + 1) / warm
        if config.schedule == "steps":
            return float(config.lr_gamma ** sum(epoch >= m for m in config.milestones))
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
        return 1.0

    return factor
