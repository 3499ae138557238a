"""`solve`: one function for every solver, and the only place that transposes batch and time.

| solver | what | gradient |
|---|---|---|
| euler | forward Euler | exact, of the steps |
| imex | implicit in the coupling: contracts whatever ||L|| is | exact, of the steps |
| exponential-euler | exact in -I + L | exact, of the steps |
| dopri5, rk4, ... | torchdiffeq's methods by their own names | direct or adjoint |

The first three are grid solvers, `SCHEMES`. A backend is the program that runs their loop:

| backend | what | where |
|---|---|---|
| plain | autograd through every step: differentiable twice, by torch.func, and in dt | everywhere |
| fused | torch's operations with a hand-written adjoint | everywhere |
| graph | the same, recorded as CUDA graphs: no Python in the loop over time | CUDA |
| persistent | one Triton kernel each way; euler, and no L of few coupled blocks | CUDA |
| auto | fused on a CPU; on CUDA the last of these that can run this and agrees with fused | |

auto takes plain for steps of several lengths whose pair is not proportional to dt: imex and
exponential-euler have no fused loop for them. graph and persistent have never run on a GPU.
Under torch.func's transforms and forward-mode derivatives every backend is plain, and so is the backward
pass of each under create_graph=True.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ctrnn_assembly import schemes
from ctrnn_assembly.errors import SolverError, unknown
from ctrnn_assembly.inputs import Signal, ZeroOrderHold
from ctrnn_assembly.schemes import ADAPTIVE, SCHEMES, SOLVERS
from ctrnn_assembly.solvers import fused
from ctrnn_assembly.solvers.adaptive import Gradient, torchdiffeq_solve
from ctrnn_assembly.solvers.fused import MatmulPrecision, Recompute, Save
from ctrnn_assembly.solvers.grid import check_start, freeze, refined, step_grid
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import transformed

Backend = Literal["auto", "plain", "fused", "graph", "persistent"]
# Settings by name, the first value of each being what a solve has without it.
CHOICES = {
    "gradient": get_args(Gradient),
    "recompute": get_args(Recompute),
    "matmul_precision": get_args(MatmulPrecision),
    "backend": get_args(Backend),
}


@dataclass(frozen=True)
class Solution:
    """What `solve` returns: states x (batch, k, n), the initial one first, at times t.

    t is (k,), or (batch, k) when each sample has its own steps; k = 1 if only the last state was asked
    for. `steps` counts accepted ones, None where the solver does not tell; `evaluations` those of the
    vector field.
    """

    t: Tensor
    x: Tensor
    solver: str
    steps: int | None
    evaluations: int

    @property
    def last(self) -> Tensor:
        """The final state, (batch, n)."""
        return self.x[:, -1]

    @property
    def status(self) -> Literal["completed", "diverged"]:
        """Whether every state is finite."""
        return "completed" if bool(torch.isfinite(self.x).all()) else "diverged"


def solve(
    field: Any,
    x0: Tensor,
    t: Tensor | None = None,
    *,
    u: Tensor | Signal | None = None,
    dt: float | Tensor | None = None,
    solver: str = "euler",
    lengths: Tensor | None = None,
    save: Save = "all",
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    step_size: float | None = None,
    substeps: int = 1,
    gradient: Gradient = "direct",
    recompute: Recompute = "none",
    matmul_precision: MatmulPrecision = "full",
    backend: Backend = "auto",
) -> Solution:
    """Integrate x' = f(t, x) under the input u from x0.

    Args:
        field: a `Subnetwork`, `Assembly`, `Terms`, or (torchdiffeq's solvers only) any f(t, x).
        x0: initial states, (batch, n).
        t: times, (k,), increasing; grid solvers take `substeps` steps an interval. Or give `dt`.
        u: samples (batch, time, m), each held over its interval; or a `Signal`; or None.
        dt: intervals' lengths instead of t: a number, (time,), or (batch, time) (grid solvers only).
        solver: one of `SOLVERS`.
        lengths: number of valid steps of each sample, (batch,); the state then stays.
        save: "all" states, the initial one first, or only the "last".
        rtol, atol: of adaptive solvers, and of the corrector of implicit_adams.
        max_steps: of adaptive solvers, from one time (or sample of u) to the next; evaluations for
            scipy_solver.
        step_size: largest step of fixed-step solvers between the times t; first step of adaptive ones.
        substeps: equal steps of every interval, for all but adaptive solvers: the same equation, solved
            more finely.
        gradient: "direct" through the solver; "adjoint" by the adjoint ODE (adaptive solvers);
            "inexact-adjoint" to allow it with fixed steps, where it is only approximate.
        recompute: "sqrt" stores about 4 sqrt(time) states for the gradient instead of all, for one
            forward pass more (grid solvers, with save="last" and no lengths).
        matmul_precision: operands of matrix products: "full", "bf16" (relative error of states about
            1e-2), or "tf32" on CUDA (1e-3); states and sums keep their precision (grid solvers).
        backend: what runs the loop of a grid solver, see above.

    Raises:
        SolverError: for an exhausted step budget, a step underflow, or a setting that the solver would
            ignore; with time, state norm and evaluations. ConfigError: for an unknown name.
        ShapeError, DataError: for inputs of the wrong shape or that are not finite.
    """
    if transformed() and matmul_precision == "full":
        backend, recompute = "plain", "none"
    chosen = {"recompute": recompute, "matmul_precision": matmul_precision, "backend": backend}
    check_settings(solver, step_size, substeps, gradient=gradient, **chosen)
    with torch.autocast(x0.device.type, enabled=False):
        known = field.terms() if hasattr(field, "terms") else field
        terms = known if isinstance(known, Terms) else None
        check_start(x0, terms, u)
        times, steps = step_grid(x0, t, u, dt, lengths)
        if steps.requires_grad and backend != "plain":
            raise SolverError(
                f"solver {solver!r} has no gradient with respect to times or dt here. Use "
                "solver='euler' with backend='plain', or detach them."
            )
        count = None
        if solver in SCHEMES:
            kept: Save = save if lengths is None else "all"
            held = u.repeat_interleave(substeps, 1) if isinstance(u, Tensor) and substeps > 1 else u
            fine, parts = refined(times, steps, substeps)
            run = _grid_loop(solver, terms, x0, held, fine, parts, save=kept, **chosen)
            states, evaluations = run()[::substeps], len(parts)
            count = evaluations
        elif times.ndim == 2:
            raise SolverError(
                f"{solver} needs one time grid for the whole batch; got per-sample dt. Use a grid "
                f"solver: {', '.join(SCHEMES)}."
            )
        else:
            signal = ZeroOrderHold(u.to(x0), times[:-1]) if isinstance(u, Tensor) else u
            settings = (solver, max_steps, step_size, substeps, gradient)
            states, evaluations = torchdiffeq_solve(
                known, x0, times, signal, *settings, rtol=rtol, atol=atol
            )
    if lengths is not None and save == "last":
        states = states[lengths.to(x0.device), torch.arange(len(x0), device=x0.device)][None]
    elif lengths is not None:
        states = freeze(states, lengths)
    if save == "last":
        states, times = states[-1:], times[..., -1:]
    return Solution(times, states.transpose(0, 1), solver, count, evaluations)


def check_settings(
    solver: str, step_size: float | None = None, substeps: int = 1, **settings: str
) -> None:
    """Refuse, of the `settings` in CHOICES, unknown names and what a solver or backend would ignore."""
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    for name, value in settings.items():
        if value not in CHOICES[name]:
            raise unknown(name, value, CHOICES[name])
    if step_size is not None and not step_size > 0:
        raise SolverError(f"step_size must be positive; got {step_size}.")
    if not isinstance(substeps, int) or substeps < 1:
        raise SolverError(
            f"substeps must be a whole number, at least 1; got {substeps}. Use substeps=4."
        )
    if substeps > 1 and solver in ADAPTIVE:
        raise SolverError(
            f"solver {solver!r} chooses its own steps; got substeps={substeps}. Leave substeps out and "
            "lower rtol and atol, or use a solver of fixed steps such as rk4."
        )
    if substeps > 1 and step_size is not None:
        raise SolverError(f"give substeps={substeps} or step_size={step_size}, not both.")
    given = {name: value for name, value in settings.items() if value != CHOICES[name][0]}
    gradient = given.pop("gradient", "direct")
    if solver in SCHEMES and (gradient != "direct" or step_size is not None):
        raise SolverError(
            f"solver {solver!r} takes `substeps` steps an interval and has their exact gradient: leave "
            f"out gradient={gradient!r} and step_size={step_size}, or use rk4 or dopri5."
        )
    for name, value in given.items():
        if solver not in SCHEMES:
            raise SolverError(
                f"{name}={value!r} is of the grid solvers, {', '.join(SCHEMES)}; got {solver!r}."
            )
        if given.get("backend") == "plain" and name != "backend":
            raise SolverError(
                f"{name}={value!r} is of the hand-written loops; got backend='plain'. Leave it "
                "out, or use backend='auto'."
            )


def _grid_loop(
    solver: str,
    terms: Terms | None,
    x0: Tensor,
    u: Tensor | Signal | None,
    times: Tensor,
    steps: Tensor,
    *,
    backend: str,
    **options: Any,
) -> Callable[[], Tensor]:
    """A solve that is ready to run: () -> states, all of them or, if `save` is "last", at least that."""
    if terms is None:
        raise SolverError(
            f"solver {solver!r} needs the tensors of the field: a Subnetwork, an Assembly or Terms. "
            "For any other f(t, x) use torchdiffeq's solvers, such as rk4 or dopri5."
        )
    if options["recompute"] != "none" and options["save"] == "all":
        raise SolverError(
            f"recompute={options['recompute']!r} stores few states: it needs save='last' and no lengths."
        )
    if isinstance(u, Signal):
        if times.ndim == 2:
            raise SolverError(
                "a Signal has one time grid; per-sample dt needs samples u (batch, time, m)."
            )
        u = torch.stack([u(s) for s in times[:-1]], dim=1)
    drive, scheme = None if u is None else u.to(x0).transpose(0, 1), SCHEMES[solver]
    given = (scheme, terms, x0, drive, steps.to(x0))
    apart = backend != "plain" and scheme.increment is None and not fused.same_steps(given[-1])
    settings = {**options, "backend": backend}
    names = ("recompute", "matmul_precision", "backend")
    if apart and any(settings[name] != CHOICES[name][0] for name in names):
        raise SolverError(
            f"steps of several lengths have no {', '.join(names)} with solver {solver!r}. Leave these "
            "settings out, use one dt, or solver='euler'."
        )
    if apart or backend == "plain":
        return partial(schemes.integrate, *given)
    if backend == "fused" or (backend == "auto" and x0.device.type != "cuda"):
        return fused.prepared(*given, **options)
    from ctrnn_assembly.solvers.cuda.check import loop_on_cuda

    return partial(loop_on_cuda(backend, *given, **options), *given, **options)
