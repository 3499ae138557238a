"""`solve`: one function for every solver, and the only place that transposes batch and time.

| method | what | gradient |
|---|---|---|
| euler | fused forward Euler, hand-written adjoint | exact |
| euler-plain | its plain twin | exact |
| imex | implicit in the coupling: contracts whatever ||L|| is | exact |
| exponential-euler | exact in -I + L | exact |
| dopri5, rk4, ... | torchdiffeq's methods by their own names | direct or adjoint |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.inputs import Signal, ZeroOrderHold
from ctrnn_assembly.solvers.adaptive import FIXED_STEP as FIXED_STEP
from ctrnn_assembly.solvers.adaptive import Gradient, torchdiffeq_solve
from ctrnn_assembly.solvers.adjoint import Checkpoint, Save
from ctrnn_assembly.solvers.backends import Backend
from ctrnn_assembly.solvers.grid import at, check_input, check_state, freeze, step_grid
from ctrnn_assembly.solvers.methods import GRID_METHODS as GRID_METHODS
from ctrnn_assembly.solvers.methods import METHODS as METHODS
from ctrnn_assembly.solvers.methods import check_settings, solve_on_grid
from ctrnn_assembly.solvers.solution import Solution as Solution
from ctrnn_assembly.solvers.step import Products
from ctrnn_assembly.terms import Terms


def solve(
    field: Any,
    x0: Tensor,
    t: Tensor | None = None,
    *,
    u: Tensor | Signal | None = None,
    dt: float | Tensor | None = None,
    method: str = "euler",
    lengths: Tensor | None = None,
    save: Save = "all",
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    step_size: float | None = None,
    gradient: Gradient = "direct",
    checkpoint: Checkpoint = "none",
    products: Products = "full",
    backend: Backend = "auto",
) -> Solution:
    """Integrate x' = f(t, x) under the input u from x0.

    Args:
        field: a `Subnetwork`, `Assembly`, `Terms`, or (torchdiffeq's methods only) any f(t, x).
        x0: initial states, (batch, n).
        t: times, (k,), increasing; grid methods take one step an interval. Or give `dt`.
        u: samples (batch, time, m), each held over its step; or a `Signal`; or None.
        dt: step lengths instead of t: a number, (time,), or (batch, time) (grid methods only).
        method: one of `METHODS`.
        lengths: number of valid steps of each sample, (batch,); the state then stays.
        save: "all" states, the initial one first, or only the "last".
        rtol, atol: of adaptive methods, and of the corrector of implicit_adams.
        max_steps: of adaptive methods, from one time (or sample of u) to the next; evaluations for
            scipy_solver.
        step_size: largest step of fixed-step methods between the times t; first step of adaptive ones.
        gradient: "direct" through the solver; "adjoint" by the adjoint ODE (adaptive methods);
            "inexact-adjoint" to allow it with fixed steps, where it is only approximate.
        checkpoint: "sqrt" keeps about 4 sqrt(time) states for the gradient instead of all, for one
            forward pass more (euler, imex, exponential-euler; with save="last" and no lengths).
        products: operands of matrix products: "full", "bf16" (relative error of states about 1e-2), or
            "tf32" on CUDA (1e-3); states and sums keep their precision (same methods).
        backend: what runs the loop (same methods), see `solvers.backends`.

    Returns:
        `Solution` with times, states (batch, k, n), status and evaluations.

    Raises:
        SolverError: for an unknown method, an exhausted step budget, a step underflow, or a setting
            that the method does not support; with time, state norm and evaluations.
        ShapeError, DataError: for inputs of the wrong shape or that are not finite.
    """
    check_settings(method, gradient, step_size, checkpoint, products, backend)
    with torch.autocast(x0.device.type, enabled=False):
        known = field.terms() if hasattr(field, "terms") else field
        terms = known if isinstance(known, Terms) else None
        check_state(x0, terms)
        check_input(x0, terms, u)
        times, steps = step_grid(x0, t, u, dt, lengths)
        if steps.requires_grad and method != "euler-plain":
            raise SolverError(
                f"method {method!r} has no gradient with respect to times or dt. "
                "Use method='euler-plain', or detach them."
            )
        if method in GRID_METHODS:
            kept: Save = save if lengths is None else "all"
            if checkpoint != "none" and kept == "all":
                raise SolverError(
                    f"checkpoint={checkpoint!r} keeps few states: it needs save='last' and no lengths."
                )
            options = {
                "save": kept,
                "checkpoint": checkpoint,
                "products": products,
                "backend": backend,
            }
            states = _solve_on_grid(terms, x0, times, steps, u, method, options)
            evaluations, count = len(steps), len(steps)
        else:
            signal = _as_signal(u, times, x0)
            states, evaluations = torchdiffeq_solve(
                known,
                x0,
                _shared(times, method),
                signal,
                method=method,
                rtol=rtol,
                atol=atol,
                max_steps=max_steps,
                step_size=step_size,
                gradient=gradient,
            )
            count = None
    if lengths is not None:
        states = at(states, lengths) if save == "last" else freeze(states, lengths)
    if save == "last":
        states, times = states[-1:], times[..., -1:]
    return Solution(times, states.transpose(0, 1), method, count, evaluations)


def _solve_on_grid(
    terms: Terms | None,
    x0: Tensor,
    times: Tensor,
    steps: Tensor,
    u: Tensor | Signal | None,
    method: str,
    options: dict[str, Any],
) -> Tensor:
    if terms is None:
        raise SolverError(
            f"method {method!r} needs the tensors of the field: a Subnetwork, an Assembly or Terms. "
            "For any other f(t, x) use torchdiffeq's methods, such as rk4 or dopri5."
        )
    if isinstance(u, Signal):
        if times.ndim == 2:
            raise SolverError(
                "a Signal has one time grid; per-sample dt needs samples u (batch, time, m)."
            )
        u = torch.stack([u(s) for s in times[:-1]], dim=1)
    drive = None if u is None else u.to(x0).transpose(0, 1)
    return solve_on_grid(method, terms, x0, drive, steps.to(x0), **options)


def _as_signal(u: Tensor | Signal | None, times: Tensor, x0: Tensor) -> Signal | None:
    if u is None or isinstance(u, Signal):
        return u
    return ZeroOrderHold(u.to(x0), _shared(times, "a hold")[:-1])


def _shared(times: Tensor, what: str) -> Tensor:
    if times.ndim == 2:
        raise SolverError(
            f"{what} needs one time grid for the whole batch; got per-sample dt. Use method='euler', "
            "'imex' or 'exponential-euler'."
        )
    return times
