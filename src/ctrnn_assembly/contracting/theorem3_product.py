"""Theorem 3: W = -P1 Q P2 with P1, P2 > 0 diagonal and Q > 0 symmetric.

Metric (P1 Q P1)^-1 for the x-form, P2 Q P2 for the r-form; rate 1, whatever the size of W (M W D =
-P1^-1 P2 D is diagonal and <= 0). Of a given W, W_ij / W_ji = r_i / r_j with r = p1 / p2. P_k and Q are
bounded: rounding W to float32 costs little. Stiff: forward Euler needs h < 2/(1 + g lmax(P1QP2)).

Source: Kozachkov et al. 2022, Theorem 3 (arXiv 2106.08928); corrections E2 of THEORY.
"""

import torch
from torch import Tensor

from ctrnn_assembly.contracting.interface import Contracting, Form
from ctrnn_assembly.contracting.theorem2_symmetric import bounded_gram, gram_root
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.metrics import Factor

SMALLEST_Q = 0.01
LARGEST_Q = 4.0  # ||Q - SMALLEST_Q I||_F < LARGEST_Q sqrt(n)


class NegativeProduct(Contracting):
    """Theorem 3: W = -P1 Q P2; raw tensors p1 (n,), p2 (n,), E (n, n).

    P_k = diag(exp(tanh(p_k))), Q = 0.01 I + E E^T / n, squashed. Guarantee: rate 1 / tau for every phi
    with slopes in [0, g]; `rate` claims 0.99, whatever the margin: float32 rounds the weights.

    >>> round(certify(Subnetwork(NegativeProduct("relu"), 8)).rate, 2)
    1.0
    """

    theorem = "Theorem 3"
    monotone_only = True
    axes = "n", "n", "nn"
    rate = 0.99
    init_scale = 0.5  # standard deviation of X in Q = X X^T / n + I / 2

    def weight(self, p1: Tensor, p2: Tensor, E: Tensor) -> Tensor:  # type: ignore[override]
        left, right = -p1.tanh().exp()[..., None], p2.tanh().exp()[..., None, :]
        return left * bounded_gram(E, SMALLEST_Q, LARGEST_Q) * right

    def raw(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Of P1, the inverse of P2: log(r) / 2 by least squares over the pairs that are coupled; the
        # pseudo-inverse gives each connected component zero mean.
        i, j = (W * W.mT > 0).triu(1).nonzero(as_tuple=True)
        eye = torch.eye(len(W)).to(W)
        log_p = torch.linalg.pinv(eye[i] - eye[j]) @ (W[i, j] / W[j, i]).log() / 2
        if (worst := float(log_p.abs().max())) >= 1:
            raise self.outside("|log(p1 / p2)| < 2", 2 * worst, "Balance W first.")
        Q = -(-log_p).exp()[:, None] * W * log_p.exp()
        E = gram_root(self, "Q", torch.linalg.eigh(symmetric_part(Q)), SMALLEST_Q, LARGEST_Q)
        p = torch.atanh(log_p)
        return p, -p, E

    def metric(self, *raw: Tensor, form: Form) -> Factor:
        P = raw[0 if form == "x" else 1].tanh().exp()[..., None]
        Q = bounded_gram(raw[2], SMALLEST_Q, LARGEST_Q)
        C = torch.linalg.cholesky_ex(P * Q * P.mT)[0]  # C C^T = P Q P; NaN of NaN
        C_inv = torch.linalg.solve_triangular(C, torch.eye(C.shape[-1]).to(C), upper=False)
        return Factor.dense(C_inv, C) if form == "x" else Factor.dense(C.mT, C_inv.mT)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        p = 0.1 * torch.randn(2, n, generator=generator)
        X = self.init_scale * torch.randn(n, n, generator=generator)
        # Q stays away from singular: there the factors of `right_inverse` could leave the set.
        Q = X @ X.mT + 0.5 * n * torch.eye(n)
        E = torch.linalg.cholesky(Q.to(torch.promote_types(Q.dtype, torch.float32)))  # not of halves
        return self(p[0], p[1], E)
