"""The papers' networks and the baselines, by name: encoder -> assembly -> readout.

| name | modules | default phi, form |
|---|---|---|
| sparse-combo | Theorem 1, sparse and frozen | relu, r |
| absolute, symmetric, product, triangular | Theorems 1 to 4, trained | tanh, x |
| svd-combo | Theorem 5, trained | relu, x |
| adadiag-tanh, adadiag-clip | diagonal, trained | tanh, x |
| adadiag-gated | diagonal, gates of input and state as published: no certificate | relu, x |
| adadiag-gated-constant, -shared, -input | the same with gates that can be certified | relu, x |
| unconstrained, published-sparse-combo | no certificate | tanh, x; relu, r |
| rnn, lstm, antisymmetric, lipschitz | baselines, no certificate | their own |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ctrnn_assembly.assembly import couple
from ctrnn_assembly.baselines import LSTM, AntisymmetricRNN, LipschitzRNN, VanillaRNN
from ctrnn_assembly.contracting import (
    Absolute,
    AdaDiagClip,
    AdaDiagTanh,
    Contracting,
    Form,
    NegativeProduct,
    PublishedSparse,
    SingularValueBounded,
    SparseAbsolute,
    Symmetric,
    Triangular,
    Unconstrained,
)
from ctrnn_assembly.coupling import Init
from ctrnn_assembly.errors import ConfigError, unknown
from ctrnn_assembly.gates import Gate
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.recurrent import Recurrent
from ctrnn_assembly.subnetwork import Subnetwork


@dataclass(frozen=True)
class Architecture:
    """What a model name stands for."""

    summary: str
    phi: str = "tanh"
    form: Form = "x"
    init: Init = "uniform"
    bias: bool = True  # AdaDiag's papers have none
    gate: Gate | None = None
    gate_bounds: tuple[float, float] = (1e-5, 0.2)  # as published


ARCHITECTURES = {
    "sparse-combo": Architecture("Sparse Combo Net: Theorem 1, frozen and sparse", "relu", "r"),
    "absolute": Architecture("Theorem 1, trainable through positive scalings"),
    "symmetric": Architecture("Theorem 2: W = W^T, g W < I"),
    "product": Architecture("Theorem 3: W = -P1 Q P2"),
    "triangular": Architecture("Theorem 4: triangular W"),
    "svd-combo": Architecture("SVD Combo Net: Theorem 5, trainable", "relu"),
    "adadiag-tanh": Architecture("AdaDiag: diagonal W by tanh", init="orthogonal", bias=False),
    "adadiag-clip": Architecture("AdaDiag: diagonal W by clipping", init="orthogonal", bias=False),
    "adadiag-gated": Architecture(
        "AdaDiag 2026: gates of input and state; no certificate", "relu", bias=False, gate="state"
    ),
    "adadiag-gated-constant": Architecture(
        "AdaDiag with a trained time scale for each unit", "relu", bias=False, gate="constant"
    ),
    "adadiag-gated-shared": Architecture(
        "AdaDiag with one gate of the input for all units", "relu", bias=False, gate="shared"
    ),
    "adadiag-gated-input": Architecture(
        "AdaDiag with gates of the input; certified while (hi - lo) ||L|| < 2 lo lam",
        "relu",
        bias=False,
        gate="input",
        gate_bounds=(0.18, 0.2),
    ),
    "unconstrained": Architecture("trained W without a constraint; no certificate"),
    "published-sparse-combo": Architecture(
        "Sparse Combo Net as its code was published; no certificate", "relu", "r", "normal"
    ),
}
BASELINES = {
    "rnn": "vanilla RNN; no certificate",
    "lstm": "LSTM; no certificate",
    "antisymmetric": "AntisymmetricRNN (Chang et al. 2019); no certificate",
    "lipschitz": "Lipschitz RNN (Erichson et al. 2021); no certificate",
}
MODELS = {**{name: a.summary for name, a in ARCHITECTURES.items()}, **BASELINES}


def build_model(
    name: str,
    n_input: int,
    n_class: int,
    *,
    modules: int = 16,
    units: int = 32,
    phi: str | None = None,
    form: Form | None = None,
    coupling: str = "all",
    coupling_kind: Literal["feedback", "hierarchy", "free"] = "feedback",
    coupling_gain: float = 1.0,
    coupling_init: Init | None = None,
    bias: bool | None = None,
    density: float = 0.033,
    magnitude: float | None = None,
    into_set: Literal["reject", "rescale"] = "reject",
    margin: float = 0.01,
    tau: float = 1.0,
    reads: Literal["state", "rate"] = "state",
    gate_bounds: tuple[float, float] | None = None,
    seed: int = 0,
    **solver: Any,
) -> SequenceClassifier:
    """A classifier by model name (`MODELS`).

    Args:
        n_input, n_class: features a step, number of classes.
        modules, units: p modules of n_i units each; a baseline gets p n_i units.
        phi, form: None for the architecture's own.
        coupling, coupling_kind, coupling_gain: topology by name, kind, and initial scale of L.
        coupling_init, bias: how L is drawn, and whether the input has a bias; None for the
            architecture's own.
        density, magnitude: of the sparse models; magnitude None for 1 (6 as published).
        into_set: whether sparse-combo draws again or shrinks a module that is not in the set.
        margin: guaranteed contraction rate of a module, in 1 / tau.
        reads: whether the readout sees the state x or the firing rates phi(x).
        gate_bounds: (lo, hi) of a gated model; None for the architecture's own.
        seed: of all random weights.
        solver: dt, solver and other solver settings of `CTRNN`; gated models step by Euler, with dt 1
            if none is given.

    Raises:
        ConfigError: if the name or a setting is unknown; ContractionError: if no such weights exist.
    """
    generator = torch.Generator().manual_seed(seed)
    if name in BASELINES:
        baseline = _baseline(name, n_input, modules * units, seed)
        return SequenceClassifier(baseline, n_class, generator=generator)
    if name not in ARCHITECTURES:
        raise unknown("model", name, MODELS)
    if modules < 1 or units < 1:
        raise ConfigError(f"modules and units must be at least 1; got {modules} x {units}.")
    architecture = ARCHITECTURES[name]
    chosen = phi or architecture.phi
    biased = architecture.bias if bias is None else bias
    fields = [
        Subnetwork(
            _constraint(name, chosen, density, magnitude, margin, into_set),
            units,
            form=form or architecture.form,
            tau=tau,
            bias=False,  # the encoder has one
            generator=generator,
        )
        for _ in range(modules)
    ]
    assembly = couple(
        fields,
        coupling,
        kind=coupling_kind,
        init=coupling_init or architecture.init,
        init_scale=coupling_gain,
        generator=generator,
    )
    if architecture.gate is not None:
        solver = {"dt": 1.0, **solver, "gate": architecture.gate}
        solver["gate_bounds"] = gate_bounds or architecture.gate_bounds
    core = CTRNN(n_input, assembly, batch_first=True, bias=biased, generator=generator, **solver)
    # The published networks read out without a bias.
    return SequenceClassifier(core, n_class, reads=reads, bias=False, generator=generator)


def sparse_combo_net(n_input: int, n_class: int, **settings: Any) -> SequenceClassifier:
    """Sparse Combo Net (Kozachkov et al. 2022): 16 frozen modules of 32 units, density 3.3 %, all
    pairs coupled, dt 0.03. Certified: sampled with a valid diagonal metric, magnitude 1."""
    return build_model("sparse-combo", n_input, n_class, **settings)


def svd_combo_net(n_input: int, n_class: int, **settings: Any) -> SequenceClassifier:
    """SVD Combo Net (Kozachkov et al. 2022): 16 trained modules of 32 units, all pairs coupled."""
    return build_model("svd-combo", n_input, n_class, **settings)


def adadiag_net(n_input: int, n_class: int, **settings: Any) -> SequenceClassifier:
    """AdaDiag (De Caro et al. 2025): 16 diagonal modules of 32 units, 20 random pairs coupled."""
    return build_model("adadiag-tanh", n_input, n_class, **{"coupling": "random:20", **settings})


def _constraint(
    name: str,
    phi: str,
    density: float,
    magnitude: float | None,
    margin: float,
    into_set: Literal["reject", "rescale"],
) -> Contracting:
    if name == "sparse-combo":
        scale = 1.0 if magnitude is None else magnitude
        return SparseAbsolute(phi, margin=margin, density=density, magnitude=scale, into_set=into_set)
    if name == "published-sparse-combo":
        return PublishedSparse(phi, density=density, magnitude=6.0 if magnitude is None else magnitude)
    if name == "unconstrained":
        return Unconstrained(phi)
    trained: dict[str, Callable[..., Contracting]] = {
        "absolute": Absolute,
        "symmetric": Symmetric,
        "product": NegativeProduct,
        "triangular": Triangular,
        "svd-combo": SingularValueBounded,
        "adadiag-tanh": AdaDiagTanh,
        "adadiag-clip": AdaDiagClip,
    }
    if name.startswith("adadiag-gated"):
        return AdaDiagTanh(phi, margin=margin)
    return trained[name](phi, margin=margin)


def _baseline(name: str, n_input: int, n: int, seed: int) -> Recurrent:
    classes: dict[str, Callable[..., Recurrent]] = {
        "rnn": VanillaRNN,
        "lstm": LSTM,
        "antisymmetric": AntisymmetricRNN,
        "lipschitz": LipschitzRNN,
    }
    with torch.random.fork_rng():  # the baselines draw from the global generator, as nn.RNN does
        torch.manual_seed(seed)
        return classes[name](n_input, n, batch_first=True)
