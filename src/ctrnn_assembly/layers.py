"""An assembly as a recurrent layer with `nn.RNN`'s calling convention, and a classifier on top."""

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ctrnn_assembly import solvers
from ctrnn_assembly.activations import Elementwise
from ctrnn_assembly.calls import Data, Dt, Lengths, Save
from ctrnn_assembly.certificates import Certificate, certify
from ctrnn_assembly.certificates.arithmetic import in_arithmetic
from ctrnn_assembly.certificates.certify import Search, StepLengths, step_lengths, unsteady
from ctrnn_assembly.certificates.gates import certify_gated
from ctrnn_assembly.errors import ConfigError, ShapeError, check_known
from ctrnn_assembly.fields import as_field, reads_input
from ctrnn_assembly.gates import Gate, Gates
from ctrnn_assembly.inputs import INTERPOLATIONS, over_samples
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.recurrent import InitialState, Recurrent, is_plain, is_unchanged
from ctrnn_assembly.schemes import SCHEMES, affine_step, repeated
from ctrnn_assembly.solvers import check_own, check_settings, check_step, gated, is_compiled, solve
from ctrnn_assembly.solvers.grid import overflow, step_grid
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import holds, known, states


class CTRNN(Recurrent):
    """output, h_n = net(input, h_0): tau x' = f(x) + W_in u(t) + b_in, solved over the samples.

    Args:
        input_size, batch_first, initial_state: as in `Recurrent`.
        field: the n units; or of your own, with its `size`, a function or nn.Module f(t, x, u), which
            gets the input as it is, or f(t, x), to which the encoded input is added; t counts from 0 at
            each call, and at each `step`. It has no certificate.
        gate: of `ctrnn_assembly.gates`: the units' speeds 1 / tau are then nu, and tau must be 1.
        gate_bounds: (lo, hi) with lo <= nu <= hi; (0.1, 0.2) if None.
        dt: time between samples, in the unit of tau.
        substeps: equal solver steps from one sample to the next, of dt / substeps, under the held input.
        solver: one of `ctrnn_assembly.schemes.SOLVERS`; gates that read input or state take
            "euler", congruence gates "imex" too.
        interpolation: u(t) between samples for torchdiffeq's methods.
        rtol, atol, gradient, recompute (of `last` only), matmul_precision, backend: see `solve`.
        bias: whether the encoder has a bias b_in.
        generator: of the random start.

    `encoder` is an `nn.Linear` with the weight W_in. With hooks, or replaced by any module that maps
    (..., m) to (..., n), it is called with all samples at once, and its values are interpolated.

    Guarantee: that of `field` in continuous time, whatever the encoder; for the step see `certificate`.

    >>> layer = CTRNN(1, Subnetwork(Absolute(), 4), batch_first=True)
    >>> layer(torch.randn(8, 20, 1))[0].shape, layer.certificate().certified
    (torch.Size([8, 20, 4]), True)

    A field of your own, the oscillator of van der Pol:

    >>> def oscillator(t, x, u):
    ...     q, v = x.unbind(-1)
    ...     return torch.stack([v, (1 - q**2) * v - q + u[:, 0]], -1)
    >>> layer = CTRNN(1, oscillator, size=2, batch_first=True, dt=0.1, solver="rk4")
    >>> layer(torch.randn(8, 20, 1))[0].shape, layer.certificate().certified
    (torch.Size([8, 20, 2]), False)
    """

    def __init__(
        self,
        input_size: int,
        field: Any,
        *,
        size: int | None = None,
        gate: Gate | None = None,
        gate_bounds: tuple[float, float] | None = None,
        batch_first: bool = False,
        dt: float = 0.03,
        substeps: int = 1,
        solver: str = "euler",
        interpolation: Literal["hold", "linear", "cubic"] = "hold",
        rtol: float = 1e-6,
        atol: float = 1e-8,
        gradient: solvers.Gradient = "direct",
        recompute: solvers.Recompute = "none",
        matmul_precision: solvers.MatmulPrecision = "full",
        backend: solvers.Backend = "auto",
        bias: bool = True,
        initial_state: InitialState = "zero",
        generator: torch.Generator | None = None,
    ) -> None:
        self_made = not hasattr(field, "terms")
        reads = self_made and reads_input(field)[0]
        n = size if self_made else field.size
        if n is None or (size or n) != n:
            raise ConfigError(
                f"size must be how wide the state of a field of your own is; got {size}. Use "
                f"{'CTRNN(m, f, size=n)' if self_made else f'size={n}, or leave it out'}."
            )
        super().__init__(input_size, n, batch_first=batch_first, initial_state=initial_state)
        check_known("interpolation", interpolation, INTERPOLATIONS)
        of_loop: dict[str, Any] = {"recompute": recompute, "backend": backend}
        of_loop["matmul_precision"] = matmul_precision
        check_settings(solver, None, substeps, gradient=gradient, **of_loop)
        if self_made:
            check_own(solver, **of_loop)
        if interpolation != "hold" and solver in SCHEMES:
            raise ConfigError(
                f"interpolation={interpolation!r} does nothing in {solver}, which holds samples over "
                "its step. Leave it out, or use a solver such as rk4."
            )
        self.dt, self.substeps, self.solver, self.interpolation = dt, substeps, solver, interpolation
        check_step(self)
        self.options: dict[str, Any] = {"rtol": rtol, "atol": atol, "gradient": gradient, **of_loop}
        self.field, self.is_own = field, self_made
        self.encoder: Any = nn.Identity()
        if not reads:
            self.encoder = nn.Linear(input_size, n, bias=bias)
            normal_(self.encoder, n**-0.5, generator)
        if next(self.parameters(), None) is None:  # the layer's dtype and device are those of one
            self.register_parameter("empty", nn.Parameter(torch.empty(0), requires_grad=False))
        self.gates: Gates | None = None
        if gate is not None:
            self._needs_units("gates")
            trained = any(leaf.train_tau for leaf in field.leaves())
            if trained or not (field.tau.is_meta or bool((field.tau == 1).all())):
                raise ConfigError(
                    "a gated field must have tau = 1, as its time constants are 1 / nu; got "
                    f"{'a trained tau' if trained else f'{field.tau.tolist()[:3]}...'} Leave it out, "
                    "and set gate_bounds=(lo, hi)."
                )
            bounds = gate_bounds or (0.1, 0.2)
            self.gates = Gates(gate, input_size, field.metric(), bounds=bounds, generator=generator)
            for name, value in {"solver": solver, **of_loop}.items():
                needed = signature(CTRNN).parameters[name].default
                if gate != "constant" and value != needed and (gate, value) != ("congruence", "imex"):
                    also = ", or congruence gates by imex" if name == "solver" else ""
                    raise ConfigError(
                        f"gates that read input or state are solved by euler{also}; got "
                        f"{name}={value!r}. Use {name}={needed!r}, or constant gates, or flow(u)(x)."
                    )
        elif gate_bounds is not None:
            raise ConfigError(f"gate_bounds={gate_bounds} need a gate, such as gate='constant'.")

    @property
    def traceable(self) -> bool:  # type: ignore[override]
        return self.solver in SCHEMES and not self.is_own  # whose t is that of the sequence

    def terms(self) -> Terms:
        """The tensors of the field, driven by the encoder; tau = 1 / nu if gates are constant.

        ConfigError if gates read, the encoder is no plain `nn.Linear`, or the field is your own.
        """
        self._needs_units("terms and metric")
        terms, why = self._driven()[0], ""
        if self._reading is not None:
            why = f"gates of kind {self._reading.kind!r} change the time constants with every sample"
        elif terms.W_in is None:
            why = f"a {type(self.encoder).__name__} with hooks or a forward of its own is called"
        if why:
            fix = "Use step(u, x), flow(u) or certificate(), or layer.field.terms()."
            raise ConfigError(f"{why}, so that no constant terms describe this layer. {fix}")
        return terms

    def metric(self) -> Metric:
        """M of the field, in which it contracts by construction."""
        self._needs_units("terms and metric")
        return self.field.metric()

    def certificate(
        self, *, dt: StepLengths = None, solver: str | None = None, search: Search = "fast"
    ) -> Certificate:
        """What `certify` proves of the layer and its step, by default of its own dt and solver."""
        check_step(self)
        steps = tuple(one / self.substeps for one in step_lengths(self.dt if dt is None else dt))
        found = self._certified(steps, solver or self.solver, search)
        step = found.step and replace(found.step, substeps=self.substeps)
        return replace(found, step=step)

    def _certified(self, lengths: tuple[float, ...], solver: str, search: Search) -> Certificate:
        g = self._reading
        broken = "" if g is None else g.unproven(self.metric())
        if not is_unchanged(self, CTRNN):
            broken = f"a {type(self).__name__} has hooks or methods of its own; remove them"
        for name, part in (("encoder", self.encoder), ("gates", self.gates)):
            if part is not None and any(p.is_meta or not p.isfinite().all() for p in part.parameters()):
                broken = f"a weight of the {name} is NaN, infinite or meta; use an intact copy"
        if self.is_own:
            broken = "no proof is known for a field of your own: it is code. Of matrices: certify(W, L)"
        parts = [self.encoder] if g is None else [self.encoder, g.reader]
        if broken := broken or unsteady(lambda: [*self._driven()[0].tensors(), *map(self._made, parts)]):
            return Certificate.refused(broken, dt=max(lengths, default=None), solver=solver)
        terms, metric = self._driven()[0], self.metric()
        if g is None:
            found = certify(terms, metric, dt=lengths, solver=solver, search=search)
        else:
            bounds: Any = {"gate": g.kind, "lo": g.lo, "hi": g.hi}
            found = certify_gated(terms, metric, **bounds, dt=lengths, solver=solver)
        return in_arithmetic(found, terms, self.options["matmul_precision"], gated=g is not None)

    def flow(self, u: Data = None) -> Callable[[Tensor], Tensor]:
        """f with f(x) = x', both (batch, n), while the input is u (batch, m); zero if None."""
        sample = self._sample(u)
        if self.is_own:
            drive = self.encoder(sample)
            f = as_field(self.field, sample.new_zeros(1, self.hidden_size), driven=True)
            return lambda x: f(x.new_zeros(()), x, drive.expand(len(x), -1))
        gates, (terms, encode) = self._reading, self._driven()
        drive = encode(sample)
        if gates is None:
            return lambda x: terms(x, drive)
        z = gates.reader(sample)
        return lambda x: gates.flow(terms, z, x, drive)

    def firing_rates(self, x: Tensor) -> Tensor:
        """The firing rates of states x, (..., n): phi(x) of x-form modules, x of r-form modules,
        and of a field of your own."""
        if self.is_own:
            return x
        return Elementwise.join(leaf.activations()[0] for leaf in self.field.leaves())(x)

    def project_(self) -> None:
        if not self.is_own:
            self.field.project_()

    def _needs_units(self, what: str) -> None:
        if self.is_own:
            raise ConfigError(
                f"{what} need a Subnetwork or an Assembly; got a field of your own, "
                f"{type(self.field).__name__}. Use step(u, x) or flow(u)."
            )

    def _driven(self) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """The field's tensors, or your own field, and its encoder: none for a plain `nn.Linear`."""
        check_step(self)
        if self.is_own:
            return self.field, self.encoder if isinstance(self.encoder, nn.Identity) else self._encoded
        terms = self.field.terms()
        if self.gates is not None and self._reading is None:
            if not is_plain(self.gates, Gates):
                got = f"{type(self.gates).__name__} with hooks, a pruned tensor or a forward of its own"
                raise ConfigError(f"constant gates are read, not called; got {got}. Hook the layer.")
            terms = replace(terms, tau=1 / self.gates.constants())
        if is_plain(self.encoder, nn.Linear):
            return terms.driven(self.encoder.weight, self.encoder.bias), lambda u: u
        return terms, self._encoded

    def _encoded(self, u: Tensor) -> Tensor:
        encoded = self.encoder(u)
        if encoded.shape != (*u.shape[:-1], self.hidden_size):
            raise ShapeError(
                f"the encoder must map (..., {self.input_size}) to (..., {self.hidden_size}); got "
                f"{tuple(encoded.shape)} of {tuple(u.shape)}. End in nn.Linear(k, {self.hidden_size})."
            )
        return encoded.to(u.dtype)

    @property
    def _reading(self) -> Gates | None:
        """The gates, if they read input or state."""
        return None if self.gates is None or self.gates.kind == "constant" else self.gates

    def stepper(self) -> Callable[[Tensor, Tensor], Tensor]:
        check_step(self)
        gates, h = self._reading, self.dt / self.substeps
        if self.is_own and self.solver == "euler":
            own = repeated(lambda flow, x: x + h * flow(x), self.substeps)
            return lambda u, x: own(self.flow(u), x)
        if gates is None and (self.is_own or self.solver not in SCHEMES):
            return lambda u, x: self._run(u[:, None], x, None, None, "last")[1]
        terms, encode = self._driven()
        if gates is not None:
            gated = gates.steps(terms, self.solver, self.substeps)
            return lambda u, x: gated(h, gates.reader(u), encode(u), x)
        moves = repeated(affine_step(SCHEMES[self.solver], terms, h), self.substeps)
        return lambda u, x: moves(encode(u), x)

    def _run(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt, save: Save) -> tuple[Tensor, Tensor]:
        step, gates = self.dt if dt is None else dt, self._reading
        if gates is not None:
            with torch.autocast(x.device.type, enabled=False):
                times, steps = step_grid(x, None, u, step)  # (time, 1 or batch)
                found = self._gated(gates, x, u.transpose(0, 1), steps.to(x), lengths, save)
            last = found[-1]
            if not holds(last.isfinite()):
                if save == "last":  # the others were not kept
                    with torch.no_grad():
                        self._run(u, x, lengths, dt, "all")
                raise overflow(torch.cat([x[None], found]).transpose(0, 1), times, self.solver)
            return found.transpose(0, 1), last
        options = {**self.options, "solver": self.solver, "lengths": lengths, "save": save}
        options["substeps"] = self.substeps
        if save == "all" or lengths is not None:
            options["recompute"] = "none"
        terms, encode = self._driven()
        given = over_samples(encode(u), step, lengths, self.interpolation)
        solution = solve(terms, x, **given, **options)
        return solution.x[:, 1:], solution.last

    def _gated(
        self, gates: Gates, x: Tensor, u: Tensor, steps: Tensor, lengths: Lengths, save: Save
    ) -> Tensor:
        """States after each sample of u (time, batch, m), or the last, for steps (time, 1 or batch)."""
        terms, encode = self._driven()
        drive, h, count, euler = encode(u), steps / self.substeps, self.substeps, SCHEMES["euler"]
        fast = gates.fits(u) and self.solver == euler.name and known(x) and not h.requires_grad
        fast = fast and terms.post.is_identity
        if not (fast and is_compiled(euler, terms, x, drive, h)):
            series = h[..., None], gates.reader(u), drive
            return states(gates.steps(terms, self.solver, count), x, *series, lengths=lengths)
        if lengths is not None:  # a step of length 0 leaves a state where it is
            h = h * (torch.arange(len(h), device=h.device)[:, None] < lengths)
        h, drive = (t.repeat_interleave(count, 0) for t in (h, drive))
        found = gated(terms, x, drive, h, gates, save)
        return found if save == "last" else found[count::count]


class SequenceClassifier(nn.Module):
    """logits = W_out x(T) + b_out: a recurrent layer, read out at the last valid step, or at each.

    Args:
        core: a layer, batch_first.
        n_class: number of classes, or values, k.
        readout_input: "state" reads x, as the papers do; "rate" the firing rates.
        pool: "last" reads the last valid output, "mean" the mean of all valid ones, "all" each of them.

    >>> model = SequenceClassifier(LSTM(3, 8, batch_first=True), 5, pool="mean")
    >>> model(torch.randn(2, 7, 3), lengths=[7, 4]).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        core: Recurrent,
        n_class: int,
        *,
        readout_input: Literal["state", "rate"] = "state",
        pool: Literal["last", "mean", "all"] = "last",
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.core, self.readout_input, self.pool = core, readout_input, pool
        self.readout = nn.Linear(core.hidden_size, n_class, bias=bias)
        normal_(self.readout, core.hidden_size**-0.5, generator)

    def forward(self, input: Any, h_0: Any = None, **given: Any) -> Tensor:
        """Logits, (batch, k), for input (batch, time, m), or whatever else `Recurrent.forward` takes."""
        if self.pool == "last" and is_plain(self.core, Recurrent):
            return self.read(self.core.last(input, h_0, **given))
        # By a call, whose outputs a hook may read or change.
        output, lengths = self.core(input, h_0, **given)[0], given.get("lengths")
        if isinstance(output, PackedSequence):
            output, lengths = pad_packed_sequence(output, batch_first=True)
        return self.read(self.pooled(output, lengths))

    def certificate(self, **how: Any) -> Certificate:
        """What `certify` proves of the core."""
        return certify(self.core, **how)

    def pooled(self, output: Tensor, lengths: Any = None) -> Tensor:
        """What the readout sees, (batch, n), of outputs (batch, time, n), or of one sequence's."""
        if self.pool == "all":
            return output
        if lengths is None:
            return output[..., -1, :] if self.pool == "last" else output.mean(-2)
        lengths = torch.as_tensor(lengths, device=output.device)[:, None]
        time = torch.arange(output.shape[1], device=output.device)
        chosen = time == lengths - 1 if self.pool == "last" else time < lengths  # (batch, time)
        return torch.where(chosen[..., None], output, 0).sum(1) / chosen.sum(1, keepdim=True)

    def read(self, x: Tensor) -> Tensor:
        """Logits of what `pooled` gives, (batch, n)."""
        return self.readout(self.core.firing_rates(x) if self.readout_input == "rate" else x)


def normal_(layer: nn.Linear, std: float, generator: torch.Generator | None) -> None:
    """N(0, std^2) weights and bias, as the papers initialise encoder and readout."""
    nn.init.normal_(layer.weight, std=std, generator=generator)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=std, generator=generator)
