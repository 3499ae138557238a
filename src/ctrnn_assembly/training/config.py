"""The configuration of a training run: flat fields, one reason each; unknown keys are refused.

A run is `recipe < config file < command line`, and the result is what `config.yaml` in the run folder
holds. The command line's options are made from these fields.
"""

import math
import re
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from ctrnn_assembly.errors import ConfigError, check_known
from ctrnn_assembly.settings import DataConfig, M, parsed, setting

Epochs = tuple[Annotated[int, Field(ge=1)], ...]
LR_GAMMA = 0.1
# Lightly trained on a few small samples: enough to see that a run works, and no more.
FAST = {"epochs": 2, "limit_train": 256, "limit_test": 256, "warmup_epochs": 0}
FAST_SIDE = 7
# Where and how a run is made may change; what it computes may not.
FREE = {"data_dir", "device", "devices", "nodes", "threads", "logger", "certify_every", "keep_epochs"}
RISE = 0.3  # share of a one-cycle schedule
# Fields, by the group that the help shows them in.
net, step, train = partial(setting, "network"), partial(setting, "solver"), partial(setting, "training")
proof, machine = partial(setting, "certificate"), partial(setting, "machine")


class TrainConfig(DataConfig):
    """Everything that decides a run. The defaults are the papers' sizes and solver, no task's best."""

    model: str = net("svd-combo", "model; see `ctrnn list`")
    modules: int = net(16, "number of modules p", ge=1)
    units: int = net(32, "units of each module", ge=1)
    density: float = net(0.033, "density of sparse modules", gt=0, le=1)
    magnitude: float | None = net(None, "largest |entry| of sparse modules; 1, or 6 as published", gt=0)
    outside_set: Literal["reject", "rescale"] = net(
        "reject", "sparse modules outside Theorem 1: draw again, or shrink"
    )
    margin: float = net(0.01, "guaranteed rate of a module, in 1/tau", gt=0, lt=1)
    coupling: str = net("all", "all, none, ring, chain, star or random:C")
    coupling_kind: Literal["feedback", "hierarchy", "free"] = net(
        "feedback", "free is the control L = B without a certificate"
    )
    coupling_scale: float = net(1.0, "initial scale of the coupling", gt=0)
    coupling_init: Literal["uniform", "normal", "orthogonal"] | None = net(
        None, "initial entries of L; the model's own if not given"
    )
    bias: bool | None = net(None, "of the input; the model's own if not given")
    activation: str | None = net(None, "phi; the model's own if not given")
    activation_place: Literal["outside", "inside"] | None = net(
        None, "W phi(x) or phi(W x); the model's own if not given"
    )
    tau: float = net(1.0, "time constant, in the unit of dt", gt=0)
    train_tau: bool = net(False, "time constants are trained, from tau on")
    initial_state: Literal["zero", "trained"] = net(
        "zero", "where sequences start: zero, or trained; no certificate depends on it"
    )
    readout_input: Literal["state", "rate"] = net("state", "the readout sees x or phi(x)")

    depth: int = net(4, "layers of a deep model", ge=1)
    width: int = net(64, "features and units of each layer of a deep model", ge=2)
    norm: Literal["batch", "layer", "rms", "none"] = net("batch", "before each layer")
    mix: Literal["linear", "glu", "tanh-glu", "mlp"] = net(
        "tanh-glu", "static map after each layer; glu has no certificate"
    )
    dropout: float = net(0.0, "of a layer's features, at all times", ge=0, lt=1)
    pool: Literal["last", "mean"] = net("last", "the readout sees the last output or all")
    horizon: float = net(100.0, "of a deep model, memory of the slowest units at the start", gt=2.5)
    gate_range: float = net(2.0, "r of deep-selective: steps of its pairs are in [dt / r, dt r]", gt=1)
    input_range: float = net(3.0, "largest |input| that deep-selective's certificate speaks of", gt=0)

    solver: str = step("euler", "euler, imex, exponential-euler, dopri5, ...")
    dt: float = step(0.03, "time between samples", gt=0)
    substeps: int = step(1, "solver steps a sample, of dt / N each; not for dopri5, ...", ge=1)
    one_field: bool = step(False, "of a deep model: all layers as one equation, not one after another")
    rtol: float = step(1e-6, "relative tolerance of adaptive solvers", gt=0)
    atol: float = step(1e-8, "absolute tolerance of adaptive solvers", gt=0)
    interpolation: Literal["hold", "linear", "cubic"] = step(
        "hold", "input between samples, for torchdiffeq's solvers"
    )
    gradient: Literal["direct", "adjoint", "inexact-adjoint"] = step(
        "direct", "through the solver, or by the adjoint ODE (torchdiffeq's solvers)"
    )
    recompute: Literal["none", "sqrt"] = step(
        "none", "sqrt: store few states for the gradient, for a forward pass more"
    )
    matmul_precision: Literal["full", "tf32", "bf16"] = step(
        "full", "operands of the solver's matrix products; states keep their precision"
    )
    backend: Literal["auto", "plain", "fused", "graph", "persistent"] = step(
        "auto", "runs a grid solver's loop: autograd, hand-written adjoint, (CUDA) more"
    )

    init_from: str | None = train(None, "run whose weights, and settings, to start from")
    epochs: int = train(100, "passes over the training set", ge=1)
    batch_size: int = train(128, "samples a step, on each device", ge=1)
    optimizer: Literal["adam", "adamw"] = train("adam", "Adam (L2) or AdamW")
    learning_rate: float = train(1e-3, "peak learning rate", gt=0)
    recurrent_rate: float | None = train(None, "share of the rate for fields, then without decay", gt=0)
    schedule: Literal["constant", "steps", "cosine", "one-cycle"] = train("cosine", "of learning_rate")
    warmup_epochs: int = train(0, "epochs of linear warm-up", ge=0)
    milestones: Epochs = train((), "epochs at which `steps` cuts")
    lr_gamma: float = train(LR_GAMMA, "factor of each cut", gt=0, le=1)
    weight_decay: float = train(0.0, "L2 penalty of the optimiser", ge=0)
    gradient_clip_norm: float = train(1.0, "largest gradient norm; 0: any", ge=0)
    patience: int = train(0, "epochs without a better accuracy; 0 to go on", ge=0)
    plateau: bool = train(False, "end where the accuracy stays flat, from epoch 50 on")
    test_every_epoch: bool = train(False, "test accuracy in metrics.csv, only to report")
    keep_epochs: Epochs = train((), "keep the weights after these epochs, from 1")

    require_certificate: Literal["none", "continuous", "discrete"] = proof(
        "none", "stop before an epoch is saved that has lost it; discrete: the step's too"
    )
    certify_every: int = proof(1, "epochs from one certificate to the next", ge=1)

    precision: Literal["32", "64", "bf16", "16"] = machine("32", "floating point")
    device: Literal["auto", "cpu", "cuda", "mps"] = machine("auto", "where to train")
    devices: int = machine(1, "devices on each node (distributed data parallel)", ge=1)
    nodes: int = machine(1, "number of nodes", ge=1)
    threads: int = machine(0, "CPU threads, small nets are fastest with 1; 0: torch's", ge=0)
    logger: Literal["none", "tensorboard"] = machine("none", "besides metrics.csv")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.certify_every > 1 and self.require_certificate != "none":
            must = f"certify_every must be 1 where require_certificate is {self.require_certificate}"
            raise ConfigError(f"{must}; got {self.certify_every}. Set one of them back.")
        if self.fit_all and (self.patience or self.plateau):
            got = f"patience {self.patience}, plateau {self.plateau}. Leave them out."
            raise ConfigError(f"fit_all leaves no validation data to stop by; got {got}")
        for name in ("milestones", "keep_epochs"):
            value = getattr(self, name)
            if list(value) != sorted(set(value)):
                raise ConfigError(f"{name} must increase; got {value}. Sort it, each epoch once.")
        if self.schedule == "steps" and not self.milestones:
            must, fix = "must have milestones, the epochs of its cuts", "--milestones 80,150"
            raise ConfigError(f"schedule steps {must}; got none. Use {fix} or --schedule constant.")
        return self

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Of a step, counted from 0 over all epochs; "one-cycle" is the default of torch's `OneCycleLR`.

        After a linear warm-up "cosine" falls to 0, "steps" multiplies by lr_gamma at each milestone.
        """
        epoch, warm = step // steps_per_epoch, self.warmup_epochs * steps_per_epoch
        peak = self.learning_rate
        if step < warm:
            return peak * (step + 1) / warm
        if self.schedule == "steps":
            return peak * self.lr_gamma ** sum(epoch >= m for m in self.milestones)
        share = (step - warm) / (self.epochs * steps_per_epoch - warm)
        if self.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "one-cycle":
            rising, low = share < RISE, peak / 25
            along, end = (1 - share / RISE, low) if rising else ((share - RISE) / (1 - RISE), low / 1e4)
            return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * along))
        return peak

    def unused(self) -> list[str]:
        """Settings that do nothing in this run, a sentence each: another one may overrule a recipe's."""
        from ctrnn_assembly.models import unused_settings  # torch, which few readers of a file need

        cuts, epochs, warm = self.schedule == "steps", self.epochs, self.warmup_epochs
        late = [m for m in self.milestones if cuts and m >= epochs]
        kept = [e for e in self.keep_epochs if e > epochs]
        other = f"not used by schedule {self.schedule}"
        early = self.warm_up if self.target in ("class", "regression") else 0
        said = {
            f"ahead {self.ahead} is for forecasts": self.ahead > 1 and self.target != "forecast",
            f"warm_up {early} is for targets of each step": early,
            f"milestones {[*self.milestones]} are {other}": not cuts and self.milestones,
            f"lr_gamma {self.lr_gamma} is {other}": not cuts and self.lr_gamma != LR_GAMMA,
            f"milestones {late} lie beyond the last epoch, {epochs}": late,
            f"keep_epochs {kept} lie beyond the last epoch, {epochs}": kept,
            f"warmup_epochs {warm} leaves no epoch of {epochs} after it": warm >= epochs,
            f"patience {self.patience} cannot end {epochs} epochs": self.patience >= epochs,
        }
        return [*unused_settings(self), *(what for what, is_so in said.items() if is_so)]


def make_config(*layers: dict[str, Any]) -> TrainConfig:
    """A configuration from layers of settings, later ones winning; a ConfigError names what is wrong."""
    return parsed(TrainConfig, {str(key): value for layer in layers for key, value in layer.items()})


def difference(one: M, other: M, free: set[str] = FREE) -> str:
    """The first setting in which two configurations differ, with both values; empty if in none."""
    from ctrnn_assembly.schemes import SCHEMES  # torch, which few readers of a file need

    if {getattr(each, "solver", "") for each in (one, other)} <= SCHEMES.keys():
        free = free | {"rtol", "atol"}
    for key in type(one).model_fields:
        a, b = getattr(one, key), getattr(other, key)
        if key not in free and a != b:
            return f"{key} {a!r} for {b!r}"
    return ""


class UniqueKeys(yaml.SafeLoader):
    """Plain YAML in which no key may stand twice: the last one would win, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        places: dict[str, Any] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            here: Any = key.start_mark
            if (first := places.setdefault(key.value, here)) is not here:
                lines = f"line {first.line + 1} and again in line {here.line + 1}"
                raise yaml.YAMLError(f"{key.value!r} stands in {lines}")
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    return yaml.load(text, UniqueKeys)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; a ConfigError if it is missing, not YAML, or no mapping."""
    try:
        loaded = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {reason}. Use an intact copy.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} must hold `key: value` lines; got {type(loaded).__name__}.")
    return loaded


def to_yaml(config: TrainConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


@cache
def recipes() -> dict[str, dict[str, Any]]:
    """The papers' recipes by name: what each sets, as `settings`, and one line on it, `about`."""
    files = {Path(f.name).stem: f for f in (resources.files("ctrnn_assembly") / "recipes").iterdir()}
    return {name: load_yaml(f.read_text(encoding="utf-8")) for name, f in sorted(files.items())}


def recipe(name: str, what: str = "recipe") -> dict[str, Any]:
    """The settings of one recipe; a ConfigError says that `what` must be one of the known ones."""
    check_known(what, name, recipes())
    return dict(recipes()[name]["settings"])


# What `ctrnn train` starts from: a recipe of the package, by task or family of tasks. A stack of
# AdaDiag pairs, its whole step certified, is ahead of every other certified net (experiments/README.md).
RECOMMENDED = {
    "digits": "digits",
    "smnist": "deep-smnist",
    "psmnist": "deep-psmnist",
    "scifar10": "deep-scifar10",
    "images": "deep-scifar10",
    "series": "deep-series",
    "own": "deep-series",
}


def recommended(task: str, model: str | None = None, target: str | None = None) -> dict[str, Any]:
    """What to start from: the recipe in `RECOMMENDED` whose name the task begins with; {} without one.

    A stack for a layer or a layer for a stack, and a model with its own step, take those of training.
    """
    if (family := re.match(r"[A-Za-z0-9]+", task)) is None or family[0] not in RECOMMENDED:
        return {}
    found = recipe(RECOMMENDED[family[0]])
    del found["task"]
    if target not in (None, "class"):  # noise blurs values
        found |= {"input_noise": 0.0, "dropout": 0.0}
    if model in (None, found["model"]):
        return found
    from ctrnn_assembly.models import MODELS  # torch, which few readers of a file need

    row = MODELS.get(model)
    own = {} if row is None else row.own
    if row is not None and row.is_stack == MODELS[found["model"]].is_stack and "solver" not in own:
        return found
    # A default here would stand for one that was given, where the model has another.
    fields = TrainConfig.model_fields
    own = {k: x for k, x in own.items() if k in fields and fields[k].default not in (None, x)}
    return {name: value for name, value in found.items() if fields[name].title == "training"} | own


def trial(task: str) -> dict[str, Any]:
    """Settings of a small trial: 2 epochs of few samples, and small ones where they are images."""
    image = task.startswith(("smnist", "psmnist", "scifar10", "images"))
    return FAST | ({"resize": FAST_SIDE} if image else {})
