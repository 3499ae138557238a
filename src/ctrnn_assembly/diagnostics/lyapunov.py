"""Lyapunov exponents by QR (Benettin): of a net's steps along driven trajectories.

    S_t V = Q R,    V <- Q,    exponent_i = sum log |R_ii| / elapsed time

They compare trajectories under one input, and are averages along one run, no guarantee for another:

  * all n of them sum to the mean of trace(J), for steps to the mean of log |det S| / dt;
  * with certified rate lam every exponent of the flow is at most -lam, and with a certified step every
    exponent of its steps at most log(factor) / dt; over a time T by log(cond(diag(tau) M)) / (2 T) more;
  * a transient that is short against 1 / gap leaves an error of order 1 / T in neighbouring exponents.

Cost of a step: one product of its Jacobian with k vectors, and 4 n k^2 for the orthonormalisation.

Source: Benettin et al. 1980; Geist, Parlitz and Lauterborn 1990 (QR form).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, count, islice, repeat
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.linearise import linearise_along, prepare
from ctrnn_assembly.errors import SolverError, check_within

PARTS = 10  # so many trajectories, or parts of each run, make a standard error


@dataclass(frozen=True)
class Lyapunov:
    """The k leading Lyapunov exponents, in descending order, per unit of time.

    Attributes:
        exponents: means over the trajectories, (k,); -inf where the step is singular.
        errors: standard errors, (k,): from the trajectories' own means if there are at least ten, else
            from ten parts of each run, which must be longer than its memory; infinite where unknown.
        per_trajectory: (batch, k). history: the estimate as it ran, (steps, k), at `times`.
    """

    exponents: Tensor
    errors: Tensor
    per_trajectory: Tensor
    history: Tensor
    times: Tensor
    dt: float
    steps: int
    transient: int


@torch.no_grad()
def lyapunov_exponents(
    net: Any,
    u: Tensor | None = None,
    x0: Tensor | None = None,
    *,
    k: int,
    steps: int,
    dt: float | None = None,
    solver: str | None = None,
    transient: int | None = None,
    generator: torch.Generator | None = None,
) -> Lyapunov:
    """The k leading exponents of a net's steps, along driven trajectories.

    A run longer than the input goes on with the next sequence, without a reset of the state: trajectory
    b sees the sequences b, b + 1, ..., in turn, and after the last one the first.

    Args:
        u: samples, (sequences, time, m), each held over one step.
        x0: (batch, n); by default N(0, 1), one for each sequence.
        k: how many exponents, 1..n. steps: steps to average over.
        dt: duration of a step; for a map by default 1, so that exponents are per sample.
        transient: steps before, which turn the frame and are discarded; by default a tenth of steps.

    Guarantee: of the steps; the flow has them up to O(dt), with "rk4" up to O(dt^4).

    >>> henon = lambda u, x: torch.stack([1 - 1.4 * x[:, 0] ** 2 + x[:, 1], 0.3 * x[:, 0]], 1)
    >>> found = lyapunov_exponents(henon, None, torch.zeros(10, 2), k=2, steps=500)
    >>> found.exponents[0] > 0.3, round(found.exponents.sum().item(), 4)  # chaos; log .3
    (tensor(True), -1.204)
    """
    random: dict[str, Any] = {"spread": 1.0, "generator": generator}
    known, samples, x = prepare(net, u, x0, "(sequences, time, m)", "x0 (batch, n)", **random)
    dt, solver = known.resolve(dt, solver)
    transient = steps // 10 if transient is None else transient
    check_within(f"[1, {known.size}]", f"There are {known.size} units.", k=k)
    check_within("[1, inf)", "Use steps=1000.", steps=steps)
    check_within("[0, inf)", transient=transient)
    inputs: Iterable[Tensor | None] = repeat(None)
    if samples is not None:  # trajectory b begins with sequence b
        turns = (samples[(torch.arange(len(x)) + turn) % len(samples)] for turn in count())
        inputs = chain.from_iterable(turn.unbind(1) for turn in turns)
    run = linearise_along(known.step_map(dt, solver), inputs, x)
    V = torch.linalg.qr(torch.randn(*x.shape, k, generator=generator, dtype=x.dtype))[0].movedim(2, 0)
    logs = []
    for done, here in enumerate(islice(run, transient + steps), 1):
        Q, R = torch.linalg.qr(here.product(V).movedim(0, 2))
        grown = R.diagonal(dim1=1, dim2=2).abs()  # (batch, k)
        if not bool(torch.isfinite(here.value).all() and torch.isfinite(grown).all()):
            what = f"trajectories and frame must stay finite; one overflowed within {done} steps"
            raise SolverError(f"{what} of dt={dt}. Use a smaller dt, or solver='imex'.")
        V = Q.movedim(2, 0).contiguous()  # (k, batch, n)
        logs.append(grown.log())
    rates = torch.stack(logs[transient:]) / dt  # (steps, batch, k)
    order = rates.mean((0, 1)).argsort(descending=True)
    rates, counted = rates[..., order], torch.arange(1, steps + 1, dtype=x.dtype)
    own = rates.mean(0)  # of which the standard error is
    if len(own) < PARTS:
        own = torch.cat([part.mean(0) for part in rates.tensor_split(min(PARTS, len(rates)))])
    deviation = own.std(0) if len(own) > 1 else torch.full_like(own[0], math.nan)
    return Lyapunov(
        exponents=rates.mean((0, 1)),
        errors=(deviation / len(own) ** 0.5).nan_to_num(nan=math.inf),
        per_trajectory=rates.mean(0),
        history=rates.mean(1).cumsum(0) / counted[:, None],
        times=dt * counted,
        dt=dt,
        steps=steps,
        transient=transient,
    )
