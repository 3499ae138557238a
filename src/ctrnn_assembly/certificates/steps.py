"""Whether the step of a grid scheme contracts: a bound on its factor, and the longest step.

In the coordinates of `interconnection` the differences of two states follow y' = J y + K y with
J = A + B (slopes) C from the modules, and a step (`ctrnn_assembly.schemes`) multiplies their norm by at
most, over all slopes:

| scheme | bound on the factor |
|---|---|
| euler | disc or LMI, the better of the two, for every cluster of modules that K joins |
| imex | Euler factor of the modules alone / (1 - dt sigma), sigma = lmax(sym K): 0 for feedback |
| exponential-euler | e^{-dt s} + (1 - e^{-dt s}) / s sup ||W D / tau||, s = -lmax(sym(K - 1 / tau)) |
| the same, K = 0, one tau | Euler factor of the step tau (1 - e^{-dt / tau}), if better |

Nonlinear edges between clusters add dt times their gains to the matrix of the clusters' factors. For
imex, ||(I - dt K)^-1|| <= 1 / (1 - dt sigma) whatever ||K|| is. Source: THEORY section 6.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate

import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from ctrnn_assembly.certificates import rounding
from ctrnn_assembly.certificates.interconnection import Interconnection, block_norms
from ctrnn_assembly.certificates.result import StepProof
from ctrnn_assembly.certificates.rounding import DENSE, UNIT, largest_proven, spectral_norm
from ctrnn_assembly.linalg import symmetric_part


@dataclass(frozen=True)
class StepLMI:
    """The LMI of one cluster of modules, without nonlinear edges.

    With the modules' multipliers scaled by kappa > 0 and G = [A + K, B],

        [[-2 sym(A + K) - 2 mu I, -(B + kappa C^T)], [., 2 kappa I]] - dt G^T G > 0

    proves q^2 = 1 - 2 dt mu, by a Cholesky factorisation; kappa and mu are searched without rigour. It
    is as tight as a quadratic metric and these multipliers allow.
    """

    whole: Interconnection

    @cached_property
    def matrices(self) -> tuple[Tensor, Tensor, Tensor, float, float]:
        """A + K, B and C, (n, n) each, and the errors of A + K and of B with C."""
        modules = self.whole.modules
        weighted = [module.system.weigh(module.T) for module in modules]
        A = torch.block_diag(*(module.system.A for module in modules)) + self.whole.K
        B, C = (torch.block_diag(*(part[k] for part in weighted)) for k in (0, 1))
        off_A = math.hypot(*(module.system.A_error for module in modules)) + self.whole.K_error
        return (A, B, C, off_A + 4 * UNIT * float(A.norm()), math.hypot(*(part[2] for part in weighted)))

    @cached_property
    def best(self) -> tuple[float, float]:
        """The largest dt at mu = 0 over kappa, and that kappa; unproven."""
        tries = 16 if len(self.whole.K) <= DENSE else 5
        kappa = _best_kappa(lambda k: -math.log(self._largest(k) or 1e-300), xatol=0.02, maxiter=tries)
        return self._largest(kappa), kappa

    @cached_property
    def max_dt(self) -> float:
        dt, kappa = self.best
        return largest_proven(dt, lambda shorter: self._proves(shorter, 0.0, kappa))

    def factor(self, dt: float) -> float:
        largest, kappa = self.best
        if not 0 < dt < largest:
            return math.inf
        n = len(self.whole.K)
        if n <= DENSE:
            tries = 8 if n > 256 else 20
            other = _best_kappa(lambda k: -max(-1e9, self._mu(dt, k)), xatol=0.05, maxiter=tries)
            kappa = max(kappa, other, key=lambda k: self._mu(dt, k))
        sought = self._mu(dt, kappa)
        mu = largest_proven(sought, lambda mu: 2 * dt * mu < 1 and self._proves(dt, mu, kappa))
        return math.sqrt(1 - 2 * dt * mu) * (1 + 4 * UNIT) if mu > 0 else math.inf

    def _largest(self, kappa: float) -> float:
        """1 / ||G P^-1/2||^2 for P the LMI's matrix at dt = 0, mu = 0; 0 if P is not positive."""
        columns = []
        # Units whose couplings do not cancel: one group a module for feedback, else one for all.
        sizes = self.whole.sizes if self.whole.is_feedback else (len(self.whole.K),)
        for size, end in zip(sizes, accumulate(sizes), strict=True):
            group = slice(end - size, end)
            A, B, C = (X[group, group] for X in self.matrices[:3])
            corner = -(B + kappa * C.mT)
            eye = torch.eye(len(A), dtype=A.dtype)
            top = torch.cat([-2 * symmetric_part(A), corner], dim=1)
            P = torch.cat([top, torch.cat([corner.mT, 2 * kappa * eye], dim=1)])
            factor, failed = torch.linalg.cholesky_ex(P)
            if int(failed):
                return 0.0
            G = torch.cat([X[:, group] for X in self.matrices[:2]], dim=1)
            columns.append(torch.linalg.solve_triangular(factor.mT, G, upper=True, left=False))
        norm = rounding.guess_norm(torch.cat(columns, dim=1))
        return 1 / norm**2 if 0 < norm < math.inf else 0.0

    def _mu(self, dt: float, kappa: float) -> float:
        """The largest mu that the LMI allows, by eliminating w; unproven, -inf if there is none."""
        A, B, C = self.matrices[:3]
        H = 2 * kappa * torch.eye(len(A), dtype=A.dtype) - dt * B.mT @ B
        factor, failed = torch.linalg.cholesky_ex(H)
        if int(failed):
            return -math.inf
        Y = B + kappa * C.mT + dt * (A.mT @ B)
        half = torch.linalg.solve_triangular(factor.mT, Y, upper=True, left=False)
        outer = 2 * symmetric_part(A) + dt * (A.mT @ A) + half @ half.mT
        return -rounding.guess_largest(symmetric_part(outer)) / 2

    def _proves(self, dt: float, mu: float, kappa: float) -> bool:
        """Whether the LMI holds, rounding accounted for."""
        A, B, C, off_A, off_B = self.matrices
        n, G = len(A), torch.cat([A, B], dim=1)
        Z = -dt * (G.mT @ G)
        Z[:n, :n] -= 2 * symmetric_part(A)
        Z[:n, n:] -= B + kappa * C.mT
        Z[n:, :n] -= B.mT + kappa * C
        Z.diagonal()[:n] -= 2 * mu
        Z.diagonal()[n:] += 2 * kappa
        Z = symmetric_part(Z)
        size, off_G = float(G.norm()), off_A + off_B
        gram = size**2 * rounding.gamma(n + 4) + 2 * size * off_G + off_G**2
        sums = 8 * UNIT * (float(Z.norm()) + 2 * mu * n + 2 * kappa * n)
        return rounding.is_positive_definite(Z, 2 * off_A + (1 + kappa) * off_B + dt * gram + sums)


def euler_step(whole: Interconnection, alone: StepProof | None = None) -> StepProof:
    """Of clusters of modules, with (c, c) bounds on the nonlinear edges between them."""
    clusters, gains = whole.clusters(), whole.edge_gains
    proofs = [(disc_step(part), StepLMI(part)) for part in map(whole.part, clusters)]
    if gains is not None:
        order = [k for cluster in clusters for k in cluster]
        gains = block_norms(gains[order][:, order], tuple(len(cluster) for cluster in clusters))

    def factor(dt: float) -> float:
        factors = [min(disc.factor(dt), lmi.factor(dt)) for disc, lmi in proofs]
        if gains is None or not all(math.isfinite(factor) for factor in factors):
            return max(factors)
        joined = torch.diag(torch.tensor(factors, dtype=torch.float64)) + dt * gains
        return spectral_norm(joined, 1e-14 * float(joined.norm()))

    largest = min(max(disc.max_dt, lmi.max_dt) for disc, lmi in proofs)
    return StepProof(factor, largest if gains is None else last_contracting(factor, largest))


def imex_step(whole: Interconnection, alone: StepProof | None = None) -> StepProof:
    """y+ = (I - dt K)^-1 (y + dt J y)."""
    alone = alone or euler_step(whole.uncoupled)

    def factor(dt: float) -> float:
        implicit = dt * whole.cost
        return alone.factor(dt) / (1 - implicit) * (1 + 4 * UNIT) if implicit < 1 else math.inf

    exact = whole.cost == 0
    return StepProof(factor, alone.max_dt if exact else last_contracting(factor, alone.max_dt))


def exponential_euler_step(whole: Interconnection, alone: StepProof | None = None) -> StepProof:
    """Exact in K - 1 / tau and explicit in W phi, cluster by cluster where no edge joins these."""
    parts, edges = [whole], whole.edge_gains
    if edges is None:
        parts = [whole.part(cluster) for cluster in whole.clusters()]
    proofs = [_exponential_euler_of(part, alone if part is whole else None) for part in parts]
    largest = min(proof.max_dt for proof in proofs)
    return StepProof(lambda dt: max(proof.factor(dt) for proof in proofs), largest, proofs[0].advice)


def _exponential_euler_of(whole: Interconnection, alone: StepProof | None) -> StepProof:
    """Every dt by the norms, or the bound of K = 0."""
    decay = (1 / float(whole.tau.max()) - whole.cost) * (1 - 4 * UNIT)  # s of the table
    explicit, edges = max(module.norm for module in whole.modules), whole.edge_gains
    if edges is not None:
        explicit += spectral_norm(edges, 1e-14 * float(edges.norm()))
    tau, leak = float(whole.tau[0]), None
    if edges is None and not bool(whole.K.any()) and bool((whole.tau == tau).all()):
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
    max_dt = math.inf if every else -math.log1p(-share) * tau
    return StepProof(factor, max_dt, "||W D|| exceeds the leak in the metric, use imex")


# From the whole and, where it is known, the Euler step of its modules alone.
STEP_PROOFS: dict[str, Callable[[Interconnection, StepProof | None], StepProof]] = {
    "euler": euler_step,
    "imex": imex_step,
    "exponential-euler": exponential_euler_step,
}


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
    """nu, eps with ||J + nu I|| <= eps for all modules at once."""
    low = min(m.disc[0] - m.disc[1] for m in whole.modules)
    high = max(m.disc[0] + m.disc[1] for m in whole.modules)
    return (low + high) / 2, (high - low) / 2 * (1 + 4 * UNIT)


def _best_kappa(loss: Callable[[float], float], *, xatol: float, maxiter: int) -> float:
    """The kappa > 1 of the least loss, on a logarithmic scale of kappa - 1."""
    search = {"bounds": (-3.5, 1.5), "options": {"xatol": xatol, "maxiter": maxiter}}
    found = minimize_scalar(lambda t: loss(1 + 10**t), method="bounded", **search)
    return 1 + 10 ** float(found.x)


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
