"""A run folder: what training leaves behind, written so that a crash loses nothing saved, and read once.

Its files are in docs/reference/files.md, each written beside its place and moved there. Checkpoints are
unpickled with `weights_only=True`, nothing else is. What is damaged, or of another run, is a DataError.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor, nn

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.result import finite, verdict
from ctrnn_assembly.data import Task, load_task
from ctrnn_assembly.data.own import Preparation
from ctrnn_assembly.data.targets import STEPWISE, in_words
from ctrnn_assembly.errors import ConfigError, CtrnnError, DataError, check_within, refusing
from ctrnn_assembly.layers import SequenceClassifier
from ctrnn_assembly.models import MODELS, build_model, output_size
from ctrnn_assembly.schemes import ADAPTIVE, SOLVERS, unknown_solver
from ctrnn_assembly.training.batches import Batches
from ctrnn_assembly.training.config import TrainConfig, make_config, read_yaml, recipe, to_yaml

PREPARATION = "data.json"
KEPT = "weights/epoch-{:04}.safetensors"  # of an epoch, counted from 1
CARD = "---\nlibrary_name: ctrnn-assembly\n---\n# {}\n\n{}; test: {}. sha256 of the weights: {}.\n\n"
CARD += "    model = ctrnn_assembly.from_pretrained(FOLDER).model  # reads (batch, time, channels)\n"
CERTIFICATE = "certificate.json"
BESIDE = "Use the file that was saved beside it."
# Where the layers keep what reads the input, (rows, m): the number of inputs is its width.
INPUT_WEIGHTS = ("core.encoder.weight", "core.inputs.weight", "core.rnn.weight_ih_l0")


class RunBusyError(CtrnnError, RuntimeError):
    """Another process holds the run folder."""


@dataclass(frozen=True)
class Weights:
    """Weights, and where they are from: a "checkpoint" is of a run that is not finished.

    `sha256` is of the bytes that `state`, a state dict, was read from; initial weights have neither.
    `progress` is what a checkpoint holds besides: task, rows of metrics.csv, optimizer and scaler.
    """

    kind: Literal["trained", "checkpoint", "epoch", "initial"]
    file: Path | None = None
    sha256: str | None = None
    state: dict[str, Tensor] = field(default_factory=dict, repr=False)
    progress: dict[str, Any] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: which weights, their file and its sha256."""
        return {"kind": self.kind, "file": self.file and str(self.file), "sha256": self.sha256}

    def load(self, model: nn.Module) -> None:
        """Load them into a model, which takes their precision."""
        if bad := [name for name, x in self.state.items() if x.is_complex() or not x.isfinite().all()]:
            what = f"{self.file} holds NaN or infinite values, or complex ones, in {bad[0]!r}"
            raise DataError(f"{what}. Use an intact copy.")
        dtypes = {tensor.dtype for tensor in self.state.values() if tensor.is_floating_point()}
        if len(dtypes) == 1:
            model.to(dtypes.pop())
        fixed = {name: x.clone() for name, x in model.named_buffers() if name.endswith(".tau")}
        with refusing(f"{self.file} does not fit the model of its config.yaml", BESIDE):
            model.load_state_dict(self.state)
        for name, own in fixed.items():
            stored = self.state[name]
            if not torch.allclose(stored.double(), own.to(stored.dtype).double(), rtol=1e-6, atol=0):
                raise DataError(
                    f"{self.file} holds the time constants {stored.tolist()[:3]}... in {name!r}, and "
                    f"config.yaml {own.tolist()[:3]}...: they are not trained, and must agree. {BESIDE}"
                )

    def restore(self, optimizer: torch.optim.Optimizer, precision: Any) -> None:
        """Load a checkpoint's state of Adam and of Fabric's precision; settings stay as configured."""
        settings = optimizer.state_dict()["param_groups"]
        with refusing(f"{self.file} does not fit the optimiser of its config.yaml", BESIDE):
            stored = self.progress["optimizer"]["state"]
            optimizer.load_state_dict({"state": stored, "param_groups": settings})
            for parameter, moments in optimizer.state.items():
                for name in ("step", "exp_avg", "exp_avg_sq"):
                    x, shape = moments[name], () if name == "step" else parameter.shape
                    if x.shape != shape or not x.isfinite().all():
                        raise ValueError(f"{name} must be finite and have the shape {[*shape]}")
            precision.load_state_dict(self.progress["scaler"])


def read_weights(file: Path) -> Weights:
    """The weights in a safetensors file or a checkpoint; read once, and without running any code."""
    if not file.exists():
        raise DataError(f"there are no weights at {file}. Train first, or use an intact copy.")
    content, saved = file.read_bytes(), file.suffix == ".ckpt"
    digest, kind = hashlib.sha256(content).hexdigest(), "checkpoint" if saved else "safetensors file"
    what = f"{file} is not a readable {kind}: it is cut short, damaged or of another program"
    with refusing(what, "Use an intact copy, or start a new run with its config.yaml.", told=False):
        if not saved:
            kept = file.stem.startswith("epoch-")
            return Weights("epoch" if kept else "trained", file, digest, safetensors.torch.load(content))
        stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        progress = {key: stored[key] for key in ("task", "rows", "optimizer", "scaler")}
        [tensor.shape for tensor in stored["model"].values()]
        [merit(row) for row in progress["rows"]]
        return Weights("checkpoint", file, digest, stored["model"], progress)


def save_weights(path: Path, model: nn.Module) -> None:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write(path, safetensors.torch.save(state))


@dataclass(eq=False)
class Run:
    """A network by name: a run folder with its weights, or a configuration with its initial ones.

    All but the configuration is read once, when it is first asked for. `path` is None for a file or a
    recipe. `initial` takes the weights before training, `epoch` those that `keep_epochs` kept after it.

    >>> run: Run = load_run("digits", modules=2)  # or a run folder, such as "runs/mine"
    >>> run.config.model, run.task.n_input, run.certificate.certified
    ('svd-combo', 1, True)
    >>> u, classes, lengths = run.inputs("val", samples=8)
    >>> run.model(u.float()).shape
    torch.Size([8, 10])
    """

    path: Path | None
    config: TrainConfig
    initial: bool = False
    epoch: int | None = None

    @classmethod
    def open(
        cls, source: str | Path, *, initial: bool = False, epoch: int | None = None, **changes: Any
    ) -> Self:
        """A run folder, a YAML file or the name of a recipe; None among `changes` changes nothing.

        >>> load_run("digits", solver="imex").config.solver
        'imex'
        """
        path, given = Path(source), {k: v for k, v in changes.items() if v is not None}
        if path.is_dir():
            settings = read_config(path).model_dump()
        elif path.exists():
            settings = read_yaml(path)
        else:
            settings = recipe(str(source), "there is no run folder or file of that name, and a recipe")
        if given.get("solver") in ADAPTIVE:  # which choose their own steps
            settings |= {"substeps": 1}
        config = make_config(settings, given)
        if given.get("solver", "euler") not in SOLVERS:
            raise unknown_solver(given["solver"])
        row = MODELS.get(config.model)
        if row is not None and row.is_baseline and {"dt", "substeps", "solver"} & given.keys():
            raise ConfigError(f"{config.model!r} has no solver: drop --solver, --dt and --substeps.")
        if given.get("one_field") and row is not None and not row.is_stack:
            raise ConfigError(f"--one-field is of deep models; got {config.model!r}. Leave it out.")
        return cls(path, config, initial, epoch) if path.is_dir() else cls(None, config)

    @property
    def file(self) -> Path | None:
        """Of the weights: trained, of `epoch`, or of the last epoch so far; None for initial ones."""
        if self.path is None or self.initial:
            return None
        if self.epoch is not None:
            return self.path / KEPT.format(self.epoch)
        trained, last = self.path / "model.safetensors", self.path / "checkpoints" / "last.ckpt"
        if trained.exists() or (self.path / "summary.json").exists():
            return trained
        return last if last.exists() else None

    @cached_property
    def weights(self) -> Weights:
        """The weights that `model` loads; DataError if there are none, or the summary of a finished run,
        or a `CERTIFICATE`, is of others."""
        if self.file is not None:
            found = read_weights(self.file)
            for beside in map(self.file.with_name, (CERTIFICATE, "summary.json")):
                if beside.exists():
                    with refusing(f"{beside} is of other weights, or damaged", "Use intact copies."):
                        of, own = json.loads(beside.read_text("utf-8"))["weights_sha256"], found.sha256
                        if of != own:
                            its = f"{self.file} has the sha256 {str(own)[:16]}..."
                            raise ValueError(f"it is of {str(of)[:16]}..., and {its}")
            return found
        if self.path is None or self.initial:
            return Weights("initial")
        fix = f"`ctrnn train --resume {self.path}` goes on; --initial takes what it starts from."
        raise DataError(f"{self.path} has no weights yet: no epoch has ended. {fix}")

    @cached_property
    def task(self) -> Task:
        """The task of the configuration."""
        settings = self.config.of_data
        task, stored = load_task(settings.pop("task"), **settings), self.path and self.path / PREPARATION
        if stored and stored.exists() and Preparation.read(stored) != task.sequence:
            differ = f"{task.data} is not what the run was trained on: channels, target or values differ"
            raise DataError(f"{differ}. Name the old data; new ones are for `ctrnn predict`.")
        return task

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The rows of metrics.csv; none if no epoch has ended."""
        return [] if self.path is None else read_table(self.path / "metrics.csv")

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None if the run is not finished."""
        return None if self.path is None else read_summary(self.path)

    def column(self, name: str) -> NDArray[np.float64]:
        """One column of metrics.csv, (epochs,): NaN where there is no value."""
        return np.array([row.get(name) for row in self.epochs], dtype=np.float64)

    @cached_property
    def model(self) -> SequenceClassifier:
        """The classifier with these weights, in evaluation mode."""
        return self.build()

    @cached_property
    def certificate(self) -> Certificate:
        """What is proven of the network, as its weights are, and of its step; reads no data."""
        return self.build(data=False).core.certificate()

    def build(self, *, double: bool = False, data: bool = True) -> SequenceClassifier:
        """`model`, made anew; `double` converts it to float64.

        It has the numbers of inputs and classes of the weights or the task; without `data` perhaps any.
        """
        weights = self.weights
        sizes = _sizes(weights.state, output_size(self.config)) or (1, 2)
        if data and weights.file is None:
            sizes = self.task.n_input, self.task.n_class
        model = model_from(self.config, *sizes).eval()
        if weights.file is not None:
            weights.load(model)
        return model.double() if double else model

    def inputs(
        self, split: str = "val", samples: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The first samples of a split of the task: "train", "val" or "test"; by default 4.

        Inputs (samples, T, m), float64; classes (samples,); valid steps (samples,), or None.
        """
        part = self.task.load_test() if split == "test" else getattr(self.task, split)
        samples = min(4, len(part)) if samples is None else samples
        check_within(f"[1, {len(part)}]", f"The {split} split has {len(part)}.", samples=samples)
        u, y, given = next(iter(Batches(self.task, part, samples)))
        if "dt" in given:
            raise ConfigError(f"radii and diagnostics are of equal steps. {self.task.note} Drop time.")
        return u.double(), y, given["lengths"]

    @property
    def task_name(self) -> str:
        """Of the task if it is loaded, or as it was trained on; else what the configuration asks for."""
        if "task" in vars(self):
            return self.task.name
        unfinished = self.file is not None and self.file.suffix == ".ckpt"
        saved = self.summary or (self.weights.progress if unfinished else {})
        return str(saved.get("task", self.config.task))

    @property
    def task_as_used(self) -> str:
        """The task by its `task_name`, and what was done to it."""
        config, name = self.config, self.task_name
        done = {
            f"resized to {config.resize} x {config.resize}": config.resize,
            f"train cut to {config.limit_train}": config.limit_train,
            f"test cut to {config.limit_test}": config.limit_test,
        }
        said = ", ".join(what for what, setting in done.items() if setting is not None)
        return f"{name} ({said})" if said else str(name)

    @property
    def title(self) -> str:
        kinds = {"checkpoint": ", last epoch so far", "initial": ", before training"}
        kinds["epoch"] = f", epoch {self.epoch}"
        return f"{self.config.model} on {self.task_as_used}{kinds.get(self.weights.kind, '')}"

    def save_pretrained(self, folder: str | Path) -> None:
        """Weights, settings, certificate with their hash, and a model card: a run to pass on."""
        out, prepared = Path(folder), self.path and self.path / PREPARATION
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"{out} must be a new folder, or an empty one. Name another.")
        save_weights(out / "model.safetensors", self.model)
        public = self.config.model_copy(update={"data_dir": None, "init_from": None})
        write(out / "config.yaml", to_yaml(public))
        if prepared and prepared.exists():
            write(out / PREPARATION, prepared.read_bytes())
        made, summary = Run.open(out), self.summary or {}
        # Of the very bytes: the model may have changed.
        proven, digest = made.certificate, made.weights.sha256
        stored = {"weights_sha256": digest} | proven.as_dict()
        write(out / CERTIFICATE, json.dumps(stored, indent=2) + "\n")
        said = in_words(summary, "test") if summary.get("weights_sha256") == digest else "not known"
        write(out / "README.md", CARD.format(made.title, verdict(proven), said, digest))

    def push_to_hub(self, name: str, *, token: str | None = None, private: bool = False) -> str:
        """Put what `save_pretrained` leaves on the Hugging Face Hub, as "user/name"; its address."""
        advice = "Use pip install 'ctrnn-assembly[hub]', and `hf auth login`."
        with refusing(f"{name} cannot be put on the Hub", advice), TemporaryDirectory() as folder:
            from huggingface_hub import HfApi

            self.save_pretrained(folder)
            api = HfApi(token=token)
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder)
            return str(address)

    def about(self) -> dict[str, Any]:
        return {
            "model": self.config.model,
            "units": output_size(self.config),
            "weights": self.weights.as_dict(),
            "task": self.task_name,
            **{name: getattr(self.config, name) for name in ("solver", "dt", "substeps")},
        }


load_run = Run.open  # the name that the package offers


def from_pretrained(source: str | Path, *, revision: str | None = None, **changes: Any) -> Run:
    """A folder that `save_pretrained` left or, as "user/name", one on the Hugging Face Hub.

    >>> load_run("digits", modules=2).save_pretrained("net")
    >>> from_pretrained("net").weights.kind
    'trained'
    """
    if not Path(source).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        what, advice = f"there is no folder {source}, and none is on the Hub", "Use the name of a run"
        with refusing(what, f"{advice}; the Hub needs pip install 'ctrnn-assembly[hub]'."):
            from huggingface_hub import snapshot_download

            files = ["config.yaml", PREPARATION, "model.safetensors", CERTIFICATE]
            source = snapshot_download(str(source), revision=revision, allow_patterns=files)
            (Path(source) / CERTIFICATE).read_bytes()  # without it nothing would be checked
    return Run.open(source, **changes)


def model_from(config: TrainConfig, n_input: int, n_class: int) -> SequenceClassifier:
    model = build_model(config, n_input, n_class)
    if config.target in STEPWISE:
        model.pool = "all"
    return model.double() if config.precision == "64" else model


def _sizes(state: dict[str, Tensor], n: int) -> tuple[int, int] | None:
    """Inputs and classes from the shapes in a file; None where they make no sense: loading will say."""
    reader = next((state[name].shape for name in INPUT_WEIGHTS if name in state), ())
    readout = state["readout.weight"].shape if "readout.weight" in state else ()
    if len(reader) != 2 or len(readout) != 2 or readout[1] != n or reader[0] % n or not reader[0]:
        return None
    return max(1, reader[1]), max(1, readout[0])


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file atomically; a pipe or /dev/null is written to, and a link followed."""
    data = content.encode() if isinstance(content, str) else content
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder; a RunBusyError if another process does. The same one may hold it twice."""
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock", timeout=0, is_singleton=True)
    try:
        with lock:
            try:
                yield
            finally:
                if lock.lock_counter == 1:
                    Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise RunBusyError(f"another process is training {run}. Wait for it.") from None


def read_config(run: Path) -> TrainConfig:
    """The configuration of a run folder; a ConfigError if there is none, or it is damaged."""
    if not (run / "config.yaml").exists():
        empty = f"{run} holds no run: it has no config.yaml"
        why = empty if run.is_dir() else f"there is no run folder {run}"
        raise ConfigError(f"{why}. Name a folder that `ctrnn train --out` made.")
    return make_config(read_yaml(run / "config.yaml"))


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json of a run folder; None if the run is not finished."""
    if not (path := run / "summary.json").exists():
        return None
    advice = f"Delete it; `ctrnn train --resume {run}` writes it again."
    with refusing(f"{path} is not readable JSON", advice):
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError(f"it must hold an object; got {type(summary).__name__}")
        return summary


def merit(row: dict[str, Any]) -> tuple[float, float]:
    """The larger, the better are the weights of a row of metrics.csv: accuracy if there is one, loss."""
    accuracy, loss = row["val_accuracy"], row["val_loss"]
    return -loss if accuracy is None else accuracy + 0.0, -loss


def validation(summary: dict[str, Any]) -> str:
    """Of a summary, in words: what validation gave, and the epoch that it chose."""
    said, epoch = in_words(summary, "val"), summary["best_epoch"] + 1
    return f"{said} (epoch {epoch})" if said else f"nothing held out; weights of the last epoch, {epoch}"


def lasting(seconds: float) -> str:
    """A time as people say it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv: numbers, and None where there is none; no rows if there is no file."""
    if not path.exists():
        return []
    what, advice = f"{path} is not a table of epochs", "Mend it, or delete it to go on without it."
    with refusing(what, advice):
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    for row in rows:
        for name in dict.fromkeys((*row, "epoch", "seconds")):
            text: Any = row.get(name)
            with refusing(f"{what}: it must hold numbers in {name!r}", advice):
                number = int if text and text.isdigit() else float
                row[name] = number(text) if text or name in ("epoch", "seconds") else None
    return rows


def write_table(path: Path, rows: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> None:
    """Rows as CSV, by default with the columns of the last one."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names or list(rows[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, buffer.getvalue())


def run_record(config: TrainConfig, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies on the way, the configuration, and the table of epochs by column, to 6 digits."""
    tested = [row["test_accuracy"] for row in rows if row.get("test_accuracy") is not None]
    return {
        "best_epoch_accuracy": max(tested, default=None),
        "final_epoch_accuracy": tested[-1] if tested else None,
        "config": config.model_dump(mode="json") | {"data_dir": None},
        "curve": {
            name: [x if (x := row.get(name)) is None else finite(float(f"{x:.6g}")) for row in rows]
            for name in (rows[-1] if rows else ())
        },
    }
