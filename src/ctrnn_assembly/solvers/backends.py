"""Which program runs the loop of a fused solver.

| backend | what | where |
|---|---|---|
| adjoint | torch's operations, the hand-written adjoint | everywhere |
| graph | the same, recorded as CUDA graphs: no Python in the time loop | CUDA |
| persistent | one Triton kernel each way, euler only | CUDA |
| auto | adjoint on a CPU; on CUDA the last of these that can run this and passes a check | |

The check: the first solve of a kind (method, shapes, settings) is done by adjoint as well, and states
and all gradients are compared. What cannot run, or differs, is left out with one line that says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers.euler_adjoint import same_steps
from ctrnn_assembly.solvers.persistent import persistent_euler, why_not
from ctrnn_assembly.terms import Terms

Backend = Literal["auto", "adjoint", "graph", "persistent"]
Solver = Callable[..., Tensor]

# Relative norms of the differences: rounding of the operands, summed over some hundred steps.
TOLERANCE = {"full": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
REMEMBERED = 256  # kinds of solves that were checked

_found_right: dict[Any, bool] = {}
_said: set[str] = set()


def run_on(
    backend: Backend,
    method: str,
    fused: Solver,
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    **options: Any,
) -> Tensor:
    """States by a fused solver on a backend; options are save, checkpoint and products.

    Raises:
        SolverError: if a backend that was asked for by name cannot run this.
    """
    given = (terms, x0, drive, dt)
    if backend == "adjoint" or (backend == "auto" and x0.device.type != "cuda"):
        return fused(*given, **options)
    reasons = {
        "persistent": _why_not_persistent(method, *given, **options),
        "graph": None if x0.device.type == "cuda" else f"it needs CUDA; the state is on {x0.device}",
    }
    solvers: dict[str, Solver] = {"persistent": _persistent, "graph": partial(fused, graph=True)}
    if backend == "auto":
        for name, reason in reasons.items():
            _say_once(name, reason)
        able = [(name, solver) for name, solver in solvers.items() if reasons[name] is None]
        return first_right(able, fused, method, *given, **options)
    if reasons[backend] is not None:
        raise SolverError(f"backend {backend!r} cannot run this: {reasons[backend]}. Use 'auto'.")
    return solvers[backend](*given, **options)


def first_right(
    candidates: Sequence[tuple[str, Solver]],
    reference: Solver,
    method: str,
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    **options: Any,
) -> Tensor:
    """By the first candidate that agrees with the reference, else by the reference itself."""
    given = (terms, x0, drive, dt)
    for name, solver in candidates:
        kind = (name, method, *_kind(*given), *options.items())
        if kind not in _found_right:
            if len(_found_right) >= REMEMBERED:
                _found_right.clear()
            reason = _difference(solver, reference, *given, **options)
            _found_right[kind] = reason is None
            _say_once(name, reason)
        if _found_right[kind]:
            return solver(*given, **options)
    return reference(*given, **options)


def _say_once(name: str, reason: str | None) -> None:
    """One line for each reason that keeps a backend from being used."""
    line = f"backend {name} is not used: {reason}."
    if reason is not None and line not in _said:
        _said.add(line)
        warnings.warn(line, RuntimeWarning, stacklevel=4)


def _kind(terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor) -> tuple[Any, ...]:
    """What solves have in common that one check stands for: all but the values of their tensors."""
    tensors = (x0, drive, dt, *terms.tensors())
    shapes = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in tensors)
    has = (terms.L is None, terms.W_in is None, terms.diagonal, same_steps(dt))
    maps = (terms.pre, terms.post, tuple(edge.psi for edge in terms.edges))
    return (shapes, terms.sizes, terms.pairs, has, maps)


def _persistent(
    terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor, *, checkpoint: str, **options: Any
) -> Tensor:
    """The persistent kernels with the signature of a fused solver."""
    return persistent_euler(terms, x0, drive, dt, **options)


def _why_not_persistent(
    method: str,
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    *,
    checkpoint: str,
    **options: Any,
) -> str | None:
    if method != "euler":
        return f"the kernels have no {method!r} step"
    if checkpoint != "none":
        return f"the kernels store all states, and checkpoint is {checkpoint!r}"
    return why_not(terms, x0, drive, dt)


def _difference(
    solver: Solver,
    reference: Solver,
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    **options: Any,
) -> str | None:
    """What a solver fails with, or where it differs from the reference; None if it agrees.

    The solver runs on other values first: a recording that keeps its first inputs would agree on them.
    """
    given = (terms, x0, drive, dt)
    with torch.inference_mode(False), torch.enable_grad():
        expected = _states_and_gradients(reference, 1.0, *given, **options)
        try:
            for scale in (0.5, 1.0):
                found = _states_and_gradients(solver, scale, *given, **options)
        except Exception as error:  # a compiler's, a driver's: whatever it is, it cannot run
            return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    differences = [
        float((b - a).norm() / a.norm().clamp_min(1e-30)) for a, b in zip(expected, found, strict=True)
    ]
    if all(difference <= TOLERANCE[options["products"]] for difference in differences):
        return None  # NaN is not within the tolerance
    return f"its states or gradients differ from adjoint's, by {max(differences):.2g} of their norm"


def _states_and_gradients(
    solver: Solver,
    scale: float,
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    **options: Any,
) -> list[Tensor]:
    """States, and the gradients of all tensors, zero where there is none, from inputs times `scale`."""
    copy = terms.trainable_copy()
    start = (scale * x0.detach().clone()).requires_grad_()
    inputs = None if drive is None else (scale * drive.detach().clone()).requires_grad_()
    states = solver(copy, start, inputs, dt.clone(), **options)
    weights = torch.arange(states.numel(), device=x0.device).cos().view_as(states)
    tensors = [t for t in (start, inputs, *copy.tensors()) if t is not None]
    loss = (states * weights.to(states)).sum()
    grads = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    return [states.detach(), *grads]
