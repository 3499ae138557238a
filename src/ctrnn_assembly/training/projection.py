"""Keep the Euler step certified while training: scale the coupling into the ball that the modules allow.

    L = Theta^-1 S Theta with S = sum over the levels of K - K^T, so ||L||_M = ||S|| in every metric
    K <- min(1, omega / ||S||) K at every level, omega = largest_coupling(modules, dt)

After an optimiser step ||S|| is estimated by power iteration, and omega is the last epoch's. At the end
of an epoch, before anything is validated or saved, omega is computed anew, and the result is certified
as it stands. Source: THEORY section 6, the disc lemma; `largest_coupling`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.certificates import Certificate, largest_coupling
from ctrnn_assembly.certificates.rounding import spectral_norm
from ctrnn_assembly.errors import ConfigError

FIRST, EACH = 30, 4  # products with S when an epoch starts, and after each step
INSIDE = 1 - 5e-6  # of omega: float32 rounds what is scaled by less, up to thousands of units
# omega is for a skew S; what rounding of L to float32 adds in a dense metric is shrunk away.
SHRINK = (1.0, 0.999, 0.99, 0.9, 0.5)


class StepProjection:
    """The coupling of a layer, kept where the Euler step of its `dt` is certified.

    `core`, projected at once, is a `CTRNN` with solver euler, coupled by `Feedback` or not at all, else
    a ConfigError is raised. `certificate` is that of the weights as `project` left them, and says
    whether any scale would do; weights that are not finite are left as they are.
    """

    certificate: Certificate

    def __init__(self, core: Any) -> None:
        self.core = core
        core.terms()  # a ConfigError says why there are none
        self.levels = core.field.levels()
        for why in filter(None, (coupling.unbounded for coupling, _ in self.levels)):
            raise ConfigError(f"keep_step_certified needs coupling_kind feedback; {why}.")
        self.project()

    @torch.no_grad()
    def after_step(self) -> None:
        """Scale the coupling down if its estimated norm exceeds omega; reads nothing from the device."""
        if self.levels and self.omega > 0:
            self._scale((self.omega / self._estimate(EACH)).clamp(max=1))

    @torch.no_grad()
    def project(self) -> None:
        """Scale the coupling until the step is certified, if any scale will do."""
        if not all(bool(p.isfinite().all()) for p in self.core.field.parameters()):
            self.certificate = self.core.certificate()
            return
        alone, metric = replace(self.core.terms(), L=None), self.core.metric()
        self.omega = largest_coupling(alone, metric, self.core.step_size)
        if 0 < self.omega < (norm := self.norm()):
            self._scale(INSIDE * self.omega / norm)
        for shrink in SHRINK:
            self._scale(shrink)
            self.certificate = self.core.certificate()
            proven = self.certificate.step
            if proven is not None and proven.certified:
                break
        # The power iteration starts anew from a fixed vector: resuming is bit-identical.
        fixed = torch.Generator().manual_seed(0)
        vector = torch.randn(self.core.hidden_size, generator=fixed, dtype=torch.float64)
        self.vector = vector.to(self.core.encoder.weight)
        self._estimate(FIRST)

    def norm(self) -> float:
        """An upper bound on ||S||, which is ||L||_M but for rounding; infinite if K is not finite."""
        return spectral_norm(self._skew(torch.zeros((), dtype=torch.float64)))

    def _skew(self, like: Tensor) -> Tensor:
        S = like.new_zeros(self.core.hidden_size, self.core.hidden_size)
        for coupling, units in self.levels:
            K = coupling.K().detach().to(like)
            S[units, units] += K - K.mT
        return S

    def _estimate(self, products: int) -> Tensor:
        """||S|| from below, by power iteration: |S v| never falls along it, as S is normal."""
        S = self._skew(self.vector)
        for _ in range(products):
            v = self.vector / self.vector.norm()
            turned = S @ v
            norm = turned.norm()
            self.vector = torch.where(norm > 0, turned, v)
        return norm

    def _scale(self, factor: float | Tensor) -> None:
        for coupling, _ in self.levels:
            coupling.K.values.mul_(factor)
