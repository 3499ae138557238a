"""One layer of a stack of pairs, forward and backward, a few samples at a time: all passes in cache.

    e = B s + b,    x = the states of pairs driven by e,    z = R x + c + d o s,    y = phi(z)
    (p, q) = M y + m,    s' = s + k o tanh(p) o sigmoid(q)

s is (batch, time, width). A norm that is affine is folded into B, b, c and d; of batch norm `moments`
gives the statistics. Adjoint, for g = dE/ds':

    dp = g o k o sigmoid(q) (1 - tanh(p)^2),   dq = g o k o tanh(p) sigmoid(q) (1 - sigmoid(q))
    dz = phi'(z) o M^T (dp, dq),   dx = R^T dz,   de: of the pairs,   ds = g + d o dz + B^T de

Kept for it: e, x, z, p and q; the rest is formed again. In float32 tanh is that of `pairs`, within 5e-7.
The plain twins are `plain_layer` and `torch.var_mean`. On CPUs; not done: one sequence in pieces, if it
is too long for the cache.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.solvers import pairs

ROWS = 784  # of a piece, unless a sequence has more: its arrays stay in a cache of a megabyte
Kind = tuple[str, bool]


def layer(phi: Activation, kind: Kind, s: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """s', (batch, time, width), and the last states, (batch, n).

    Args:
        phi: the activation before the mix.
        kind: of the pairs, as `pairs.of_steps` gives it.
        s: (batch, time, width).
        tensors: A, C, (1, 4, n / 2), and w, (n,), of the pairs; x0, (batch, n); B, (n, width), and b,
            (n,); R, (width, n), c and d, (width,); M, (2 width, width), and m, (2 width,); and k,
            (batch, width), which gets no gradient.
    """
    return _Layer.apply(phi, kind, torch.is_grad_enabled(), s, *tensors)


def plain_layer(phi: Activation, kind: Kind, s: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """As `layer`, by operations that can be differentiated any number of times."""
    A, C, w, x0, B, b, R, c, d, M, m, k = tensors
    x = pairs.plain_states(*kind, _same_steps(s), A, C, w, s @ B.mT + b, x0)
    p, q = (phi(x[:, 1:] @ R.mT + c + d * s) @ M.mT + m).chunk(2, -1)
    return s + k[:, None] * torch.tanh(p) * torch.sigmoid(q), x[:, -1]


def moments(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s, (batch, time, width), itself, its mean and its variance over batch and time, (width,)."""
    return _Moments.apply(s)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phi: Activation, kind: Kind, keep: bool, *given: Tensor) -> Any:
        s, A, C, w, x0, B, b, R, c, d, M, m, k = (t.detach().contiguous() for t in given)
        (batch, time, width), n = s.shape, len(b)
        kept = batch if keep else next(_pieces(batch, time)).stop
        e, z = _empty(s, kept, time, n), _empty(s, kept, time, width)
        x, pq = _empty(s, kept, time + 1, n), _empty(s, kept, time, 2 * width)
        out, last, pair = _empty(s, *s.shape), torch.empty_like(x0), (A.numpy(), C.numpy(), w.numpy())
        states, mixed = pairs.kernels(*kind, pair[0].dtype)[0], _kernels(pair[0].dtype)[0]
        for now in _pieces(batch, time):
            at = now if keep else slice(0, now.stop - now.start)
            torch.addmm(b, s[now].view(-1, width), B.mT, out=e[at].view(-1, n))
            x[at, 0] = x0[now]
            states(*pair, e[at].numpy(), _same_steps(s), x[at].numpy())
            last[now] = x[at, -1]
            torch.addmm(c, x[at, 1:].reshape(-1, n), R.mT, out=z[at].view(-1, width))
            y = phi.function(z[at].addcmul_(d, s[now]))
            torch.addmm(m, y.view(-1, width), M.mT, out=pq[at].view(-1, 2 * width))
            mixed(pq[at].numpy(), s[now].numpy(), k[now].numpy(), out[now].numpy())
        if keep:
            ctx.phi, ctx.kind = phi, kind
            ctx.save_for_backward(*given, e, x, z, pq)
        return out, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        given, (e, x, z, pq) = ctx.saved_tensors[:-4], ctx.saved_tensors[-4:]
        if torch.is_grad_enabled():  # create_graph=True
            found = _again(ctx.phi, ctx.kind, given, ctx.needs_input_grad[3:], grads)
            return None, None, None, *found
        s, A, C, w, x0, B, b, R, c, d, M, m, k = (t.detach().contiguous() for t in given)
        (batch, time, width), n, pair = s.shape, len(b), (A.numpy(), C.numpy(), w.numpy())
        dA, dC, dw, dx0, dB, db, dR, dc, dd, dM, dm = map(
            torch.zeros_like, (A, C, w, x0, B, b, R, c, d, M, m)
        )
        ds, dpair = _empty(s, *s.shape), (dA.numpy(), dC.numpy(), dw.numpy())
        adjoint, unmixed = pairs.kernels(*ctx.kind, dpair[0].dtype)[1], _kernels(dpair[0].dtype)[1]
        for now in _pieces(batch, time):
            g, low, up = grads[0][now].contiguous(), s[now].view(-1, width), z[now].view(-1, width)
            dpq, de = torch.empty_like(pq[now]), torch.empty_like(e[now])
            unmixed(pq[now].numpy(), g.numpy(), k[now].numpy(), dpq.numpy())
            dpq, y = dpq.view(-1, 2 * width), ctx.phi.function(up)
            dM.addmm_(dpq.mT, y)
            dm += dpq.sum(0)
            dz = ctx.phi.pull_back(dpq @ M, up, y)
            dR.addmm_(dz.mT, x[now, 1:].reshape(-1, n))
            dc += dz.sum(0)
            dd += (dz * low).sum(0)
            lam = torch.zeros_like(x[now])
            lam[:, 1:] = (dz @ R).view_as(de)
            lam[:, -1] += grads[1][now]
            adjoint(
                *pair, e[now].numpy(), _same_steps(s), x[now].numpy(), lam.numpy(), *dpair, de.numpy()
            )
            dx0[now], de = lam[:, 0], de.view(-1, n)
            dB.addmm_(de.mT, low)
            db += de.sum(0)
            torch.addmm(g.view(-1, width), de, B, out=ds[now].view(-1, width)).addcmul_(dz, d)
        return None, None, None, ds, dA, dC, dw, dx0, dB, db, dR, dc, dd, dM, dm, None


def _again(phi: Activation, kind: Kind, leaves: Any, needed: Any, grads: Any) -> list[Tensor | None]:
    """Gradients of the leaves, where needed, that can be differentiated again."""
    own = [leaf.view_as(leaf) for leaf in leaves]  # one leaf may have been computed from another
    wanted = [leaf for leaf, need in zip(own, needed, strict=True) if need]
    found = iter(torch.autograd.grad(plain_layer(phi, kind, *own), wanted, grads, create_graph=True))
    return [next(found) if need else None for need in needed]


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor) -> Any:
        mean, var = s.mean((0, 1)), torch.zeros_like(s[0, 0])
        for now in _pieces(*s.shape[:2]):
            var += (s[now] - mean).square_().sum((0, 1))
        ctx.save_for_backward(s)
        return s.view_as(s), mean, var / (s.shape[0] * s.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, dmean: Tensor, dvar: Tensor) -> Tensor:
        (s,) = ctx.saved_tensors
        mean, rows = s.mean((0, 1)), s.shape[0] * s.shape[1]
        slope = 2 / rows * dvar
        shift = dmean / rows - slope * mean
        if torch.is_grad_enabled():  # create_graph=True
            return grad + shift + slope * s
        out = _empty(s, *s.shape)
        for now in _pieces(*s.shape[:2]):
            torch.addcmul(shift, s[now], slope, out=out[now]).add_(grad[now])
        return out


def _pieces(batch: int, time: int) -> Iterator[slice]:
    """Slices of the batch, the first the largest."""
    size = max(1, ROWS // time)
    for start in range(0, batch, size):
        yield slice(start, min(start + size, batch))


def _same_steps(s: Tensor) -> Any:
    return np.zeros((1, s.shape[1]), np.int64)


def _empty(like: Tensor, *shape: int) -> Tensor:
    """By numpy, which asks for large pages: a new array costs a tenth of torch's."""
    return torch.from_numpy(np.empty(shape, like.detach().numpy().dtype))


@cache
def _kernels(dtype: Any) -> tuple[Any, Any]:
    """Compiled: the mix with its skip, and its adjoint."""
    import numba

    compiled = numba.njit(
        error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"}, nogil=True
    )
    tanh = compiled(pairs.tanh_float32 if dtype == np.float32 else pairs.PHIS["tanh"][0])
    half = dtype.type(0.5)

    @compiled
    def mixed(pq: Any, s: Any, k: Any, out: Any) -> None:
        batch, time, width = s.shape
        for b in range(batch):
            for t in range(time):
                at, low, new, scale = pq[b, t], s[b, t], out[b, t], k[b]
                for i in range(width):
                    q = half + half * tanh(half * at[width + i])
                    new[i] = low[i] + scale[i] * tanh(at[i]) * q

    @compiled
    def unmixed(pq: Any, grad: Any, k: Any, dpq: Any) -> None:
        batch, time, width = grad.shape
        for b in range(batch):
            for t in range(time):
                at, g, new, scale = pq[b, t], grad[b, t], dpq[b, t], k[b]
                for i in range(width):  # loops of few arrays, which the compiler can vectorise
                    new[i] = tanh(at[i])
                for i in range(width):
                    new[width + i] = half + half * tanh(half * at[width + i])
                for i in range(width):
                    p, q = new[i], new[width + i]
                    v = g[i] * scale[i] * q
                    new[i] = v * (1 - p * p)
                    new[width + i] = v * p * (1 - q)

    return mixed, unmixed
