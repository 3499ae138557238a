"""The solvers by name, and the settings that each refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers.adaptive import TORCHDIFFEQ_METHODS, Gradient
from ctrnn_assembly.solvers.adjoint import Checkpoint
from ctrnn_assembly.solvers.backends import Backend, run_on
from ctrnn_assembly.solvers.euler import euler
from ctrnn_assembly.solvers.euler_adjoint import euler_adjoint
from ctrnn_assembly.solvers.semi_implicit import exponential_matrices, imex_matrices
from ctrnn_assembly.solvers.semi_implicit_adjoint import semi_implicit_adjoint
from ctrnn_assembly.solvers.step import Products
from ctrnn_assembly.terms import Terms

# With a hand-written adjoint: they take save, checkpoint, products and graph.
FUSED: dict[str, Callable[..., Tensor]] = {
    "euler": euler_adjoint,
    "imex": partial(semi_implicit_adjoint, matrices=imex_matrices),
    "exponential-euler": partial(semi_implicit_adjoint, matrices=exponential_matrices),
}
GRID_METHODS = ("euler", "euler-plain", "imex", "exponential-euler")
METHODS = (*GRID_METHODS, *TORCHDIFFEQ_METHODS)


def solve_on_grid(
    method: str,
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    backend: Backend = "auto",
    **options: Any,
) -> Tensor:
    """States of a grid method, (time + 1, batch, n), or the last, (1, batch, n)."""
    if method in FUSED:
        return run_on(backend, method, FUSED[method], terms, x0, drive, dt, **options)
    states = euler(terms, x0, drive, dt)
    return states[-1:] if options["save"] == "last" else states


def check_settings(
    method: str,
    gradient: str = "direct",
    step_size: float | None = None,
    checkpoint: str = "none",
    products: str = "full",
    backend: str = "auto",
) -> None:
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
    for name, value, known in (
        ("checkpoint", checkpoint, get_args(Checkpoint)),
        ("products", products, get_args(Products)),
        ("backend", backend, get_args(Backend)),
    ):
        if value not in known:
            raise SolverError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
        if value != known[0] and method not in FUSED:
            raise SolverError(
                f"{name}={value!r} needs a hand-written adjoint, of {', '.join(FUSED)}; got {method!r}."
            )
