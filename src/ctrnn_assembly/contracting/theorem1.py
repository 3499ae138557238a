"""Theorems 1 and 4: rho(g |W|) < 1, equivalently P (g |W| - I) + (g |W| - I)^T P < 0, P diagonal.

An exact map onto the set that needs no eigenvalue: with v_ij = |V_ij| (a non-positive v_ii counts as 0
for a monotone phi), R_i = sum_j (v_ij + v_ji) / 2 and any b,

    X_ij = V_ij / sqrt((1 + R_i)(1 + R_j)),   W_ij = r X_ij exp(b_j - b_i) / g,   P = diag(exp(2 b)).

with a rate in P above 1 - r = margin. O(n^2). Theorem 4, of triangular W, is the same map with zeros
above the diagonal. The fixed modules of the Sparse Combo Net have the metric P = diag(e / d).

Source: Kozachkov et al. 2022, also section 4 (arXiv 2106.08928); the map is ours (THEORY sections 2, 4).
"""

from contextlib import suppress

import torch
from torch import Tensor

from ctrnn_assembly.contracting import diagonal
from ctrnn_assembly.contracting.diagonal import DiagonalMetric, metzler_metric
from ctrnn_assembly.contracting.interface import Contracting, Form, check_square
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.linalg import majorant, symmetric_part, working_precision
from ctrnn_assembly.metrics import Factor

SPARSE = {"density": "(0, 1]", "magnitude": "(0, inf)", "tries": "[1, inf)"}


class Absolute(DiagonalMetric):
    """Theorem 1, trainable: rho(g |W|) < 1; the raw tensor A is V.

    >>> W = torch.tensor([[0.0, 9.0], [0.1, 0.0]])  # rho(|W|) = sqrt(0.9)
    >>> round(certify(Subnetwork(Absolute(), 2, weight=W)).rate, 3)
    0.051
    """

    theorem = "Theorem 1"
    init_scale = 0.5

    def inside(self, A: Tensor) -> Tensor:
        v = majorant(A, self.phi.monotone)
        scale = (1 + (v.sum(-2) + v.sum(-1)) / 2).rsqrt()
        return A * scale[..., None] * scale[..., None, :]

    def outward(self, X: Tensor) -> Tensor:
        a = _barrier_minimiser(symmetric_part(majorant(X, self.phi.monotone)))
        return X * a[:, None] * a

    def metric_of(self, W: Tensor) -> Tensor:
        """The identity if it will do, else Theorem 1's."""
        S = symmetric_part(self.phi.g * majorant(W, self.phi.monotone))
        enough = float(torch.linalg.eigvalsh(S)[-1]) < self.radius * (1 - 1e-9)
        return torch.zeros_like(W[0]) if enough else metzler_metric(self, W)


class Triangular(Absolute):
    """Theorem 4: triangular W with g W_ii < 1; of the raw tensor A only the lower triangle counts.

    >>> Subnetwork(Triangular(), 2, weight=torch.ones(2, 2))
    Traceback (most recent call last):
    ctrnn_assembly.errors.ContractionError: Theorem 4 needs zeros above the diagonal; got 1. ...
    """

    theorem = "Theorem 4"
    init_scale = 1.0

    def inside(self, A: Tensor) -> Tensor:
        return super().inside(A.tril())

    def raw(self, W: Tensor) -> tuple[Tensor, Tensor]:
        if (above := float(W.triu(1).abs().max())) > 0:
            raise self.outside("zeros above the diagonal", above, "Pass W.tril(), or use absolute.")
        return super().raw(W)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        full = Absolute(self.phi, margin=self.margin, init_scale=self.init_scale)
        return full.sample(n, generator).tril()


class SparseAbsolute(Contracting):
    """Theorem 1, frozen and sparse: rho(g |W|) < 1; raw tensors W (n, n) and log theta (n,), buffers.

    A sample is `sparse_uniform`, drawn again, at most `tries` times, until W is in the set and cond(P)
    at most `max_condition`; `outside_set` "rescale" shrinks a W that is not in the set.
    Guarantee: rate >= margin / tau in diag(theta^2).

    >>> net = Subnetwork(SparseAbsolute(density=0.1), 20)
    >>> int((net.weight != 0).sum()) <= 40, net.weight.requires_grad, certify(net).rate >= 0.01
    (True, False, True)
    """

    theorem = "Theorem 1"
    frozen = True
    axes = "nn", "n"
    usual_phi = "relu"
    settings = SPARSE | {"outside_set": ("reject", "rescale"), "max_condition": "(1, inf)"}
    density, magnitude, tries = 0.033, 1.0, 1000
    outside_set, max_condition = "reject", diagonal.MAX_CONDITION

    def weight(self, W: Tensor, log_theta: Tensor) -> Tensor:  # type: ignore[override]
        return W.clone()  # an in-place change of the weight must not reach the frozen one

    def raw(self, W: Tensor) -> tuple[Tensor, Tensor]:
        log_theta = metzler_metric(self, W)
        diagonal.unsquash(log_theta, self.max_condition)  # raises if the metric is conditioned too badly
        return W.clone(), log_theta  # a copy: the caller may still change its own

    def metric(self, *raw: Tensor, form: Form) -> Factor:
        return Factor.diagonal(raw[1])

    def check(self, W: Tensor, log_theta: Tensor) -> None:
        """Refuse raw tensors, such as those of a file, that are slower than margin in diag(theta^2)."""
        check_square(W)
        W64, log_theta64 = working_precision(W, log_theta)
        S = symmetric_part(diagonal.balanced(self.phi.g * majorant(W64, self.phi.monotone), log_theta64))
        top = float(torch.linalg.eigvalsh(S)[-1]) if bool(torch.isfinite(S).all()) else float("nan")
        if not top <= 1 - self.margin:
            condition = f"g lmax(sym(P^1/2 |W| P^-1/2)) <= {1 - self.margin:.6g}"
            fix = "Build the module with the margin and the activation that the weights were made for."
            raise self.outside(condition, top, fix)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        for _ in range(self.tries):
            W = sparse_uniform(n, self.density, self.magnitude, generator)
            if self.outside_set == "rescale":  # so that rho(g |W|) <= 0.9 radius; acyclic weights stay
                B = self.phi.g * majorant(W.double(), self.phi.monotone)
                target = 0.9 * self.radius
                W = W * (target / max(target, float(torch.linalg.eigvals(B).abs().max())))
            with suppress(ContractionError):
                self.right_inverse(W)
                return W
        raise ContractionError(
            f"no module of {n} units with density {self.density} and magnitude {self.magnitude} "
            f"met Theorem 1 with cond(P) <= {self.max_condition:g} in {self.tries} draws. Lower "
            "the density or the magnitude, or use outside_set='rescale'."
        )


def sparse_uniform(
    n: int, density: float, magnitude: float, generator: torch.Generator | None = None
) -> Tensor:
    """round(density n^2) positions, entries uniform in (-magnitude, magnitude), zero diagonal."""
    W = torch.zeros(n * n)
    where = torch.randperm(n * n, generator=generator)[: round(density * n * n)]
    W[where] = magnitude * (2 * torch.rand(len(where), generator=generator) - 1)
    return W.view(n, n).fill_diagonal_(0)


def _barrier_minimiser(Y: Tensor) -> Tensor:
    """argmin over a > 0 of a^T (I - Y) a / 2 - sum log a, which is self-concordant: a_i^2 = 1 + R_i."""
    K = torch.eye(Y.shape[0], dtype=Y.dtype, device=Y.device) - Y
    a = torch.ones_like(Y[0])
    for _ in range(500):
        gradient = K @ a - 1 / a
        step = torch.linalg.solve(K + torch.diag(a**-2), gradient)
        decrement = float((gradient @ step).clamp(min=0).sqrt())
        a = a - step / (1 + decrement if decrement > 0.25 else 1)
        if decrement < 1e-12:
            break
    return a
