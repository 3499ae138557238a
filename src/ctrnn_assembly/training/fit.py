"""One training run, read from top to bottom: a configuration in, a run folder out.

The order of the batches of an epoch, and its augmentation, depend on (seed, epoch) only, and
checkpoints are taken between epochs: a run that was killed and resumed ends with the same weights, bit
for bit on a CPU, as one that was not. Validation accuracy, and among equals the validation loss, selects
the weights that are kept; the test set is read once, after training, and with `test_every_epoch` after
each epoch, to be reported only.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.profiler import record_function

from ctrnn_assembly.certificates import STEP_PROOFS, Certificate
from ctrnn_assembly.certificates.result import finite
from ctrnn_assembly.data import Task
from ctrnn_assembly.errors import ConfigError, ContractionError, TrainingError
from ctrnn_assembly.layers import SequenceClassifier
from ctrnn_assembly.training.batches import Batch, Batches, accuracy, evaluate, new_sums, sums_of
from ctrnn_assembly.training.config import TrainConfig, to_yaml
from ctrnn_assembly.training.optim import learning_rate, make_optimizer
from ctrnn_assembly.training.profile import STEPS, Profile
from ctrnn_assembly.training.projection import StepProjection
from ctrnn_assembly.training.provenance import provenance
from ctrnn_assembly.training.run import (
    configured_task,
    kept_weights,
    load_state,
    locked,
    model_from,
    read_checkpoint,
    read_summary,
    read_table,
    run_record,
    save_weights,
    write,
    write_table,
)

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}
Report = Callable[[str], None]


def say(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def fit(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    report: Report | None = say,
    command: str | None = None,
    profile: Profile | None = None,
) -> dict[str, Any]:
    """Train, select by validation, test once, and write the run folder.

    Args:
        config: everything that decides the result.
        out: the run folder.
        resume: go on with the run in this folder, from its last whole epoch.
        report: gets a line for each epoch; on a terminal there is a progress bar as well. None for none.
        command: that makes this run, for summary.json; None for the command line of this process.
        profile: gets the times of the first steps.

    Returns:
        what summary.json holds, see `provenance`. The further processes of a distributed run end here.

    Raises:
        ConfigError, DataError: for a setting, data or a folder that cannot be used.
        ContractionError: if the model does not have the certificate that it must not lose.
        TrainingError: if the loss is not finite or the certificate is lost; what was saved stays.
        RunBusyError: if another process trains in this folder.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    origin = provenance(command=command, seed=config.seed, device=config.device)
    fabric = make_fabric(config)
    log = make_logger(config, out)
    task = configured_task(config)
    net = model_from(config, task.n_input, len(task.classes))
    try_out(net, task)
    projection = StepProjection(net.core) if config.keep_step_certified else None
    initial = certificate(net, projection)
    missing = missing_certificate(config, initial)
    if missing:
        raise ContractionError(
            f"the model must have the {config.require_certificate} certificate before training; "
            f"{missing}"
        )
    if report is not None:
        for sentence in config.unused():
            report(f"note: {sentence}.")
        if task.note:
            report(f"note: {task.note}")

    def record(row: dict[str, Any]) -> None:
        log(row)
        if report is not None:
            report(epoch_line(row, config.epochs))

    with nullcontext() if is_further_process() else locked(out):
        saved = open_folder(config, out, net, resume=resume)
        fabric.launch()
        bar = report is not None and fabric.is_global_zero
        train(config, out, fabric, task, net, projection, saved, record, bar=bar, profile=profile)
        if not fabric.is_global_zero:
            sys.exit(0)
        return finish(config, out, task, net, initial, origin)


def train(
    config: TrainConfig,
    out: Path,
    fabric: Fabric,
    task: Task,
    net: SequenceClassifier,
    projection: StepProjection | None,
    saved: dict[str, Any] | None,
    record: Callable[[dict[str, Any]], None],
    *,
    bar: bool = False,
    profile: Profile | None = None,
) -> None:
    """The epochs that are left: train, project, validate, certify, write the row, save best and last."""
    samples = task.train.joined(task.val) if config.fit_all else task.train
    noise, test = config.input_noise, task.load_test() if config.test_every_epoch else None
    batches = Batches(task, samples, config.batch_size, seed=config.seed, noise=noise)
    held_out = Batches(task, task.val, 256)
    model = fabric.setup_module(net)
    optimizer: Any = fabric.setup_optimizers(make_optimizer(config, net))
    batches.to(fabric.device)
    held_out.to(fabric.device)
    first, best, stale = 0, (-1.0, -math.inf), 0
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        fabric.strategy.precision.load_state_dict(saved["scaler"])
        first, best, stale = saved["epoch"] + 1, tuple(saved["best"]), saved["stale"]
    if projection is not None:
        projection.project()  # a resumed run has other weights by now than it was built with
    rows = [row for row in read_table(out / "metrics.csv") if int(row["epoch"]) < first]
    ended = config.patience > 0 and stale >= config.patience

    for epoch in range(first, config.epochs if not ended else 0):
        started = time.monotonic()
        watched = profile if epoch == first else None
        loss, share = train_epoch(
            fabric, model, optimizer, batches, config, epoch, projection, bar=bar, profile=watched
        )
        row: dict[str, Any] = {"epoch": epoch, "train_loss": loss, "train_accuracy": share}

        with recording(watched):
            with record_function("validation"):
                if projection is not None:
                    project(projection, epoch)
                with fabric.autocast():
                    loss, share = means(fabric, evaluate(net, held_out))
            if not math.isfinite(loss):  # the epoch's last steps: no checkpoint is taken of them
                where = f"epoch {epoch + 1}, validation after step {len(batches)}"
                raise TrainingError(diverged(net, next(iter(held_out)), where))
            row |= {"val_loss": loss, "val_accuracy": share}
            row["learning_rate"] = optimizer.param_groups[0]["lr"]
            row["seconds"] = round(time.monotonic() - started, 3)
            stale = 0 if share > best[0] else stale + 1
            ended = epoch + 1 == config.epochs or (config.patience > 0 and stale >= config.patience)

            due = ended or (epoch + 1) % config.certify_every == 0
            with record_function("certificate"):
                proven = certificate(net, projection) if due else None
        row |= certificate_columns(proven)
        if test is not None:
            row["test_accuracy"] = accuracy(net, task, test)

        rows.append(row)
        if fabric.is_global_zero:
            write_table(out / "metrics.csv", rows)
            record(row)
        missing = "" if proven is None else missing_certificate(config, proven)
        if missing:
            raise TrainingError(
                f"epoch {epoch + 1} lost the {config.require_certificate} certificate: {missing} "
                f"{kept(epoch)} Start again with --config {out / 'config.yaml'} and that change."
            )

        better = (share, -loss) > best
        best = max(best, (share, -loss))
        if fabric.is_global_zero:
            state = {
                "epoch": epoch,
                "model": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": fabric.strategy.precision.state_dict(),
                "best": best,
                "stale": stale,
            }
            if epoch + 1 in config.keep_epochs:
                save_weights(kept_weights(out, epoch + 1), net)
            # The best first: a run that is killed in between repeats the epoch, and finds it again.
            for name in ("best", "last") if better else ("last",):
                save_checkpoint(out / "checkpoints" / f"{name}.ckpt", state)
        if ended:
            break


def train_epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizer: Any,
    batches: Batches,
    config: TrainConfig,
    epoch: int,
    projection: StepProjection | None = None,
    *,
    bar: bool = False,
    profile: Profile | None = None,
) -> tuple[float, float]:
    """One pass over the batches; returns the mean loss and accuracy of its steps.

    `model` and `optimizer` are as Fabric set them up.

    Raises:
        TrainingError: if the loss is not finite.
    """
    net: Any = model.module
    batches.epoch, steps = epoch, len(batches)
    following, sums = iter(batches), new_sums(fabric.device)
    model.train()
    if projection is not None:
        projection.start_epoch()
    with ExitStack() as watched:
        watched.enter_context(recording(profile))
        for index in progress(steps, f"epoch {epoch + 1}/{config.epochs}", bar):
            if index == STEPS:
                watched.close()
            with record_function("data"):
                batch = fabric.to_device(next(following))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, epoch * steps + index, steps)
            # Looking at a number makes a GPU wait: there only at times. Validation looks in any case.
            looks = fabric.device.type != "cuda" or index % 50 == 0
            where = f"epoch {epoch + 1}, step {index + 1}" if looks else None
            with denormals_flushed():  # no certificate is computed in it
                sums += train_step(fabric, model, optimizer, batch, config.gradient_clip_norm, where)
            net.core.project_()
            if projection is not None:
                projection.after_step()
    return means(fabric, sums)


def train_step(
    fabric: Fabric, model: Any, optimizer: Any, batch: Batch, clip: float, where: str | None = None
) -> Tensor:
    """Forward, backward and one step of the optimiser; summed loss, correct answers, samples, (3,).

    Raises:
        TrainingError: if `where` names this step and its loss is not finite.
    """
    u, y, lengths = batch
    with record_function("forward"):
        logits = model(u, lengths=lengths)
        loss = F.cross_entropy(logits.float(), y)
    if where is not None and not bool(loss.isfinite()):
        raise TrainingError(diverged(model.module, batch, where))
    with record_function("backward"):
        fabric.backward(loss)
    with record_function("optimiser"):
        if clip:
            fabric.clip_gradients(model, optimizer, max_norm=clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
    return sums_of(loss, logits, y)


def means(fabric: Fabric, sums: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy from their sums, over all processes."""
    total: Any = fabric.all_reduce(sums, reduce_op="sum")
    loss, correct, count = total.tolist()
    return loss / count, correct / count


def finish(
    config: TrainConfig,
    out: Path,
    task: Task,
    net: SequenceClassifier,
    initial: Certificate,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Keep the weights with the best validation accuracy, read the test set once, summarise.

    With `fit_all` nothing was held out: the weights are the last ones, without a validation accuracy.
    `initial` is the certificate before training; a resumed run starts from the same weights again.
    """
    file = out / "checkpoints" / ("last.ckpt" if config.fit_all else "best.ckpt")
    chosen, _ = read_checkpoint(file)
    load_state(file, chosen["model"], net.cpu())
    save_weights(out / "model.safetensors", net)
    rows = read_table(out / "metrics.csv")
    summary = {
        **origin,
        "task": task.name,
        "note": task.note,
        "model": config.model,
        "parameters": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "epochs": len(rows),
        "best_epoch": int(chosen["epoch"]),
        "val_accuracy": None if config.fit_all else accuracy(net, task, task.val),
        "test_accuracy": accuracy(net, task, task.load_test()),
        "seconds": round(sum(float(row["seconds"]) for row in rows), 1),
        "certificate_initial": initial.as_dict(),
        "certificate": net.core.certificate().as_dict(),
        **run_record(config, rows),
    }
    write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


# --- before training -------------------------------------------------------------------------------


def make_fabric(config: TrainConfig) -> Fabric:
    """Devices and precision of a run.

    Raises:
        ConfigError: if the device is not there.
    """
    try:
        return Fabric(
            accelerator=config.device,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy="ddp" if config.devices * config.nodes > 1 else "auto",
            precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{config.devices} x device {config.device!r} with precision {config.precision} is not "
            f"there: {str(error).splitlines()[0]} Use --device auto."
        ) from None


def make_logger(config: TrainConfig, out: Path) -> Callable[[dict[str, Any]], None]:
    """What is done with a row of the table besides writing it.

    Raises:
        ConfigError: if the logger is not installed.
    """
    if config.logger == "none":
        return lambda row: None
    try:
        if config.logger == "tensorboard":
            from lightning_fabric.loggers import TensorBoardLogger

            log: Any = TensorBoardLogger(out, name="", version="tensorboard").log_metrics
        else:
            import wandb

            def log(values: dict[str, Any], step: int) -> None:
                run = wandb.run or wandb.init(dir=out, project="ctrnn-assembly", mode="offline")
                run.log(values, step=step)

    except ModuleNotFoundError:
        raise ConfigError(
            f"logger {config.logger!r} is not installed. Use pip install 'ctrnn-assembly[logging]'."
        ) from None
    return lambda row: log({k: v for k, v in row.items() if v is not None}, row["epoch"])


def try_out(net: SequenceClassifier, task: Task) -> None:
    """One sample forward: what a solver refuses is refused before anything is written."""
    u, _, lengths = next(iter(Batches(task, task.train, 1, whole=True)))
    net(u.to(next(net.parameters())), lengths=lengths)


def open_folder(
    config: TrainConfig, out: Path, net: SequenceClassifier, *, resume: bool
) -> dict[str, Any] | None:
    """Make or check the run folder; returns the checkpoint to go on from, its weights in `net`."""
    stored = out / "config.yaml"
    if not resume:
        if not is_further_process():
            if stored.exists():
                raise ConfigError(f"{out} already holds a run. Use --resume {out}, or another --out.")
            write(stored, to_yaml(config))
        return None
    if (out / "summary.json").exists():
        read_summary(out)
        raise ConfigError(f"{out} is finished. Start a new run with --config {stored} --out NEW.")
    last = out / "checkpoints" / "last.ckpt"
    if not last.exists():
        return None  # killed before its first epoch ended: it starts again, with the same result
    for file in (last.with_name("best.ckpt"), last):
        saved, _ = read_checkpoint(file)
        load_state(file, saved["model"], net)
    return saved


def is_further_process() -> bool:
    """Whether this process is a further rank of a distributed run, on this node or another."""
    ranks = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return any(int(os.environ.get(name) or 0) > 0 for name in ranks)


# --- within an epoch -------------------------------------------------------------------------------


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


def recording(profile: Profile | None) -> Any:
    """The context in which a profile records; nothing without one."""
    return nullcontext() if profile is None else profile.recording()


def progress(steps: int, what: str, shown: bool) -> Any:
    """The numbers of the steps, with a progress bar where stderr is a terminal."""
    if not shown or not sys.stderr.isatty():
        return range(steps)
    return track(range(steps), what, console=Console(stderr=True), transient=True)


@torch.no_grad()
def diverged(net: SequenceClassifier, batch: Batch, where: str) -> str:
    """What to say of a loss that is not finite."""
    core: Any = net.core
    u, _, lengths = batch
    norms = core(u.to(next(net.parameters())), lengths=lengths)[0].norm(dim=-1)
    finite_norms = norms[norms.isfinite()]
    norm = f"{float(finite_norms.max()):.4g}" if len(finite_norms) else "NaN"
    return (
        f"the loss became NaN or infinite in {where}; the largest finite state norm is {norm}. The last "
        "good checkpoint is kept. Lower learning_rate or dt, or use solver imex."
    )


# --- between epochs --------------------------------------------------------------------------------


def project(projection: StepProjection, epoch: int) -> None:
    """Project the weights that an epoch ends with.

    Raises:
        TrainingError: if they cannot be certified.
    """
    try:
        projection.project()
    except ContractionError as error:
        raise TrainingError(
            f"epoch {epoch + 1} lost the discrete certificate: {error} {kept(epoch)}"
        ) from None


def certificate(net: SequenceClassifier, projection: StepProjection | None) -> Certificate:
    """Of the weights as they are."""
    return net.core.certificate() if projection is None else projection.certificate


COLUMNS = ("certified", "rate", "step_certified", "step_factor", "max_dt")


def certificate_columns(proven: Certificate | None) -> dict[str, Any]:
    """The certificate of an epoch, for its row: 0 or 1, and bounds, None where there is no number.

    All are None for an epoch without one. max_dt is None where every dt is certified, if step_certified
    is 1; the factor where none is proven.
    """
    if proven is None:
        return dict.fromkeys(COLUMNS)
    step = proven.step
    assert step is not None
    found = (proven.certified, proven.rate, step.certified, step.contraction_factor, step.max_dt)
    return {
        name: int(value) if isinstance(value, bool) else finite(value)
        for name, value in zip(COLUMNS, found, strict=True)
    }


def missing_certificate(config: TrainConfig, proven: Certificate) -> str:
    """Why the certificate is not what `require_certificate` asks for, and what to do; empty if it is."""
    if config.require_certificate == "none":
        return ""
    if not proven.certified:
        return "; ".join(proven.reasons) + "."
    step = proven.step
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


def kept(epoch: int) -> str:
    """What is left of a run that stops in this epoch, counted from 0."""
    before = "that of the epoch before is kept" if epoch else "there is none before it"
    return f"No checkpoint is taken of this epoch; {before}."


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint as `read_checkpoint` reads it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write(path, buffer.getvalue())


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """The row of an epoch in one line."""
    said = [
        f"epoch {row['epoch'] + 1}/{epochs}",
        f"loss {row['train_loss']:.4f}",
        f"train {row['train_accuracy']:.4f}",
        f"val {row['val_accuracy']:.4f}",
    ]
    if row["rate"] is not None:  # a baseline has none
        said.append(f"rate {row['rate']:.4f}" + (" not certified" if not row["certified"] else ""))
    if row["rate"] is not None and row["certified"]:
        factor = row["step_factor"]
        shown = "" if factor is None else f" (factor {factor:.4f})"
        said.append(f"step {'certified' if row['step_certified'] else 'not certified'}{shown}")
    return "  ".join([*said, f"{row['seconds']:.1f} s"])
