"""The hand-written adjoint of a grid solver: all states, or the last, of T equal kinds of `Step`.

Memory, for states of batch x n numbers: T + 1 of them and some SEGMENT, or with checkpoint="sqrt" about
4 sqrt(T), for one forward pass more: of each segment the first state is kept, the others are made again.
Second derivatives are refused.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers.buffers import Loan
from ctrnn_assembly.solvers.step import Step, Stepper, Sums, segments

Save = Literal["all", "last"]
Checkpoint = Literal["none", "sqrt"]

SEGMENT = 32  # steps whose weight gradients are one product


def integrate(
    step: Step,
    x0: Tensor,
    inputs: Tensor,
    dt: Tensor | None,
    *,
    save: Save = "all",
    checkpoint: Checkpoint = "none",
) -> Tensor:
    """States of T steps under autograd.

    Args:
        step: the tensors of the step.
        x0: (batch, n).
        inputs: (T, batch, m), see `Step.E`.
        dt: step lengths, (T, 1) or (T, batch); None if they are in the step's tensors already.
        save: "all" states, x0 first, or only the "last" one.
        checkpoint: "sqrt" stores about 4 sqrt(T) states instead of T.

    Returns:
        (T + 1, batch, n), or (1, batch, n).
    """
    return _Integrate.apply(step, x0, inputs, dt, save, checkpoint, *step.tensors())


class _Integrate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        step: Step,
        x0: Tensor,
        inputs: Tensor,
        dt: Tensor | None,
        save: Save,
        checkpoint: Checkpoint,
        *tensors: Tensor | None,
    ) -> Tensor:
        stepper = Stepper(step.with_tensors(tensors))
        ctx.step, ctx.save = step, save
        steps = len(inputs)
        ctx.length = max(1, math.isqrt(steps)) if checkpoint == "sqrt" else SEGMENT
        ctx.whole = save == "all" or (checkpoint == "none" and any(ctx.needs_input_grad))
        if save == "all":  # these are given away
            memory = x0.new_empty(stepper.shape(steps + 1, len(x0)))
        else:
            kept = steps + 1 if ctx.whole else math.ceil(steps / ctx.length)
            ctx.loan = Loan(stepper.shape(kept, len(x0)), x0)
            memory = ctx.loan.tensor
        marks = stepper.states(memory)
        if ctx.whole:
            marks[0] = stepper.blocks(x0)
            _roll(stepper, marks, inputs, dt)
            last = marks[-1:]
        else:
            last = _roll_marks(stepper, marks, x0, inputs, dt, ctx.length)
        ctx.save_for_backward(marks, inputs, dt, *tensors)
        if save == "all":
            return stepper.flat(marks).contiguous()
        return stepper.flat(last).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; `once_differentiable` may give None instead
            raise SolverError("the fused solvers have no second derivatives. Use method='euler-plain'.")
        with torch.autocast(grad.device.type, enabled=False):  # as in the forward pass
            return _adjoint(ctx, grad)


def _roll(stepper: Stepper, states: Tensor, inputs: Tensor, dt: Tensor | None) -> None:
    """states[1:] from states[0], (steps + 1, p, batch, k)."""
    for k, e in enumerate(inputs):
        stepper.advance(states[k], e, None if dt is None else dt[k], states[k + 1])


def _roll_marks(
    stepper: Stepper, marks: Tensor, x0: Tensor, inputs: Tensor, dt: Tensor | None, length: int
) -> Tensor:
    """The first state of each segment of this length into `marks`; the last of all, (1, p, batch, k)."""
    scratch = stepper.states(x0.new_empty(stepper.shape(length + 1, len(x0))))
    scratch[0] = stepper.blocks(x0)
    for mark, (start, end) in zip(marks, segments(len(inputs), length), strict=True):
        mark.copy_(scratch[0])
        _roll(stepper, scratch, inputs[start:end], None if dt is None else dt[start:end])
        scratch[0] = scratch[end - start]
    return scratch[:1]


def _adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    marks, inputs, dt, *tensors = ctx.saved_tensors
    stepper = Stepper(ctx.step.with_tensors(tuple(tensors)))
    batch = marks.shape[2]
    sums = Sums(stepper, ctx.needs_input_grad[6:])
    d_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[2] else None
    grads = stepper.blocks(grad)  # (T + 1 or 1, p, batch, k)
    piece = stepper.shape(ctx.length + 1, batch)
    lam = stepper.states(marks.new_empty(piece))
    scratch = None if ctx.whole else stepper.states(marks.new_empty(piece))
    first = torch.zeros_like(grads[-1]).add_(grads[-1])
    for index, (start, end) in reversed(list(enumerate(segments(len(inputs), ctx.length)))):
        u, d = inputs[start:end], None if dt is None else dt[start:end]
        if scratch is None:
            states = marks[start : end + 1]
        else:
            states = scratch[: end - start + 1]
            states[0] = marks[index]
            _roll(stepper, states, u, d)
        later = grads[start:end] if ctx.save == "all" else None
        lams = lam[: end - start + 1]
        lams[-1] = first
        q = _segment(stepper, sums, states[:-1], lams, u, d, later)
        first = lams[0].clone()
        if d_inputs is not None:
            d_inputs[start:end] = _input_adjoint(stepper, q)
    d_x0 = stepper.flat(first).contiguous() if ctx.needs_input_grad[1] else None
    return (None, d_x0, d_inputs, None, None, None, *sums.sums)


def _segment(
    stepper: Stepper,
    sums: Sums,
    x: Tensor,
    lam: Tensor,
    inputs: Tensor,
    dt: Tensor | None,
    grads: Tensor | None,
) -> Tensor:
    """lam[:-1] from lam[-1] over a segment of states x, all (steps, p, batch, k); returns all q."""
    step = stepper.step
    p = stepper.apply(step.pre, x)
    psi = [stepper.apply(phi, x) for phi in step.psi]
    z = f = None
    if not step.explicit:
        z = stepper.inner(p, inputs)
        f = stepper.apply(step.post, z)
    v = lam[1:] if dt is None else torch.empty_like(x)
    q = v if step.explicit else torch.empty_like(x)
    for k in range(len(x) - 1, -1, -1):
        if dt is not None:
            torch.mul(lam[k + 1], dt[k][:, None], out=v[k])
        if z is not None and f is not None:
            q[k] = stepper.inner_adjoint(v[k], z[k], f[k])
        stepper.retreat(v[k], q[k], x[k], p[k], [y[k] for y in psi], lam[k])
        if dt is not None:
            lam[k] += lam[k + 1]
        if grads is not None:
            lam[k] += grads[k]
    sums.add(x, p, v, q, f, psi, inputs)
    return q


def _input_adjoint(stepper: Stepper, q: Tensor) -> Tensor:
    """The gradient of the inputs of one segment, (steps, batch, m)."""
    flat, E = stepper.flat(q), stepper.step.E
    return flat if E is None else flat @ E.mT
