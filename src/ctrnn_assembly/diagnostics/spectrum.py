"""Spectra along a trajectory: of the Jacobian, of its symmetric part in the metric, of the step.

| number | says |
|---|---|
| abscissa, largest real part of J | below 0: this linearisation decays in the end, no more than that |
| local rate, -lmax(sym F) | the worst rate at which distances in the metric shrink here |
| step radius, largest modulus of a step's eigenvalue | below 1: this linearised step decays in the end |

Always local rate <= -abscissa. A negative abscissa at every time proves nothing where J changes along
the trajectory: see `lyapunov` for averages and `certificates` for proofs.

Source: THEORY sections 6 and 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.eigen import (
    by_lapack,
    check_largest,
    descending,
    eigenvalues,
    largest_symmetric,
    leading,
)
from ctrnn_assembly.diagnostics.generalised import Balanced, own_metric
from ctrnn_assembly.diagnostics.jacobian import (
    SplitMap,
    check_points,
    field_map,
    read_field,
    step_map,
)
from ctrnn_assembly.errors import ConfigError, ShapeError, SolverError
from ctrnn_assembly.inputs import check_finite
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.solvers import GRID_METHODS, METHODS, solve
from ctrnn_assembly.terms import Terms


@dataclass(frozen=True)
class Spectrum:
    """Spectra at a sequence of states; rates and eigenvalues of J are per unit of time.

    Attributes:
        times: (times,), in the unit of tau. x: the states, (times, n).
        eigenvalues: of J, by falling real part, (times, n) or (times, k), complex128.
        local_rates: -lmax(sym F), (times,); None without a metric.
        step_eigenvalues: of the step, by falling modulus, as `eigenvalues`; None without a step.
        dt, method: the step, or None.
    """

    times: Tensor
    x: Tensor
    eigenvalues: Tensor
    local_rates: Tensor | None
    step_eigenvalues: Tensor | None
    dt: float | None
    method: str | None

    @property
    def abscissa(self) -> Tensor:
        """The largest real part of an eigenvalue of J, (times,)."""
        return self.eigenvalues.real.amax(1)

    @property
    def step_radius(self) -> Tensor | None:
        """The largest modulus of an eigenvalue of the step, (times,), against the unit circle."""
        return None if self.step_eigenvalues is None else self.step_eigenvalues.abs().amax(1)


@torch.no_grad()
def spectrum_at(
    field: Any,
    x: Tensor,
    u: Tensor | None = None,
    *,
    times: Tensor | None = None,
    dt: float | None = None,
    method: str = "euler",
    metric: Metric | None = None,
    largest: int | None = None,
) -> Spectrum:
    """Spectra at given states, one after another, so that memory does not grow with their number.

    Args:
        field: a `Subnetwork`, `Assembly`, `CTRNN` or `Terms`.
        x: states, (times, n). u: inputs at them, (times, m), (1, m) for one input, or None.
        times: what to call the states, (times,); by default 0, 1, 2, ...
        dt, method: the step of a grid solver to look at, or no dt for none.
        metric: of the local rates; by default the field's own. `Terms` have none: no local rates.
        largest: only so many leading eigenvalues: by ARPACK from products, if n is above 2048.

    Raises:
        ShapeError, DataError, ConfigError: for arguments that do not fit.
        SolverError: if ARPACK does not converge.
    """
    flow = field_map(field)
    step = None if dt is None else step_map(flow.terms, dt=dt, method=method)
    x, u = check_points(flow.terms, x, u)
    times = torch.arange(len(x), dtype=x.dtype) if times is None else times.detach().to(x)
    if times.shape != (len(x),):
        raise ShapeError(f"times must be ({len(x)},), one a state; got {tuple(times.shape)}.")
    metric = own_metric(field) if metric is None else metric
    balanced = None if metric is None else Balanced.of(metric, flow.terms.tau)
    check_largest(largest, flow.terms.n)
    here = _Here(flow, step, balanced, largest, dt if method in ("euler", "euler-plain") else None)
    rows = [here.at(x[k : k + 1], None if u is None else u[k : k + 1]) for k in range(len(x))]
    values, rates, stepped = zip(*rows, strict=True)
    return Spectrum(
        times=times,
        x=x,
        eigenvalues=torch.stack(values),
        local_rates=None if balanced is None else torch.tensor(rates, dtype=x.dtype),
        step_eigenvalues=None if step is None else torch.stack(stepped),
        dt=dt,
        method=None if dt is None else method,
    )


@torch.no_grad()
def spectrum_along(
    field: Any,
    u: Tensor | None = None,
    *,
    at: Sequence[int],
    dt: float,
    x0: Tensor | None = None,
    method: str = "euler",
    metric: Metric | None = None,
    largest: int | None = None,
) -> Spectrum:
    """Spectra along one trajectory, after chosen numbers of steps.

    The state after k steps meets sample k, which is held from there on; the state after the last
    sample meets the last one once more.

    Args:
        field: a `Subnetwork`, `Assembly`, `CTRNN` or `Terms`.
        u: samples of one sequence, held over dt each, (time, m), or None.
        at: numbers of steps, each 0 or more, and at most the number of samples.
        dt: step length, in the unit of tau. x0: initial state, (n,); by default 0.
        method: how to integrate, one of `METHODS`; only grid solvers have a step to look at.
        metric, largest: as in `spectrum_at`.

    Raises:
        SolverError: if the trajectory overflows; also as `spectrum_at`.
    """
    terms = read_field(field)
    metric = own_metric(field) if metric is None else metric
    u = _checked_samples(terms, u)
    at = _checked_steps(at, None if u is None else len(u))
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    x0 = terms.tau.new_zeros(terms.n) if x0 is None else x0
    if x0.shape != (terms.n,):
        raise ShapeError(f"x0 must be ({terms.n},); got {tuple(x0.shape)}.")
    x = _states(terms, x0, u, max(at), dt, method)[list(at)]
    now = None if u is None else u[torch.tensor(at).clamp(max=len(u) - 1)]
    stepped = dt if method in GRID_METHODS else None
    times = dt * torch.tensor(at, dtype=x.dtype)
    return spectrum_at(
        terms, x, now, times=times, dt=stepped, method=method, metric=metric, largest=largest
    )


@torch.no_grad()
def module_spectra(field: Any, x: Tensor, u: Tensor | None = None) -> tuple[Tensor, ...]:
    """Eigenvalues of the modules' own blocks of J at states x (batch, n): (batch, n_i) for each.

    What the modules would do alone: the coupling between them is left out. Arguments and errors as
    `field_jacobian`.
    """
    flow = field_map(field)
    blocks = flow.jacobian(*check_points(flow.terms, x, u)).blocks()
    return tuple(torch.stack([eigenvalues(one) for one in block]) for block in blocks)


@torch.no_grad()
def weight_spectra(field: Any) -> tuple[Tensor, ...]:
    """Eigenvalues of each W_i, (n_i,), by falling real part, in the order of the state."""
    return tuple(eigenvalues(W) for W in read_field(field).blocks)


@torch.no_grad()
def coupling_spectrum(field: Any) -> Tensor:
    """Eigenvalues of L, (n,): zeros without one, on the imaginary axis for feedback with one tau."""
    terms = read_field(field)
    L = terms.tau.new_zeros(terms.n, terms.n) if terms.L is None else terms.L
    return eigenvalues(L)


@dataclass(frozen=True)
class _Here:
    """What is computed at each state; an Euler step of length `euler_dt` has 1 + dt eig(J)."""

    flow: SplitMap
    step: SplitMap | None
    balanced: Balanced | None
    largest: int | None
    euler_dt: float | None

    def at(self, x: Tensor, u: Tensor | None) -> tuple[Tensor, float, Tensor]:
        """Eigenvalues of J, local rate and eigenvalues of the step at one state, (1, n)."""
        J, k = self.flow.jacobian(x, u), self.largest
        rate = 0.0
        if self.balanced is not None:
            rate = -largest_symmetric(J, self.balanced, k)
        if self.euler_dt is not None and by_lapack(x.shape[1], k):
            values = leading(J, "real", None)
            return values[:k], rate, descending(1 + self.euler_dt * values, "modulus")[:k]
        values = leading(J, "real", k)
        if self.step is None:
            return values, rate, values
        return values, rate, leading(self.step.jacobian(x, u), "modulus", k)


def _states(terms: Terms, x0: Tensor, u: Tensor | None, steps: int, dt: float, method: str) -> Tensor:
    """The states after 0, 1, ..., `steps` steps, (steps + 1, n)."""
    x0 = x0.detach().to(terms.tau)[None]
    check_finite(x0)
    if steps == 0:
        return x0
    held = terms.tau.new_zeros(steps, terms.n if terms.W_in is None else terms.W_in.shape[1])
    u = held if u is None else u[:steps]
    solution = solve(terms, x0, u=u[None], dt=dt, method=method, rtol=1e-9, atol=1e-11)
    if solution.status != "completed":
        raise SolverError(
            f"the trajectory must stay finite; it overflowed within {steps} steps of dt={dt}. "
            "Use a smaller dt, method='imex', or fewer steps."
        )
    return solution.x[0]


def _checked_samples(terms: Terms, u: Tensor | None) -> Tensor | None:
    """The samples of one sequence, (time, m), in float64 on the CPU."""
    if u is None:
        return None
    m = terms.n if terms.W_in is None else terms.W_in.shape[1]
    if u.ndim != 2 or u.shape[1] != m or len(u) < 1:
        raise ShapeError(
            f"u must be (time, {m}), one sequence with at least one sample; got {tuple(u.shape)}."
        )
    check_finite(u)
    return u.detach().to(terms.tau)


def _checked_steps(at: Sequence[int], samples: int | None) -> tuple[int, ...]:
    """The numbers of steps."""
    chosen = tuple(int(k) for k in at)
    if not chosen or min(chosen) < 0 or (samples is not None and max(chosen) > samples):
        limit = "0 or more" if samples is None else f"in 0..{samples}, the number of samples"
        raise ConfigError(f"at must have numbers of steps, each {limit}; got {list(at)[:5]}.")
    return chosen
