"""Gated time scales: units whose speed nu is learned, or follows the input, or the state as well.

    v' = nu o F(v, u),    F = -v + W phi(v) + L v + W_in u + b,    nu = lo + (hi - lo) sigmoid(z)

| gate | z | certificate (`certificates.gates`) |
|---|---|---|
| constant | a, one for each unit | as with tau = 1 / nu |
| shared | g.u + c, one for all units | rate lo lam |
| input | G u + c | if (hi - lo) omega < 2 lo lam, for AdaDiag's modules |
| state | G u + c + d o v, as published | none |

omega = ||L|| and lam is the rate at nu = 1, so certified input gates need hi close to lo, weak coupling,
or fast modules. The published bounds, lo = 1e-5 and hi = 0.2 with dt = 1 and "state", can diverge
under a bounded input although each gate of theirs, held constant, is stable.

One step of forward Euler a sample: constant gates are time constants 1 / nu of the fused solver, others
are a plain loop under autograd.

Source: AdaDiag 2026 (gates "input and state", v + nu o F); corrections E14 and section 3 of THEORY.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from ctrnn_assembly.assembly import Assembly
from ctrnn_assembly.certificates.gates import Gate, certify_gated
from ctrnn_assembly.certificates.result import Certificate
from ctrnn_assembly.errors import ConfigError, ShapeError
from ctrnn_assembly.inputs import Signal
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.solvers.euler_adjoint import euler_adjoint
from ctrnn_assembly.solvers.grid import check_input, check_state, freeze, step_grid
from ctrnn_assembly.subnetwork import Subnetwork
from ctrnn_assembly.terms import Terms


class Gates(nn.Module):
    """nu in [lo, hi], in two parts: what the input says (`read`), and the gates themselves.

    Args:
        kind: one of the module's table.
        input_size: m.
        metric: of the field; a constant gate is one number for each unit, or for each module whose
            metric is dense, with which different gates do not commute.
        lo, hi: bounds, 0 < lo <= hi, per unit of time.
    """

    index: Tensor

    def __init__(
        self,
        kind: Gate,
        input_size: int,
        metric: Metric,
        *,
        lo: float,
        hi: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.lo, self.hi = kind, lo, hi
        if kind == "constant":
            own = [f.is_diagonal or k == 0 for f in metric.factors for k in range(f.size)]
            self.register_buffer("index", torch.tensor(own).cumsum(0) - 1, persistent=False)
            self.constant = nn.Parameter(torch.zeros(sum(own)))
            return
        self.reader = nn.Linear(input_size, 1 if kind == "shared" else metric.size)
        for parameter in self.reader.parameters():  # as nn.Linear does, from the given generator
            nn.init.uniform_(parameter, -(input_size**-0.5), input_size**-0.5, generator=generator)
        if kind == "state":
            self.state = nn.Parameter(torch.zeros(metric.size))

    def read(self, u: Tensor) -> Tensor:
        """z without the state, (..., n) or (..., 1), for u (..., m)."""
        if self.kind == "constant":
            return self.constant[self.index].expand(*u.shape[:-1], -1)
        return self.reader(u)

    def forward(self, z: Tensor, v: Tensor) -> Tensor:
        """nu, (batch, n) or (batch, 1), for z of `read` and the state v (batch, n)."""
        if self.kind == "state":
            z = z + self.state * v
        return self.lo + (self.hi - self.lo) * torch.sigmoid(z)

    def constants(self) -> Tensor | None:
        """nu of constant gates, (n,); None for the others."""
        if self.kind != "constant":
            return None
        return self.lo + (self.hi - self.lo) * torch.sigmoid(self.constant[self.index])

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.lo} <= nu <= {self.hi}"


class GatedCTRNN(nn.Module):
    """output, h_n = net(input, h_0): v+ = v + dt nu o F(v, u), called like `CTRNN` and `nn.RNN`.

    Args:
        input_size: features of a sample, m.
        field: a `Subnetwork` or `Assembly` of n units with tau = 1: the gates are its time constants.
        gate: "constant", "shared", "input" or "state".
        lo, hi: bounds of nu, 0 < lo <= hi; as published 1e-5 and 0.2.
        batch_first: whether input and output are (batch, time, .) instead of (time, batch, .).
        dt: step a sample; as published 1.
        bias: whether the encoder has a bias; that of the gates always is there.

    Raises:
        ConfigError: if a setting is impossible. ShapeError, DataError: for wrong inputs.

    Guarantee: that of `certificate`, and no other: constant and shared gates contract in continuous
    time if the field does, input gates if the bound holds, gates of the state are not known to.
    """

    def __init__(
        self,
        input_size: int,
        field: Subnetwork | Assembly,
        *,
        gate: Gate = "constant",
        lo: float = 0.1,
        hi: float = 0.2,
        batch_first: bool = False,
        dt: float = 1.0,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if gate not in get_args(Gate):
            raise ConfigError(f"gate must be one of {', '.join(get_args(Gate))}; got {gate!r}.")
        if not 0 < lo <= hi < float("inf"):
            raise ConfigError(f"gates need 0 < lo <= hi, finite; got lo={lo}, hi={hi}.")
        if not 0 < dt < float("inf"):
            raise ConfigError(f"dt must be positive and finite; got {dt}. Use dt=1.")
        if not bool((field.tau == 1).all()):
            raise ConfigError("a gated field needs tau = 1, its time constant is 1 / nu; set lo and hi.")
        self.input_size, self.hidden_size, self.batch_first = input_size, field.size, batch_first
        self.dt = dt
        self.field = field
        self.encoder = nn.Linear(input_size, field.size, bias=bias)
        for parameter in self.encoder.parameters():
            nn.init.normal_(parameter, std=field.size**-0.5, generator=generator)
        self.gates = Gates(gate, input_size, field.metric(), lo=lo, hi=hi, generator=generator)

    def forward(
        self,
        input: Tensor,
        h_0: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        dt: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All states and the last one.

        Args:
            input: (time, batch, m), or (batch, time, m) with batch_first.
            h_0: initial state, (1, batch, n); zero if None.
            lengths: valid steps of each sample, (batch,); the state stays from there on.
            dt: instead of the layer's dt: a number, (time,) or (batch, time).

        Returns:
            output (time, batch, n) or (batch, time, n), the state after each sample; h_n (1, batch, n).
        """
        if input.ndim != 3 or input.shape[2] != self.input_size or 0 in input.shape:
            order = "(batch, time, m)" if self.batch_first else "(time, batch, m)"
            raise ShapeError(
                f"input must be {order} with m = {self.input_size}, none of them 0; got "
                f"{tuple(input.shape)}."
            )
        u = input if self.batch_first else input.transpose(0, 1)
        if h_0 is None:
            h_0 = self.encoder.weight.new_zeros(1, len(u), self.hidden_size)
        if h_0.shape != (1, len(u), self.hidden_size):
            raise ShapeError(f"h_0 must be (1, {len(u)}, {self.hidden_size}); got {tuple(h_0.shape)}.")
        states = self._states(u, h_0[0], lengths, self.dt if dt is None else dt)
        output = states[1:].transpose(0, 1) if self.batch_first else states[1:]
        return output, states[-1:]

    def last(self, input: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The last valid state, (batch, n), from a zero state; `input` as in `forward`."""
        return self(input, lengths=lengths)[1][0]

    def step(self, u: Tensor, v: Tensor) -> Tensor:
        """The state one sample later: u (batch, m), v (batch, n) -> (batch, n)."""
        if u.ndim != 2 or u.shape[1] != self.input_size:
            raise ShapeError(f"u must be (batch, {self.input_size}); got {tuple(u.shape)}.")
        return self._states(u[:, None], v, None, self.dt)[1]

    def rates(self, v: Tensor) -> Tensor:
        """The firing rates of states v, (..., n): phi(v) of x-form modules, v of r-form modules."""
        return self.field.activations()[0](v)

    def flow(self, u: Signal) -> Callable[[Tensor, Tensor], Tensor]:
        """f(t, v) under the signal u, for `solve(f, v0, t, method="dopri5")` and other solvers.

        Start a new solve where u jumps (`u.breaks`): a solver of several stages cannot see it.
        """
        terms = self._terms()

        def f(t: Tensor, v: Tensor) -> Tensor:
            sample = u(t).to(v)
            return self.gates(self.gates.read(sample), v) * terms.drift(v, sample)

        return f

    def certificate(self, *, dt: float | None = None) -> Certificate:
        """What is proven of the gated field and its Euler step as the weights are now."""
        return certify_gated(
            self.field.terms(),
            self.field.metric(),
            gate=self.gates.kind,
            lo=self.gates.lo,
            hi=self.gates.hi,
            nu=self.gates.constants(),
            dt=self.dt if dt is None else dt,
        )

    def _terms(self) -> Terms:
        return self.field.terms().driven(self.encoder.weight, self.encoder.bias)

    def _states(self, u: Tensor, v0: Tensor, lengths: Tensor | None, dt: float | Tensor) -> Tensor:
        """(time + 1, batch, n), v0 first, for u (batch, time, m)."""
        with torch.autocast(v0.device.type, enabled=False):
            terms = self._terms()
            check_state(v0, terms)
            check_input(v0, terms, u)
            steps = step_grid(v0, None, u, dt, lengths)[1].to(v0)  # (time, 1 or batch)
            samples = u.to(v0).transpose(0, 1)
            nu = self.gates.constants()
            if nu is not None and not steps.requires_grad:
                slowed = euler_adjoint(replace(terms, tau=1 / nu), v0, samples, steps)
                return slowed if lengths is None else freeze(slowed, lengths)
            states = [v0]
            for z, sample, step in zip(self.gates.read(samples), samples, steps, strict=True):
                v = states[-1]
                states.append(v + step[:, None] * self.gates(z, v) * terms.drift(v, sample))
            stacked = torch.stack(states)
            return stacked if lengths is None else freeze(stacked, lengths)
