"""A metric where none is known. Nothing here is trusted: every candidate is proven afterwards.

For the whole: the best `factors` of the modules together, the identity, and the diagonal metric of
g |W| + |L| + the edges as one Metzler matrix, if that is below 1.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.linalg import LinAlgError, matrix_balance, solve_continuous_lyapunov
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.certificates.modules import LureSystem, ModuleInMetric, modules_of, prove_module
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.linalg import log_metzler_scaling, majorant, symmetric_part
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms

CONVEX_SIZE = 64  # units of a module beyond which the semidefinite programme takes minutes


def candidates(terms: Terms, *, convex: bool = False) -> Iterator[tuple[str, Metric]]:
    """Metrics for a field, each with its origin; unproven, not even positive definite."""
    unit, best = identity(terms), []
    modules = modules_of(terms, unit)
    for module in modules:
        finite = [c for c in factors(module, convex=convex) if bool(torch.isfinite(c[1].theta).all())]
        best.append(max(finite, key=lambda c: prove_module(replace(module, theta=c[1].theta)).rate))
    origins = sorted({origin for origin, _ in best})
    yield f"search: {', '.join(origins)}", Metric(tuple(factor for _, factor in best))
    yield "search: identity", unit
    B = torch.block_diag(*(m.phi.g * majorant(m.W, m.phi.monotone) for m in modules))
    if terms.L is not None:
        B = B + terms.L.double().abs()
    for edge in terms.edges:
        B = B + max(psi.g for psi, _ in edge.psi.runs) * edge.K.double().abs()
    for log_theta in _metzler_scalings(B)[-1:]:
        parts = log_theta.split(terms.sizes)
        yield "search: Theorem 1 on the whole", Metric(tuple(Factor(p.exp(), (-p).exp()) for p in parts))


def factors(module: ModuleInMetric, *, convex: bool = False) -> Iterator[tuple[str, Factor]]:
    """Candidate factors for one module, which comes in the identity metric."""
    W, phi, n = module.W, module.phi, len(module.W)
    yield "identity", Factor.identity(n, W)
    for log_theta in _metzler_scalings(phi.g * majorant(W, phi.monotone)):
        yield "Theorem 1", Factor.diagonal(log_theta)
    scaling = np.diag(matrix_balance(W.abs().numpy(), permute=False, separate=False)[1])
    if (scaling > 0).all():
        yield "balanced", Factor.diagonal(-torch.from_numpy(np.log(scaling)))
    if bool((module.tau == module.tau[0]).all()):  # a dense metric needs one time constant
        for origin, M in (*_theorem2(W, phi, module.inside), *_lyapunov(W, phi)):
            theta = torch.linalg.cholesky_ex(M)[0].mT
            yield origin, Factor.dense(theta, torch.linalg.inv_ex(theta)[0])
    if convex and n <= CONVEX_SIZE:
        for diagonal in _semidefinite(LureSystem.of(module)):
            yield "semidefinite", Factor.diagonal(diagonal.log() / 2)


def identity(terms: Terms) -> Metric:
    like = torch.zeros(0, dtype=torch.float64)
    return Metric(tuple(Factor.identity(n, like) for n in terms.sizes))


def _metzler_scalings(B: Tensor) -> list[Tensor]:
    """log theta at r = 1 and closer to the spectral radius, where rate and conditioning trade off."""
    widest = log_metzler_scaling(B, 1.0)
    if widest is None:
        return []
    high = 1.0
    for k in range(1, 21):  # bisection
        if log_metzler_scaling(B, high - 0.5**k) is not None:
            high -= 0.5**k
    tighter = [log_metzler_scaling(B, r) for r in ((1 + high) / 2, 1.02 * high)]
    return [widest, *(found for found in tighter if found is not None)]


def _theorem2(W: Tensor, phi: Activation, inside: bool) -> Iterator[tuple[str, Tensor]]:
    """R^-2 (x-form) or R^2 (r-form), R = sqrt(c) I + (c I - g W)^1/2, c = g lmax(W), for W = W^T."""
    if float((W - W.mT).abs().max()) > 1e-12 * float(W.abs().max()) or not phi.monotone:
        return
    values, vectors = torch.linalg.eigh(phi.g * W)
    c = max(float(values[-1]), 1e-3)
    if c < 1:
        R = math.sqrt(c) + (c - values).clamp(min=0).sqrt()
        yield "Theorem 2", (vectors * R ** (2 if inside else -2)) @ vectors.mT


def _lyapunov(W: Tensor, phi: Activation) -> Iterator[tuple[str, Tensor]]:
    """M with M A + A^T M = -I for A = -I + s W, at the middle slope and the largest."""
    for slope in sorted({sum(phi.slope) / 2, phi.slope[1]}):
        A = slope * W - torch.eye(len(W), dtype=W.dtype)
        try:
            M = solve_continuous_lyapunov(A.mT.numpy(), -np.eye(len(W)))
        except LinAlgError:
            continue
        if np.isfinite(M).all() and np.linalg.eigvalsh(M + M.T)[0] > 0:
            yield "Lyapunov", torch.from_numpy((M + M.T) / 2)


def _semidefinite(system: LureSystem) -> list[Tensor]:
    """The diagonal metric (n,) with the best rate that the S-procedure allows, if there is one.

    For a fixed rate the condition is linear in (M, T): bisection over the rate, one programme each.
    """
    try:
        import cvxpy as cp
    except ModuleNotFoundError:
        fix = "Use pip install 'ctrnn-assembly[convex]', or search='fast'."
        raise ConfigError(f"the convex search needs cvxpy. {fix}") from None
    A, X, Z = (matrix.numpy() for matrix in (system.A, system.X, system.Z))
    n, slack, rate = len(A), cp.Variable(), cp.Parameter()
    m, t = cp.Variable(n), cp.Variable(n)
    M, T = cp.diag(m), cp.diag(t)
    corner = M @ X + Z.T @ T
    Q = cp.bmat([[M @ A + A.T @ M + 2 * rate * M, corner], [corner.T, -2 * T]])
    fits = [Q << slack * np.eye(2 * n), m >= 1e-6, t >= 1e-8, cp.sum(m) == n]
    problem = cp.Problem(cp.Minimize(slack), fits)
    best: list[Tensor] = []
    rate.value = low = 0.0
    high = -float(torch.linalg.eigvalsh(symmetric_part(system.A))[-1])
    for _ in range(10):
        try:
            problem.solve(solver=cp.CLARABEL)
        except cp.error.SolverError:
            break
        if slack.value is not None and m.value is not None and slack.value <= 1e-9:
            best, low = [torch.from_numpy(np.array(m.value)).clamp(min=1e-9)], float(rate.value)
        elif best:
            high = float(rate.value)
        else:
            break
        rate.value = (low + high) / 2
    return best
