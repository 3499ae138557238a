"""Whether the step of a grid scheme contracts: a bound on its factor, and steps up to which all do.

The whole assembly is one `LureSystem` y' = A y + X w, and a step of any row of `SCHEMES` is

    y+ = y + dt Q (A y + X w),    dt Q = C tau of the row for the coupling K.

`Weighed` bounds its factor by an LMI. A bound in closed form is kept beside it for every dt of an
interval, which no proof of single dt has, and for many units: `CLOSED_FORMS`.

Source: THEORY section 6.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ctrnn_assembly.certificates import rounding
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.lmi import WORST, LureSystem, Weighed, refined
from ctrnn_assembly.certificates.result import StepProof
from ctrnn_assembly.certificates.verifier import UNIT, Ball, integral, inverse
from ctrnn_assembly.linalg import symmetric_part

OPTIMISED = 128  # channels up to which every multiplier is searched by itself
SHARP = 256  # units beyond which a bound in closed form below 1 is enough


def propagator(whole: Interconnection, scheme: str, dt: float) -> tuple[Tensor, float]:
    """Q of the scheme's row for K, and a bound on its distance from the exact one."""
    scaled, h = dt * whole.K, dt / whole.tau
    eye, F = torch.eye(len(h), dtype=h.dtype), scaled - torch.diag(h)
    off = dt * whole.K_error + 4 * UNIT * float(F.norm() + scaled.norm() + h.norm() + len(h) ** 0.5)
    if scheme == "imex":
        exact = inverse(Ball((eye - scaled).numpy()))
        size = 1.01 * float(torch.from_numpy(abs(exact.mid) + exact.off).norm())
        moved = size * size * off / (1 - size * off) if size * off < 0.9 else math.inf
    else:
        exact = integral(Ball(F.numpy()))
        growing = dt * (whole.cost - 1 / float(whole.tau.max())) + off
        moved = math.exp(max(0.0, growing)) * off if growing < 700 else math.inf
    return torch.from_numpy(exact.mid), 1.01 * (float(np.linalg.norm(exact.off)) + moved) + 1e-300


def step_system(whole: Interconnection, scheme: str, dt: float) -> LureSystem:
    """Q A, Q X and Z of the whole, with bounds on their errors."""
    system = whole.system[0]
    if scheme == "euler":
        return system
    Q, error = propagator(whole, scheme, dt)
    size = rounding.frobenius(Q)
    share = rounding.gamma(len(Q) + 4) * size + error  # of what ||Q|| multiplies

    # Q A - Q' A' = Q (A - A') + (Q - Q') A'; 1 % for the rounding of the norms themselves
    A_error = 1.01 * (size * system.A_error + share * (float(system.A.norm()) + system.A_error))
    X_error = 1.01 * (size * system.X_error + share * (system.X.norm(dim=0) + system.X_error))
    return LureSystem(system.g, Q @ system.A, Q @ system.X, system.Z, A_error, X_error, system.Z_error)


def multipliers(system: LureSystem, T0: Tensor, dt: float) -> Tensor:
    """T of a large mu: those given, scaled, and then each by itself; unproven."""
    least = max(1.0, 0.5 * dt * rounding.guess_norm(system.X / T0.sqrt()) ** 2)

    def loss(t: float) -> float:
        return -max(-WORST, Weighed.of(system, least * (1 + 10**t) * T0).mu(dt))

    options = {"xatol": 0.05, "maxiter": 8 if len(system.A) > SHARP else 20}
    found = minimize_scalar(loss, bounds=(-3.5, 1.5), method="bounded", options=options)
    T = least * (1 + 10 ** float(found.x)) * T0
    if len(T) > OPTIMISED:
        return T
    slopes = (system.A, system.A + system.X @ system.Z)  # the least and the largest
    known = max(rounding.top_eigenvalue(2 * symmetric_part(J) + dt * J.mT @ J) for J in slopes)
    best = Weighed.of(system, T).mu(dt) >= -known / 2 - 1e-4 * abs(known)
    return T if best else refined(system, T, dt)


def prove_step(whole: Interconnection, scheme: str, sharp: bool = True) -> StepProof:
    """Of the clusters of modules that coupling joins, the slowest; of many units, if not `sharp`, by the
    closed form alone."""
    if scheme not in CLOSED_FORMS:
        return StepProof(lambda dt: math.inf, 0.0, f"no proof is known for steps of {scheme}")
    proofs = [_of_cluster(part, scheme, sharp) for part in whole.parts]
    largest, first = min(proof.max_dt for proof in proofs), proofs[0]
    return StepProof(lambda dt: max(p.factor(dt) for p in proofs), largest, first.advice, first.interval)


def _of_cluster(whole: Interconnection, scheme: str, sharp: bool) -> StepProof:
    """The better of the closed form and the LMI, which is left out where it costs too much."""
    closed, longest = CLOSED_FORMS[scheme](whole), None
    if not sharp and len(whole.K) > SHARP:
        return closed
    largest, many = closed.max_dt, len(whole.K) > (rounding.DENSE if scheme == "euler" else SHARP)
    if scheme == "euler" and not (many and largest > 0):
        longest = of_longest(whole)
        largest = max(largest, longest.max_dt)

    def factor(dt: float) -> float:
        known = closed.factor(dt)
        if (many and known < 1) or not 0 < dt < 1e100:
            return known
        system = step_system(whole, scheme, dt)
        found = Weighed.of(system, multipliers(system, whole.system[1], dt))
        found = longest if longest is not None and longest.mu(dt) > found.mu(dt) else found
        return min(known, found.factor(dt))

    return StepProof(factor, largest, closed.advice, closed.interval)


def of_longest(whole: Interconnection) -> Weighed:
    """The LMI of Euler's step with the T that proves the longest; unproven."""
    system, T0 = whole.system
    best = Weighed.of(system, multipliers(system, T0, 1e-3 * float(whole.tau.min())))
    for _ in range(6):
        largest = best.longest()
        other = Weighed.of(system, multipliers(system, T0, 1.02 * largest)) if largest > 0 else best
        if other.longest() <= largest * (1 + 1e-3):
            break
        best = other
    return best


def imex_step(whole: Interconnection) -> StepProof:
    """y+ = (I - dt K)^-1 (y + dt J y): Euler's factor of the modules alone / (1 - dt lmax(sym K))."""
    alone = prove_step(whole.uncoupled, "euler")
    near = chord(alone)

    def by(proof: Callable[[float], float], dt: float) -> float:
        implicit = dt * whole.cost
        return proof(dt) / (1 - implicit) * (1 + 4 * UNIT) if implicit < 1 else math.inf

    longest = alone.max_dt
    if whole.cost:
        longest = rounding.last_proven(longest, lambda dt: by(near.factor, dt) < 1)
    return StepProof(lambda dt: min(by(alone.factor, dt), by(near.factor, dt)), longest)


def exponential_euler_step(whole: Interconnection) -> StepProof:
    """Every dt by the norms, or as far as Euler's step is near: THEORY section 6.

    e^{-dt s} + (1 - e^{-dt s}) / s sup ||W D / tau||, s = -lmax(sym(K - 1 / tau)); or Euler's factor at
    h = t (1 - e^{-dt / t}) + dt^2 / 2 ||K + 1 / t - 1 / tau|| ||J||.
    """
    advice = "||W D|| exceeds the leak in the metric, use imex"
    decay = (1 / float(whole.tau.max()) - whole.cost) * (1 - 4 * UNIT)  # s above
    explicit = max(module.norm for module in whole.modules) + whole.edge_norm
    if decay <= 0:
        return StepProof(lambda dt: math.inf, 0.0, advice)
    if decay > explicit * (1 + 1e-9):

        def by_norms(dt: float) -> float:
            gone = -math.expm1(-dt * decay)
            return (math.exp(-dt * decay) + gone / decay * explicit) * (1 + 16 * UNIT)

        return StepProof(by_norms, math.inf, advice)
    proof, system, rates = chord(prove_step(whole, "euler")), whole.system[0], 1 / whole.tau
    high, low = float(rates.max()), float(rates.min())
    t = 2 / (high + low)
    size = rounding.spectral_norm(system.X, rounding.frobenius(system.X_error[None]))
    size *= rounding.spectral_norm(system.Z, rounding.frobenius(system.Z_error[None]))
    size += rounding.spectral_norm(system.A, system.A_error)  # ||J||
    spread = (high - low) / 2 + 4 * UNIT * high if high > low else 0.0
    drift = (whole.norm + spread) * size / 2 * (1 + 16 * UNIT)

    def near_euler(dt: float) -> float:
        far = dt * dt * drift if drift else 0.0
        return (proof.factor(-t * math.expm1(-dt / t)) + far) * (1 + 16 * UNIT) + 16 * UNIT

    share = proof.max_dt / t * (1 - 1e-12)
    reach = -math.log1p(-share) * t if share < 1 else math.inf
    if drift:
        reach = rounding.last_proven(min(reach, 30 * t), lambda dt: near_euler(dt) < 1)
    return StepProof(near_euler, reach, advice)


def disc_step(whole: Interconnection) -> StepProof:
    """`in_disc` with ||J + nu I|| <= eps for all modules at once, nonlinear edges included in J."""
    low = min(m.disc[0] - m.disc[1] for m in whole.modules)
    high = max(m.disc[0] + m.disc[1] for m in whole.modules)
    eps = ((high - low) / 2 + whole.edge_norm) * (1 + 4 * UNIT)
    return in_disc((low + high) / 2, eps, whole.norm, whole.symmetric_norm)


def in_disc(nu: float, eps: float, omega: float, sigma: float) -> StepProof:
    """sqrt((1 - dt nu)^2 + 2 dt |1 - dt nu| sigma + dt^2 omega^2) + dt eps, of Euler's step.

    For ||J + nu I - K|| <= eps, omega >= ||K|| and sigma >= ||sym K||, which counts, and not its largest
    eigenvalue, as 1 - dt nu may be negative. The longest is 2 (nu - eps) / (omega^2 + nu^2 - eps^2),
    less what rounding of the coupling takes.
    """

    def factor(dt: float) -> float:
        left, turn = 1 - dt * nu, dt * omega
        rotation = left * left + 2 * dt * abs(left) * sigma + turn * turn
        return (math.sqrt(rotation) + dt * eps) * (1 + 8 * UNIT)

    largest = 2 * (nu - eps) / (omega * omega + (nu - eps) * (nu + eps)) if nu > eps else 0.0
    return StepProof(factor, rounding.largest_proven(largest, lambda dt: factor(dt) < 1), interval=True)


CLOSED_FORMS = {"euler": disc_step, "imex": imex_step, "exponential-euler": exponential_euler_step}


def chord(proof: StepProof) -> StepProof:
    """The factor of I + dt J, convex in dt, by chords from (0, 1) over half way to (max_dt, 1)."""
    largest = proof.max_dt
    if not 0 < largest < math.inf:
        return StepProof(lambda dt: math.inf, 0.0)
    knots, factors = (0.0, largest / 2, largest), (1.0, min(1.0, proof.factor(largest / 2)), 1.0)

    def factor(dt: float) -> float:
        return float(np.interp(dt, knots, factors)) * (1 + 8 * UNIT) if dt <= largest else math.inf

    return StepProof(factor, largest)
