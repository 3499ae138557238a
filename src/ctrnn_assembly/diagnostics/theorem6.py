"""Theorem 6, corrected: the metric P^-1 D(t) that moves with the slopes, along one trajectory.

For tau x' = -x + W phi(x) + b + u with slopes D = diag(phi'(x(t))) > 0, a diagonal P > 0 and 0 < c <= 2,

    (g W - I) P + P (g W^T - I) <= -c P    and    D' - c D <= -beta D    (tau = 1)

let |v| in the metric P^-1 D shrink at the rate beta / 2 for every v' = (-I + W D) v. Time constants
enter as beta = min_i c / tau_i - d/dt log D_ii in the metric diag(tau) P^-1 D.

A monitor, never a certificate: another input or initial state has other slopes. D = 0 (ReLU), couplings,
the r-form and a P that is not diagonal are refused, as the proof does not cover them.

Source: Kozachkov et al. 2022, Theorem 6 (arXiv 2106.08928); corrections E5 of THEORY, section 2.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Activation, activation
from ctrnn_assembly.diagnostics.linearise import prepare, trajectory
from ctrnn_assembly.errors import ContractionError, ShapeError
from ctrnn_assembly.inputs import check_finite
from ctrnn_assembly.linalg import symmetric_part


@dataclass(frozen=True)
class Theorem6:
    """What the conditions are along one sampled trajectory.

    Attributes:
        c: the largest c <= 2 of the first condition, 2 - 2 g lmax(sym(P^-1/2 W P^1/2)).
        rate: beta / 2, beta the minimum over samples and units: the norm decays at least like
            exp(-rate t) at the sampled instants if c > 0.
        condition_number: of diag(tau) P^-1 D over all samples.
        missed: largest change of log D_ii from one sample to the next that the derivatives at the two
            do not explain, as at a kink of phi, which the theorem excludes.
    """

    certified: ClassVar[bool] = False
    note: ClassVar[str] = "a monitor of one trajectory: it proves nothing about any other"

    c: float
    rate: float
    condition_number: float
    missed: float

    @property
    def holds(self) -> bool:
        """Whether both conditions hold at every sample."""
        return self.c > 0 and self.rate > 0


def theorem6(
    W: Tensor,
    phi: str | Activation,
    x: Tensor,
    velocity: Tensor,
    P: Tensor,
    *,
    tau: Tensor | float = 1.0,
) -> Theorem6:
    """Check Theorem 6 at states x in the order of time, and x', (time, n) or (batch, time, n).

    W is (n, n), P the diagonal of P, (n,), and d/dt log D_ii = phi''(x_i) / phi'(x_i) x_i'.
    """
    phi, W, P = activation(phi), W.detach().double(), P.detach().double()
    if W.shape != (*P.shape, *P.shape) or P.ndim != 1:
        got = f"{tuple(W.shape)} and {tuple(P.shape)}. A P that is not diagonal gives no metric P^-1 D."
        raise ShapeError(f"W must be (n, n) and P the diagonal, (n,); got {got}")
    if not bool(((P > 0) & torch.isfinite(P)).all()):
        raise ContractionError(f"P must be positive and finite; got {P.tolist()[:5]}...")
    balanced = P.rsqrt()[:, None] * W * P.sqrt()
    c = min(2.0, 2 - 2 * phi.g * float(torch.linalg.eigvalsh(symmetric_part(balanced))[-1]))
    check_finite(torch.stack([x, velocity]), "the trajectory")
    tau = torch.as_tensor(tau, dtype=x.dtype).expand(len(P))
    slope = torch.func.grad(lambda z: phi(z).sum())
    D, second = slope(x), torch.func.grad(lambda z: slope(z).sum())(x)
    if not bool((D > 0).all()):
        raise ContractionError(
            f"Theorem 6 needs slopes above 0 along the whole trajectory; got {float(D.min()):.3g} of "
            f"{phi.name}. Use tanh, sigmoid or softplus with moderate states; for ReLU Theorems 1 and 5."
        )
    bend = second / D
    beta = c / tau - bend * velocity
    metric = tau / P * D
    change = (bend[..., 1:, :] + bend[..., :-1, :]) / 2 * x.diff(dim=-2)
    missed = (D.log().diff(dim=-2) - change).abs()
    return Theorem6(
        c=c,
        rate=float(beta.min()) / 2,
        condition_number=float(metric.max() / metric.min()),
        missed=float(missed.max()) if missed.numel() else 0.0,
    )


@torch.no_grad()
def monitor_theorem6(
    net: Any, u: Tensor, x0: Tensor | None = None, *, dt: float | None = None, P: Tensor | None = None
) -> Theorem6:
    """Follow trajectories, and check Theorem 6 at both ends of every interval: x' jumps with the input.

    u is (batch, time, m), held over dt each; P by default the inverse of the net's own diagonal metric.
    A ContractionError refuses what the theorem does not cover.
    """
    known, samples, x0 = prepare(net, u, x0, "(batch, time, m)", "x0 (batch, n)")
    assert samples is not None
    terms, metric = known.terms, known.metric
    kinds = set() if terms is None else {*terms.pre.units}
    plain = terms is not None and terms.L is None and not terms.edges and terms.post.is_identity
    if terms is None or not plain or len(kinds) != 1 or kinds == {ACTIVATIONS["identity"]}:
        got = "a coupling, the r-form, several activations or none. Use certify, or measure_contraction."
        raise ContractionError(f"Theorem 6 covers x' = -x + W phi(x) + u with one phi; got {got}")
    if P is None:
        if metric is None or not metric.is_diagonal:
            must = "Theorem 6 needs a diagonal P, and the net has no diagonal metric to take it from"
            raise ContractionError(f"{must}; got P=None. Give P=torch.ones(n).")
        P = metric.matrix().diagonal().reciprocal()
    dt = known.resolve(dt, None)[0]
    states = trajectory(known, samples, x0, samples.shape[1], dt=dt, solver="dopri8")
    ends = torch.stack([states[:, :-1], states[:, 1:]], 2)  # (batch, time, 2, n)
    held = samples[:, :, None].expand(-1, -1, 2, -1).flatten(0, 2)
    velocity = terms(ends.flatten(0, 2), held).view(ends.shape)
    W, tau = terms.weight(), terms.tau
    return theorem6(W, kinds.pop(), ends.flatten(1, 2), velocity.flatten(1, 2), P, tau=tau)
