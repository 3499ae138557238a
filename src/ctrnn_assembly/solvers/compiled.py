"""The fused loop of a field as machine code, on a CPU: no tensor operation in a step.

    x+ = f,   or x + h g o f,       f = A (s o y) + E u,    y = (x, pre(x)),    A = [D + P, W]

With phi inside f = A y and A = [D + P, Q], of y = (x, post(z)) for z = W x + E u. Of an implicit step P
belongs to x+, which is R f; then v = R^T lam+ and dP = v x+^T, as in `fused`.

h are steps of several lengths, g speeds of gates, nu = lo + (hi - lo) sigmoid(z), z = G u (+ d o x),
with s = 1, or of congruence gates g = s = sqrt(nu). Adjoint, for lam+ = dE/dx+, v = lam+ or h g o lam+:

    (a, b) = s o A^T v,     lam = a + pre'(x) o b  (+ lam+ + d o dz),     dA = v (s o y)^T,   dE = v u^T,
    dz = g'(z) o (h lam+ o f  (+ A^T v o y, summed over both halves, if g = s)),      dG = dz u^T

and with phi inside q = post'(z) o b,  lam = a + W^T q,  dW = q x^T  and dE = q u^T.

ROWS samples go through all steps together, CHUNK rows of them at a time in the adjoint, whose weight
gradients are added while these are in the cache: states are written once and read once, and no dE/dx is
stored. A product with a block is `multiply`: vectors of LANES of its entries times the numbers of the
samples. The plain twin is that of `fused`. Compiled by numba at first use (seconds, kept on disk), for
float32 and float64.
"""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from llvmlite.binding import get_host_cpu_features  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor
from torch.nn.functional import pad

from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.solvers.again import Loop
from ctrnn_assembly.solvers.fused import Form, plain_states, pooled
from ctrnn_assembly.solvers.pairs import compiled, pointwise
from ctrnn_assembly.solvers.threads import in_parts, summed

# As many registers as sums of a product need: 8 of 16 numbers, or of twice as many halves of these.
ROWS, LANES = 8, 16 if get_host_cpu_features().get("avx512f") else 8
CHUNK = 64  # rows
SPAN = CHUNK // ROWS  # steps


def kept(function: Any) -> Any:
    """`function` as machine code, kept on disk where numba finds a folder that it can write to."""
    made = compiled(function, fast=())
    with suppress(RuntimeError):
        made.enable_caching()
    return made


@intrinsic
def multiply(typing, out, o, o_row, a, i, a_row, a_step, x, j, x_step, count):  # type: ignore[no-untyped-def]
    """out[o + r o_row + l] += sum over k < count of a[i + r a_row + k a_step] x[j + k x_step + l].

    For r < ROWS and l < LANES: the sums stay in registers, and each vector of x serves ROWS of them.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, o, o_row, _, i, a_row, a_step, _, j, x_step, count = args
        number, index = context.get_value_type(signature.args[0].dtype), ir.IntType(32)
        vector, zeros = ir.VectorType(number, LANES), ir.Constant(ir.VectorType(index, LANES), None)

        def at(k: int, start: Any, kind: Any, *moves: tuple[Any, Any]) -> Any:
            for times, step in moves:
                start = builder.add(start, builder.mul(times, step))
            array = context.make_array(signature.args[k])(context, builder, args[k])
            return builder.bitcast(builder.gep(array.data, [start]), kind.as_pointer())

        align, rows = number.get_abi_size(context.target_data), [o.type(r) for r in range(ROWS)]
        places = [at(0, o, vector, (r, o_row)) for r in rows]
        sums = [cgutils.alloca_once_value(builder, builder.load(place, align=align)) for place in places]
        with cgutils.for_range(builder, count) as loop:
            y = builder.load(at(7, j, vector, (loop.index, x_step)), align=align)
            for r, total in zip(rows, sums, strict=True):
                one = builder.load(at(3, i, number, (r, a_row), (loop.index, a_step)))
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), one, index(0))
                product = builder.fmul(builder.shuffle_vector(one, one, zeros), y, flags=["contract"])
                builder.store(builder.fadd(product, builder.load(total), flags=["contract"]), total)
        for place, total in zip(places, sums, strict=True):
            builder.store(builder.load(total), place, align=align)
        return context.get_dummy_value()

    where = numba.intp, numba.intp
    return numba.void(out, *where, a, *where, numba.intp, x, *where, numba.intp), code


# Loops of few arrays, which the compiler can vectorise; it does not do so to slices of numpy.
@kept
def copy(out, x):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] = x[k]


@kept
def increase(out, x):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] += x[k]


@kept
def scale(out, x):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] *= x[k]


@kept
def both_products(out, a, x, b, y):  # type: ignore[no-untyped-def]
    """out = a o x + b o y."""
    for k in range(len(out)):
        out[k] = a[k] * x[k] + b[k] * y[k]


@kept
def product(out, a, x):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] = a[k] * x[k]


@kept
def add_two(out, x, y, z, w):  # type: ignore[no-untyped-def]
    """out += x o y + z o w."""
    for k in range(len(out)):
        out[k] += x[k] * y[k] + z[k] * w[k]


@kept
def add_product(out, a, x):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] += a[k] * x[k]


@kept
def apply(out, n, x, p, A):  # type: ignore[no-untyped-def]
    """out = A y of ROWS samples, for y = (x, p), each (ROWS, n)."""
    (D, w, data, blocks), size = A, ROWS * n
    for k in range(0, size, n):
        if len(w):
            both_products(out[k : k + n], D, x[k : k + n], w, p[k : k + n])
        else:
            product(out[k : k + n], D, x[k : k + n])
    add_blocks(out, n, x, p, data, blocks)


@kept
def apply_transposed(out, n, v, A):  # type: ignore[no-untyped-def]
    """out = A^T v of ROWS samples, for the halves of y one after the other, or the first alone."""
    (D, w, data, blocks), size = A, ROWS * n
    if not len(w):
        out[size:] = 0
    for k in range(0, size, n):
        product(out[k : k + n], D, v[k : k + n])
        if len(w):
            product(out[size + k : size + k + n], w, v[k : k + n])
    add_blocks(out, n, v, v, data, blocks)


@kept
def add_blocks(out, n, x, p, data, blocks):  # type: ignore[no-untyped-def]
    """Blocks of columns from ROWS * n on are of p."""
    for block in range(len(blocks)):
        row, column, width, first = blocks[block]
        y, j = (x, column) if column < ROWS * n else (p, column - ROWS * n)
        for s in range(0, width, LANES):
            multiply(out, row + s, n, y, j, n, 1, data, first + s, width, width)  # type: ignore[call-arg]


@kept
def eliminate(x, n, R, w):  # type: ignore[no-untyped-def]
    """x becomes (I - P)^-1 x of ROWS samples, by its products in their order; w is as large as x."""
    data, blocks = R
    for block in range(len(blocks)):
        row, column, width, first = blocks[block]
        y, j, step = x, column, n
        if row == column:
            y, j, step = w, 0, width
            for k in range(ROWS):
                part = x[k * n + row :][:width]
                copy(w[k * width :][:width], part)
                part[:] = 0
        for s in range(0, width, LANES):
            multiply(x, row + s, n, y, j, step, 1, data, first + s, width, width)  # type: ignore[call-arg]


@kept
def add_inputs(out, n, E, u, at, m):  # type: ignore[no-untyped-def]
    """out += E u of ROWS samples, for E^T (m, n)."""
    for s in range(0, n, LANES):
        multiply(out, s, n, u, at, m, 1, E, s, n, m)  # type: ignore[call-arg]


@kept
def scale_rows(out, n, h):  # type: ignore[no-untyped-def]
    """out *= h of each of some rows; where h is 0 it is 0, even of what is not finite."""
    for k in range(len(h)):
        row = out[k * n : (k + 1) * n]
        row *= h[k]
        if h[k] == 0:
            row[:] = 0


@kept
def speeds(g, rise, lo, span):  # type: ignore[no-untyped-def]
    """g = nu and rise = d nu / dz, where g is sigmoid(z)."""
    for k in range(len(g)):
        part = g[k]
        g[k], rise[k] = lo + span * part, span * (part - part * part)


@kept
def roots(g, rise, half):  # type: ignore[no-untyped-def]
    """The same of sqrt(nu)."""
    for k in range(len(g)):
        g[k] = np.sqrt(g[k])
        rise[k] *= half / g[k]


@kept
def open_gates(sigmoid, g, rise, n, u, at, m, x, gates):  # type: ignore[no-untyped-def]
    """g and g'(z) of ROWS samples."""
    G, d, lo, span, half, congruent = gates
    rise[:] = 0
    add_inputs(rise, n, G, u, at, m)
    for k in range(0, len(x) if len(d) else 0, n):
        add_product(rise[k : k + n], d, x[k : k + n])
    sigmoid(rise, g)
    speeds(g, rise, lo, span)
    if congruent:
        roots(g, rise, half)


@kept
def roll(phi, sigmoid, A, B, R, E, m, gates, h, states, u, n, step, start, stop):  # type: ignore[no-untyped-def]
    """All states, or two in turn, of some groups of ROWS samples; `step` is how many numbers of all."""
    size, gated, congruent, ring = ROWS * n, len(gates[0]), gates[5], len(states) // step
    scaled, p, w = np.empty(size, E.dtype), np.empty(size, E.dtype), np.empty(size, E.dtype)
    g, rise = np.empty(size, E.dtype), np.empty(size, E.dtype)
    inside = len(B[0])
    for group in range(start, stop):
        for k in range(len(u) // m * n // step):
            at, row = group * size, (k * step + group * size) // n
            x, new = states[k % ring * step + at :][:size], states[(k + 1) % ring * step + at :][:size]
            y = x
            if inside:
                apply(p, n, x, x, B)
                add_inputs(p, n, E, u, row * m, m)
                phi(p, p)
            else:
                phi(x, p)
            if gated:
                open_gates(sigmoid, g, rise, n, u, row * m, m, x, gates)
            if congruent:
                y = scaled
                product(y, g, x)
                scale(p, g)
            apply(new, n, y, p, A)
            if not inside:
                add_inputs(new, n, E, u, row * m, m)
            eliminate(new, n, R, w)
            if gated:
                scale(new, g)
            if len(h):
                scale_rows(new, n, h[row : row + ROWS])
                increase(new, x)


@kept
def read(y, w, wide, states, u, n, m, step, at, steps, after):  # type: ignore[no-untyped-def]
    """The states of a chunk, those after them if these are needed, and its inputs, filled up."""
    size = ROWS * n
    for k in range(steps):
        copy(y[k * size :][:size], states[at + k * step :][:size])
        if after:
            copy(y[2 * CHUNK * n + k * size :][:size], states[at + (k + 1) * step :][:size])
        for row in range(ROWS):
            one = ((at + k * step) // n + row) * m
            copy(w[(k * ROWS + row) * wide :][:m], u[one : one + m])


@kept
def adjoint(phi, slope, sigmoid, matrices, m, gates, h, given, found, sums, n, step, start, stop):  # type: ignore[no-untyped-def]
    """dE/dx0 of some groups, v and dz if these have a place; adds to the sums of A, W, E, G and d."""
    (states, u, grad), (dx0, v, dz), (dE, dG, dd, dA, dB) = given, found, sums
    (A, turned), (B, turned_B), R, E = matrices
    size, half, last, wide = ROWS * n, CHUNK * n, len(grad) - step, len(dE) // n
    gated, congruent, inside = len(gates[0]), gates[5], len(B[0])
    y, q, z = np.empty(3 * half, E.dtype), np.empty(half, E.dtype), np.empty(half, E.dtype)
    back, f = np.empty(2 * size, E.dtype), np.empty(size, E.dtype)
    g, rise, dg = np.empty(size, E.dtype), np.empty(size, E.dtype), np.zeros(size, E.dtype)
    w = np.zeros(CHUNK * wide, E.dtype)
    a, b = back[:size], back[size:]
    for group in range(start, stop):
        here = group * size
        lam = dx0[here : here + size]
        copy(lam, grad[last + here : last + here + size])
        for end in range(len(states) // step - 1, 0, -SPAN):
            first = max(0, end - SPAN)
            rows = (end - first) * ROWS
            read(y, w, wide, states, u, n, m, step, first * step + here, end - first, len(R[1]))
            for k in range(0, rows * n if inside else 0, size):
                row = (first * step + here) // n + k // size * (step // n)
                apply(z[k : k + size], n, y[k:], y[k:], B)
                add_inputs(z[k : k + size], n, E, u, row * m, m)
            phi(z[: rows * n] if inside else y[: rows * n], y[half : half + rows * n])
            for k in range(end - 1, first - 1, -1):
                at, own = k * step + here, (k - first) * size
                row = at // n
                x, p, now = y[own : own + size], y[half + own : half + own + size], q[own : own + size]
                of_z = z[own : own + size]
                copy(now, lam)
                eliminate(now, n, R, f)
                if len(h):
                    scale_rows(now, n, h[row : row + ROWS])
                if gated:
                    open_gates(sigmoid, g, rise, n, u, row * m, m, x, gates)
                    copy(f, now)
                    scale(now, g)
                apply_transposed(back, n, now, turned)
                if congruent:
                    both_products(dg, a, x, b, p)
                    scale(a, g)
                    scale(b, g)
                if inside:
                    slope(of_z, p, b)
                    copy(of_z, b)
                    apply_transposed(b, n, of_z, turned_B)
                else:
                    slope(x, p, b)
                if congruent:
                    scale(x, g)
                    scale(p, g)
                if gated:
                    apply(of_z, n, x, p, A)
                    add_inputs(of_z, n, E, u, row * m, m)
                    scale(of_z, f)
                    if congruent:
                        increase(of_z, dg)
                    scale(of_z, rise)
                    for i in range(0, size if len(dd) else 0, n):
                        add_product(dd, of_z[i : i + n], x[i : i + n])
                        add_product(a[i : i + n], of_z[i : i + n], gates[1])
                    if len(dz):
                        copy(dz[at : at + size], of_z)
                if not len(h):
                    lam[:] = 0
                increase(lam, a)
                increase(lam, b)
                if last:
                    increase(lam, grad[at : at + size])
                if len(v):
                    copy(v[at : at + size], of_z if inside else now)
            add_gradients(dA, y, q, n, rows)
            add_products(dE, w, wide, z if inside else q, n, rows)
            if inside:
                add_gradients(dB, y, z, n, rows)
            if gated:
                add_products(dG, w, wide, z, n, rows)


@kept
def add_products(sums, u, m, v, n, rows):  # type: ignore[no-untyped-def]
    """sums += u v^T over rows, for u (rows, m)."""
    for k in range(0, m, ROWS):
        for i in range(0, n, LANES):
            multiply(sums, k * n + i, n, u, k, 1, m, v, i, n, rows)  # type: ignore[call-arg]


@kept
def add_gradients(dA, y, v, n, rows):  # type: ignore[no-untyped-def]
    """dA += v y^T at the entries of A, over CHUNK rows or fewer."""
    D, w, sums, blocks = dA
    for k in range(0, rows * n, 2 * n):
        one, two, i = v[k : k + n], v[k + n : k + 2 * n], k + CHUNK * n
        add_two(D, one, y[k : k + n], two, y[k + n : k + 2 * n])
        if len(w):
            add_two(w, one, y[i : i + n], two, y[i + n : i + 2 * n])
    for block in range(len(blocks)):
        row, column, width, first = blocks[block]
        for r in range(0, width, ROWS):
            for s in range(0, width, LANES):
                k = first + r * width + s
                multiply(sums, k, width, y, column + r, 1, n, v, row + s, n, rows)  # type: ignore[call-arg]


@cache
def maps(phi: Any, dtype: Any) -> tuple[Any, Any]:
    """y = phi(x), and v *= phi'(x) by x and y, as functions of arrays that compiled loops are given."""
    phi, slope = pointwise(phi, dtype)
    array = numba.from_dtype(dtype)[::1]

    @numba.cfunc(numba.void(array, array))
    def forward(x, y):  # type: ignore[no-untyped-def]
        for k in range(len(x)):
            y[k] = phi(x[k])

    @numba.cfunc(numba.void(array, array, array))
    def backward(x, y, v):  # type: ignore[no-untyped-def]
        for k in range(len(y)):
            v[k] *= slope(x[k], y[k])

    return forward, backward


# (lo, hi - lo, whether they are congruent) of gates.
Gates = tuple[float, float, bool]


def states(
    form: Form,
    every: bool,
    x0: Tensor,
    inputs: Tensor,
    h: Tensor | None,
    *tensors: Any,
    gates: Gates | None = None,
    G: Tensor | None = None,
    d: Tensor | None = None,
) -> Tensor:
    """All states, or the last, (time + 1 or 1, batch, n), of W, D, P, Q, E and R of `fused_step`.

    h: (time, 1 or batch), or None. G, (n, m), and d, (n,), are of gates.
    """
    (batch, n), (W, D, P, Q, E, *R) = x0.shape, tensors
    h = None if h is None else h.expand(len(inputs), batch)
    full = padded(x0, inputs, h, G, d, W, D, P, Q, E, R[0] if R else None)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in full)
    return Integrate.apply(form, every, every or learns, gates, *full)[:, :batch, :n].contiguous()


def padded(x0: Tensor, inputs: Tensor, h: Any, *tensors: Any) -> tuple[Any, ...]:
    """The same with units and samples more, which no other sees, up to whole vectors."""
    (batch, n), (G, d, W, D, P, Q, E, R) = x0.shape, tensors
    more = -n % LANES
    if (n + more) * x0.itemsize % 4096 == 0:  # rows that begin at the same place of a cache
        more += LANES
    if batch % ROWS:
        samples = torch.arange(batch + -batch % ROWS, device=x0.device).clamp(max=batch - 1)
        x0, inputs = x0[samples], inputs[:, samples]
        h = h if h is None else h[:, samples]
    W, P, Q, R = (A if A is None or A.ndim == 3 else pad(A, (0, more) * A.ndim) for A in (W, P, Q, R))
    G, E = (A if A is None else pad(A, (0, 0, 0, more)) for A in (G, E))
    d = d if d is None else pad(d, (0, more))
    return pad(x0, (0, more)), inputs, h, G, d, W, pad(D, (0, more)), P, Q, E, R


class Integrate(Loop):
    @staticmethod
    def forward(ctx: Any, form: Form, every: bool, whole: bool, gates: Gates | None, *given: Any) -> Any:
        """States, (time + 1, batch, n), or the last one alone, (1, batch, n), of what `padded` gives."""
        x0, inputs, h, G, d, W, D, P, Q, E, R = given
        (batch, n), shape = x0.shape, (len(inputs) + 1 if whole else 2, *x0.shape)
        states = x0.new_empty(shape) if every else pooled(shape, x0)
        states[0] = x0
        read = (phi, _, sigmoid), (A, *_), (B, *_) = _read(form, W, D, P, Q, G is not None)
        ctx.plain, ctx.adjoint = partial(_plain, form, gates), partial(_gradients, form, gates, read)
        of_step = A, B, _inverse(form, R, x0), _flat(E.mT), inputs.shape[2]
        fixed = *of_step, _gates(gates, G, d, x0), _flat(h, x0)
        run = partial(roll, phi, sigmoid, *fixed, _flat(states), _flat(inputs), n, batch * n)
        in_parts(run, batch // ROWS, len(inputs) * x0.numel())
        ctx.save_for_backward(states, *given)
        return states if every else states[len(inputs) % len(states)][None].clone()


def _gradients(
    form: Form, gates: Gates | None, read: Any, needed: Any, grads: Any, states: Tensor, *given: Any
) -> tuple[Any, ...]:
    """Those of `given`, the tensors of `padded`, where needed; `read` is of `_read`."""
    x0, inputs, h, G, d, W, _, P, Q, E, R = given
    (batch, n), m = x0.shape, inputs.shape[2]
    maps, (*outer, columns), (*inner, of_W) = read
    inverse = _inverse(form, R, x0, turned=True)
    dx0, v, dz = x0.new_empty(x0.shape), None, None
    if needed[1]:
        v, dz = (None if M is None else x0.new_empty(states[1:].shape) for M in (E, G))
    given_states = tuple(_flat(t) for t in (states, inputs, *grads))
    written = tuple(_flat(t, x0) for t in (dx0, v, dz))
    matrices = tuple(outer), tuple(inner), inverse, _flat(E.mT)
    of_step = matrices, m, _gates(gates, G, d, x0), _flat(h, x0)
    wide = (m + -m % ROWS) * n
    sizes = wide, 0 if G is None else wide, 0 if d is None else n, *map(len, outer[0][:3])
    sizes += (*map(len, inner[0][:3]),)

    def added(start: int, stop: int) -> list[Any]:
        own = [np.zeros(size, outer[0][0].dtype) for size in sizes]
        sums = (*own[:3], (*own[3:6], columns), (*own[6:], of_W))
        adjoint(*maps, *of_step, given_states, written, sums, n, batch * n, start, stop)
        return own

    found = summed(added, batch // ROWS, states.numel())
    dE, dG, dd, dD, dw, dense, inside, _, inside_dense = map(torch.from_numpy, found)
    given = W if Q is None else Q, P
    parts = dense.split([0 if M is None or M.ndim == 1 else M.numel() for M in given])
    dW, dP = (
        None if M is None else (part.view_as(M).mT if M.ndim > 1 else dw)
        for M, part in zip(given, parts, strict=True)
    )
    dQ = None
    if Q is not None:
        dW, dQ = inside if W.ndim == 1 else inside_dense.view_as(W).mT, dW
    d_inputs = None if v is None else (v.view(-1, n) @ E).view(inputs.shape)
    if d_inputs is not None and dz is not None:
        d_inputs += (dz.view(-1, n) @ G).view(inputs.shape)
    of_gates = None if G is None else dG.view(-1, n)[:m].mT, None if d is None else dd
    return dx0, d_inputs, None, *of_gates, dW, dD, dP, dQ, dE.view(-1, n)[:m].mT, None


def _plain(form: Form, gates: Gates | None, *given: Any) -> Tensor:
    """The states of `padded` tensors by operations that can be differentiated any number of times."""
    x0, inputs, h, G, d, W, D, P, Q, E, _ = given
    lo, span, congruent = gates or (0.0, 0.0, False)

    def factors(k: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        nu = lo + span * torch.sigmoid(inputs[k] @ G.mT + (0 if d is None else d * x))
        return (h[k, :, None] * nu.sqrt(), nu.sqrt()) if congruent else (h[k, :, None] * nu, None)

    return plain_states(form, x0, inputs, h if gates is None else factors, W, D, P, Q, E)


def _gates(gates: Gates | None, G: Tensor | None, d: Tensor | None, like: Tensor) -> tuple[Any, ...]:
    """What compiled loops read of gates: G^T, d, lo, hi - lo, 1/2, and whether they are congruent."""
    (lo, span, congruent), kind = gates or (0.0, 0.0, False), _flat(like).dtype.type
    numbers = (kind(number) for number in (lo, span, 0.5))
    return _flat(G if G is None else G.mT, like), _flat(d, like), *numbers, congruent


def _read(form: Form, W: Tensor, D: Tensor, P: Any, Q: Any, gated: bool) -> tuple[Any, ...]:
    """phi, its slope and, if gated, the sigmoid; and `_linear` of A, and of W where phi is inside."""
    inside, none = Q is not None, D.new_empty(0)
    phi = maps((form.post if inside else form.pre).runs[0][0], _flat(D).dtype)
    of_units = *phi, maps(ACTIVATIONS["sigmoid"], _flat(D).dtype)[0] if gated else phi[0]
    outer = _linear(D, Q if inside else W, P, form)
    if not inside:
        return of_units, outer, _linear(none, None, None)
    return of_units, outer, _linear(*(W, None, None) if W.ndim == 1 else (torch.zeros_like(D), None, W))


def _linear(D: Tensor, W: Tensor | None, P: Tensor | None, form: Form | None = None) -> tuple[Any, ...]:
    """(D, W if a diagonal, entries, blocks) of [D + P, W], and of its transpose; the blocks of its
    gradient, whose columns are those of x, pre(x) and x+ of a chunk. P is as in the form, or of blocks.
    """
    n, none, first = len(D), _flat(None, D), 0
    dense = [M for M in (W, P) if M is not None and M.ndim > 1]
    blocks, columns = [_table(D, ())], [_table(D, ())]
    for M in dense:
        places = [(k, k) for k in range(M.numel() // M.shape[-1] ** 2)]
        if M is P and form is not None and form.pattern is not None:
            places = [*zip(form.pattern.rows, form.pattern.columns, strict=True)]
        part = 1 if M is W else 0 if form is None or form.implicit is None else 2
        columns.append(_table(M, places, first, part * CHUNK * n))
        blocks.append(_table(M, places if part < 2 else (), first, part * ROWS * n))
        first += M.numel()
    of_A = np.concatenate(blocks)
    found = ((M.mT for M in dense), of_A), (dense, of_A[:, [1, 0, 2, 3]].copy())
    diagonals = _flat(D), _flat(W if W is not None and W.ndim == 1 else None, D)
    both = ((*diagonals, np.concatenate([none, *map(_flat, some)]), table) for some, table in found)
    return *both, np.concatenate(columns)


def _inverse(form: Form, R: Tensor | None, like: Tensor, turned: bool = False) -> tuple[Any, Any]:
    """Entries and blocks of (I - P)^-1, or of its transpose; none of explicit steps."""
    if R is None:
        return _flat(None, like), _table(like, ())
    table = _table(R, form.implicit or ((0, 0),))
    return (_flat(R), table[::-1, [1, 0, 2, 3]].copy()) if turned else (_flat(R.mT), table)


def _table(M: Tensor, places: Iterable[tuple[int, int]], first: int = 0, moved: int = 0) -> Any:
    """(row, column, width, first entry) of blocks of M at these places, with columns moved on."""
    k = M.shape[-1]
    rows = [(k * i, k * j + moved, k, first + m * k * k) for m, (i, j) in enumerate(places)]
    return np.array(rows, np.int64).reshape(-1, 4)


def _flat(x: Tensor | None, like: Any = None) -> Any:
    """The numbers of a tensor, none of what is None."""
    return (like.new_empty(0) if x is None else x.detach().contiguous().view(-1)).numpy()
