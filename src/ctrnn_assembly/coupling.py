"""Couplings between the modules of an assembly.

| class | L | effect on the rate |
|---|---|---|
| `Feedback` | L_ij = Theta_i^-1 K_ij Theta_j, K_ji = -K_ij^T | none: min of the modules' rates |
| `hierarchy.Hierarchy` | one way, to later modules, linear or K psi(x) | any rate below the min |
| `FreeCoupling` | L = B, unconstrained | no guarantee: a control |

`Feedback` is the generalised negative feedback L_ij = B_ij - M_i^-1 B_ji^T M_j of the paper (eq. 3),
stored without its redundancy: M L + L^T M = 0 for every K, every topology and every size. In this
balanced form the two directions differ by sqrt(cond M) only, not by cond M, and ||L||_M = ||K||.

Source: Kozachkov et al. 2022, eq. (3) (arXiv 2106.08928); balanced form from THEORY section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Edge
from ctrnn_assembly.topology import Pair, check_pairs

Init = Literal["uniform", "normal", "orthogonal"]


class Start(TypedDict, total=False):
    """How the free entries of a `BlockMatrix` start."""

    init: Init
    gain: float
    generator: torch.Generator | None


class BlockMatrix(nn.Module):
    """A trainable (n, n) matrix with free blocks at the given (row, column) pairs, zero elsewhere.

    All free entries are one flat parameter `values`, block after block, row by row: C pairs of
    modules of n_i units cost C n_i^2 parameters, whatever n is.

    Args:
        sizes: the modules' sizes.
        blocks: ordered (row, column) pairs of modules.
        init: "uniform" in +-gain / sqrt(n_j), "normal" with that standard deviation, "orthogonal".
    """

    values: Tensor
    blocks: Tensor
    index: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        blocks: Sequence[Pair],
        *,
        init: Init = "uniform",
        gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        self.n = sum(self.sizes)
        parts, index = [torch.zeros(0)], [torch.zeros(0, dtype=torch.long)]
        for i, j in blocks:
            rows = torch.arange(starts[i], starts[i] + self.sizes[i])[:, None]
            columns = torch.arange(starts[j], starts[j] + self.sizes[j])
            index.append((rows * self.n + columns).flatten())
            block = _initial_block(self.sizes[i], self.sizes[j], init, gain, generator)
            parts.append(block.flatten())
        self.values = nn.Parameter(torch.cat(parts))
        self.register_buffer("blocks", torch.tensor(list(blocks), dtype=torch.long).view(-1, 2))
        self.register_buffer("index", torch.cat(index), persistent=False)
        self.register_load_state_dict_pre_hook(_same_blocks)

    def forward(self) -> Tensor:
        """The dense matrix, (n, n)."""
        flat = self.values.new_zeros(self.n * self.n)
        return flat.scatter(0, self.index, self.values).view(self.n, self.n)


class Feedback(nn.Module):
    """Generalised negative feedback on unordered pairs i < j; K is free, L follows from the metrics.

    Guarantee: M L + L^T M = 0 for M = blkdiag(M_i), so the assembly contracts at the smallest rate
    of its modules in continuous time. The discrete step needs a bound on ||K|| as well. Rounding L to
    the dtype of K costs about eps ||K|| for diagonal metrics and eps cond(Theta) ||K|| for dense ones
    (Theorems 2 and 3); `certify` measures it.
    """

    def __init__(self, sizes: Sequence[int], pairs: Sequence[Pair], **start: Unpack[Start]) -> None:
        super().__init__()
        self.pairs = check_pairs(pairs, len(sizes))
        self.K = BlockMatrix(sizes, self.pairs, **start)

    def matrix(self, metrics: list[Metric]) -> Tensor:
        """L, (n, n), for the modules' metrics."""
        metric = Metric.join(metrics)
        # In the precision of the metric: Theta and Theta^-1 rounded apart would not cancel.
        upper = self.K().to(metric.factors[0].theta)
        return metric.lower(metric.raise_right(upper - upper.mT)).to(self.K.values)

    def edges(self) -> tuple[Edge, ...]:
        return ()


class FreeCoupling(nn.Module):
    """L = B on both directions of each pair, unconstrained. Guarantee: none; a control."""

    def __init__(self, sizes: Sequence[int], pairs: Sequence[Pair], **start: Unpack[Start]) -> None:
        super().__init__()
        self.pairs = check_pairs(pairs, len(sizes))
        both = [block for i, j in self.pairs for block in ((i, j), (j, i))]
        self.B = BlockMatrix(sizes, both, **start)

    def matrix(self, metrics: list[Metric]) -> Tensor:
        """L, (n, n)."""
        return self.B()

    def edges(self) -> tuple[Edge, ...]:
        return ()


def _initial_block(
    rows: int, columns: int, init: Init, gain: float, generator: torch.Generator | None
) -> Tensor:
    scale = gain / columns**0.5
    if init == "uniform":
        return scale * (2 * torch.rand(rows, columns, generator=generator) - 1)
    if init == "normal":
        return scale * torch.randn(rows, columns, generator=generator)
    if init == "orthogonal":
        block = torch.empty(rows, columns)
        return gain * nn.init.orthogonal_(block, generator=generator)
    raise ConfigError(f"init must be uniform, normal or orthogonal; got {init!r}.")


def _same_blocks(module: BlockMatrix, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse to load values that belong to other pairs of modules."""
    stored = state.get(f"{prefix}blocks")
    if stored is not None and not torch.equal(stored.cpu(), module.blocks.cpu()):
        raise ConfigError(
            f"the file couples the blocks {stored.tolist()[:4]}..., the model "
            f"{module.blocks.tolist()[:4]}.... Build the model with the file's own configuration."
        )
