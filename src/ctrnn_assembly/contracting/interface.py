"""What every set of contracting weights offers: map, inverse, metric, rate, sampler.

A `Contracting` is a `torch.nn.utils.parametrize` parametrisation of the `weight` of a subnetwork, which
holds the raw tensors: the metric takes the same ones as the map and cannot belong to other weights.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ctrnn_assembly.activations import Activation, activation
from ctrnn_assembly.errors import ContractionError, ShapeError, check_within, configure
from ctrnn_assembly.linalg import working_precision
from ctrnn_assembly.metrics import Factor

Form = Literal["x", "r"]

# Below this margin, rounding of float32 weights could cross the boundary of the set.
SMALLEST_MARGIN = 1e-3


class Contracting(nn.Module, ABC):
    """A set of weights W for which tau x' = -x + W phi(x) contracts at rate >= `rate` / tau.

    A theorem gives `weight`, `raw` and `metric`, all three from float64 to float64; the library's
    `weight` and `metric` take stacks, (..., n, n), too. `margin`, in [1e-3, 1), is the
    guaranteed rate in 1 / tau; what else a set takes are its `settings`, attributes with the values by
    default. What is refused is a `ContractionError`. Your own set's rate is your claim.

    A set of your own, with ||W||_F < 1 / g and M = I:

    >>> class Bounded(Contracting):
    ...     def weight(self, E):
    ...         return self.radius / self.phi.g * E / (1 + E.norm())
    ...     def raw(self, W):
    ...         V = self.phi.g / self.radius * W
    ...         if V.norm() >= 1:
    ...             raise self.outside("||W||_F < 1 / g", float(V.norm()), "Scale W down.")
    ...         return V / (1 - V.norm())
    >>> certify(Subnetwork(Bounded("relu"), 8)).certified
    True
    """

    theorem: ClassVar[str] = "a set of your own"
    monotone_only: ClassVar[bool] = False
    frozen: bool = False
    diagonal: ClassVar[bool] = False  # whether every W of the set is diagonal
    axes: ClassVar[tuple[str, ...]] = ("nn",)  # of each raw tensor: n or 1 long
    usual_phi: ClassVar[str] = "tanh"
    settings: ClassVar[dict[str, Any]] = {"init_scale": "[0, inf)"}  # and where, or what, they may be
    init_scale: float = 1.0  # of the random tensor of a sample, here sqrt(n) times its deviation

    def __init__(
        self, phi: str | Activation | None = None, *, margin: float = 0.01, **settings: Any
    ) -> None:
        super().__init__()
        self.phi = activation(self.usual_phi if phi is None else phi)
        configure(self, self.settings, settings)
        check_within(f"[{SMALLEST_MARGIN}, 1)", "Use margin=0.01.", ContractionError, margin=margin)
        if self.monotone_only and not self.phi.monotone:
            must = f"{self.theorem} needs an activation with slopes >= 0"
            got = f"{self.phi.name!r} with slopes in {self.phi.slope}"
            raise ContractionError(f"{must}; got {got}. Use tanh or relu, or Theorem 1 or 5.")
        self.margin = margin

    @property
    def rate(self) -> float | None:
        """The rate guaranteed for every raw value, in 1 / tau; None if nothing is guaranteed."""
        known = SMALLEST_MARGIN <= self.margin < 1 and (self.phi.monotone or not self.monotone_only)
        return self.margin if known else None

    @property
    def radius(self) -> float:
        """1 - margin, less 1e-5: rounding W to float32 costs at most 6e-8 sqrt(n) of it."""
        return (1 - self.margin) * (1 - 1e-5)

    @abstractmethod
    def weight(self, *raw: Tensor) -> Tensor:
        """The weight W, (n, n), in the set for every finite value of the raw tensors."""

    @abstractmethod
    def raw(self, W: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Raw tensors with weight(*raw) = W, up to rounding of W; an error if no metric is found."""

    def metric(self, *raw: Tensor, form: Form) -> Factor:
        """The metric in which weight(*raw) contracts: M = I unless a theorem says otherwise."""
        return Factor.identity(raw[0].shape[: 1 - len(self.axes[0]) or None], raw[0])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A random W of the set, (n, n), in the default dtype; raw tensors but an (n, n) start at 0."""
        A = torch.randn(n, n, generator=generator) * self.init_scale / n**0.5
        return self(A, *(torch.zeros(n if axis == "n" else 1) for axis in self.axes[1:]))

    def forward(self, *raw: Tensor) -> Tensor:
        """`weight` of raw tensors of any precision, rounded once."""
        return self.weight(*working_precision(*raw)).to(raw[0].dtype)

    def right_inverse(self, W: Tensor) -> tuple[Tensor, ...]:
        """`raw` for any W; searches for a metric, so copy trained modules by state dict instead."""
        if W.is_meta:
            sizes = {"n": len(W), "1": 1}
            return tuple(W.new_empty([sizes[axis] for axis in raw]) for raw in self.axes)
        check_square(W)
        (exact,) = working_precision(W.detach())
        found = self.raw(exact)
        raw = (found,) if isinstance(found, Tensor) else found
        off = float((self.weight(*raw) - exact).abs().max())
        allowed = max(1e-6, 4 * torch.finfo(W.dtype).eps) * max(1.0, float(exact.abs().max()))
        if not off <= allowed:
            fix = f"Pass weight(*raw(W)), which is in the set, or correct {type(self).__name__}.raw."
            raise self.outside(f"weight(*raw(W)) within {allowed:.2g} of W", off, fix)
        # A product or a solve may be stored by columns, which LBFGS, pruning and safetensors refuse.
        return tuple(one.to(W.dtype).contiguous() for one in raw)

    def outside(self, condition: str, value: float, fix: str) -> ContractionError:
        return ContractionError(f"{self.theorem} needs {condition}; got {value:.6g}. {fix}")


def raw_tensors(module: nn.Module) -> tuple[Tensor, ...]:
    """The raw tensors behind a parametrised weight."""
    held = cast(ParametrizationList, cast(nn.ModuleDict, module.parametrizations)["weight"])
    if held.is_tensor:  # of a `right_inverse` of the user's, by torch's convention
        return (cast(Tensor, held.original),)
    return tuple(getattr(held, f"original{k}") for k in range(held.ntensors))


def check_square(W: Tensor) -> None:
    """Refuse what is no finite (n, n) weight."""
    if W.ndim != 2 or W.shape[0] != W.shape[1] or W.shape[0] == 0:
        raise ShapeError(f"W must be (n, n) with n >= 1; got {tuple(W.shape)}.")
    if bad := int((~torch.isfinite(W)).sum()):
        raise ContractionError(f"W must be finite; got {bad} NaN or infinite entries.")
