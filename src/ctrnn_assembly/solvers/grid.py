"""The time grid of a solve, its checks, and the freezing of finished sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctrnn_assembly.errors import ShapeError, SolverError
from ctrnn_assembly.fields import OwnField, described
from ctrnn_assembly.inputs import Signal, check_finite
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.transforms import holds


def check_start(x0: Tensor, field: Terms | OwnField, u: Tensor | Signal | None) -> None:
    """Refuse initial states (batch, n) and inputs that do not fit or are not finite."""
    if isinstance(field, Terms):
        like, given = field.tau, (x0.ndim, x0.shape[1:], x0.dtype, x0.device)
        if given != (2, like.shape, like.dtype, like.device):
            must = f"x0 must be (batch, {field.n}) {like.dtype} on {like.device}, as the field"
            raise ShapeError(f"{must}; got {described(x0)}. Use x0.to(field.tau).")
    check_finite(x0, "x0")
    if u is None:
        return
    samples = u if isinstance(u, Tensor) else u.samples  # a Signal has checked its own
    one = tuple(samples.shape[2:])
    if isinstance(field, Terms):
        wanted: tuple[int, ...] = (field.n if field.W_in is None else field.W_in.shape[1],)
    else:
        wanted = one if field.reads_input else field.sizes[0]
    if samples.ndim < 3 or len(samples) != len(x0) or one != wanted:
        size = f"m = {wanted[0]}" if len(wanted) == 1 else f"samples {wanted}"
        raise ShapeError(
            f"u must be (batch, time, m) with batch {len(x0)} and {size}; got {tuple(samples.shape)}."
        )
    if isinstance(u, Tensor):
        check_finite(u)


def step_grid(x0: Tensor, t: Any, u: Tensor | Signal | None, dt: Any) -> tuple[Tensor, Tensor]:
    """Times, (k + 1,) or (batch, k + 1), and step lengths, (k, 1) or (k, batch), in float64.

    Exactly one of t and dt is given; a dt that is a number takes its count from the samples u.
    """
    wide = torch.float32 if x0.device.type == "mps" else torch.float64
    if t is not None and dt is None:
        times = torch.as_tensor(t, dtype=wide, device=x0.device)
        steps = times.diff(dim=0)[..., None] if times.ndim else times
        ordered = holds(torch.isfinite(times)) and (holds(steps >= 0) or holds(steps <= 0))
        if times.ndim != 1 or len(times) < 1 or not ordered:
            raise SolverError(
                "t must be (k,), finite, and only increase or only decrease; got shape "
                f"{tuple(times.shape)}: {times.flatten().tolist()[:5]}..."
            )
    elif dt is not None and t is None:
        steps = _steps(x0, u, torch.as_tensor(dt, dtype=wide, device=x0.device))
        times = torch.cat([steps.new_zeros(1, steps.shape[1]), steps.cumsum(0)]).mT
        times = times[0] if len(times) == 1 else times
    else:
        raise SolverError("give either the times t or the step length dt, not both or neither.")
    count = len(steps)
    if count < 1 and t is None:
        raise ShapeError("there must be at least one step; got none. Give u at least one sample.")
    if isinstance(u, Tensor) and u.shape[1] != count:
        fix = "For samples at the times t use u=LinearInterpolation(u, t)."
        raise ShapeError(f"u must have one sample a step, {count} of them; got {u.shape[1]}. {fix}")
    return times, steps


def distinct(times: Tensor, steps: Tensor, u: Any) -> tuple[Tensor, Tensor, Any, Tensor | None]:
    """The same without the steps that repeated times make, and each time's place among the others."""
    moves = steps.any(1)
    if holds(moves):
        return times, steps, u, None
    place = pad(moves.cumsum(0), (1, 0))
    u = u[:, moves] if isinstance(u, Tensor) else u
    return times[pad(moves, (1, 0), value=True)], steps[moves], u, place


def refined(times: Tensor, steps: Tensor, substeps: int) -> tuple[Tensor, Tensor]:
    """Times and steps as of `step_grid` with every interval cut into that many equal ones."""
    if substeps == 1:
        return times, steps
    parts = torch.arange(substeps, dtype=times.dtype, device=times.device) / substeps
    inner = times[..., :-1, None] + times.diff()[..., None] * parts
    fine = torch.cat([inner.flatten(-2), times[..., -1:]], -1)
    return fine, (steps / substeps).repeat_interleave(substeps, 0)


def _steps(x0: Tensor, u: Tensor | Signal | None, dt: Tensor) -> Tensor:
    """dt as (k, 1) or (k, batch)."""
    if not holds(torch.isfinite(dt) & (dt > 0)):
        raise SolverError(f"dt must be positive and finite; got {dt.flatten().tolist()[:5]}...")
    if dt.ndim == 0:
        if not isinstance(u, Tensor):
            raise SolverError("dt as a number needs samples u (batch, time, m); otherwise give t.")
        return dt.expand(u.shape[1], 1)
    if dt.ndim == 1:
        return dt[:, None]
    if dt.ndim == 2 and len(dt) == len(x0):
        return dt.mT
    raise ShapeError(
        f"dt must be a number, (time,) or (batch, time) with batch {len(x0)}; got {tuple(dt.shape)}."
    )


def overflow(states: Tensor, times: Tensor, solver: str) -> SolverError:
    """Of states (batch, time + 1, n), the last of which are not all finite: when and where it began."""
    k, sample, unit = (~torch.isfinite(states)).transpose(0, 1).nonzero()[0].tolist()
    before = states[:, k - 1].detach()
    return SolverError(
        f"solver {solver!r}: the state became {float(states[sample, k, unit].detach()):g} at t = "
        f"{float(times[..., k].flatten()[min(sample, times[..., k].numel() - 1)]):.6g}, step {k} (unit "
        f"{unit} of sample {sample}); the largest before it was {float(before.abs().max()):.4g}. Use "
        "more substeps or solver='imex', or scale the weights down."
    )
