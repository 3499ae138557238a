"""What the bridge to torchdiffeq refuses, and how it explains a failed solve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.terms import Terms


def check_gradient(
    gradient: str, method: str, fixed: bool, field: Any, x0: Tensor, parameters: tuple[Tensor, ...]
) -> None:
    """Refuse a gradient that would be silently wrong, incomplete or missing."""
    if gradient == "direct":
        wanted = torch.is_grad_enabled() and (x0.requires_grad or len(parameters) > 0)
        if method == "scipy_solver" and wanted:
            raise SolverError(
                "scipy_solver has no direct gradient. Use gradient='adjoint', or solve under "
                "torch.no_grad()."
            )
        return
    if fixed and gradient != "inexact-adjoint":
        # The adjoint ODE is another discretisation than the fixed-step solve.
        raise SolverError(
            f"gradient='adjoint' with the fixed-step method {method!r} gives gradients of a different "
            "discretisation. Use gradient='direct', an adaptive method such as dopri5, or ask for it "
            "by name with gradient='inexact-adjoint'."
        )
    if not isinstance(field, Terms | nn.Module):
        raise SolverError(
            "the adjoint must know the parameters of f(t, x): make f an nn.Module, or use "
            "gradient='direct'."
        )


def check_grid(method: str, times: Tensor) -> None:
    """Refuse unequal steps for a multistep method, whose coefficients assume equal ones."""
    steps = times.diff()
    if not bool(((steps - steps[0]).abs() <= 1e-6 * steps[0]).all()):
        raise SolverError(
            f"method {method!r} needs equal steps; got steps from {float(steps.min()):.6g} to "
            f"{float(steps.max()):.6g}. Use equally spaced times, or method='rk4'."
        )


def explain(
    message: str,
    method: str,
    max_steps: int,
    evaluations: int,
    last: tuple[Tensor, Tensor, Tensor] | None,
) -> str:
    """torchdiffeq's assertion in the user's words; `last` is the last evaluation, (t, x, x')."""
    where, finite = "before the first evaluation", True
    if last is not None:
        t, x, value = last
        finite = bool(torch.isfinite(x).all() and torch.isfinite(value).all())
        where = (
            f"at t = {float(t):.6g}, largest state norm {float(x.norm(dim=-1).max()):.4g}, after "
            f"{evaluations} evaluations"
        )
    if "max_num_steps" in message:
        cause = f"used all of its {max_steps} steps between two times"
    elif "non-finite" in message or not finite:  # torchdiffeq calls most of these an underflow
        cause = "met a state or slope that is not finite"
    elif "underflow" in message:
        cause = "needs steps below the resolution of time"
    else:
        cause = f"stopped: {message}"
    return (
        f"method {method!r} {cause}, {where}. The field may be stiff or diverge: loosen rtol and atol, "
        "raise max_steps, or use method='imex' or 'euler' with a small dt."
    )
