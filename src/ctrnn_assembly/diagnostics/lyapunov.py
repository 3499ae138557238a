"""Lyapunov exponents: of a solver's steps along driven trajectories, and of any flow f(t, x).

Under an input the exponents are conditional: they compare trajectories that see the same input. A
largest one below 0 says that nearby trajectories of this run approach each other; it is an average
along one run, and no guarantee for another.

What the theory says about the numbers:

  * all n of them sum to the mean of trace(J), for steps to the mean of log |det S| / dt;
  * with certified rate lam every exponent of the flow is at most -lam, and with a certified step every
    exponent of its steps at most log(step.contraction_factor) / dt. Over a finite time T a computed
    one may exceed this by log(cond(diag(tau) M)) / (2 T), what the Euclidean norm and the metric
    differ by.

The frame turns into place at the rate of the gaps between exponents. A transient that is short against
1 / gap leaves an error of order 1 / T in neighbours, of opposite signs.

Cost of a step: one product of its Jacobian with k vectors, see `jacobian`, and an orthonormalisation,
see `benettin`. Everything is float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.benettin import Lyapunov as Lyapunov
from ctrnn_assembly.diagnostics.benettin import checked_run, follow
from ctrnn_assembly.diagnostics.jacobian import check_points, field_map, step_map
from ctrnn_assembly.errors import ConfigError, ShapeError
from ctrnn_assembly.inputs import check_finite
from ctrnn_assembly.terms import Terms

Flow = Callable[[Tensor, Tensor], Tensor]
Tangent = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (t, x, V) -> (x', V')


@torch.no_grad()
def lyapunov_exponents(
    field: Any,
    u: Tensor | None = None,
    *,
    k: int,
    dt: float,
    steps: int,
    method: str = "euler",
    x0: Tensor | None = None,
    transient: int | None = None,
    every: int = 1,
    generator: torch.Generator | None = None,
) -> Lyapunov:
    """The k leading exponents of a grid solver's steps, along driven trajectories.

    A run longer than the input goes on with the next sequence, without a reset of the state: trajectory
    b sees the sequences b, b + 1, ..., in turn, and after the last one the first. A single sequence
    is so repeated.

    Args:
        field: a `Subnetwork`, `Assembly`, `CTRNN` or `Terms`.
        u: samples, (sequences, time, m), each held over one step; or None.
        k: how many exponents, 1..n. dt: step length, in the unit of tau.
        steps: steps to average over. method: a grid solver.
        x0: initial states, (batch, n); by default N(0, 1), one for each sequence.
        transient: steps before, which turn the frame and are discarded; by default a tenth of steps.
        every: steps from one orthonormalisation to the next; more is cheaper, and refused where it
            loses the smaller exponents.

    Returns:
        `Lyapunov`, for the discrete map: the flow's exponents up to O(dt).

    Raises:
        ConfigError, ShapeError, DataError: for arguments that do not fit.
        SolverError: if a trajectory overflows, or `every` is too large.
    """
    step = step_map(field, dt=dt, method=method)
    samples = _checked_samples(step.terms, u)
    if x0 is None:
        count = 1 if samples is None else len(samples)
        x0 = torch.randn(count, step.terms.n, generator=generator, dtype=torch.float64)
    x = check_points(step.terms, x0, None)[0]
    run = checked_run(step.terms.n, k, dt, steps, transient, every)

    def advance(index: int, x: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        now = None if samples is None else _sample(samples, index, len(x))
        return step(x, now), step.jacobian(x, now).product(V)

    return follow(advance, x, run, generator)


@torch.no_grad()
def flow_exponents(
    f: Any,
    x0: Tensor,
    *,
    k: int,
    dt: float,
    steps: int,
    transient: int | None = None,
    every: int = 1,
    generator: torch.Generator | None = None,
) -> Lyapunov:
    """The k leading exponents of x' = f(t, x), by the classical Runge-Kutta method.

    The frame follows the same step of the variational equation V' = (df/dx) V, which is the
    derivative of the step. The exponents are those of the flow up to O(dt^4).

    Args:
        f: any differentiable f(t, x) of a 0-dimensional t and x (batch, n), sample by sample; or a
            field without an input.
        x0: initial states, (batch, n).
        k, dt, steps, transient, every: as in `lyapunov_exponents`.

    Raises:
        As `lyapunov_exponents`.
    """
    if x0.ndim != 2 or 0 in x0.shape:
        raise ShapeError(f"x0 must be (batch, n) with at least one state; got {tuple(x0.shape)}.")
    check_finite(x0)
    x = x0.detach().to("cpu", torch.float64)
    run = checked_run(x.shape[1], k, dt, steps, transient, every)
    tangent = _of_field(f, x) if _is_field(f) else _of_callable(f, x)

    def advance(index: int, x: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        return _runge_kutta(tangent, torch.tensor(index * dt, dtype=x.dtype), x, V, dt)

    return follow(advance, x, run, generator)


def _is_field(f: Any) -> bool:
    return isinstance(f, Terms) or hasattr(f, "terms")


def _of_field(field: Any, x: Tensor) -> Tangent:
    """x' and J V of a field without input."""
    split = field_map(field)
    check_points(split.terms, x, None)
    return lambda t, x, V: (split(x), split.jacobian(x).product(V))


def _of_callable(f: Flow, x: Tensor) -> Tangent:
    """f(t, x) and (df/dx) V by automatic differentiation."""
    value = f(x.new_zeros(()), x)
    if value.shape != x.shape:
        raise ShapeError(f"f(t, x) must be {tuple(x.shape)}, as x; got {tuple(value.shape)}.")
    return lambda t, x, V: _with_products(f, t, x, V)


def _runge_kutta(f: Tangent, t: Tensor, x: Tensor, V: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """One step of x' = f(t, x), V' = (df/dx) V."""
    a, A = f(t, x, V)
    b, B = f(t + dt / 2, x + dt / 2 * a, V + dt / 2 * A)
    c, C = f(t + dt / 2, x + dt / 2 * b, V + dt / 2 * B)
    d, D = f(t + dt, x + dt * c, V + dt * C)
    return x + dt / 6 * (a + 2 * b + 2 * c + d), V + dt / 6 * (A + 2 * B + 2 * C + D)


def _with_products(f: Flow, t: Tensor, x: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """f(t, x), (batch, n), and (df/dx) v for the rows v of V, (batch, k, n).

    (df/dx)^T w is linear in w, and its transposed derivative by w is df/dx: backward twice, which needs
    a third of the time of `torch.func.jvp` (2.15) and less of f.
    """
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        value = f(t, z)
        if not value.requires_grad:
            raise ConfigError(
                "f(t, x) must depend on x by differentiable operations; got a value without a gradient. "
                "Leave out detach and no_grad in f."
            )
        w = torch.zeros_like(value, requires_grad=True)
        (back,) = torch.autograd.grad(value, z, w, create_graph=True)
        rows = V.transpose(0, 1)
        (out,) = torch.autograd.grad(back, w, rows, is_grads_batched=True, materialize_grads=True)
    return value.detach(), out.transpose(0, 1)


def _sample(samples: Tensor, index: int, batch: int) -> Tensor:
    """The inputs of step `index`, (batch, m): trajectory b is in its sequence b + index // time."""
    turn, place = divmod(index, samples.shape[1])
    return samples[(torch.arange(batch) + turn) % len(samples), place]


def _checked_samples(terms: Terms, u: Tensor | None) -> Tensor | None:
    """The input, (sequences, time, m), in float64 on the CPU."""
    if u is None:
        return None
    m = terms.n if terms.W_in is None else terms.W_in.shape[1]
    if u.ndim != 3 or u.shape[2] != m or 0 in u.shape:
        raise ShapeError(
            f"u must be (sequences, time, {m}) with at least one sample; got {tuple(u.shape)}."
        )
    check_finite(u)
    return u.detach().to(terms.tau)
