"""Activations phi with their slope intervals, and their block-wise composition.

A certificate needs one fact about phi: an interval [lo, hi] that contains every slope
(phi(a) - phi(b)) / (a - b). It is proven for `ACTIVATIONS` and modules of torch in `PLAIN` and `SET`;
that of any other `Activation` is declared, which sampled secants can refute but not prove.

>>> ACTIVATIONS["relu"].slope, ACTIVATIONS["gelu"].monotone
((0.0, 1.0), False)
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Self, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrnn_assembly.errors import ConfigError, unknown

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise function phi with a slope interval, lo <= phi' <= hi, which certificates trust.

    Args:
        function: phi, of any shape, without trained tensors: the fused solvers give them no gradient.
        slope: (lo, hi), finite, not {0}; unless it is `proven`, certificates say that it is declared.
        backward: (v, x, phi(x)) -> v o phi'(x); by default automatic differentiation.

    Raises: ConfigError if a sampled secant leaves the interval, or phi mixes units or works in place.

    >>> steep = Activation("steep", lambda x: torch.tanh(2 * x), slope=(0.0, 2.0))
    >>> steep.g, certify(Subnetwork(SingularValueBounded(steep), 4)).certified
    (2.0, True)
    """

    name: str
    function: Callable[[Tensor], Tensor]
    slope: tuple[float, float]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    proven: bool = field(default=False, init=False)  # so that `replace` gives one that is declared

    def __post_init__(self) -> None:
        fits = False
        with suppress(TypeError, ValueError):
            lo, hi = self.slope
            object.__setattr__(self, "slope", (lo, hi))  # a list could not be a key
            fits = lo <= hi and 0 < self.g < float("inf")
        if not fits:
            raise ConfigError(
                f"the slope interval of activation {self.name!r} must be two numbers, (lo, hi), finite, "
                f"non-empty and not {{0}}; got {self.slope!r}. Declare it as slope=(0.0, 1.0)."
            )
        if self.name == "identity" and self.function is not torch.positive:
            must = "the name 'identity' is the library's own activation, which solvers leave out"
            raise ConfigError(f"{must}; got another function under it. Give yours another name.")
        if any(True for _ in getattr(self.function, "parameters", tuple)()):
            raise ConfigError(f"activation {self.name!r} must train no parameters. Freeze a copy.")
        self._refute()

    @torch.no_grad()
    def _refute(self) -> None:
        """Refuse an interval that a secant leaves: near 0, up to 1e6, or where secants are extreme."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        large, middle = torch.logspace(-6, 6, 300, **options), torch.linspace(-20, 20, 2001, **options)
        grid = torch.cat([-large, large, middle]).unique()
        y, some = self.function(x := grid.clone()), self.function(grid[::7].repeat(2, 1))
        elementwise = getattr(y, "shape", None) == x.shape and x.equal(grid)
        if not (elementwise and torch.allclose(some, y[::7], equal_nan=True)):
            raise ConfigError(f"activation {self.name!r} must act on each number alone, not in place.")
        for sign, bound in ((1, self.slope[1]), (-1, -self.slope[0])):
            x = grid
            for _ in range(4):
                gap, y = x.diff(), self.function(x)
                secants = y.diff() / gap
                rounding = 1e-15 * (1 + y[1:].abs() + y[:-1].abs()) / gap + 1e-6 * (1 + self.g)
                beyond = (sign * secants - bound - rounding).nan_to_num(nan=torch.inf)
                k = int(beyond.argmax())
                if beyond[k] > 0:
                    raise ConfigError(
                        f"activation {self.name!r} is declared to have slopes in {self.slope}; got "
                        f"{float(secants[k]):.6g} between x = {float(x[k]):.6g} and "
                        f"{float(x[k + 1]):.6g}. Declare an interval that contains every slope."
                    )
                ends = float(x[max(k - 1, 0)]), float(x[min(k + 2, len(x) - 1)])
                x = torch.linspace(*ends, 101, **options)

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


def _softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    # logaddexp is smooth to the last bit; F.softplus switches to x above a threshold of 20.
    return torch.logaddexp(beta * x, torch.zeros_like(x)) / beta


def _proven(name: str, function: Any, slope: tuple[float, float], backward: Any = None) -> Activation:
    """An activation of the library, whose slopes are proven: they are here, and nowhere else."""
    phi = Activation(name, function, slope, backward)
    object.__setattr__(phi, "proven", True)
    return phi


def _widened(*slopes: float) -> tuple[float, float]:
    """The interval of slopes, some of them settings, which a float32 net rounds."""
    ends = [(1 + sign * 2**-24) * s if s != 1 else s for s in slopes for sign in (-1, 1)]
    return min(ends), max(ends)


@cache
def _with(function: Any, slope: tuple[float, float], **settings: float) -> Activation:
    """A function of torch with its settings; one object for the same ones, so that runs are joined."""
    name = f"{function.__name__.strip('_')}({', '.join(f'{value:g}' for value in settings.values())})"
    return _proven(name, partial(function, **settings), slope)


ACTIVATIONS = {
    a.name: a
    for a in (
        _proven("identity", torch.positive, (1.0, 1.0), lambda v, x, y: v),
        _proven("relu", torch.relu, (0.0, 1.0), lambda v, x, y: aten.threshold_backward(v, y, 0)),
        _proven("tanh", torch.tanh, (0.0, 1.0), lambda v, x, y: aten.tanh_backward(v, y)),
        _proven("sigmoid", torch.sigmoid, (0.0, 0.25), lambda v, x, y: aten.sigmoid_backward(v, y)),
        _proven("softplus", _softplus, (0.0, 1.0), lambda v, x, y: v * torch.sigmoid(x)),
        _proven("elu", F.elu, (0.0, 1.0)),
        _proven("hardtanh", F.hardtanh, (0.0, 1.0)),
        _proven("leaky_relu", F.leaky_relu, _widened(0.01, 1.0)),
        _proven("selu", F.selu, (0.0, 1.7580993408473768)),  # scale times alpha, rounded up
        # Not monotone: accepted by Theorems 1 and 5 only. Proven by interval arithmetic in the tests.
        _proven("gelu", F.gelu, (-0.12890423, 1.12890423), lambda v, x, y: aten.gelu_backward(v, x)),
        _proven("gelu_tanh", partial(F.gelu, approximate="tanh"), (-0.1289931, 1.1289931)),
        _proven("silu", F.silu, (-0.09983935, 1.09983935)),
    )
}

# The modules of torch, of exactly these classes, as a subclass may be anything.
PLAIN = (nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SELU, nn.SiLU)
SET: dict[type, Callable[[Any], Activation]] = {
    nn.GELU: lambda m: ACTIVATIONS["gelu" if m.approximate == "none" else "gelu_tanh"],
    nn.LeakyReLU: lambda m: _with(
        F.leaky_relu, _widened(m.negative_slope, 1.0), negative_slope=m.negative_slope
    ),
    nn.ELU: lambda m: _with(F.elu, _widened(m.alpha, 0.0, 1.0), alpha=m.alpha),
    nn.Hardtanh: lambda m: _with(F.hardtanh, (0.0, 1.0), min_val=m.min_val, max_val=m.max_val),
    nn.ReLU6: lambda m: _with(F.hardtanh, (0.0, 1.0), min_val=0.0, max_val=6.0),
    # At its threshold torch's jumps, by 2e-9 / beta for the usual 20, which this one does not.
    nn.Softplus: lambda m: (
        _with(_softplus, (0.0, 1.0), beta=m.beta) if m.beta != 1 else ACTIVATIONS["softplus"]
    ),
}


def activation(phi: str | nn.Module | Activation) -> Activation:
    """An `Activation` by name ("silu" or "SiLU"), as a module of torch, or the given one.

    Raises: ConfigError for an unknown name or module.

    >>> activation(torch.nn.LeakyReLU(0.2)).name
    'leaky_relu(0.2)'
    """
    if isinstance(phi, Activation):
        return phi
    jumps = isinstance(phi, nn.Softplus) and phi.threshold < 20  # no slope bounds a jump
    if type(phi) in SET and not jumps:
        return SET[type(phi)](phi)
    known = {name.replace("_", ""): one for name, one in ACTIVATIONS.items()}
    given = type(phi).__name__ if type(phi) in PLAIN else str(phi)
    if (name := given.replace("_", "").lower()) not in known:
        fix = "For your own, pass Activation(name, function, slope=(lo, hi))."
        raise unknown("activation", phi, ACTIVATIONS, fix)
    return known[name]


def around(phi: Activation, n: int, *, inside: bool = False) -> tuple["Elementwise", "Elementwise"]:
    """The maps before and after a weight of n units: phi and identity, or the reverse."""
    maps = Elementwise(((phi, n),)), Elementwise(((ACTIVATIONS["identity"], n),))
    return maps[::-1] if inside else maps


@dataclass(frozen=True)
class Elementwise:
    """An elementwise map of the whole state, `runs` of (activation, number of units)."""

    runs: tuple[tuple[Activation, int], ...]

    @classmethod
    def join(cls, maps: Iterable["Elementwise"]) -> Self:
        """One map after another; neighbouring runs of one activation become one call."""
        joined: list[tuple[Activation, int]] = []  # by hand: torch.compile cannot trace groupby
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

    @property
    def units(self) -> list[Activation]:
        """The activation of each unit."""
        return [phi for phi, n in self.runs for _ in range(n)]

    @property
    def g(self) -> float:
        """The largest slope bound of a unit."""
        return max(phi.g for phi, _ in self.runs)

    def __call__(self, x: Tensor) -> Tensor:
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
