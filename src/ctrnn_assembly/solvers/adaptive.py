"""The bridge to torchdiffeq: all its methods, fixed and adaptive, with clear errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torchdiffeq
from torch import Tensor, nn
from torchdiffeq._impl.odeint import SOLVERS  # the public package does not list its methods
from torchdiffeq._impl.solvers import FixedGridODESolver

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.inputs import Signal
from ctrnn_assembly.terms import Terms

Gradient = Literal["direct", "adjoint", "inexact-adjoint"]
Field = Callable[[Tensor, Tensor], Tensor]

TORCHDIFFEQ_METHODS = tuple(sorted(name for name in SOLVERS if name not in ("euler", "fixed_adams")))
FIXED_STEP = tuple(name for name in TORCHDIFFEQ_METHODS if issubclass(SOLVERS[name], FixedGridODESolver))


class _Counted(nn.Module):
    """f(t, x) that remembers how often, when and where it was last evaluated."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        # A list hides a module from nn.Module: its parameters are passed to the adjoint by hand.
        self._field = [field]
        self.evaluations, self.t, self.norm = 0, float("nan"), float("nan")

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        self._last = (t.detach(), x.detach())
        return self._field[0](t, x)

    def where(self) -> str:
        """Time, norm and evaluations, for a message."""
        if self.evaluations == 0:
            return "before the first evaluation"
        t, x = self._last
        return (
            f"at t = {float(t):.6g}, largest state norm {float(x.norm(dim=-1).max()):.4g}, after "
            f"{self.evaluations} evaluations"
        )


def torchdiffeq_solve(
    field: Terms | Field,
    x0: Tensor,
    t: Tensor,
    signal: Signal | None,
    *,
    method: str,
    rtol: float,
    atol: float,
    max_steps: int,
    step_size: float | None,
    gradient: Gradient,
) -> tuple[Tensor, int]:
    """States at the times t, (k, batch, n), and the number of evaluations.

    Jumps of the input are passed on as jump times (adaptive) or by evaluating each step strictly
    inside its interval (fixed step); kinks as step times.
    """
    terms = field if isinstance(field, Terms) else None
    if terms is not None:
        known = terms
        function: Field = lambda s, x: known(x, None if signal is None else signal(s))  # noqa: E731
    else:
        function = field  # type: ignore[assignment]
    counted = _Counted(function)
    options = _options(method, t, signal, max_steps, step_size)
    solver = torchdiffeq.odeint
    extra: dict[str, object] = {}
    if gradient != "direct":
        _check_adjoint(method, gradient)
        solver = torchdiffeq.odeint_adjoint
        extra["adjoint_params"] = _adjoint_parameters(field, signal)
    try:
        states = solver(counted, x0, t, rtol=rtol, atol=atol, method=method, options=options, **extra)
    except AssertionError as error:
        raise SolverError(_explain(str(error), method, max_steps, counted.where())) from error
    return states, counted.evaluations


def _options(
    method: str, t: Tensor, signal: Signal | None, max_steps: int, step_size: float | None
) -> dict[str, object]:
    """torchdiffeq's options for one solve."""
    options: dict[str, object] = {}
    inside = (lambda times: times[(times > t[0]) & (times < t[-1])].to(t)) if signal else None
    if method in FIXED_STEP:
        if step_size is not None:
            options["step_size"] = step_size
        # Without it a stage at the end of a step would see the next sample of a hold.
        options["perturb"] = signal is not None and len(signal.jumps) > 0
    elif method != "scipy_solver":
        options["max_num_steps"] = max_steps
        if signal is not None and inside is not None:
            options["jump_t"] = inside(signal.jumps)
            options["step_t"] = inside(signal.kinks)
        if step_size is not None:
            options["first_step"] = step_size
    return options


def _check_adjoint(method: str, gradient: Gradient) -> None:
    """The adjoint ODE is another discretisation: its gradient is not that of a fixed-step solve."""
    if method in FIXED_STEP and gradient != "inexact-adjoint":
        raise SolverError(
            f"gradient='adjoint' with the fixed-step method {method!r} gives gradients of a different "
            "discretisation. Use gradient='direct', an adaptive method such as dopri5, or ask for it "
            "by name with gradient='inexact-adjoint'."
        )


def _adjoint_parameters(field: Terms | Field, signal: Signal | None) -> tuple[Tensor, ...]:
    if isinstance(field, Terms):
        tensors = list(field.tensors())
    else:
        tensors = list(field.parameters()) if isinstance(field, nn.Module) else []
    if signal is not None:
        tensors.append(signal.samples)
    return tuple(tensor for tensor in tensors if tensor.requires_grad)


def _explain(message: str, method: str, max_steps: int, where: str) -> str:
    if "max_num_steps" in message:
        cause = f"used all of its {max_steps} steps"
    elif "underflow" in message:
        cause = "needs steps below the resolution of time"
    elif "non-finite" in message:
        cause = "met a state that is not finite"
    else:
        cause = f"stopped: {message}"
    return (
        f"method {method!r} {cause} {where}. The field may be stiff or diverge: loosen rtol and atol, "
        "raise max_steps, or use method='imex' or 'euler' with a small dt."
    )
