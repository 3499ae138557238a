"""Which program runs the loop of a fused solver.

| backend | what | where |
|---|---|---|
| adjoint | torch's operations, the hand-written adjoint | everywhere |
| graph | the same, recorded as CUDA graphs: no Python in the time loop | CUDA |
| persistent | one Triton kernel each way, euler only | CUDA |
| auto | adjoint on a CPU; on CUDA the last of these that can run this and passes a check | |

The check: the first solve of a kind (method, shapes, settings) is done by adjoint as well, and states
and all gradients are compared. What fails is left out, with one line that says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers.persistent import persistent_euler, why_not
from ctrnn_assembly.terms import Terms

Backend = Literal["auto", "adjoint", "graph", "persistent"]
Solver = Callable[..., Tensor]

# Relative norms of the differences: rounding of the operands, summed over some hundred steps.
TOLERANCE = {"full": 1e-3, "tf32": 1e-2, "bf16": 5e-2}

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
    if backend == "adjoint" or (backend == "auto" and x0.device.type != "cuda"):
        return fused(terms, x0, drive, dt, **options)
    graph = partial(fused, graph=True)
    if backend == "auto":
        candidates: list[tuple[str, Solver]] = [
            ("persistent", _persistent_or_why(method)),
            ("graph", graph),
        ]
        return first_right(candidates, fused, method, terms, x0, drive, dt, **options)
    if backend == "graph":
        if x0.device.type != "cuda":
            raise SolverError(
                f"backend 'graph' needs a CUDA device; the state is on {x0.device}. Use 'auto'."
            )
        return graph(terms, x0, drive, dt, **options)
    return _persistent_or_why(method)(terms, x0, drive, dt, **options)


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
        shapes = (x0.shape, x0.dtype, None if drive is None else drive.shape, len(dt), terms.sizes)
        kind = (name, method, *shapes, len(terms.pairs), terms.pre, terms.post, *options.items())
        if kind not in _found_right:
            reason = _difference(solver, reference, *given, **options)
            _found_right[kind] = reason is None
            if reason is not None and (line := f"backend {name} is not used: {reason}.") not in _said:
                _said.add(line)
                warnings.warn(line, RuntimeWarning, stacklevel=2)
        if _found_right[kind]:
            return solver(*given, **options)
    return reference(*given, **options)


def _persistent_or_why(method: str) -> Solver:
    """The persistent kernels with the signature of a fused solver; raises where they cannot run."""

    def solve(
        terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor, *, checkpoint: str, **options: Any
    ) -> Tensor:
        reason = f"it has no {method!r} step" if method != "euler" else why_not(terms, x0, drive, dt)
        if checkpoint != "none":
            reason = f"it stores all states, and checkpoint is {checkpoint!r}"
        if reason is not None:
            raise SolverError(f"backend 'persistent' cannot run this: {reason}. Use 'auto'.")
        return persistent_euler(terms, x0, drive, dt, **options)

    return solve


def _difference(
    solver: Solver,
    reference: Solver,
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    **options: Any,
) -> str | None:
    """What a solver fails with, or where it differs from the reference; None if it agrees."""
    results = []
    for each in (reference, solver):
        copy = terms.trainable_copy()
        leaves = [_leaf(x0), *([] if drive is None else [_leaf(drive)])]
        with torch.enable_grad():
            try:
                states = each(copy, *leaves, *([None] if drive is None else []), dt, **options)
                weights = torch.arange(states.numel(), device=x0.device).cos().view_as(states)
                tensors = [*leaves, *copy.tensors()]
                loss = (states * weights.to(states)).sum()
                grads = torch.autograd.grad(loss, tensors, allow_unused=True)
            except Exception as error:  # a compiler's, a driver's: whatever it is, it cannot run
                if each is reference:
                    raise
                return str(error).splitlines()[0] if str(error) else type(error).__name__
        results.append([states.detach(), *(g for g in grads if g is not None)])
    worst = max(float((b - a).norm() / a.norm().clamp_min(1e-30)) for a, b in zip(*results, strict=True))
    if worst <= TOLERANCE[options["products"]]:
        return None
    return f"its states or gradients differ from adjoint's by {worst:.2g} of their norm"


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()
