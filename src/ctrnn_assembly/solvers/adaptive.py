"""torchdiffeq's solvers, fixed-step and adaptive, for any field, with errors that say what happened.

A solve is cut at the breaks of the input, and each piece sees its own side of a jump: torchdiffeq's
`jump_t`, in 0.2.5, is given up for good when a step happens to end on a jump, and its adjoint applies it
to the wrong side of the first stage of every interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Literal

import torch
import torchdiffeq
from torch import Tensor, nn

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.fields import OwnField
from ctrnn_assembly.inputs import Signal
from ctrnn_assembly.schemes import FIXED_STEP
from ctrnn_assembly.terms import Terms

Gradient = Literal["direct", "adjoint", "inexact-adjoint"]

MULTISTEP = ("explicit_adams", "implicit_adams")


class _Counted:
    """f(t, x) under the input, that remembers how often and where it was last evaluated."""

    def __init__(self, field: Terms | OwnField, signal: Signal | None) -> None:
        self.field, self.signal = field, signal
        self.evaluations, self.budget = 0, math.inf
        self.last: tuple[Tensor, Tensor, Tensor] | None = None  # t, x, x'

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        u = None if self.signal is None else self.signal(t).to(x)
        value = self.field(x, u) if isinstance(self.field, Terms) else self.field(t, x, u)
        self.evaluations += 1
        if self.evaluations > self.budget:
            raise AssertionError("max_num_steps exceeded")  # as torchdiffeq says it
        self.last = (t, x, value)
        return value

    def between(self, low: Tensor, high: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """f(t, x) with t kept in [low, high): the input never shows what comes after a break."""

        @cache
        def bounds(dtype: torch.dtype) -> tuple[float, float]:
            return float(low.to(dtype)), float(torch.nextafter(high.to(dtype), low.to(dtype)))

        def inside(t: Tensor, x: Tensor) -> Tensor:
            first, last = bounds(t.dtype)
            return self(t if first <= t.item() <= last else t.clamp(first, last), x)

        return inside

    def failure(self, message: str, solver: str, max_steps: int) -> SolverError:
        where, finite = "before the first evaluation", True
        if self.last is not None:
            t, x, value = (tensor.detach() for tensor in self.last)
            finite = bool(torch.isfinite(x).all() and torch.isfinite(value).all())
            where = (
                f"at t = {float(t):.6g}, largest state norm {float(x.norm(dim=-1).max()):.4g}, after "
                f"{self.evaluations} evaluations"
            )
        if "max_num_steps" in message:
            cause = f"used all of its {max_steps} steps between two times"
        elif "non-finite" in message or not finite:  # torchdiffeq calls most of these an underflow
            cause = "met a state or slope that is not finite"
        elif "underflow" in message:
            cause = "needs steps below the resolution of time"
        else:
            cause = f"stopped: {message}"
        return SolverError(
            f"solver {solver!r} {cause}, {where}. The field may be stiff or diverge: loosen rtol and "
            "atol, raise max_steps, or use solver='imex' or 'euler' with substeps."
        )


def torchdiffeq_solve(
    field: Terms | OwnField,
    x0: Tensor,
    t: Tensor,
    signal: Signal | None,
    solver: str,
    max_steps: int,
    step_size: float | None,
    substeps: int,
    gradient: Gradient,
    **tolerances: float,
) -> tuple[Tensor, int]:
    """States at the times t, increasing or decreasing, (k, batch, n), and the number of evaluations."""
    parameters = _parameters(field, signal, x0, solver, gradient)
    adjoint = {} if gradient == "direct" else {"adjoint_params": parameters}
    odeint = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
    sign = 1 if t[-1] >= t[0] else -1  # of the direction of time
    ends = _ends(t, signal, x0, sign)
    times = (sign * torch.cat([t, ends])).unique()  # sorted
    counted, states, x = _Counted(field, signal), [x0[None]] * (solver == "scipy_solver"), x0[None]
    for start, end in pairwise([0, *torch.searchsorted(times, sign * ends).tolist()]):
        piece = sign * times[start : end + 1]
        options = _options(solver, piece, max_steps, step_size, substeps)
        options |= {"norm": field.norm} if isinstance(field, OwnField) and field.is_tuple else {}
        if solver == "scipy_solver":  # which knows no budget, and never ends where x does
            counted.budget = counted.evaluations + max_steps
        f = counted if signal is None else counted.between(piece.min(), piece.max())
        settings = {"method": solver, "options": options, **tolerances, **adjoint}
        try:
            x = odeint(f, x[-1], piece, **settings)
            if len(x) != len(piece):
                raise AssertionError("scipy stopped early")
        except AssertionError as error:
            raise counted.failure(str(error), solver, max_steps) from error
        states.append(x[1:] if states else x)  # which begins with x0, of scipy but for rounding
    counted.budget = math.inf  # the adjoint still has to evaluate
    whole = torch.cat(states) if len(states) > 1 else states[0]
    whole = whole if len(t) == len(times) else whole[torch.searchsorted(times, sign * t)]
    return whole, counted.evaluations


def _ends(t: Tensor, signal: Signal | None, x0: Tensor, sign: int) -> Tensor:
    """Where pieces end: the breaks of the input inside the times t, and the last time."""
    if signal is None:
        return t[-1:]
    breaks = signal.breaks.to(t)
    inside = (sign * breaks[(breaks > t.min()) & (breaks < t.max())]).unique()
    ends = torch.cat([sign * inside, t[-1:]])
    if not bool((sign * torch.cat([t[:1], ends]).to(x0.dtype).diff() > 0).all()):
        raise SolverError(
            f"{x0.dtype} cannot tell neighbouring samples apart at times up to "
            f"{float(t.abs().max()):.6g}. Use float64 states, or start the time at 0."
        )
    return ends


def _options(
    solver: str, piece: Tensor, max_steps: int, step_size: float | None, substeps: int
) -> dict[str, object]:
    options: dict[str, object] = {}
    if solver == "scipy_solver":
        return options
    if solver not in FIXED_STEP:
        # Steps land on the ends of the piece, forward and in the adjoint, instead of beyond.
        options = {"max_num_steps": max_steps, "step_t": piece[[0, -1]], "first_step": step_size}
        return options | {"dtype": piece.dtype}  # float64 but on MPS, which has none
    if step_size is not None or substeps > 1:
        options["grid_constructor"] = lambda f, y0, t: _equal_steps(t, step_size, substeps)
    if solver in MULTISTEP:  # their coefficients assume equal steps
        steps = piece.diff().abs()
        # A float32 linspace is equal up to the rounding of its times, whatever their dtype is now.
        rounding = 4 * torch.finfo(torch.float32).eps * piece.abs().max()
        if not bool(((steps - steps[0]).abs() <= torch.minimum(rounding, 1e-3 * steps[0])).all()):
            raise SolverError(
                f"solver {solver!r} needs equal steps; got steps from {float(steps.min()):.6g} to "
                f"{float(steps.max()):.6g}. Use equally spaced times, or solver='rk4'."
            )
        options["max_order"] = 4  # the default of 12 is unstable for most step lengths
    return options


def _equal_steps(t: Tensor, step_size: float | None, substeps: int) -> Tensor:
    """The times t, in any direction, each interval cut into `substeps`, or equal steps <= step_size."""
    parts = []
    for a, b in pairwise(t):
        count = substeps
        if step_size is not None:
            count = max(1, int(torch.ceil((b - a).abs() / step_size - 1e-9)))
        parts.append(a + (b - a) * torch.arange(count, dtype=t.dtype, device=t.device) / count)
    return torch.cat([*parts, t[-1:]])


def _parameters(
    field: Terms | OwnField, signal: Signal | None, x0: Tensor, solver: str, gradient: Gradient
) -> tuple[Tensor, ...]:
    """Every tensor but x0 that a gradient can reach; refuses one that would be wrong or incomplete."""
    tensors: list[Tensor] = [] if signal is None else [signal.samples]
    if isinstance(field, Terms):
        tensors += field.tensors()
    elif isinstance(field.f, nn.Module):
        tensors += field.f.parameters()
    parameters = tuple(tensor for tensor in tensors if tensor.requires_grad)
    if gradient == "direct":
        if solver == "scipy_solver" and torch.is_grad_enabled() and (x0.requires_grad or parameters):
            fix = "Use gradient='adjoint', or solve under torch.no_grad()."
            raise SolverError(f"scipy_solver has no direct gradient. {fix}")
    elif solver in FIXED_STEP and gradient != "inexact-adjoint":
        # The adjoint ODE is another discretisation than the fixed-step solve.
        raise SolverError(
            f"gradient='adjoint' with the fixed-step solver {solver!r} gives gradients of a different "
            "discretisation. Use gradient='direct', an adaptive solver such as dopri5, or ask for it "
            "by name with gradient='inexact-adjoint'."
        )
    elif not isinstance(field, Terms) and not isinstance(field.f, nn.Module):
        raise SolverError(
            "the adjoint must know the parameters of f(t, x): make f an nn.Module, or use "
            "gradient='direct'."
        )
    return parameters
