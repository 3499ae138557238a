"""Lyapunov exponents of any map with a known derivative, by QR (Benettin).

    V <- S_t V for `every` steps,  V = Q R,  V <- Q,    exponent_i = sum log |R_ii| / elapsed time

Cost of an orthonormalisation: 4 n k^2. Memory: k vectors a trajectory, and k numbers for each
trajectory and orthonormalisation.

Source: Benettin et al. 1980; Geist, Parlitz and Lauterborn 1990 (QR form).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrnn_assembly.errors import ConfigError, SolverError

Advance = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]

# So many trajectories, or parts of each run, make a standard error.
PARTS = 10
# Below this share of the longest vector an R_ii has lost half of its digits.
LOST = 1e-8


@dataclass(frozen=True)
class Lyapunov:
    """The k leading Lyapunov exponents, in descending order, per unit of time.

    Attributes:
        exponents: mean over the trajectories, (k,); -inf where the step is singular.
        errors: standard errors, (k,): from the trajectories' own means if there are at least ten, else
            from the means of ten equal parts of each run, which must be longer than its memory.
            They know nothing of a transient too short; infinite where there is too little to tell.
        per_trajectory: (batch, k).
        trace: the mean so far, (records, k), at `times`, (records,), counted from the transient's end.
        dt, steps, transient, every: the run: step, steps counted, steps discarded before, and steps
            from one orthonormalisation to the next.
    """

    exponents: Tensor
    errors: Tensor
    per_trajectory: Tensor
    trace: Tensor
    times: Tensor
    dt: float
    steps: int
    transient: int
    every: int

    @property
    def per_step(self) -> Tensor:
        """The exponents per step, (k,)."""
        return self.exponents * self.dt


@dataclass(frozen=True)
class Run:
    """How long to run, how often to orthonormalise, and how many exponents to follow."""

    k: int
    dt: float
    steps: int
    transient: int
    every: int

    def pieces(self) -> list[tuple[int, int]]:
        """First and last step of each piece between orthonormalisations, transient first."""
        total = self.transient + self.steps
        cuts = [*range(0, self.transient, self.every), *range(self.transient, total, self.every)]
        return list(zip(cuts, [*cuts[1:], total], strict=True))


def follow(advance: Advance, x: Tensor, run: Run, generator: torch.Generator | None) -> Lyapunov:
    """Follow x (batch, n) and a random frame of k vectors.

    Args:
        advance: (index of the step, x, V) -> x and V one step later; the rows of V (batch, k, n) are
            the vectors, multiplied by the step's Jacobian.

    Raises:
        SolverError: if something overflows, or `every` is too large to keep the vectors apart.
    """
    start = torch.randn(*x.shape, run.k, generator=generator, dtype=x.dtype)
    V = torch.linalg.qr(start)[0].mT
    logs, spans = [], []
    for first, last in run.pieces():
        for index in range(first, last):
            x, V = advance(index, x, V)
        Q, R = torch.linalg.qr(V.mT)
        size = R.diagonal(dim1=1, dim2=2).abs()  # (batch, k)
        _check_frame(x, size, last, run)
        V = Q.mT.contiguous()
        if first >= run.transient:
            logs.append(size.log())
            spans.append((last - first) * run.dt)
    return _result(torch.stack(logs), torch.tensor(spans, dtype=x.dtype), run)


def _result(logs: Tensor, spans: Tensor, run: Run) -> Lyapunov:
    """From log R_ii, (records, batch, k), and the time of each record, (records,)."""
    times = spans.cumsum(0)
    trace = logs.mean(1).cumsum(0) / times[:, None]
    own = logs.sum(0) / times[-1]  # (batch, k)
    order = own.mean(0).argsort(descending=True)
    return Lyapunov(
        exponents=own.mean(0)[order],
        errors=_errors(logs, spans)[order],
        per_trajectory=own[:, order],
        trace=trace[:, order],
        times=times,
        dt=run.dt,
        steps=run.steps,
        transient=run.transient,
        every=run.every,
    )


def _errors(logs: Tensor, spans: Tensor) -> Tensor:
    """Standard errors of the mean, (k,), from logs (records, batch, k)."""
    own = logs.sum(0) / spans.sum()
    if len(own) < PARTS:
        count = min(PARTS, len(logs))
        parts = zip(logs.tensor_split(count), spans.tensor_split(count), strict=True)
        own = torch.cat([part.sum(0) / span.sum() for part, span in parts])
    if len(own) == 1:
        return torch.full_like(own[0], math.inf)
    return (own.std(0) / len(own) ** 0.5).nan_to_num(nan=math.inf)


def _check_frame(x: Tensor, size: Tensor, step: int, run: Run) -> None:
    """Refuse a frame or a state that is not finite, or that lost its smaller directions."""
    if not bool(torch.isfinite(x).all() and torch.isfinite(size).all()):
        raise SolverError(
            f"trajectories and frame must stay finite; one overflowed within {step} steps of "
            f"dt={run.dt}. Use a smaller dt, every=1, or method='imex'."
        )
    smallest = float((size / size.amax(1, keepdim=True)).min())
    if run.every > 1 and not smallest > LOST:
        raise SolverError(
            f"the frame must keep its directions apart; after {run.every} steps the smallest has "
            f"{smallest:.1e} of the largest. Use every={max(1, run.every // 4)}, or a smaller k."
        )


def checked_run(n: int, k: int, dt: float, steps: int, transient: int | None, every: int) -> Run:
    """A `Run` of sensible numbers for n units; its transient is a tenth of the steps by default.

    Raises:
        ConfigError: if a number makes no sense.
    """
    transient = steps // 10 if transient is None else transient
    if not 1 <= k <= n:
        raise ConfigError(f"k must be in 1..{n}, the number of units; got {k}. Use k={min(10, n)}.")
    if not 0 < dt < math.inf:
        raise ConfigError(f"dt must be positive and finite; got {dt}. Use dt=0.03.")
    if steps < 1 or transient < 0 or every < 1:
        raise ConfigError(
            f"steps and every must be at least 1 and transient at least 0; got {steps}, {every} and "
            f"{transient}. Use steps=1000, every=1."
        )
    return Run(k, dt, steps, transient, every)
