"""What changes while torch transforms (`torch.func`) or traces (compile, export) a computation.

Nobody knows the values of a tensor then: checks of values are left out. A loop over time is plain steps
under a transform, and one operator, `scan`, in an export.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether torch.func's transforms or forward-mode derivatives are at work."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def known(x: Tensor) -> bool:
    """Whether the values of a tensor can be asked for."""
    return not (torch.compiler.is_compiling() or x.is_meta or transformed())


def holds(condition: Tensor) -> bool:
    """Whether a condition is true everywhere, or its values cannot be known."""
    return not known(condition) or bool(condition.all())


def states(
    move: Callable[..., Tensor], x: Tensor, *series: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """x_k = move(*(s[k] for s in series), x_k-1), (time, ...); row b stays from lengths[b] on."""
    if lengths is not None:
        ends, times = lengths[:, None], torch.arange(len(series[0]), device=x.device)

        def until(k: Tensor, *now: Tensor) -> Tensor:
            return torch.where(k < ends, move(*now), now[-1])

        return states(until, x, times, *series)
    if torch.compiler.is_exporting():
        from torch._higher_order_ops import scan  # a prototype, imported where it is used

        def again(x: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            moved = move(*now, x)
            return moved, moved.clone()  # the operator forbids that outputs share memory

        return scan(again, x, series)[1]
    found = []
    for now in zip(*series, strict=True):
        x = move(*now, x)
        found.append(x)
    return torch.stack(found)
