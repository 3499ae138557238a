"""One training run, from configuration to summary.json."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import lightning as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar

from ctrnn_assembly.config import TrainConfig, to_yaml
from ctrnn_assembly.data import Task, load_task
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.recurrent import SequenceClassifier
from ctrnn_assembly.runs import (
    certificate_summary,
    load_checkpoint,
    model_certificate,
    model_from,
    save_weights,
    write,
)
from ctrnn_assembly.training import Batches, Training, accuracy, callbacks, read_table

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def fit(config: TrainConfig, run: Path, *, resume: bool, quiet: bool) -> dict[str, Any]:
    """Train, select by validation, test once, and write the run folder; returns the summary."""
    task = load_configured(config)
    model = model_from(config, task.n_input, len(task.classes))
    last = prepare(config, run, resume)
    train = Batches(task, task.train, config.batch_size, seed=config.seed)
    module = Training(model, config, len(train))
    trainer = make_trainer(config, run, quiet)
    resume_from = str(last) if last is not None else None
    try:
        trainer.fit(
            module, train, Batches(task, task.val, 256), ckpt_path=resume_from, weights_only=True
        )
    except SystemExit:  # Lightning turns Ctrl-C into an exit
        click.echo(f"interrupted; `ctrnn train --resume {run}` goes on from the last epoch", err=True)
        sys.exit(130)
    if not trainer.is_global_zero:
        sys.exit(0)
    return finish(config, run, task, model)


def load_configured(config: TrainConfig) -> Task:
    """The task of a configuration."""
    return load_task(
        config.task,
        data_dir=config.data_dir,
        resize=config.resize,
        limit_train=config.limit_train,
        limit_test=config.limit_test,
        augment=config.augment,
        seed=config.seed,
    )


def prepare(config: TrainConfig, run: Path, resume: bool) -> Path | None:
    """Make or check the run folder; returns the checkpoint to resume from, if there is one."""
    stored = run / "config.yaml"
    if not resume:
        if stored.exists() and not _is_child_process():
            raise ConfigError(f"{run} already holds a run. Use --resume {run}, or another --out.")
        write(stored, to_yaml(config))
        return None
    if (run / "summary.json").exists():
        raise ConfigError(f"{run} is finished. Start a new run with --config {stored} --out NEW.")
    last = run / "checkpoints" / "last.ckpt"
    if not last.exists():
        return None  # killed before its first epoch ended: it starts again, with the same result
    load_checkpoint(last)
    return last


def make_trainer(config: TrainConfig, run: Path, quiet: bool) -> pl.Trainer:
    """Lightning's trainer, with its chatter off."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # The batches are tensors in memory; Lightning's advice on worker processes does not apply.
    warnings.filterwarnings("ignore", module="lightning")
    interactive = sys.stderr.isatty() and not quiet
    found = callbacks(config, run, _no_report if interactive else _report(config))
    if interactive:
        found.append(RichProgressBar())
    return pl.Trainer(
        accelerator=config.device,
        devices=config.devices if config.device != "auto" or config.devices > 1 else "auto",
        num_nodes=config.nodes,
        strategy="ddp" if config.devices * config.nodes > 1 else "auto",
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
        max_epochs=config.epochs,
        gradient_clip_val=config.clip or None,
        callbacks=found,
        logger=_logger(config, run),
        enable_progress_bar=interactive,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=run,
        use_distributed_sampler=False,
    )


def finish(config: TrainConfig, run: Path, task: Task, model: SequenceClassifier) -> dict[str, Any]:
    """Keep the weights with the best validation accuracy, read the test set once, summarise."""
    best = load_checkpoint(run / "checkpoints" / "best.ckpt")
    state = {k.removeprefix("model."): v for k, v in best["state_dict"].items()}
    model.cpu().load_state_dict(state)
    save_weights(run / "model.safetensors", model)
    rows = read_table(run / "metrics.csv")
    summary = {
        "task": task.name,
        "model": config.model,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "epochs": len(rows),
        "best_epoch": int(best["epoch"]),
        "val_accuracy": accuracy(model, task, task.val),
        "test_accuracy": accuracy(model, task, task.load_test()),
        "seconds": round(sum(float(row["seconds"]) for row in rows), 1),
        "seed": config.seed,
        "versions": versions(),
        "certificate": certificate_summary(model_certificate(model)),
    }
    write(run / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def versions() -> dict[str, str]:
    """Versions and hardware that a result depends on."""
    names = ("ctrnn-assembly", "torch", "lightning", "torchdiffeq")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "hardware": device or platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def _report(config: TrainConfig) -> Any:
    """One line an epoch, on stderr, where no progress bar can be drawn."""

    def report(row: dict[str, Any]) -> None:
        rate = f"  rate {row['rate']:.4f}" if "rate" in row else ""
        click.echo(
            f"epoch {row['epoch'] + 1}/{config.epochs}  loss {row['train_loss']:.4f}  train "
            f"{row['train_accuracy']:.4f}  val {row['val_accuracy']:.4f}{rate}  {row['seconds']:.1f} s",
            err=True,
        )

    return report


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
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"logger {config.logger!r} is not installed ({error.name}). "
            "pip install 'ctrnn-assembly[logging]'."
        ) from None


def _is_child_process() -> bool:
    """Whether Lightning started this process as a further rank of a distributed run."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0
