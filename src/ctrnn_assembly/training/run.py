"""A run folder: what a training run leaves behind, written so that a crash loses nothing saved.

    config.yaml         the full configuration
    metrics.csv         one row an epoch
    checkpoints/        last.ckpt and best.ckpt, to resume from
    model.safetensors   the weights with the best validation accuracy
    summary.json        results, versions, certificate

Every file is written beside its place and moved there. Weights are safetensors; nothing is unpickled
but checkpoints, and those with `weights_only=True`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from ctrnn_assembly.certificates import Certificate, certify
from ctrnn_assembly.errors import ConfigError, CtrnnError, DataError
from ctrnn_assembly.gates import GatedCTRNN
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.models import build_model
from ctrnn_assembly.training.config import TrainConfig, make_config, read_yaml


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file atomically: a full disk or a crash leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


def model_from(config: TrainConfig, n_input: int, n_class: int) -> SequenceClassifier:
    """The model of a configuration, with its initial weights."""
    model = build_model(
        config.model,
        n_input,
        n_class,
        modules=config.modules,
        units=config.units,
        phi=config.phi,
        form=config.form,
        coupling=config.coupling,
        coupling_kind=config.coupling_kind,
        coupling_gain=config.coupling_gain,
        coupling_init=config.coupling_init,
        bias=config.bias,
        density=config.density,
        magnitude=config.magnitude,
        into_set=config.into_set,
        margin=config.margin,
        tau=config.tau,
        reads=config.reads,
        seed=config.seed,
        dt=config.dt,
        solver=config.solver,
        rtol=config.rtol,
        atol=config.atol,
        interpolation=config.interpolation,
        gradient=config.gradient,
        checkpoint=config.checkpoint,
        products=config.products,
        backend=config.backend,
    )
    # Lightning converts after it loads a checkpoint: one in double precision would be rounded.
    return model.double() if config.precision == "64" else model


def save_weights(path: Path, model: nn.Module) -> None:
    """The state dict of a model as safetensors."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write(path, save_safetensors(state))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load safetensors into a model of the same configuration.

    Raises:
        DataError: if the file is missing, corrupt, of another model, or holds NaN or infinity.
    """
    try:
        state = load_safetensors(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"there are no weights at {path}. Train first, or name a run folder.") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not a readable safetensors file: {error}") from None
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    load_state(path, state, model)


def load_state(path: Path, state: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Load a state dict that was read from `path`.

    Raises:
        DataError: if it is of another model, or holds NaN or infinity.
    """
    bad = [name for name, x in state.items() if x.is_complex() or not x.isfinite().all()]
    if bad:
        raise DataError(
            f"{path} holds NaN or infinite values, or complex ones, in {bad[0]!r}. Use an intact copy."
        )
    try:
        model.load_state_dict(state)
    except (RuntimeError, CtrnnError) as error:  # torch's first line only names the class
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise DataError(
            f"{path} does not fit the model of its config.yaml: {reason[:200]}. Use the file that was "
            "saved beside it."
        ) from None


def read_config(run: Path) -> TrainConfig:
    """The configuration of a run folder."""
    if not run.is_dir():
        raise ConfigError(f"there is no run folder {run}. `ctrnn train --out {run}` makes one.")
    return make_config(read_yaml(run / "config.yaml"))


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json of a finished run."""
    path = run / "summary.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{run} is not finished. `ctrnn train --resume {run}` goes on.") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not readable JSON: {error}. Delete it; `ctrnn train --resume {run}` writes it "
            "again."
        ) from None


def model_certificate(model: SequenceClassifier) -> Certificate | None:
    """The certificate of a classifier's field and step; None for the baselines."""
    core = model.core
    if isinstance(core, GatedCTRNN):
        return core.certificate()
    if not isinstance(core, CTRNN):
        return None
    return certify(core.field, dt=core.dt, solver=core.solver)


def certificate_summary(certificate: Certificate | None) -> dict[str, Any]:
    """The certificate as plain values, for summary.json; None where a bound is infinite."""
    if certificate is None:
        return {"certified": False, "reasons": ["a baseline: no certificate is defined for it"]}
    return certificate.as_dict()


def load_checkpoint(path: Path, model: nn.Module) -> dict[str, Any]:
    """A resumable checkpoint, its weights in `model`, without running any code that it may carry.

    Raises:
        DataError: if it is missing, damaged, of another model, or holds NaN or infinity.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state = {name.removeprefix("model."): x for name, x in checkpoint["state_dict"].items()}
        parts = {key: checkpoint[key] for key in ("epoch", "loops", "optimizer_states", "callbacks")}
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(
            f"{path} is not a readable checkpoint: {reason}. Use an intact copy, or start a new run "
            f"with --config {path.parent.parent / 'config.yaml'}."
        ) from None
    load_state(path, state, model)
    return parts
