"""`Layer`: one layer of a `Stack`, a field between static maps of a sample, and what is proven of it.

    v = norm(s),   x+ = step of a field driven by B v,   s <- s + scale mix(phi(C x+ + d o v))

The columns of B are scaled by sqrt((1 + a) / (1 - a)), a = e^{-dt / tau}: white noise in then gives slow
and fast units states of one size.

Source: THEORY section 11.
"""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrnn_assembly.activations import ACTIVATIONS, Activation, activation
from ctrnn_assembly.calls import Outputs
from ctrnn_assembly.certificates.arithmetic import of_products
from ctrnn_assembly.certificates.cascade import LayerBound, entering, leaving, norm_bound
from ctrnn_assembly.certificates.certify import Search, certify
from ctrnn_assembly.certificates.dissipation import LayerSystem
from ctrnn_assembly.certificates.result import Certificate, StepCertificate
from ctrnn_assembly.certificates.rounding import spectral_norm
from ctrnn_assembly.certificates.selective import SelectivePairs
from ctrnn_assembly.errors import ConfigError, check_known
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.pairs import Pairs, StepGate
from ctrnn_assembly.recurrent import is_unchanged
from ctrnn_assembly.schemes import SCHEMES, step_pair
from ctrnn_assembly.solvers import pairs, solve
from ctrnn_assembly.solvers.grid import overflow, step_grid
from ctrnn_assembly.solvers.layer import CompiledLayer
from ctrnn_assembly.subnetwork import Field
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import holds, transformed

Norm = Literal["batch", "layer", "rms", "none"]
Mix = Literal["linear", "glu", "tanh-glu", "mlp"]
LARGE = 2**16  # numbers in a batch, from which on a compiled layer is worth its compilation
DENSE_SYSTEM = 384  # above this size, 2 (units + width), a Riccati equation takes too long


class SequenceNorm(nn.Module):
    """Over batch and valid time ("batch", as `nn.BatchNorm1d`), or the width of a sample; or "none"."""

    def __init__(self, kind: Norm, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_known("norm", kind, get_args(Norm))
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
        valid = valid if self.training else None
        rows = s.reshape(-1, s.shape[-1]) if valid is None else s[valid]
        of = self.mean, self.var, self.weight, self.bias
        v = F.batch_norm(rows, *of, self.training and len(rows) > 1, 0.1, self.eps)
        return v.view_as(s) if valid is None else torch.zeros_like(s).masked_scatter(valid[..., None], v)

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
        check_known("mix", kind, get_args(Mix))
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
        inner = norm_bound(self.inner.weight)
        if self.outer is not None:
            return inner * activation("gelu").g * norm_bound(self.outer.weight)
        return inner if self.kind in ("linear", "tanh-glu") else torch.inf


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

    def drive(self, v: Tensor, tau: Tensor, dt: float) -> Tensor:
        """B v, times sqrt((1 + a) / (1 - a)) unit by unit, a = e^{-dt / tau}."""
        return self.B(v) * torch.tanh(dt / (2 * tau)).rsqrt()

    def _changed(self) -> str:
        """Why no constant of this layer is known, if its parts are not those that it was made with."""
        if self.gate is not None and type(self.field) is not Pairs:
            return f"gates of steps need Pairs; got {type(self.field).__name__}"
        parts: list[Any] = [self, self.norm, self.mix, self.gate, self.B, self.C]
        parts += [self.mix.inner, self.mix.outer, getattr(self.gate, "reader", None)]
        kinds = (Layer, SequenceNorm, Mixer, StepGate, *5 * (nn.Linear,))
        given = [(m, kind) for m, kind in zip(parts, kinds, strict=True) if m is not None]
        wrong = [m for m, kind in given if not is_unchanged(m, kind)]
        if wrong:
            called = f"a {type(wrong[0]).__name__} has hooks or methods of its own"
            return f"{called}, whose Lipschitz constant is not known; remove them"
        if not (isinstance(self.norm.eps, float | int) and self.norm.eps > 0):
            return f"the norm has eps = {self.norm.eps}, which must be a positive number"
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

    def fused(self, s: Tensor, v: Tensor, x0: Tensor, dt: float, solver: str) -> Outputs | None:
        """As `drive`, solver and `out`, compiled; None where it cannot be, or is not worth it."""
        terms, gate = self.field.terms(), {"tanh-glu": "tanh", "glu": "identity"}.get(self.mix.kind, "")
        if self.gate is not None or self._changed() or transformed() or torch.is_autocast_enabled("cpu"):
            return None
        known = gate in ACTIVATIONS and pairs.is_known(self.phi) and self.B.bias is None
        known = known and terms.W_in is None and solver in SCHEMES and s.numel() >= LARGE
        if not (known and pairs.is_paired(terms, x0) and s.dtype == x0.dtype == terms.tau.dtype):
            return None
        B = self.B.weight * torch.tanh(dt / (2 * terms.tau)).rsqrt()[:, None]
        return CompiledLayer.apply(
            (terms.pre.runs[0][0], self.phi, ACTIVATIONS[gate]), s, self.scale * self.mask(s), x0, v,
            *pairs.weights(SCHEMES[solver], terms, torch.tensor([dt], dtype=s.dtype)), B.mT, terms.bias,
            self.C.weight.mT, self.C.bias, self.d, self.mix.inner.weight.mT, self.mix.inner.bias,
        )  # fmt: skip

    def gated(self, drive: Tensor, v: Tensor, z: Tensor, dt: float | Tensor, **options: Any) -> Outputs:
        """The states under the gate, (batch, time, n), and the last ones; options of `solve`."""
        assert self.gate is not None
        terms, speed = self.field.terms(), self.gate(v)
        n, lengths, substeps = self.field.size, options["lengths"], options["substeps"]
        if options["solver"] != "exponential-euler":
            given = torch.cat([drive, speed.repeat_interleave(2, -1)], -1)
            done = solve(lambda t, x, u: u[:, n:] * terms(x, u[:, :n]), z, u=given, dt=dt, **options)
            return done.x[:, 1:], done.last
        times, steps = step_grid(z, None, drive, dt)
        h = speed * steps.mT[..., None] / substeps
        if lengths is not None:  # a step of length 0 leaves the state alone
            h = h * (torch.arange(h.shape[1], device=h.device) < lengths[:, None])[..., None]
        h, drive = (part.to(z).repeat_interleave(substeps, 1) for part in (h, drive))
        with torch.autocast(z.device.type, enabled=False):
            states = pairs.selective(terms, z, drive, h)[:, ::substeps]
        if not holds(states[:, -1].isfinite()):
            raise overflow(states, times, "exponential-euler")
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
        """For `certify_cascade`, of a step of dt; with a gate, of inputs up to `largest`, (width,)."""
        search = search if self.gate is None else "none"  # the bounds of gates are in the pairs' own
        found = certify(self.field, dt=dt, solver=solver, search=search)
        why, matrix = self._unproven(found, largest), found.metric.matrix
        if why or matrix is None:
            return LayerBound(found, why)
        if not self.phi.proven:
            found = replace(found, declared=tuple(sorted({*found.declared, self.phi.name})))
        terms, drive_dt = self.field.terms().detach_cpu().double(), drive_dt or dt
        metric, slopes = matrix.detach_cpu().mapped(Tensor.double), self.norm.slopes()
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
        if why := self._changed():
            return why
        if self.norm.kind == "batch" and self.norm.training:
            return "batch norm in training mode couples the samples of a batch; call eval()"
        if self.training and self.dropout:
            return "dropout in training mode gives two states different masks; call eval()"
        if not finite(self):
            return "a weight or statistic is NaN or not finite; retrain or use an intact copy"
        if (kind := of_products(self.d)) != "full" and not pairs.is_paired(self.field.terms(), self.d):
            return f"products rounded to {kind} may keep states apart; use float64, or Pairs on a CPU"
        if self.mix.lipschitz() == torch.inf:
            return "the mix glu has no Lipschitz constant, as a is not bounded; use tanh-glu"
        if found.metric.matrix is None:
            return "; ".join(found.reasons)
        if self.gate is not None and self.mix.kind != "tanh-glu":
            return f"the mix {self.mix.kind} has no bound, and gates need bounded inputs; use tanh-glu"
        bounded = largest is not None and self.B.bias is None and found.metric.origin == "given"
        if self.gate is not None and not bounded:
            return "gates need inputs whose bound is given, B without bias, and M = I; use `bounds`"
        return ""

    def _system(
        self, terms: Terms, metric: Metric, pair: tuple[Tensor, Tensor], W_in: Tensor, around: Tensor
    ) -> LayerSystem:
        """Its matrices in the metric's coordinates; slopes commute with a diagonal metric."""
        theta = metric.scaled(terms.tau.sqrt()).theta().diagonal()  # its stored inverse is not trusted
        A, C = (theta[:, None] * (torch.diag(M) if M.ndim == 1 else M) for M in pair)
        mix, exact = self.mix, self.mix.kind in ("linear", "tanh-glu")
        W = mix.inner.weight.cpu() if exact else torch.eye(len(around)).double() * mix.lipschitz()
        low, high = zip(*(phi.slope for phi, _ in terms.pre.runs), strict=True)
        return LayerSystem(
            (A / theta).numpy(),
            (C @ terms.weight() / theta).numpy(),
            (C @ W_in).numpy(),
            (self.C.weight.cpu().double() / theta).numpy(),
            torch.diag(around).numpy(),
            (W.double() * abs(self.scale)).numpy(),
            (min(low), max(high)),
            self.phi.slope,
        )

    @torch.no_grad()
    def reach(self, largest: Tensor, dt: float) -> Tensor:
        """How far states of each pair get, (n / 2,), for inputs with |s_i| of at most `largest`."""
        terms = self.field.terms().detach_cpu().double()
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


def finite(net: nn.Module) -> bool:
    return not any(A.is_meta or not A.isfinite().all() for A in (*net.parameters(), *net.buffers()))
