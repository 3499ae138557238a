"""Which backend a solve on CUDA may have: the first that can run it, and agrees with the fused loop.

The first solve of a kind (scheme, shapes, settings) is done by both, and states and all gradients are
compared. What cannot run, or differs, is left out with one warning that says why.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers import fused
from ctrnn_assembly.solvers.cuda.persistent import why_not

Loop = Callable[..., Tensor]  # with the arguments of `fused.integrate`

# Relative norms of the differences: rounding of the operands, summed over some hundred steps.
TOLERANCE = {"full": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
REMEMBERED = 256  # kinds of solves that were checked

_found_right: dict[Any, bool] = {}
_said: set[str] = set()


def loop_on_cuda(backend: str, *given: Any, **options: Any) -> Loop:
    """The loop for a solve: "graph", "persistent", or by "auto" the first that may be trusted.

    `given` and `options` are as of `fused.integrate`. A SolverError if a backend that was asked for by
    name cannot run this.
    """
    device = given[2].device
    no_graph = None if device.type == "cuda" else f"it needs CUDA; the state is on {device}"
    reasons = {"persistent": why_not(*given, **options), "graph": no_graph}
    ways = {"persistent": "kernels", "graph": "graph"}
    loops: dict[str, Loop] = {name: partial(fused.integrate, way=way) for name, way in ways.items()}
    if backend == "auto":
        for name, reason in reasons.items():
            _say_once(name, reason)
        able = {name: loop for name, loop in loops.items() if reasons[name] is None}
        return first_right(able, fused.integrate, *given, **options)
    if reasons[backend] is not None:
        raise SolverError(f"backend {backend!r} cannot run this: {reasons[backend]}. Use 'auto'.")
    return loops[backend]


def first_right(candidates: Mapping[str, Loop], reference: Loop, *given: Any, **options: Any) -> Loop:
    """The first candidate that agrees with the reference, else the reference itself."""
    scheme, terms, x0, drive, dt = given
    tensors = (x0, drive, dt, *terms.tensors())
    shapes = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in tensors)
    has = (terms.L is None, terms.W_in is None, terms.diagonal, fused.same_steps(dt))
    maps = (terms.pre, terms.post, *(edge.psi for edge in terms.edges))
    # All but the values of the tensors: one check stands for the solves that share it.
    kind = (scheme.name, shapes, terms.sizes, terms.pairs, has, maps, *options.items())
    for name, loop in candidates.items():
        if (name, kind) not in _found_right:
            if len(_found_right) >= REMEMBERED:
                _found_right.clear()
            reason = _difference(loop, reference, *given, **options)
            _found_right[name, kind] = reason is None
            _say_once(name, reason)
        if _found_right[name, kind]:
            return loop
    return reference


def _say_once(name: str, reason: str | None) -> None:
    """One line for each reason that keeps a backend from being used."""
    line = f"backend {name} is not used: {reason}."
    if reason is not None and line not in _said:
        _said.add(line)
        warnings.warn(line, RuntimeWarning, stacklevel=4)


def _difference(loop: Loop, reference: Loop, *given: Any, **options: Any) -> str | None:
    """What a loop fails with, or where it differs from the reference; None if it agrees.

    The loop runs on other values first: a recording that keeps its first inputs would agree on them.
    """
    with torch.inference_mode(False), torch.enable_grad():
        expected = _states_and_gradients(reference, 1.0, *given, **options)
        try:
            for scale in (0.5, 1.0):
                found = _states_and_gradients(loop, scale, *given, **options)
        except Exception as error:  # a compiler's, a driver's: whatever it is, it cannot run
            return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    differences = [
        float((b - a).norm() / a.norm().clamp_min(1e-30)) for a, b in zip(expected, found, strict=True)
    ]
    if all(difference <= TOLERANCE[options["matmul_precision"]] for difference in differences):
        return None  # NaN is not within the tolerance
    return (
        f"its states or gradients differ from the fused loop's, by {max(differences):.2g} of their norm"
    )


def _states_and_gradients(loop: Loop, scale: float, *given: Any, **options: Any) -> list[Tensor]:
    """States, and the gradients of all tensors, zero where there is none, from inputs times `scale`."""
    scheme, terms, x0, drive, dt = given
    copy = terms.mapped(lambda tensor: tensor.detach().clone().requires_grad_())
    start = (scale * x0.detach()).requires_grad_()
    inputs = None if drive is None else (scale * drive.detach()).requires_grad_()
    states = loop(scheme, copy, start, inputs, dt.clone(), **options)
    weights = torch.arange(states.numel(), device=x0.device).cos().view_as(states)
    tensors = [t for t in (start, inputs, *copy.tensors()) if t is not None]
    loss = (states * weights.to(states)).sum()
    grads = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    return [states.detach(), *grads]
