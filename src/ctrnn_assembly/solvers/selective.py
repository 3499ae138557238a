"""The exact steps of pairs whose step lengths are others for every pair, sample and sequence.

    z+ = E z + C g,    g = w o phi(z) + e
    E = e^{h A},    C = alpha (E - 1) / A,    A = -alpha + i omega

for pairs z = x_2k + i x_2k+1 with alpha = 1 / tau, phi and w on both parts of z, and h (batch, time,
n / 2). The matrices are formed within the loop: only h is read. Adjoint, for lam+ = dE/dz+:

    v = C* lam+,   lam = E* lam+ + phi'(z) o w o v,   de = v,   dw = v o phi(z)
    q = E (A z + alpha g),   dh = Re(lam+* q),   dA = sum lam+ (h q - C g)* / A*
    d alpha = -Re dA + Re sum lam+* C g / alpha,   d omega = Im dA

Cost: O(batch T n). Compiled by numba at first use, for the phi of `pairs.PHIS`, on CPUs; elsewhere, and
for second derivatives, the plain twin `plain_states`.
"""

import math
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.solvers.fused import gradients_again
from ctrnn_assembly.solvers.pairs import compiled_phi, is_paired
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import transformed


def integrate(terms: Terms, x0: Tensor, e: Tensor, h: Tensor) -> Tensor:
    """All states, (batch, time + 1, n), x0 (batch, n) first, for drives e (batch, time, n).

    h is (batch, time, n / 2); 0 leaves a pair where it is.
    """
    given = *parameters(terms), h, e + terms.bias, x0
    phi = terms.pre.runs[0][0]
    if is_paired(terms, x0) and not transformed():
        return _Integrate.apply(phi, *given)
    return plain_states(phi, *given)


def parameters(terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """alpha and omega, (n / 2,), and w, (n,)."""
    assert terms.L is not None
    alpha = 1 / terms.tau[::2]
    turn = terms.L.diagonal(-1)[::2] * alpha
    return alpha, turn, torch.cat([block.flatten() for block in terms.blocks])


def plain_states(phi: Activation, *tensors: Tensor) -> Tensor:
    """The states of `integrate` by operations that can be differentiated any number of times."""
    alpha, omega, w, h, e, x0 = tensors
    states = [x0]
    for lengths, drive in zip(h.unbind(1), e.unbind(1), strict=True):
        states.append(step(phi, alpha, omega, w, lengths, drive, states[-1]))
    return torch.stack(states, 1)


def step(
    phi: Activation, alpha: Tensor, omega: Tensor, w: Tensor, h: Tensor, e: Tensor, x: Tensor
) -> Tensor:
    """One step, (batch, n), for h (batch, n / 2)."""
    gone, half = torch.expm1(-h * alpha), h * omega / 2
    s, c = half.sin(), half.cos()
    moved = torch.complex(gone - 2 * (1 + gone) * s * s, 2 * (1 + gone) * s * c)  # E - 1
    C = moved * alpha / torch.complex(-alpha, omega)
    z, g = (torch.view_as_complex(part.unflatten(-1, (-1, 2))) for part in (x, w * phi(x) + e))
    return torch.view_as_real(z + moved * z + C * g).flatten(-2)


class _Integrate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phi: Activation, *tensors: Tensor) -> Tensor:
        *given, x0 = (np.ascontiguousarray(tensor.detach().numpy()) for tensor in tensors)
        batch, steps, n = given[-1].shape
        states = np.empty((batch, steps + 1, n), x0.dtype)
        states[:, 0] = x0
        _kernels(phi.name, x0.dtype)[0](*given, states)
        result = torch.from_numpy(states)
        ctx.phi = phi
        ctx.save_for_backward(*tensors, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *leaves, states = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            again = partial(plain_states, ctx.phi)
            return None, *gradients_again(again, leaves, ctx.needs_input_grad[1:], grad, "full")
        alpha, omega, w, h, e, states = (
            np.ascontiguousarray(tensor.detach().numpy()) for tensor in (*leaves[:-1], states)
        )
        sums, dw, dh, de = np.zeros((3, len(alpha)), e.dtype), *map(np.zeros_like, (w, h, e))
        lam = np.array(grad.numpy(), copy=True, order="C")  # becomes dE/dx, in place
        _kernels(ctx.phi.name, e.dtype)[1](alpha, omega, w, h, e, states, lam, sums, dw, dh, de)
        dA = (sums[0] + 1j * sums[1]) / (-alpha - 1j * omega)
        found = [sums[2] / alpha - dA.real, dA.imag, dw, dh, de, lam[:, 0].copy()]
        return None, *(torch.from_numpy(one.astype(e.dtype, copy=False)) for one in found)


@cache
def _kernels(name: str, dtype: Any) -> tuple[Any, Any]:
    """The compiled forward and adjoint loops of an activation and a precision."""
    compiled, phi, slope = compiled_phi(name, dtype)

    @compiled
    def matrices(h: Any, alpha: Any, omega: Any, E: Any, C: Any) -> None:
        one = h.dtype.type(1)
        for j in range(len(h)):
            a, o = alpha[j], omega[j]
            half, gone = h[j] * o * h.dtype.type(0.5), math.expm1(-h[j] * a)
            s, left, scale = math.sin(half), gone + one, a / (a * a + o * o)
            turn = left * s * math.cos(half)
            re, im = gone - left * s * s - left * s * s, turn + turn  # E - 1
            E[0, j], E[1, j] = re + one, im
            C[0, j], C[1, j] = scale * (o * im - a * re), -scale * (a * im + o * re)

    @compiled
    def forward(alpha: Any, omega: Any, w: Any, h: Any, e: Any, states: Any) -> None:
        batch, steps, p = h.shape
        E, C, g = np.empty((2, p), h.dtype), np.empty((2, p), h.dtype), np.empty(2 * p, h.dtype)
        for b in range(batch):
            for t in range(steps):
                x, out, drive = states[b, t], states[b, t + 1], e[b, t]
                matrices(h[b, t], alpha, omega, E, C)
                for i in range(2 * p):
                    g[i] = w[i] * phi(x[i]) + drive[i]
                for j in range(p):
                    i, m = 2 * j, 2 * j + 1
                    out[i] = E[0, j] * x[i] - E[1, j] * x[m] + C[0, j] * g[i] - C[1, j] * g[m]
                    out[m] = E[1, j] * x[i] + E[0, j] * x[m] + C[1, j] * g[i] + C[0, j] * g[m]

    @compiled
    def adjoint(
        alpha: Any, omega: Any, w: Any, h: Any, e: Any, states: Any, lam: Any,
        sums: Any, dw: Any, dh: Any, de: Any,
    ) -> None:  # fmt: skip
        batch, steps, p = h.shape
        E, C, y = np.empty((2, p), h.dtype), np.empty((2, p), h.dtype), np.empty(2 * p, h.dtype)
        for b in range(batch):
            for t in range(steps - 1, -1, -1):
                x, up, down, v, drive = states[b, t], lam[b, t + 1], lam[b, t], de[b, t], e[b, t]
                matrices(h[b, t], alpha, omega, E, C)
                for i in range(2 * p):
                    y[i] = phi(x[i])
                for j in range(p):
                    i, m = 2 * j, 2 * j + 1
                    a, o, k, u0, u1 = alpha[j], omega[j], h[b, t, j], up[i], up[m]
                    g0, g1 = w[i] * y[i] + drive[i], w[m] * y[m] + drive[m]
                    v[i], v[m] = C[0, j] * u0 + C[1, j] * u1, C[0, j] * u1 - C[1, j] * u0
                    down[i] += E[0, j] * u0 + E[1, j] * u1
                    down[m] += E[0, j] * u1 - E[1, j] * u0
                    c0, c1 = C[0, j] * g0 - C[1, j] * g1, C[1, j] * g0 + C[0, j] * g1  # C g
                    r0, r1 = a * (g0 - x[i]) - o * x[m], a * (g1 - x[m]) + o * x[i]
                    q0, q1 = E[0, j] * r0 - E[1, j] * r1, E[1, j] * r0 + E[0, j] * r1
                    dh[b, t, j] = u0 * q0 + u1 * q1
                    sums[0, j] += u0 * (k * q0 - c0) + u1 * (k * q1 - c1)
                    sums[1, j] += u1 * (k * q0 - c0) - u0 * (k * q1 - c1)
                    sums[2, j] += u0 * c0 + u1 * c1
                for i in range(2 * p):
                    down[i] += w[i] * slope(y[i]) * v[i]
                    dw[i] += v[i] * y[i]

    return forward, adjoint
