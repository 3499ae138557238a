"""Every tensor of the vector field, built once per solve.

    tau x' = -x + post(W pre(x) + b + W_in u) + L x + sum_e K_e psi_e(x)

x-form modules (phi outside) have pre = phi, r-form modules (phi inside) post = phi; the other is the
identity. An assembly of any depth is one `Terms`, and solvers see nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from ctrnn_assembly.activations import Elementwise
from ctrnn_assembly.errors import ShapeError


@dataclass(frozen=True)
class Edge:
    """A nonlinear coupling term K psi(x)."""

    K: Tensor  # (n, n)
    psi: Elementwise


@dataclass(frozen=True)
class Uncertainty:
    """W + dW and L + dL may run in place of W and L, dW on the blocks of W alone.

    A number bounds the spectral norm of dW (and so does a Frobenius norm), an array the size of each of
    its entries; likewise of dL, (n, n). A tuple W has one or the other for each block.

    >>> [round(certify(torch.eye(3) / 2, uncertainty=Uncertainty(r)).rate, 3) for r in (0.0, 0.1, 0.6)]
    [0.5, 0.4, -0.1]
    """

    W: Any
    L: Any = 0.0


@dataclass(frozen=True)
class Terms:
    """The tensors of one vector field.

    >>> terms: Terms = Subnetwork(AdaDiagTanh(), 2, weight=torch.zeros(2, 2), tau=0.5).terms()
    >>> terms(torch.ones(1, 2)).tolist()  # x' = -x / tau
    [[-2.0, -2.0]]
    """

    blocks: tuple[Tensor, ...]  # W_i, (n_i, n_i) each, in the order of the state; sum n_i = n
    pre: Elementwise
    post: Elementwise
    bias: Tensor  # (n,)
    tau: Tensor  # time constants, (n,), > 0
    L: Tensor | None = None  # coupling, (n, n)
    edges: tuple[Edge, ...] = ()
    W_in: Tensor | None = None  # (n, m); None when the input u is already (batch, n)
    pairs: tuple[tuple[int, int], ...] = ()  # coupled blocks i < j: L is zero outside; if empty, dense
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)  # n_i
    diagonal: bool = False  # by construction: solvers use, and give a gradient to, no more of any W_i
    within: Uncertainty | None = None  # for which certificates hold; solvers do not read it

    @property
    def n(self) -> int:
        return self.tau.shape[0]

    def __post_init__(self) -> None:
        # Once, and not in every step.
        object.__setattr__(self, "sizes", tuple(W.shape[0] if W.ndim else 0 for W in self.blocks))

    @property
    def stacked(self) -> Tensor | None:
        """W_i one above the other, (blocks, k, k), if there are several and all of one size."""
        # Not cached: what a solve without gradients has made has no history for the next one.
        several = len(self.blocks) > 1 and len(set(self.sizes)) == 1
        return torch.stack(self.blocks) if several else None

    def weight(self) -> Tensor:
        """W, (n, n), dense block-diagonal."""
        return torch.block_diag(*self.blocks)

    def apply_weight(self, p: Tensor) -> Tensor:
        """W p for p of shape (batch, n), block by block."""
        if len(self.blocks) > 1 and len(set(self.sizes)) == 1:
            stacked = torch.stack(self.blocks)  # no call: it would be one more frame in every step
            parts = p.unflatten(-1, stacked.shape[:2]).transpose(0, 1)
            return torch.bmm(parts, stacked.mT).transpose(0, 1).flatten(1)
        return torch.cat([*map(linear, p.split(self.sizes, dim=-1), self.blocks)], dim=-1)

    def inject(self, u: Tensor | None) -> Tensor:
        """b + W_in u: (batch, n), or (n,) without an input."""
        if u is None or self.W_in is None:
            return self.bias if u is None else self.bias + u
        return torch.addmm(self.bias, u, self.W_in.mT)

    def nonlinear(self, x: Tensor, drive: Tensor, s: Tensor | None = None) -> Tensor:
        """All of tau x' but the leak and the linear coupling; `drive` is b + W_in u.

        s, (batch, n), scales what W and the edges are multiplied with, by default not at all.
        """
        r = self.pre(x) if s is None else s * self.pre(x)
        out = self.post(self.apply_weight(r) + drive)
        for edge in self.edges:
            r = edge.psi(x) if s is None else s * edge.psi(x)
            out = out + r @ edge.K.mT
        return out

    def drift(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """tau x', (batch, n), for x (batch, n) and u (batch, m) or (batch, n)."""
        out = self.nonlinear(x, self.inject(u)) - x
        return out if self.L is None else out + x @ self.L.mT

    def __call__(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """x', (batch, n)."""
        return self.drift(x, u) / self.tau

    def driven(self, W_in: Tensor, bias: Tensor | None = None) -> Self:
        """The same field with input weights (n, m) and, optionally, a further bias (n,)."""
        if W_in.ndim != 2 or W_in.shape[0] != self.n:
            must = f"W_in must be (n, m) with n = {self.n}"
            raise ShapeError(f"{must}; got {tuple(W_in.shape)}. Rows are units, columns are inputs.")
        return replace(self, W_in=W_in, bias=self.bias if bias is None else self.bias + bias)

    def detach_cpu(self) -> Self:
        """The same values on the CPU, without gradients."""
        return self.mapped(lambda tensor: tensor.detach().cpu())

    def double(self) -> Self:
        """The same values in float64 on the CPU."""
        return self.mapped(lambda tensor: tensor.to("cpu", torch.float64))

    def tensors(self) -> list[Tensor]:
        """Every tensor that a gradient can reach, in a fixed order."""
        single = (t for t in (self.bias, self.tau, self.L, self.W_in) if t is not None)
        return [*self.blocks, *single, *(edge.K for edge in self.edges)]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same field with every tensor changed."""
        return replace(
            self,
            blocks=tuple(map(change, self.blocks)),
            bias=change(self.bias),
            tau=change(self.tau),
            L=None if self.L is None else change(self.L),
            edges=tuple(replace(edge, K=change(edge.K)) for edge in self.edges),
            W_in=None if self.W_in is None else change(self.W_in),
        )
