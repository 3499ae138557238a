"""The compiled loop of pairs: single units, each coupled to one other, a step of 2 x 2 matrices.

    z+ = A z + C g,    g = w o phi(z) + e

for pairs z = (x_2k, x_2k+1), with A and C the (2, 2) matrices of a scheme's row for that pair, and e the
drive b + W_in u. Steps of several lengths have a pair of matrices each; of `selective` every pair and
sample has a step of its own. Adjoint, for lam+ = dE/dz+:

    v = C^T lam+,   lam = A^T lam+ + phi'(z) o w o v
    de = v,   dw = v o phi(z),   dA = lam+ z^T,   dC = lam+ g^T

Cost: O(batch T n), in time and memory. The adjoint of one sample runs backwards alone, and writes lam
and de; a second sweep, while that sample is in the cache, adds up the gradients of A, C and w. Compiled
by numba at first use (seconds), for `ACTIVATIONS`, on CPUs. The plain twin is
`schemes.integrate`; second derivatives go through `plain_states`.
"""

from dataclasses import replace
from functools import cache, partial
from math import erfc, exp, pi, sqrt
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Activation
from ctrnn_assembly.schemes import Scheme, step_pair
from ctrnn_assembly.solvers.again import Loop
from ctrnn_assembly.solvers.threads import in_parts, summed
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import holds, transformed


def compiled(function: Any, fast: tuple[str, ...] = ("contract", "reassoc", "nsz", "arcp")) -> Any:
    """By numba, at the first call; by default sums may be reordered."""
    import numba

    return numba.njit(error_model="numpy", fastmath={*fast}, nogil=True)(function)


def formulas(one: Any, tanh: Any, sigmoid: Any, normal: Any) -> dict[str, tuple[Any, Any]]:
    """phi by x, and phi' by x and y = phi(x), of every one of `ACTIVATIONS`, for numba to inline.

    `one` is of their precision: numbers of Python would make those of float32 double ones. phi of NaN
    is NaN.
    """
    f, zero = type(one), one - one
    two, leak, a, c = f(2), f(0.01), f(0.044715), f(sqrt(2 / pi))
    top = f(6 if f is np.float32 else 12)
    scale, steep = f(1.0507009873554805), f(1.0507009873554805 * 1.6732632423543772)  # of selu

    def bent(x):  # type: ignore[no-untyped-def]
        """s of x s = gelu_tanh, and s': beyond `top` 0, as 1 - s is all rounding there."""
        s, flat = sigmoid(two * c * x * (one + a * x * x)), abs(x) >= top
        return s, zero if flat else s * (one - s) * two * c * (one + f(3) * a * x * x)

    def rest(x):  # type: ignore[no-untyped-def]
        """log(1 + e^-|x|) of float32 as 2 artanh(s), which vectorises; s <= 1/3."""
        y = sigmoid(-abs(x))
        s = y / (one + one - y)
        q = s * s
        series = (((f(1 / 13) * q + f(1 / 11)) * q + f(1 / 9)) * q + f(1 / 7)) * q + f(1 / 5)
        return (s + s) * ((series * q + f(1 / 3)) * q + one)

    bent = compiled(bent)
    rest = compiled(rest if f is np.float32 else lambda x: np.log1p(np.exp(-abs(x))))
    return {
        "identity": (lambda x: x, lambda x, y: one),
        "relu": (lambda x: zero if x <= zero else x, lambda x, y: zero if y <= zero else one),
        "tanh": (lambda x: tanh(x), lambda x, y: one - y * y),
        "sigmoid": (lambda x: sigmoid(x), lambda x, y: y * (one - y)),
        "softplus": (lambda x: (x if x > zero else zero) + rest(x), lambda x, y: sigmoid(x)),
        "elu": (lambda x: x if x > zero else np.expm1(x), lambda x, y: one if x > zero else one + y),
        "hardtanh": (
            lambda x: -one if x <= -one else one if x >= one else x,
            lambda x, y: one if abs(x) < one else zero,
        ),
        "leaky_relu": (lambda x: x if x > zero else leak * x, lambda x, y: one if x > zero else leak),
        "selu": (
            lambda x: scale * x if x > zero else steep * np.expm1(x),
            lambda x, y: scale if x > zero else steep + y,
        ),
        "gelu": (lambda x: x * normal(x)[0], lambda x, y: normal(x)[0] + x * normal(x)[1]),
        "gelu_tanh": (lambda x: x * bent(x)[0], lambda x, y: bent(x)[0] + x * bent(x)[1]),
        "silu": (lambda x: x * sigmoid(x), lambda x, y: sigmoid(x) * (one + x * (one - sigmoid(x)))),
    }


@cache
def pointwise(phi: Activation, dtype: Any) -> tuple[Any, Any]:
    """phi by x, and phi' by x and phi(x), of one of the library, compiled for a precision."""
    one = dtype.type(1)
    if dtype == np.float32:
        parts = compiled(tanh_float32), compiled(sigmoid_float32, fast=("contract",))
        value, slope = formulas(one, *parts, compiled(normal_float32))[phi.name]
    else:
        sigmoid = compiled(lambda x: one / (one + np.exp(-x)))
        normal = compiled(lambda x: (erfc(-x * sqrt(0.5)) / 2, exp(-x * x / 2) / sqrt(2 * pi)))
        value, slope = formulas(one, np.tanh, sigmoid, normal)[phi.name]
    return compiled(value), compiled(slope)


def is_known(phi: Activation) -> bool:
    """Whether it is one of the library, and not another of that name."""
    return ACTIVATIONS.get(phi.name) == phi


def is_paired(terms: Terms, x0: Tensor) -> bool:
    """Whether this loop can run: units 2k and 2k + 1 coupled and no others, a known phi outside."""
    n = terms.n
    single = len(terms.blocks) == n and n % 2 == 0 and not terms.edges and terms.L is not None
    known = len(terms.pre.runs) == 1 and is_known(terms.pre.runs[0][0]) and terms.post.is_identity
    coupled = terms.pairs == tuple((k, k + 1) for k in range(0, n, 2))
    if not (single and known and coupled and x0.device.type == "cpu" and x0.dtype.itemsize >= 4):
        return False
    L = cast(Tensor, terms.L).detach()  # made by hand it may have entries elsewhere, too
    own = L.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).diagonal(dim1=0, dim2=2)
    return holds(own.count_nonzero() == L.count_nonzero())


def integrate(scheme: Scheme, terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor) -> Tensor:
    """All states, (time + 1, batch, n), x0 first; arguments as of `schemes.integrate`."""
    e = terms.inject(None if drive is None else drive.transpose(0, 1).flatten(0, 1))
    e = e.view(len(x0), len(dt), -1) if drive is not None else e.expand(len(x0), len(dt), -1)
    lengths, which = dt.unique(return_inverse=True)  # which: (time, 1 or batch)
    return _run(terms, which.mT, *weights(scheme, terms, lengths), e, x0).transpose(0, 1)


def weights(scheme: Scheme, terms: Terms, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A and C, (k, 4, n / 2), for steps of dt (k,), and w, (n,)."""
    units = torch.arange(terms.n, device=dt.device).view(-1, 2)
    L = cast(Tensor, terms.L)[units[:, :, None], units[:, None, :]]  # (n / 2, 2, 2)
    A, C = step_pair(scheme, replace(terms, tau=terms.tau.view(-1, 2), L=L), dt[:, None])
    C = torch.diag_embed(C) if C.ndim < A.ndim else C
    A, C = (rearrange(M, "k j r c -> k (r c) j") for M in (A, C))
    return A, C, torch.cat(terms.blocks).flatten()


def selective(terms: Terms, x0: Tensor, e: Tensor, h: Tensor) -> Tensor:
    """All states, (batch, time + 1, n), for drives e without b, by exact steps h (batch, time, n / 2).

    phi is outside, tau the same within a pair; where h is 0 a pair stays where it is. With
    a = -alpha + i omega the steps are E = e^{h a} and C = alpha (E - 1) / a on z = x_2k + i x_2k+1.
    """
    alpha, omega = rates(terms)
    gone, half = torch.expm1(-h * alpha), h * omega / 2
    moved = 2 * (1 + gone) * half.sin()
    re, im = gone - moved * half.sin(), moved * half.cos()  # of E - 1
    scale = alpha / (alpha * alpha + omega * omega)
    c, d = scale * (omega * im - alpha * re), scale * (alpha * im + omega * re)  # C = c - i d
    A, C = torch.stack([1 + re, -im, im, 1 + re], 2), torch.stack([c, d, -d, c], 2)
    which = torch.arange(e.shape[0] * e.shape[1], device=e.device).view(e.shape[:2])
    w = torch.cat(terms.blocks).flatten()
    return _run(terms, which, A.flatten(0, 1), C.flatten(0, 1), w, e + terms.bias, x0)


def rates(terms: Terms) -> tuple[Tensor, Tensor]:
    """alpha = 1 / tau and omega of each pair, (n / 2,)."""
    alpha = 1 / terms.tau[::2]
    return alpha, cast(Tensor, terms.L).diagonal(-1)[::2] * alpha


def _run(terms: Terms, which: Tensor, *tensors: Tensor) -> Tensor:
    """By A, C, (k, 4, n / 2), of which sample t of sequence b has those of which[b, t], w, e and x0."""
    run = _Integrate.apply if is_paired(terms, tensors[-1]) and not transformed() else plain_states
    return run(terms.pre.runs[0][0], which, *tensors)


class _Integrate(Loop):
    @staticmethod
    def forward(ctx: Any, phi: Activation, which: Tensor, *tensors: Tensor) -> Tensor:
        *given, x0 = (np.ascontiguousarray(tensor.detach().numpy()) for tensor in tensors)
        states = np.empty((len(x0), which.shape[1] + 1, x0.shape[1]), x0.dtype)
        states[:, 0] = x0
        each = which.expand(len(x0), -1).contiguous().numpy()
        run, batched = kernels(phi, x0.dtype)[0], (given.pop(), each, states)
        in_parts(lambda i, j: run(*given, *(part[i:j] for part in batched)), len(x0), states.size)
        result = torch.from_numpy(states)
        ctx.plain, ctx.adjoint = partial(plain_states, phi, which), partial(_adjoint, phi, which)
        ctx.save_for_backward(result, *tensors)
        return result


def _adjoint(phi: Activation, which: Tensor, needed: Any, grads: Any, *tensors: Tensor) -> Any:
    """The gradients of A, C, w, e and x0; tensors: the states, and these."""
    states, A, C, w, e = (np.ascontiguousarray(t.detach().numpy()) for t in tensors[:-1])
    lam = np.array(grads[0].numpy(), copy=True, order="C")  # becomes dE/dx, in place
    de, adjoint = np.empty_like(e), kernels(phi, A.dtype)[1]
    batched = e, which.expand(len(e), -1).contiguous().numpy(), states, lam, de

    def part(i: int, j: int) -> list[Any]:
        found = [np.zeros_like(M) for M in (A, C, w)]
        adjoint(A, C, w, *found, *(part[i:j] for part in batched))
        return found

    # Where every sample has matrices of its own, sums over parts would be as large as the batch.
    found = summed(part, len(e), e.size if len(which) == 1 else 0)
    return (*map(torch.from_numpy, (*found, de, lam[:, 0].copy())),)


def plain_states(phi: Activation, which: Tensor, *tensors: Tensor) -> Tensor:
    """The states of `_run` by operations that can be differentiated any number of times."""
    A, C, w, e, x0 = tensors
    states = [x0]
    for t, drive in enumerate(e.unbind(1)):
        x, k = states[-1], which[:, t]
        states.append(_times(A[k], x) + _times(C[k], w * phi(x) + drive))
    return torch.stack(states, 1)


def _times(M: Tensor, x: Tensor) -> Tensor:
    """M z of every pair, for M (1 or batch, 4, n / 2) and x (batch, n)."""
    y, z = x[:, ::2], x[:, 1::2]
    return torch.stack([M[:, 0] * y + M[:, 1] * z, M[:, 2] * y + M[:, 3] * z], -1).flatten(1)


@cache
def kernels(phi: Any, dtype: Any) -> tuple[Any, Any]:
    """The compiled forward and adjoint loops of an activation and a precision."""
    phi, slope = pointwise(phi, dtype)

    @compiled
    def forward(A: Any, C: Any, w: Any, e: Any, which: Any, states: Any) -> None:
        batch, steps, n = e.shape
        g = np.empty(n, states.dtype)
        for b in range(batch):
            for t in range(steps):
                x, out, drive, k = states[b, t], states[b, t + 1], e[b, t], which[b, t]
                for i in range(n):
                    g[i] = w[i] * phi(x[i]) + drive[i]
                for j in range(n // 2):  # loops of few arrays, which the compiler can vectorise
                    y, z = x[2 * j], x[2 * j + 1]
                    out[2 * j] = A[k, 0, j] * y + A[k, 1, j] * z
                    out[2 * j + 1] = A[k, 2, j] * y + A[k, 3, j] * z
                for j in range(n // 2):
                    y, z = g[2 * j], g[2 * j + 1]
                    out[2 * j] += C[k, 0, j] * y + C[k, 1, j] * z
                    out[2 * j + 1] += C[k, 2, j] * y + C[k, 3, j] * z

    @compiled
    def add_outer(sums: Any, up: Any, z: Any) -> None:
        for j in range(len(z) // 2):
            i, m = 2 * j, 2 * j + 1
            sums[0, j] += up[i] * z[i]
            sums[1, j] += up[i] * z[m]
            sums[2, j] += up[m] * z[i]
            sums[3, j] += up[m] * z[m]

    @compiled
    def adjoint(
        A: Any, C: Any, w: Any, dA: Any, dC: Any, dw: Any,
        e: Any, which: Any, states: Any, lam: Any, de: Any,
    ) -> None:  # fmt: skip
        batch, steps, n = e.shape
        ys, v = np.empty((steps, n), states.dtype), np.empty(n, states.dtype)
        for b in range(batch):
            for t in range(steps):  # phi of the sample once, for both sweeps
                x = states[b, t]
                for i in range(n):
                    ys[t, i] = phi(x[i])
            for t in range(steps - 1, -1, -1):
                x, up, down, y = states[b, t], lam[b, t + 1], lam[b, t], ys[t]
                out, k = de[b, t], which[b, t]
                for j in range(n // 2):
                    i, m = 2 * j, 2 * j + 1
                    v0 = C[k, 0, j] * up[i] + C[k, 2, j] * up[m]
                    v1 = C[k, 1, j] * up[i] + C[k, 3, j] * up[m]
                    down[i] += A[k, 0, j] * up[i] + A[k, 2, j] * up[m] + w[i] * slope(x[i], y[i]) * v0
                    down[m] += A[k, 1, j] * up[i] + A[k, 3, j] * up[m] + w[m] * slope(x[m], y[m]) * v1
                    out[i], out[m] = v0, v1
            for t in range(steps):
                x, up, y, drive, out = states[b, t], lam[b, t + 1], ys[t], e[b, t], de[b, t]
                k = which[b, t]
                for i in range(n):
                    dw[i] += out[i] * y[i]
                    v[i] = w[i] * y[i] + drive[i]  # g
                add_outer(dA[k], up, x)
                add_outer(dC[k], up, v)

    return forward, adjoint


def tanh_float32(x: Any) -> Any:
    """tanh within 5e-7, as a ratio of polynomials that vectorises (the one of Eigen)."""
    x = min(max(x, np.float32(-7.905311)), np.float32(7.905311))
    s = x * x
    f = np.float32
    top = ((f(-2.76076847742355e-16) * s + f(2.00018790482477e-13)) * s + f(-8.60467152213735e-11)) * s
    top = ((top + f(5.12229709037114e-08)) * s + f(1.48572235717979e-05)) * s + f(6.37261928875436e-04)
    below = (f(1.19825839466702e-06) * s + f(1.18534705686654e-04)) * s + f(2.26843463243900e-03)
    return x * (top * s + f(4.89352455891786e-03)) / (below * s + f(4.89352518554385e-03))


def sigmoid_float32(x: Any) -> Any:
    """1 / (1 + e^-x) within 2e-7 of itself, from e^-|x| = 2^-m e^-r, with |r| <= log(2) / 2."""
    f = np.float32
    a = min(abs(x), f(88))  # there 2^-m is 0
    m = np.floor(a * f(1.442695) + f(0.5))
    r = (a - m * f(0.693359375)) + m * f(2.12194440e-4)  # log 2 in two parts
    e = f(1 / 24) - r * (f(1 / 120) - r * (f(1 / 720) - r * f(1 / 5040)))
    e = f(1) - r * (f(1) - r * (f(1 / 2) - r * (f(1 / 6) - r * e)))
    e *= np.int32((f(127) - m) * f(2**23)).view(f)  # the bits of 2^-m
    y = f(1) / (f(1) + e)
    return y if x > f(0) else e * y if x <= f(0) else x


def normal_float32(x: Any) -> Any:
    """The normal distribution and density, within 6e-7 (7.1.26 of Abramowitz and Stegun)."""
    f = np.float32
    h = min(x * x, f(32)) / f(32)
    e = ((f(1 / 720) * h - f(1 / 120)) * h + f(1 / 24)) * h - f(1 / 6)  # of e^-h, to the 16th power
    e = (((e * h + f(0.5)) * h - f(1)) * h + f(1)) ** 16
    t = f(1) / (f(1) + f(0.3275911 / sqrt(2)) * abs(x))
    tail = (f(1.061405429) * t + f(-1.453152027)) * t + f(1.421413741)
    tail = f(0.5) * e * t * ((tail * t + f(-0.284496736)) * t + f(0.254829592))
    return tail if x < f(0) else f(1) - tail, e * f(1 / sqrt(2 * pi)) if x * x < f(32) else f(0)
