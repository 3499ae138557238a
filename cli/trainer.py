"""Lightning's trainer of a run: device, precision, callbacks, loggers, with its chatter off."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import lightning as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.profilers import Profiler

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.training.callbacks import callbacks
from ctrnn_assembly.training.config import TrainConfig
from ctrnn_assembly.training.run import write

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}


class Checkpoints(TorchCheckpointIO):
    """Checkpoints written beside their place: Lightning's own pass through /tmp, and where that is
    another file system a full disk or a kill could cut the last good one short."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write(Path(path), buffer.getvalue())


def make_trainer(
    config: TrainConfig, run: Path, quiet: bool, profiler: Profiler | None = None
) -> pl.Trainer:
    """The trainer of a run; writes nothing yet.

    Raises:
        ConfigError: if the device or the logger is not there.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # The batches are tensors in memory; Lightning's advice on worker processes does not apply.
    warnings.filterwarnings("ignore", module="lightning")
    interactive = sys.stderr.isatty() and not quiet
    found = callbacks(config, run, _no_report if interactive else _report(config))
    if interactive:
        found.append(RichProgressBar())
    try:
        return pl.Trainer(
            accelerator=config.device,
            devices=config.devices if config.device != "auto" or config.devices > 1 else "auto",
            num_nodes=config.nodes,
            strategy="ddp" if config.devices * config.nodes > 1 else "auto",
            precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
            plugins=[Checkpoints()],
            max_epochs=config.epochs,
            gradient_clip_val=config.gradient_clip_norm or None,
            callbacks=found,
            profiler=profiler,
            logger=_logger(config, run),
            enable_progress_bar=interactive,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=run,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(
            f"{config.devices} x device {config.device!r} with precision {config.precision} is not "
            f"there: {str(error).splitlines()[0]} Use --device auto."
        ) from None


def _report(config: TrainConfig) -> Any:
    """One line an epoch, on stderr, where no progress bar can be drawn."""

    def report(row: dict[str, Any]) -> None:
        click.echo(
            f"epoch {row['epoch'] + 1}/{config.epochs}  loss {row['train_loss']:.4f}  train "
            f"{row['train_accuracy']:.4f}  val {row['val_accuracy']:.4f}{_certificate(row)}  "
            f"{row['seconds']:.1f} s",
            err=True,
        )

    return report


def _certificate(row: dict[str, Any]) -> str:
    """The rate, and whether the step is certified; nothing for a baseline."""
    if row["rate"] is None:
        return ""
    if not row["certified"]:
        return f"  rate {row['rate']:.4f} not certified"
    step = "certified" if row["step_certified"] else "not certified"
    factor = "" if row["step_factor"] is None else f" (factor {row['step_factor']:.4f})"
    return f"  rate {row['rate']:.4f}  step {step}{factor}"


def _no_report(row: dict[str, Any]) -> None:
    pass


def _logger(config: TrainConfig, run: Path) -> Any:
    if config.logger == "none":
        return False
    from lightning.pytorch import loggers

    try:
        if config.logger == "tensorboard":
            return loggers.TensorBoardLogger(run, name="", version="tensorboard")
        return loggers.WandbLogger(save_dir=run, project="ctrnn-assembly", offline=True)
    except ModuleNotFoundError:
        raise ConfigError(
            f"logger {config.logger!r} is not installed. Use pip install 'ctrnn-assembly[logging]'."
        ) from None
