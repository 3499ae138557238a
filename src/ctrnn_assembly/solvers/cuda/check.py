"""Which backend a solve on CUDA may have: the first that can run it, and agrees with the fused loop.

The first solve of a kind (form of the step, shapes, settings) is done by both, and states and all
gradients are compared. What cannot run, or differs, is left out with one warning that says why.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers.cuda.persistent import why_not
from ctrnn_assembly.solvers.fused import Form, Integrate, Plan

Loop = Callable[..., Tensor]  # (x0, inputs, dt, *tensors) -> states, tensors as of `fused_step`

# Relative norms of the differences: rounding of the operands, summed over some hundred steps.
TOLERANCE = {"full": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
_found_right: dict[Any, bool] = {}  # by kind of solve


def way_of(backend: str, form: Form, plan: Plan, *tensors: Tensor | None) -> str:
    """The backend, by "auto" the first that agrees with the fused loop; SolverError if it cannot run."""
    reasons = unable(form, plan, *tensors)
    if backend == "auto":
        for name, reason in reasons.items():
            _say_once(name, reason)
        plan = replace(plan, whole=not plan.few)
        ways = {name: replace(plan, way=name) for name, reason in reasons.items() if reason is None}
        loops = {name: partial(Integrate.apply, form, way) for name, way in ways.items()}
        return first_right(loops, form, plan, *tensors)
    if reasons[backend] is not None:
        raise SolverError(f"backend {backend!r} cannot run this: {reasons[backend]}. Use 'auto'.")
    return backend


def unable(form: Form, plan: Plan, x0: Any, *tensors: Tensor | None) -> dict[str, str | None]:
    """Why a backend cannot run this; None where it can."""
    no_graph = None if x0.device.type == "cuda" else f"it needs CUDA; the state is on {x0.device}"
    return {"persistent": why_not(form, plan, x0, *tensors), "graph": no_graph}


def first_right(loops: Mapping[str, Loop], form: Form, plan: Plan, *tensors: Tensor | None) -> str:
    """The name of the first of these loops that agrees with the fused one, else "fused"."""
    shapes = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in tensors)
    for name, loop in loops.items():
        # All but the values of the tensors: one check stands for the solves that share it.
        kind = (name, form, plan, shapes)
        if kind not in _found_right:
            reference = partial(Integrate.apply, form, plan)
            reason = _difference(loop, reference, TOLERANCE[form.matmul_precision], *tensors)
            _found_right[kind] = reason is None
            _say_once(name, reason)
        if _found_right[kind]:
            return name
    return "fused"


def _say_once(name: str, reason: str | None) -> None:
    """One line for each reason that keeps a backend from being used: Python shows none a second time."""
    if reason is not None:
        warnings.warn(f"backend {name} is not used: {reason}.", RuntimeWarning, stacklevel=1)


def _difference(loop: Loop, reference: Loop, tolerance: float, *tensors: Tensor | None) -> str | None:
    """What a loop fails with, or where it differs from the reference; None if it agrees.

    The loop runs on other values first: a recording that keeps its first inputs would agree on them.
    """
    with torch.inference_mode(False), torch.enable_grad():
        expected = _states_and_gradients(reference, 1.0, *tensors)
        try:
            for scale in (0.5, 1.0):
                found = _states_and_gradients(loop, scale, *tensors)
        except Exception as error:  # a compiler's, a driver's: whatever it is, it cannot run
            return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    differences = [
        float((b - a).norm() / a.norm().clamp_min(1e-30)) for a, b in zip(expected, found, strict=True)
    ]
    if all(difference <= tolerance for difference in differences):
        return None  # NaN is not within the tolerance
    return f"its states or gradients differ from the fused loop's, by {max(differences):.2g} of the norm"


def _states_and_gradients(loop: Loop, scale: float, *tensors: Any) -> list[Tensor]:
    """States, and the gradients of all tensors, from x0 and inputs times `scale`."""
    given: Any = [None if t is None else t.detach() for t in tensors]
    x0, inputs, dt, *rest = given
    leaves = [t if t is None else t.clone().requires_grad_() for t in (scale * x0, *rest)]
    # Without an input all that enters is one number, which has no gradient: kernels read it once.
    u = inputs if inputs.stride(0) == 0 else (scale * inputs).requires_grad_()
    states = loop(leaves[0], u, None if dt is None else dt.clone(), *leaves[1:])
    weights = torch.arange(states.numel(), device=x0.device).cos().view_as(states)
    asked = [t for t in (u, *leaves) if t is not None and t.requires_grad]
    return [states.detach(), *torch.autograd.grad((states * weights.to(states)).sum(), asked)]
