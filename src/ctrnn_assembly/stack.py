"""`Stack`: layers of assemblies, each driven by the one below; one recurrent layer to its user.

    s_0 = W_0 u + b_0
    v = norm(s),   x+ = step of a field driven by B v,   s <- s + scale mix(phi(C x+ + d o v))

A layer's input is held over its sample, so that every solver can take the steps, layer by layer: the
sampled stack. The columns of B are scaled by sqrt((1 + a) / (1 - a)), a = e^{-dt / tau}: white noise in
then gives slow and fast units states of one size. As one field all layers are one equation x' = f(x, u),
each driven by what the states below are now; both agree to first order in the time between samples.

Certificate: `ctrnn_assembly.certificates.cascade`, of evaluation mode, where batch norm is a fixed map.
Source: THEORY section 11.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrnn_assembly.activations import Activation, activation
from ctrnn_assembly.certificates.cascade import LayerBound, certify_cascade
from ctrnn_assembly.certificates.certify import Search, certify
from ctrnn_assembly.certificates.dissipation import LayerSystem
from ctrnn_assembly.certificates.gains import entering, leaving, norm_bound
from ctrnn_assembly.certificates.result import Certificate, StepCertificate
from ctrnn_assembly.certificates.rounding import spectral_norm
from ctrnn_assembly.certificates.selective import SelectivePairs
from ctrnn_assembly.errors import ConfigError, unknown
from ctrnn_assembly.inputs import INTERPOLATIONS, over_samples
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.pairs import Pairs, StepGate
from ctrnn_assembly.recurrent import Dt, InitialState, Lengths, Recurrent, Save, is_plain, is_unchanged
from ctrnn_assembly.schemes import SCHEMES, affine_step, step_pair
from ctrnn_assembly.solvers import check_settings, pairs, solve
from ctrnn_assembly.solvers.grid import freeze, overflow, step_grid
from ctrnn_assembly.subnetwork import Field
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import holds, transformed

Step = Callable[[Tensor, Tensor], Tensor]
Norm = Literal["batch", "layer", "rms", "none"]
Mix = Literal["linear", "glu", "tanh-glu", "mlp"]
DENSE_SYSTEM = 384  # above this size, 2 (units + width), a Riccati equation takes too long


class SequenceNorm(nn.Module):
    """(batch, time, width) normalised: over batch and valid time ("batch"), or the width of a sample.

    "batch" has running statistics for evaluation mode, as `nn.BatchNorm1d`.
    """

    def __init__(self, kind: Norm, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        if kind not in get_args(Norm):
            raise unknown("norm", kind, get_args(Norm))
        self.kind, self.eps = kind, eps
        if kind != "none":
            self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        if kind == "batch":
            self.mean, self.var = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))

    def forward(self, s: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid`, (batch, time), marks the samples that count; all if None."""
        if self.kind == "none":
            return s
        if self.kind == "layer":
            return F.layer_norm(s, s.shape[-1:], self.weight, self.bias, self.eps)
        if self.kind == "rms":
            return F.rms_norm(s, s.shape[-1:], self.weight, self.eps) + self.bias
        if not self.training:
            scale, shift = self.affine(self.mean, self.var)
            return torch.addcmul(shift, s, scale)
        rows = s.flatten(0, -2) if valid is None else s[valid]
        var, mean = torch.var_mean(rows, 0, correction=0)
        scale, shift = self.affine(mean, var, len(rows))
        return torch.addcmul(shift, s, scale)

    def affine(self, mean: Tensor, var: Tensor, count: int = 0) -> tuple[Tensor, Tensor]:
        """Batch norm is s -> scale o s + shift; statistics of `count` samples are tracked."""
        if count:
            with torch.no_grad():
                self.mean.lerp_(mean, 0.1)
                self.var.lerp_(var * count / max(1, count - 1), 0.1)
        scale = self.weight * (var + self.eps).rsqrt()
        return scale, self.bias - mean * scale

    def slopes(self) -> Tensor:
        """(width,) or (1,): in evaluation mode |X (v - v')| <= ||X diag(slopes)|| |s - s'| for any X."""
        if self.kind == "none":
            return torch.ones(1, dtype=torch.float64)
        weight = self.weight.detach().double().cpu()
        if self.kind == "batch":
            return weight * (self.var.double().cpu() + self.eps).rsqrt()
        return weight.abs().max().expand(len(weight)) / self.eps**0.5

    def bound(self, s: Tensor) -> Tensor:
        """Of every |v_i|, (width,), in evaluation mode, for |s_i| of at most s, (width,)."""
        if self.kind == "none":
            return s
        weight, bias = self.weight.double().cpu(), self.bias.double().cpu()
        if self.kind != "batch":
            return weight.abs() * len(weight) ** 0.5 + bias.abs()
        scale = self.slopes()
        return scale.abs() * s + (bias - self.mean.double().cpu() * scale).abs()


class Mixer(nn.Module):
    """A static map of a sample, (..., width) -> (..., width)."""

    def __init__(self, kind: Mix, width: int) -> None:
        super().__init__()
        if kind not in get_args(Mix):
            raise unknown("mix", kind, get_args(Mix))
        self.kind = kind
        self.inner = nn.Linear(width, width if kind in ("linear", "mlp") else 2 * width)
        self.outer = nn.Linear(width, width) if kind == "mlp" else None

    def forward(self, y: Tensor) -> Tensor:
        z = self.inner(y)
        if self.outer is not None:
            return self.outer(F.gelu(z))
        if self.kind == "linear":
            return z
        a, b = z.chunk(2, dim=-1)
        return (torch.tanh(a) if self.kind == "tanh-glu" else a) * torch.sigmoid(b)

    def lipschitz(self) -> float:
        """Holds everywhere: tanh(a) o sigmoid(b) has the constant 1 in (a, b), a o sigmoid(b) none."""
        if self.outer is None and self.kind not in ("linear", "tanh-glu"):
            return torch.inf
        inner = norm_bound(self.inner.weight)
        outer = None if self.outer is None else norm_bound(self.outer.weight)
        return inner if outer is None else inner * activation("gelu").g * outer


class Layer(nn.Module):
    """One layer of a `Stack`: norm -> field -> activation -> mix -> skip."""

    def __init__(
        self,
        width: int,
        field: Field,
        *,
        norm: Norm,
        mix: Mix,
        phi: Activation,
        dropout: float,
        scale: float,
        gate_range: float | None = None,
    ) -> None:
        super().__init__()
        n: int = field.size  # type: ignore[assignment]
        self.norm, self.field, self.mix = SequenceNorm(norm, width), field, Mixer(mix, width)
        self.B, self.C = nn.Linear(width, n, bias=False), nn.Linear(n, width)
        self.d = nn.Parameter(torch.zeros(width))
        self.phi, self.dropout, self.scale = phi, dropout, scale
        if gate_range is not None and type(field) is not Pairs:
            raise ConfigError(f"gates of steps need Pairs; got {type(field).__name__}. Use Pairs(n).")
        self.gate = None if gate_range is None else StepGate(width, n // 2, gate_range)

    def terms(self) -> Terms:
        """The tensors of the field, to be driven by `drive`."""
        if not is_plain(self.field, Field):
            raise ConfigError(
                "solvers read the tensors of a field, and do not call it; got a "
                f"{type(self.field).__name__} with hooks, a pruned tensor or a forward of its own. Hook "
                "the layer, and prune B, C and the mix."
            )
        return self.field.terms()

    def drive(self, v: Tensor, tau: Tensor, dt: float) -> Tensor:
        """B v, times sqrt((1 + a) / (1 - a)) unit by unit, a = e^{-dt / tau}."""
        return self.B(v) * torch.tanh(dt / (2 * tau)).rsqrt()

    def _changed(self) -> str:
        """Why no constant of this layer is known, if its parts are not those that it was made with."""
        parts: list[tuple[nn.Module, type[nn.Module]]] = [
            (self.norm, SequenceNorm), (self.mix, Mixer), (self, Layer),
        ]  # fmt: skip
        linear = [self.mix.inner, self.C, self.B, self.mix.outer]
        if self.gate is not None:
            parts.append((self.gate, StepGate))
            linear.append(self.gate.reader)
            if type(self.field) is not Pairs:
                return f"gates of steps need Pairs; got {type(self.field).__name__}"
        wrong = [part for part, kind in parts if not is_unchanged(part, kind)]
        wrong += [part for part in linear if part is not None and not is_plain(part, nn.Linear)]
        if wrong:
            called = f"a {type(wrong[0]).__name__} has hooks or methods of its own"
            return f"{called}, whose Lipschitz constant is not known; remove them"
        eps = 1.0 if self.norm.kind == "none" else self.norm.eps
        if not (isinstance(eps, float | int) and eps > 0):
            return f"the norm has eps = {eps}, which must be a positive number"
        if not (isinstance(self.phi, Activation) and isinstance(self.scale, float | int)):
            return f"phi must be an Activation and scale a number; got {self.phi!r}, {self.scale!r}"
        return ""

    def out(self, s: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """What the layer passes on, for its input s, v = norm(s) and its new states x."""
        y = self.mix(self.phi(self.C(x) + self.d * v))
        if self.training and self.dropout:
            y = y * self.mask(y).view(len(y), *(1,) * (y.ndim - 2), -1)
        return s + self.scale * y

    def mask(self, y: Tensor) -> Tensor:
        """Of dropout, (batch, width), one for all times of a sequence."""
        return F.dropout(y.new_ones(len(y), y.shape[-1]), self.dropout, self.training)

    def fused(self, s: Tensor, x0: Tensor, dt: float, solver: str) -> tuple[Tensor, Tensor] | None:
        """As `drive`, solver and `out`, an affine norm folded into B, C and d; None where it cannot be.

        Fewer passes over (batch, time, width), which cost more than the recurrence.
        """
        terms = self.terms()
        if not self._is_fusible(terms, x0, solver):
            return None
        scale, shift = torch.ones_like(self.d), torch.zeros_like(self.d)
        if self.norm.kind == "batch" and self.norm.training:
            var, mean = torch.var_mean(s, (0, 1), correction=0)
            scale, shift = self.norm.affine(mean, var, s.shape[0] * s.shape[1])
        elif self.norm.kind == "batch":
            scale, shift = self.norm.affine(self.norm.mean, self.norm.var)
        B = self.B.weight * torch.tanh(dt / (2 * terms.tau)).rsqrt()[:, None]
        e = F.linear(s, B * scale, terms.bias + B @ shift)
        x = pairs.states(SCHEMES[solver], terms, x0, e, torch.tensor([[dt]], dtype=s.dtype))
        z = F.linear(x[:, 1:], self.C.weight, self.C.bias + self.d * shift)
        y = self.mix(self.phi(torch.addcmul(z, self.d * scale, s)))
        return torch.addcmul(s, self.scale * self.mask(s)[:, None], y), x[:, -1]

    def _is_fusible(self, terms: Terms, x0: Tensor, solver: str) -> bool:
        if self.gate is not None or self._changed() or transformed() or torch.is_autocast_enabled("cpu"):
            return False
        affine = self.norm.kind in ("batch", "none") and self.B.bias is None
        known = affine and terms.W_in is None and solver in SCHEMES and x0.dtype == terms.tau.dtype
        return known and pairs.is_paired(terms, x0)

    def gated(
        self, drive: Tensor, v: Tensor, z: Tensor, dt: float | Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """The states under the gate, (batch, time, n), and the last ones; options of `solve`."""
        assert self.gate is not None
        terms, speed = self.terms(), self.gate(v)
        n, lengths, substeps = self.field.size, options["lengths"], options["substeps"]
        if options["solver"] != "exponential-euler":
            given = torch.cat([drive, speed.repeat_interleave(2, -1)], -1)

            def flow(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
                return u[:, n:] * terms(x, u[:, :n])

            done = solve(flow, z, u=given, dt=dt, **options)
            return done.x[:, 1:], done.last
        times, steps = step_grid(z, None, drive, dt, lengths)
        h = speed * steps.mT[..., None] / substeps
        if lengths is not None:  # a step of length 0 leaves the state alone
            h = h * (torch.arange(h.shape[1], device=h.device) < lengths[:, None])[..., None]
        h, drive = (part.to(z).repeat_interleave(substeps, 1) for part in (h, drive))
        with torch.autocast(z.device.type, enabled=False):
            states = pairs.selective(terms, z, drive, h)[:, ::substeps]
        if not holds(states[:, -1].isfinite()):
            raise overflow(states.transpose(0, 1), times, "exponential-euler")
        return states[:, 1:], states[:, -1]

    @torch.no_grad()
    def bound(
        self,
        dt: float,
        solver: str,
        search: Search = "fast",
        *,
        drive_dt: float | None = None,
        largest: Tensor | None = None,
    ) -> LayerBound:
        """Its factor and gains for `certify_cascade`, of a step of dt; drive_dt is that of `drive`.

        With a gate for inputs with |s_i| of at most `largest`, (width,), and states within `reach`.
        """
        search = search if self.gate is None else "none"  # the bounds of gates are in the pairs' own
        found = certify(self.field, dt=dt, solver=solver, search=search)
        why = self._unproven(found, largest)
        if why or found.metric.matrix is None:
            return LayerBound(found, why)
        if not self.phi.proven:
            found = replace(found, declared=tuple(sorted({*found.declared, self.phi.name})))
        terms, drive_dt = self.terms().detach_cpu().double(), drive_dt or dt
        metric, slopes = found.metric.matrix.detach_cpu().mapped(Tensor.double), self.norm.slopes()
        mix, W_in = self.mix.lipschitz() * abs(self.scale), self._entering(terms, drive_dt) * slopes
        around = self.d.cpu().double() * slopes
        gains: Any = {"passed": 1.0 + mix * self.phi.g * float(around.abs().max())}
        gains["output_gain"] = mix * self.phi.g * spectral_norm(*leaving(terms, metric, self.C.weight))
        if self.gate is not None and largest is not None:
            of, root = self._selective(terms, dt), terms.tau[::2].sqrt()
            moved = root * of.speed(self._driven(terms, drive_dt, largest)) * (dt * self.gate.slope)
            entered = (root * of.response).repeat_interleave(2)[:, None] * W_in
            reads = moved[:, None] * self.gate.reader.weight.cpu().double() * slopes
            gains["input_gain"] = norm_bound(entered) + norm_bound(reads)
            return LayerBound(self._slowed(found, of, dt, solver), **gains)
        # Of a solver without a proof the step is refused, whatever the gains are.
        scheme = SCHEMES.get(solver, SCHEMES["exponential-euler"])
        pair = step_pair(scheme, terms, terms.tau.new_tensor(dt))
        gains["input_gain"] = entering(terms, metric, pair[1], W_in)
        gains["flow_gain"] = entering(terms, metric, 1 / terms.tau, W_in)
        diagonal = terms.post.is_identity and not terms.edges and metric.is_diagonal
        if diagonal and search != "none" and 2 * (len(self.d) + terms.n) <= DENSE_SYSTEM:
            gains["system"] = self._system(terms, metric, pair, W_in, around)
        return LayerBound(found, **gains)

    def _unproven(self, found: Certificate, largest: Tensor | None) -> str:
        """Why the layer has no bound, or nothing."""
        if why := self._changed():
            return why
        if self.norm.kind == "batch" and self.norm.training:
            return "batch norm in training mode couples the samples of a batch; call eval()"
        if self.training and self.dropout:
            return "dropout in training mode gives two states different masks; call eval()"
        if not finite(self):
            return "a weight or statistic is NaN or not finite; retrain or use an intact copy"
        if self.mix.lipschitz() == torch.inf:
            return "the mix glu has no Lipschitz constant, as a is not bounded; use tanh-glu"
        if found.metric.matrix is None:
            return "; ".join(found.reasons)
        if self.gate is not None and self.mix.kind != "tanh-glu":
            return f"the mix {self.mix.kind} has no bound, and gates need bounded inputs; use tanh-glu"
        if self.gate is not None and (largest is None or found.metric.origin != "given"):
            return "gates need inputs whose bound is given, and M = I; use the stack's `bounds`"
        return ""

    def _system(
        self, terms: Terms, metric: Metric, pair: tuple[Tensor, Tensor], W_in: Tensor, around: Tensor
    ) -> LayerSystem:
        """Its matrices in the metric's coordinates; slopes commute with a diagonal metric."""
        inverse = metric.scaled(terms.tau.sqrt()).inverse()
        A, C = (inverse.left_divide(torch.diag(M) if M.ndim == 1 else M) for M in pair)
        exact = self.mix.kind in ("linear", "tanh-glu")
        W = self.mix.inner.weight.cpu() if exact else torch.eye(len(self.d)) * self.mix.lipschitz()
        low, high = zip(*(phi.slope for phi, _ in terms.pre.runs), strict=True)
        return LayerSystem(
            inverse.right_multiply(A).numpy(),
            inverse.right_multiply(C @ terms.weight()).numpy(),
            (C @ W_in).numpy(),
            inverse.right_multiply(self.C.weight.cpu().double()).numpy(),
            torch.diag(around).numpy(),
            (W.double() * abs(self.scale)).numpy(),
            (min(low), max(high)),
            self.phi.slope,
        )

    @torch.no_grad()
    def reach(self, largest: Tensor, dt: float) -> Tensor:
        """How far states of each pair get, (n / 2,), for inputs with |s_i| of at most `largest`."""
        terms = self.terms().detach_cpu().double()
        return self._selective(terms, dt).reach(self._driven(terms, dt, largest))

    def _entering(self, terms: Terms, dt: float) -> Tensor:
        """The matrix of `drive`, (n, width), in float64."""
        return self.B.weight.cpu().double() * torch.tanh(dt / (2 * terms.tau)).rsqrt()[:, None]

    def _driven(self, terms: Terms, dt: float, largest: Tensor) -> Tensor:
        """The largest drive of each pair, (n / 2,)."""
        return (self._entering(terms, dt).abs() @ self.norm.bound(largest)).view(-1, 2).norm(dim=1)

    def _selective(self, terms: Terms, dt: float) -> SelectivePairs:
        assert self.gate is not None
        (alpha, omega), w = pairs.rates(terms), torch.cat(terms.blocks)
        low, high = (dt * bound for bound in self.gate.bounds)
        return SelectivePairs(alpha, omega, w.view(-1, 2), terms.pre.runs[0][0], low, high)

    def _slowed(self, found: Certificate, of: SelectivePairs, dt: float, solver: str) -> Certificate:
        """The field's certificate under the gate, for every gate within its bounds."""
        assert self.gate is not None
        step = StepCertificate(solver, dt, True, of.factor, torch.inf)
        if solver != "exponential-euler":
            step = StepCertificate.refused(solver, dt, f"no proof is known for gated steps of {solver}")
        elif not of.factor < 1:
            step = StepCertificate.refused(solver, dt, "a gated pair's factor is not below 1 in float64")
        return replace(found, rate=found.rate * self.gate.bounds[0], step=step)


class Stack(Recurrent):
    """output, h_n = net(input, h_0): `depth` layers, each a field of its own; see the module.

    Args:
        input_size, batch_first, initial_state: as in `Recurrent`; the output has `width` features.
        fields: the field of each layer, from below.
        norm: "batch", "layer", "rms" or "none".
        mix: "linear", "glu", "tanh-glu" or "mlp".
        phi: the activation before the mix.
        dropout: share of a layer's output features that a training sequence loses, at all times.
        scale: of every layer's output before it is added.
        gate_range: r, for step lengths in [dt / r, dt r] of single pairs, by a `StepGate` of v; all
            fields are then `Pairs`, and any solver but imex is theirs; exponential-euler has a proof.
        input_range: the largest |u| that a certificate with gates speaks of.
        dt, substeps, solver: as in `CTRNN`; a layer's input is held over all substeps of a sample.
        one_field: whether all layers are one equation, x' = `flow(u)(x)`, for every solver; `drive`
            keeps the net's own dt. In a step of a grid solver states then feed upward as they were
            before it; in training mode there is neither batch norm nor dropout.
        interpolation: as in `CTRNN`, of one field.

    States of all layers stand side by side, from below: (batch, state_size); `split` takes them apart.

    Guarantee: see `certificate`.
    """

    output_is_state = False
    traceable = False  # as a whole sequence; the step is

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
        interpolation: Literal["hold", "linear", "cubic"] = "hold",
        initial_state: InitialState = "zero",
    ) -> None:
        if not isinstance(fields, list | tuple | nn.ModuleList) or not len(fields):
            got = type(fields).__name__ if isinstance(fields, nn.Module) else repr(fields)
            raise ConfigError(
                f"fields must be a list of at least one field; got {got:.60}. Use [field]."
            )
        if wrong := [one for one in fields if not isinstance(one, Field | Recurrent)]:
            raise ConfigError(
                f"each layer must be a field, such as Pairs(64); got {type(wrong[0]).__name__}."
            )
        sizes = [getattr(field, "state_size", field.size) for field in fields]
        start: dict[str, Any] = {"initial_state": initial_state, "state_size": sum(sizes)}
        super().__init__(input_size, width, batch_first=batch_first, **start)
        if not 0 <= dropout < 1 or not 0 < dt < float("inf"):
            raise ConfigError(f"dropout must be in [0, 1), dt positive; got {dropout} and {dt}.")
        check_settings(solver, None, substeps)
        if gate_range is not None and (one_field or solver == "imex"):
            got = f"{solver!r}, one_field={one_field}"
            raise ConfigError(f"gated pairs step by exponential-euler, layer by layer; got {got}.")
        if not 0 < input_range < float("inf"):
            raise ConfigError(f"input_range must be positive and finite; got {input_range}. Use 3.0.")
        self.input_range = input_range
        if interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", interpolation, INTERPOLATIONS)
        if interpolation != "hold" and (solver in SCHEMES or not one_field):
            raise ConfigError(
                f"interpolation={interpolation!r} is of one field and torchdiffeq's solvers; got "
                f"{solver!r}, one_field={one_field}. Use solver='dopri5' and one_field=True."
            )
        self.dt, self.substeps, self.solver = dt, substeps, solver
        self.one_field, self.interpolation = one_field, interpolation
        parts: dict[str, Any] = {"norm": norm, "mix": mix, "phi": activation(phi)}
        parts["gate_range"] = gate_range
        self.layers = nn.ModuleList(
            Layer(width, field, dropout=dropout, scale=scale, **parts) for field in fields
        )
        self.encoder = nn.Linear(input_size, width)  # last: the layers' start depends on no input
        self.layer_sizes = tuple(sizes)

    def certificate(
        self, *, dt: float | None = None, solver: str | None = None, search: Search = "fast"
    ) -> Certificate:
        """What is proven of the whole net in evaluation mode, and of its step of samples dt apart.

        A call with another dt takes another step: `certificate(dt=...)` is of that one.
        """
        dt, solver = self.dt if dt is None else dt, solver or self.solver
        reason = ""
        if not is_unchanged(self, Stack):
            reason = f"a {type(self).__name__} has hooks or methods of its own; remove them"
        elif not finite(self.encoder):
            reason = "a weight of the encoder is NaN or infinite; retrain or use an intact copy"
        if reason:
            return Certificate.refused(reason, dt=dt, solver=solver)
        plain = is_plain(self.encoder, nn.Linear)
        if self.gated and not plain:
            reason = "the encoder is no plain nn.Linear: it has no bound, and gates need bounded inputs"
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
        boxes = self._boxes() if self.gated else [None] * len(self._layers)
        parts = zip(self._layers, boxes, strict=True)
        layers = [one.bound(dt / self.substeps, solver, search, largest=s, **given) for one, s in parts]
        # A system is of one step of the sampled stack with the drive of its own dt.
        usual = dt == self.dt and self.substeps == 1 and not self.one_field
        return layers if usual else [replace(layer, system=None) for layer in layers]

    @property
    def claim(self) -> str:
        """What inputs and states a certificate with gates speaks of."""
        return f"inputs |u| <= {self.input_range:g} and initial states within what these can reach"

    @property
    def gated(self) -> bool:
        """Whether pairs have steps that read the input, so that the certificate has a `claim`."""
        return any(layer.gate is not None for layer in self._layers)

    @torch.no_grad()
    def _boxes(self) -> list[Tensor]:
        """The largest |s_i| that enters each layer, (width,): the encoder's, and 1 a tanh-glu below."""
        top = self.encoder.weight.double().cpu().abs().sum(1) * self.input_range
        if self.encoder.bias is not None:
            top = top + self.encoder.bias.double().cpu().abs()
        added = [abs(layer.scale) for layer in self._layers]
        return [top + sum(added[:k]) for k in range(len(added))]

    def _radii(self) -> list[Tensor | None]:
        """Of each gated layer, how far its pairs get under inputs |u| <= input_range, (n / 2,)."""
        parts = zip(self._layers, self._boxes(), strict=True)
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

    @property
    def step_size(self) -> float:
        """The length of one step of the solver, dt / substeps."""
        return self.dt / self.substeps

    def firing_rates(self, x: Tensor) -> Tensor:
        """The output itself."""
        return x

    @torch.no_grad()
    def project_(self) -> None:
        """As `Subnetwork.project_`."""
        for layer in self._layers:
            layer.field.project_()

    @property
    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def split(self, h: Tensor) -> tuple[Tensor, ...]:
        """The states of each layer, (..., n_l), of h (..., state_size); a call takes both as h_0."""
        return h.split(self.layer_sizes, dim=-1)

    def flow(self, u: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """f with f(x) = x', both (batch, state_size), of all layers as one field, under u (batch, m)."""
        sample, f = self._like.new_zeros(1, self.input_size) if u is None else u, self._field()
        return lambda x: f(sample, x)

    def _field(self) -> Step:
        """(u, x) -> x' of all layers, with their tensors made once."""
        self._check_fixed()
        layers, fields = self._layers, [layer.terms() for layer in self._layers]

        def f(u: Tensor, x: Tensor) -> Tensor:
            s, slopes = self.encoder(u), []
            for layer, terms, z in zip(layers, fields, self.split(x), strict=True):
                v = layer.norm(s)
                slope = terms(z, layer.drive(v, terms.tau, self.dt))
                slopes.append(
                    slope if layer.gate is None else slope * layer.gate(v).repeat_interleave(2, -1)
                )
                s = layer.out(s, v, z)
            return torch.cat(slopes, dim=-1)

        return f

    def _check_fixed(self) -> None:
        batch = any(layer.norm.kind == "batch" for layer in self._layers)
        if self.training and (batch or any(layer.dropout for layer in self._layers)):
            raise ConfigError(
                "one field needs fixed maps between its layers; got batch norm or dropout in training "
                "mode. Call eval(), or train with one_field=False."
            )

    def stepper(self) -> Step:
        if self.one_field:
            self._check_fixed()
            if self.solver not in SCHEMES:
                return lambda u, x: self._run(u[:, None], x, None, None, "last")[1]
        layers, watch = self._layers, self._watch()
        moves = [self._mover(layer) for layer in layers]

        def step(u: Tensor, x: Tensor) -> Tensor:
            watch(u, x)
            s, new = self.encoder(u), []
            for layer, move, z in zip(layers, moves, self.split(x), strict=True):
                v = layer.norm(s)
                new.append(move(z, v))
                fed = z if self.one_field else new[-1]
                s = layer.out(s, v, fed[:, : layer.field.size])
            return torch.cat(new, dim=-1)

        return _repeated(step, self.substeps) if self.one_field else step

    def _mover(self, layer: Layer) -> Step:
        """(z, v) -> z+ of one layer, with its matrices built once."""
        if self.solver not in SCHEMES or layer.gate is not None:
            return lambda z, v: self._states(layer, v[:, None], z, None, None)[1]
        terms = layer.terms()
        move = affine_step(SCHEMES[self.solver], terms, self.step_size)
        moves = _repeated(lambda drive, z: move(z, drive), 1 if self.one_field else self.substeps)
        return lambda z, v: moves(layer.drive(v, terms.tau, self.dt), z)

    def _fused(self, layer: Layer, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """What one layer passes on and its last state, by `Layer.fused` where that can run."""
        return layer.fused(s, z, self.dt, self.solver)

    def _states(
        self, layer: Layer, v: Tensor, z: Tensor, lengths: Lengths, dt: Dt
    ) -> tuple[Tensor, Tensor]:
        """The states of one layer after each sample, (batch, time, n), and its last."""
        terms = layer.terms()
        drive, step = layer.drive(v, terms.tau, self.dt), self.dt if dt is None else dt
        options: Any = {"solver": self.solver, "lengths": lengths}
        options["substeps"] = 1 if self.one_field else self.substeps
        if layer.gate is not None:
            return layer.gated(drive, v, z, step, **options)
        done = solve(terms, z, u=drive, dt=step, **options)
        return done.x[:, 1:], done.last

    def _run(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt, save: Save) -> tuple[Tensor, Tensor]:
        if self.one_field:
            states = self._as_one(u, x, lengths, dt)
            ends, s = [states[:, -1]], self.encoder(u)
            for layer, z in zip(self._layers, self.split(states[:, 1:]), strict=True):
                s = layer.out(s, layer.norm(s), z)
        else:
            s, ends = self._layer_by_layer(u, x, lengths, dt)
        s = s if lengths is None else freeze(s.transpose(0, 1), lengths - 1).transpose(0, 1)
        return s, torch.cat(ends, dim=-1)

    def _layer_by_layer(
        self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt
    ) -> tuple[Tensor, list[Tensor]]:
        """The outputs, (batch, time, width), and the last state of each layer."""
        self._watch()(u, x)
        s, last = self.encoder(u), []
        valid = None if lengths is None else torch.arange(u.shape[1], device=u.device) < lengths[:, None]
        usual = lengths is None and dt is None and self.substeps == 1
        for layer, z in zip(self._layers, self.split(x), strict=True):
            found = self._fused(layer, s, z) if usual else None
            if found is not None and holds(found[1].isfinite()):
                s = found[0]
                last.append(found[1])
                continue
            v = layer.norm(s, valid)
            states, end = self._states(layer, v, z, lengths, dt)
            last.append(end)
            s = layer.out(s, v, states)
        return s, last

    def _as_one(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt) -> Tensor:
        """As one field, before the first sample and after each, (batch, time + 1, state_size)."""
        self._check_fixed()
        n, step = self.substeps, self.dt if dt is None else dt
        if self.solver not in SCHEMES:
            f, given = self._field(), over_samples(u, step, lengths, self.interpolation)
            options: Any = {"solver": self.solver, "substeps": n, "lengths": lengths}
            return solve(lambda t, x, u: f(u, x), x, **given, **options).x
        # What a layer reads is known before it moves, so that here too one may follow the other.
        u, lengths = u.repeat_interleave(n, 1), None if lengths is None else n * lengths
        if isinstance(step, Tensor) and step.ndim:
            step = step.repeat_interleave(n, -1)
        step = step / n
        s, found = self.encoder(u), []
        for layer, z in zip(self._layers, self.split(x), strict=True):
            v = layer.norm(s)
            states = torch.cat([z[:, None], self._states(layer, v, z, lengths, step)[0]], 1)
            found.append(states[:, ::n])
            s = layer.out(s, v, states[:, :-1])
        return torch.cat(found, dim=-1)


def _repeated(step: Step, times: int) -> Step:
    """(u, x) -> x after so many steps under one u."""

    def steps(u: Tensor, x: Tensor) -> Tensor:
        for _ in range(times):
            x = step(u, x)
        return x

    return step if times == 1 else steps


def finite(module: nn.Module) -> bool:
    """Whether every parameter and buffer is."""
    return all(bool(A.isfinite().all()) for A in (*module.parameters(), *module.buffers()))
