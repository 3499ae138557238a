"""Whether the step of a grid scheme contracts: a bound on its factor, and steps up to which all do.

In the coordinates of `interconnection` the differences y of two states follow

    y' = A y + X w,    w o (Z y - w) >= 0,

the whole assembly as one system, and a step of any row of `SCHEMES` is

    y+ = y + dt Q (A y + X w),    dt Q = C tau of the row for the coupling K,

because A - I = C (L - I) in every row. `StepLMI` bounds its factor. Bounds in closed form are kept where
they prove every dt of an interval, which no proof of single dt does, or cost far less for many units:

| scheme | bound on the factor |
|---|---|
| euler | `disc_step` |
| imex | Euler factor of the modules alone / (1 - dt sigma), sigma = lmax(sym K): 0 for feedback |
| exponential-euler | e^{-dt s} + (1 - e^{-dt s}) / s sup ||W D / tau||, s = -lmax(sym(K - 1 / tau)) |
| the same, K = 0, one tau | Euler factor of the step tau (1 - e^{-dt / tau}), if better |

Source: THEORY section 6.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate

import torch
from scipy.optimize import brentq, minimize, minimize_scalar
from torch import Tensor

from ctrnn_assembly.certificates import rounding
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.result import StepProof
from ctrnn_assembly.certificates.rounding import DENSE, UNIT, largest_proven, spectral_norm
from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.schemes import SCHEMES

OPTIMISED = 128  # channels up to which every multiplier is searched by itself
WORST = 1e9  # stands for infinity in a search
SHARP = 256  # units beyond which a bound in closed form below 1 is enough


@dataclass(frozen=True)
class Weighed:
    """A step with its multipliers T: Q A, B = Q X T^-1/2 and C = T^1/2 Z, and bounds on their errors."""

    A: Tensor
    B: Tensor
    C: Tensor
    A_error: float
    B_error: float

    def eliminated(self, dt: float) -> tuple[Tensor, Tensor] | None:
        """The matrix whose -lmax / 2 is mu, and H^-1 Y^T, which takes y to the worst w; unproven."""
        A, B = self.A, self.B
        H = 2 * torch.eye(B.shape[1], dtype=B.dtype) - dt * B.mT @ B
        factor, failed = torch.linalg.cholesky_ex(H)
        if int(failed):
            return None
        Y = B + self.C.mT + dt * (A.mT @ B)
        half = torch.linalg.solve_triangular(factor, Y.mT, upper=False)
        S = 2 * symmetric_part(A) + dt * (A.mT @ A) + half.mT @ half
        return symmetric_part(S), torch.linalg.solve_triangular(factor.mT, half, upper=True)

    def mu(self, dt: float) -> float:
        """The largest mu that the LMI allows; unproven, -inf if there is none."""
        found = self.eliminated(dt)
        return -math.inf if found is None else -rounding.guess_largest(found[0]) / 2

    def proves(self, dt: float, mu: float) -> bool:
        """Whether the LMI holds, rounding accounted for.

        For errors a of A and b of B and C, each in the spectral norm, the computed matrix is off by
        2 a + 2 b in the terms without dt, by dt (2 ||G|| (a + b) + (a + b)^2) in dt G^T G, whose
        n products a sum round by gamma_n ||G||_F^2 more, and by a few roundings of each entry.
        """
        n, m = self.B.shape
        G, off = torch.cat([self.A, self.B], dim=1), self.A_error + self.B_error
        Z = -dt * (G.mT @ G)
        Z[:n, :n] -= 2 * symmetric_part(self.A)
        Z[:n, n:] -= self.B + self.C.mT
        Z[n:, :n] -= self.B.mT + self.C
        Z.diagonal()[:n] -= 2 * mu
        Z.diagonal()[n:] += 2
        size = rounding.frobenius(G)
        gram = size**2 * rounding.gamma(n + 4) + 2 * size * off + off**2
        entries = float(Z.norm() + 2 * G.norm() + self.C.norm()) + 2 * abs(mu) * n**0.5 + 2 * m**0.5
        sums = 8 * UNIT * (entries + dt * size**2)
        return rounding.is_positive_definite(symmetric_part(Z), 2 * off + dt * gram + sums)


@dataclass(frozen=True)
class StepLMI:
    """The LMI of a step: with multipliers T (m,) > 0 and G = [Q A, B],

        [[-2 sym(Q A) - 2 mu I, -(B + C^T)], [., 2 I]] - dt G^T G > 0

    proves q^2 = 1 - 2 dt mu, by a Cholesky factorisation. It is q^2 >= lmax(S^T S + Y H^-1 Y^T) with
    S = I + dt Q A, H = 2 T - G^T G, without the cancellation of 1 for short steps. T, over which the
    bound is convex, and mu are searched without rigour.
    """

    whole: Interconnection
    scheme: str
    _known: dict[float, tuple[Tensor, float] | None] = field(default_factory=dict)

    def propagator(self, dt: float) -> tuple[Tensor, float] | None:
        """Q of the scheme's own row, and a bound on its distance from the exact one; None for I."""
        if self.scheme == "euler":
            return None
        if dt not in self._known:
            self._known[dt] = self._propagator(dt)
        return self._known[dt]

    def _propagator(self, dt: float) -> tuple[Tensor, float]:
        K, tau, eye = self.whole.K, self.whole.tau, torch.eye(len(self.whole.K), dtype=torch.float64)
        try:
            C = SCHEMES[self.scheme].pair(dt / tau, tau[:, None] * K)[1]
        except (SolverError, torch.linalg.LinAlgError):
            return eye, math.inf
        Q = C * (tau / dt)
        scaled = dt * K
        off = dt * self.whole.K_error * (1 + UNIT)
        if self.scheme == "imex":
            step = eye - scaled
            off += 2 * UNIT * float(step.norm() + scaled.norm())
            return Q, rounding.inverse_error(step, Q, off)
        assert self.scheme == "exponential-euler"
        F = scaled - torch.diag(dt / tau)
        off += 4 * UNIT * float(F.norm() + scaled.norm() + (dt / tau).norm())
        growing = dt * (self.whole.cost - 1 / float(tau.max())) + off
        growth = math.exp(max(0.0, growing)) * (1 + 1e-12) if growing < 700 else math.inf
        exact, error = rounding.exponential_integral(F, off, growth)
        return Q, error + 1.01 * float((Q - exact).norm()) + 1e-300

    def weighed(self, T: Tensor, dt: float) -> Weighed:
        system = self.whole.system[0]
        B, C, B_error = system.weigh(T)
        A, A_error, row = system.A, system.A_error, self.propagator(dt)
        if row is None:
            return Weighed(A, B, C, A_error, B_error)
        Q, error = row
        size = rounding.frobenius(Q)
        share = rounding.gamma(len(Q) + 4) * size + error  # of what ||Q|| multiplies
        # Q A - Q' A' = Q (A - A') + (Q - Q') A'; 1 % for the rounding of the norms themselves
        return Weighed(
            Q @ A,
            Q @ B,
            C,
            1.01 * (size * A_error + share * (float(A.norm()) + A_error)),
            1.01 * (max(size, 1.0) * B_error + share * (float(B.norm()) + B_error)),
        )

    @cached_property
    def best(self) -> tuple[float, Tensor]:
        """The largest dt of Euler's step at mu = 0 over T, and that T; unproven."""
        T0, tries = self.whole.system[1], 16 if len(self.whole.K) <= DENSE else 5

        def loss(k: float) -> float:
            return -math.log(self._largest(k * T0) or 1e-300)

        T = _best_kappa(loss, 1.0, xatol=0.02, maxiter=tries) * T0
        largest = self._largest(T)
        for _ in range(6 if len(T) <= OPTIMISED else 0):
            other = self._optimised(T, 1.02 * largest) if largest > 0 else T
            longer = self._largest(other)
            if longer <= largest * (1 + 1e-6):
                break
            gained, largest, T = longer / largest - 1, longer, other
            if gained < 1e-3:
                break
        return largest, T

    @cached_property
    def max_dt(self) -> float:
        """Of Euler's step, all of whose shorter steps contract as well."""
        dt, T = self.best
        weighed = self.weighed(T, dt)
        return largest_proven(dt, lambda shorter: weighed.proves(shorter, 0.0))

    def factor(self, dt: float) -> float:
        """A proven bound on the factor; infinite for none."""
        if not 0 < dt < 1e100:
            return math.inf
        weighed = self._searched(dt)
        mu = weighed.mu(dt)
        for share in rounding.BACK_OFFS if math.isfinite(mu) else ():
            lower = mu - share * abs(mu)
            if weighed.proves(dt, lower):
                gone = 2 * dt * lower
                return math.sqrt(max(0.0, 1 - gone) + 4 * UNIT * (1 + abs(gone))) * (1 + 4 * UNIT)
        return math.inf

    def _searched(self, dt: float) -> Weighed:
        """With the best T that is found: the modules' own, scaled, and then each by itself."""
        T0 = self.whole.system[1]
        least = max(1.0, 0.5 * dt * rounding.guess_norm(self.weighed(T0, dt).B) ** 2)

        def loss(k: float) -> float:
            return -max(-WORST, self.weighed(k * T0, dt).mu(dt))

        tries = 8 if len(self.whole.K) > SHARP else 20
        T = _best_kappa(loss, least, xatol=0.05, maxiter=tries) * T0
        if len(T) <= OPTIMISED and not self._is_sharp(T, dt):
            T = self._optimised(T, dt)
        found = self.weighed(T, dt)
        if self.scheme == "euler" and dt <= self.best[0]:
            found = max(found, self.weighed(self.best[1], dt), key=lambda one: one.mu(dt))
        return found

    def _is_sharp(self, T: Tensor, dt: float) -> bool:
        """Whether the bound exceeds the factor at the least or the largest slopes by little."""
        weighed = self.weighed(T, dt)
        ends = (weighed.A, weighed.A + weighed.B @ weighed.C)
        known = max(rounding.top_eigenvalue(2 * symmetric_part(J) + dt * J.mT @ J) for J in ends)
        return weighed.mu(dt) >= -known / 2 - 1e-4 * abs(known)

    def _optimised(self, T: Tensor, dt: float) -> Tensor:
        """The T > 0 of the largest mu near T, by L-BFGS in log T on a smoothed largest eigenvalue.

        By the envelope theorem d lmax / d log T_k = 2 w_k ((C y)_k - w_k), w the worst for y.
        """
        best = [(self.weighed(T, dt).mu(dt), T)]
        start, size = T.log(), float((1 / self.whole.tau).max())

        def loss(shift: object, blur: float) -> tuple[float, object]:
            here = (start + torch.as_tensor(shift)).exp()
            weighed = self.weighed(here, dt)
            found = weighed.eliminated(dt)
            if found is None or not bool(torch.isfinite(found[0]).all()):
                return WORST, torch.zeros_like(T).numpy()
            values, vectors = torch.linalg.eigh(found[0])
            if -float(values[-1]) / 2 > best[0][0]:
                best[0] = (-float(values[-1]) / 2, here)
            width = blur * float(values[-1] - values[0]) + 1e-300
            weights = torch.softmax(values / width, 0)
            w = found[1] @ vectors
            slope = (w * (weighed.C @ vectors - w)) @ weights
            smooth = float(values[-1]) + width * float(torch.logsumexp((values - values[-1]) / width, 0))
            return smooth / (2 * size), (slope / size).numpy()

        for blur in (1e-2, 1e-4) if math.isfinite(best[0][0]) else ():
            options = {"maxiter": 25, "maxfun": 40}
            around = (best[0][1].log() - start).numpy()
            minimize(loss, around, args=(blur,), jac=True, method="L-BFGS-B", options=options)
        return best[0][1]

    def _largest(self, T: Tensor) -> float:
        """1 / ||G P^-1/2||^2 for P the LMI's matrix at dt = 0, mu = 0; 0 if P is not positive."""
        columns, n = [], len(self.whole.K)
        all_A, all_B, all_C = (getattr(self.weighed(T, 0.0), name) for name in "ABC")
        # Units whose couplings do not cancel: one group a module for feedback, else one for all.
        apart = self.whole.is_feedback and not self.whole.edges
        sizes = self.whole.sizes if apart else (n,)
        for size, end in zip(sizes, accumulate(sizes), strict=True):
            group = slice(end - size, end)
            channels = group if apart else slice(None)
            A, B, C = all_A[group, group], all_B[group, channels], all_C[channels, group]
            corner = -(B + C.mT)
            eye = torch.eye(B.shape[1], dtype=A.dtype)
            top = torch.cat([-2 * symmetric_part(A), corner], dim=1)
            P = torch.cat([top, torch.cat([corner.mT, 2 * eye], dim=1)])
            factor, failed = torch.linalg.cholesky_ex(P)
            if int(failed):
                return 0.0
            G = torch.cat([all_A[:, group], all_B[:, channels]], dim=1)
            columns.append(torch.linalg.solve_triangular(factor.mT, G, upper=True, left=False))
        norm = rounding.guess_norm(torch.cat(columns, dim=1))
        return 1 / norm**2 if 0 < norm < math.inf else 0.0


def euler_step(whole: Interconnection, alone: StepProof | None = None) -> StepProof:
    """Of the clusters of modules that coupling joins."""
    return _of_parts(whole, _euler_of)


def imex_step(whole: Interconnection, alone: StepProof | None = None) -> StepProof:
    """y+ = (I - dt K)^-1 (y + dt J y)."""
    return _imex_of(whole, alone) if alone else _of_parts(whole, _imex_of)


def exponential_euler_step(whole: Interconnection, alone: StepProof | None = None) -> StepProof:
    """Exact in K - 1 / tau and explicit in W phi."""
    return _exponential_euler_of(whole, alone) if alone else _of_parts(whole, _exponential_euler_of)


# From the whole and, where closed forms are to do, the Euler step of its modules alone.
STEP_PROOFS: dict[str, Callable[[Interconnection, StepProof | None], StepProof]] = {
    "euler": euler_step,
    "imex": imex_step,
    "exponential-euler": exponential_euler_step,
}


def _of_parts(
    whole: Interconnection, prove: Callable[[Interconnection, StepProof | None], StepProof]
) -> StepProof:
    """The slowest of the clusters."""
    proofs = [prove(part, None) for part in whole.parts]
    largest = min(proof.max_dt for proof in proofs)
    first = proofs[0]
    return StepProof(
        lambda dt: max(proof.factor(dt) for proof in proofs), largest, first.advice, first.interval
    )


def _euler_of(whole: Interconnection, alone: StepProof | None) -> StepProof:
    disc, lmi = disc_step(whole), StepLMI(whole, "euler")
    enough = len(whole.K) > DENSE and disc.max_dt > 0

    def factor(dt: float) -> float:
        known = disc.factor(dt)
        return known if enough and known < 1 else min(known, lmi.factor(dt))

    largest = disc.max_dt if enough else max(disc.max_dt, lmi.max_dt)
    return StepProof(factor, largest, interval=True)


def _or_lmi(whole: Interconnection, scheme: str, closed: StepProof, advice: str) -> StepProof:
    """The better of a bound in closed form and the LMI, which is left out where it costs too much."""
    lmi, enough = StepLMI(whole, scheme), len(whole.K) > SHARP

    def factor(dt: float) -> float:
        known = closed.factor(dt)
        return known if enough and known < 1 else min(known, lmi.factor(dt))

    return StepProof(factor, closed.max_dt, advice)


def _imex_of(whole: Interconnection, alone: StepProof | None) -> StepProof:
    modules = alone or euler_step(whole.uncoupled)

    def factor(dt: float) -> float:
        implicit = dt * whole.cost
        return modules.factor(dt) / (1 - implicit) * (1 + 4 * UNIT) if implicit < 1 else math.inf

    exact = whole.cost == 0
    closed = StepProof(factor, modules.max_dt if exact else last_contracting(factor, modules.max_dt))
    return closed if alone else _or_lmi(whole, "imex", closed, closed.advice)


def _exponential_euler_of(whole: Interconnection, alone: StepProof | None) -> StepProof:
    """Every dt by the norms, or the bound of K = 0; else as far as Euler's step is near."""
    decay = (1 / float(whole.tau.max()) - whole.cost) * (1 - 4 * UNIT)  # s of the table
    explicit = max(module.norm for module in whole.modules) + whole.edge_norm
    tau, leak = float(whole.tau[0]), None
    alone_too = not whole.edges and not whole.K_error and not bool(whole.K.any())
    if alone_too and bool((whole.tau == tau).all()):
        leak = alone or euler_step(whole.uncoupled)

    def factor(dt: float) -> float:
        if decay <= 0:
            return math.inf
        gone = -math.expm1(-dt * decay)
        bound = math.exp(-dt * decay) + gone / decay * explicit
        if leak is not None:
            bound = min(bound, leak.factor(-tau * math.expm1(-dt / tau)))
        return bound * (1 + 16 * UNIT)

    share = 0.0 if leak is None else leak.max_dt / tau * (1 - 1e-12)
    every = 0 < decay > explicit * (1 + 1e-9) or share >= 1
    largest = math.inf if every else -math.log1p(-share) * tau
    closed = StepProof(factor, largest or _near_euler(whole))
    advice = "||W D|| exceeds the leak in the metric, use imex"
    return closed if alone else _or_lmi(whole, "exponential-euler", closed, advice)


def _near_euler(whole: Interconnection) -> float:
    """A dt up to which exponential Euler contracts as it is near to forward Euler; 0 for none.

    Its step is I + dt phi_1(dt F) J, F = K - 1 / tau, phi_1(G) = int_0^1 e^{s G} ds, and
    ||phi_1(dt F) - I|| <= dt ||F|| / 2 where ||e^{t F}|| <= 1. By convexity Euler's factor is at most
    1 - dt (1 - q) / h up to any h where it is q; so dt < 2 (1 - q) / (h ||F|| ||J||) is enough.
    """
    if whole.cost >= 1 / float(whole.tau.max()) * (1 - 4 * UNIT):
        return 0.0
    euler, system = euler_step(whole), whole.system[0]
    h = euler.max_dt / 2
    q = euler.factor(h) if h > 0 else 1.0
    fixed = whole.norm + 1 / float(whole.tau.min())
    feedback = spectral_norm(system.X, float(system.X_error.norm()))
    feedback *= spectral_norm(system.Z, float(system.Z_error.norm()))
    size = fixed * (spectral_norm(system.A, system.A_error) + feedback)
    return min(h, 2 * (1 - q) / (h * size) * (1 - 1e-9)) if q < 1 and math.isfinite(size) else 0.0


def disc_step(whole: Interconnection) -> StepProof:
    """sqrt((1 - dt nu)^2 + 2 dt |1 - dt nu| sigma + dt^2 omega^2) + dt eps, sigma = ||sym K||.

    1 - dt nu may be negative, so ||sym K|| counts and not its largest eigenvalue. The longest step is
    2 (nu - eps) / (omega^2 + nu^2 - eps^2), less what rounding of the coupling takes.
    """
    nu, eps = common_disc(whole)

    def factor(dt: float) -> float:
        left, turn = 1 - dt * nu, dt * whole.norm
        rotation = left * left + 2 * dt * abs(left) * whole.symmetric_norm + turn * turn
        return (math.sqrt(rotation) + dt * eps) * (1 + 8 * UNIT)

    if nu <= eps:
        return StepProof(factor, 0.0)
    largest = 2 * (nu - eps) / (whole.norm * whole.norm + (nu - eps) * (nu + eps))
    return StepProof(factor, largest_proven(largest, lambda dt: factor(dt) < 1))


def common_disc(whole: Interconnection) -> tuple[float, float]:
    """nu, eps with ||J + nu I|| <= eps for all modules at once, nonlinear edges included in J."""
    low = min(m.disc[0] - m.disc[1] for m in whole.modules)
    high = max(m.disc[0] + m.disc[1] for m in whole.modules)
    return (low + high) / 2, ((high - low) / 2 + whole.edge_norm) * (1 + 4 * UNIT)


def _best_kappa(loss: Callable[[float], float], least: float, *, xatol: float, maxiter: int) -> float:
    """The kappa > `least` of the least loss, on a logarithmic scale of the difference."""
    search = {"bounds": (-3.5, 1.5), "options": {"xatol": xatol, "maxiter": maxiter}}
    found = minimize_scalar(lambda t: loss(least * (1 + 10**t)), method="bounded", **search)
    return least * (1 + 10 ** float(found.x))


def last_contracting(factor: Callable[[float], float], largest: float) -> float:
    """A dt up to `largest` with factor(dt) < 1, by back-offs, halving and Brent's method; 0 for none.

    Contraction of I + dt J for every J of a convex set holds on an interval of dt.
    """
    proven = [0.0]

    @cache
    def beyond(dt: float) -> float:
        """factor - 1, cut off at 1 and never 0."""
        value = factor(dt)
        if value < 1:
            proven.append(dt)
        return value - 1 if value < 1 else max(min(value, 2.0) - 1, 1e-12)

    shares = [1.0, *(1 - share for share in rounding.BACK_OFFS[:2]), *(0.5**k for k in range(1, 30))]
    share = next((share for share in shares if beyond(share * largest) < 0), 0.0)
    if 0 < share <= 0.5:
        low = share * largest
        brentq(beyond, low, 2 * low, xtol=2**-14 * low)
    return max(proven)
