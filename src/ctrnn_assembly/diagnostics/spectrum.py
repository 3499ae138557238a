"""Spectra: of the Jacobian, of its symmetric part in a metric, of the step; at states or along runs.

| number | says |
|---|---|
| abscissa, largest real part of J | below 0: this linearisation decays in the end, no more than that |
| local rate, -lmax(sym F) | the worst rate at which distances in the metric shrink here |
| step radius, largest modulus of a step's eigenvalue | below 1: this linearised step decays in the end |

F = Theta' J Theta'^-1, Theta' = Theta diag(tau)^1/2: J where the metric diag(tau) M is the Euclidean
norm. Always certified rate in that metric <= local rate <= -abscissa. A negative abscissa at every time
proves nothing where J changes along the trajectory: see `lyapunov` for averages.
Cost: about 25 n^3 operations and 4 n^2 numbers: 4 s and 0.3 GB a matrix for n = 2048 on one core.

Source: THEORY sections 1, 6 and 7; Lohmiller and Slotine 1998.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.linearise import Behaviour, linearise, prepare, trajectory
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError, SolverError
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.metrics import Factor, Metric


@dataclass(frozen=True)
class Spectrum:
    """Spectra at a sequence of states; rates and eigenvalues of J are per unit of time.

    Attributes:
        times: (times,), in the unit of tau, or numbers of states. x: (times, n).
        eigenvalues: of J, by falling real part, (times, n), complex128; None for a map.
        local_rates: -lmax(sym F), (times,); None for a map, or without a metric.
        step_eigenvalues: of the step, by falling modulus, as `eigenvalues`; None without a step.
    """

    times: Tensor
    x: Tensor
    eigenvalues: Tensor | None
    local_rates: Tensor | None
    step_eigenvalues: Tensor | None

    @property
    def abscissa(self) -> Tensor | None:
        """The largest real part of an eigenvalue of J, (times,)."""
        return None if self.eigenvalues is None else self.eigenvalues.real.amax(1)

    @property
    def step_radius(self) -> Tensor | None:
        """The largest modulus of an eigenvalue of the step, (times,)."""
        return None if self.step_eigenvalues is None else self.step_eigenvalues.abs().amax(1)


@torch.no_grad()
def spectrum_at(
    net: Any,
    u: Tensor | None,
    x: Tensor,
    *,
    dt: float | None = None,
    solver: str | None = None,
    metric: Metric | None = None,
) -> Spectrum:
    """Spectra at states x (times, n) under inputs u, (times, m) or (1, m).

    Of the step of dt and solver, if it has a Jacobian here, and in the metric, by default the net's own.

    >>> found = spectrum_at(lambda u, x: 0.5 * x.sin(), None, torch.zeros(1, 2))
    >>> found.step_radius.item(), found.abscissa  # a map has no flow
    (0.5, None)
    """
    known, u, x = prepare(net, u, x)
    metric = known.metric if metric is None else metric
    norm = None if metric is None or known.flow is None else norm_of(known, metric)
    if dt is not None:
        known.resolve(dt, solver)  # refuses a dt that is none
    step = None
    with suppress(ConfigError):
        step = known.step_map(dt, solver)
    values, rates, stepped = [], [], []
    for k in range(len(x)):
        here = (None if u is None else u[k : k + 1], x[k : k + 1])
        if known.flow is not None:
            J = linearise(known.flow_map(), *here).matrix()[0]
            values.append(eigenvalues(J))
            if norm is not None:
                F = norm[0] @ J @ norm[1]
                rates.append(-torch.linalg.eigvalsh(symmetric_part(F))[-1])
        if step is not None:
            stepped.append(eigenvalues(linearise(step, *here).matrix()[0], by_modulus=True))
    return Spectrum(
        times=torch.arange(len(x), dtype=x.dtype),
        x=x,
        eigenvalues=torch.stack(values) if values else None,
        local_rates=torch.stack(rates) if rates else None,
        step_eigenvalues=torch.stack(stepped) if stepped else None,
    )


@torch.no_grad()
def spectrum_along(
    net: Any,
    u: Tensor | None = None,
    x0: Tensor | None = None,
    *,
    at: Sequence[int],
    dt: float | None = None,
    solver: str | None = None,
    metric: Metric | None = None,
) -> Spectrum:
    """Spectra along one trajectory, after chosen numbers of steps.

    Args:
        u: samples of one sequence, held over dt each, (time, m). x0: instead of its initial state, (n,).
        at: numbers of steps: the state after k meets sample k, after all of them the last once more.
        solver: for a flow any of `ctrnn_assembly.schemes.SOLVERS`; only grid solvers have a step to see.

    >>> net = Subnetwork(Unconstrained(), 1, weight=torch.full((1, 1), 2.0))  # x' = -x + 2 tanh(x)
    >>> spectrum_along(net, None, torch.full((1,), 0.1), at=[0, 100], dt=0.1).abscissa.tolist()
    [0.980..., -0.832...]
    """
    known, u, x0 = prepare(net, u, x0, "(time, m)", "x0 (n,)", count=1)
    at = list(at)
    chosen = torch.tensor([int(k) for k in at])
    whole = chosen.tolist() == at
    if not whole or not len(chosen) or chosen.min() < 0 or (u is not None and chosen.max() > len(u)):
        limit = "0 or more" if u is None else f"in 0..{len(u)}, the number of samples"
        raise ConfigError(f"at must have whole numbers of steps, each {limit}; got {at[:5]}.")
    dt, solver = known.resolve(dt, solver)
    steps = int(chosen.max())
    samples = None if u is None else u[None, :steps]
    x = trajectory(known, samples, x0, steps, dt=dt, solver=solver)[0]
    if not bool(torch.isfinite(x).all()):
        what = f"the trajectory must stay finite; it overflowed within {steps} steps of dt={dt}"
        raise SolverError(f"{what}. Use a smaller dt, solver='imex', or fewer steps.")
    now = None if u is None else u[chosen.clamp(max=len(u) - 1)]
    found = spectrum_at(known, now, x[chosen], dt=dt, solver=solver, metric=metric)
    return replace(found, times=dt * chosen.to(x))


@torch.no_grad()
def module_spectra(net: Any, u: Tensor | None, x: Tensor) -> tuple[Tensor, ...]:
    """Of the modules' (or layers') own blocks of J, or of a map's step: (batch, n_i) each."""
    known, u, x = prepare(net, u, x)
    J = linearise(known.own_map(), u, x).matrix()
    sizes = known.sizes or (known.size,)
    blocks = [rows.split(sizes, 2)[k] for k, rows in enumerate(J.split(sizes, 1))]
    return tuple(eigenvalues(block, by_modulus=known.flow is None) for block in blocks)


def norm_of(known: Behaviour, metric: Metric | None) -> tuple[Tensor, Tensor]:
    """Theta' and its inverse, (n, n) each, in float64; of M = I without a metric."""
    metric = Metric((Factor.identity(known.size, known.tau),)) if metric is None else metric
    if metric.size != known.size:
        raise ShapeError(f"the metric must be for {known.size} units; got one for {metric.size}.")
    root = metric.detach_cpu().scaled(known.tau.sqrt()).theta()
    inverse, info = torch.linalg.inv_ex(root)
    if int(info) or not bool(torch.isfinite(root).all() and torch.isfinite(inverse).all()):
        must = "the metric must be finite and positive definite"
        raise DataError(f"{must}; got a singular or infinite factor. Load or build the network again.")
    return root, inverse


def eigenvalues(A: Tensor, *, by_modulus: bool = False) -> Tensor:
    """Of A (..., n, n), by falling real part or modulus; of a conjugate pair, the upper one first."""
    values = torch.linalg.eigvals(A)
    values = values.take_along_dim(values.imag.argsort(descending=True), -1)
    key = values.abs() if by_modulus else values.real
    return values.take_along_dim(key.argsort(descending=True, stable=True), -1)
