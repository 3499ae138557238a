"""The Jacobian of the field and of one solver step: as matrices, and as products without them.

The field and the steps of the grid solvers have one form, and so have their Jacobians:

    x -> A x + C g(x, u),    g = post(W pre(x) + b + W_in u) + sum_e K_e psi_e(x)
    J = A + C N,             N = diag(post') W diag(pre') + sum_e K_e diag(psi_e')

    field x'              A = (L - I) / tau               C = 1 / tau
    euler                 A = I + dt (L - I) / tau        C = dt / tau
    imex                  A, C = P, Q of `imex_matrices`
    exponential-euler     A, C = P, Q of `exponential_matrices`

Cost: a product of J with k vectors takes k (n^2 + sum n_i^2) multiply-adds (twice n^2 for the last
two steps) and no memory beyond A and C. Everything is float64 on the CPU, without gradients.

Source: THEORY section 1 (the forms), section 6 (the steps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.errors import ConfigError, DataError, ShapeError
from ctrnn_assembly.inputs import check_finite
from ctrnn_assembly.solvers.methods import GRID_METHODS
from ctrnn_assembly.solvers.semi_implicit import exponential_matrices, imex_matrices
from ctrnn_assembly.terms import Terms


@dataclass(frozen=True)
class Jacobian:
    """J = A + C N at a batch of states.

    Attributes:
        terms: the field.
        A, C: (n,) for a diagonal, else (n, n).
        pre, post: slopes before and after W, (batch, n). edges: slopes of psi_e, (batch, n) each.
    """

    terms: Terms
    A: Tensor
    C: Tensor
    pre: Tensor
    post: Tensor
    edges: tuple[Tensor, ...]

    def product(self, v: Tensor) -> Tensor:
        """J v, for v of shape (batch, n) or (batch, k, n); the same shape."""
        if v.ndim == 2:
            return self.product(v[:, None])[:, 0]
        out = _blockwise(self.terms, v * self.pre[:, None]) * self.post[:, None]
        for edge, slope in zip(self.terms.edges, self.edges, strict=True):
            out = out + (v * slope[:, None]) @ edge.K.mT
        return _times(v, self.A) + _times(out, self.C)

    def transposed(self, v: Tensor) -> Tensor:
        """J^T v, for v of shape (batch, n) or (batch, k, n); the same shape."""
        if v.ndim == 2:
            return self.transposed(v[:, None])[:, 0]
        w = _times(v, self.C.mT if self.C.ndim == 2 else self.C)
        turned = replace(self.terms, blocks=tuple(W.mT for W in self.terms.blocks))
        out = _blockwise(turned, w * self.post[:, None]) * self.pre[:, None]
        for edge, slope in zip(self.terms.edges, self.edges, strict=True):
            out = out + (w @ edge.K) * slope[:, None]
        return _times(v, self.A.mT if self.A.ndim == 2 else self.A) + out

    def matrix(self) -> Tensor:
        """J, (batch, n, n): 8 n^2 bytes a state, 32 MiB for n = 2048."""
        N = self.post[:, :, None] * self.terms.weight() * self.pre[:, None, :]
        for edge, slope in zip(self.terms.edges, self.edges, strict=True):
            N = N + edge.K * slope[:, None, :]
        N = self.C[:, None] * N if self.C.ndim == 1 else self.C @ N
        return N + (self.A if self.A.ndim == 2 else torch.diag(self.A))

    def blocks(self) -> tuple[Tensor, ...]:
        """The modules' own diagonal blocks of J, (batch, n_i, n_i) each; of the field or of euler."""
        assert self.C.ndim == 1, "a semi-implicit step has no blocks of its own"
        found, start = [], 0
        for W in self.terms.blocks:
            k = slice(start, start + len(W))
            N = self.post[:, k, None] * W * self.pre[:, None, k]
            for edge, slope in zip(self.terms.edges, self.edges, strict=True):
                N = N + edge.K[k, k] * slope[:, None, k]
            own = self.A[k, k] if self.A.ndim == 2 else torch.diag(self.A[k])
            found.append(own + self.C[k, None] * N)
            start = k.stop
        return tuple(found)


@dataclass(frozen=True)
class SplitMap:
    """x -> A x + C g(x, u): the field (x') or one step of a grid solver (the next state).

    Attributes:
        terms: the field, in float64. A, C: (n,) for a diagonal, else (n, n).
    """

    terms: Terms
    A: Tensor
    C: Tensor

    def __call__(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """The value, (batch, n), at x (batch, n) and u (batch, m)."""
        g = self.terms.nonlinear(x, self.terms.inject(u))
        return _times(x, self.A) + _times(g, self.C)

    def jacobian(self, x: Tensor, u: Tensor | None = None) -> Jacobian:
        """The Jacobian with respect to x at x (batch, n) and u (batch, m).

        At a kink of phi it has the slope that `Activation.slope_at` chooses, 0 for ReLU.
        """
        terms = self.terms
        before = terms.pre.slope_at(x)
        if terms.post.is_identity:
            after = torch.ones_like(x)
        else:
            after = terms.post.slope_at(terms.apply_weight(terms.pre(x)) + terms.inject(u))
        slopes = tuple(edge.psi.slope_at(x) for edge in terms.edges)
        return Jacobian(terms, self.A, self.C, before, after, slopes)


@torch.no_grad()
def field_map(field: Any) -> SplitMap:
    """x' of a `Subnetwork`, `Assembly`, `CTRNN` or `Terms`, as its weights are now."""
    terms = read_field(field)
    inverse = 1 / terms.tau
    return SplitMap(terms, -inverse if terms.L is None else _leaky(terms, inverse), inverse)


@torch.no_grad()
def step_map(field: Any, *, dt: float, method: str = "euler") -> SplitMap:
    """One step of a grid solver, of the same fields.

    Args:
        dt: step length, in the unit of tau, > 0.
        method: "euler", "euler-plain", "imex" or "exponential-euler".

    Raises:
        ConfigError: for another dt or method. SolverError: if exponential-euler has no step.
    """
    terms = read_field(field)
    if not 0 < dt < math.inf:
        raise ConfigError(f"dt must be positive and finite; got {dt}. Use dt=0.03.")
    if method not in GRID_METHODS:
        raise ConfigError(
            f"method must be one of {', '.join(GRID_METHODS)}, whose step has a Jacobian here; got "
            f"{method!r}. For others use `flow_exponents`, or the Jacobian of the field."
        )
    if method in ("euler", "euler-plain"):
        h = dt / terms.tau
        return SplitMap(terms, 1 - h if terms.L is None else _leaky(terms, h, start=1.0), h)
    matrices = imex_matrices if method == "imex" else exponential_matrices
    return SplitMap(terms, *matrices(terms, torch.tensor(dt, dtype=torch.float64)))


@torch.no_grad()
def field_jacobian(field: Any, x: Tensor, u: Tensor | None = None) -> Tensor:
    """J of x' at the states x: (-I + W D + L + sum_e K_e D_e) / tau, or D W for r-form modules.

    Args:
        field: a `Subnetwork`, `Assembly`, `CTRNN` or `Terms`.
        x: states, (batch, n). u: inputs at them, (batch, m), (1, m) for one input, or None.

    Returns:
        (batch, n, n), float64, per unit of time.

    Raises:
        ShapeError, DataError: for inputs of the wrong shape, none, or not finite.
    """
    split = field_map(field)
    return split.jacobian(*check_points(split.terms, x, u)).matrix()


@torch.no_grad()
def step_jacobian(
    field: Any, x: Tensor, u: Tensor | None = None, *, dt: float, method: str = "euler"
) -> Tensor:
    """The Jacobian of one solver step with respect to the state, (batch, n, n), float64.

    euler: I + dt J; imex: (I - h L)^-1 (I - h + h N); exponential-euler: P + Q N (h = dt / tau).
    Arguments and errors as `field_jacobian` and `step_map`.
    """
    split = step_map(field, dt=dt, method=method)
    return split.jacobian(*check_points(split.terms, x, u)).matrix()


@torch.no_grad()
def read_field(field: Any) -> Terms:
    """The tensors of a field in float64 on the CPU, with the encoder if it is a `CTRNN`.

    Raises:
        ConfigError: if it has no such tensors. DataError: if one is NaN or infinite.
    """
    if isinstance(field, Terms):
        terms = field
    elif hasattr(field, "terms"):
        terms = field.terms()
    else:
        raise ConfigError(
            "the field must be a Subnetwork, Assembly, CTRNN or Terms; got "
            f"{type(field).__name__}. For any other f(t, x) there is `flow_exponents`."
        )
    terms = terms.detach_cpu().double()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in terms.tensors()):
        raise DataError(
            "the weights must be finite; got NaN or infinite entries. Load or build the network again."
        )
    return terms


def check_points(terms: Terms, x: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """States (batch, n) and inputs (batch, m) in float64 on the CPU, or an error."""
    if x.ndim != 2 or x.shape[1] != terms.n or len(x) < 1:
        raise ShapeError(f"x must be (batch, {terms.n}) with at least one state; got {tuple(x.shape)}.")
    check_finite(x)
    x = x.detach().to("cpu", torch.float64)
    if u is None:
        return x, None
    m = terms.n if terms.W_in is None else terms.W_in.shape[1]
    if u.ndim != 2 or u.shape[1] != m or len(u) not in (1, len(x)):
        raise ShapeError(
            f"u must be (batch, {m}) with batch {len(x)}, or (1, {m}); got {tuple(u.shape)}."
        )
    check_finite(u)
    return x, u.detach().to(x).expand(len(x), m)


def _leaky(terms: Terms, h: Tensor, start: float = 0.0) -> Tensor:
    """start I + h (L - I), (n, n)."""
    assert terms.L is not None
    A = h[:, None] * terms.L
    A.diagonal().add_(start - h)
    return A


def _times(v: Tensor, A: Tensor) -> Tensor:
    """A v for v (..., n) and A (n,) or (n, n)."""
    return v * A if A.ndim == 1 else v @ A.mT


def _blockwise(terms: Terms, v: Tensor) -> Tensor:
    """W v for v (batch, k, n)."""
    return terms.apply_weight(v.reshape(-1, terms.n)).view(v.shape)
