"""The hand-written adjoint of a grid solver: all states, or the last, of T equal kinds of `Step`.

Memory, for states of batch x n numbers: T + 1 of them and some SEGMENT, or with checkpoint="sqrt" about
4 sqrt(T), for one forward pass more: of each segment the first state is kept, the others are made again.
Second derivatives are refused, and torch.func's transforms as well; the plain twins have both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers.buffers import PooledBuffer as Loan
from ctrnn_assembly.solvers.graph import cuda_precision, replayed, set_cuda_precision
from ctrnn_assembly.solvers.step import Form, Step, Stepper, Sums, segments

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
    graph: bool = False,
) -> Tensor:
    """States of T steps under autograd.

    Args:
        step: the tensors of the step.
        x0: (batch, n).
        inputs: (T, batch, m), see `Step.E`.
        dt: step lengths, (T, 1) or (T, batch); None if they are in the step's tensors already.
        save: "all" states, x0 first, or only the "last" one.
        checkpoint: "sqrt" stores about 4 sqrt(T) states instead of T.
        graph: record both passes as CUDA graphs, and replay these where the shapes are the same.

    Returns:
        (T + 1, batch, n), or (1, batch, n).
    """
    return _Integrate.apply(step.form, x0, inputs, dt, save, checkpoint, graph, *step.tensors)


@dataclass(frozen=True)
class _Plan:
    """What the forward pass keeps: every state (`whole`), or the first of each segment of `length`."""

    whole: bool
    length: int

    def kept(self, steps: int) -> int:
        return steps + 1 if self.whole else math.ceil(steps / self.length)


class _Integrate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        form: Form,
        x0: Tensor,
        inputs: Tensor,
        dt: Tensor | None,
        save: Save,
        checkpoint: Checkpoint,
        graph: bool,
        *tensors: Tensor | None,
    ) -> Tensor:
        steps = len(inputs)
        plan = ctx.plan = _Plan(
            whole=save == "all" or (checkpoint == "none" and any(ctx.needs_input_grad)),
            length=max(1, math.isqrt(steps)) if checkpoint == "sqrt" else SEGMENT,
        )
        ctx.form, ctx.save, ctx.graph = form, save, graph
        stepper = Stepper(form, tensors)
        marks: Any
        with _matmul_precision(form, x0):
            if graph:
                kept = replayed(_states, (form, plan), (x0, inputs, dt, *tensors))
            else:
                shape = stepper.shape(plan.kept(steps), len(x0))
                # States that are given away are not lent.
                loan = None if save == "all" or x0.device.type != "cpu" else Loan(shape, x0)
                memory = x0.new_empty(shape) if loan is None else loan.tensor
                kept = _roll_all(stepper, plan, stepper.states(memory), x0, inputs, dt)
                # Lent for as long as autograd keeps the states: it drops them after the backward pass.
                cast(Any, kept[0]).loan = loan
        marks, last = cast(tuple[Tensor, Tensor], kept)
        ctx.save_for_backward(marks, inputs, dt, *tensors)
        if save == "all":
            return stepper.flat(marks).contiguous()
        return stepper.flat(last).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; `once_differentiable` may give None instead
            raise SolverError("the fused solvers have no second derivatives. Use method='euler-plain'.")
        needed = (*ctx.needs_input_grad[1:3], *ctx.needs_input_grad[7:])
        fixed = (ctx.form, ctx.plan, needed)
        given = (grad, *ctx.saved_tensors)
        # As in the forward pass.
        with torch.autocast(grad.device.type, enabled=False), _matmul_precision(ctx.form, grad):
            found = replayed(_gradients, fixed, given) if ctx.graph else _gradients(*fixed, *given)
        d_x0, d_inputs, *d_tensors = found
        return (None, d_x0, d_inputs, None, None, None, None, *d_tensors)


@contextmanager
def _matmul_precision(form: Form, like: Tensor) -> Iterator[None]:
    """tf32 operands on CUDA, where the form asks for them."""
    if form.products != "tf32" or like.device.type != "cuda":
        yield
        return
    before = cuda_precision()
    set_cuda_precision("tf32" if isinstance(before, str) else True)
    try:
        yield
    finally:
        set_cuda_precision(before)


def _states(
    form: Form, plan: _Plan, x0: Tensor, inputs: Tensor, dt: Tensor | None, *tensors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the forward pass keeps, and the last state, (1, p, batch, k)."""
    stepper = Stepper(form, tensors)
    memory = x0.new_empty(stepper.shape(plan.kept(len(inputs)), len(x0)))
    return _roll_all(stepper, plan, stepper.states(memory), x0, inputs, dt)


def _roll_all(
    stepper: Stepper, plan: _Plan, marks: Tensor, x0: Tensor, inputs: Tensor, dt: Tensor | None
) -> tuple[Tensor, Tensor]:
    if plan.whole:
        marks[0] = stepper.blocks(x0)
        _roll(stepper, marks, inputs, dt)
        return marks, marks[-1:]
    length = plan.length
    scratch = stepper.states(x0.new_empty(stepper.shape(length + 1, len(x0))))
    scratch[0] = stepper.blocks(x0)
    for mark, (start, end) in zip(marks, segments(len(inputs), length), strict=True):
        mark.copy_(scratch[0])
        _roll(stepper, scratch, inputs[start:end], None if dt is None else dt[start:end])
        scratch[0] = scratch[end - start]
    return marks, scratch[:1]


def _roll(stepper: Stepper, states: Tensor, inputs: Tensor, dt: Tensor | None) -> None:
    """states[1:] from states[0], (steps + 1, p, batch, k)."""
    for k, e in enumerate(inputs):
        stepper.advance(states[k], e, None if dt is None else dt[k], states[k + 1])


def _gradients(
    form: Form,
    plan: _Plan,
    needed: tuple[bool, ...],
    grad: Tensor,
    marks: Tensor,
    inputs: Tensor,
    dt: Tensor | None,
    *tensors: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Those of x0, inputs and tensors, where needed; grad is (T + 1, batch, n) or (1, batch, n)."""
    stepper = Stepper(form, tensors)
    sums = Sums(stepper, needed[2:])
    d_inputs = torch.empty_like(inputs) if needed[1] else None
    grads = stepper.blocks(grad)
    piece = stepper.shape(plan.length + 1, marks.shape[2])
    lam = stepper.states(marks.new_empty(piece))
    scratch = None if plan.whole else stepper.states(marks.new_empty(piece))
    first = grads[-1]
    for index, (start, end) in reversed(list(enumerate(segments(len(inputs), plan.length)))):
        u, d = inputs[start:end], None if dt is None else dt[start:end]
        if scratch is None:
            states = marks[start : end + 1]
        else:
            states = scratch[: end - start + 1]
            states[0] = marks[index]
            _roll(stepper, states, u, d)
        lams = lam[: end - start + 1]
        lams[-1] = first
        later = grads[start:end] if len(grads) > 1 else None
        q = _segment(stepper, sums, states[:-1], lams, u, d, later)
        first = lams[0].clone()
        if d_inputs is not None:
            d_inputs[start:end] = _input_adjoint(stepper, q)
    d_x0 = stepper.flat(first).contiguous() if needed[0] else None
    return (d_x0, d_inputs, *sums.sums)


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
    form = stepper.form
    p = stepper.apply(form.pre, x)
    psi = [stepper.apply(phi, x) for phi in form.psi]
    z = f = None
    if not stepper.explicit:
        z = stepper.inner(p, inputs)
        f = stepper.apply(form.post, z)
    v = lam[1:] if dt is None else torch.empty_like(x)
    q = v if stepper.explicit else torch.empty_like(x)
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
    flat = stepper.flat(q)
    return flat if stepper.E is None else flat @ stepper.E.mT
