"""The matrices of a fused step, each multiplied by its structure: diagonal, blocks, dense, few blocks.

An operator stands for x -> A x on rows of states: x is (rows, n), or (blocks, rows, k) where the few
coupled blocks of L are all that is multiplied. All have the same verbs: `add` (out += A x, in place),
`product` (A x), `transposed`, and `gradient` (total += sum over rows of v x^T, on A's structure).
`low` rounds the operands of products to bfloat16; states and sums stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor


class Operator(Protocol):
    """What a step may ask of its matrices."""

    def add(self, out: Tensor, x: Tensor) -> None: ...

    def product(self, x: Tensor) -> Tensor: ...

    def transposed(self) -> Operator: ...

    def gradient(self, total: Tensor, v: Tensor, x: Tensor) -> None: ...


class Identity:
    """I, of inputs that are e itself, and have no gradient here."""

    def add(self, out: Tensor, x: Tensor) -> None:
        out.add_(x)

    def product(self, x: Tensor) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format)


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
    """A, (n, n), for rows (rows, n)."""

    def __init__(self, A: Tensor, low: bool = False) -> None:
        self.A, self.low = A, low
        # Transposed once: a product with a transposed view is slower at every step.
        self.right = (A.bfloat16() if low else A).mT.contiguous()

    def add(self, out: Tensor, x: Tensor) -> None:
        if self.low:
            out.add_(x.bfloat16() @ self.right)
        else:
            out.addmm_(x, self.right)

    def product(self, x: Tensor) -> Tensor:
        return (x.bfloat16() @ self.right).to(x.dtype) if self.low else x @ self.right

    def transposed(self) -> Dense:
        return Dense(self.A.mT, self.low)

    def gradient(self, total: Tensor, v: Tensor, x: Tensor) -> None:
        if self.low:
            total.add_(v.bfloat16().mT @ x.bfloat16())
        elif x.shape[-1] < v.shape[-1]:  # few inputs: a product with few columns takes ten times as long
            total.add_((x.mT @ v).mT)
        else:
            total.addmm_(v.mT, x)


class BlockDiagonal:
    """blockdiag(W), for W (p, k, k) and rows (rows, p k), or `apart` (p, rows, k).

    A frozen W of a few per cent is multiplied as blocks too: torch's sparse product of 3 % of 16 x 32
    takes as long.
    """

    def __init__(self, W: Tensor, apart: bool, low: bool = False) -> None:
        self.W, self.apart, self.low = W, apart, low
        self.shape = (-1, W.shape[0], W.shape[1])
        self.out = self.blocks = W.new_empty(0)  # of `product`
        self.right = (W.bfloat16() if low else W).mT.contiguous()

    def add(self, out: Tensor, x: Tensor) -> None:
        if not self.apart:
            out, x = out.view(self.shape).transpose(0, 1), x.view(self.shape).transpose(0, 1)
        if self.low:
            out.add_(torch.bmm(x.bfloat16(), self.right))
        else:
            out.baddbmm_(x, self.right)

    def product(self, x: Tensor) -> Tensor:
        """A x, in memory that the next call writes to again."""
        if self.apart:
            return (
                torch.bmm(x.bfloat16(), self.right).to(x.dtype) if self.low else torch.bmm(x, self.right)
            )
        if self.out.shape != x.shape:
            self.out = x.new_empty(x.shape)
            self.blocks = self.out.view(self.shape).transpose(0, 1)
        x = x.view(self.shape).transpose(0, 1)
        if self.low:
            self.blocks.copy_(torch.bmm(x.bfloat16(), self.right))
        else:
            self.blocks.baddbmm_(x, self.right, beta=0)
        return self.out

    def transposed(self) -> BlockDiagonal:
        return BlockDiagonal(self.W.mT, self.apart, self.low)

    def gradient(self, total: Tensor, v: Tensor, x: Tensor) -> None:
        total = total.view(self.W.shape)
        if not self.apart:
            v, x = v.view(self.shape).transpose(0, 1), x.view(self.shape).transpose(0, 1)
        if self.low:
            total.add_(torch.bmm(v.bfloat16().mT, x.bfloat16()))
        elif x.shape[-1] < v.shape[-1]:  # as above
            total.add_(torch.bmm(x.mT, v).mT)
        else:
            total.baddbmm_(v.mT, x)


@dataclass(frozen=True)
class BlockPattern:
    """The nonzero blocks of L: block m is at (rows[m], columns[m]) of `p` rows of blocks."""

    p: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def transposed(self) -> BlockPattern:
        return BlockPattern(self.p, self.columns, self.rows)


class FewBlocks:
    """A matrix of nonzero blocks B (C, k, k) at `pattern`, for rows (p, rows, k)."""

    def __init__(self, B: Tensor, pattern: BlockPattern, low: bool = False) -> None:
        self.B, self.pattern, self.low = B, pattern, low
        self.right = (B.bfloat16() if low else B).mT.contiguous()
        self.rows, self.columns = _indices(pattern, B.device)

    def add(self, out: Tensor, x: Tensor) -> None:
        """`out` must be contiguous: adding into strided memory is ten times slower."""
        x = x.index_select(0, self.columns)
        x = torch.bmm(x.bfloat16(), self.right).to(out.dtype) if self.low else torch.bmm(x, self.right)
        out.index_add_(0, self.rows, x)

    def product(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        self.add(out, x)
        return out

    def transposed(self) -> FewBlocks:
        return FewBlocks(self.B.mT, self.pattern.transposed(), self.low)

    def gradient(self, total: Tensor, v: Tensor, x: Tensor) -> None:
        if self.low:
            v, x = v.bfloat16(), x.bfloat16()
        for block, i, j in zip(total, self.pattern.rows, self.pattern.columns, strict=True):
            block += v[i].mT @ x[j]


# Kept for good, some hundred bytes each: a recorded graph reads them, and may not copy to the device.
@cache
def _indices(pattern: BlockPattern, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(pattern.rows, device=device), torch.tensor(pattern.columns, device=device)
