"""Activations phi with their slope intervals, and their block-wise composition.

A certificate needs one fact about phi: an interval [lo, hi] that contains every slope
(phi(a) - phi(b)) / (a - b), which `Activation` declares.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrnn_assembly.errors import ConfigError, unknown

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise function phi with a slope interval, lo <= phi' <= hi, which certificates trust.

    Args:
        function: phi, of any shape, without trained tensors: the fused solvers give them no gradient.
        slope: (lo, hi), finite, and not {0}.
        backward: (v, x, phi(x)) -> v o phi'(x); by default automatic differentiation.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    slope: tuple[float, float]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "slope", tuple(self.slope))  # a list could not be a key
        lo, hi = self.slope
        if self.name == "identity" and self.function is not torch.positive:
            raise ConfigError(
                "the name 'identity' is the library's own activation, which solvers leave out; got "
                "another function under it. Give yours another name."
            )
        if not (lo <= hi and abs(lo) < float("inf") and abs(hi) < float("inf") and self.g > 0):
            raise ConfigError(
                f"the slope interval of activation {self.name!r} must be finite, non-empty and not "
                f"{{0}}; got {self.slope}. Declare it as Activation(name, f, slope=(0.0, 1.0))."
            )

    @property
    def g(self) -> float:
        """The slope bound g = max |phi'|."""
        return max(abs(self.slope[0]), abs(self.slope[1]))

    @property
    def monotone(self) -> bool:
        """Whether phi' >= 0 everywhere (Theorems 2 and 3 need it)."""
        return self.slope[0] >= 0

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def pull_back(self, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """v o phi'(x) for y = phi(x); all of one shape."""
        if self.backward is not None:
            return self.backward(v, x, y)
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            return v * torch.autograd.grad(self.function(z).sum(), z)[0]

    def slope_at(self, x: Tensor) -> Tensor:
        """phi'(x), the shape of x."""
        return self.pull_back(torch.ones_like(x), x, self.function(x))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:  # by name: no lambda can be pickled
        own = ACTIVATIONS.get(self.name) is self
        return (activation, (self.name,)) if own else super().__reduce_ex__(protocol)


def _softplus(x: Tensor) -> Tensor:
    # logaddexp is smooth to the last bit; F.softplus switches to x above a threshold of 20.
    return torch.logaddexp(x, torch.zeros_like(x))


ACTIVATIONS = {
    a.name: a
    for a in (
        Activation("identity", torch.positive, (1.0, 1.0), lambda v, x, y: v),
        Activation("relu", torch.relu, (0.0, 1.0), lambda v, x, y: aten.threshold_backward(v, y, 0)),
        Activation("tanh", torch.tanh, (0.0, 1.0), lambda v, x, y: aten.tanh_backward(v, y)),
        Activation("sigmoid", torch.sigmoid, (0.0, 0.25), lambda v, x, y: aten.sigmoid_backward(v, y)),
        Activation("softplus", _softplus, (0.0, 1.0), lambda v, x, y: v * torch.sigmoid(x)),
        Activation("elu", F.elu, (0.0, 1.0)),
        Activation("hardtanh", F.hardtanh, (0.0, 1.0)),
        Activation("selu", F.selu, (0.0, 1.7580993408473768)),  # scale times alpha, rounded up
        # Not monotone: accepted by Theorems 1 and 5 only.
        Activation("gelu", F.gelu, (-0.12890423, 1.12890423)),
        Activation("silu", F.silu, (-0.09983935, 1.09983935)),
    )
}


def activation(phi: str | Activation) -> Activation:
    """An `Activation` by name, or the given one; ConfigError for an unknown name."""
    if isinstance(phi, Activation):
        return phi
    if phi not in ACTIVATIONS:
        fix = "For your own, pass Activation(name, function, slope=(lo, hi))."
        raise unknown("activation", phi, ACTIVATIONS, fix)
    return ACTIVATIONS[phi]


@dataclass(frozen=True)
class Elementwise:
    """An elementwise map of the whole state, `runs` of (activation, number of units)."""

    runs: tuple[tuple[Activation, int], ...]

    @classmethod
    def join(cls, maps: Iterable["Elementwise"]) -> Self:
        """One map after another; neighbouring runs of one activation become one call."""
        joined: list[tuple[Activation, int]] = []
        for phi, n in (run for part in maps for run in part.runs):
            if joined and joined[-1][0] == phi:
                joined[-1] = (phi, joined[-1][1] + n)
            else:
                joined.append((phi, n))
        return cls(tuple(joined))

    @property
    def is_identity(self) -> bool:
        """Whether the map does nothing, so that a solver can leave it out."""
        return all(phi.name == "identity" for phi, _ in self.runs)

    def at(self, unit: int) -> Activation:
        """The activation of one unit."""
        return [phi for phi, n in self.runs for _ in range(n)][unit]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x, (..., n)."""
        if len(self.runs) == 1:  # no call in between: it would be one more frame in every step
            return self.runs[0][0].function(x)
        parts, start = [], 0
        for phi, n in self.runs:
            parts.append(phi.function(x.narrow(-1, start, n)))
            start += n
        return torch.cat(parts, dim=-1)

    def slope_at(self, x: Tensor) -> Tensor:
        """The derivative at x, (..., n)."""
        return self.pull_back(torch.ones_like(x), x, self(x))

    def pull_back(self, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """v times the derivative at x, where y is the map of x; all (..., n)."""
        phis, sizes = zip(*self.runs, strict=True)
        if len(phis) == 1:
            return phis[0].pull_back(v, x, y)
        parts = (tensor.split(sizes, dim=-1) for tensor in (v, x, y))
        return torch.cat([*map(Activation.pull_back, phis, *parts)], dim=-1)
