"""One layer of a stack of pairs in compiled loops, a few samples at a time: all passes in cache.

    e = B v + b,    x = the states of pairs driven by e,    z = R x + c + d o v,    y = phi(z)
    (p, q) = M y + m,    s' = s + k o f(p) o sigmoid(q),    f = tanh or the identity

for s and v = norm(s), (batch, time, width), k (batch, width), and B^T, R^T and M^T as they multiply
rows. Kept for the adjoint are v and the state before each piece of `ROWS` samples: to form the
rest again costs less than to write and to read it. The plain twin is `plain_layer`. On CPUs.
"""

from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Activation
from ctrnn_assembly.solvers import pairs
from ctrnn_assembly.solvers.again import Loop
from ctrnn_assembly.solvers.pairs import compiled, pointwise
from ctrnn_assembly.solvers.threads import in_parts, summed

ROWS = 112  # its arrays stay in the cache, its products on one thread
Kind = tuple[Activation, Activation, Activation]  # of the pairs, phi and f


def plain_layer(kind: Kind, s: Tensor, k: Tensor, x0: Tensor, v: Tensor, *weights: Tensor) -> Any:
    """s' and the last states, (batch, n), by operations that can be differentiated any number of times.

    weights: A, C, (1, 4, n / 2), and w of the pairs; B^T, b; R^T, c, d; M^T, m. k has no gradient.
    """
    A, C, w, B, b, R, c, d, M, m = weights
    which = torch.zeros(1, s.shape[1], dtype=torch.long)
    x = pairs.plain_states(kind[0], which, A, C, w, v @ B + b, x0)
    p, q = (kind[1](x[:, 1:] @ R + c + d * v) @ M + m).chunk(2, -1)
    return s + k[:, None] * kind[2](p) * torch.sigmoid(q), x[:, -1]


class CompiledLayer(Loop):
    """`plain_layer` in compiled loops, of the library's activations."""

    @staticmethod
    def forward(ctx: Any, kind: Kind, *tensors: Tensor) -> Any:
        """s' and the last states, of the tensors of `plain_layer`."""
        s, k, x0, v, *weights = map(_array, tensors)
        before = np.empty((len(s), 1 - s.shape[1] // -ROWS, x0.shape[1]), s.dtype)
        before[:, 0], out = x0, np.empty_like(s)
        run, batched = kernels(*kind, s.dtype)[0], (s, k, v, before, out)
        in_parts(lambda i, j: run(tuple(weights), *(part[i:j] for part in batched)), len(s), s.size)
        ctx.plain, ctx.adjoint = partial(plain_layer, kind), partial(_adjoint, kind)
        ctx.save_for_backward(torch.from_numpy(before), *tensors)
        return torch.from_numpy(out), torch.from_numpy(before[:, -1].copy())


def _adjoint(kind: Kind, needed: Any, grads: Any, before: Tensor, *tensors: Tensor) -> tuple[Any, ...]:
    """Gradients of all tensors of `plain_layer` but k, from those of s' and of the last states."""
    k, _, v, *weights = map(_array, tensors[1:])
    dv, dx0, run = np.empty_like(v), grads[1].numpy().copy(), kernels(*kind, v.dtype)[1]
    batched = _array(grads[0]), k, v, _array(before), dx0, dv

    def adjoint(i: int, j: int) -> list[Any]:
        found = [np.zeros_like(t) for t in weights]
        run(tuple(weights), tuple(found), *(part[i:j] for part in batched))
        return found

    found = summed(adjoint, len(v), v.size)
    return grads[0], None, *map(torch.from_numpy, (dx0, dv, *found))


def _array(tensor: Tensor) -> Any:
    return np.ascontiguousarray(tensor.detach().numpy())


@cache
def kernels(inside: Activation, outside: Activation, gate: Activation, dtype: Any) -> tuple[Any, Any]:
    """The compiled forward and adjoint loops of three activations and a precision."""
    states_of, adjoint_of = pairs.kernels(inside, dtype)
    phi, slope = pointwise(outside, dtype)
    (f, f_slope), (tanh, _) = pointwise(gate, dtype), pointwise(ACTIVATIONS["tanh"], dtype)
    which, ones, half = np.zeros((1, ROWS), np.int64), np.ones(ROWS, dtype), dtype.type(0.5)

    # One function for each pass over a piece: in a larger one they would not be vectorised.
    @compiled
    def activated(y: Any, v: Any, c: Any, d: Any, rise: Any) -> None:
        for t in range(len(v)):
            low, at, up = v[t], y[t], rise[t]
            for i in range(len(c)):
                z = at[i] + c[i] + d[i] * low[i]
                value = phi(z)
                at[i], up[i] = value, slope(z, value)

    @compiled
    def gated(s: Any, k: Any, pq: Any, out: Any) -> None:
        for t in range(len(s)):
            low, new, at = s[t], out[t], pq[t]
            for i in range(len(k)):
                open = half + half * tanh(half * at[len(k) + i])
                new[i] = low[i] + k[i] * f(at[i]) * open

    @compiled
    def gate_adjoint(grad: Any, k: Any, pq: Any) -> None:
        for t in range(len(grad)):
            g, at = grad[t], pq[t]
            for i in range(len(k)):
                p, open = f(at[i]), half + half * tanh(half * at[len(k) + i])
                up = g[i] * k[i] * open
                at[i] = up * f_slope(at[i], p)
                at[len(k) + i] = up * p - up * p * open

    @compiled
    def added(d: Any, dz: Any, below: Any, dv: Any) -> None:
        for t in range(len(dv)):
            new, at, low = dv[t], dz[t], below[t]
            for i in range(len(d)):
                new[i] = d[i] * at[i] + low[i]

    @compiled
    def inner(v: Any, start: Any, weights: Any) -> Any:
        """e, the states, phi(z), phi'(z) and (p, q) of a piece."""
        A, C, w, B, b, R, c, d, M, m = weights
        e, x, rise = v @ B, np.empty((len(v) + 1, len(b)), v.dtype), np.empty_like(v)
        e += b
        x[0] = start
        states_of(A, C, w, e.reshape(1, *e.shape), which, x.reshape(1, *x.shape))
        y = x[1:] @ R
        activated(y, v, c, d, rise)
        pq = y @ M
        pq += m
        return e, x, y, rise, pq

    @compiled
    def forward(weights: Any, s: Any, k: Any, v: Any, before: Any, out: Any) -> None:
        for b in range(len(s)):
            for j in range(before.shape[1] - 1):
                piece = slice(j * ROWS, min((j + 1) * ROWS, s.shape[1]))
                _, x, _, _, pq = inner(v[b, piece], before[b, j], weights)
                before[b, j + 1] = x[-1]
                gated(s[b, piece], k[b], pq, out[b, piece])

    @compiled
    def adjoint(
        weights: Any, found: Any, grad: Any, k: Any, v: Any, before: Any, dx0: Any, dv: Any
    ) -> None:
        A, C, w, B, _, R, _, d, M, _ = weights
        dA, dC, dw, dB, db, dR, dc, dd, dM, dm = found
        BT, RT, MT = B.T.copy(), R.T.copy(), M.T.copy()
        for b in range(len(v)):
            for j in range(before.shape[1] - 2, -1, -1):
                piece = slice(j * ROWS, min((j + 1) * ROWS, v.shape[1]))
                u = v[b, piece]
                one = ones[: len(u)]
                e, x, y, rise, pq = inner(u, before[b, j], weights)
                gate_adjoint(grad[b, piece], k[b], pq)
                dM += y.T @ pq
                dm += one @ pq
                dz = pq @ MT
                dz *= rise
                dR += x[1:].T @ dz
                dc += one @ dz
                lam, de = np.zeros_like(x), np.empty_like(e)
                np.dot(dz, RT, lam[1:])
                lam[-1] += dx0[b]
                adjoint_of(
                    A, C, w, dA, dC, dw, e.reshape(1, *e.shape), which, x.reshape(1, *x.shape),
                    lam.reshape(1, *x.shape), de.reshape(1, *e.shape),
                )  # fmt: skip
                dx0[b] = lam[0]
                dB += u.T @ de
                db += one @ de
                added(d, dz, de @ BT, dv[b, piece])
                dz *= u
                dd += one @ dz

    return forward, adjoint
