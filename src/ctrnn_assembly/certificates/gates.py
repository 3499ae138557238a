"""Gated time scales, v' = nu o F(v, u) with F = tau v' of `terms` and nu in [lo, hi]: what is proven.

Constant gates contract with tau = 1 / nu, one number a module where the metric is dense; shared ones at
the rate lo lam in the same metric, as congruence gates; those of the input at a rate below lo lam in a
diagonal metric; those of the state are not known to. Source: THEORY section 3, (a) to (d), with the
bounds and the steps, and section 12.
"""

import math
from dataclasses import replace
from typing import Literal, get_args

import torch

from ctrnn_assembly.certificates.certify import LARGEST, StepLengths, certify, step_lengths
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.modules import modules_of
from ctrnn_assembly.certificates.result import Certificate, StepCertificate, StepProof
from ctrnn_assembly.certificates.rounding import UNIT, balanced, largest_proven, spectral_norm
from ctrnn_assembly.certificates.steps import in_disc, prove_step
from ctrnn_assembly.errors import ConfigError, unknown
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
    dt: StepLengths = None,
    solver: str = "euler",
) -> Certificate:
    """Certify v' = nu o F(v, u), and the step v + dt nu o F if dt is given; nu is not constant.

    `terms` are of F, with tau = 1; lo and hi bound nu, per unit of time; dt is as in `certify`;
    `modules` and `coupling` are of nu = 1. Only congruence gates have a solver besides Euler, imex.
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
    found, lengths = certify(terms, metric, search="none"), step_lengths(dt)
    rate, rounding, reason, proof = -math.inf, found.rounding, "", None
    if gate in ("shared", "congruence"):
        slowest = min(lo * found.rate, hi * found.rate)
        rate, rounding = slowest - SLACK * abs(slowest), hi * found.rounding + SLACK * abs(slowest)
    elif gate == "state":
        reason = "gates that read the state are not known to contract: their slopes enter the Jacobian"
        if found.certified and metric.is_diagonal:
            reason += (
                "; if each reads its own unit only, a constant input has one equilibrium, globally "
                "exponentially stable, which is less than contraction"
            )
        reason += ". Use constant, shared or input gates"
    elif gate != "input":  # of a kind that somebody adds
        reason = f"no bound is known for {gate} gates"
    elif not metric.is_diagonal:
        reason = (
            "gates of single units need a diagonal metric, with which they commute; use Theorem 1, 4 "
            "or 5, or a shared gate"
        )
    elif not found.certified:
        reason = "the field without gates is not certified"
    elif terms.within is not None:
        reason = "no bound is known for gates of the input where W or L is uncertain"
    else:
        rate, rounding, reason, proof = _of_input(terms, metric, found, lo, hi)
    reasons = (reason, *found.reasons) if reason else found.reasons
    certified, step = found.certified and not reason, None
    found = replace(found, certified=certified, rate=rate, rounding=rounding, reasons=reasons)
    if not lengths:
        return found
    if not certified:
        step = StepCertificate.refused(solver, lengths[-1])
    elif solver != "euler" and (gate, solver) != ("congruence", "imex"):
        reason = f"no proof is known for steps of {solver} with {gate} gates; use euler"
        step = StepCertificate.refused(solver, lengths[-1], reason)
    else:
        whole = Interconnection.of(terms, metric)
        proof = proof or _slowed(whole, solver, lo, hi, root=gate == "congruence")
        step = StepCertificate.of_all(proof, solver, lengths)
    return replace(found, step=step)


def _slowed(whole: Interconnection, solver: str, lo: float, hi: float, *, root: bool) -> StepProof:
    """Of steps of dt, by convexity, from the factor q of an ungated one of dt hi, or `root` from q^2.

    By imex q is the Euler factor of the modules alone, and their coupling costs what it may; then gates
    may refuse a shorter dt.
    """
    left, cost = lo / hi * (1 - SLACK), whole.cost if solver == "imex" else 0.0
    alone = prove_step(whole.uncoupled if solver == "imex" else whole, "euler")

    def factor(dt: float) -> float:
        q, taken = alone.factor(dt * hi), dt * hi * cost * (1 + SLACK)
        if not (q < 1 and taken < 1):
            return math.inf if cost else q
        slowest = math.sqrt(1 - (1 - q * q) * left + 8 * UNIT) if root else 1 - (1 - q) * left
        return slowest / (1 - taken) + 8 * UNIT

    if left <= 16 * UNIT:
        return StepProof(factor, 0.0, "the slowest gate is lost in float64; raise lo")
    return StepProof(factor, 0.0 if cost else alone.max_dt / hi * (1 - SLACK), interval=not cost)


def _of_input(
    terms: Terms, metric: Metric, ungated: Certificate, lo: float, hi: float
) -> tuple[float, float, str, StepProof | None]:
    """Rate, rounding, and why not or steps, in the symbols of THEORY section 3."""
    modules, whole = modules_of(terms, metric), Interconnection.of(terms, metric)
    ends = torch.cat([slope * m.W.diagonal() for m in modules for slope in m.phi.slope])
    low, top = 1 - float(ends.max()) - SLACK, 1 - float(ends.min()) + SLACK  # of 1 - w_ii s
    rest = [balanced(m.W - torch.diag(m.W.diagonal()), m.balance, m.balance) for m in modules]
    b = max(m.phi.g * spectral_norm(*W) for m, W in zip(modules, rest, strict=True)) + whole.edge_norm
    s, omega = whole.symmetric_norm, whole.norm

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
        return rate, ungated.rounding, reason, None
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
    return rate, lo * ungated.rounding + slack, "", proof
