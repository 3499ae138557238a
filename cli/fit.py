"""One training run, from configuration to summary.json."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.data import Task, load_task
from ctrnn_assembly.errors import ConfigError, ContractionError
from ctrnn_assembly.layers import SequenceClassifier
from ctrnn_assembly.training.batches import Batches, accuracy
from ctrnn_assembly.training.callbacks import missing_certificate, read_table
from ctrnn_assembly.training.config import TrainConfig, to_yaml
from ctrnn_assembly.training.fit import Training
from ctrnn_assembly.training.run import (
    certificate_summary,
    load_checkpoint,
    model_certificate,
    model_from,
    read_summary,
    save_weights,
    write,
)
from ctrnn_cli.profile import Profile
from ctrnn_cli.trainer import make_trainer


def fit(
    config: TrainConfig, run: Path, *, resume: bool, quiet: bool, profile: Profile | None = None
) -> dict[str, Any]:
    """Train, select by validation, test once, and write the run folder; returns the summary."""
    if config.threads:
        torch.set_num_threads(config.threads)
    task = load_configured(config)
    model = model_from(config, task.n_input, len(task.classes))
    samples = task.train.joined(task.val) if config.fit_all else task.train
    noise = config.input_noise
    train = Batches(task, samples, config.batch_size, seed=config.seed, noise=noise)
    trainer = make_trainer(config, run, quiet, profile)
    try_out(model, task)
    training = Training(model, config, train, tester(model, task) if config.test_every_epoch else None)
    if profile is not None:
        profile.attach(training)
    initial = training.certificate()
    check_certificate(config, initial)
    last = prepare(config, run, model, resume=resume)
    try:
        trainer.fit(
            training,
            train,
            Batches(task, task.val, 256),
            ckpt_path=None if last is None else str(last),
            weights_only=True,
        )
        if trainer.is_global_zero:
            return finish(config, run, task, model, initial)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C and SIGTERM into an exit
        click.echo(f"interrupted; `ctrnn train --resume {run}` goes on from the last epoch", err=True)
        sys.exit(130)
    sys.exit(0)  # a further process of a distributed run


def tester(model: SequenceClassifier, task: Task) -> Callable[[], float]:
    """The accuracy on the test set, which is loaded once."""
    test = task.load_test()
    return lambda: accuracy(model, task, test)


def try_out(model: SequenceClassifier, task: Task) -> None:
    """One sample forward: what a solver refuses is refused before anything is written."""
    u, _, lengths = next(iter(Batches(task, task.train, 1, whole=True)))
    model(u.to(next(model.parameters())), lengths=lengths)


def check_certificate(config: TrainConfig, certificate: Certificate | None) -> None:
    """Refuse a model that does not have before training what it must not lose.

    Raises:
        ContractionError: with the certificate's own reason.
    """
    missing = missing_certificate(config, certificate)
    if missing:
        raise ContractionError(
            f"the model must have the {config.require_certificate} certificate before training; "
            f"{missing}"
        )


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


def prepare(config: TrainConfig, run: Path, model: SequenceClassifier, *, resume: bool) -> Path | None:
    """Make or check the run folder; returns the checkpoint to resume from, if there is one."""
    stored = run / "config.yaml"
    if not resume:
        if stored.exists() and not _is_child_process():
            raise ConfigError(f"{run} already holds a run. Use --resume {run}, or another --out.")
        write(stored, to_yaml(config))
        return None
    if (run / "summary.json").exists():
        read_summary(run)
        raise ConfigError(f"{run} is finished. Start a new run with --config {stored} --out NEW.")
    last = run / "checkpoints" / "last.ckpt"
    if not last.exists():
        return None  # killed before its first epoch ended: it starts again, with the same result
    for name in ("best.ckpt", "last.ckpt"):
        load_checkpoint(last.with_name(name), model)
    return last


def finish(
    config: TrainConfig,
    run: Path,
    task: Task,
    model: SequenceClassifier,
    initial: Certificate | None,
) -> dict[str, Any]:
    """Keep the weights with the best validation accuracy, read the test set once, summarise.

    With `fit_all` nothing was held out: the weights are the last ones, without a validation accuracy.
    `initial` is the certificate before training; a resumed run starts from the same weights again.
    """
    name = "last.ckpt" if config.fit_all else "best.ckpt"
    best = load_checkpoint(run / "checkpoints" / name, model.cpu())
    save_weights(run / "model.safetensors", model)
    rows = read_table(run / "metrics.csv")
    summary = {
        "task": task.name,
        "model": config.model,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "epochs": len(rows),
        "best_epoch": int(best["epoch"]),
        "val_accuracy": None if config.fit_all else accuracy(model, task, task.val),
        "test_accuracy": accuracy(model, task, task.load_test()),
        "seconds": round(sum(float(row["seconds"]) for row in rows), 1),
        "seed": config.seed,
        "versions": versions(),
        "certificate_initial": certificate_summary(initial),
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


def _is_child_process() -> bool:
    """Whether this process is a further rank of a distributed run, on this node or another."""
    ranks = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return any(int(os.environ.get(name) or 0) > 0 for name in ranks)
