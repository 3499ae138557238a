"""The time grid of a solve, its checks, and the freezing of finished sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrnn_assembly.errors import ShapeError, SolverError
from ctrnn_assembly.inputs import Signal
from ctrnn_assembly.terms import Terms


def check_state(x0: Tensor, terms: Terms | None) -> None:
    """Refuse initial states of the wrong shape."""
    n = None if terms is None else terms.n
    if x0.ndim != 2 or (n is not None and x0.shape[1] != n) or not x0.is_floating_point():
        raise ShapeError(
            f"x0 must be (batch, {n or 'n'}) and floating point; got {tuple(x0.shape)}, {x0.dtype}."
        )


def step_grid(
    x0: Tensor,
    t: Tensor | None,
    u: Tensor | Signal | None,
    dt: float | Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Times, (k + 1,) or (batch, k + 1), and step lengths, (k, 1) or (k, batch), in float64.

    Exactly one of t and dt is given; a dt that is a number takes its count from the samples u.
    """
    if (t is None) == (dt is None):
        raise SolverError("give either the times t or the step length dt, not both or neither.")
    if t is not None:
        if t.ndim != 1 or len(t) < 2 or not bool((t.diff() > 0).all()):
            raise SolverError(f"t must be (k,) with k >= 2 and increase; got shape {tuple(t.shape)}.")
        times = t.to(x0.device)
        steps = times.diff()[:, None]
    else:
        steps = _steps(x0, u, dt)  # type: ignore[arg-type]
        zero = steps.new_zeros(1, steps.shape[1])
        times = (
            torch.cat([zero, steps.cumsum(0)]).mT.squeeze(0)
            if steps.shape[1] == 1
            else (torch.cat([zero, steps.cumsum(0)]).mT)
        )
    _check_lengths(x0, u, len(steps), lengths)
    return times, steps


def _steps(x0: Tensor, u: Tensor | Signal | None, dt: float | Tensor) -> Tensor:
    """dt as (k, 1) or (k, batch)."""
    wide = torch.float32 if x0.device.type == "mps" else torch.float64
    value = torch.as_tensor(dt, dtype=wide, device=x0.device)
    if not bool(torch.isfinite(value).all()) or not bool((value > 0).all()):
        raise SolverError(f"dt must be positive and finite; got {dt}.")
    if value.ndim == 0:
        if not isinstance(u, Tensor):
            raise SolverError("dt as a number needs samples u (batch, time, m); otherwise give t.")
        return value.expand(u.shape[1], 1)
    if value.ndim == 1:
        return value[:, None]
    if value.ndim == 2 and len(value) == len(x0):
        return value.mT
    raise ShapeError(
        f"dt must be a number, (time,) or (batch, time) with batch {len(x0)}; got {tuple(value.shape)}."
    )


def _check_lengths(x0: Tensor, u: Tensor | Signal | None, steps: int, lengths: Tensor | None) -> None:
    if isinstance(u, Tensor) and (u.ndim != 3 or len(u) != len(x0) or u.shape[1] != steps):
        raise ShapeError(
            f"u must be (batch, time, m) with batch {len(x0)} and {steps} steps; got {tuple(u.shape)}."
        )
    if lengths is None:
        return
    if lengths.shape != (len(x0),) or bool((lengths < 0).any()) or bool((lengths > steps).any()):
        raise ShapeError(
            f"lengths must be ({len(x0)},) with values in 0..{steps}; got shape {tuple(lengths.shape)}."
        )


def freeze(states: Tensor, lengths: Tensor) -> Tensor:
    """States (time + 1, batch, n) that stay at state `lengths` from there on."""
    k = torch.arange(len(states), device=states.device)[:, None]
    last = torch.minimum(k, lengths.to(states.device))  # (time + 1, batch)
    return states.gather(0, last[..., None].expand_as(states))
