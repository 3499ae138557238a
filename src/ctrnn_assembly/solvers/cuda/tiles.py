"""Matrices cut into square tiles, in the order in which `kernels` reads them.

Packing copies a matrix once a solve, each way: n^2 numbers for a dense one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrnn_assembly.solvers.fused import MatmulPrecision
from ctrnn_assembly.terms import Terms

Kind = Literal["none", "diagonal", "own", "listed", "dense"]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """How n units lie in square tiles: each block of `block` units starts a tile of its own.

    Args:
        width: the most units that a kernel computes at once, a power of two.
    """

    n: int
    block: int
    width: int

    @property
    def tile(self) -> int:
        """Units of a tile: a power of two, and no less than tensor cores multiply."""
        return 16 if self.block <= 16 else 32

    @property
    def per_block(self) -> int:
        return -(-self.block // self.tile)

    @property
    def tiles(self) -> int:
        return self.n // self.block * self.per_block

    @property
    def group(self) -> int:
        """Tiles computed at once, a power of two."""
        return min(self.width // self.tile, 1 << (self.tiles - 1).bit_length())

    @property
    def groups(self) -> int:
        return -(-self.tiles // self.group)

    @property
    def spare(self) -> int:
        """Tiles of the last group that hold no unit."""
        return self.groups * self.group - self.tiles

    def tiles_of(self, start: int, size: int) -> range:
        """The tiles that hold the units start, ..., start + size - 1."""
        first, last = (
            u // self.block * self.per_block + u % self.block // self.tile
            for u in (start, start + size - 1)
        )
        return range(first, last + 1)


@dataclass(frozen=True)
class Packed:
    """The (in, out) tiles of one matrix; `cols` and `starts` only matter to listed ones."""

    kind: Kind
    values: Tensor
    cols: Tensor
    starts: Tensor


class Packer:
    """Packs W, L and their transposes for one solve.

    Args:
        W: the diagonal (n,), or equal blocks (p, k, k), or all of it (1, n, n).
        matmul_precision: "bf16" rounds the tiles, which the kernels multiply; diagonals stay exact.
        width: `Layout.width`.
    """

    def __init__(self, terms: Terms, W: Tensor, matmul_precision: MatmulPrecision, width: int) -> None:
        self.layout = Layout(terms.n, terms.n if W.ndim == 1 else W.shape[-1], width)
        self.sizes, self.matmul_precision = terms.sizes, matmul_precision
        self.within: Pairs = tuple((i, i) for i in range(len(self.sizes)))
        self.between: Pairs = tuple(p for i, j in terms.pairs for p in ((i, j), (j, i)))

    def weight(self, W: Tensor) -> Packed:
        """W, or the transpose of its blocks."""
        if W.ndim == 1:
            return self._packed("diagonal", W)
        layout, (p, k, _) = self.layout, W.shape
        if layout.per_block > 1:
            return self._matrix(W[0] if p == 1 else torch.block_diag(*W), self.within)
        pad = layout.tile - k
        return self._packed("own", F.pad(W.mT, (0, pad, 0, pad, 0, layout.spare)))

    def coupling(self, L: Tensor | None, like: Tensor) -> Packed:
        """L or its transpose, which lie in the same tiles; `like` is any tensor on the device."""
        return self._packed("none", like) if L is None else self._matrix(L, self.between)

    def _matrix(self, A: Tensor, pairs: Pairs) -> Packed:
        """A, (n, n), zero outside the pairs (row, column) of blocks; dense if there are none."""
        layout = self.layout
        tiled = self._tiled(A)
        rows, cols, starts = _slots(layout, self.sizes, pairs)
        # A slot gathers its own operand for every row; the rows of a dense column share one.
        if pairs and 2 * len(rows) <= layout.groups * layout.tiles:
            rows, cols = rows.to(A.device), cols.to(A.device)
            found = tiled.permute(0, 2, 3, 1)[rows, cols.clamp(min=0)]  # (slots, group, in, out)
            return self._packed("listed", found * (cols >= 0)[:, :, None, None], cols, starts)
        rest = F.pad(tiled, (0, 0, 0, 0, 0, 0, 0, layout.spare))
        grouped = rest.unflatten(0, (layout.groups, layout.group))
        return self._packed("dense", grouped.permute(0, 3, 4, 1, 2))  # (groups, tiles, in, group, out)

    def _tiled(self, A: Tensor) -> Tensor:
        """A, (n, n), as (row tile, row, column tile, column), with zeros where no unit is."""
        layout = self.layout
        p, k = layout.n // layout.block, layout.block
        pad = layout.per_block * layout.tile - k
        padded = F.pad(A.reshape(p, k, p, k), (0, pad, 0, 0, 0, pad))
        return padded.reshape(layout.tiles, layout.tile, layout.tiles, layout.tile)

    def _packed(
        self, kind: Kind, values: Tensor, cols: Tensor | None = None, starts: Tensor | None = None
    ) -> Packed:
        if self.matmul_precision == "bf16" and kind not in ("none", "diagonal"):
            values = values.to(torch.bfloat16)
        values = values.contiguous()
        # A kernel looks at the lists of listed tiles only; elsewhere it takes any pointer.
        lists = [values if t is None else t.to(values.device, torch.int32) for t in (cols, starts)]
        return Packed(kind, values, *lists)


@lru_cache(maxsize=64)
def _slots(layout: Layout, sizes: tuple[int, ...], pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, cols, starts): the slots that hold all tiles of the pairs (row, column) of blocks.

    rows and cols are (slots, group), cols -1 where a row has no further tile; starts is (groups + 1,).
    A group has as many slots as its fullest row has tiles. On the CPU, and the same for every solve of
    one network: hence the cache.
    """
    spans, unit = [], 0
    for size in sizes:
        spans.append(layout.tiles_of(unit, size))
        unit += size
    found: list[set[int]] = [set() for _ in range(layout.tiles + layout.spare)]
    for i, j in pairs:
        for row in spans[i]:
            found[row].update(spans[j])
    rows: list[list[int]] = []
    cols: list[list[int]] = []
    starts = [0]
    for first in range(0, len(found), layout.group):
        members = range(first, first + layout.group)
        lists = [sorted(found[row]) for row in members]
        for slot in range(max(map(len, lists))):
            rows.append([min(row, layout.tiles - 1) for row in members])
            cols.append([tiles[slot] if slot < len(tiles) else -1 for tiles in lists])
        starts.append(len(rows))
    return torch.tensor(rows), torch.tensor(cols), torch.tensor(starts)
