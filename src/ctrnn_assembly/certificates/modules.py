"""The rate of one module in its metric: the S-procedure over a few families of multipliers.

For a difference of two states a module is the `LureSystem` y' = A y + X w, and for any diagonal T > 0

    d|y|^2/dt <= 2 y^T S y,    S = sym(A) + (B + C^T)(B + C^T)^T / 4,    B = X T^-1/2,  C = T^1/2 Z.

Each matrix carries a bound on what float64 rounding did to it. Every module theorem is one T, up to a
factor that is searched; every factor is sound. An r-form module is the dual, W^T in M^-1, whose T is
turned over: T = 1 / (g^2 T_dual). Theorem 1 is also evaluated as it stands, which needs no positive T.
Source: THEORY sections 1 and 2.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Activation
from ctrnn_assembly.certificates import rounding
from ctrnn_assembly.certificates.lmi import LureSystem, Weighed, refined
from ctrnn_assembly.certificates.rounding import UNIT, balanced, largest_eigenvalue
from ctrnn_assembly.linalg import majorant, symmetric_part
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Terms

FLOOR = 1e-8  # of T relative to its family's largest entry: silent units need some T > 0
LOG_Z = 16.0
REFINED = 64  # units up to which every multiplier of a dense metric is searched by itself
WORST = 1e100  # stands for infinity in a search, whose differences must stay finite


@dataclass(frozen=True)
class ModuleInMetric:
    """One module, phi outside (x-form) or `inside` (r-form); an inverse of theta is not trusted."""

    W: Tensor
    phi: Activation
    inside: bool
    theta: Tensor
    tau: Tensor
    change: float | Tensor = 0.0  # as in `Uncertainty`

    @cached_property
    def slack(self) -> float:
        """A bound on ||left dW D right|| and ||left D dW right|| over slopes D and dW: an error of A."""
        return self.phi.g * rounding.norm_within(self.change, self.balance, self.balance)

    @cached_property
    def balance(self) -> rounding.Balance:
        return rounding.Balance.of(self.theta, self.tau)


def _system(module: ModuleInMetric) -> LureSystem:
    W, balance, (lo, hi) = module.W, module.balance, module.phi.slope
    scaled, off = balanced(W, balance, balance)
    A = lo * scaled - torch.diag(1 / module.tau)
    A_error = abs(lo) * off + 8 * UNIT * float(torch.linalg.matrix_norm(A)) + module.slack
    g, eye, none = hi - lo, torch.eye(len(W), dtype=W.dtype), torch.zeros_like(W)
    if g == 0:  # linear: no feedback is left
        return LureSystem(g, A, none, none, A_error, none[0], none[0])
    X, X_off = balance.lower(eye if module.inside else W)
    Z, Z_off = balance.raise_(W if module.inside else eye)
    X_error = torch.linalg.vector_norm(X_off, dim=0)
    Z_error = g * torch.linalg.vector_norm(Z_off + 4 * UNIT * Z.abs(), dim=1)
    return LureSystem(g, A, X, g * Z, A_error, X_error, Z_error)


def modules_of(terms: Terms, metric: Metric) -> list[ModuleInMetric]:
    """Every module of a field, in its part of the metric."""
    found, start, pre, post = [], 0, terms.pre.units, terms.post.units
    taus = terms.tau.double().split(terms.sizes)
    changes = (0.0,) * len(taus) if terms.within is None else terms.within.W
    for W, factor, tau, change in zip(terms.blocks, metric.factors, taus, changes, strict=True):
        inside = pre[start] == ACTIVATIONS["identity"]
        phi = (post if inside else pre)[start]
        found.append(ModuleInMetric(W.double(), phi, inside, factor.theta.double(), tau, change))
        start += len(tau)
    return found


@dataclass(frozen=True)
class ModuleBound:
    """What is proven of one module, per unit of time, in the metric and over all slopes.

    `T` is the multiplier, (n,); `rate` a lower bound, with the rounding `error` taken off it. The
    `s_procedure_matrix` S has d|y|^2/dt <= 2 y^T S y and lmax(S) <= -rate, up to `error`. `norm` bounds
    ||W D|| / tau, and `disc` is nu, eps with ||J + nu I|| <= eps.
    """

    system: LureSystem
    T: Tensor
    rate: float
    error: float
    s_procedure_matrix: Tensor
    theorem: str
    norm: float
    disc: tuple[float, float]


def prove_module(module: ModuleInMetric) -> ModuleBound:
    system, balance = _system(module), module.balance
    T, theorem = _best_multiplier(system, _multipliers(module), refine=module.theta.ndim == 2)
    S, error = system.s_procedure_matrix(T)
    rate = -largest_eigenvalue(S, error)
    direct = _theorem1(module)
    if direct > rate + 1e-9 * abs(direct):
        rate, theorem, error = direct, "Theorem 1", 0.0
        S = -direct * torch.eye(len(S), dtype=S.dtype)
    # ||W D||, or ||D W|| of the r-form, over all slopes
    norm = module.phi.g * rounding.norm_under_slopes(module.W, balance, balance, inside=module.inside)
    near = rate - 1e-6 * abs(rate)
    by_norm = float((1 / module.tau).min()) - norm - module.slack >= near
    name = _name(module, theorem, direct >= near, by_norm)
    return ModuleBound(system, T, rate, error, S, name, norm + module.slack, _disc(module, norm))


def _multipliers(module: ModuleInMetric) -> dict[str, Tensor]:
    """The families T_0, (n,) each and positive, by theorem."""
    W, phi, theta = module.W, module.phi, module.theta
    g = phi.slope[1] - phi.slope[0]
    if g == 0:
        return {"linear": torch.ones_like(W[0])}
    if module.inside:
        W, theta = W.mT, 1 / theta if theta.ndim == 1 else torch.linalg.inv_ex(theta)[0].mT
    M = torch.diag(theta**2) if theta.ndim == 1 else theta.mT @ theta
    found = {"Theorem 5": M.diagonal(), "Theorem 2": torch.ones_like(M.diagonal())}
    if theta.ndim == 1:
        A = (theta[:, None] * majorant(W, phi.monotone)) / theta
        v = rounding.top_vector(symmetric_part(A)).abs()  # the Perron vector, kept away from 0
        v = v.clamp(min=1e-6 * float(v.max()))
        found["Theorem 1"] = M.diagonal() * ((A.mT @ v) / v + (-W.diagonal()).clamp(min=0))
    product = -(M @ W).diagonal()
    if phi.monotone and bool((product > 0).all()):
        found["Theorem 3"] = product
    usable = {
        name: T.clamp(min=FLOOR * float(T.max()))
        for name, T in found.items()
        if bool(torch.isfinite(T).all()) and float(T.max()) > 0
    }
    return {name: 1 / (g**2 * T) for name, T in usable.items()} if module.inside else usable


def _best_multiplier(
    system: LureSystem, families: dict[str, Tensor], *, refine: bool
) -> tuple[Tensor, str]:
    """The T = z T_0 with the least lmax(S), and its family; unproven, as any T > 0 is sound."""
    # No proof beats two vertices of the slopes.
    limit = max(_top(system.A), _top(system.A + system.X @ system.Z))
    best, chosen = 10 * WORST, (torch.ones_like(system.A[0]), "none")
    for name, T0 in families.items():
        top, T = _best_scale(system, T0)
        if top < best - 1e-9 * abs(best):
            best, chosen = top, (T, name)
        if best <= limit + 1e-9 * abs(limit):
            break
    T, name = chosen
    if refine and len(T) <= REFINED and best > limit + 1e-6 * abs(limit):
        T = refined(system, T, 0.0)
        before, after = (Weighed.of(system, one).mu(0.0) for one in (chosen[0], T))
        name = "Theorem 35" if after > before + 1e-9 else name
    return T, name


def _best_scale(system: LureSystem, T0: Tensor) -> tuple[float, Tensor]:
    """The least lmax(S) over T = z T_0, and that T; lmax is convex in z."""
    root = T0.sqrt()
    B0, C0, A = system.X / root, root[:, None] * system.Z, symmetric_part(system.A)

    def top(log_z: float) -> float:
        z = math.exp(log_z / 2)
        Y = B0 / z + z * C0.mT
        return _top(A + Y @ Y.mT / 4)

    # Where ||B|| and ||C|| balance: the scale of the problem, whatever the units of W and M.
    b, c = float(B0.norm()), float(C0.norm())
    known = 0 < b < math.inf and 0 < c < math.inf
    centre = float(np.clip(math.log(b) - math.log(c), -300, 300)) if known else 0.0
    bounds = (centre - LOG_Z, centre + LOG_Z)
    found = minimize_scalar(top, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    # Theorems 2 and 3 are exact at one z, which a search only approaches.
    tries = [float(found.x), bounds[0], *(-k * math.log(system.g) for k in (0, 1, 2) if system.g > 0)]
    log_z = min(tries, key=top)
    return top(log_z), math.exp(log_z) * T0


def _top(S: Tensor) -> float:
    """The largest eigenvalue of the symmetric part, unproven."""
    return min(WORST, rounding.top_eigenvalue(symmetric_part(S)))


def _theorem1(module: ModuleInMetric) -> float:
    """-lmax(tau^-1/2 (g sym(Theta |W| Theta^-1) - I) tau^-1/2), -inf for a dense metric."""
    if module.theta.ndim != 1:
        return -math.inf
    phi, balance = module.phi, module.balance
    A, error = balanced(phi.g * majorant(module.W, phi.monotone), balance, balance)
    S = symmetric_part(A) - torch.diag(1 / module.tau)
    return -largest_eigenvalue(S, error + 4e-16 * float(S.norm()) + module.slack)


def _disc(module: ModuleInMetric, norm: float) -> tuple[float, float]:
    """nu, eps of `ModuleBound`; J = (-I + W D) / tau."""
    W, tau, slope = module.W, module.tau, module.phi.slope
    low, high, size = 1 / tau, 1 / tau, 1 / tau
    if module.theta.ndim == 1 and torch.equal(W, torch.diag(W.diagonal())):
        ends = torch.stack([W.diagonal() * slope[0], W.diagonal() * slope[1]])
        low, high = (1 - ends.max(0).values) / tau, (1 - ends.min(0).values) / tau
        size = (1 + ends.abs().max(0).values) / tau  # 1 - w s may cancel: the error is of this size
        norm = 0.0
    bottom, top = float(low.min()), float(high.max())
    eps = ((top - bottom) / 2 + norm + module.slack) * (1 + 1e-15) + 8 * UNIT * float(size.max())
    return (bottom + top) / 2, eps


def _name(module: ModuleInMetric, theorem: str, plain: bool, by_norm: bool) -> str:
    W = module.W
    if module.phi.slope[0] == module.phi.slope[1]:
        return "linear"
    if plain and torch.equal(W, torch.diag(W.diagonal())):
        return "Theorem 1 (diagonal)"
    if plain:
        parts = connected_components(np.asarray(W != 0), directed=True, connection="strong")[0]
        return "Theorem 4" if parts == len(W) else "Theorem 1"
    symmetric = float((W - W.mT).abs().max()) <= 1e-12 * float(W.abs().max())
    if theorem == "Theorem 2" and not symmetric:
        return "S-procedure"
    if theorem == "Theorem 5" and not by_norm:
        return "Theorem 5+"
    return theorem
