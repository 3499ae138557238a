"""What every contestant solves: one size, one field as leaf tensors, one input.

Neither states nor adjoints grow or fade over the sequence: a gradient that fades reaches denormal
numbers, with which a CPU is up to a hundred times slower.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Generator, Tensor

from ctrnn_assembly.errors import ConfigError, check_within
from ctrnn_assembly.layers import CTRNN
from ctrnn_assembly.models import build_model
from ctrnn_assembly.terms import Terms

DT, DURATION = 0.03, 20.0
COUPLING_NORM = 2.0
FASTEST = 0.2  # largest speed of the gates


@dataclass(frozen=True)
class Problem:
    """tau x' = f(x) + W_in u from x = 0, for n units in modules of `units`, over a number of steps.

    The tensors are made when they are first asked for: the same numbers for every device and dtype.
    ConfigError if n is not a multiple of `units`, or a number is below 1; then also if the coupling is
    unknown, or has more pairs than there are.
    """

    n: int = 512
    units: int = 32
    batch: int = 128
    steps: int = 98
    coupling: str = "all"  # the pairs of modules, by the name of a topology
    net: str = "svd-combo"  # the model whose field it is; of a gated one the layer itself
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_within("[1, inf)", **self.size)
        if self.n % self.units:
            below = max(self.n // self.units, 1) * self.units
            divisor = next(k for k in range(min(self.n, self.units), 0, -1) if self.n % k == 0)
            must = f"n must be a multiple of the {self.units} units of a module"
            raise ConfigError(f"{must}; got {self.n}. Use n={below}, or units={divisor}.")

    @property
    def size(self) -> dict[str, int]:
        """What is the same for all contestants of one measurement."""
        return {"n": self.n, "units": self.units, "batch": self.batch, "steps": self.steps}

    def __str__(self) -> str:
        coupling = "" if self.modules == 1 else f" {self.coupling.replace('random:', 'C=')}"
        return f"{self.modules} x {self.units}{coupling}, batch {self.batch}, T={self.steps}"

    @property
    def modules(self) -> int:
        return self.n // self.units

    @property
    def fits(self) -> bool:
        """Whether there are as many pairs of modules as a random coupling asks for."""
        kind, _, pairs = self.coupling.partition(":")
        return kind != "random" or int(pairs) <= self.modules * (self.modules - 1) // 2

    @property
    def dt(self) -> float:
        """Shorter for long sequences, so that the adjoint of the first state is no denormal number."""
        return min(DT, DURATION / self.steps)

    @property
    def is_gated(self) -> bool:
        return "gated" in self.net

    @cached_property
    def layer(self) -> CTRNN:
        """The net's, whose parameters are what a gated problem trains."""
        return self._made().to(self.device, self.dtype)

    def _made(self) -> CTRNN:
        """In float32 on the CPU; the fastest units of a gated net move as those of the others do."""
        of_net = {"modules": self.modules, "units": self.units, "coupling": self.coupling}
        dt = self.dt / FASTEST if self.is_gated else self.dt
        core: Any = build_model(self.net, 1, 1, activation="relu", dt=dt, **of_net).core
        return cast(CTRNN, core.float())

    @cached_property
    def terms(self) -> Terms:
        """The field, trained tensors as leaves; L = K - K^T, of norm COUPLING_NORM, is feedback."""
        made = self._made()
        terms: Terms = made.field.terms().driven(made.encoder.weight, made.encoder.bias).detach_cpu()
        if (L := terms.L) is not None:
            v = torch.ones(self.n)
            for _ in range(100):  # to ||L||, of which a decomposition of 4,096 units takes minutes
                v = L @ (v / v.norm())
            terms = replace(terms, L=L * (COUPLING_NORM / v.norm()))
        terms = terms.mapped(lambda values: self._leaf(values).requires_grad_())
        terms.tau.requires_grad_(False)
        return terms

    @cached_property
    def u(self) -> Tensor:
        """One feature a step, (batch, time, 1), uniform in [0, 1) as pixels are."""
        generator = Generator().manual_seed(2)
        u = torch.rand(self.batch, self.steps, 1, generator=generator, dtype=torch.float32)
        return self._leaf(u)

    @cached_property
    def x0(self) -> Tensor:
        return self.u.new_zeros(self.batch, self.n)

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors whose gradient is asked for; the input has none."""
        if self.is_gated:
            return list(self.layer.parameters())
        return [tensor for tensor in self.terms.tensors() if tensor.requires_grad]

    def _leaf(self, values: Tensor) -> Tensor:
        return values.detach().to(self.device, self.dtype, copy=True)
