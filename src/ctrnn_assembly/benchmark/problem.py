"""What every contestant solves: one size, one field as leaf tensors, one input.

The values are such that neither states nor adjoints grow or fade over the sequence. A gradient that
fades reaches denormal numbers, with which a CPU is up to a hundred times slower: `nn.LSTM` as it is
initialised, with a loss of its last state, took 31 s instead of 1.2 s for 196 steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.topology import Pair, all_pairs, named_pairs

Blocks = Literal["dense", "diagonal", "sparse"]
DT, DURATION = 0.03, 20.0
WEIGHT_NORM, COUPLING_NORM = 0.9, 2.0  # one Euler step of DT contracts
DENSITY = 0.033  # of the sparse modules, as published


@dataclass(frozen=True)
class Size:
    """n units in modules of `units`, a batch, and a number of steps.

    Raises:
        ConfigError: if n is not a multiple of `units`, or a number is below 1.
    """

    n: int = 512
    units: int = 32
    batch: int = 128
    steps: int = 196

    def __post_init__(self) -> None:
        for name in ("n", "units", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.n % self.units:
            below = max(self.n // self.units, 1) * self.units
            raise ConfigError(
                f"n must be a multiple of the {self.units} units of a module; got {self.n}. "
                f"Use n={below}, or units={_largest_divisor(self.n, self.units)}."
            )

    @property
    def modules(self) -> int:
        return self.n // self.units

    @property
    def dt(self) -> float:
        """Shorter for long sequences, so that the adjoint of the first state is no denormal number."""
        return min(DT, DURATION / self.steps)


@dataclass(frozen=True)
class Problem:
    """tau x' = f(x) + W_in u from x = 0, with the pairs and the kind of blocks that were asked for.

    Args:
        terms: the field; every tensor that is trained is a leaf.
        u: one feature a step, (batch, time, 1), uniform in [0, 1) as pixels are.
    """

    size: Size
    coupling: str
    blocks: Blocks
    pairs: tuple[Pair, ...]
    terms: Terms
    u: Tensor
    x0: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors whose gradient is asked for; the input has none."""
        return [tensor for tensor in self.terms.tensors() if tensor.requires_grad]

    @property
    def device(self) -> torch.device:
        return self.u.device

    @property
    def dense(self) -> bool:
        """Whether every pair is coupled, so that L is one dense matrix."""
        return len(self.pairs) == len(all_pairs(self.size.modules)) and bool(self.pairs)


def make_problem(
    size: Size,
    coupling: str,
    blocks: Blocks = "dense",
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """The problem of a coupling by name; the same numbers for every device and dtype.

    Raises:
        ConfigError: if the coupling is unknown, or has more pairs than there are.
    """
    generator = torch.Generator().manual_seed(0)
    n = size.n
    pairs = tuple(named_pairs(coupling, size.modules, generator))
    identity = Elementwise(((ACTIVATIONS["identity"], n),))
    relu = Elementwise(((ACTIVATIONS["relu"], n),))
    # The Sparse Combo Net has phi inside and keeps its modules as they were drawn.
    pre, post = (identity, relu) if blocks == "sparse" else (relu, identity)

    def leaf(values: Tensor, *, trained: bool = True) -> Tensor:
        return values.to(device, dtype).requires_grad_(trained)

    drawn = [_block(size.units, blocks, generator) for _ in range(size.modules)]
    L = _coupling(size, pairs, generator)
    normal = torch.randn(n, 1, generator=generator, dtype=torch.float32)
    terms = Terms(
        tuple(leaf(W, trained=blocks != "sparse") for W in drawn),
        pre,
        post,
        bias=leaf(torch.zeros(n)),
        tau=leaf(torch.ones(n), trained=False),
        L=None if L is None else leaf(L),
        W_in=leaf(normal / n**0.5),
        pairs=pairs,
        diagonal=blocks == "diagonal",
    )
    u = torch.rand(size.batch, size.steps, 1, generator=generator, dtype=torch.float32)
    return Problem(
        size,
        coupling,
        blocks,
        pairs,
        terms,
        u.to(device, dtype),
        torch.zeros(size.batch, n, device=device, dtype=dtype),
    )


def _block(k: int, blocks: Blocks, generator: torch.Generator) -> Tensor:
    """A weight of spectral norm at most WEIGHT_NORM."""
    if blocks == "diagonal":
        values = 2 * torch.rand(k, generator=generator, dtype=torch.float32) - 1
        return torch.diag(WEIGHT_NORM * values)
    W = torch.randn(k, k, generator=generator, dtype=torch.float32)
    if blocks == "sparse":
        kept = torch.rand(k, k, generator=generator, dtype=torch.float32) < DENSITY
        W = W * kept
    norm = float(torch.linalg.matrix_norm(W, 2))
    return W * (WEIGHT_NORM / norm) if norm > 0 else W


def _coupling(size: Size, pairs: tuple[Pair, ...], generator: torch.Generator) -> Tensor | None:
    """L = K - K^T of spectral norm COUPLING_NORM: negative feedback in the identity metric."""
    if not pairs:
        return None
    k = size.units
    K = torch.zeros(size.n, size.n)
    for i, j in pairs:
        block = torch.randn(k, k, generator=generator, dtype=torch.float32)
        K[i * k : (i + 1) * k, j * k : (j + 1) * k] = block
    L = (K - K.mT).to(torch.float32)
    return L * (COUPLING_NORM / float(torch.linalg.matrix_norm(L, 2)))


def coupled(problem: Problem) -> Tensor:
    """Where L may differ from zero, (n, n) bool: a solver need not give a gradient elsewhere."""
    k = problem.size.units
    mask = torch.zeros(problem.size.n, problem.size.n, dtype=torch.bool)
    for i, j in _both_ways(problem.pairs):
        mask[i * k : (i + 1) * k, j * k : (j + 1) * k] = True
    return mask


def _both_ways(pairs: tuple[Pair, ...]) -> Iterator[Pair]:
    for i, j in pairs:
        yield i, j
        yield j, i


def _largest_divisor(n: int, most: int) -> int:
    return next(k for k in range(min(n, most), 0, -1) if n % k == 0)
