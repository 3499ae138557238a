"""Which program runs the loop of a grid solver.

| backend | what | where |
|---|---|---|
| plain | autograd through every step: differentiable twice, by torch.func, and in dt | everywhere |
| fused | torch's operations with a hand-written adjoint | everywhere |
| graph | the same, recorded as CUDA graphs: no Python in the loop over time | CUDA |
| persistent | one Triton kernel each way, euler only | CUDA |
| auto | fused on a CPU; on CUDA the last of these that can run this and agrees with fused | |

auto takes plain for steps of several lengths whose pair is not proportional to dt: imex and
exponential-euler have no fused loop for them. graph and persistent have never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor

from ctrnn_assembly import schemes
from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.schemes import Scheme
from ctrnn_assembly.solvers import fused
from ctrnn_assembly.terms import Terms

Backend = Literal["auto", "plain", "fused", "graph", "persistent"]


def prepared(
    backend: Backend,
    scheme: Scheme,
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    **options: Any,
) -> Callable[[], Tensor]:
    """A solve that is ready to run: () -> states, all of them or, if `save` is "last", at least that.

    Args:
        x0, drive, dt: as in `schemes.integrate`.
        options: save, recompute and matmul_precision, as in `fused.prepared`.

    Raises:
        SolverError: if this backend cannot run this, or would ignore a setting.
    """
    given = (scheme, terms, x0, drive, dt)
    if backend == "plain":
        return partial(schemes.integrate, *given)
    if scheme.increment is None and not fused.same_steps(dt):
        settings = {"recompute": "none", "matmul_precision": "full", "backend": "auto"}
        chosen = {**options, "backend": backend}
        if any(chosen[name] != value for name, value in settings.items()):
            raise SolverError(
                f"steps of several lengths have no {', '.join(settings)} with solver "
                f"{scheme.name!r}. Leave these settings out, use one dt, or solver='euler'."
            )
        return partial(schemes.integrate, *given)
    if backend == "fused" or (backend == "auto" and x0.device.type != "cuda"):
        return fused.prepared(*given, **options)
    from ctrnn_assembly.solvers.cuda.check import loop_on_cuda

    return partial(loop_on_cuda(backend, *given, **options), *given, **options)
