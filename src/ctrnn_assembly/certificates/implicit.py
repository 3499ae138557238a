"""The factors of the steps that treat the coupling implicitly or exactly.

IMEX, y+ = (I - dt K)^-1 (y + dt J y): ||(I - dt K)^-1|| <= 1 / (1 - dt sigma), sigma = lmax(sym K), 0
for generalised negative feedback. The factor is the largest of the modules' own Euler factors, whatever
||K|| is.

Exponential Euler is exact in F = -1 / tau + K and explicit in the modules: with s = -lmax(sym F) > 0,
factor <= e^{-dt s} + (1 - e^{-dt s}) / s sup||W D / tau||. Without coupling and with one tau it is a
forward Euler step of length tau (1 - e^{-dt / tau}), which also covers modules of large norm.

Source: THEORY section 6.
"""

from __future__ import annotations

import math

from torch import Tensor

from ctrnn_assembly.certificates.euler import EulerStep, common_disc, last_contracting
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.rounding import UNIT, spectral_norm


def imex_factor(assembled: Interconnection, own: EulerStep, dt: float) -> float:
    """An upper bound on the factor of one IMEX step; `own` is the modules' step without coupling."""
    implicit = dt * assembled.cost
    return own.factor(dt) / (1 - implicit) * (1 + 4 * UNIT) if implicit < 1 else math.inf


def imex_max_dt(assembled: Interconnection, own: EulerStep) -> float:
    """A dt up to which every IMEX step contracts; 0 for none."""
    if assembled.cost == 0:
        return own.max_dt
    return last_contracting(lambda dt: imex_factor(assembled, own, dt), own.max_dt)


def exponential_factor(assembled: Interconnection, own: EulerStep, tau: Tensor, dt: float) -> float:
    """An upper bound on the factor of one step of exponential Euler; tau (n,)."""
    decay, explicit = _decay(assembled, tau), _explicit(assembled)
    if decay <= 0:
        return math.inf
    kept = math.exp(-dt * decay)
    bound = (kept + -math.expm1(-dt * decay) / decay * explicit) * (1 + 16 * UNIT)
    if _is_leak_only(assembled, tau):
        shorter = -float(tau[0]) * math.expm1(-dt / float(tau[0]))
        bound = min(bound, own.factor(shorter) * (1 + 16 * UNIT))
    return bound


def exponential_max_dt(assembled: Interconnection, own: EulerStep, tau: Tensor) -> float:
    """Infinite if the norms prove every dt, else the Euler bound of an uncoupled net, else 0."""
    if 0 < _decay(assembled, tau) > _explicit(assembled) * (1 + 1e-9):
        return math.inf
    if not _is_leak_only(assembled, tau):
        return 0.0
    share = own.max_dt / float(tau[0]) * (1 - 1e-12)
    return math.inf if share >= 1 else -math.log1p(-share) * float(tau[0])


def _decay(assembled: Interconnection, tau: Tensor) -> float:
    return (1 / float(tau.max()) - assembled.cost) * (1 - 4 * UNIT)


def _explicit(assembled: Interconnection) -> float:
    explicit = max(module.norm for module in assembled.modules)
    if assembled.gains is None:
        return explicit
    return explicit + spectral_norm(assembled.gains, 1e-14 * float(assembled.gains.norm()))


def _is_leak_only(assembled: Interconnection, tau: Tensor) -> bool:
    uncoupled = assembled.gains is None and not bool(assembled.K.any())
    return uncoupled and bool((tau == tau[0]).all())


def largest_coupling_norm(assembled: Interconnection, step: EulerStep, dt: float) -> float:
    """omega such that the Euler step contracts for every skew K with ||K|| <= omega; 0 for none.

    For a skew K and N = J, own step factor q: |y + dt N y + dt K y|^2 <= q^2 + dt^2 omega^2 +
    2 dt^2 omega eps, because y^T K y = 0 and |N y + nu y| <= eps |y|; or the disc bound. `step` is the
    modules' step without coupling.
    """
    own = step.factor(dt)
    (nu, eps), target = common_disc(assembled), 1 - 1e-6
    disc = (target - dt * eps) ** 2 - (1 - dt * nu) ** 2 if dt * eps < target else -1.0
    rest = target**2 - own**2 if own < target else -1.0
    by_disc = math.sqrt(max(0.0, disc)) / dt
    by_own = -eps + math.sqrt(eps**2 + max(0.0, rest) / dt**2)
    return max(by_disc, by_own) * (1 - 1e-12)
