"""`solve`: one function for every solver, and the only place that transposes batch and time.

| solver | what | gradient |
|---|---|---|
| euler | forward Euler | exact, of the steps |
| imex | implicit in the coupling: contracts whatever ||L|| is | exact, of the steps |
| exponential-euler | exact in -I + L | exact, of the steps |
| dopri5, rk4, ... | torchdiffeq's methods by their own names | direct or adjoint |

The first three are grid solvers, `SCHEMES`; a field of one's own has euler, as a plain loop, and
torchdiffeq's. A backend is the program that runs their loop:

| backend | what | where |
|---|---|---|
| plain | autograd through every step: differentiable twice, by torch.func, and in dt | everywhere |
| fused | torch's operations with a hand-written adjoint | everywhere |
| graph | the same, recorded as CUDA graphs: no Python in the loop over time | CUDA |
| persistent | one Triton kernel each way, but for an L of few coupled blocks | CUDA |
| auto | fused on a CPU; on CUDA the last of these that can run this and agrees with fused | |

On a CPU auto takes the compiled twin of fused for fields of up to 1,024 units, or sparse ones; and plain
for steps of several lengths of imex and exponential-euler, whose pair is not proportional to dt. graph
and persistent have never run on a GPU.
Under torch.func's transforms and forward-mode derivatives every backend is plain, and so is the backward
pass of each under create_graph=True.

>>> SOLVERS[:4]
('euler', 'imex', 'exponential-euler', 'adaptive_heun')
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from ctrnn_assembly import fields, schemes
from ctrnn_assembly.calls import Data, whole_lengths
from ctrnn_assembly.errors import SolverError, check_known, check_within
from ctrnn_assembly.fields import OwnField, as_field, pack
from ctrnn_assembly.inputs import Signal, ZeroOrderHold, as_tensor, held
from ctrnn_assembly.schemes import ADAPTIVE, SCHEMES, SOLVERS, unknown_solver
from ctrnn_assembly.solvers import fused, pairs
from ctrnn_assembly.solvers.adaptive import Gradient, torchdiffeq_solve
from ctrnn_assembly.solvers.fused import MatmulPrecision, Recompute, Save
from ctrnn_assembly.solvers.grid import check_start, distinct, overflow, refined, step_grid
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import holds, transformed

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
    """What `solve` returns.

    Attributes:
        t: times, (k,), or (batch, k) when each sample has its own steps; k = 1 if only the last state
            was asked for.
        x: states at these times, (batch, k, n), the initial one first; of an x0 (batch, ...) they are
            (batch, k, ...), of a tuple a tuple of these.
        solver: which one it was.
        steps: number of accepted steps, None where the solver does not tell.
        evaluations: number of evaluations of the vector field.

    >>> found: Solution = solve(lambda t, x: -x, torch.ones(1, 2), [0.0, 1.0, 2.0], solver="dopri5")
    >>> found.x.shape, found.last
    (torch.Size([1, 3, 2]), tensor([[0.1353, 0.1353]]))
    """

    t: Tensor
    x: Any
    solver: str
    steps: int | None
    evaluations: int

    @property
    def last(self) -> Any:
        """The final state, (batch, n), in the form of x0."""
        return tuple(x[:, -1] for x in self.x) if isinstance(self.x, tuple) else self.x[:, -1]


def solve(
    field: Any,
    x0: Any,
    t: Any = None,
    *,
    u: Data | Signal = None,
    dt: Any = None,
    solver: str = "euler",
    lengths: Data = None,
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
        field: a `Subnetwork`, `Assembly` or `Terms`; or a function or nn.Module of your own, f(t, x, u),
            or f(t, x), to which the input is added. Its solvers are euler, a plain loop, and
            torchdiffeq's: imex and the fused loops need the tensors of a field.
        x0: initial states, (batch, n); of a field of your own a tensor (batch, ...), or a tuple of them.
            Here and below, but for that, an array or list will do.
        t: times, (k,); grid solvers take `substeps` steps an interval. Or give
            `dt`. They may repeat, or decrease: backwards in time a contracting system expands.
        u: samples (batch, time, m), each held over its interval; or a `Signal`, which also interpolates,
            linear or cubic; or None.
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
            1e-2), or "tf32" on CUDA (1e-3), but in second derivatives; states and sums are not rounded.
        backend: what runs the loop of a grid solver, see above.

    Raises:
        SolverError: for a state that overflows, an exhausted step budget, a step underflow, or a setting
            that the solver would ignore; with time and state. ConfigError: for an unknown name.
        ShapeError, DataError: for inputs and x0 of the wrong shape or that are not finite.

    >>> net = Subnetwork(AdaDiagTanh(), 2, weight=torch.zeros(2, 2))  # x' = -x + u
    >>> solve(net, torch.zeros(1, 2), u=torch.ones(1, 50, 2), dt=0.1, solver="imex").last.tolist()
    [[0.994..., 0.994...]]
    """
    if transformed() and solver in ADAPTIVE:
        raise SolverError(
            f"torch.func's transforms cannot enter torchdiffeq's adaptive solvers; got {solver!r}. Use "
            "solver='rk4' with substeps, a grid solver, or torch.autograd, with create_graph=True too."
        )
    if transformed() and solver in SCHEMES and matmul_precision == "full":
        backend, recompute = "plain", "none"
    chosen = {"recompute": recompute, "matmul_precision": matmul_precision, "backend": backend}
    check_settings(solver, step_size, substeps, gradient=gradient, **chosen)
    known: Terms | OwnField = field.terms() if hasattr(field, "terms") else field
    if isinstance(known, Terms):
        x0 = as_tensor("x0", x0, known.tau, known.tau.dtype)
    else:
        check_own(solver, **chosen)
        known, x0 = as_field(known, x0, driven=u is not None), pack(x0)
    u = u if u is None or isinstance(u, Signal) else as_tensor("u", u, x0)
    with torch.autocast(x0.device.type, enabled=False):
        check_start(x0, known, u)
        times, steps = step_grid(x0, t, u, dt)
        lengths = None if lengths is None else whole_lengths(lengths, x0, 0, len(steps))
        plain = backend == "plain" or (isinstance(known, OwnField) and solver in SCHEMES)
        if steps.requires_grad and not plain:
            raise SolverError(
                f"solver {solver!r} has no gradient with respect to times or dt here. Use "
                "solver='euler' with backend='plain', or detach them."
            )
        # Times that repeat are solved for once.
        apart, moves, samples, place = distinct(times, steps, u)
        settings = {"max_steps": max_steps, "step_size": step_size, "gradient": gradient}
        settings |= {"substeps": substeps, "rtol": rtol, "atol": atol}
        ready = partial(_ready, (solver, known, x0, samples, apart, moves), settings)
        every = save == "all" or lengths is not None
        found = ready(chosen | {"save": "all" if every else "last"})()
    if not isinstance(found, tuple):
        found = found[::substeps], len(moves) * substeps
    states, evaluations = found
    states = states[place] if every and place is not None else states
    last = states[-1]
    if lengths is not None:
        last = states[lengths.to(x0.device), torch.arange(len(x0), device=x0.device)]
    if not holds(last.isfinite()):
        if len(states) == 1:  # the others were not kept
            with torch.no_grad():
                states, times = ready(chosen | {"recompute": "none", "save": "all"})()[::substeps], apart
        x = states.transpose(0, 1)
        raise overflow(x if lengths is None else held(x, lengths + 1), times, solver)
    if save == "last":
        states, times = last[None], times[..., -1:]
    x = states.transpose(0, 1)
    if save == "all" and lengths is not None:
        x = held(x, lengths + 1)
    count = evaluations if solver in SCHEMES else None
    found = known.unpack(x) if isinstance(known, OwnField) else x
    return Solution(times, found, solver, count, evaluations)


def _ready(given: Any, settings: dict[str, Any], chosen: dict[str, Any]) -> Callable[[], Any]:
    """A solve that is ready to run: () -> states, of torchdiffeq with the number of evaluations."""
    solver, field, x0, u, times, steps = given
    if not len(steps):
        return lambda: x0[None]
    if solver in SCHEMES:
        return _grid_loop(given, settings["substeps"], **chosen)
    if times.ndim == 2:
        raise SolverError(
            f"{solver} needs one time grid for the whole batch; got per-sample dt. Use a grid "
            f"solver: {', '.join(SCHEMES)}."
        )
    if isinstance(u, Tensor):  # held over the intervals, of times that may decrease
        rising, samples = (times, u) if times[0] <= times[-1] else (times.flip(0), u.flip(1))
        u = ZeroOrderHold(samples.to(x0), rising[:-1])
    return partial(torchdiffeq_solve, field, x0, times, u, solver, **settings)


def check_own(solver: str, **settings: str) -> None:
    """Refuse what needs more of a field than that it can be called."""
    wrong = {name: value for name, value in settings.items() if value != CHOICES[name][0]}
    if wrong.get("backend") == "plain":
        del wrong["backend"]
    if solver in SCHEMES and solver != "euler":
        wrong = {"solver": solver}
    for name, value in wrong.items():
        raise SolverError(
            f"{name}={value!r} needs the tensors of the field, W and L: a Subnetwork, an Assembly or "
            "Terms; got a field of your own. Leave it out, or use euler, rk4 or dopri5."
        )


def check_settings(
    solver: str, step_size: float | None = None, substeps: int = 1, **settings: str
) -> None:
    """Refuse, of the `settings` in CHOICES, unknown names and what a solver or backend would ignore."""
    if solver not in SOLVERS:
        raise unknown_solver(solver)
    for name, value in settings.items():
        check_known(name, value, CHOICES[name])
    if step_size is not None and not step_size > 0:
        raise SolverError(f"step_size must be positive; got {step_size}.")
    if not isinstance(substeps, int) or substeps < 1:
        raise SolverError(f"substeps must be a whole number >= 1; got {substeps}. Use substeps=4.")
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


def check_step(layer: Any) -> None:
    """Refuse settings that no step has: a made layer's may have been changed."""
    check_settings(layer.solver, None, layer.substeps)
    check_within("(0, inf)", "Use dt=0.03.", dt=layer.dt)


def _grid_loop(given: Any, substeps: int, *, backend: str, **options: Any) -> Callable[[], Tensor]:
    """As `_ready`, of a grid solver: () -> all states or, if `save` is "last", at least that."""
    solver, field, x0, u, times, steps = given
    if options["recompute"] != "none" and options["save"] == "all":
        raise SolverError(
            f"recompute={options['recompute']!r} stores few states: it needs save='last' and no lengths."
        )
    times, steps = refined(times, steps, substeps)
    if isinstance(u, Tensor) and substeps > 1:
        u = u.repeat_interleave(substeps, 1)
    elif isinstance(u, Signal):
        if times.ndim == 2:
            raise SolverError("a Signal has one grid; per-sample dt needs samples u (batch, time, m).")
        # Backwards in time a step sees what is before its start.
        back = times.diff() < 0
        starts = torch.where(back, torch.nextafter(times[:-1], times[1:]), times[:-1])
        u = torch.stack([u(s) for s in starts], dim=1)
    drive, scheme = None if u is None else u.to(x0).transpose(0, 1), SCHEMES[solver]
    if isinstance(field, OwnField):
        return partial(fields.euler, field, x0, drive, times, steps)
    given = (scheme, field, x0, drive, steps.to(x0))
    exact = all(options[name] == CHOICES[name][0] for name in ("recompute", "matmul_precision"))
    if backend in ("auto", "fused") and exact and pairs.is_paired(field, x0):
        return partial(pairs.integrate, *given)
    apart = backend != "plain" and scheme.increment is None and not fused.same_steps(given[-1])
    if apart and not (exact and backend == "auto"):
        raise SolverError(
            "steps of several lengths have no recompute, matmul_precision, backend with solver "
            f"{solver!r}. Leave these settings out, use one dt, or solver='euler'."
        )
    if apart or backend == "plain":
        return partial(schemes.integrate, *given)
    if backend == "auto" and exact and is_compiled(*given):
        backend = "compiled"
    return fused.prepared(*given, backend=backend, **options)


def gated(terms: Terms, x0: Tensor, drive: Tensor, h: Tensor, gates: Any, save: Save) -> Tensor:
    """All states, or the last, (time + 1 or 1, batch, n), of a field with gates that read, compiled.

    Args:
        drive: inputs u held over each step, (time, batch, m).
        h: lengths of the steps, (time, 1 or batch).
        gates: `gates.Gates` of any kind but constant.
    """
    euler, steps = SCHEMES["euler"], h.new_ones(len(h), 1)
    one = replace(euler, pair=cast(Any, euler.increment))
    form, inputs, _, *tensors = fused.fused_step(one, terms, x0, drive, steps, "full")
    loop: Any = import_module("ctrnn_assembly.solvers.compiled")
    kind = gates.lo, gates.hi - gates.lo, gates.kind == "congruence"
    weights = {"G": gates.of_units(), "d": gates.state if gates.kind == "state" else None}
    return loop.states(form, save == "all", x0, inputs, h, *tensors, gates=kind, **weights)


def is_compiled(scheme: schemes.Scheme, field: Terms, x0: Tensor, drive: Any, dt: Tensor) -> bool:
    """Whether `solvers.compiled` can run this, and is faster by more than it takes to load numba.

    Times of `solvers.fused` over its own, on one core with AVX-512, both ways, batch 8 to 128: 1.5 to
    2.7 for n = 32 to 128, 1.1 to 1.9 for dense n = 512 and 1,024, 1.8 to 2.4 for 16 x 32 with 5 to 45
    pairs. `ctrnn bench choice` measures them.
    """
    if x0.device.type != "cpu" or x0.dtype.itemsize < 4 or len(dt) * x0.numel() < 2**16:
        return False  # before what a small solve, or a GPU, would wait for
    own, rest = (field.pre, field.post) if field.post.is_identity else (field.post, field.pre)
    phi = rest.is_identity and len(own.runs) == 1 and pairs.is_known(own.runs[0][0])
    whole = len(field.blocks) == 1 or all(k % 16 == 0 for k in field.sizes)
    few = scheme.name != "exponential-euler" and fused.few_blocks(field) is not None
    small = field.n <= 1024 or few
    read = drive is None or (field.W_in is not None and field.W_in.shape[1] == drive.shape[-1])
    given = [x0, dt, *field.tensors(), *([] if drive is None else [drive])]
    alike = not field.edges and all((t.dtype, t.device) == (x0.dtype, x0.device) for t in given)
    return phi and whole and small and read and alike
