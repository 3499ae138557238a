"""One step of a grid solver on reused buffers, W and L used by their structure, and its adjoint.

    x+ = D x + P x + Q post(W pre(x) + e) + sum_e K_e psi_e(x),      e = E [u, 1]

D is diagonal. Forward Euler has D = 1 - h, P = h L, Q = h (h = dt / tau), and h goes into W and E where
post is the identity; a semi-implicit step has dense P and Q. With steps of different lengths the tensors
are those of x+ = x + dt_k (D x + ...), and D = -1 / tau.

Adjoint, for v = dt_k lam+ (or lam+), z = W pre(x) + e, f = post(z):

    q = post'(z) o Q^T v,   lam = D v + P^T v + pre'(x) o (W^T q) + sum psi'(x) o (K^T v)   (+ lam+)
    dW = q pre(x)^T,  dE = [u, 1]^T q,  dP = v x^T,  dQ = v f^T,  dK = v psi(x)^T,  dD = v o x

States are (blocks p, batch, k) views. If L has all its blocks the memory is (batch, n), one product a
step; if it has few, it is (blocks, time, batch, k), and only those are multiplied: a step costs
batch (p k^2 + C k^2) multiply-adds, C the number of blocks of L, whatever n is. A frozen W of a few per
cent is multiplied as blocks too: torch's sparse product of 3 % of 16 x 32 takes as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ctrnn_assembly.activations import Elementwise

Products = Literal["full", "tf32", "bf16"]


@dataclass(frozen=True)
class Cells:
    """The nonzero blocks of L: block m is at (rows[m], columns[m])."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """The tensors of one step; p blocks of k units, n = p k.

    Args:
        pre, post: the activations before and after W.
        W: (p, k, k); or (p, 1, k), the diagonals.
        D: (p, 1, k).
        P: (n, n); or (C, k, k), the blocks at `cells`; or None.
        Q: None for the identity, (p, 1, k) for a diagonal, (n, n).
        E: (m, n), for inputs (time, batch, m); or None if the inputs are e itself, (time, batch, n).
        K, psi: nonlinear couplings, (n, n) each.
        cells: see P.
        products: "bf16" rounds the operands of the products to bfloat16; states stay as they are.
    """

    pre: Elementwise
    post: Elementwise
    W: Tensor
    D: Tensor
    P: Tensor | None
    Q: Tensor | None
    E: Tensor | None
    K: tuple[Tensor, ...] = ()
    psi: tuple[Elementwise, ...] = ()
    cells: Cells | None = None
    products: Products = "full"

    @property
    def form(self) -> Form:
        return Form(self.pre, self.post, self.psi, self.cells, self.products)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Everything that has a gradient, as `Stepper` takes it."""
        return (self.W, self.D, self.P, self.Q, self.E, *self.K)


@dataclass(frozen=True)
class Form:
    """What a `Step` is apart from its tensors."""

    pre: Elementwise
    post: Elementwise
    psi: tuple[Elementwise, ...]
    cells: Cells | None
    products: Products


class Stepper:
    """A `Step` with its transposes and index tensors, for one pass over time; makes no gradients."""

    def __init__(self, form: Form, tensors: tuple[Tensor | None, ...]) -> None:
        W, D, P, Q, E, *K = cast(Any, tensors)
        self.form, self.raw = form, tensors
        self.p, self.k = W.shape[0], W.shape[2]
        self.low = form.products == "bf16"
        self.D, self.w, self.has_P, self.Q_rank = D, W, P is not None, 0 if Q is None else Q.ndim
        self.E = E
        self.diagonal = W.shape[1] == 1 and self.k > 1
        # Transposed once: a product with a transposed view is slower at every step.
        self.W_T, self.W = self._operands(None if self.diagonal else W)
        self.P_T, self.P = self._operands(P)
        self.Q_T, self.Q = self._operands(None if self.Q_rank == 3 else Q)
        self.Q = Q if self.Q_rank == 3 else self.Q
        couplings = [self._operands(weight) for weight in K]
        self.K_T, self.K = [K_T for K_T, _ in couplings], [K for _, K in couplings]
        self.E_blocks = self._unused() if E is None else self.blocks(E).contiguous()  # (p, m, k)
        if form.cells is not None:
            self.rows, self.columns = _indices(form.cells, W.device)

    @property
    def explicit(self) -> bool:
        """Whether e and W pre(x) are added to the state as they are: Q and post do nothing."""
        return self.Q_rank == 0 and self.form.post.is_identity

    def _operands(self, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """The transpose and the matrix itself, as operands of products; what is None is not used."""
        if weight is None:
            return self._unused(), self._unused()
        weight = weight.bfloat16() if self.low else weight
        return weight.mT.contiguous(), weight.contiguous()

    def _unused(self) -> Tensor:
        return self.w.new_empty(0)

    def shape(self, length: int, batch: int) -> tuple[int, ...]:
        """Of states in the memory order that suits L."""
        if self.form.cells is not None:
            return (self.p, length, batch, self.k)
        return (length, batch, self.p, self.k)

    def states(self, memory: Tensor) -> Tensor:
        """Memory of this `shape` as (length, p, batch, k)."""
        return memory.transpose(0, 1) if self.form.cells is not None else memory.transpose(1, 2)

    def advance(self, x: Tensor, e: Tensor, dt: Tensor | None, out: Tensor) -> None:
        """x+ into `out`, for x (p, batch, k), inputs e (batch, m), and dt (1,), (batch,) or None."""
        form = self.form
        # Adding up in a piece of its own: `index_add_` into strided memory is ten times slower.
        new = out if dt is None and form.cells is None else torch.empty_like(x)
        torch.mul(x, self.D, out=new)
        if form.cells is not None:
            new.index_add_(0, self.rows, self._bmm(x.index_select(0, self.columns), self.P_T))
        elif self.has_P:
            self._add_product(new, x, self.P_T)
        p = self.apply(form.pre, x)
        if self.explicit:
            self._add_weighted(new, p)
            self._add_input(new, e)
        else:
            self._add_outer(new, self.apply(form.post, self.inner(p, e)))
        for psi, K_T in zip(form.psi, self.K_T, strict=True):
            self._add_product(new, self.apply(psi, x), K_T)
        if dt is not None:
            torch.addcmul(x, dt[:, None], new, out=out)
        elif new is not out:
            out.copy_(new)

    def inner(self, p: Tensor, e: Tensor) -> Tensor:
        """z = W p + e for p (..., p, batch, k)."""
        z = torch.zeros_like(p)
        self._add_input(z, e)
        self._add_weighted(z, p)
        return z

    def retreat(
        self, v: Tensor, q: Tensor, x: Tensor, p: Tensor, psi: list[Tensor], out: Tensor
    ) -> None:
        """The adjoint of x into `out`, without what a step length adds; p = pre(x), psi_e(x) given."""
        form = self.form
        new = out if form.cells is None else torch.empty_like(v)
        torch.mul(v, self.D, out=new)
        if form.cells is not None:
            new.index_add_(0, self.columns, self._bmm(v.index_select(0, self.rows), self.P))
        elif self.has_P:
            self._add_product(new, v, self.P)
        for phi, y, K in zip(form.psi, psi, self.K, strict=True):
            back = self._add_product(torch.zeros_like(v), v, K)
            new.add_(self.pull_back(phi, back, x, y))
        back = q * self.w if self.diagonal else self._bmm(q, self.W)
        torch.add(new, self.pull_back(form.pre, back, x, p), out=out)

    def inner_adjoint(self, v: Tensor, z: Tensor | None, f: Tensor | None) -> Tensor:
        """q = post'(z) o Q^T v."""
        if self.Q_rank:
            v = v * self.Q if self.Q_rank == 3 else self._add_product(torch.zeros_like(v), v, self.Q)
        if z is None or f is None:
            return v
        return self.pull_back(self.form.post, v, z, f)

    # The state is (p, batch, k); these see it as (batch, n) where the memory is that, or as blocks.

    def flat(self, x: Tensor) -> Tensor:
        """(..., p, batch, k) as (..., batch, n): a view if L is dense, else a copy."""
        return x.transpose(-3, -2).flatten(-2)

    def blocks(self, y: Tensor) -> Tensor:
        """(..., batch, n) as (..., p, batch, k)."""
        return y.unflatten(-1, (self.p, self.k)).transpose(-3, -2)

    def _is_flat(self, x: Tensor) -> bool:
        """Whether x (p, batch, k) is (batch, n) in memory, so that `flat` is a view to write to.

        One's own activation may have put its values into another order.
        """
        return self.p == 1 or (x.stride(0) == self.k and x.stride(2) == 1)

    def apply(self, phi: Elementwise, x: Tensor) -> Tensor:
        if phi.is_identity:
            return x
        return phi(x) if len(phi.runs) == 1 else self.blocks(phi(self.flat(x)))

    def pull_back(self, phi: Elementwise, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """v o phi'(x) for y = phi(x)."""
        if phi.is_identity:
            return v
        if len(phi.runs) == 1:
            return phi.pull_back(v, x, y)
        return self.blocks(phi.pull_back(self.flat(v), self.flat(x), self.flat(y)))

    def _add_weighted(self, out: Tensor, p: Tensor) -> None:
        if self.diagonal:
            out.addcmul_(p, self.w)
        else:
            self._add_blocks(out, p, self.W_T)

    def _add_blocks(self, out: Tensor, a: Tensor, W: Tensor) -> None:
        """out += a W block by block, for (p, rows, k) or (steps, p, batch, k)."""
        if a.ndim == 4:
            out.add_(torch.matmul(a.bfloat16() if self.low else a, W))
        elif self.low:
            out.add_(torch.bmm(a.bfloat16(), W))
        else:
            out.baddbmm_(a, W)

    def _bmm(self, a: Tensor, W: Tensor) -> Tensor:
        return torch.bmm(a.bfloat16(), W).to(a.dtype) if self.low else torch.bmm(a, W)

    def _add_product(self, out: Tensor, a: Tensor, W: Tensor) -> Tensor:
        """out += a W for a dense (n, n) W."""
        flat = self.flat(a)
        if self.low:
            return out.add_(self.blocks(torch.mm(flat.bfloat16(), W)))
        if not self._is_flat(out):
            return out.add_(self.blocks(flat @ W))
        self.flat(out).addmm_(flat, W)
        return out

    def _add_input(self, out: Tensor, e: Tensor) -> None:
        """out += E [u, 1], for inputs (batch, m), or (steps, batch, m)."""
        if self.E is None:
            out.add_(self.blocks(e))
        elif out.ndim == 3 and self._is_flat(out):
            self.flat(out).addmm_(e, self.E)
        elif out.ndim == 3:
            out.baddbmm_(e.expand(self.p, *e.shape), self.E_blocks)
        else:
            out.add_(self.blocks(e @ self.E))

    def _add_outer(self, out: Tensor, f: Tensor) -> None:
        """out += Q f."""
        if self.Q_rank == 0:
            out.add_(f)
        elif self.Q_rank == 3:
            out.addcmul_(f, self.Q)
        else:
            self._add_product(out, f, self.Q_T)


class Sums:
    """The gradients of a `Step`'s tensors, summed over segments of time: a few large products each."""

    def __init__(self, stepper: Stepper, needed: tuple[bool, ...]) -> None:
        self.stepper = stepper
        self.sums = [
            torch.zeros_like(t) if need and t is not None else None
            for t, need in zip(stepper.raw, needed, strict=True)
        ]

    def add(
        self,
        x: Tensor,
        p: Tensor,
        v: Tensor,
        q: Tensor,
        f: Tensor | None,
        psi: list[Tensor],
        inputs: Tensor,
    ) -> None:
        """All of one segment: (steps, p, batch, k), and inputs (steps, batch, m)."""
        W, D, P, Q, E, *K = self.sums
        if W is not None:
            self._add_W(W, q, p)
        if D is not None:
            D += (v * x).sum((0, 2))[:, None]
        if P is not None:
            self._add_P(P, v, x)
        if Q is not None:
            assert f is not None
            if Q.ndim == 3:
                Q += (v * f).sum((0, 2))[:, None]
            else:
                self._add_dense(Q, v, f)
        if E is not None:
            u = inputs.flatten(0, 1).mT
            E += self.stepper.flat(torch.matmul(u, _joined(q)))
        for total, y in zip(K, psi, strict=True):
            if total is not None:
                self._add_dense(total, v, y)

    def _add_W(self, W: Tensor, q: Tensor, p: Tensor) -> None:
        if self.stepper.diagonal:
            W += (q * p).sum((0, 2))[:, None]
        else:
            W += self._product(_joined(q).mT, _joined(p))

    def _add_P(self, P: Tensor, v: Tensor, x: Tensor) -> None:
        cells = self.stepper.form.cells
        if cells is None:
            self._add_dense(P, v, x)
            return
        rows, columns = _joined(v), _joined(x)
        for total, i, j in zip(P, cells.rows, cells.columns, strict=True):
            total += self._product(rows[i].mT, columns[j])

    def _add_dense(self, total: Tensor, v: Tensor, x: Tensor) -> None:
        total += self._product(self._rows(v).mT, self._rows(x))

    def _rows(self, x: Tensor) -> Tensor:
        """(steps, p, batch, k) as (steps batch, n)."""
        return self.stepper.flat(x).flatten(0, 1)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.bfloat16() @ b.bfloat16()).to(b.dtype) if self.stepper.low else a @ b


def _joined(x: Tensor) -> Tensor:
    """(steps, p, batch, k) as (p, steps batch, k), a view in both memory orders."""
    return x.transpose(0, 1).flatten(1, 2)


def segments(steps: int, length: int) -> Iterator[tuple[int, int]]:
    """(start, end) of consecutive pieces of time, in order."""
    for start in range(0, steps, length):
        yield start, min(start + length, steps)


# Kept for good, some hundred bytes each: a recorded graph reads them, and may not copy to the device.
@cache
def _indices(cells: Cells, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(cells.rows, device=device), torch.tensor(cells.columns, device=device)
