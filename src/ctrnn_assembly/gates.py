"""Gated time scales: units whose speed nu is learned, or follows the input, or the state as well.

    x' = nu o F(x, u),    F = -x + W phi(x) + L x + W_in u + b,    nu = lo + (hi - lo) sigmoid(z)

| gate | z | certificate (`certificates.gates`) |
|---|---|---|
| constant | a, one for each unit | as with tau = 1 / nu |
| shared | g.u + c, one for all units | rate lo lam |
| input | G u + c | if (hi - lo) omega < 2 lo lam, for AdaDiag's modules |
| congruence | G u + c | rate lo lam, for every L |
| state | G u + c + d o x, as published | none |

with omega = ||L|| and lam the rate at nu = 1. "congruence" has S = diag(nu)^1/2 on both sides of every
weight, which no coupling can turn against the metric; with phi inside W S x stands under phi:

    x' = S (-S x + W S phi(x) + L S x + W_in u + b)

Nets with the published bounds, lo = 1e-5 and hi = 0.2 with dt = 1 and "state", can diverge.

Source: AdaDiag 2026 (gates "input and state", x + nu o F); THEORY E14 and sections 3 and 12.
"""

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ctrnn_assembly.certificates.gates import Gate as Gate
from ctrnn_assembly.errors import ConfigError, ShapeError, check_known
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.recurrent import is_plain, is_unchanged
from ctrnn_assembly.schemes import repeated
from ctrnn_assembly.terms import Terms


class Gates(nn.Module):
    """nu in [lo, hi], in two parts: what the input says (`reader`), and the gates themselves.

    Args:
        kind: one of the module's table.
        metric: of the field; a constant or congruence gate is one number for each unit, or for each
            module whose metric is dense, with which different gates do not commute.
        bounds: (lo, hi), 0 < lo <= hi, per unit of time.
    """

    def __init__(
        self,
        kind: Gate,
        input_size: int,
        metric: Metric,
        *,
        bounds: tuple[float, float],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_known("gate", kind, get_args(Gate))
        self.kind = kind
        self.lo, self.hi = bounds if isinstance(bounds, tuple | list) and len(bounds) == 2 else (0, 0)
        if not 0 < self.lo <= self.hi < float("inf"):
            raise ConfigError(f"gate_bounds must be (lo, hi) with 0 < lo <= hi, finite; got {bounds}.")
        self.sizes = metric.sizes
        self.free = self._numbers(metric)
        if kind == "constant":
            self.constant = nn.Parameter(torch.zeros(sum(self.free)))
            return
        self.reader = nn.Linear(input_size, self._readings())
        for parameter in self.reader.parameters():  # as nn.Linear does, from the given generator
            nn.init.uniform_(parameter, -(input_size**-0.5), input_size**-0.5, generator=generator)
        if kind == "state":
            self.state = nn.Parameter(torch.zeros(metric.size))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """nu, (batch, n) or (batch, 1), for z of the `reader` and the state x (batch, n)."""
        if self.kind == "state":
            z = z + self.state * x
        if self.kind == "shared" and z.shape[-1] != 1:
            raise ShapeError(f"a shared gate is one number a sample; got {z.shape[-1]}.")
        if self.kind == "congruence":
            z = self._of_units(z)
        return self.lo + (self.hi - self.lo) * torch.sigmoid(z)

    def unproven(self, metric: Metric) -> str:
        """Why no bound on the gates of a field in this metric is known, or an empty string."""
        if not is_unchanged(self, Gates):
            return f"a {type(self).__name__} has hooks or methods of its own; remove them"
        if self.kind == "congruence" and self.free != self._numbers(metric):
            return "the gates were made for another metric; make the layer anew with its field"
        return ""

    @staticmethod
    def _numbers(metric: Metric) -> list[int]:
        """Of gates that commute with the metric, a module."""
        return [len(f.theta) if f.is_diagonal else 1 for f in metric.factors]

    def constants(self) -> Tensor:
        """nu of constant gates, (n,)."""
        return self.lo + (self.hi - self.lo) * torch.sigmoid(self._of_units(self.constant))

    def _of_units(self, z: Tensor) -> Tensor:
        if self.free == [*self.sizes]:
            return z
        own = zip(z.split(self.free, dim=-1), self.sizes, strict=True)
        return torch.cat([numbers.expand(*z.shape[:-1], n) for numbers, n in own], dim=-1)

    def flow(self, terms: Terms, z: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """x', (batch, n), for z of the `reader`, x (batch, n) and u (batch, m) or (batch, n)."""
        nu = self(z, x)
        if self.kind != "congruence":
            return nu * terms.drift(x, u)
        s = nu.sqrt()
        out = self._explicit(terms, s, x, u)
        return out if terms.L is None else out + s * ((s * x) @ terms.L.mT)

    def steps(self, terms: Terms, solver: str, count: int) -> Callable[..., Tensor]:
        """(h, z, u, x) -> x after so many steps of h, (batch, 1) or a number; imex: S L S implicit."""

        def step(h: Any, z: Tensor, u: Any, x: Tensor) -> Tensor:
            if solver == "euler" or terms.L is None:
                return x + h * self.flow(terms, z, x, u)
            s = self(z, x).sqrt()
            implicit = torch.eye(terms.n).to(x) - (h * s)[:, :, None] * terms.L * s[:, None]
            return torch.linalg.solve(implicit, x + h * self._explicit(terms, s, x, u))

        return repeated(step, count)

    def fits(self, u: Tensor) -> bool:
        """Whether `of_units` says all that inputs u (time, batch, m) do, and no gate need be called."""
        if not (is_unchanged(self, Gates) and is_plain(self.reader, nn.Linear)):
            return False
        rows, read = self._readings(), self.reader
        given = [(read.weight, (rows, u.shape[-1])), (read.bias, (rows,))]
        given += [(self.state, (sum(self.sizes),))] if self.kind == "state" else []
        return all(
            t is not None and t.shape == shape and (t.dtype, t.device) == (u.dtype, u.device)
            for t, shape in given
        )

    def _readings(self) -> int:
        return {"shared": 1, "congruence": sum(self.free)}.get(self.kind, sum(self.sizes))

    def of_units(self) -> Tensor:
        """G of each unit, c last, (n, m + 1)."""
        G = torch.cat([self.reader.weight, self.reader.bias[:, None]], 1)
        if self.kind == "shared":
            return G.expand(sum(self.sizes), -1)
        return self._of_units(G.mT).mT if self.kind == "congruence" else G

    @staticmethod
    def _explicit(terms: Terms, s: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """All of the congruence field but S L S x."""
        return s * (terms.nonlinear(x, terms.inject(u), s) - s * x)
