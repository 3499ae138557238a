"""Forward Euler with a hand-written adjoint: the fast path, with `euler` as its slow twin.

Forward, for one step with a = dt / tau (elementwise, (1 or batch, n)):

    p = pre(x),  z = W p + b + W_in u,  f = post(z) - x + L x + sum_e K_e psi_e(x),  x+ = x + a f.

Backward, for the adjoint lam+ of x+:

    v = a lam+,  q = post'(z) v,
    lam = lam+ - v + pre'(x) (W^T q) + L^T v + sum_e psi_e'(x) (K_e^T v) + (gradient of this state),
    dW = q^T p,  db = sum q,  dW_in = q^T u,  du = q W_in,  dL = v^T x,  dK_e = v^T psi_e(x),
    d(1/tau) = sum lam+ (x+ - x) / (1/tau).

Cost: T (n^2 + sum n_i^2) batch multiply-adds each for the states, the adjoint and the weight
gradients; memory: the T states, plus CHUNK steps of v and q, so that weight gradients are a few large
products. Not done here: use of the zero blocks of L, checkpointing, second derivatives (refused), a
gradient with respect to dt (refused).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.terms import Edge, Terms

CHUNK = 32


def euler_adjoint(terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor) -> Tensor:
    """All states of forward Euler, (time + 1, batch, n); arguments as `euler.euler`."""
    assert not dt.requires_grad  # `solve` refuses it
    W = stacked_weight(terms)
    rest = (terms.bias, 1 / terms.tau, terms.L, terms.W_in, *(edge.K for edge in terms.edges))
    return _Euler.apply(terms, x0, drive, dt, W, *rest)


def stacked_weight(terms: Terms) -> Tensor:
    """W as (blocks, k, k) if all blocks have one size, else dense as (1, n, n)."""
    if len(set(terms.sizes)) == 1:
        return torch.stack(terms.blocks)
    return terms.weight()[None]


@dataclass
class _Field:
    """The tensors of one step and its adjoint, detached, with W stacked."""

    terms: Terms
    W: Tensor  # (blocks, k, k)
    inv_tau: Tensor

    def inner(self, x: Tensor, u: Tensor | None) -> Tensor:
        """z = W pre(x) + b + W_in u."""
        terms = self.terms
        p = x if terms.pre.is_identity else terms.pre(x)
        return _blockwise(p, self.W.mT).add_(terms.inject(u))

    def drift(self, x: Tensor, u: Tensor | None) -> Tensor:
        terms = self.terms
        z = self.inner(x, u)
        f = z if terms.post.is_identity else terms.post(z)
        f = f.sub_(x)
        if terms.L is not None:
            f.addmm_(x, terms.L.mT)
        for edge in terms.edges:
            f.addmm_(edge.psi(x), edge.K.mT)
        return f

    def pull_back(self, x: Tensor, u: Tensor | None, v: Tensor) -> tuple[Tensor, Tensor]:
        """(q, J^T v + v): the adjoint of z, and of x without the leak."""
        terms = self.terms
        q = v if terms.post.is_identity else terms.post.slope_at(self.inner(x, u)) * v
        back = _blockwise(q, self.W)
        if not terms.pre.is_identity:
            back = back.mul_(terms.pre.slope_at(x))
        if terms.L is not None:
            back.addmm_(v, terms.L)
        for edge in terms.edges:
            back.addcmul_(edge.psi.slope_at(x), v @ edge.K)
        return q, back


def _blockwise(p: Tensor, W: Tensor) -> Tensor:
    """p (batch, n) times the blocks of W (blocks, k, k), from the right; a fresh (batch, n)."""
    blocks, k, _ = W.shape
    if blocks == 1:
        return p @ W[0]
    parts = p.view(p.shape[0], blocks, k).transpose(0, 1)
    return torch.bmm(parts, W).transpose(0, 1).reshape(p.shape[0], blocks * k)


class _Euler(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: Terms,
        x0: Tensor,
        drive: Tensor | None,
        dt: Tensor,
        W: Tensor,
        bias: Tensor,
        inv_tau: Tensor,
        L: Tensor | None,
        W_in: Tensor | None,
        *K: Tensor,
    ) -> Tensor:
        field = _field(terms, W, bias, inv_tau, L, W_in, K)
        X = x0.new_empty(len(dt) + 1, *x0.shape)
        X[0] = x0
        for k, step in enumerate(dt):
            f = field.drift(X[k], None if drive is None else drive[k])
            torch.addcmul(X[k], step[:, None] * inv_tau, f, out=X[k + 1])
        ctx.terms = terms
        ctx.save_for_backward(X, drive, dt, W, bias, inv_tau, L, W_in, *K)
        return X

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; `once_differentiable` may give None instead
            raise SolverError(
                "the fused Euler solver has no second derivatives. Use method='euler-plain'."
            )
        with torch.autocast(grad.device.type, enabled=False):  # as in the forward pass
            return _adjoint(ctx, grad)


def _adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    X, drive, dt, W, bias, inv_tau, L, W_in, *K = ctx.saved_tensors
    field = _field(ctx.terms, W, bias, inv_tau, L, W_in, K)
    sums = _Gradients(field, drive, ctx.needs_input_grad)
    lam = grad[-1].clone()
    V = X.new_empty(min(CHUNK, len(dt)), *lam.shape)
    Q = V if field.terms.post.is_identity else torch.empty_like(V)
    for end in range(len(dt), 0, -CHUNK):
        start = max(0, end - CHUNK)
        for k in range(end - 1, start - 1, -1):
            sums.add_tau(lam, X[k + 1], X[k])
            v = torch.mul(dt[k][:, None] * inv_tau, lam, out=V[k - start])
            q, back = field.pull_back(X[k], None if drive is None else drive[k], v)
            if Q is not V:
                Q[k - start] = q
            lam.sub_(v).add_(back).add_(grad[k])
        sums.add_chunk(X[start:end], V[: end - start], Q[: end - start], start)
    return sums.result(lam)


def _field(
    terms: Terms,
    W: Tensor,
    bias: Tensor,
    inv_tau: Tensor,
    L: Tensor | None,
    W_in: Tensor | None,
    K: tuple[Tensor, ...] | list[Tensor],
) -> _Field:
    edges = tuple(Edge(k, edge.psi) for k, edge in zip(K, terms.edges, strict=True))
    return _Field(replace(terms, bias=bias, L=L, W_in=W_in, edges=edges), W, inv_tau)


class _Gradients:
    """The sums over time of the parameter gradients, chunk by chunk."""

    def __init__(self, field: _Field, drive: Tensor | None, needs: tuple[bool, ...]) -> None:
        terms = field.terms
        self.field, self.drive = field, drive
        # The order of the arguments of _Euler.apply.
        self.needs_x0, self.needs_drive = needs[1], needs[2]
        parts = (field.W, terms.bias, field.inv_tau, terms.L, terms.W_in, *(e.K for e in terms.edges))
        wanted = needs[4:]
        self.sums = [
            torch.zeros_like(part) if need and part is not None else None
            for part, need in zip(parts, wanted, strict=True)
        ]
        self.drive_grad = torch.empty_like(drive) if self.needs_drive and drive is not None else None

    def add_tau(self, lam: Tensor, x_next: Tensor, x: Tensor) -> None:
        inv_tau = self.sums[2]
        if inv_tau is not None:
            inv_tau += (lam * (x_next - x)).sum(0) / self.field.inv_tau

    def add_chunk(self, X: Tensor, V: Tensor, Q: Tensor, start: int) -> None:
        """X, V, Q: (steps, batch, n) of one chunk, whose first step is `start`."""
        terms = self.field.terms
        x, v, q = X.flatten(0, 1), V.flatten(0, 1), Q.flatten(0, 1)
        W, bias, _, L, W_in, *K = self.sums
        if W is not None:
            p = x if terms.pre.is_identity else terms.pre(x)
            q_blocks = rearrange(q, "steps (block k) -> block k steps", block=len(W))
            W += torch.bmm(q_blocks, rearrange(p, "steps (block k) -> block steps k", block=len(W)))
        if bias is not None:
            bias += q.sum(0)
        if L is not None:
            L.addmm_(v.mT, x)
        for total, edge in zip(K, terms.edges, strict=True):
            if total is not None:
                total.addmm_(v.mT, edge.psi(x))
        if self.drive is None:
            return
        u = self.drive[start : start + len(X)]
        if W_in is not None:
            W_in.addmm_(q.mT, u.flatten(0, 1))
        if self.drive_grad is not None:
            out = Q if terms.W_in is None else Q @ terms.W_in
            self.drive_grad[start : start + len(X)] = out

    def result(self, lam: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient an argument of _Euler.apply."""
        return (None, lam if self.needs_x0 else None, self.drive_grad, None, *self.sums)
