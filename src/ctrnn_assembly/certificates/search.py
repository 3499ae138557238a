"""A metric where none is known. Nothing here is trusted: every candidate is proven afterwards.

For the whole: the best `factors` of the modules together, the identity, and the diagonal metric of
g |W| + |L| + the edges as one Metzler matrix, if that is below 1. Of few units: `jointly`.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy import ndarray
from scipy.linalg import LinAlgError, matrix_balance, solve_continuous_lyapunov
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import one_hot

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.certificates.interconnection import Interconnection, block_norms
from ctrnn_assembly.certificates.lmi import Search, Weighed
from ctrnn_assembly.certificates.modules import ModuleInMetric, modules_of, prove_module
from ctrnn_assembly.certificates.steps import multipliers, step_system
from ctrnn_assembly.linalg import log_metzler_scaling, majorant, resolvent_sums
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms

LARGEST_RANGE = 30.0  # of log theta: beyond it no proof in float64 is left
JOINT_SIZE = 40  # units up to which a metric and multipliers are sought together


def candidates(terms: Terms) -> Iterator[tuple[str, Metric]]:
    """Metrics for a field, each with its origin; unproven, not even positive definite."""
    unit, best = identity(terms), []
    modules = modules_of(terms, unit)
    for module in modules:
        finite = [c for c in factors(module) if bool(torch.isfinite(c[1].theta).all())]
        best.append(max(finite, key=lambda c: prove_module(replace(module, theta=c[1].theta)).rate))
    origins = sorted({origin for origin, _ in best})
    yield f"search: {', '.join(origins)}", Metric(tuple(factor for _, factor in best))
    yield "search: identity", unit
    B = torch.block_diag(*(m.phi.g * majorant(m.W, m.phi.monotone) for m in modules))
    if terms.L is not None:
        B = B + terms.L.double().abs()
    for edge in terms.edges:
        B = B + edge.psi.g * edge.K.double().abs()
    for log_theta in _metzler_scalings(B)[-1:]:
        parts = log_theta.split(terms.sizes)
        yield "search: Theorem 1 on the whole", Metric(tuple(Factor(p.exp(), (-p).exp()) for p in parts))


def factors(module: ModuleInMetric) -> Iterator[tuple[str, Factor]]:
    """Candidate factors for one module, which comes in the identity metric."""
    W, phi = module.W, module.phi
    yield "identity", Factor.identity(len(W), W)
    for log_theta in _metzler_scalings(phi.g * majorant(W, phi.monotone)):
        yield "Theorem 1", Factor.diagonal(log_theta)
    scaling = matrix_balance(W.abs().numpy(), permute=False, separate=True)[1][0]
    yield "balanced", Factor.diagonal(-torch.from_numpy(np.log(scaling)))
    if bool((module.tau == module.tau[0]).all()):  # a dense metric needs one time constant
        for origin, M in (*_theorem2(W, phi, module.inside), *_lyapunov(W, phi)):
            theta = torch.linalg.cholesky_ex(M)[0].mT
            yield origin, Factor.dense(theta, torch.linalg.inv_ex(theta)[0])


def reweighed(terms: Terms, metric: Metric) -> Iterator[tuple[str, Metric]]:
    """M_i times kappa_i, anew from the rates that the modules have in it, where coupling leads one way.

    Modules in a cycle keep their weights to each other. Each metric spends another share of the rate.
    """
    metric = metric.mapped(Tensor.double)
    whole = Interconnection.of(terms, metric)
    gains = block_norms(whole.K, whole.sizes) + whole.edge_gains
    count, label = connected_components(gains.numpy(), directed=True, connection="strong")
    member = one_hot(torch.from_numpy(label).long(), count).mT.double()
    # The geometric mean of each cycle's Theta, which is free, set to 1: from there kappa is sought.
    logs = torch.stack([factor.eigenvalues().log().sum() / 2 for factor in metric.factors])
    means = (member.mT @ ((member @ logs) / (member @ torch.tensor(terms.sizes).double()))).exp()
    between = member @ (gains * (means / means[:, None])) @ member.mT
    between.fill_diagonal_(0)
    rates = member * torch.tensor([m.rate for m in whole.modules]).double()
    rates = rates.masked_fill(member == 0, math.inf).min(dim=1).values
    for share in (0.5, 0.35, 0.25, 0.15, 0.1, 0.05):
        d, e = resolvent_sums(torch.diag(rates - (1 - share) * rates.min()) - between)
        roots = (member.mT @ (e / d)).sqrt() / means
        if bool((roots > 0).all() and torch.isfinite(roots).all()):
            each = roots.repeat_interleave(torch.tensor(terms.sizes))
            yield "search: weights from certified rates", metric.scaled(each)


def identity(terms: Terms) -> Metric:
    return Metric(tuple(Factor.identity(n, terms.tau.double()) for n in terms.sizes))


def _metzler_scalings(B: Tensor) -> list[Tensor]:
    """log theta at r = 1 and closer to the spectral radius, where rate and conditioning trade off."""
    if (widest := log_metzler_scaling(B, 1.0, 0.0)) is None:
        return []
    high = 1.0
    for k in range(1, 21):  # bisection
        if log_metzler_scaling(B, high - 0.5**k, 0.0) is not None:
            high -= 0.5**k
    closer = [high + (1 - high) * share for share in (0.5, 0.2, 0.1, 0.05)]
    tighter = [log_metzler_scaling(B, r, 0.0) for r in (*closer, 1.02 * high)]
    found = [widest, *(one for one in tighter if one is not None)]
    return [one for one in found if float(one.max() - one.min()) < LARGEST_RANGE]


def _theorem2(W: Tensor, phi: Activation, inside: bool) -> Iterator[tuple[str, Tensor]]:
    """R^-2 (x-form) or R^2 (r-form), R = sqrt(c) I + (c I - g W)^1/2, c = g lmax(W), for W = W^T."""
    if float((W - W.mT).abs().max()) > 1e-12 * float(W.abs().max()) or not phi.monotone:
        return
    values, vectors = torch.linalg.eigh(phi.g * W)
    if (c := max(float(values[-1]), 1e-3)) < 1:
        R = math.sqrt(c) + (c - values).clamp(min=0).sqrt()
        yield "Theorem 2", (vectors * R ** (2 if inside else -2)) @ vectors.mT


def _lyapunov(W: Tensor, phi: Activation) -> Iterator[tuple[str, Tensor]]:
    """M with M A + A^T M = -I for A = -I + s W, at the middle slope and the largest."""
    for slope in sorted({sum(phi.slope) / 2, phi.slope[1]}):
        A = slope * W - torch.eye(len(W), dtype=W.dtype)
        try:
            with warnings.catch_warnings():  # the proof refuses bad ones
                warnings.simplefilter("ignore", RuntimeWarning)
                M = solve_continuous_lyapunov(A.mT.numpy(), -np.eye(len(W)))
        except LinAlgError:
            continue
        if np.isfinite(M).all() and np.linalg.eigvalsh(M + M.T)[0] > 0:
            yield "Lyapunov", torch.from_numpy((M + M.T) / 2)


def jointly(terms: Terms, starts: list[Metric], dt: float, scheme: str) -> Iterator[Metric]:
    """Metrics U Theta for the factor of one step, of dt = 0 for the rate, near the best of `starts`."""
    one_tau = all(bool((t == t[0]).all()) for t in terms.tau.split(terms.sizes))
    found = []
    for metric in starts:
        whole = Interconnection.of(terms, metric)
        system = step_system(whole, scheme, dt)
        step = Weighed.of(system, multipliers(system, whole.system[1], dt))
        dense = [not factor.is_diagonal for factor in metric.factors]
        if one_tau and not any(dense):
            dense = [n > 1 for n in terms.sizes]
        found.append((step.mu(dt), metric, Search(step, dt, (*zip(terms.sizes, dense, strict=True),))))
    for _, metric, search in sorted(found, key=lambda entry: -entry[0])[:2]:
        for blocks, _ in search.points():
            turned = []
            for factor, U, (_, full) in zip(metric.factors, blocks, search.modules, strict=True):
                theta = factor.theta.double()
                theta = theta.diag() if full and factor.is_diagonal else theta
                theta = U @ theta if full else U.diagonal() * theta
                turned.append(Factor(theta, torch.linalg.inv_ex(theta)[0] if full else 1 / theta))
            yield Metric(tuple(turned))


def least_norm(W: Tensor) -> Tensor:
    """log theta of a small ||Theta W Theta^-1||, by L-BFGS on Schatten norms (THEORY section 14)."""

    def loss(x: ndarray, p: float) -> tuple[float, ndarray]:
        d = torch.from_numpy(x)
        U, s, V = torch.linalg.svd(d.exp()[:, None] * W * (-d).exp())
        if not float(s[0]) > 0:
            return 0.0, np.zeros_like(x)
        shares = (s / s[0]) ** p
        w = shares / shares.sum()
        slope = U.square() @ w - V.mT.square() @ w
        return float(s[0].log() + shares.sum().log() / p), slope.numpy()

    x, bounds, options = np.zeros(len(W)), [(-20.0, 20.0)] * len(W), {"maxiter": 30, "maxfun": 40}
    for p in (2.0, 8.0, 32.0, 128.0):
        found = minimize(loss, x, args=(p,), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        x = min(x, found.x, key=lambda one: loss(one, p)[0])
    return torch.from_numpy(x)
