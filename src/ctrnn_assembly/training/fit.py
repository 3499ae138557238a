"""One training run, read from top to bottom: a configuration in, a run folder out.

The batches of an epoch depend on (seed, epoch) only, and checkpoints are taken between epochs: a run
that was killed and resumed ends with the same weights, bit for bit on a CPU. Validation accuracy, then
(or of values alone) the loss, selects the weights; the test set is read once, after training, and with
`test_every_epoch` after each epoch, to be reported only.
"""

import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import pstdev
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.profiler import record_function

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.result import down, factor, finite
from ctrnn_assembly.data import Task
from ctrnn_assembly.data.own import Preparation
from ctrnn_assembly.data.targets import MEASURES, balanced, known, loss_of
from ctrnn_assembly.errors import ConfigError, ContractionError, SolverError, TrainingError, refusing
from ctrnn_assembly.layers import SequenceClassifier
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.training import run
from ctrnn_assembly.training.batches import Batch, Batches, evaluate, measure, sums_of, timed
from ctrnn_assembly.training.config import TrainConfig, difference, to_yaml
from ctrnn_assembly.training.provenance import provenance

# The stop at a plateau of De Caro et al. 2025: Ray's TrialPlateauStopper with these settings.
PLATEAU_EPOCHS, PLATEAU_STD, PLATEAU_GRACE = 5, 1e-3, 50
STAGES = ("data", "forward", "backward", "optimiser", "validation", "certificate")
OF_DATA = ("target", "ahead", "warm_up", "missing")  # settings that a task of your own brings along
STEPS = 5  # of the first epoch are profiled: a step is tens of thousands of operations
LONG = 60.0  # seconds: of a longer run a trial is spoken of, and after them an epoch says how far it is
TIMED = 5  # are timed, after the first one, to tell how long a run will take
DIVERGED = "the loss became NaN or infinite in {}. The last good checkpoint stays. Lower learning_rate."
HELD = "{0} already holds a run. Use --resume {0}, or another --out."
PRECISIONS = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def say(line: str) -> None:
    """Print a line to stderr; that nobody listens any more ends no training."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@dataclass
class Training:
    """A run, and how far it has come between two epochs; `model` is `net` as Fabric set it up."""

    config: TrainConfig
    fabric: Fabric
    task: Task
    net: SequenceClassifier
    out: Path = Path()
    report: Callable[[str], None] = say
    profile: AbstractContextManager[Any] = field(default_factory=nullcontext)
    model: Any = None
    optimizer: Any = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    epoch: int = 0

    def set_up(self, saved: run.Weights | None = None) -> None:
        """Move everything to its device; `saved` is the checkpoint whose weights `net` has."""
        self.model = self.fabric.setup_module(self.net)
        config, parts = self.config, {"field", "gate"}  # a gate of steps belongs to the recurrence
        trained = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        groups: list[dict[str, Any]] = [{"params": trained.values(), "share": 1.0}]
        if config.recurrent_rate is not None:
            inside = {name for name in trained if parts & {*name.split(".")}}
            groups[0]["params"] = [p for name, p in trained.items() if name not in inside]
            own = [p for name, p in trained.items() if name in inside]
            groups.append({"params": own, "share": config.recurrent_rate, "weight_decay": 0.0})
        # One kernel for all parameters; it cannot clip gradients that a scaler has scaled.
        given: Any = {"lr": config.learning_rate, "fused": config.precision in ("32", "64")}
        optimizer = OPTIMIZERS[config.optimizer](groups, weight_decay=config.weight_decay, **given)
        if saved is not None:
            saved.restore(optimizer, self.fabric.strategy.precision)
            self.rows = saved.progress["rows"]
            self.epoch = len(self.rows)
        self.optimizer = self.fabric.setup_optimizers(optimizer)

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or enough of them without a better or another `run.merit`."""
        config, reached = self.config, [run.merit(row)[0] for row in self.rows]
        old = config.plateau and self.epoch >= PLATEAU_GRACE
        flat = old and pstdev(reached[-PLATEAU_EPOCHS:]) <= PLATEAU_STD
        stale = self.epoch - 1 - reached.index(max(reached)) if reached else 0
        return flat or self.epoch >= config.epochs or 0 < config.patience <= stale

    @property
    def certificate(self) -> Certificate:
        """Of the weights as they are; a long search is left to the end, unless it is required."""
        whole = self.ended or self.config.require_certificate == "discrete"
        return self.net.core.certificate(search="fast" if whole else "rate")

    def save(self, path: Path) -> None:
        state = {
            "task": self.task.name,
            "rows": self.rows,
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        run.write(path, buffer.getvalue())

    def means(self, part: str, sums: Tensor) -> dict[str, Any]:
        """Mean loss and accuracy (of values None) from their sums over all processes, as columns."""
        total: Any = self.fabric.all_reduce(sums, reduce_op="sum")
        loss, correct, count = total.tolist()
        share = correct / count if self.task.classes else None
        return {f"{part}_loss": loss / count, f"{part}_accuracy": share}


def fit(
    config: TrainConfig,
    out: Path,
    *,
    task: Task | None = None,
    resume: bool = False,
    report: Callable[[str], None] = say,
    command: str | None = None,
    profile: AbstractContextManager[Any] | None = None,
) -> dict[str, Any]:
    """Train, select by validation, test once, and write the run folder; returns summary.json.

    Args:
        task: instead of the configuration's, such as one of `Task.from_arrays`; it is then task own.
        resume: go on with the run in this folder, from its last whole epoch, perhaps to more of them.
        report: gets a line for each epoch; on a terminal there is a progress bar as well.
        command: see `provenance`. profile: `torch.profiler.profile(acc_events=True)`, of a few steps.

    Raises: ConfigError or DataError for what cannot be used, ContractionError without the certificate
        that must not be lost, RunBusyError if another process trains in this folder, and TrainingError
        if the loss is not finite or the certificate is lost; what was saved stays.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    summary = provenance(command=command, seed=config.seed, device=config.device)
    if task is not None:
        made = {name: getattr(task.sequence, name, getattr(config, name)) for name in OF_DATA}
        config = config.model_copy(update={"task": "own", "data_dir": None, **made})
    fabric = make_fabric(config, out)
    if not resume and fabric.is_global_zero and (out / "config.yaml").exists():
        raise ConfigError(HELD.format(out))  # before anything that takes time, and again below
    start = run.Run(out if resume else None, config, initial=True)
    task = task or start.task
    if config.class_weights == "balanced":
        task = replace(task, loss=partial(loss_of, weights=balanced(task.train.y, task.n_class)))
    start.task = task
    net = start.build()
    if config.init_from is not None:
        with refusing(f"{config.init_from} cannot be started from", "Use its model and its sizes."):
            run.Run.open(config.init_from).weights.load(net)
    if fabric.is_global_zero:
        what = f"{config.model}, {trained_parameters(net):,} trained parameters, on {task.name}"
        data = f"{len(task.train):,} sequences of {task.n_steps:,} steps x {task.n_input}"
        report(f"{what}: {data}, {config.epochs} epochs; device {fabric.device}, run folder {out}")
    u, _, given = next(iter(Batches(task, task.train, 1)))
    if "dt" in given and config.require_certificate == "discrete":
        raise ConfigError(f"no step is certified of samples unequally far apart: {task.note} Drop time.")
    training = Training(config, fabric, task, net, out, report, profile or nullcontext())
    initial = training.certificate
    if missing := missing_certificate(config, initial):
        must = f"the model must have the {config.require_certificate} certificate before training"
        raise ContractionError(f"{must}; {missing}")
    net(u.to(net.readout.weight), **timed(net, given))  # a solver refuses before anything is written
    for note in filter(None, (*(f"{sentence}." for sentence in config.unused()), task.note)):
        report(f"note: {note}")

    with run.locked(out) if fabric.is_global_zero else nullcontext():
        saved = open_folder(training, resume=resume)
        fabric.launch()
        training.set_up(saved)
        train(training)
        if not fabric.is_global_zero:
            sys.exit(0)
        summary |= finish(training) | {"certificate_initial": initial.as_dict()}
        run.write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary


def trained(config: TrainConfig, out: Path, **how: Any) -> dict[str, Any]:
    """The summary of the run of this folder, which is trained if it is not there, or goes on.

    ConfigError if the folder holds one with other settings, RunBusyError if another process has it.
    """
    with run.locked(out):
        resume = (out / "config.yaml").exists()
        if resume and (other := difference(run.read_config(out), config)):
            what = f"{out} holds a run with other settings ({other})"
            raise ConfigError(f"{what}. Delete it, or use another folder.")
        return (resume and run.read_summary(out)) or fit(config, out, resume=resume, **how)


def train(training: Training) -> None:
    """The epochs that are left: train, project, validate, certify, write the row, save best and last."""
    config, fabric, task, net = training.config, training.fabric, training.task, training.net
    out, first, rank = training.out, fabric.is_global_zero, (fabric.global_rank, fabric.world_size)
    samples = task.train.joined(task.val) if config.fit_all else task.train
    how: Any = {"seed": config.seed, "noise": config.input_noise, "share": rank}
    batches = Batches(task, samples, config.batch_size, **how)
    held_out = Batches(task, task.val, 256, share=rank)
    test = task.load_test() if config.test_every_epoch else None
    for data in (batches, held_out):
        data.to(fabric.device)
    start = training.epoch
    while not training.ended:
        row: dict[str, Any] = {"epoch": training.epoch}
        started = time.monotonic()
        trained = train_epoch(training, batches, timed=training.epoch == start)
        with training.profile, record_function("validation"):
            where = f"epoch {training.epoch + 1}, validation after step {len(batches)}"
            with fabric.autocast(), located(where):
                valid = training.means("val", evaluate(net, held_out))
        training.epoch += 1
        # The epoch's last steps may have lost it: no checkpoint is taken of them.
        if not math.isfinite(valid["val_loss"]):
            raise TrainingError(DIVERGED.format(where))
        row |= trained | valid | {"learning_rate": training.optimizer.param_groups[0]["lr"]}
        row["seconds"] = round(time.monotonic() - started, 3)
        training.rows.append(row)
        better = row is max(training.rows, key=run.merit)

        due = training.ended or training.epoch % config.certify_every == 0
        with training.profile, record_function("certificate"):
            proven = training.certificate if due else None
        row |= certificate_columns(proven)
        if test is not None:
            row["test_accuracy"] = measure(net, task, test)["accuracy"]
        if first:
            run.write_table(out / "metrics.csv", training.rows)
            fabric.log_dict({k: x for k, x in row.items() if x is not None}, row["epoch"])
            training.report(epoch_line(row, config.epochs))
        if lost := missing_certificate(config, proven):
            before = "that of the epoch before is kept" if row["epoch"] else "there is none before it"
            raise TrainingError(
                f"epoch {training.epoch} lost the {config.require_certificate} certificate: {lost} No "
                f"checkpoint is taken of this epoch; {before}. Start again with --config "
                f"{out / 'config.yaml'} and that change."
            )
        if first:
            if training.epoch in config.keep_epochs:
                run.save_weights(out / run.KEPT.format(training.epoch), net)
            # The best first: a run that is killed in between repeats the epoch, and finds it again.
            for name in ("best", "last") if better else ("last",):
                training.save(out / "checkpoints" / f"{name}.ckpt")
        training.profile = nullcontext()


def train_epoch(training: Training, batches: Batches, *, timed: bool = False) -> dict[str, Any]:
    """One pass over the batches; returns the means of its steps. If `timed`, it reports a `forecast`."""
    config, fabric = training.config, training.fabric
    batches.epoch, steps = training.epoch, len(batches)
    core: Any = training.net.core
    following, sums = iter(batches), torch.zeros((), device=fabric.device)
    training.model.train()
    # Dropout draws from torch's own generator, which no checkpoint holds.
    drawn = np.random.SeedSequence([config.seed, training.epoch, fabric.global_rank])
    torch.manual_seed(int(drawn.generate_state(1)[0]))
    clock, last_timed = 0.0, min(TIMED, steps - 1)
    for index in told(training, steps):
        with training.profile if index < STEPS else nullcontext():
            with record_function("data"):
                batch = fabric.to_device(next(following))
            rate = config.learning_rate_at(training.epoch * steps + index, steps)
            for group in training.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            # Looking at a number makes a GPU wait: there only at times. Validation looks in any case.
            looks = fabric.device.type != "cuda" or index % 50 == 0
            where = f"epoch {training.epoch + 1}, step {index + 1}"
            with denormals_flushed(), located(where):  # no certificate is computed in it
                sums = sums + train_step(training, batch, where if looks else None)
            core.project_()
        if timed and index in (0, last_timed):
            sums.sum().item()  # waits for a GPU
            since, clock = clock, time.monotonic()
            if index and fabric.is_global_zero:
                training.report(forecast(training, steps, (clock - since) / index))
    return training.means("train", sums)


def told(training: Training, steps: int) -> Iterator[int]:
    """The steps of an epoch, counted from 0: a progress bar on a terminal, elsewhere a line at times."""
    what, console = f"epoch {training.epoch + 1}/{training.config.epochs}", Console(stderr=True)
    if console.is_terminal and training.report is say and training.fabric.is_global_zero:
        yield from track(range(steps), what, console=console, transient=True)
        return
    begun = spoken = time.monotonic()
    for index in range(steps):
        yield index
        now, left = time.monotonic(), steps - index - 1
        if now - spoken > LONG and left and training.fabric.is_global_zero:
            spoken, rest = now, (now - begun) / (index + 1) * left
            training.report(f"{what}: step {index + 1} of {steps}, {run.lasting(rest)} left of it")


def trained_parameters(net: SequenceClassifier) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def forecast(training: Training, steps: int, each: float) -> str:
    """What the epochs that are left take on this machine, in a line, at `each` seconds a step."""
    left = training.config.epochs - training.epoch
    seconds = left * steps * each
    said = f"{left} epochs of {steps} steps of {each:.2g} s as at first, and validation, certificates"
    shorter = "; --fast makes a small trial" if seconds > LONG else ""
    return f"about {run.lasting(max(1, seconds))} on this machine: {said}{shorter}"


@contextmanager
def located(where: str) -> Iterator[None]:
    """A solve that gives up, or whose state overflows, ends the training, and says where."""
    try:
        yield
    except SolverError as error:
        raise TrainingError(
            f"the solver stopped in {where}: {error} The last good checkpoint is kept; or lower "
            "learning_rate."
        ) from error


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below 1e-38 are zero in this thread: with them fading gradients take 15 times as long."""
    # PyTorch sets the mode and does not tell it.
    flushed_before = torch.tensor(1e-40, dtype=torch.float32).item() == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)


def train_step(training: Training, batch: Batch, where: str | None = None) -> Tensor:
    """Forward, backward, and the optimiser; returns `sums_of` it. If `where` names the step, it looks
    whether the loss is finite."""
    fabric, model, optimizer = training.fabric, training.model, training.optimizer
    u, y, given = batch
    with record_function("forward"):
        logits = model(u, **timed(training.net, given))
        loss = training.task.loss(logits, y)
    if where is not None and not bool(loss.isfinite()):
        raise TrainingError(DIVERGED.format(where))
    with record_function("backward"):
        fabric.backward(loss)
    with record_function("optimiser"):
        if clip := training.config.gradient_clip_norm:
            fabric.clip_gradients(model, optimizer, max_norm=clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
    return sums_of(loss, logits, y)


def finish(training: Training) -> dict[str, Any]:
    """Keep the weights that validation chose, with `fit_all` the last, and read the test set once."""
    config, out, task, net = training.config, training.out, training.task, training.net.cpu()
    chosen = run.read_weights(out / "checkpoints" / ("last.ckpt" if config.fit_all else "best.ckpt"))
    chosen.load(net)
    run.save_weights(out / "model.safetensors", net)
    rows, parts = training.rows, {"val": task.val} | ({"test": task.load_test()} if task.tested else {})
    found = {f"{part}_{k}": x for part in parts for k, x in measure(net, task, parts[part]).items()}
    found = dict.fromkeys(f"test_{k}" for k in MEASURES) | found
    return {
        "task": task.name,
        "data": task.data,
        "note": task.note,
        "model": config.model,
        "parameters": trained_parameters(net),
        "epochs": len(rows),
        "weights_sha256": run.read_weights(out / "model.safetensors").sha256,
        "best_epoch": len(chosen.progress["rows"]) - 1,
        **{name: None if config.fit_all and "val_" in name else x for name, x in found.items()},
        "chance": chance(parts["test"].y) if task.classes and task.tested else None,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "certificate": net.core.certificate().as_dict(),
        **run.run_record(config, rows),
    }


def chance(y: Tensor) -> float:
    """The share of the commonest class of y, a tensor, and two standard errors: nothing learnt."""
    y = y[known(y)]
    share = float(y.bincount().max()) / len(y)
    return min(1.0, share + 2 * math.sqrt(share * (1 - share) / len(y)))


def make_fabric(config: TrainConfig, out: Path = Path()) -> Fabric:
    """Devices, precision and logger of a run; a ConfigError if one of them is not there."""
    # A scheduler sets ranks for lone processes too, which are asked for by several only.
    several = config.devices * config.nodes > 1
    try:
        logs = config.logger == "tensorboard"
        return Fabric(
            accelerator=config.device,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy="ddp" if several else "auto",
            plugins=None if several else LightningEnvironment(),
            precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
            loggers=TensorBoardLogger(out, name="", version="tensorboard") if logs else None,
        )
    except ModuleNotFoundError:
        fix = "Use pip install 'ctrnn-assembly[logging]'."
        raise ConfigError(f"logger {config.logger!r} is not installed. {fix}") from None
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{config.devices} x device {config.device!r} with precision {config.precision} is not "
            f"there: {str(error).splitlines()[0]} Use --device auto."
        ) from None


def open_folder(training: Training, *, resume: bool) -> run.Weights | None:
    """Make or check the run folder; returns the checkpoint to go on from, its weights in the net."""
    out, stored = training.out, training.out / "config.yaml"
    if not resume and training.fabric.is_global_zero:
        if stored.exists():
            raise ConfigError(HELD.format(out))
        run.write(stored, to_yaml(training.config))
        if isinstance(prepared := training.task.sequence, Preparation):
            run.write(out / run.PREPARATION, prepared.model_dump_json(indent=2) + "\n")
    if not resume:
        return None
    if training.config.epochs > run.read_config(out).epochs and training.fabric.is_global_zero:
        (out / "summary.json").unlink(missing_ok=True)
        run.write(stored, to_yaml(training.config))
    if run.read_summary(out) is not None:
        raise ConfigError(f"{out} is finished. Use more --epochs, or --config {stored} --out NEW.")
    if not (last := out / "checkpoints" / "last.ckpt").exists():
        return None  # killed before its first epoch ended: it starts again, with the same result
    for file in (last.with_name("best.ckpt"), last):
        saved = run.read_weights(file)
        saved.load(training.net)
    if (before := saved.progress["task"]) != (now := training.task.name):
        raise ConfigError(f"{out} was trained on {before}; got {now}. Name that data with --data-dir.")
    return saved


def certificate_columns(proven: Certificate | None) -> dict[str, Any]:
    """The certificate of an epoch, for its row: 0 or 1, and bounds; all None without one."""
    if proven is None or proven.step is None:
        return dict.fromkeys(("certified", "rate", "step_certified", "step_factor", "max_dt"))
    return {
        "certified": int(proven.certified),
        "rate": finite(proven.rate),
        "step_certified": int(proven.step.certified),
        "step_factor": finite(proven.step.contraction_factor),
        "max_dt": finite(proven.step.max_dt),
    }


def missing_certificate(config: TrainConfig, proven: Certificate | None) -> str:
    """Why the certificate is not the required one, and what to do; empty if it is."""
    required = config.require_certificate
    if required == "none" or proven is None:
        return ""
    if not proven.certified:
        return "; ".join(proven.reasons) + "."
    if required == "continuous" or proven.step is None or proven.step.certified:
        return ""
    changes = {"euler": "--solver imex, or more --substeps", "imex": "more --substeps"}
    other = f"--solver {'imex' if config.solver in SCHEMES else 'euler or imex'}"
    return f"{proven.step.reason}. Use {changes.get(config.solver, other)}."


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    val = "val_loss" if row["val_accuracy"] is None else "val_accuracy"
    numbers = {"loss": "train_loss", "train": "train_accuracy", "val": val}
    said = [f"{word} {row[name]:.4f}" for word, name in numbers.items() if row[name] is not None]
    rate, bound = row["rate"], row["step_factor"]
    shown = "" if bound is None else f" (factor {factor(bound)})"
    step = f"  step {'' if row['step_certified'] else 'not '}certified{shown}"
    if rate is not None:  # a baseline has none
        said.append(f"rate {down(rate)}" + (step if row["certified"] else " not certified"))
    return "  ".join([f"epoch {row['epoch'] + 1}/{epochs}", *said, f"{row['seconds']:.1f} s"])
