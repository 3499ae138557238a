"""Is a false claim ever accepted? Claims at the edge of what is true, judged in rational arithmetic.

python tests/false_claims.py [--tries 1000000] [--seed 0]

Each try draws a module of one or two units in closed form: W outside or inside of phi, coupling, time
constants, slopes of 1e-300 to 1e200 wide, a diagonal or dense Theta of condition number up to 1e16, dt,
weights of float64, float32 or bfloat16; and a rate or a factor, next to the exact one. It is put to
`verifier.proves` and, where Theta = I, to `lmi.Weighed`. What they accept is true if the form at each
vertex of the slopes is negative semidefinite, by signs of rational numbers: no tolerance. exp has none:
steps of exponential Euler are judged in 60 digits.

The multipliers are good ones, so that what is true is mostly accepted; how near is printed.
"""

import argparse
import math
import sys
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any
from unittest.mock import patch

import mpmath
import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from rich.progress import track
from scipy.optimize import minimize

from ctrnn_assembly.certificates import verifier
from ctrnn_assembly.certificates.lmi import LureSystem, Weighed

OF = ("flow", "euler", "imex", "exponential-euler")
WIDTHS = (1e-300, 1e-60, 1e-8, 1.758, 1e8, 1e60, 1e200)
SPREADS = (0.0, 0.3, 3.0, 18.0)  # logarithm of the largest over the least singular value, about


@dataclass(frozen=True)
class Try:
    """tau v' = (L - I) v + X D Z v with D between lo and hi, in the norm |Theta v|, by `of` with dt."""

    arrays: dict[str, ndarray]
    lo: ndarray
    hi: ndarray
    of: str
    dt: float
    euclidean: bool

    def vertices(self) -> Any:
        return product(*zip(self.lo, self.hi, strict=True))

    def jacobians(self) -> list[ndarray]:
        """Of v' at each vertex, as far as float64 goes."""
        L, X, Z, tau = (self.arrays[k] for k in ("L", "X", "Z", "tau"))
        return [(L - np.eye(len(L)) + X * D @ Z) / tau[:, None] for D in self.vertices()]


def rounded(weights: ndarray, kind: torch.dtype) -> ndarray:
    return torch.from_numpy(weights).to(kind).double().numpy()


def drawn(rng: Generator) -> Try:
    """In the coordinates of Theta all is of order one."""
    n, spread, inside = int(rng.choice([1, 1, 2])), rng.choice(SPREADS), rng.random() < 0.5
    turn = np.linalg.qr(rng.standard_normal((n, n)))[0] if rng.random() < 0.5 else np.eye(n)
    theta = np.diag(np.exp(spread * rng.uniform(-1, 1, n))) @ turn if spread else np.eye(n)
    back = np.linalg.inv(theta)
    width = rng.choice(WIDTHS) if rng.random() < 0.2 else 1.0
    lo = width * rng.choice([0.0, 0.0, -0.3, 0.4], n)
    hi = np.maximum(lo, width * rng.choice([1.0, 1.0, 0.25], n))
    W = back @ (rng.uniform(0.1, 1.2) * rng.standard_normal((n, n)) / n**0.5) @ theta
    L = rng.choice([0.0, 0.5, 2.0]) * rng.standard_normal((n, n))
    tau = np.exp(rng.choice([0.0, 1.0]) * rng.standard_normal(n))
    kind = (torch.float64, torch.float32, torch.bfloat16)[int(rng.integers(3)) if spread < 1 else 0]
    W, L = rounded(W / width, kind), rounded(back @ (L - L.T) @ theta, kind)
    X, Z = (np.eye(n), W) if inside else (W, np.eye(n))
    of = OF[int(rng.integers(4))]
    dt = float(np.exp(rng.uniform(-12, 0))) if of != "flow" else 0.0
    arrays = {"theta": theta, "L": L, "X": X, "Z": Z, "tau": tau}
    return Try(arrays, lo, hi, of, dt, spread == 0)


def propagator(one: Try) -> ndarray:
    """Q of v+ = v + dt Q v', as far as float64 goes."""
    leak = one.dt * one.arrays["L"] / one.arrays["tau"][:, None]
    eye = np.eye(len(leak))
    if one.of == "imex":
        return verifier.inverse(verifier.Ball(eye - leak)).mid
    if one.of == "exponential-euler":
        G = leak - one.dt * np.diag(1 / one.arrays["tau"])
        return verifier.integral(verifier.Ball(G)).mid
    return eye


def edge(one: Try) -> float:
    """The exact rate, or factor, as far as float64 goes."""
    theta = one.arrays["theta"]
    back, found = np.linalg.inv(theta), one.jacobians()
    if one.of == "flow":
        moved = [theta @ J @ back for J in found]
        return -max(float(np.linalg.eigvalsh(A + A.T)[-1]) / 2 for A in moved)
    Q = propagator(one)
    steps = np.array([np.eye(len(J)) + one.dt * theta @ Q @ J @ back for J in found])
    return float(np.linalg.norm(steps, 2, (1, 2)).max()) if np.isfinite(steps).all() else math.nan


def largest(S: ndarray) -> float:
    """Eigenvalue of a symmetric matrix of one or two rows."""
    if len(S) == 1:
        return float(S[0, 0])
    (a, b), (_, d) = S.tolist()
    return (a + d) / 2 + math.hypot((a - d) / 2, b)


def multipliers(one: Try, rng: Generator) -> ndarray:
    """The best that a search in float64 finds, each time the same; changed now and then."""
    theta, X, Z, tau = (one.arrays[k] for k in ("theta", "X", "Z", "tau"))
    back, Q = np.linalg.inv(theta), propagator(one)
    low = next(iter(one.jacobians()))
    A, B, C = (
        theta @ Q @ low @ back,
        theta @ Q @ (X / tau[:, None]),
        (one.hi - one.lo)[:, None] * Z @ back,
    )
    S = A + A.T + one.dt * A.T @ A

    def loss(log: ndarray) -> float:
        T = guess * np.exp(log)
        Y, H = B + C.T * T + one.dt * A.T @ B, 2 * np.diag(T) - one.dt * B.T @ B
        if not largest(-H) < -1e-150:  # whose determinant does not underflow
            return 1e300
        return min(1e300, largest(S + Y @ np.array(inverted(H.tolist())) @ Y.T))

    read = np.maximum(np.linalg.norm(C, axis=1), 1e-250)
    column = np.linalg.norm(B, axis=0)
    guess = np.maximum(column / read + one.dt * column**2, 1e-250)
    found = np.zeros(len(guess))
    if np.isfinite(S).all() and np.isfinite(loss(found)):
        options = {"maxfev": 25 * len(guess), "xatol": 1e-9, "fatol": 1e-15}
        found = minimize(loss, found, method="Nelder-Mead", options=options).x
    return guess * np.exp(found + rng.choice([0.0, 0.0, 0.0, 0.3]) * rng.standard_normal(len(guess)))


# The judge


def times(A: Any, B: Any) -> Any:
    return [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*B, strict=True)]
        for row in A
    ]


def is_negative(A: Any) -> bool:
    """Whether a symmetric matrix of one or two rows is negative semidefinite."""
    if len(A) == 1:
        return A[0][0] <= 0
    return A[0][0] <= 0 and A[1][1] <= 0 and A[0][0] * A[1][1] - A[0][1] * A[1][0] >= 0


def inverted(A: Any) -> Any:
    if len(A) == 1:
        return [[1 / A[0][0]]]
    (a, b), (c, d) = A
    det = a * d - b * c
    return [[d / det, -b / det], [-c / det, a / det]]


def is_true(one: Try, bound: float) -> bool:
    """Whether the rate is at least, or the factor at most, `bound` at every vertex; exactly."""
    digits = one.of == "exponential-euler"
    number: Any = mpmath.mpf if digits else Fraction
    theta, L, X, Z = (
        [[number(float(v)) for v in row] for row in one.arrays[k]] for k in ("theta", "L", "X", "Z")
    )
    rates = [1 / number(float(v)) for v in one.arrays["tau"]]
    n, dt, limit = len(L), number(one.dt), number(bound)
    M = times([list(row) for row in zip(*theta, strict=True)], theta)
    square = range(n)
    Q = [[number(int(i == j)) for j in square] for i in square]
    if one.of == "imex":
        Q = inverted([[Q[i][j] - dt * rates[i] * L[i][j] for j in square] for i in square])
    if digits:
        G = mpmath.matrix([[dt * rates[i] * (L[i][j] - int(i == j)) for j in square] for i in square])
        big = mpmath.zeros(2 * n)  # exp [[G, I], [0, 0]] holds the integral
        big[:n, :n], big[:n, n:] = G, mpmath.eye(n)
        whole = mpmath.expm(big, method="taylor")
        Q = [[whole[i, n + j] for j in square] for i in square]
    for D in one.vertices():
        fed = times([[x * number(float(d)) for x, d in zip(row, D, strict=True)] for row in X], Z)
        J = [[rates[i] * (L[i][j] - int(i == j) + fed[i][j]) for j in square] for i in square]
        if one.of == "flow":
            MJ = times(M, J)
            form = [[MJ[i][j] + MJ[j][i] + 2 * limit * M[i][j] for j in square] for i in square]
        else:
            QJ = times(Q, J)
            S = [[int(i == j) + dt * QJ[i][j] for j in square] for i in square]
            SMS = times([list(row) for row in zip(*S, strict=True)], times(M, S))
            form = [[SMS[i][j] - limit**2 * M[i][j] for j in square] for i in square]
        if not is_negative(form):
            return False
    return True


def accepted(one: Try, T: ndarray, bound: float) -> dict[str, bool]:
    """By whom."""
    names = [f"phi {k}" for k in range(len(T))]
    ends = {name: (float(a), float(b)) for name, a, b in zip(names, one.lo, one.hi, strict=True)}
    arrays = one.arrays | {f"T {one.of}": T}
    with patch.dict(verifier.SLOPES, ends):
        found = {"verifier": verifier.proves(arrays, names, one.of, one.dt, bound)}
    if one.euclidean and one.of in ("flow", "euler"):
        found["lmi"] = by_lmi(one, T, bound)
    return found


def by_lmi(one: Try, T: ndarray, bound: float) -> bool:
    """By `Weighed`, with bounds on the few roundings that its matrices have here."""
    L, X, Z, tau = (torch.from_numpy(one.arrays[k]) for k in ("L", "X", "Z", "tau"))
    lo, width = torch.from_numpy(one.lo), torch.from_numpy(one.hi - one.lo)
    n, scaled = len(L), X / tau[:, None]
    A = (L - torch.eye(n, dtype=L.dtype)) / tau[:, None] + (scaled * lo) @ Z
    unit, fed = verifier.UNIT, (scaled.abs() * lo.abs()) @ Z.abs()
    off = 8 * unit * float((((L.abs() + torch.eye(n)) / tau[:, None]) + fed).norm())
    X_error, read = 4 * unit * scaled.norm(dim=0), width[:, None] * Z
    system = LureSystem(1.0, A, scaled, read, off, X_error, 4 * unit * read.norm(dim=1))
    weighed = Weighed.of(system, torch.from_numpy(T))
    mu = (1 - bound) * (1 + bound) / (2 * one.dt) * (1 + 8 * unit) if one.dt else bound
    return weighed.proves(one.dt, mu)


@np.errstate(all="ignore")
def hunt(tries: int, seed: int) -> Counter[str]:
    """What was accepted, how near to the edge, and what of it is false."""
    counts = Counter[str]()
    for k in track(range(tries), description="claims"):
        rng = np.random.default_rng([seed, k])
        one = drawn(rng)
        exact = edge(one)
        beyond = float(10.0 ** rng.uniform(-17, -1) * rng.choice([-1, 1, 1]))
        bound = exact * (1 + beyond) if one.of == "flow" else 1 - (1 - exact) * (1 + beyond)
        if not np.isfinite(bound) or not 0 < bound < (1e100 if one.of == "flow" else 1):
            counts["nothing to claim"] += 1
            continue
        counts["claims"] += 1
        counts[f"claims of {one.of}"] += 1
        said = accepted(one, multipliers(one, rng), bound)
        counts["answers"] += len(said)
        if any(said.values()):
            counts["accepted"] += sum(said.values())
            counts["accepted within 1e-6 of the edge"] += sum(said.values()) * (abs(beyond) < 1e-6)
            with mpmath.workdps(60):
                wrong = not is_true(one, bound)
            if wrong:
                counts["FALSE YES"] += 1
                print(f"try {k} of seed {seed}: {one} claims {bound!r}, accepted by {said}")
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tries", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = hunt(given.tries, given.seed)
    for name, count in {**found, "FALSE YES": found["FALSE YES"]}.items():
        print(f"{count:>9,} {name}")
    sys.exit(1 if found["FALSE YES"] else 0)
