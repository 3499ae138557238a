"""Gated time scales, v' = nu o F(v, u) with F = tau v' of `terms` and nu in [lo, hi]: what is proven.

Constant gates contract with tau = 1 / nu, one number a module where the metric is dense; shared ones at
the rate lo lam in the same metric, as congruence gates; those of the input at a rate below lo lam in a
diagonal metric; those of the state are not known to. Source: THEORY section 3, (a) to (d), with the
bounds and the steps, and section 12.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from ctrnn_assembly.certificates.certify import LARGEST, certify
from ctrnn_assembly.certificates.modules import modules_of
from ctrnn_assembly.certificates.result import Certificate, StepCertificate, StepProof
from ctrnn_assembly.certificates.rounding import UNIT, Balance, balanced, largest_proven, spectral_norm
from ctrnn_assembly.certificates.steps import in_disc
from ctrnn_assembly.errors import ConfigError, unknown
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms

Gate = Literal["constant", "shared", "input", "congruence", "state"]
# Rounding of the few scalar operations below, generously.
SLACK = 1e-13


@torch.no_grad()
def certify_gated(
    terms: Terms,
    metric: Metric,
    *,
    gate: Gate,
    lo: float,
    hi: float,
    dt: float | None = None,
    solver: str = "euler",
) -> Certificate:
    """Certify v' = nu o F(v, u), and the step v + dt nu o F if dt is given; nu is not constant.

    `terms` are of F, with tau = 1; lo and hi bound nu, per unit of time. Of the `Certificate`, `modules`
    and `coupling` describe the field at nu = 1. Only congruence gates have a solver besides Euler, imex.

    Guarantee: as `Certificate`, for every nu in [lo, hi] of the kind `gate`, however fast it changes.
    """
    terms, metric = terms.detach_cpu(), metric.detach_cpu()
    if gate not in get_args(Gate)[1:]:
        fix = "Constant gates are time constants: certify with tau = 1 / nu."
        raise unknown("gate", gate, get_args(Gate)[1:], fix)
    if not 1 / LARGEST <= lo <= hi <= LARGEST:
        raise ConfigError(f"gates need 0 < lo <= hi, within 1e-50 and 1e50; got lo={lo}, hi={hi}.")
    if not bool((terms.tau == 1).all()):
        raise ConfigError("a gated field needs tau = 1: its time constant is 1 / nu.")
    if dt is not None and solver != "euler" and (gate, solver) != ("congruence", "imex"):
        found = certify_gated(terms, metric, gate=gate, lo=lo, hi=hi)
        reason = f"no proof is known for steps of {solver} with {gate} gates; use euler"
        return replace(found, step=StepCertificate.refused(solver, dt, reason))
    if gate in ("shared", "congruence"):
        longest = None if dt is None else dt * hi
        fastest = certify(terms, metric, dt=longest, solver=solver, search="none")
        slowed = _mean if gate == "shared" else _root_mean
        if gate == "congruence" and longest is not None and solver == "imex":
            alone, cost = certify(replace(terms, L=None), metric, dt=longest, search="none"), 0.0
            if fastest.coupling.cost > 0 and fastest.step is not None:  # then gates may refuse less dt
                cost = longest * fastest.coupling.cost * (1 + SLACK)
                fastest = replace(fastest, step=replace(fastest.step, max_dt=0.0))
            slowed = partial(_implicit, alone.step, cost)
        return _slowed(fastest, lo, hi, dt, slowed)
    ungated = certify(terms, metric, search="none")
    if gate == "state":
        reason = "gates that read the state are not known to contract: their slopes enter the Jacobian"
        if ungated.certified and metric.is_diagonal:
            reason += (
                "; if each reads its own unit only, a constant input has one equilibrium, globally "
                "exponentially stable, which is less than contraction"
            )
        reason += ". Use constant, shared or input gates"
    elif gate != "input":
        reason = f"no bound is known for {gate} gates"
    elif not metric.is_diagonal:
        reason = (
            "gates of single units need a diagonal metric, with which they commute; use Theorem 1, 4 "
            "or 5, or a shared gate"
        )
    elif not ungated.certified:
        reason = "the field without gates is not certified"
    else:
        return _of_input(terms, metric, ungated, lo, hi, dt)
    return _refused(ungated, -math.inf, reason, dt)


def _refused(ungated: Certificate, rate: float, reason: str, dt: float | None) -> Certificate:
    step = None if dt is None else StepCertificate.refused("euler", dt)
    reasons = (reason, *ungated.reasons)
    return replace(ungated, certified=False, rate=rate, step=step, reasons=reasons)


def _mean(q: float, left: float) -> float:
    """The factor of a step as long as a share `left` of one with the factor q, by convexity."""
    return 1 - (1 - q) * left


def _root_mean(q: float, left: float) -> float:
    """Of an Euler step under congruence gates, where the ungated step of the fastest has q."""
    return math.sqrt(max(0.0, 1 - (1 - q * q) * left) + 8 * UNIT)


def _implicit(alone: StepCertificate | None, cost: float, q: float, left: float) -> float:
    """Of an imex step: the Euler factor of the modules alone, and what their coupling costs."""
    own = None if alone is None else alone.contraction_factor
    return math.inf if own is None or own >= 1 or cost >= 1 else _root_mean(own, left) / (1 - cost)


def _slowed(
    fastest: Certificate, lo: float, hi: float, dt: float | None, of: Callable[[float, float], float]
) -> Certificate:
    """From the certificate of the field with the step dt hi; `of` gives the factor of slower ones."""
    step = fastest.step
    if dt is not None and step is not None:
        q, step = step.contraction_factor, replace(step, dt=dt)
        if q is not None and q < 1:
            factor = of(q, lo / hi * (1 - SLACK)) + 8 * UNIT
            step = replace(step, contraction_factor=factor)
            if step.certified and factor >= 1:
                reason = "the factor of the slowest gate is not below 1 in float64; raise lo"
                step = replace(step, certified=False, reason=reason)
        step = replace(step, max_dt=max(step.max_dt / hi * (1 - SLACK), dt if step.certified else 0.0))
    rate = min(lo * fastest.rate, hi * fastest.rate)
    rounding = hi * fastest.rounding + SLACK * abs(rate)
    return replace(fastest, rate=rate - SLACK * abs(rate), rounding=rounding, step=step)


def _of_input(
    terms: Terms, metric: Metric, ungated: Certificate, lo: float, hi: float, dt: float | None
) -> Certificate:
    """Gates of the input, in the symbols of THEORY section 3, from the certificate without gates."""
    low, top, b, s, omega = _norms(terms, metric)

    def c(b: float) -> float:  # max over 0 <= r <= 1 of b r - low r^2
        return b**2 / (4 * low) if b < 2 * low else b - low

    slowest, cost = lo * ungated.rate, (hi - lo) * min(c(b) + (s + omega) / 2, c(b + omega))
    slack = SLACK * (lo * abs(ungated.rate) + cost)
    rate = slowest - cost - slack
    if not (math.isfinite(rate) and rate > 1e-6 * slowest):
        reason = (
            f"gates in [{lo:.6g}, {hi:.6g}] that differ between units may cost {cost:.6g}, more than "
            f"the rate {slowest:.6g} of the slowest; raise lo, weaken the coupling (norm {omega:.6g}), "
            "or use constant or shared gates"
        )
        return _refused(ungated, rate, reason, dt)
    k, turn = (lo * low + hi * top) / 2, (lo + hi) / 2 * omega
    e = (hi * top - lo * low) / 2 + hi * b + (lo + hi) / 2 * s + (hi - lo) / 2 * omega
    change = hi * (max(abs(low), abs(top)) + b + omega)  # hi a, with a >= ||A||

    e += SLACK * (k + turn + e)  # also for the rounding of k and turn
    disc = in_disc(k, e if low > 0 else math.inf, turn, 0.0)  # else E does not contract alone

    def by_rate(dt: float) -> float:
        moved = dt * change
        return math.sqrt(max(1 - 2 * dt * rate + moved * moved, 0.0) + SLACK)

    longer = largest_proven(2 * rate / change**2, lambda dt: by_rate(dt) < 1)
    largest = max(disc.max_dt, longer)
    proof = StepProof(lambda dt: min(disc.factor(dt), by_rate(dt)), largest, interval=True)
    step = None if dt is None else StepCertificate.of(proof, "euler", dt)
    return replace(ungated, rate=rate, rounding=lo * ungated.rounding + slack, step=step)


def _norms(terms: Terms, metric: Metric) -> tuple[float, float, float, float, float]:
    """The least and largest 1 - w_ii s, and b, s, omega of THEORY section 3, in a diagonal metric."""
    theta = torch.cat([factor.theta for factor in metric.factors]).double()
    scale = Balance.of(theta, torch.ones_like(theta))

    def norm(A: Tensor) -> float:
        return spectral_norm(*balanced(A.double(), scale, scale))

    modules = modules_of(terms, metric)
    ends = torch.cat([slope * m.W.diagonal() for m in modules for slope in m.phi.slope])
    rest = [m.phi.g * (m.W - torch.diag(m.W.diagonal())) for m in modules]
    edges = sum(edge.psi.g * norm(edge.K) for edge in terms.edges)
    omega, s = 0.0, 0.0
    if terms.L is not None:
        K, error = balanced(terms.L.double(), scale, scale)
        omega, s = spectral_norm(K, error), spectral_norm(symmetric_part(K), error)
    low, top = 1 - float(ends.max()) - SLACK, 1 - float(ends.min()) + SLACK
    return low, top, norm(torch.block_diag(*rest)) + edges, s, omega
