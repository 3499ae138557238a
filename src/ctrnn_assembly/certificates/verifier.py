"""`python verifier.py PROOF.json [WEIGHTS]`: check a proof of contraction, with Python and numpy alone.

The claim is of tau x' = -x + X phi(Z x + u) + L x + u for any inputs u: W phi(x) has X = W and Z = I,
phi(W x) has X = I and Z = W. For the difference v of two states under one input, slopes of phi_k in
[lo_k, hi_k], and w, that of phi less lo Z v,

    tau v' = (L - I) v + X (lo Z v + w),    w_k ((hi_k - lo_k) (Z v)_k - w_k) >= 0,                  (1)

and a step is v+ = v + dt Q v', v' at its start: Q = I of euler, (I - dt L / tau)^-1 of imex, and
int_0^1 exp(s dt (L - I) / tau) ds of exponential-euler. With z = (y, w), v = V z = R y, w = J z,
Theta v = P z and Theta Q v' = K z, for any diagonal T > 0,

    - 2 sym P^T (K + mu P) - dt K^T K - 2 sym J^T T ((hi - lo) Z V - J)  >  0                        (2)

proves |Theta v+|^2 <= (1 - 2 dt mu) |Theta v|^2, as its last term is not positive by (1); dt = 0 and
Q = I, that d|Theta v|^2 / dt <= -2 mu |Theta v|^2. R, about Theta^-1, may be any matrix: (2) fails at a
null vector y of R or Theta R, so Theta^T Theta > 0, and unless T > 0. Steps are in real numbers.
"""

import json
import math
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

UNIT = 2.0**-53  # the unit roundoff of float64
SLOPES = dict.fromkeys(("relu", "tanh", "softplus", "elu", "hardtanh"), (0.0, 1.0))
SLOPES |= {"identity": (1.0, 1.0), "sigmoid": (0.0, 0.25), "selu": (0.0, 1.7580993408473768)}
SLOPES |= {"leaky_relu": (0.01 * (1 - 2.0**-24), 1.0), "silu": (-0.09983935, 1.09983935)}
SLOPES |= {"gelu": (-0.12890423, 1.12890423), "gelu_tanh": (-0.1289931, 1.1289931)}


class RefusedError(Exception):
    """The file does not prove what it claims."""


def gamma(k: int) -> float:
    """Any sum of k products is off by gamma_k times that of their sizes: Higham 2002, chapter 3."""
    return k * UNIT / (1 - k * UNIT)


class Ball:
    """All matrices within `off` of `mid`, entry by entry; an operation's Ball has all of its results.

    `off` is rounded, too: with k > 0, k + 16 times at most, by which it is enlarged, as by underflow.
    """

    def __init__(self, mid: Any, off: Any = 0.0, k: int = 0) -> None:
        self.mid = mid
        self.off = np.zeros(mid.shape) + (off * (1 + 2 * gamma(k + 16)) + 1e-300 if k else off)

    def __add__(self, other: "Ball") -> "Ball":
        mid = self.mid + other.mid
        return Ball(mid, self.off + other.off + UNIT * abs(mid), 1)

    def __mul__(self, numbers: Any) -> "Ball":
        """By numbers, entry by entry, which one rounding may have moved."""
        mid = self.mid * numbers
        return Ball(mid, self.off * abs(numbers) + 2 * UNIT * abs(mid), 1)

    def __matmul__(self, other: "Ball") -> "Ball":
        a, b, k = abs(self.mid), abs(other.mid), len(other.mid)
        off = gamma(k) * (a @ b) + a @ other.off + self.off @ (b + other.off)
        return Ball(self.mid @ other.mid, off, k)

    @property
    def T(self) -> "Ball":
        return Ball(self.mid.T, self.off.T)

    def norm(self) -> float:
        """A bound on the largest sum of a row's sizes."""
        return float((abs(self.mid) + self.off).sum(1).max()) * (1 + 2 * gamma(len(self.mid) + 16))


def positive(Z: Ball) -> bool:
    """Whether sym Z is positive definite throughout the ball, by Cholesky's factorisation.

    With S = sym mid, a symmetric E with |E| <= off has E >= -diag(r), r_i = d_i sum_j off_ij / d_j, for
    any d > 0, as E + diag(r) is diagonally dominant in the scale of d, here sqrt(S_ii). If Cholesky of
    B (n, n) ends, B + D = U^T U with |D| <= g |U|^T |U| entry by entry, g = gamma_(n + 8) (Higham,
    theorem 10.3; S, a rounded sum, is counted in). So |U_:i|^2 <= B_ii / (1 - g), and B >= -n c diag(B)
    by |D_ij| <= c sqrt(B_ii B_jj), c = g / (1 - g) (Rump, BIT 46, 2006). B = S - diag(r + 2 n c S_ii),
    twice for its own rounding; underflow is below 1e-200 for S_ii in 1e-180 ... 1e180. NaN never passes.
    """
    S, off = (Z.mid + Z.mid.T) / 2, (Z.off + Z.off.T) / 2
    n, diagonal = len(S), S.diagonal().copy()
    if not 1e-180 < diagonal.min() <= diagonal.max() < 1e180:
        return False
    d, g = np.sqrt(diagonal), gamma(n + 8)
    r = d * (off @ (1 / d)) * (1 + 2 * gamma(n + 16))
    S[np.diag_indices(n)] -= r + 2 * n * g / (1 - g) * diagonal + 1e-200
    U = np.zeros_like(S)
    for j in range(n):
        row = S[j, j:] - U[:j, j] @ U[:j, j:]
        if not row[0] > 0:
            return False
        U[j, j:] = row / math.sqrt(row[0])
    return True


def inverse(S: Ball) -> Ball:
    """If |I - Y S| <= rho < 1, |S^-1 - Y| = |(Y S)^-1 (I - Y S) Y| <= rho |Y| / (1 - rho), by column."""
    try:
        Y = Ball(np.linalg.inv(S.mid))
    except np.linalg.LinAlgError:
        return Ball(S.mid, math.inf)
    rho = (Ball(np.eye(len(S.mid))) + Y @ S * -1.0).norm()
    return Ball(Y.mid, rho / (1 - rho) * abs(Y.mid).max(0) if rho < 0.5 else math.inf, 1)


@np.errstate(all="ignore")
def integral(G: Ball) -> Ball:
    """p(G) = int_0^1 exp(s G) ds by Taylor's series of H = G / 2^k, |H| <= 1/2, and doubling.

    p(H) = P_2, P_i = I + H P_(i + 1) / i, P_22 within 0.03 of I; p(2 H) = (exp(H) + I) p(H) / 2.
    """
    size, one = G.norm(), Ball(np.eye(len(G.mid)))
    if not size < 1e15:
        return Ball(G.mid, math.inf)
    k = max(0, math.frexp(size)[1] + 1)
    H, P = G * 0.5**k, Ball(one.mid, 0.03)
    for i in range(21, 1, -1):
        P = one + H @ P * (1 / i)
    E = one + H @ P
    for _ in range(k):
        P, E = (E + one) @ P * 0.5, E @ E
    return P


@np.errstate(all="ignore")
def proves(arrays: dict[str, Any], names: list[str], solver: str, dt: float, bound: float) -> bool:
    """Whether (2) holds with mu of a rate, dt = 0, or of a step's factor, for phi of these names."""
    if not 0 < bound < (1 if dt else 1e100) or not 0 <= dt < 1e100:
        return False
    mu = (1 - bound) * (1 + bound) / (2 * dt) * (1 + 8 * UNIT) if dt else bound
    theta, L, X, Z, tau, T = (arrays[k] for k in ("theta", "L", "X", "Z", "tau", f"T {solver}"))
    lo, hi = np.array([SLOPES[name] for name in names]).T[:, :, None]
    (n, m), rates = X.shape, 1 / tau[:, None]
    V = Ball(np.hstack([inverse(Ball(theta)).mid, np.zeros((n, m))]))
    J, one = Ball(np.eye(n + m)[n:]), Ball(np.eye(n))
    leak, reads = Ball(L) + one * -1.0, Ball(Z) @ V
    F = (leak @ V + Ball(X) @ (reads * lo + J * (hi > lo))) * rates
    if solver == "imex":
        F = inverse(one + Ball(L) * -dt * rates) @ F
    elif solver == "exponential-euler":
        F = integral(leak * dt * rates) @ F
    elif solver != ("euler" if dt else "flow"):
        raise RefusedError(f"no inequality is known of {solver} with dt = {dt}")
    P, K = Ball(theta) @ V, Ball(theta) @ F
    sector = J.T * T @ (reads * np.nextafter(hi - lo, np.inf) + J * -1.0)
    return positive((P.T @ (K + P * mu) + sector) * -2.0 + K.T @ K * -dt)


def read(file: Path, weights: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A proof and its arrays, every byte by hash; its own is of the text with zeros there."""
    text = file.read_bytes()
    proof = json.loads(text)
    if (proof["kind"], proof["version"]) != ("proof", 1) or not proof["claims"]:
        raise ValueError(f"kind {proof['kind']!r}, version {proof['version']!r}, {proof['claims']}")
    data = (file.parent / proof["matrices"]["file"]).read_bytes()
    named = weights or file.parent / proof["weights"]["file"]
    seen = weights is not None or named.is_file()
    own, proof["seen"] = proof["sha256"], "read" if seen else "not at hand"
    known = [(own, text.replace(own.encode(), b"0" * 64)), (proof["matrices"]["sha256"], data)]
    known += [(proof["weights"]["sha256"], named.read_bytes())] if seen else []
    for digest, content in known:
        if sha256(content).hexdigest() != digest:
            raise RefusedError(f"proof, matrices or weights were changed: none has the sha256 {digest}")
    start, arrays = 8 + int.from_bytes(data[:8], "little"), {}  # safetensors: a header, then numbers
    for name, about in json.loads(data[8:start]).items():
        begin, end = (start + offset for offset in about["data_offsets"])
        numbers = np.frombuffer(data[begin:end], {"F64": "<f8"}[about["dtype"]])
        arrays[name] = numbers.reshape(about["shape"])
    return proof, arrays


def verify(file: Path, weights: Path | None = None) -> list[str]:
    """What is proven, in sentences; a RefusedError, or others for what is no proof."""
    (proof, arrays), said = read(file, weights), []
    (n, m), names = arrays["X"].shape, proof["activations"].split()
    shapes = {"X": (n, m), "Z": (m, n), "L": (n, n), "theta": (n, n), "tau": (n,)}
    for name, array in arrays.items():
        if array.shape != shapes.get(name, (m,)) or len(names) != m or not np.isfinite(array).all():
            raise ValueError(f"{name}, {array.shape}, does not fit {len(names)} phi, or is not finite")
    for claim in proof["claims"]:
        if not proves(arrays, names, **claim):
            raise RefusedError(f"the matrices do not prove {claim}")
        step = f"factor of a step of {claim['dt']!r} by {claim['solver']} <="
        said.append(f"{step if claim['dt'] else 'rate >='} {claim['bound']!r} in the norm |Theta v|")
    phi, tau = ", ".join(sorted({*names})), arrays["tau"]
    said.append(f"for these matrices, phi {phi} and tau {tau.min():.17g} to {tau.max():.17g};")
    whose = f"weights with the sha256 {proof['weights']['sha256']}, {proof['seen']}"
    return [*said, f"whether they are of the {whose}, is not checked here"]


def main(arguments: list[str]) -> int:
    """Print what is proven, with exit code 0; why it is refused, 1; or why it cannot be read, 2."""
    try:
        print("proven:", *verify(*map(Path, arguments)), sep="\n")
        return 0
    except RefusedError as error:
        print(f"refused: {error}")
        return 1
    except Exception as error:  # whatever bytes that are no proof file lead to
        print(f"error: no proof file: {error!r}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
