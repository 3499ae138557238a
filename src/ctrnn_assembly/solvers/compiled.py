"""The fused loop of small and sparse fields as machine code, on a CPU: no tensor operation in a step.

    x+ = D x + P x + W pre(x) + e,      e = E u

ROWS samples go through all steps together. A product with a block is `multiply`: vectors of LANES of
its entries times the numbers of these samples; the weight gradients are the same, over CHUNK rows of
time and batch at once. Nothing is copied: e lies where the states will, and every dE/dx is summed in
its place. Formulas and the plain twin are those of `fused`, for post the identity and equal steps.
Compiled by numba at first use (seconds, kept on disk), for float32 and float64.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor
from torch.nn.functional import pad

from ctrnn_assembly.solvers.fused import Form, Plan, pooled
from ctrnn_assembly.solvers.pairs import compiled, pointwise
from ctrnn_assembly.solvers.threads import in_parts, summed

LANES, ROWS = 16, 4
CHUNK = 64  # rows


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


@kept
def add_product(out, x, y):  # type: ignore[no-untyped-def]
    """out += x o y."""
    for k in range(len(out)):
        out[k] += x[k] * y[k]


@kept
def add(out, n, x, data, blocks):  # type: ignore[no-untyped-def]
    """out += A x of ROWS samples, (ROWS, n) each, or several of these one after the other."""
    for block in range(len(blocks)):
        row, column, width, first = blocks[block]
        for s in range(0, width, LANES):
            multiply(out, row + s, n, x, column, n, 1, data, first + s, width, width)  # type: ignore[call-arg]
        for k in range(0, 0 if width else ROWS * n, n):  # a diagonal
            i, j = row + k, column + k
            add_product(out[i : i + n], data[first : first + n], x[j : j + n])


@kept
def roll(phi, data, blocks, states, n, step, start, stop):  # type: ignore[no-untyped-def]
    """All states of some samples, each in the place of its e; `step` numbers are those of the batch."""
    size = ROWS * n
    both = np.empty(2 * size, states.dtype)  # x, pre(x)
    for sample in range(start * size, stop * size, size):
        for at in range(sample, len(states) - step, step):
            both[:size] = states[at : at + size]
            phi(both[:size], both[size:])
            add(states[at + step : at + step + size], n, both, data, blocks)


@kept
def adjoint(phi, slope, data, blocks, states, lam, n, step, start, stop):  # type: ignore[no-untyped-def]
    """dE/de in the place of dE/dx, whose direct part it has."""
    size = ROWS * n
    p, both = np.empty(size, states.dtype), np.empty(2 * size, states.dtype)  # of x, of pre(x)
    for sample in range(start * size, stop * size, size):
        for at in range(sample + len(states) - 2 * step, -1, -step):
            both[:] = 0
            add(both, n, lam[at + step : at + step + size], data, blocks)
            phi(states[at : at + size], p)
            slope(states[at : at + size], p, both[size:])
            out = lam[at : at + size]
            out += both[:size]
            out += both[size:]


@kept
def add_gradients(phi, sums, blocks, states, lam, n, step, start, stop):  # type: ignore[no-untyped-def]
    """sums += dE/de (x, pre(x))^T at the blocks of A^T, over some chunks of all time."""
    x = np.empty(2 * CHUNK * n, states.dtype)  # x, pre(x)
    for at in range(start * CHUNK * n, min(stop * CHUNK * n, len(states) - step), CHUNK * n):
        size = min(CHUNK * n, len(states) - step - at)
        x[:size], v = states[at : at + size], lam[at + step : at + step + size]
        phi(x[:size], x[CHUNK * n : CHUNK * n + size])
        for block in range(len(blocks)):
            row, column, width, first = blocks[block]
            for r in range(0, width, ROWS):
                for s in range(0, width, LANES):
                    k = first + r * width + s
                    multiply(sums, k, width, x, column + r, 1, n, v, row + s, n, size // n)  # type: ignore[call-arg]
            for k in range(0, 0 if width else size, n):
                i = column + k
                add_product(sums[first : first + n], v[k : k + n], x[i : i + n])


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


def padded(x0: Tensor, inputs: Tensor, dt: Tensor | None, *tensors: Any) -> tuple[Any, ...]:
    """The same with units and samples more, which no other sees, up to whole vectors."""
    (batch, n), (W, D, P, Q, E) = x0.shape, tensors
    more = -n % LANES
    if batch % ROWS:
        samples = torch.arange(batch + -batch % ROWS).clamp(max=batch - 1)
        x0, inputs = x0[samples], inputs[:, samples]
    W, P = (A if A is None or A.ndim == 3 else pad(A, (0, more) * A.ndim) for A in (W, P))
    return pad(x0, (0, more)), inputs, dt, W, pad(D, (0, more)), P, Q, pad(E, (0, 0, 0, more))


def forward(
    form: Form, plan: Plan, x0: Tensor, inputs: Tensor, dt: Tensor | None, *tensors: Any
) -> tuple[Tensor, Tensor]:
    """All states, (time + 1, batch, n), of padded tensors; and those, or a copy of the last."""
    (batch, n), shape = x0.shape, (len(inputs) + 1, *x0.shape)
    states = x0.new_empty(shape) if plan.every else pooled(shape, x0)
    states[0] = x0
    torch.mm(inputs.flatten(0, 1), tensors[4].mT, out=states[1:].view(-1, n))
    (phi, _), data, blocks, *_ = _read(form, n, tensors)
    in_parts(partial(roll, phi, data, blocks, _flat(states), n, batch * n), batch // ROWS)
    return states, states if plan.every else states[-1:].clone()


def gradients(
    form: Form, plan: Plan, needed: tuple[bool, ...], *given: Any
) -> tuple[Tensor | None, ...]:
    """As `fused._gradients`, of what `forward` stored."""
    grad, states, inputs, _, *tensors = given
    n, step = states.shape[2], states[0].numel()
    lam = pooled(states.shape, states)
    lam[: -len(grad)], lam[-len(grad) :] = 0, grad
    (phi, slope), data, blocks, *turned = _read(form, n, tensors)
    flat = _flat(states), _flat(lam), n, step
    in_parts(partial(adjoint, phi, slope, *turned, *flat), states.shape[1] // ROWS)
    blocks[blocks[:, 1] >= ROWS * n, 1] += (CHUNK - ROWS) * n

    def added(start: int, stop: int) -> list[Any]:
        own = np.zeros_like(data)
        add_gradients(phi, own, blocks, *flat, start, stop)
        return [own]

    (sums,) = summed(added, -(lam[1:].numel() // -(CHUNK * n)), lam.numel())
    parts = iter(torch.from_numpy(sums).split([A.numel() for A in tensors[:3] if A is not None]))
    found = (A if A is None else next(parts).view_as(A) for A in tensors[:3])
    found = (A.mT if A is not None and A.ndim > 1 else A for A in found)
    rows = lam[1:].view(-1, n)
    d_inputs = (rows @ tensors[4]).view(inputs.shape) if needed[1] else None
    # The other way round: a product with few columns takes ten times as long.
    return lam[0].clone(), d_inputs, *found, None, (inputs.flatten(0, 1).mT @ rows).mT


def _read(form: Form, n: int, tensors: Sequence[Any]) -> tuple[Any, ...]:
    """Activations; entries and blocks of W, D and P, as one matrix of x, pre(x); and its transpose's.

    Blocks are (row, column, width, first entry), transposed in the entries, a diagonal of width 0.
    """
    found: tuple[Any, ...] = ([], [], [], [])
    for A, start in zip(tensors, (ROWS * n, 0, 0), strict=False):
        if A is None:
            continue
        k, first = 0 if A.ndim == 1 else A.shape[-1], sum(map(len, found[0]))
        places = [(i, i) for i in range(A.numel() // k**2 if k else 1)]
        if A is tensors[2] and form.pattern is not None:
            places = [*zip(form.pattern.rows, form.pattern.columns, strict=True)]
        for m, (i, j) in enumerate(places):
            found[1].append((k * i, k * j + start, k, first + m * k * k))
            found[3].append((k * j + start, k * i, k, first + m * k * k))
        found[0].append(_flat(A.mT if k else A))
        found[2].append(_flat(A))
    data, blocks, turned_data, turned = found
    phis = maps(form.pre.runs[0][0], data[0].dtype)
    return phis, np.concatenate(data), np.array(blocks), np.concatenate(turned_data), np.array(turned)


def _flat(x: Tensor) -> Any:
    return x.detach().contiguous().view(-1).numpy()
