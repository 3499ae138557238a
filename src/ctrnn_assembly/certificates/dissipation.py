"""One layer's storage function: its gain in exponentially weighted l2, by one matrix inequality.

The differences of two states of a layer, of its inputs s and of its outputs y move by

    x+ = A x + F w + B s,    c = C x+ + D s,    y = W g,

with w and g the differences of elementwise maps of x and c, whose slopes are in [low, high]. If

    (x+)^T P x+ / rho^2 + |y|^2 <= x^T P x + gamma^2 |s|^2    for all x, s and all such w and g,

gamma bounds the gain from s to y in l2 with the weights rho^-2t. One symmetric matrix has to be
negative: a Cholesky factorisation shows it. P solves a Riccati equation, found without rigour.

Source: THEORY section 11; Willems, Dissipative dynamical systems (1972).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_discrete_are

from ctrnn_assembly.certificates.rounding import is_positive_definite, largest_eigenvalue, spectral_norm

FORMED = 1e-12  # relative to the norms of its factors: more than the rounding of any matrix here
SHARE = 2.0  # of the multipliers of w in the storage
FARTHEST = 1e3  # times the gain of the slopes' mean, a layer's own is not looked for


@dataclass(frozen=True)
class LayerSystem:
    """The matrices of the module, float64; `inner` and `outer` are the slopes of w and g."""

    A: np.ndarray
    F: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    W: np.ndarray
    inner: tuple[float, float]
    outer: tuple[float, float]


def forgetting(systems: Sequence[LayerSystem], rho: float) -> tuple[float, list[float]] | None:
    """K and the gains, where |x_l,t| <= K rho^t for all layers with |x_l,0| <= 1; None if unproven."""
    entered, largest, gains = 0.0, 1.0, []
    for system in systems:
        if (found := smallest_gain(system, rho)) is None:
            return None
        gamma, low, high = found
        passed = math.hypot(math.sqrt(high), gamma * entered) * (1 + 1e-12)
        largest = max(largest, passed / math.sqrt(low) * (1 + 1e-12))
        entered = (entered + passed) * (1 + 1e-12)
        gains.append(gamma)
    return largest, gains


def smallest_gain(system: LayerSystem, rho: float) -> tuple[float, float, float] | None:
    """`proven_storage` with the smallest gamma that is found, to a tenth; None if there is none."""
    A, gain = system.A + sum(system.inner) / 2 * system.F, 0.0
    for angle in np.unique(np.abs(np.angle(np.linalg.eigvals(A))).round(6)):  # where it resonates
        x = np.linalg.solve(rho * np.exp(1j * angle) * np.eye(len(A)) - A, system.B)
        gain = max(gain, float(np.linalg.norm(system.W @ system.C @ x, 2)))
    gamma, step, found = 2 * gain, 2.0, None
    while step > 1.08 and 0 < gamma < FARTHEST * gain:
        if (one := proven_storage(system, rho, gamma)) is not None:
            found = one
        elif found is None:
            gamma *= 4
        else:
            gamma, step = gamma * step, math.sqrt(step)
        gamma /= step
    return found


def proven_storage(system: LayerSystem, rho: float, gamma: float) -> tuple[float, float, float] | None:
    """(gamma, low, high): proven with low |x|^2 <= x^T P x <= high |x|^2; None if it is not."""
    n, m = system.B.shape
    p, size = len(system.C), 2 * n + len(system.C) + m
    x, w, g, s = np.split(np.eye(size), np.cumsum([n, n, p]))
    # s in units of 1 / gamma
    ahead = np.hstack([system.A, system.F, np.zeros((n, p)), system.B / gamma])
    T, U = _multipliers(system, gamma)
    y, c = system.W @ g, system.C @ ahead + system.D / gamma @ s
    form = y.T @ y - s.T @ s + _sector(w, x, T, system.inner) + _sector(g, c, U, system.outer)
    moved, slack = ahead / rho, 1e-4 * float(np.abs(np.diag(form)[:n]).max())
    Q, S, R = form[:n, :n] + slack * np.eye(n), form[:n, n:], form[n:, n:]
    try:
        P = -solve_discrete_are(moved[:, :n], moved[:, n:], -Q, -R, s=-S)
    except (np.linalg.LinAlgError, ValueError):
        return None
    P = (P + P.T) / 2
    form += moved.T @ P @ moved
    form[:n, :n] -= P
    of_c = np.linalg.norm(system.C) * np.linalg.norm(ahead) + np.linalg.norm(system.D) / gamma
    sizes = (
        np.linalg.norm(P) * (1 + np.linalg.norm(moved) ** 2), np.linalg.norm(system.W) ** 2, 1.0,
        T.max() * (1 + max(map(abs, system.inner))) ** 2,
        U.max() * (1 + max(map(abs, system.outer)) * (1 + of_c)) ** 2,
    )  # fmt: skip
    left, storage = torch.from_numpy(-(form + form.T) / 2), torch.from_numpy(P)
    if not is_positive_definite(left, 4 * FORMED * float(sum(sizes))):
        return None
    low, high = -largest_eigenvalue(-storage), largest_eigenvalue(storage)
    return (gamma, low, high) if low > 0 and high < math.inf else None


def _sector(w: np.ndarray, z: np.ndarray, T: np.ndarray, slopes: tuple[float, float]) -> np.ndarray:
    """The form of (w - low z)^T T (high z - w), symmetric."""
    low, high = slopes
    cross = (low + high) / 2 * (w.T * T) @ z
    return cross + cross.T - (w.T * T) @ w - low * high * (z.T * T) @ z


def _multipliers(system: LayerSystem, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """T of w, a share of the storage, about gamma |W C| / |B|, and U > W^T W of g; without rigour."""
    mixing = system.A**2
    decay = 1 - np.sqrt(mixing.sum(0))
    mixing = np.linalg.matrix_power(mixing / mixing.sum(0).clip(1e-300), 64)
    left = mixing.T @ ((system.W @ system.C) ** 2).sum(0)
    entered = mixing @ (system.B**2).sum(1)
    storage = gamma * np.sqrt(left.clip(1e-9 * left.max()) / entered.clip(1e-9 * entered.max() + 1e-300))
    T = SHARE * storage * (np.linalg.norm(system.F, axis=0) + 0.01 * decay.clip(1e-6)) + 1e-300
    low, high = system.outer
    over = 1e3 if low == high else 1.05  # U costs nothing where c alone says what g is
    return T, np.full(len(system.C), over * spectral_norm(torch.from_numpy(system.W)) ** 2 + 1e-300)
