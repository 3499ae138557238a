"""Certificates: recomputed in float64 from plain tensors (W, L, M, tau, slopes, dt), able to fail.

This file imports no parametrisation: it sees the weights actually used, not the map that made them.

Continuous time. Each block gets the best rate that one of these proves in its given metric M = Theta^T
Theta (Theta balances: W_b = Theta W Theta^-1):
  * Theorem 1 (M diagonal):       1 - g lmax(sym(Theta |W| Theta^-1)), diagonal rule for monotone phi
  * Theorem 5 (M diagonal):       1 - g s(W_b)
  * master lemma (monotone phi):  1 - min_z s(Theta^-T (M W + g T) T^-1/2)^2 / 4 with T = z T_0, for
    T_0 = diag(M), I, or -diag(M W) (Theorem 3); it contains Theorems 2, 3 and the sharper Theorem 5.
Blocks combine through the comparison matrix C, C_ii = -rate_i / tau_i, C_ij = half the norm of the
symmetric part of the (i, j) block of Theta' L Theta'^-1: the rate of the whole is -lmax(C). For
generalised negative feedback the off-diagonal part is zero up to rounding, and the rounding counts.

Discrete time. Forward Euler contracts if q < 1, for the best of: the disc lemma,
q = sqrt((1 - h nu)^2 + h^2 omega^2) + h eps, and q^2 = 1 - 2 h lam + h^2 beta^2 (THEORY section 6).
IMEX and exponential Euler do not see the coupling. Not done yet: the tight LMI for the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Activation
from ctrnn_assembly.linalg import majorant, symmetric_part
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms

# Eigenvalues in float64 of balanced matrices are accurate far below this; a smaller rate is refused.
SMALLEST_RATE = 1e-6
# Squares of larger entries overflow, and an infinite bound must never look like a proof.
LARGEST = 1e50


@dataclass(frozen=True)
class Step:
    """Whether the discrete step contracts: `gain` is an upper bound on its factor in the metric."""

    solver: str
    dt: float
    certified: bool
    gain: float | None
    reason: str = ""


@dataclass(frozen=True)
class Certificate:
    """The result of `certify`; rates are lower bounds, per unit of time."""

    certified: bool
    rate: float
    condition_number: float
    module_rates: tuple[float, ...]
    theorems: tuple[str, ...]
    coupling_norm: float
    residual: float
    step: Step | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Block:
    """Bounds on one module in its metric, in units of 1 / tau."""

    rate: float
    theorem: str
    norm: float  # bound on ||W D|| in the metric over all slopes
    disc: tuple[float, float]  # nu, eps with ||-I + W D + nu I|| <= eps


def certify(field: Any, *, dt: float | None = None, solver: str = "euler") -> Certificate:
    """Certify a subnetwork or assembly as its weights are now; see `certify_terms`."""
    return certify_terms(field.terms(), field.metric(), dt=dt, solver=solver)


@torch.no_grad()
def certify_terms(
    terms: Terms, metric: Metric, *, dt: float | None = None, solver: str = "euler"
) -> Certificate:
    """Certify the field of `terms` in `metric`, and its step if dt is given.

    Args:
        terms: the tensors of the field.
        metric: the metric to prove contraction in, one factor a block of `terms`.
        dt, solver: the step, in the unit of tau.

    Guarantee: if `certified`, two states under one input approach each other in the metric
    diag(tau) M at least like exp(-rate t), for every phi with the declared slopes; if also
    `step.certified`, each step of the solver multiplies their distance by at most `step.gain`.
    """
    tau = terms.tau.double()
    broken = _unusable(terms, metric)
    if broken:
        nothing = float("-inf")
        step = None if dt is None else Step(solver, dt, False, None, broken)
        return Certificate(False, nothing, math.inf, (), (), math.nan, math.nan, step, (broken,))
    blocks = [
        _block(W.double(), phi, inside, _double(factor))
        for W, (phi, inside), factor in zip(
            terms.blocks, _activations(terms), metric.factors, strict=True
        )
    ]
    L = torch.zeros(terms.n, terms.n).to(tau) if terms.L is None else terms.L.double()
    coupling = _balanced(metric, L)
    rates = [
        b.rate / float(t.max() if b.rate > 0 else t.min())
        for b, t in zip(blocks, tau.split(terms.sizes), strict=True)
    ]
    rate = _rate(terms, metric, coupling, blocks, rates)
    skewness = float(torch.linalg.matrix_norm(symmetric_part(coupling), ord=2))
    omega = float(torch.linalg.matrix_norm(coupling, ord=2))
    certified = all(b.rate >= SMALLEST_RATE for b in blocks) and rate >= SMALLEST_RATE / float(tau.max())
    reasons = () if certified else _reasons(blocks, skewness)
    step = None
    if dt is not None and not 0 < dt < math.inf:
        step = Step(solver, dt, False, None, f"dt must be positive and finite; got {dt}")
    elif dt is not None and certified:
        step = _step(terms, blocks, rate, omega, skewness, dt, solver)
    elif dt is not None:
        step = Step(solver, dt, False, None, "the continuous system is not certified")
    return Certificate(
        certified=certified,
        rate=rate,
        condition_number=_condition(metric, tau),
        module_rates=tuple(rates),
        theorems=tuple(b.theorem for b in blocks),
        coupling_norm=omega,
        residual=2 * skewness,
        step=step,
        reasons=reasons,
    )


def _block(W: Tensor, phi: Activation, inside: bool, factor: Factor) -> _Block:
    if inside:  # r-form(W) in M is x-form(W^T) in M^-1, at the same rate
        inverse = (factor.theta_inv, factor.theta)
        if not factor.is_diagonal:
            inverse = (factor.theta_inv.mT, factor.theta.mT)
        W, factor = W.mT, Factor(*inverse)
    g = phi.g
    balanced = factor.balance(W)
    candidates: list[tuple[float, str]] = []
    norm = g * float(torch.linalg.matrix_norm(balanced, ord=2))
    if factor.is_diagonal:
        absolute = symmetric_part(factor.balance(majorant(W, phi.monotone)))
        candidates.append((1 - g * float(torch.linalg.eigvalsh(absolute)[-1]), "Theorem 1"))
        candidates.append((1 - norm, "Theorem 5"))
    else:  # the slopes do not commute with Theta
        theta_W = float(torch.linalg.matrix_norm(factor.theta @ W, ord=2))
        norm = g * theta_W * float(torch.linalg.matrix_norm(factor.theta_inv, ord=2))
        candidates.append((1 - norm, "norm"))
    if phi.monotone:
        candidates.append((_master_rate(W, g, factor), "master lemma"))
    if phi.slope[0] == phi.slope[1]:
        linear = symmetric_part(phi.slope[0] * balanced)
        candidates.append((1 - float(torch.linalg.eigvalsh(linear)[-1]), "linear"))
    best = max((rate for rate, _ in candidates), default=-math.inf)
    # The plainest proof of (almost) the best rate names the theorem.
    rate, theorem = next((c for c in candidates if c[0] >= best - 1e-9), (-math.inf, "none"))
    return _Block(rate, theorem, norm, _disc(W, phi, norm, factor.is_diagonal))


def _master_rate(W: Tensor, g: float, factor: Factor) -> float:
    """1 - c for the best c of the master lemma over a few families T = z T_0."""
    M = factor.matrix()
    MW = M @ W
    theta_W = factor.theta[:, None] * W if factor.is_diagonal else factor.theta @ W
    left = factor.theta_inv.diag() if factor.is_diagonal else factor.theta_inv.mT
    best = math.inf
    product = -MW.diagonal()
    families = [M.diagonal(), torch.ones_like(M.diagonal()), product]
    for T0 in families:
        if not bool((T0 > 0).all()):
            continue
        best = min(best, _least_c(theta_W, left, g, T0))
    return 1 - best


def _least_c(A: Tensor, left: Tensor, g: float, T0: Tensor) -> float:
    """min over z > 0 of s((A + g z left T0) (z T0)^-1/2)^2 / 4: convex terms, golden section on log z.

    Every z is sound, so an early stop only costs sharpness.
    """

    def c(log_z: float) -> float:
        T = math.exp(log_z) * T0
        return float(torch.linalg.matrix_norm((A + g * left * T) / T.sqrt(), ord=2)) ** 2 / 4

    # z = 1 / g is exact for Theorem 3; below it z ranges over twelve orders of magnitude.
    low, high, golden = -14.0, 14.0, (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    fa, fb = c(a), c(b)
    for _ in range(50):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - golden * (high - low)
            fa = c(a)
        else:
            low, a, fa = a, b, fb
            b = low + golden * (high - low)
            fb = c(b)
    return min(fa, fb, c(-math.log(g)))


def _disc(W: Tensor, phi: Activation, norm: float, diagonal_metric: bool) -> tuple[float, float]:
    """nu, eps with ||-I + W D + nu I||_M <= eps for all slopes in the interval."""
    diagonal = W.diagonal()
    # In a dense metric a diagonal matrix may have a norm above its largest entry.
    if (len(W) > 1 and not diagonal_metric) or float((W - torch.diag(diagonal)).abs().max()) > 0:
        return 1.0, norm
    ends = torch.stack([diagonal * phi.slope[0], diagonal * phi.slope[1]]) - 1
    low, high = float(ends.min()), float(ends.max())
    return -(low + high) / 2, (high - low) / 2


def _rate(
    terms: Terms, metric: Metric, coupling: Tensor, blocks: list[_Block], slowest: list[float]
) -> float:
    """-lmax(sym(Theta' L Theta'^-1) - blkdiag(rate_i / tau_i)): never below -lmax(C) without edges,
    and right for negative rates too; nonlinear edges go through C."""
    tau = terms.tau.double()
    if terms.edges:
        return -float(torch.linalg.eigvalsh(_comparison(terms, metric, coupling, slowest))[-1])
    root = tau.rsqrt()
    rates = torch.cat(
        [
            t.new_full((n,), b.rate)
            for b, n, t in zip(blocks, terms.sizes, tau.split(terms.sizes), strict=True)
        ]
    )
    full = symmetric_part(root[:, None] * coupling * root) - torch.diag(rates / tau)
    return -float(torch.linalg.eigvalsh(full)[-1])


def _comparison(terms: Terms, metric: Metric, coupling: Tensor, rates: list[float]) -> Tensor:
    """The comparison matrix C, (p, p): v^T F v <= w^T C w for w_i = |v_i|."""
    sizes = terms.sizes
    tau = terms.tau.double()
    root = tau.rsqrt()
    scaled = symmetric_part(root[:, None] * coupling * root)
    C = _block_norms(scaled, sizes)
    for edge in terms.edges:
        left = metric_left(metric, edge.K.double()) * root[:, None]
        if metric.is_diagonal:
            theta_inv = torch.cat([_double(f).theta_inv for f in metric.factors])
            gains = _block_norms(left * theta_inv * root, sizes)
        else:
            right = [
                float(torch.linalg.matrix_norm(_dense(_double(f).theta_inv), ord=2))
                for f in metric.factors
            ]
            slow = torch.stack([r.max() for r in root.split(sizes)])
            gains = _block_norms(left, sizes) * torch.tensor(right).to(C) * slow
        C = C + symmetric_part(max(phi.g for phi, _ in edge.psi.runs) * gains)
    return C - torch.diag(torch.tensor(rates).to(C))


def _block_norms(A: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Spectral norms of the blocks of A, (p, p)."""
    if len(set(sizes)) == 1:
        p = len(sizes)
        blocks = rearrange(A, "(i r) (j c) -> i j r c", i=p, j=p)
        return torch.linalg.matrix_norm(blocks, ord=2)
    rows = A.split(sizes, dim=0)
    norms = [[torch.linalg.matrix_norm(b, ord=2) for b in r.split(sizes, dim=1)] for r in rows]
    return torch.stack([torch.stack(row) for row in norms])


def _step(
    terms: Terms,
    blocks: list[_Block],
    rate: float,
    omega: float,
    skewness: float,
    dt: float,
    solver: str,
) -> Step:
    """The factor of one step; with linear edges and a certified rate only."""
    if solver not in ("euler", "euler-plain", "imex", "exponential-euler"):
        return Step(solver, dt, False, None, f"no proof is known for steps of {solver}")
    if terms.edges:
        return Step(solver, dt, False, None, "nonlinear edges are not covered yet")
    tau = terms.tau.double()
    if solver == "imex":
        each = zip(blocks, tau.split(terms.sizes), strict=True)
        gain = max(_euler_gain([b], t, b.rate / float(t.max()), 0.0, 0.0, dt) for b, t in each)
        implicit = dt / float(tau.min()) * skewness  # (I - hL)^-1 has norm 1 if L is skew
        gain = gain / (1 - implicit) if implicit < 1 else math.inf
    elif solver == "exponential-euler":
        gain = _exponential_gain(terms, blocks, skewness, dt)
    else:
        gain = _euler_gain(blocks, tau, rate, omega, skewness, dt)
    certified = gain <= 1 - 1e-9
    reason = "" if certified else f"the bound on the step's factor is {gain:.6g}, not below 1"
    return Step(solver, dt, certified, gain, reason)


def _euler_gain(
    blocks: list[_Block], tau: Tensor, rate: float, omega: float, skewness: float, dt: float
) -> float:
    """The quadratic bound, or the disc bound where there is one time constant and it is smaller.

    omega and skewness bound L and its symmetric part in the metric.
    """
    beta = math.sqrt(1 + 2 * skewness + omega**2) + max(b.norm for b in blocks)
    beta = beta / float(tau.min())
    quadratic = math.sqrt(max(0.0, 1 - 2 * dt * rate + (dt * beta) ** 2))
    if float(tau.max()) > float(tau.min()):
        return quadratic
    h = dt / float(tau[0])
    low = min(nu - eps for nu, eps in (b.disc for b in blocks))
    high = max(nu + eps for nu, eps in (b.disc for b in blocks))
    nu, eps = (low + high) / 2, (high - low) / 2
    rotation = (1 - h * nu) ** 2 + 2 * h * abs(1 - h * nu) * skewness + (h * omega) ** 2
    return min(quadratic, math.sqrt(rotation) + h * eps)


def _exponential_gain(terms: Terms, blocks: list[_Block], skewness: float, dt: float) -> float:
    """||exp(dt A)|| + ||integral of exp(s A)|| max ||W D / tau||, A = (-I + L) / tau.

    In the metric A has the log-norm at most -s, s = (1 - skewness) / max tau (if positive).
    """
    tau = terms.tau.double()
    s = (1 - skewness) / float(tau.max())
    if s <= 0:
        return math.inf
    each = zip(blocks, tau.split(terms.sizes), strict=True)
    explicit = max(b.norm / float(t.min()) for b, t in each)
    decay = math.exp(-dt * s)
    return decay + (1 - decay) / s * explicit


def _activations(terms: Terms) -> list[tuple[Activation, bool]]:
    """The activation of each block, and whether it is inside (r-form)."""
    result, start = [], 0
    for size in terms.sizes:
        pre, post = terms.pre.at(start), terms.post.at(start)
        result.append((post, True) if pre == ACTIVATIONS["identity"] else (pre, False))
        start += size
    return result


def _reasons(blocks: list[_Block], skewness: float) -> tuple[str, ...]:
    worst = min(range(len(blocks)), key=lambda k: blocks[k].rate)
    if blocks[worst].rate < SMALLEST_RATE:
        return (
            f"module {worst} is not shown to contract in its metric: best bound on its rate "
            f"{blocks[worst].rate:.6g} / tau; scale its weights down or use a trained constraint",
        )
    return (
        f"the coupling costs more than the modules' rates: symmetric part {skewness:.6g} in the "
        "metric; use feedback coupling, which has none",
    )


def _unusable(terms: Terms, metric: Metric) -> str:
    """Why nothing can be proven, or an empty string."""
    tensors = [*terms.tensors(), *(f.theta for f in metric.factors)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        return "a weight, metric or time constant is NaN or infinite; retrain or use an intact copy"
    if not bool((terms.tau > 0).all()):
        return "a time constant is not positive"
    if any(float(tensor.abs().max()) > LARGEST for tensor in tensors if tensor.numel()):
        return f"an entry is above {LARGEST:g}, where float64 cannot prove anything"
    start = 0
    for k, (factor, t) in enumerate(zip(metric.factors, terms.tau.split(terms.sizes), strict=True)):
        values = torch.linalg.svdvals(_dense(factor.theta.double()))
        limit = 1e-14 if factor.is_diagonal else 1e-7
        if float(values[0]) <= 1 / LARGEST or float(values[-1]) <= limit * float(values[0]):
            return f"the metric of module {k} is singular or too ill-conditioned for a proof in float64"
        if not factor.is_diagonal and bool((t != t[0]).any()):
            return f"module {k} has a dense metric, which needs one time constant; got several"
        pre, post = ({m.at(start + u) for u in range(len(t))} for m in (terms.pre, terms.post))
        if len(pre) > 1 or len(post) > 1 or not {ACTIVATIONS["identity"]} & (pre | post):
            return f"module {k} needs one activation, before or after W"
        start += len(t)
    return ""


def _balanced(metric: Metric, L: Tensor) -> Tensor:
    """Theta L Theta^-1 in float64."""
    return metric_left(metric, L) @ _inverse(metric)


def metric_left(metric: Metric, A: Tensor) -> Tensor:
    """Theta A in float64."""
    if metric.is_diagonal:
        return torch.cat([f.theta for f in metric.factors]).double()[:, None] * A
    return torch.block_diag(*(_dense(f.theta.double()) for f in metric.factors)) @ A


def _inverse(metric: Metric) -> Tensor:
    """Theta^-1 in float64, recomputed: the stored inverse is not trusted."""
    return torch.block_diag(*(_dense(_double(f).theta_inv) for f in metric.factors))


def _double(factor: Factor) -> Factor:
    """The factor in float64, its inverse recomputed from theta."""
    theta = factor.theta.double()
    return Factor(theta, 1 / theta if factor.is_diagonal else torch.linalg.inv(theta))


def _dense(theta: Tensor) -> Tensor:
    return theta.diag() if theta.ndim == 1 else theta


def _condition(metric: Metric, tau: Tensor) -> float:
    values = torch.cat(
        [
            torch.linalg.svdvals(_dense(f.theta.double()) * t.sqrt()) ** 2
            for f, t in zip(metric.factors, tau.split([f.size for f in metric.factors]), strict=True)
        ]
    )
    return float(values.max() / values.min())
