"""The matrices of a fused step, each multiplied by its structure: diagonal, blocks, dense, few blocks.

An operator stands for x -> A x on rows of states: x is (rows, n), or (blocks, rows, k) where the few
coupled blocks of L are all that is multiplied. All have the same verbs: `add` (out += A x, in place),
`product` (A x), `transposed`, and `gradient` (total += sum over rows of v x^T, on A's structure). `low`
rounds the operands of products to bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


class Diagonal:
    """diag(w), for w (n,), or (blocks, 1, k) for rows (blocks, rows, k)."""

    def __init__(self, w: Tensor) -> None:
        self.w = w

    def add(self, out: Tensor, x: Tensor) -> None:
        out.addcmul_(x, self.w)

    def product(self, x: Tensor) -> Tensor:
        return x * self.w

    def transposed(self) -> Diagonal:
        return self

    def gradient(self, total: Tensor, v: Tensor, x: Tensor) -> None:
        total.view(self.w.shape).add_((v * x).sum_to_size(self.w.shape))


class Dense:
    """A, (n, n); or blockdiag(A), A (p, k, k), for rows (rows, p k), or `apart` (p, rows, k)."""

    def __init__(self, A: Tensor, apart: bool = False, low: bool = False) -> None:
        self.A, self.apart, self.low = A, apart, low
        self.rows = None if apart or A.ndim == 2 else (-1, *A.shape[:2])  # as which blocks are seen
        # Transposed once: a product with a transposed view is slower at every step.
        self.right = (A.bfloat16() if low else A).mT.contiguous()
        self.times: Callable[..., Tensor] = torch.mm if A.ndim == 2 else torch.bmm
        self.add_times: Callable[..., Tensor] = Tensor.addmm_ if A.ndim == 2 else Tensor.baddbmm_

    def add(self, out: Tensor, x: Tensor) -> None:
        if self.rows is not None:  # in place: a call would be one more frame in every step
            out, x = out.view(self.rows).transpose(0, 1), x.view(self.rows).transpose(0, 1)
        if self.low:
            out.add_(self.times(x.bfloat16(), self.right))
        else:
            self.add_times(out, x, self.right)

    def product(self, x: Tensor) -> Tensor:
        seen = x if self.rows is None else x.view(self.rows).transpose(0, 1)
        found = self.times(seen.bfloat16() if self.low else seen, self.right).to(x.dtype)
        return found if self.rows is None else found.transpose(0, 1).reshape(x.shape)

    def apply_(self, x: Tensor) -> None:
        """x becomes A x, for A (n, n)."""
        x.copy_(self.times(x, self.right))

    def transposed(self) -> Dense:
        return Dense(self.A.mT, self.apart, self.low)

    def gradient(self, total: Tensor, v: Tensor, x: Tensor) -> None:
        total = total.view(self.A.shape) if self.A.ndim == 3 else total
        if self.rows is not None:
            v, x = v.view(self.rows).transpose(0, 1), x.view(self.rows).transpose(0, 1)
        if self.low:
            total.add_(self.times(v.bfloat16().mT, x.bfloat16()))
        elif x.shape[-1] < v.shape[-1]:  # few inputs: a product with few columns takes ten times as long
            total.add_(self.times(x.mT, v).mT)
        else:
            self.add_times(total, v.mT, x)


@dataclass(frozen=True)
class BlockPattern:
    """The nonzero blocks of L: block m is at (rows[m], columns[m]) of `p` rows of blocks."""

    p: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]


class FewBlocks:
    """A matrix of nonzero blocks B (C, k, k) at `pattern`, for rows (p, rows, k)."""

    def __init__(self, B: Tensor, pattern: BlockPattern, low: bool = False) -> None:
        self.B, self.pattern, self.low = B, pattern, low
        self.right = (B.bfloat16() if low else B).mT.contiguous()
        self.rows, self.columns = indices(pattern, B.device)

    def add(self, out: Tensor, x: Tensor) -> None:
        """`out` must be contiguous: adding into strided memory is ten times slower."""
        x = x.index_select(0, self.columns)
        x = torch.bmm(x.bfloat16() if self.low else x, self.right)
        out.index_add_(0, self.rows, x.to(out.dtype))

    def transposed(self) -> FewBlocks:
        pattern = self.pattern
        return FewBlocks(self.B.mT, BlockPattern(pattern.p, pattern.columns, pattern.rows), self.low)

    def gradient(self, total: Tensor, v: Tensor, x: Tensor) -> None:
        if self.low:
            v, x = v.bfloat16(), x.bfloat16()
        for block, i, j in zip(total, self.pattern.rows, self.pattern.columns, strict=True):
            block += v[i].mT @ x[j]


# Kept for good, some hundred bytes each: a recorded graph reads them, and may not copy to the device.
@cache
def indices(pattern: BlockPattern, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(pattern.rows, device=device), torch.tensor(pattern.columns, device=device)
