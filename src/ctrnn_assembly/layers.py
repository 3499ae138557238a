"""An assembly as a recurrent layer with `nn.RNN`'s calling convention, and a classifier on top."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ctrnn_assembly.assembly import Assembly
from ctrnn_assembly.errors import ConfigError, ShapeError
from ctrnn_assembly.inputs import INTERPOLATIONS
from ctrnn_assembly.solvers import GRID_METHODS, METHODS, Solution, solve
from ctrnn_assembly.solvers.adaptive import Gradient
from ctrnn_assembly.solvers.adjoint import Checkpoint
from ctrnn_assembly.solvers.backends import Backend
from ctrnn_assembly.solvers.methods import check_settings
from ctrnn_assembly.solvers.step import Products
from ctrnn_assembly.subnetwork import Subnetwork


class CTRNN(nn.Module):
    """output, h_n = net(input, h_0): tau x' = f(x) + W_in u(t) + b_in, solved over the samples.

    Args:
        input_size: features of a sample, m.
        field: a `Subnetwork` or `Assembly` of n units.
        batch_first: whether input and output are (batch, time, .) instead of (time, batch, .).
        dt: time between samples, in the unit of tau; grid solvers take one step a sample.
        solver: one of `ctrnn_assembly.solvers.METHODS`.
        interpolation: u(t) between samples for torchdiffeq's methods: "hold", "linear" or "cubic".
        rtol, atol, gradient: of torchdiffeq's methods, see `solve`.
        checkpoint: "sqrt" lets `last` keep about 4 sqrt(time) states for the gradient, see `solve`.
        products: "bf16" or "tf32" operands of the solver's products, see `solve`.
        backend: what runs the solver's loop, see `ctrnn_assembly.solvers.backends`.
        bias: whether the encoder has a bias b_in.

    Guarantee: the contraction of `field` does not depend on the encoder: for one input, two states
    approach each other at the field's rate in continuous time. The discrete step has its own
    certificate (`ctrnn_assembly.certificates`).
    """

    def __init__(
        self,
        input_size: int,
        field: Subnetwork | Assembly,
        *,
        batch_first: bool = False,
        dt: float = 0.03,
        solver: str = "euler",
        interpolation: Literal["hold", "linear", "cubic"] = "hold",
        rtol: float = 1e-4,
        atol: float = 1e-6,
        gradient: Gradient = "direct",
        checkpoint: Checkpoint = "none",
        products: Products = "full",
        backend: Backend = "auto",
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if solver not in METHODS:
            raise ConfigError(f"solver must be one of {', '.join(METHODS)}; got {solver!r}.")
        if interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}; got {interpolation!r}."
            )
        check_settings(solver, gradient, None, checkpoint, products, backend)
        if not 0 < dt < float("inf"):
            raise ConfigError(f"dt must be positive and finite; got {dt}. Use dt=0.03.")
        self.input_size, self.hidden_size, self.batch_first = input_size, field.size, batch_first
        self.dt, self.solver, self.interpolation = dt, solver, interpolation
        self.rtol, self.atol, self.gradient = rtol, atol, gradient
        self.checkpoint, self.products, self.backend = checkpoint, products, backend
        self.field = field
        self.encoder = nn.Linear(input_size, field.size, bias=bias)
        normal_(self.encoder, field.size**-0.5, generator)

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
        u = input if self.batch_first or input.ndim != 3 else input.transpose(0, 1)
        x0 = self._initial(u, None if h_0 is None else h_0)
        x = self._solve(u, x0, lengths, dt, "all").x
        output = x[:, 1:] if self.batch_first else x[:, 1:].transpose(0, 1)
        return output, x[:, -1][None]

    def last(self, input: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The last valid state, (batch, n), from a zero state; `input` as in `forward`."""
        u = input if self.batch_first or input.ndim != 3 else input.transpose(0, 1)
        return self._solve(u, self._initial(u, None), lengths, None, "last").last

    def step(self, u: Tensor, x: Tensor) -> Tensor:
        """The state one sample later: u (batch, m), x (batch, n) -> (batch, n).

        Step by step gives exactly what the whole sequence gives, for every grid solver.
        """
        if u.ndim != 2 or u.shape[1] != self.input_size:
            raise ShapeError(f"u must be (batch, {self.input_size}); got {tuple(u.shape)}.")
        return self._solve(u[:, None], x, None, None, "last").last

    def rates(self, x: Tensor) -> Tensor:
        """The firing rates of states x, (..., n): phi(x) of x-form modules, x of r-form modules."""
        return self.field.activations()[0](x)

    def _initial(self, u: Tensor, h_0: Tensor | None) -> Tensor:
        if u.ndim != 3 or u.shape[2] != self.input_size or u.shape[1] < 1:
            order = "(batch, time, m)" if self.batch_first else "(time, batch, m)"
            raise ShapeError(
                f"input must be {order} with m = {self.input_size} and at least one step; got "
                f"{tuple(u.shape if self.batch_first or u.ndim != 3 else u.transpose(0, 1).shape)}."
            )
        if h_0 is None:
            return self.encoder.weight.new_zeros(len(u), self.hidden_size)
        if h_0.shape != (1, len(u), self.hidden_size):
            raise ShapeError(f"h_0 must be (1, {len(u)}, {self.hidden_size}); got {tuple(h_0.shape)}.")
        return h_0[0]

    def _solve(
        self,
        u: Tensor,
        x0: Tensor,
        lengths: Tensor | None,
        dt: float | Tensor | None,
        save: Literal["all", "last"],
    ) -> Solution:
        terms = self.field.terms().driven(self.encoder.weight, self.encoder.bias)
        step = self.dt if dt is None else dt
        options = self._options()
        if save == "last" and lengths is None:
            options["checkpoint"] = self.checkpoint
        if self.solver in GRID_METHODS or self.interpolation == "hold":
            return solve(terms, x0, u=u, dt=step, lengths=lengths, save=save, **options)
        if isinstance(step, Tensor) and step.ndim > 1:
            raise ShapeError(f"interpolation={self.interpolation!r} needs one dt for all samples.")
        lasting = torch.as_tensor(step, dtype=torch.float64, device=u.device).expand(u.shape[1])
        t = torch.cat([lasting.new_zeros(1), lasting.cumsum(0)])
        signal = INTERPOLATIONS[self.interpolation](u.to(x0), t[:-1])
        return solve(terms, x0, t, u=signal, lengths=lengths, save=save, **options)

    def _options(self) -> dict:
        return {
            "method": self.solver,
            "rtol": self.rtol,
            "atol": self.atol,
            "gradient": self.gradient,
            "products": self.products,
            "backend": self.backend,
        }


class SequenceClassifier(nn.Module):
    """logits = W_out x(T) + b_out: a recurrent layer, read out at the last valid step.

    Args:
        core: a `CTRNN`, or a baseline with the same signature, batch_first.
        n_class: number of classes k.
        reads: "state" reads x, as the papers do; "rate" reads the firing rates, phi(x) of x-form
            modules (a baseline has only its state).
        bias: whether the readout has a bias.
    """

    def __init__(
        self,
        core: nn.Module,
        n_class: int,
        *,
        reads: Literal["state", "rate"] = "state",
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.core, self.reads = core, reads
        self.readout = nn.Linear(int(core.hidden_size), n_class, bias=bias)  # type: ignore[arg-type]
        normal_(self.readout, int(core.hidden_size) ** -0.5, generator)  # type: ignore[arg-type]

    def forward(self, input: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Logits, (batch, k), for input (batch, time, m)."""
        x = self.core.last(input, lengths=lengths)  # type: ignore[operator]
        if self.reads == "rate" and hasattr(self.core, "rates"):  # a baseline has only its state
            x = self.core.rates(x)  # type: ignore[operator]
        return self.readout(x)


def normal_(layer: nn.Linear, std: float, generator: torch.Generator | None) -> None:
    """N(0, std^2) weights and bias, as the papers initialise encoder and readout."""
    nn.init.normal_(layer.weight, std=std, generator=generator)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=std, generator=generator)
