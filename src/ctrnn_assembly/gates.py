"""Gated time scales: units whose speed nu is learned, or follows the input, or the state as well.

    x' = nu o F(x, u),    F = -x + W phi(x) + L x + W_in u + b,    nu = lo + (hi - lo) sigmoid(z)

| gate | z | certificate (`certificates.gates`) |
|---|---|---|
| constant | a, one for each unit | as with tau = 1 / nu |
| shared | g.u + c, one for all units | rate lo lam |
| input | G u + c | if (hi - lo) omega < 2 lo lam, for AdaDiag's modules |
| state | G u + c + d o x, as published | none |

omega = ||L|| and lam is the rate at nu = 1, so certified input gates need hi close to lo, weak coupling,
or fast modules. The published bounds, lo = 1e-5 and hi = 0.2 with dt = 1 and "state", can diverge
under a bounded input although each gate of theirs, held constant, is stable.

Source: AdaDiag 2026 (gates "input and state", x + nu o F); corrections E14 and section 3 of THEORY.
"""

from typing import get_args

import torch
from torch import Tensor, nn

from ctrnn_assembly.certificates.gates import Gate as Gate
from ctrnn_assembly.errors import ConfigError, unknown
from ctrnn_assembly.metrics import Metric


class Gates(nn.Module):
    """nu in [lo, hi], in two parts: what the input says (`reader`), and the gates themselves.

    Args:
        kind: one of the module's table.
        metric: of the field; a constant gate is one number for each unit, or for each module whose
            metric is dense, with which different gates do not commute.
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
        if kind not in get_args(Gate):
            raise unknown("gate", kind, get_args(Gate))
        self.kind = kind
        self.lo, self.hi = bounds
        if not 0 < self.lo <= self.hi < float("inf"):
            raise ConfigError(f"gate_bounds must be (lo, hi) with 0 < lo <= hi, finite; got {bounds}.")
        if kind == "constant":
            self.sizes = metric.sizes
            self.free = [len(f.theta) if f.is_diagonal else 1 for f in metric.factors]
            self.constant = nn.Parameter(torch.zeros(sum(self.free)))
            return
        self.reader = nn.Linear(input_size, 1 if kind == "shared" else metric.size)
        for parameter in self.reader.parameters():  # as nn.Linear does, from the given generator
            nn.init.uniform_(parameter, -(input_size**-0.5), input_size**-0.5, generator=generator)
        if kind == "state":
            self.state = nn.Parameter(torch.zeros(metric.size))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """nu, (batch, n) or (batch, 1), for z of the `reader` and the state x (batch, n)."""
        if self.kind == "state":
            z = z + self.state * x
        return self.lo + (self.hi - self.lo) * torch.sigmoid(z)

    def constants(self) -> Tensor:
        """nu of constant gates, (n,)."""
        own = zip(self.constant.split(self.free), self.sizes, strict=True)
        z = torch.cat([numbers.expand(n) for numbers, n in own])
        return self.lo + (self.hi - self.lo) * torch.sigmoid(z)
