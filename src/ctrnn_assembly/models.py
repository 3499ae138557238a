"""The papers' networks and the baselines, by name: encoder -> assembly -> readout (`MODELS`)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch

from ctrnn_assembly import baselines
from ctrnn_assembly import contracting as sets
from ctrnn_assembly.assembly import Assembly, couple
from ctrnn_assembly.errors import ConfigError, check_known, check_within, unknown
from ctrnn_assembly.gates import Gate
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.stack import Stack
from ctrnn_assembly.subnetwork import Subnetwork


def _assembly(
    constrain: Callable[[str], sets.Contracting],
    modules: int,
    units: int,
    generator: torch.Generator,
    *,
    activation: str = "tanh",
    activation_place: str = "outside",
    coupling: str = "all",
    coupling_kind: Any = "feedback",
    coupling_scale: float = 1.0,
    coupling_init: Any = "uniform",
    tau: float = 1.0,
    train_tau: bool = False,
) -> Assembly:
    """The coupled modules; `constrain` makes the set of a module's weights from its activation."""
    forms: dict[str, Any] = {"outside": "x", "inside": "r"}
    check_known("activation_place", activation_place, forms)
    # Without a bias: the encoder has one.
    options: dict[str, Any] = {"form": forms[activation_place], "tau": tau, "train_tau": train_tau}
    options |= {"bias": False, "generator": generator}
    parts = [Subnetwork(constrain(activation), units, **options) for _ in range(modules)]
    start = {"init": coupling_init, "init_scale": coupling_scale, "generator": generator}
    return couple(parts, coupling, kind=coupling_kind, **start)


def _options(function: Callable[..., Any], *others: str) -> dict[str, Any]:
    """The optional arguments of a function but for the others, with their defaults."""
    known = [one for one in signature(function).parameters.values() if one.default is not one.empty]
    return {one.name: one.default for one in known if one.name not in others}


def _stack(
    n_input: int,
    part: type[Stack],
    field: type[Any],
    *,
    depth: int = 4,
    width: int = 64,
    horizon: float = 100.0,
    activation: str | None = None,
    margin: float = 0.01,
    **options: Any,
) -> Stack:
    """Layers of as many units as features, in pairs; without an activation they are linear."""
    if issubclass(part, baselines.DeepBaseline):
        return part(n_input, width, field, depth, batch_first=True, **options)
    fields = [field(width, horizon=horizon, phi=activation, margin=margin) for _ in range(depth)]
    return part(n_input, width, fields, batch_first=True, **options)


OF_GATE = ("gate_range", "input_range")
# Settings and their values where a model has no other: of every model, of assemblies, of their layer.
SIZES = {"modules": 16, "units": 32, "initial_state": "zero", "seed": 0}
STACK = {**_options(_stack, "activation"), **_options(Stack, "phi", "scale", "batch_first", *OF_GATE)}
STACK |= {"pool": "last", "seed": 0}
# What deep baselines do not take.
OF_PAIRS = ("horizon", "margin", "dt", "substeps", "solver", "one_field")
ASSEMBLY = {**_options(_assembly), "readout_input": "state"}
LAYER = _options(CTRNN, "size", "gate", "gate_bounds", "batch_first", "generator")
OF_SET = ("margin", "density", "magnitude", "outside_set")  # of the set that W is in
MARGIN = {"margin": 0.01}
INSIDE = {"activation_place": "inside"}
SPARSE = {"activation": "relu", **INSIDE, "density": 0.033}
DIAGONAL = {**MARGIN, "coupling_init": "orthogonal", "bias": False}  # AdaDiag's papers have no bias
RELU, TANH = {**MARGIN, "activation": "relu"}, {"activation": "tanh"}


@dataclass(frozen=True)
class Model:
    summary: str
    part: type  # the set that the modules' weights are in, or the layer that a baseline is
    own: dict[str, Any] = field(default_factory=dict)  # settings of its own, or not as above
    gate: Gate | None = None
    layer: type = Pairs  # of a stack, what each layer runs

    @property
    def is_stack(self) -> bool:
        return issubclass(self.part, Stack)

    @property
    def is_baseline(self) -> bool:
        return issubclass(self.part, baselines.Baseline)

    @property
    def settings(self) -> dict[str, Any]:
        """What it takes, with its own values."""
        if self.is_stack:
            without = OF_PAIRS if self.is_baseline else ()
            return {**{k: x for k, x in STACK.items() if k not in without}, **self.own}
        return {**SIZES, **({} if self.is_baseline else {**ASSEMBLY, **LAYER}), **self.own}


def _gated(about: str, gate: Gate, bounds: tuple[float, float] = (1e-5, 0.2)) -> Model:
    own = {**RELU, "bias": False, "solver": "euler", "dt": 1.0, "gate_bounds": bounds}
    return Model(f"AdaDiag {about}", sets.AdaDiagTanh, own, gate)


def _rival(name: str, layer: type) -> Model:
    return Model(f"the same stack of {name}; no certificate", baselines.DeepBaseline, layer=layer)


MODELS = {
    "sparse-combo": Model(
        "Sparse Combo Net: Theorem 1, frozen and sparse",
        sets.SparseAbsolute,
        {**SPARSE, **MARGIN, "magnitude": 1.0, "outside_set": "reject"},
    ),
    "absolute": Model("Theorem 1, trainable through positive scalings", sets.Absolute, MARGIN),
    "symmetric": Model("Theorem 2: W = W^T, g W < I", sets.Symmetric, MARGIN),
    "product": Model("Theorem 3: W = -P1 Q P2", sets.NegativeProduct, MARGIN),
    "triangular": Model("Theorem 4: triangular W", sets.Triangular, MARGIN),
    "svd-combo": Model("SVD Combo Net: Theorem 5, trainable", sets.SingularValueBounded, RELU),
    "firing-rate": Model("Theorem 35: firing rates, W of any norm", sets.FiringRate, RELU | INSIDE),
    "adadiag-tanh": Model("AdaDiag: diagonal W by tanh", sets.AdaDiagTanh, DIAGONAL),
    "adadiag-clip": Model("AdaDiag: diagonal W by clipping", sets.AdaDiagClip, DIAGONAL),
    "adadiag-gated-constant": _gated("with a trained time scale for each unit", "constant"),
    "adadiag-gated-shared": _gated("with one gate of the input for all units", "shared"),
    "adadiag-gated-input": _gated(
        "with gates of the input; certified while (hi - lo) ||L|| < 2 lo lam", "input", (0.18, 0.2)
    ),
    "adadiag-gated-congruence": _gated(
        "with congruence gates of the input; certified whatever ||L|| is", "congruence", (0.02, 0.2)
    ),
    "adadiag-gated": _gated("2026: gates of input and state; no certificate", "state"),
    "unconstrained": Model("trained W without a constraint; no certificate", sets.Unconstrained),
    "published-sparse-combo": Model(
        "Sparse Combo Net as its code was published; no certificate",
        sets.PublishedSparse,
        {**SPARSE, "magnitude": 6.0, "coupling_init": "normal"},
    ),
    "deep-adadiag": Model("stack of AdaDiag pairs; its whole step certified", Stack, TANH),
    "deep-selective": Model(
        "deep-adadiag with step lengths that read the input; certified for bounded inputs",
        Stack,
        {**TANH, "gate_range": 2.0, "input_range": 3.0},
    ),
    "deep-lru": Model("stack of linear pairs, W = 0; the whole step certified", Stack),
    "deep-free": Model(
        "deep-adadiag with decay and weights free; no certificate",
        Stack,
        TANH,
        layer=baselines.FreePairs,
    ),
    "deep-lstm": _rival("LSTMs", baselines.LSTM),
    "deep-gru": _rival("GRUs", baselines.GRU),
    "deep-none": _rival("maps of single samples", baselines.Pointwise),
    "rnn": Model("vanilla RNN; no certificate", baselines.VanillaRNN),
    "lstm": Model("LSTM; no certificate", baselines.LSTM),
    "antisymmetric": Model(
        "AntisymmetricRNN (Chang et al. 2019); no certificate", baselines.AntisymmetricRNN
    ),
    "lipschitz": Model("Lipschitz RNN (Erichson et al. 2021); no certificate", baselines.LipschitzRNN),
}
SETTINGS = tuple(dict.fromkeys(name for model in MODELS.values() for name in model.settings))


def build_model(model: Any, n_input: int, n_class: int, **settings: Any) -> SequenceClassifier:
    """A classifier by model name, or as a configuration says.

    Args:
        model: a name of `MODELS`; or a configuration, a mapping or an object, with `model` and any
            settings, of which those that this model does not take are left alone (`unused_settings`).
        settings: by a name only those of `MODELS[name].settings`, as in `ctrnn train -h`, and
            `gate_bounds`, (lo, hi) of gated models. A baseline gets modules x units units.

    Raises: ConfigError for a wrong name or setting, ContractionError if no such weights exist.

    >>> build_model("svd-combo", 1, 10, modules=2, units=4, coupling="ring").core.hidden_size
    8
    """
    if isinstance(model, str):
        given = {"model": model, **settings}
        for unused in unused_settings(given):
            raise ConfigError(f"{unused}. Leave it out, or use another model.")
        if wrong := settings.keys() - {*SETTINGS}:
            raise unknown("setting", min(wrong), SETTINGS)
    else:
        given = _read(model) | settings
    row, chosen = _chosen(given)
    if row.is_stack:
        seed, pool = chosen.pop("seed"), chosen.pop("pool")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return SequenceClassifier(_stack(n_input, row.part, row.layer, **chosen), n_class, pool=pool)
    p, n = chosen["modules"], chosen["units"]
    check_within("[1, inf)", modules=p, units=n)
    generator = torch.Generator().manual_seed(chosen["seed"])
    if row.is_baseline:
        with torch.random.fork_rng():  # the baselines draw from the global generator, as nn.RNN does
            torch.manual_seed(chosen["seed"])
            start = chosen["initial_state"]
            baseline = row.part(n_input, p * n, batch_first=True, initial_state=start)
        return SequenceClassifier(baseline, n_class, generator=generator)

    def some(names: Iterable[str]) -> dict[str, Any]:
        return {name: chosen[name] for name in names if name in chosen}

    constrain = partial(row.part, **some(OF_SET))
    assembly = _assembly(constrain, p, n, generator, **some(_options(_assembly)))
    options: dict[str, Any] = {"gate": row.gate, "batch_first": True, "generator": generator}
    core = CTRNN(n_input, assembly, **options, **some((*LAYER, "gate_bounds")))
    # The published networks read out without a bias.
    readout = {"readout_input": chosen["readout_input"], "bias": False, "generator": generator}
    return SequenceClassifier(core, n_class, **readout)


def output_size(config: Any) -> int:
    """Features that the readout of a configuration's model sees."""
    row, sizes = _chosen(_read(config))
    return sizes["width"] if row.is_stack else sizes["modules"] * sizes["units"]


def unused_settings(config: Any) -> list[str]:
    """Settings that do nothing in a configuration's model and are no model's start, a sentence each."""
    given, starts = _read(config), [row.settings for row in MODELS.values()]
    own = {"model", *_chosen(given)[1]}
    return [
        f"{key} {value} is not used by model {given['model']}"
        for key, value in given.items()
        if key not in own
        and value is not None
        and all(value != start[key] for start in starts if key in start)
    ]


def _chosen(given: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
    """The model that is named, and its settings, in which None leaves its own."""
    check_known("model", given["model"], MODELS)
    row = MODELS[given["model"]]
    return row, row.settings | {k: x for k, x in given.items() if k in row.settings and x is not None}


def _read(config: Any) -> dict[str, Any]:
    """The model and the settings that a mapping or an object has, None where it has none."""
    read = config.get if isinstance(config, Mapping) else partial(getattr, config)
    return {key: read(key, None) for key in ("model", *SETTINGS)}
