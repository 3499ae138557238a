"""Pairs whose step lengths follow their input: factor, gains and bounded states, for all gates at once.

    z+ = E z + C (w o phi(z) + e),    E = e^{h A},    C = alpha (E - 1) / A,    h in [low, high]

with A = -alpha + i omega and slopes of phi in [-g, g]. Source: THEORY section 12.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrnn_assembly.activations import Activation
from ctrnn_assembly.certificates.rounding import UNIT

TOP = {"tanh": 1.0}  # sup |phi|, by the name of an activation of the library


@dataclass(frozen=True)
class SelectivePairs:
    """In float64: alpha and omega, (p,), w, (p, 2), phi outside, and the bounds of h."""

    alpha: Tensor
    omega: Tensor
    w: Tensor
    phi: Activation
    low: float
    high: float

    @property
    def _feedback(self) -> Tensor:
        """g max |w| of each pair."""
        return self.phi.g * self.w.abs().amax(1)

    @property
    def factor(self) -> float:
        """e^-x + (1 - e^-x) g max|w| with x = h alpha, the largest at h = low."""
        left = torch.exp(-self.low * self.alpha)
        return float((left + (1 - left) * self._feedback).max()) * (1 + 16 * UNIT)

    @property
    def response(self) -> Tensor:
        """sup |C|, (p,): alpha / |A| sqrt((1 - e^-x)^2 + 4 e^-x sin(h omega / 2)^2), term by term."""
        left, gone = torch.exp(-self.low * self.alpha), -torch.expm1(-self.high * self.alpha)
        turn = torch.sin((self.high * self.omega.abs() / 2).clamp(max=math.pi / 2))
        by_parts = torch.sqrt(gone * gone + 4 * left * turn * turn)
        return torch.minimum(gone, by_parts * self.alpha / torch.hypot(self.alpha, self.omega))

    def reach(self, e: Tensor) -> Tensor:
        """r, (p,), with |w o phi(z)| + e <= r for |z| <= r and |drive| <= e: never left once within."""
        offset, q = self._offset, self._feedback
        growing = torch.where(q < 1, (offset + e) / (1 - q).clamp(min=UNIT), math.inf)
        return torch.minimum(growing, e + self._largest)

    def speed(self, e: Tensor) -> Tensor:
        """sup |dz+/dh| <= e^-x (|A| r + alpha (F(r) + e)), (p,), for states within `reach`."""
        r = self.reach(e)
        F = torch.minimum(self._offset + self._feedback * r, self._largest)
        turned = torch.hypot(self.alpha, self.omega) * r
        return torch.exp(-self.low * self.alpha) * (turned + self.alpha * (F + e))

    @property
    def _offset(self) -> Tensor:
        """|w o phi(0)|."""
        return (self.w * self.phi(torch.zeros_like(self.w))).norm(dim=1)

    @property
    def _largest(self) -> Tensor:
        """sup |w o phi|; infinite where phi has no bound."""
        top = TOP.get(self.phi.name, math.inf) if self.phi.proven else math.inf
        size = self.w.norm(dim=1)
        return torch.where(size > 0, size * top, 0.0)
