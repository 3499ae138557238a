"""The papers' networks and the baselines, by name: encoder -> assembly -> readout (`MODELS`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch

from ctrnn_assembly.assembly import couple
from ctrnn_assembly.baselines import LSTM, AntisymmetricRNN, LipschitzRNN, VanillaRNN
from ctrnn_assembly.contracting import (
    Absolute,
    AdaDiagClip,
    AdaDiagTanh,
    NegativeProduct,
    PublishedSparse,
    SingularValueBounded,
    SparseAbsolute,
    Symmetric,
    Triangular,
    Unconstrained,
)
from ctrnn_assembly.errors import ConfigError, unknown
from ctrnn_assembly.gates import Gate
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.recurrent import Recurrent
from ctrnn_assembly.subnetwork import Subnetwork

# Settings and their values where a model has no other: of every model, of assemblies, of their solvers.
SIZES = {"modules": 16, "units": 32, "seed": 0}
ASSEMBLY = {
    "activation": "tanh",
    "activation_place": "outside",
    "coupling": "all",
    "coupling_kind": "feedback",
    "coupling_scale": 1.0,
    "coupling_init": "uniform",
    "bias": True,
    "tau": 1.0,
    "readout_input": "state",
}
OTHERS = ("input_size", "field", "gate", "gate_bounds", "batch_first", "bias", "generator")
SOLVER = {
    name: parameter.default
    for name, parameter in signature(CTRNN).parameters.items()
    if name not in OTHERS
}
# Of the set that W is in, and of AdaDiag, whose papers have no bias.
MARGIN = {"margin": 0.01}
SPARSE = {"activation": "relu", "activation_place": "inside", "density": 0.033}
DIAGONAL = {**MARGIN, "coupling_init": "orthogonal", "bias": False}
GATED = {**MARGIN, "activation": "relu", "bias": False, "dt": 1.0, "gate_bounds": (1e-5, 0.2)}
PLACES = {"outside": "x", "inside": "r"}


@dataclass(frozen=True)
class Model:
    """What a model name stands for.

    Attributes:
        part: the set that the modules' weights are in, or the layer that a baseline is.
        own: settings that few models have, and values that differ from the tables above.
        gate: what the time scales depend on; None for fixed ones.
    """

    summary: str
    part: type
    own: dict[str, Any] = field(default_factory=dict)
    gate: Gate | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether it is a layer of its own, without modules."""
        return issubclass(self.part, Recurrent)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that the model takes, with the model's own value."""
        return {**SIZES, **({} if self.is_baseline else {**ASSEMBLY, **SOLVER}), **self.own}


MODELS = {
    "sparse-combo": Model(
        "Sparse Combo Net: Theorem 1, frozen and sparse",
        SparseAbsolute,
        {**SPARSE, **MARGIN, "magnitude": 1.0, "outside_set": "reject"},
    ),
    "absolute": Model("Theorem 1, trainable through positive scalings", Absolute, MARGIN),
    "symmetric": Model("Theorem 2: W = W^T, g W < I", Symmetric, MARGIN),
    "product": Model("Theorem 3: W = -P1 Q P2", NegativeProduct, MARGIN),
    "triangular": Model("Theorem 4: triangular W", Triangular, MARGIN),
    "svd-combo": Model(
        "SVD Combo Net: Theorem 5, trainable", SingularValueBounded, {**MARGIN, "activation": "relu"}
    ),
    "adadiag-tanh": Model("AdaDiag: diagonal W by tanh", AdaDiagTanh, DIAGONAL),
    "adadiag-clip": Model("AdaDiag: diagonal W by clipping", AdaDiagClip, DIAGONAL),
    "adadiag-gated": Model(
        "AdaDiag 2026: gates of input and state; no certificate", AdaDiagTanh, GATED, "state"
    ),
    "adadiag-gated-constant": Model(
        "AdaDiag with a trained time scale for each unit", AdaDiagTanh, GATED, "constant"
    ),
    "adadiag-gated-shared": Model(
        "AdaDiag with one gate of the input for all units", AdaDiagTanh, GATED, "shared"
    ),
    "adadiag-gated-input": Model(
        "AdaDiag with gates of the input; certified while (hi - lo) ||L|| < 2 lo lam",
        AdaDiagTanh,
        {**GATED, "gate_bounds": (0.18, 0.2)},
        "input",
    ),
    "unconstrained": Model("trained W without a constraint; no certificate", Unconstrained),
    "published-sparse-combo": Model(
        "Sparse Combo Net as its code was published; no certificate",
        PublishedSparse,
        {**SPARSE, "magnitude": 6.0, "coupling_init": "normal"},
    ),
    "rnn": Model("vanilla RNN; no certificate", VanillaRNN),
    "lstm": Model("LSTM; no certificate", LSTM),
    "antisymmetric": Model("AntisymmetricRNN (Chang et al. 2019); no certificate", AntisymmetricRNN),
    "lipschitz": Model("Lipschitz RNN (Erichson et al. 2021); no certificate", LipschitzRNN),
}
SETTINGS = tuple(dict.fromkeys(name for model in MODELS.values() for name in model.settings))


def build_model(model: Any, n_input: int, n_class: int, **settings: Any) -> SequenceClassifier:
    """A classifier by model name, or as a configuration says.

    Args:
        model: a name of `MODELS`; or a configuration, a mapping or an object, with `model` and any of
            the settings below, of which those that this model does not take are left alone
            (`unused_settings` names them).
        n_input, n_class: features of a sample, number of classes.
        settings: by a name only those that the model takes; None, or left out, for the model's own.
            modules, units: p modules of n_i units each; a baseline gets p n_i units.
            activation, activation_place: phi, and whether it stands outside W or inside.
            coupling, coupling_kind, coupling_scale, coupling_init: topology by name, kind, and how the
            free entries of the coupling start.
            bias: whether the input has one.
            density, magnitude, outside_set: of sparse models; whether sparse-combo draws a module that
            is not in the set again ("reject") or shrinks it ("rescale").
            margin: guaranteed contraction rate of a module, in 1 / tau.
            tau: time constant. readout_input: "state" x, or "rate" phi(x).
            gate_bounds: (lo, hi) of a gated model.
            seed: of all random weights.
            dt, solver and other solver settings: as of `CTRNN`.

    Raises:
        ConfigError: if a name is unknown, a setting impossible or not one of the model's;
            ContractionError: if no such weights exist.

    Example:
        >>> from ctrnn_assembly.models import build_model
        >>> build_model("svd-combo", 1, 10, modules=2, units=4, coupling="ring").core.hidden_size
        8
    """
    if isinstance(model, str):
        name, given = model, settings
        for unused in unused_settings({"model": name, **given}):
            raise ConfigError(f"{unused}. Leave it out, or use another model.")
    else:
        name, given = _read(model, "model"), {key: _read(model, key) for key in SETTINGS} | settings
    row = find_model(name)
    own = row.settings
    chosen = own | {key: value for key, value in given.items() if key in own and value is not None}
    p, n = chosen["modules"], chosen["units"]
    if p < 1 or n < 1:
        raise ConfigError(f"modules and units must be at least 1; got {p} x {n}.")
    generator = torch.Generator().manual_seed(chosen["seed"])
    if row.is_baseline:
        with torch.random.fork_rng():  # the baselines draw from the global generator, as nn.RNN does
            torch.manual_seed(chosen["seed"])
            baseline = row.part(n_input, p * n, batch_first=True)
        return SequenceClassifier(baseline, n_class, generator=generator)
    core = CTRNN(
        n_input,
        _assembly(row, chosen, generator),
        gate=row.gate,
        gate_bounds=chosen.get("gate_bounds"),
        batch_first=True,
        bias=chosen["bias"],
        generator=generator,
        **{key: chosen[key] for key in SOLVER},
    )
    # The published networks read out without a bias.
    return SequenceClassifier(
        core, n_class, readout_input=chosen["readout_input"], bias=False, generator=generator
    )


def unused_settings(config: Any) -> list[str]:
    """Settings that do nothing in a configuration's model, a sentence each.

    A value that is None, or that some model starts from, counts as not given.
    """
    own = find_model(_read(config, "model")).settings
    found = {key: _read(config, key) for key in SETTINGS if key not in own}
    if isinstance(config, Mapping) and (wrong := config.keys() - {"model", *SETTINGS}):
        raise unknown("setting", min(wrong), SETTINGS)
    return [
        f"{key} {value} is not used by model {_read(config, 'model')}"
        for key, value in found.items()
        if value is not None
        and all(value != row.settings[key] for row in MODELS.values() if key in row.settings)
    ]


def _assembly(row: Model, chosen: dict[str, Any], generator: torch.Generator) -> Any:
    """The coupled modules of a model, with the settings `chosen`."""
    place = chosen["activation_place"]
    if place not in PLACES:
        raise unknown("activation_place", place, PLACES)
    of_set = {
        key: chosen[key] for key in ("margin", "density", "magnitude", "outside_set") if key in chosen
    }
    parts = [
        Subnetwork(
            row.part(chosen["activation"], **of_set),
            chosen["units"],
            form=PLACES[place],  # type: ignore[arg-type]
            tau=chosen["tau"],
            bias=False,  # the encoder has one
            generator=generator,
        )
        for _ in range(chosen["modules"])
    ]
    return couple(
        parts,
        chosen["coupling"],
        kind=chosen["coupling_kind"],
        init=chosen["coupling_init"],
        init_scale=chosen["coupling_scale"],
        generator=generator,
    )


def find_model(name: str) -> Model:
    """The row of a model name.

    Raises:
        ConfigError: if the name is unknown; lists the known ones.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]


def _read(config: Any, key: str) -> Any:
    """A setting of a mapping or an object; None if it has none."""
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
