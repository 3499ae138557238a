"""The solvers by name, and the settings that each refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers.adaptive import TORCHDIFFEQ_METHODS, Gradient
from ctrnn_assembly.solvers.euler import euler
from ctrnn_assembly.solvers.euler_adjoint import euler_adjoint
from ctrnn_assembly.solvers.semi_implicit import exponential_matrices, imex_matrices, semi_implicit
from ctrnn_assembly.terms import Terms

GridMethod = Callable[[Terms, Tensor, Tensor | None, Tensor], Tensor]

GRID_METHODS: dict[str, GridMethod] = {
    "euler": euler_adjoint,
    "euler-plain": euler,
    "imex": partial(semi_implicit, matrices=imex_matrices),
    "exponential-euler": partial(semi_implicit, matrices=exponential_matrices),
}
METHODS = (*GRID_METHODS, *TORCHDIFFEQ_METHODS)


def check_settings(method: str, gradient: str, step_size: float | None) -> None:
    """Refuse settings that a method would ignore."""
    if method not in METHODS:
        raise SolverError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if gradient not in get_args(Gradient):
        raise SolverError(f"gradient must be one of {', '.join(get_args(Gradient))}; got {gradient!r}.")
    if step_size is not None and not step_size > 0:
        raise SolverError(f"step_size must be positive; got {step_size}.")
    if method in GRID_METHODS and (gradient != "direct" or step_size is not None):
        raise SolverError(
            f"method {method!r} takes one step an interval and has the exact gradient of these steps: "
            f"leave out gradient={gradient!r} and step_size={step_size}, or use rk4 or dopri5."
        )
