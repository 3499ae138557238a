"""Theorem 35 of Gokhale et al. 2026: firing rates, tau r' = -r + phi(W r + u), W of any norm.

    g W = E (2 sqrt(1 - c) S V - V^T V) E^-1,    ||S|| <= 1,    E = diag(e^d),

contracts at rate c / tau in Theta = V E^-1, and the x-form in Theta W^-1 while W is invertible (THEORY
section 2). It contains Theorem 5. For a given W, E is I or from balancing, and P = V^T V the largest
solution of an equation, which doubling finds wherever there is one (Engwerda et al. 1993).

Source: Gokhale et al. 2026 (arXiv 2604.15238), Theorem 35. The map is ours.
"""

import torch
from scipy.linalg import matrix_balance
from torch import Tensor

from ctrnn_assembly.contracting.diagonal import balanced
from ctrnn_assembly.contracting.interface import Contracting, Form
from ctrnn_assembly.contracting.theorem2_symmetric import bounded_gram, gram_root
from ctrnn_assembly.contracting.theorem5_singular import above, below_one
from ctrnn_assembly.errors import ContractionError
from ctrnn_assembly.metrics import Factor

SMALLEST_P = 0.02
LARGEST_P = 8.0  # ||P - SMALLEST_P I||_F < LARGEST_P sqrt(n)


class FiringRate(Contracting):
    """Theorem 35: phi inside, W of any norm; raw tensors A, B (n, n) and d (n,), see the module.

    S is below 1 by the map of Theorem 5, P = V^T V = .02 I + B B^T / n, squashed, and d by tanh.
    Guarantee: rate >= margin / tau for every phi with slopes in [0, g].

    >>> net = Subnetwork(FiringRate("relu"), 20, form="r")
    >>> bool(torch.linalg.matrix_norm(net.weight, 2) > 1), certify(net).certified
    (True, True)
    """

    theorem = "Theorem 35"
    monotone_only = True
    axes = "nn", "nn", "n"

    @property
    def left(self) -> float:
        """1 - c, a hundredth below 1 - margin: rounding W to float32 costs less."""
        return (1 - self.margin) * 0.99

    def weight(self, A: Tensor, B: Tensor, d: Tensor) -> Tensor:  # type: ignore[override]
        P = bounded_gram(B, SMALLEST_P, LARGEST_P)
        V = torch.linalg.cholesky_ex(P)[0].mT  # NaN of NaN, without an error
        return balanced(2 * self.left**0.5 * below_one(A) @ V - P, d.tanh()) / self.phi.g

    def raw(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = matrix_balance(W.cpu().numpy(), permute=False, separate=True)[1][0]
        balance = torch.from_numpy(scale).log().to(W)
        balance -= balance.mean()
        balance *= min(1.0, 0.99 / (float(balance.abs().max()) + 1e-300))
        for d in (torch.zeros_like(balance), balance):
            A, high = balanced(self.phi.g * W, -d), self.left * 0.999  # less than `left`: room to S
            if (P := _largest_gram(A, high)) is not None:
                break
        else:
            condition = f"P + A P^-1 A^T <= {4 * high:.4g} I - A - A^T for a P > 0"
            size = float(torch.linalg.matrix_norm(W, 2))
            raise self.outside(condition, size, "||W|| is that. Scale W down.")
        # All P of the inequality are a convex set: away from its largest there is room to S.
        low, strongest = 0.0, P
        for _ in range(12):
            middle = (low + high) / 2
            found = _largest_gram(A, middle)
            strongest, low, high = (strongest, middle, high) if found is None else (found, low, middle)
        between = (P + strongest) / 2
        try:
            P, B = between, gram_root(self, "P", torch.linalg.eigh(between), SMALLEST_P, LARGEST_P)
        except ContractionError:
            B = gram_root(self, "P", torch.linalg.eigh(P), SMALLEST_P, LARGEST_P)
        V = torch.linalg.cholesky(P).mT
        S = torch.linalg.solve_triangular(V, A + P, upper=True, left=False) / (2 * self.left**0.5)
        return above(S), B, torch.atanh(d)

    def metric(self, *raw: Tensor, form: Form) -> Factor:
        V = torch.linalg.cholesky_ex(bounded_gram(raw[1], SMALLEST_P, LARGEST_P))[0].mT
        e = raw[2].tanh().exp()[..., None]
        inverse = torch.linalg.solve_triangular(V, torch.eye(V.shape[-1]).to(V), upper=True)
        theta, theta_inv = V / e.mT, e * inverse
        if form == "x":  # x = W r
            W = self.weight(*raw)
            theta, theta_inv = torch.linalg.solve_ex(W, theta, left=False)[0], W @ theta_inv
        return Factor.dense(theta, theta_inv)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        A, B = torch.randn(2, n, n, generator=generator)
        return self(A * self.init_scale / n**0.5, torch.eye(n) * n**0.5 + 0.3 * B, torch.zeros(n))


def _largest_gram(A: Tensor, left: float) -> Tensor | None:
    """The largest P > 0 with P + A P^-1 A^T = 4 left I - A - A^T, (n, n), by doubling; None for none."""
    P, lower = 4 * left * torch.eye(len(A)).to(A) - A - A.mT, torch.zeros_like(A)
    for _ in range(40):
        factor, failed = torch.linalg.cholesky_ex(P - lower)
        if bool(failed):
            return None
        right, down = torch.cholesky_solve(A.mT, factor), torch.cholesky_solve(A, factor)
        P, lower, A, before = P - A @ right, lower + A.mT @ down, A @ down, P
        if float((P - before).norm()) <= 1e-13 * float(P.norm()):
            break
    return P if bool(torch.linalg.cholesky_ex(P)[1] == 0) else None
