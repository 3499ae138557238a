"""The rate of one module in its metric: the S-procedure over a few families of multipliers.

Every module theorem is an instance of the S-procedure with an explicit T (up to a factor z that is
searched; every z is sound):

| theorem | T_0 |
|---|---|
| 1, 4 (M = P diagonal) | P (A^T v / v + (-W_kk)^+), A = Theta |W| Theta^-1, sym(A) v = lmax v |
| 2 (symmetric W) | I |
| 3 (W = -P1 Q P2) | -diag(M W) |
| 5, 5+ (M = P diagonal) | P |

T_0 of Theorem 1 gives exactly its rate, by a bound on S whose Perron vector is v. An r-form module is
the dual, W^T in M^-1, whose T is turned over: T = 1 / (g^2 T_dual). Theorem 1 is also evaluated as it
stands, which needs no positive T. Source: THEORY sections 1 and 2.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.certificates.lure import LureSystem, ModuleInMetric, balanced, norm_under_slopes
from ctrnn_assembly.certificates.rounding import UNIT, largest_eigenvalue, top_eigenvalue, top_vector
from ctrnn_assembly.linalg import majorant, symmetric_part

FLOOR = 1e-8  # of T relative to its family's largest entry: silent units need some T > 0
LOG_Z = 16.0
WORST = 1e100  # stands for infinity in a search, whose differences must stay finite


@dataclass(frozen=True)
class ModuleBound:
    """What is proven of one module, per unit of time, in the metric and over all slopes.

    Attributes:
        T: the multiplier, (n,).
        rate: lower bound on the contraction rate. error: the rounding taken off it.
        s_procedure_matrix: a symmetric S with d|y|^2/dt <= 2 y^T S y, lmax(S) <= -rate, up to `error`.
        norm: bound on ||W D|| / tau.
        disc: nu, eps with ||J + nu I|| <= eps.
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
    system = LureSystem.of(module)
    T, theorem = _best_multiplier(system, multipliers(module))
    S, error = system.s_procedure_matrix(T)
    rate = -largest_eigenvalue(S, error)
    direct = _theorem1(module)
    if direct > rate + 1e-9 * abs(direct):
        rate, theorem, error = direct, "Theorem 1", 0.0
        S = -direct * torch.eye(len(S), dtype=S.dtype)
    # ||W D||, or ||D W|| of the r-form, over all slopes
    balance = module.balance
    norm = module.phi.g * norm_under_slopes(module.W, balance, balance, inside=module.inside)
    near = rate - 1e-6 * abs(rate)
    name = _name(module, theorem, direct >= near, float((1 / module.tau).min()) - norm >= near)
    return ModuleBound(system, T, rate, error, S, name, norm, _disc(module, norm))


def multipliers(module: ModuleInMetric) -> dict[str, Tensor]:
    """The families T_0, (n,) each and positive, by theorem."""
    W, phi, theta = module.W, module.phi, module.theta
    g = phi.slope[1] - phi.slope[0]
    if g == 0:
        return {"linear": torch.ones_like(W[0])}
    if module.inside:
        inverse = 1 / theta if theta.ndim == 1 else torch.linalg.inv_ex(theta)[0].mT
        return {name: 1 / (g**2 * T) for name, T in _families(W.mT, phi, inverse).items()}
    return _families(W, phi, theta)


def _families(W: Tensor, phi: Activation, theta: Tensor) -> dict[str, Tensor]:
    """The families of the x-form."""
    M = torch.diag(theta**2) if theta.ndim == 1 else theta.mT @ theta
    found = {"Theorem 5": M.diagonal(), "Theorem 2": torch.ones_like(M.diagonal())}
    if theta.ndim == 1:
        A = (theta[:, None] * majorant(W, phi.monotone)) / theta
        v = top_vector(symmetric_part(A)).abs()  # the Perron vector, kept away from 0
        v = v.clamp(min=1e-6 * float(v.max()))
        found["Theorem 1"] = M.diagonal() * ((A.mT @ v) / v + (-W.diagonal()).clamp(min=0))
    product = -(M @ W).diagonal()
    if phi.monotone and bool((product > 0).all()):
        found["Theorem 3"] = product
    return {
        name: T.clamp(min=FLOOR * float(T.max()))
        for name, T in found.items()
        if bool(torch.isfinite(T).all()) and float(T.max()) > 0
    }


def _best_multiplier(system: LureSystem, families: dict[str, Tensor]) -> tuple[Tensor, str]:
    """The T = z T_0 with the least lmax(S), and its family; unproven, as any T > 0 is sound."""
    # No proof beats two vertices of the slopes.
    limit = max(_top(system.A), _top(system.A + system.X @ system.Z))
    best, chosen, theorem = 10 * WORST, torch.ones_like(system.A[0]), "none"
    for name, T0 in families.items():
        top, T = _best_scale(system, T0)
        if top < best - 1e-9 * abs(best):
            best, chosen, theorem = top, T, name
        if best <= limit + 1e-9 * abs(limit):
            break
    return chosen, theorem


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
    centre = min(300.0, max(-300.0, math.log(b) - math.log(c))) if known else 0.0
    bounds = (centre - LOG_Z, centre + LOG_Z)
    found = minimize_scalar(top, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    # Theorems 2 and 3 are exact at one z, which a search only approaches.
    tries = [float(found.x), bounds[0], *(-k * math.log(system.g) for k in (0, 1, 2) if system.g > 0)]
    log_z = min(tries, key=top)
    return top(log_z), math.exp(log_z) * T0


def _top(S: Tensor) -> float:
    """The largest eigenvalue of the symmetric part, unproven."""
    return min(WORST, top_eigenvalue(symmetric_part(S)))


def _theorem1(module: ModuleInMetric) -> float:
    """-lmax(tau^-1/2 (g sym(Theta |W| Theta^-1) - I) tau^-1/2), -inf for a dense metric."""
    if module.theta.ndim != 1:
        return -math.inf
    phi, balance = module.phi, module.balance
    A, error = balanced(phi.g * majorant(module.W, phi.monotone), balance, balance)
    S = symmetric_part(A) - torch.diag(1 / module.tau)
    return -largest_eigenvalue(S, error + 4e-16 * float(S.norm()))


def _disc(module: ModuleInMetric, norm: float) -> tuple[float, float]:
    """nu, eps of `ModuleBound`; J = (-I + W D) / tau."""
    W, tau, slope = module.W, module.tau, module.phi.slope
    low, high, size = 1 / tau, 1 / tau, 1 / tau
    if module.theta.ndim == 1 and is_diagonal(W):
        ends = torch.stack([W.diagonal() * slope[0], W.diagonal() * slope[1]])
        low, high = (1 - ends.max(0).values) / tau, (1 - ends.min(0).values) / tau
        size = (1 + ends.abs().max(0).values) / tau  # 1 - w s may cancel: the error is of this size
        norm = 0.0
    bottom, top = float(low.min()), float(high.max())
    eps = ((top - bottom) / 2 + norm) * (1 + 1e-15) + 8 * UNIT * float(size.max())
    return (bottom + top) / 2, eps


def is_diagonal(W: Tensor) -> bool:
    return not bool((W - torch.diag(W.diagonal())).any())


def _name(module: ModuleInMetric, theorem: str, plain: bool, by_norm: bool) -> str:
    W = module.W
    if module.phi.slope[0] == module.phi.slope[1]:
        return "linear"
    if plain and is_diagonal(W):
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
