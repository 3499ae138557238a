"""`Stack`: layers of assemblies, each driven by the one below; one recurrent layer to its user.

    s_0 = W_0 u + b_0,    s <- layer(s), by `block`

A layer's input is held over its sample, so that every solver can take the steps, layer by layer: the
sampled stack. As one field all layers are one equation x' = f(x, u), each driven by what the states
below are now; both agree to first order in the time between samples.
Certificate: `certificates.cascade`, of evaluation mode. Source: THEORY section 11.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ctrnn_assembly.activations import Activation, activation
from ctrnn_assembly.block import Layer, Mix, Norm, finite
from ctrnn_assembly.calls import Data, Dt, Lengths, Outputs, Save
from ctrnn_assembly.certificates.cascade import LayerBound, certify_cascade, norm_bound
from ctrnn_assembly.certificates.certify import Search, parametrized, unsteady
from ctrnn_assembly.certificates.result import Certificate
from ctrnn_assembly.errors import ConfigError, check_within
from ctrnn_assembly.inputs import held
from ctrnn_assembly.recurrent import InitialState, Recurrent, is_plain, is_unchanged
from ctrnn_assembly.schemes import SCHEMES, affine_step, repeated
from ctrnn_assembly.solvers import check_step, solve
from ctrnn_assembly.subnetwork import Field
from ctrnn_assembly.transforms import holds

Step = Callable[[Tensor, Tensor], Tensor]
Move = Callable[[Layer, Tensor, Tensor], tuple[Tensor, Tensor]]


class Stack(Recurrent):
    """output, h_n = net(input, h_0): `depth` layers, each a field of its own; see the module.

    Args:
        input_size, batch_first, initial_state: as in `Recurrent`; the output has `width` features.
        fields: the field of each layer, from below.
        norm, mix: as of `block`; phi: the activation before the mix.
        dropout: share of a layer's output features that a training sequence loses, at all times.
        scale: of every layer's output before it is added.
        gate_range: r, for step lengths in [dt / r, dt r] of single pairs, by a `StepGate` of v; all
            fields are then `Pairs`, and any solver but imex is theirs; exponential-euler has a proof.
        input_range: the largest |u| that a certificate with gates speaks of.
        dt, substeps, solver: as in `CTRNN`; a layer's input is held over all substeps of a sample.
        one_field: whether all layers are one equation, x' = `flow(u)(x)`, for every solver; in training
            mode there is then neither batch norm nor dropout.

    States of all layers stand side by side, from below: (batch, state_size); `split` takes them apart.

    Guarantee: see `certificate`.

    >>> net = Stack(3, 16, [Pairs(4), Pairs(8)], batch_first=True).eval()
    >>> output, h_n = net(torch.randn(8, 100, 3))
    >>> output.shape, h_n.shape, net.certificate().step.certified
    (torch.Size([8, 100, 16]), torch.Size([1, 8, 12]), True)
    """

    layers: Any  # an nn.ModuleList of `Layer`s
    output_is_state = False
    traceable = False  # as a whole sequence; the step is
    fusible = True  # whether its layers have fields, whose tensors `Layer.fused` reads

    def __init__(
        self,
        input_size: int,
        width: int,
        fields: Sequence[Field],
        *,
        norm: Norm = "batch",
        mix: Mix = "tanh-glu",
        phi: str | Activation = "gelu",
        dropout: float = 0.0,
        scale: float = 1.0,
        gate_range: float | None = None,
        input_range: float = 3.0,
        batch_first: bool = False,
        dt: float = 1.0,
        substeps: int = 1,
        solver: str = "exponential-euler",
        one_field: bool = False,
        initial_state: InitialState = "zero",
    ) -> None:
        if not isinstance(fields, list | tuple | nn.ModuleList) or not len(fields):
            got = type(fields).__name__ if isinstance(fields, nn.Module) else repr(fields)
            raise ConfigError(f"fields must be a non-empty list of fields; got {got:.60}. Use [field].")
        if wrong := [type(one).__name__ for one in fields if not isinstance(one, Field | Recurrent)]:
            raise ConfigError(f"each layer must be a field, such as Pairs(64); got {wrong[0]}.")
        sizes = [getattr(field, "state_size", field.size) for field in fields]
        start: dict[str, Any] = {"initial_state": initial_state, "state_size": sum(sizes)}
        super().__init__(input_size, width, batch_first=batch_first, **start)
        check_within("[0, 1)", dropout=dropout)
        check_within("(0, inf)", input_range=input_range)
        if (gate_range is not None or not self.fusible) and (one_field or solver == "imex"):
            got, step = f"{solver!r}, one_field={one_field}", "gated pairs step by exponential-euler"
            raise ConfigError(f"{step} and baselines by themselves, layer by layer; got {got}.")
        self.dt, self.substeps, self.solver, self.one_field = dt, substeps, solver, one_field
        self.input_range = input_range
        check_step(self)
        parts: dict[str, Any] = {"norm": norm, "mix": mix, "phi": activation(phi)}
        parts |= {"gate_range": gate_range, "dropout": dropout, "scale": scale}
        self.layers = nn.ModuleList(Layer(width, field, **parts) for field in fields)
        self.encoder = nn.Linear(input_size, width)  # last: the layers' start depends on no input
        self.layer_sizes = tuple(sizes)

    def certificate(
        self, *, dt: float | None = None, solver: str | None = None, search: Search = "fast"
    ) -> Certificate:
        """Of the whole net in evaluation mode, and its step; by search "none" or "rate" less sharp."""
        check_step(self)
        dt, solver = self.dt if dt is None else dt, solver or self.solver
        reason, plain = "", is_plain(self.encoder, nn.Linear)
        if not is_unchanged(self, Stack):
            reason = f"a {type(self).__name__} has hooks or methods of its own; remove them"
        elif not finite(self.encoder):
            reason = "a weight of the encoder is NaN, infinite or meta; use an intact copy"
        elif self._like.dtype.itemsize < 4:
            reason = f"the decay of states may round off in {self._like.dtype}; use float32"
        elif self.gated and self.one_field:  # set by hand
            reason = "gated pairs are proven layer by layer; set one_field=False"
        elif self.gated and not plain:
            reason = "the encoder is no plain nn.Linear: it has no bound, and gates need bounded inputs"
        if reason := reason or unsteady(lambda: [*parametrized(self), self._made(self.encoder)]):
            return Certificate.refused(reason, dt=dt, solver=solver)
        entry = norm_bound(self.encoder.weight) if plain else torch.inf
        way: Any = {"substeps": self.substeps, "one_field": self.one_field}
        found = certify_cascade(self.bounds(dt, solver, search), dt, solver, entry=entry, **way)
        if not self.gated or not found.certified:
            return found
        if self._beyond(self.initial(1), self._radii()):
            reason = f"the trained initial state is outside of {self.claim}; use initial_state='zero'"
            return Certificate.refused(reason, dt=dt, solver=solver)
        return replace(found, claim=self.claim)

    def bounds(self, dt: float, solver: str, search: Search = "fast") -> list[LayerBound]:
        """What is proven of each layer and its step of dt / substeps, for certificates of the whole."""
        # A call with another dt keeps the drive of the net's own; the shorter has the larger gain.
        given: Any = {"drive_dt": min(dt, self.dt)}
        boxes = self._boxes() if self.gated else [None] * len(self.layers)
        parts = zip(self.layers, boxes, strict=True)
        layers = [one.bound(dt / self.substeps, solver, search, largest=s, **given) for one, s in parts]
        # A system is of one step of the sampled stack with the drive of its own dt.
        usual = search == "fast" and dt == self.dt and self.substeps == 1 and not self.one_field
        return layers if usual else [replace(layer, system=None) for layer in layers]

    @property
    def claim(self) -> str:
        """What inputs and states a certificate with gates speaks of."""
        return f"inputs |u| <= {self.input_range:g} and initial states within what these can reach"

    @property
    def gated(self) -> bool:
        """Whether pairs have steps that read the input, so that the certificate has a `claim`."""
        return any(layer.gate is not None for layer in self.layers)

    @torch.no_grad()
    def _boxes(self) -> list[Tensor]:
        """The largest |s_i| that enters each layer, (width,): the encoder's, and 1 a tanh-glu below."""
        top = self.encoder.weight.double().cpu().abs().sum(1) * self.input_range
        if self.encoder.bias is not None:
            top = top + self.encoder.bias.double().cpu().abs()
        added = [abs(one.scale) if one.mix.kind == "tanh-glu" else torch.inf for one in self.layers]
        return [top + sum(added[:k]) for k in range(len(added))]

    def _radii(self) -> list[Tensor | None]:
        """Of each gated layer, how far its pairs get under inputs |u| <= input_range, (n / 2,)."""
        parts = zip(self.layers, self._boxes(), strict=True)
        return [None if layer.gate is None else layer.reach(box, self.dt) for layer, box in parts]

    def _beyond(self, x: Tensor, radii: Sequence[Tensor | None]) -> bool:
        """Whether states, (..., state_size), are farther away; not for what is only rounded."""
        return not all(
            holds(part.unflatten(-1, (-1, 2)).norm(dim=-1) <= r.to(part) * (1 + 1e-6))
            for part, r in zip(self.split(x), radii, strict=True)
            if r is not None
        )

    def _watch(self) -> Callable[[Tensor, Tensor], None]:
        """(u, x) -> a warning of what the certificate does not speak of, in evaluation mode."""
        if self.training or not self.gated or not is_plain(self.encoder, nn.Linear):
            return lambda u, x: None
        radii = self._radii()

        def watch(u: Tensor, x: Tensor) -> None:
            inside = holds(u.abs() <= self.input_range)
            what = "" if inside else f"an input of {float(u.abs().max()):.4g}"
            what = what or "an initial state that they cannot reach" * self._beyond(x, radii)
            if what:
                said = f"the certificate is of {self.claim}; got {what}, of which it proves nothing"
                warnings.warn(said, RuntimeWarning, stacklevel=4)

        return watch

    @torch.no_grad()
    def project_(self) -> None:
        for layer in self.layers:
            layer.field.project_()

    def split(self, h: Tensor) -> tuple[Tensor, ...]:
        """The states of each layer, (..., n_l), of h (..., state_size); a call takes both as h_0."""
        return h.split(self.layer_sizes, dim=-1)

    def flow(self, u: Data = None) -> Callable[[Tensor], Tensor]:
        """f with f(x) = x', both (batch, state_size), of all layers as one field, under u (batch, m)."""
        sample, f = self._sample(u), self._field()
        return lambda x: f(sample, x)

    def _field(self) -> Step:
        """(u, x) -> x' of all layers, with their tensors made once."""
        self._check_fixed()
        terms = {layer: layer.field.terms() for layer in self.layers}

        def slope(layer: Layer, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            own = terms[layer](z, layer.drive(v, terms[layer].tau, self.dt))
            return own if layer.gate is None else own * layer.gate(v).repeat_interleave(2, -1), z

        return lambda u, x: self._upwards(u, x, slope)[1]

    def _upwards(
        self, u: Tensor, x: Tensor, move: Move, valid: Tensor | None = None, *, fused: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The output, and side by side what `move` finds of each layer, from below.

        move: (layer, v, z) -> (what is found, the states that the layer passes on), z its part of x.
        """
        s, found = self.encoder(u), []
        for layer, z in zip(self.layers, self.split(x), strict=True):
            v = layer.norm(s, valid)
            both = layer.fused(s, v, z, self.dt, self.solver) if fused else None
            if both is not None and holds(both[1].isfinite()):
                s, own = both
            else:
                own, states = move(layer, v, z)
                s = layer.out(s, v, states)
            found.append(own)
        return s, torch.cat(found, dim=-1)

    def _check_fixed(self) -> None:
        check_step(self)
        if self.training and any(one.norm.kind == "batch" or one.dropout for one in self.layers):
            got, fix = "batch norm or dropout in training mode", "eval(), or train with one_field=False"
            raise ConfigError(f"one field needs fixed maps between its layers; got {got}. Call {fix}.")

    def stepper(self) -> Step:
        if self.one_field:
            self._check_fixed()
            if self.solver not in SCHEMES:
                return lambda u, x: self._run(u[:, None], x, None, None, "last")[1]
        moves, watch = {layer: self._mover(layer) for layer in self.layers}, self._watch()

        def move(layer: Layer, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            new = moves[layer](z, v)
            return new, (z if self.one_field else new)[:, : layer.field.size]

        def step(u: Tensor, x: Tensor) -> Tensor:
            watch(u, x)
            return self._upwards(u, x, move)[1]

        return repeated(step, self.substeps) if self.one_field else step

    def _mover(self, layer: Layer) -> Step:
        """(z, v) -> z+ of one layer, with its matrices built once."""
        check_step(self)
        if self.solver not in SCHEMES or layer.gate is not None:
            return lambda z, v: self._states(layer, v[:, None], z, None, None)[1]
        terms = layer.field.terms()
        move = affine_step(SCHEMES[self.solver], terms, self.dt / self.substeps)
        moves = repeated(move, 1 if self.one_field else self.substeps)
        return lambda z, v: moves(layer.drive(v, terms.tau, self.dt), z)

    def _states(self, layer: Layer, v: Tensor, z: Tensor, lengths: Lengths, dt: Dt) -> Outputs:
        """The states of one layer after each sample, (batch, time, n), and its last."""
        check_step(self)
        terms = layer.field.terms()
        drive, step = layer.drive(v, terms.tau, self.dt), self.dt if dt is None else dt
        options: Any = {"solver": self.solver, "lengths": lengths}
        options["substeps"] = 1 if self.one_field else self.substeps
        if layer.gate is not None:
            return layer.gated(drive, v, z, step, **options)
        done = solve(terms, z, u=drive, dt=step, **options)
        return done.x[:, 1:], done.last

    def _run(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt, save: Save) -> Outputs:
        def move(layer: Layer, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            states, end = self._states(layer, v, z, lengths, dt)
            return end, states

        if self.one_field:
            states = self._as_one(u, x, lengths, dt)
            s, x = self._upwards(u, states[:, 1:], lambda layer, v, z: (z[:, -1], z))
        else:
            self._watch()(u, x)
            time = torch.arange(u.shape[1], device=u.device)
            valid = None if lengths is None else time < lengths[:, None]
            usual = lengths is None and dt is None and self.substeps == 1 and self.fusible
            s, x = self._upwards(u, x, move, valid, fused=usual)
        return s if lengths is None else held(s, lengths), x

    def _as_one(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt) -> Tensor:
        """As one field, before the first sample and after each, (batch, time + 1, state_size)."""
        self._check_fixed()
        n, step = self.substeps, self.dt if dt is None else dt
        if self.solver not in SCHEMES:
            options: Any = {"solver": self.solver, "substeps": n, "lengths": lengths}
            f = self._field()
            return solve(lambda t, x, u: f(u, x), x, u=u, dt=step, **options).x
        # What a layer reads is known before it moves, so that here too one may follow the other.
        u, lengths = u.repeat_interleave(n, 1), None if lengths is None else n * lengths
        if isinstance(step, Tensor) and step.ndim:
            step = step.repeat_interleave(n, -1)
        step = step / n

        def move(layer: Layer, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            states = torch.cat([z[:, None], self._states(layer, v, z, lengths, step)[0]], 1)
            return states[:, ::n], states[:, :-1]

        return self._upwards(u, x, move)[1]
