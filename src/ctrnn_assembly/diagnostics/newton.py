"""Roots of x' = f(x) from many starts: Newton's method, and implicit steps where it fails.

    descending Newton:  -J y = f(x),                x <- x + s y,  s = 1, 1/2, ... until |f| falls
    bounded Newton:     the same y,                 x <- x + s y,  s |y| at most (1 + |x|) / 2
    implicit steps:     (I / delta - J) y = f(x),   x <- x + y,    delta grows as |f| falls

Each start tries them in this order until one succeeds. A contracting net has exactly one root and a
regular J everywhere, so that the first gets there from any start if phi is smooth. In nets with many
roots it ends in valleys of |f|, which the second leaves; both find stable and unstable roots alike. The
third integrates by linearly implicit Euler steps of length delta, and ends in stable ones.

Cost: one LU factorisation, 2 n^3 / 3, an iteration and start, about 0.2 s for n = 2048 on one core;
memory: about three times the Jacobians of the starts that are factorised at once (`CHUNK`).

Source: Newton with Armijo's line search, and pseudo-transient continuation: Kelley 2003; Kelley and
Keyes 1998.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.jacobian import SplitMap

Move = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

CHUNK = 2**24  # numbers in the Jacobians factorised at once: 128 MiB, or one larger Jacobian
HALVINGS = 30
SMALL_STEP = 1e-9


@dataclass(frozen=True)
class Search:
    """x' = f(x) under one input, (1, m) or None, and when to stop."""

    flow: SplitMap
    drive: Tensor | None
    tolerance: float
    iterations: int

    def run(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Where the starts (starts, n) end, and max |tau x'| there, (starts,)."""
        x = self.newton(start, self._descend)
        for attempt in (lambda z: self.newton(z, bounded_step), self.settle):
            lost = ~self.accepts(x)
            if bool(lost.any()):
                x[lost] = self.newton(attempt(start[lost]), self._descend)
        return x, self.residual(x)

    def accepts(self, x: Tensor) -> Tensor:
        """Which states are fixed points, (batch,)."""
        return self.residual(x) <= self.tolerance * (1 + x.abs().amax(1))

    def scaled(self, x: Tensor) -> Tensor:
        """tau x', (batch, n)."""
        return self.flow(x, self.drive) * self.flow.terms.tau

    def residual(self, x: Tensor) -> Tensor:
        """max |tau x'|, (batch,)."""
        return self.scaled(x).abs().amax(1)

    def newton(self, x: Tensor, move: Move) -> Tensor:
        """Newton's method from x (batch, n), each until its step is tiny or does not help."""
        x, active = x.clone(), torch.arange(len(x))
        for _ in range(self.iterations):
            old = x[active]
            new, moved = move(old, self._solve(old, old.new_zeros(len(old))))
            x[active] = new
            going = (new - old).abs().amax(1) > SMALL_STEP * (1 + new.abs().amax(1))
            active = active[moved & going]
            if not len(active):
                break
        return x

    def settle(self, x: Tensor) -> Tensor:
        """Linearly implicit Euler from x (batch, n), whose steps grow as |f| falls.

        Where a long step would go against the flow it is not taken, but a shorter one after it.
        """
        tau = self.flow.terms.tau
        f = self.scaled(x)
        delta = tau.min().expand(len(x))
        for _ in range(self.iterations):
            y = self._solve(x, 1 / delta)
            along = (y * f / tau).sum(1) > 0
            x = torch.where(along[:, None], x + y, x)
            before, f = f.norm(dim=1), self.scaled(x)
            growth = (before / f.norm(dim=1).clamp(min=1e-300)).nan_to_num(nan=0.0).clamp(0.2, 5.0)
            delta = delta * torch.where(along, growth, 0.2)
            delta = delta.clamp(1e-3 * float(tau.min()), 1e6 * float(tau.max()))
            if bool((f.abs().amax(1) <= self.tolerance).all()):
                break
        return x

    def _solve(self, x: Tensor, inverse_delta: Tensor) -> Tensor:
        """y with (I / delta - J) y = x', of least norm where that is singular; (batch, n)."""
        parts = []
        chunk = max(1, CHUNK // x.shape[1] ** 2)
        for z, inverse in zip(x.split(chunk), inverse_delta.split(chunk), strict=True):
            A = -self.flow.jacobian(z, self.drive).matrix()
            A.diagonal(dim1=1, dim2=2).add_(inverse[:, None])
            f = self.flow(z, self.drive)[..., None]
            y, info = torch.linalg.solve_ex(A, f)
            bad = (info != 0) | ~torch.isfinite(y).all(1)[:, 0]
            bad &= torch.isfinite(A).all(2).all(1) & torch.isfinite(f).all(1)[:, 0]
            if bool(bad.any()):
                y[bad] = torch.linalg.lstsq(A[bad], f[bad], driver="gelsd").solution
            parts.append(y[..., 0])
        return torch.cat(parts)

    def _descend(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x + s y with |f| enough below its value at x (Armijo), and whether there was such an s."""
        before = self.scaled(x).norm(dim=1)
        s = torch.ones_like(before)
        for _ in range(HALVINGS):
            trial = x + s[:, None] * y
            good = self.scaled(trial).norm(dim=1) <= (1 - 1e-4 * s) * before
            if bool(good.all()):
                break
            s = torch.where(good, s, s / 2)
        return torch.where(good[:, None], trial, x), good


def bounded_step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x + s y with s <= 1 and s max |y| <= (1 + rms x) / 2; it moves unless y is not finite."""
    size, scale = y.abs().amax(1), 1 + x.square().mean(1).sqrt()
    s = (scale / 2 / size.clamp(min=1e-300)).clamp(max=1)
    good = torch.isfinite(size)
    return torch.where(good[:, None], x + s[:, None] * y, x), good
