"""The configuration of a training run: flat fields, one reason each; unknown keys are refused.

A run is `recipe < config file < command line`, and the result is what `config.yaml` in the run folder
holds. The command line's options are made from these fields.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctrnn_assembly.errors import ConfigError


class TrainConfig(BaseModel):
    """Everything that decides a run. The defaults are the papers' sizes and solver."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: str = Field("digits", description="task; see `ctrnn list`")
    model: str = Field("svd-combo", description="model; see `ctrnn list`")
    modules: int = Field(16, ge=1, description="number of modules p")
    units: int = Field(32, ge=1, description="units of each module")
    density: float = Field(0.033, gt=0, le=1, description="density of sparse modules")
    magnitude: float | None = Field(
        None, gt=0, description="largest |entry| of sparse modules; 1, or 6 as published"
    )
    into_set: Literal["reject", "rescale"] = Field(
        "reject", description="sparse modules outside Theorem 1: draw again, or shrink"
    )
    margin: float = Field(0.01, gt=0, lt=1, description="guaranteed rate of a module, in 1/tau")
    coupling: str = Field("all", description="all, none, ring, chain, star or random:C")
    coupling_kind: Literal["feedback", "hierarchy", "free"] = Field(
        "feedback", description="free is the control L = B without a certificate"
    )
    coupling_gain: float = Field(1.0, gt=0, description="initial scale of the coupling")
    coupling_init: Literal["uniform", "normal", "orthogonal"] | None = Field(
        None, description="initial entries of L; the model's own if not given"
    )
    bias: bool | None = Field(None, description="of the input; the model's own if not given")
    phi: str | None = Field(None, description="activation; the model's own if not given")
    form: Literal["x", "r"] | None = Field(None, description="phi outside (x) or inside (r)")
    tau: float = Field(1.0, gt=0, description="time constant, in the unit of dt")
    reads: Literal["state", "rate"] = Field(
        "state", description="what the readout sees: x, or the firing rates phi(x)"
    )
    solver: str = Field("euler", description="euler, imex, exponential-euler, dopri5, ...")
    dt: float = Field(0.03, gt=0, description="time between samples")
    rtol: float = Field(1e-4, gt=0, description="relative tolerance of adaptive solvers")
    atol: float = Field(1e-6, gt=0, description="absolute tolerance of adaptive solvers")
    interpolation: Literal["hold", "linear", "cubic"] = Field(
        "hold", description="input between samples, for torchdiffeq's solvers"
    )
    gradient: Literal["direct", "adjoint", "inexact-adjoint"] = Field(
        "direct", description="through the solver, or by the adjoint ODE (torchdiffeq's solvers)"
    )
    checkpoint: Literal["none", "sqrt"] = Field(
        "none", description="sqrt: keep few states for the gradient, for a forward pass more"
    )
    products: Literal["full", "tf32", "bf16"] = Field(
        "full", description="operands of the solver's matrix products; states keep their precision"
    )
    backend: Literal["auto", "adjoint", "graph", "persistent"] = Field(
        "auto", description="what runs the loop of euler, imex, exponential-euler"
    )
    epochs: int = Field(100, ge=1, description="passes over the training set")
    batch_size: int = Field(128, ge=1, description="samples a step, on each device")
    optimizer: Literal["adam", "adamw"] = Field("adam", description="Adam (L2) or AdamW")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Literal["constant", "steps", "cosine"] = Field(
        "cosine", description="learning rate over time"
    )
    warmup: int = Field(0, ge=0, description="epochs of linear warm-up")
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="epochs at which `steps` cuts the rate"
    )
    decay: float = Field(0.1, gt=0, le=1, description="factor of each cut")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of the optimiser")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 for no clipping")
    patience: int = Field(0, ge=0, description="epochs without a better validation accuracy; 0 to go on")
    require_certificate: Literal["none", "continuous", "discrete"] = Field(
        "none", description="stop before an epoch is saved that has lost it; discrete: the step's too"
    )
    keep_step_certified: bool = Field(
        False, description="scale the coupling so that the Euler step of dt stays certified"
    )
    certify_every: int = Field(
        1, ge=1, description="epochs from one certificate in metrics.csv to the next; the last has one"
    )
    test_every_epoch: bool = Field(
        False, description="test accuracy in metrics.csv, to report; validation still selects"
    )
    keep_epochs: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="epochs, counted from 1, after which the weights are kept in weights/"
    )
    input_noise: float = Field(
        0.0, ge=0, description="noise on training inputs, in standard deviations of each channel"
    )
    fit_all: bool = Field(
        False, description="train on training and validation data, and keep the last epoch: final runs"
    )
    augment: bool = Field(True, description="crop and flip where the task's recipe does")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, topology and batch order")
    precision: Literal["32", "64", "bf16", "16"] = Field("32", description="floating point")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to train")
    devices: int = Field(1, ge=1, description="devices on each node (distributed data parallel)")
    nodes: int = Field(1, ge=1, description="number of nodes")
    threads: int = Field(
        0, ge=0, description="CPU threads; 0 leaves it to torch. Small nets are fastest with 1"
    )
    logger: Literal["none", "tensorboard", "wandb"] = Field(
        "none", description="a logger besides metrics.csv"
    )
    data_dir: str | None = Field(None, description="where the data are; else CTRNN_DATA_DIR")
    resize: int | None = Field(None, ge=1, description="side of the images, for small machines")
    limit_train: int | None = Field(None, ge=1, description="use this many training samples")
    limit_test: int | None = Field(None, ge=1, description="use this many test samples")


def make_config(*layers: dict[str, Any]) -> TrainConfig:
    """A configuration from layers of settings, later ones winning.

    Raises:
        ConfigError: naming the key, its value and what it must be.
    """
    merged = {str(key): value for layer in layers for key, value in layer.items()}
    try:
        return _consistent(TrainConfig.model_validate(merged))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(TrainConfig.model_fields)
            raise ConfigError(f"unknown setting {key!r}. Known settings: {known}.") from None
        must = first["msg"].removeprefix("Input should be ").split(", ")[0]
        raise ConfigError(f"{key} must be {must}; got {first['input']!r}.") from None


def _consistent(config: TrainConfig) -> TrainConfig:
    if config.certify_every > 1 and config.require_certificate != "none":
        raise ConfigError(
            f"certify_every must be 1 where require_certificate is {config.require_certificate}; got "
            f"{config.certify_every}. Set one of them back."
        )
    if config.fit_all and config.patience:
        raise ConfigError(
            f"fit_all leaves no validation data to stop by; got patience {config.patience}. Set it to 0."
        )
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: if the file is missing, not YAML, or not a mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {reason}.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} must hold `key: value` lines; got {type(loaded).__name__}.")
    return loaded


def to_yaml(config: TrainConfig) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


@cache
def recipes() -> dict[str, dict[str, Any]]:
    """The papers' recipes by name: what each sets, as `settings`, and one line on it, `about`."""
    folder = resources.files("ctrnn_assembly") / "recipes"
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = yaml.safe_load(entry.read_text(encoding="utf-8"))
    return found


def default_recipe(task: str) -> dict[str, Any]:
    """The settings that a task starts from when neither a recipe nor a file is named.

    Only `digits` has one: its 64 steps of 0.03 last 2 time constants, so a useful net needs a coupling
    so fast that forward Euler diverges; exponential Euler turns it exactly.
    """
    return recipe(task) if task in recipes() else {}


def recipe(name: str) -> dict[str, Any]:
    """The settings of one recipe.

    Raises:
        ConfigError: if the name is unknown; lists the known ones.
    """
    known = recipes()
    if name not in known:
        raise ConfigError(f"recipe must be one of {', '.join(known)}; got {name!r}.")
    return dict(known[name]["settings"])
