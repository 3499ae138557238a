"""Keep the Euler step certified while training: scale the coupling into the ball that the modules allow.

    L = Theta^-1 S Theta with S = sum over the levels of K - K^T, so ||L||_M = ||S|| in every metric
    K <- min(1, omega / ||S||) K at every level, omega = largest_coupling(modules, dt)

After an optimiser step ||S|| is estimated by power iteration, and omega is the last epoch's: O(n^2), and
inside up to a few percent. At the end of an epoch, before anything is validated or saved, omega is
computed anew, ||S|| is bounded with its rounding, and the result is certified as it stands.

Source: THEORY section 6, the disc lemma; `largest_coupling`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.certificates import Certificate, certify, largest_coupling
from ctrnn_assembly.certificates.rounding import spectral_norm
from ctrnn_assembly.errors import ConfigError, ContractionError

FIRST, EACH = 30, 4  # products with S when an epoch starts, and after each step
# Of omega, which is for a skew S: what rounding to float32 adds, in a dense metric too, is shrunk away.
SHRINK = (1 - 1e-6, 0.999, 0.99, 0.9, 0.5)


class StepProjection:
    """The coupling of a layer, kept where the Euler step of its `dt` is certified.

    `core`, projected at once, is a `CTRNN` with solver euler, coupled by `Feedback` or not at all, else
    a ConfigError is raised. `certificate` is that of the weights as `project` left them.

    Guarantee: it holds in continuous time and for the step, or `project` raises; weights that are not
    finite are left as they are, and not certified.
    """

    certificate: Certificate

    def __init__(self, core: Any) -> None:
        self.core = core
        try:
            core.terms()
        except ConfigError as error:
            raise ConfigError(f"keep_step_certified needs the terms of a field: {error}") from None
        if core.solver != "euler":
            why = f"no proof is known for steps of {core.solver}"
            if core.solver in ("imex", "exponential-euler"):
                why = f"with {core.solver} the coupling cannot break the step, so there is nothing to do"
            raise ConfigError(
                f"keep_step_certified is for solver euler; {why}. Use euler, or leave it out."
            )
        self.levels = core.field.levels()
        for why in filter(None, (coupling.unbounded for coupling, _ in self.levels)):
            raise ConfigError(f"keep_step_certified needs coupling_kind feedback; {why}.")
        self.project()

    @torch.no_grad()
    def after_step(self) -> None:
        """Scale the coupling down if its estimated norm exceeds omega; reads nothing from the device."""
        if self.levels:
            self._scale((self.omega / self._estimate(EACH)).clamp(max=1))

    @torch.no_grad()
    def project(self) -> None:
        """Scale the coupling until the step is certified; a ContractionError if no scale will do."""
        if not all(bool(p.isfinite().all()) for p in self.core.field.parameters()):
            self.certificate = self.core.certificate()
            return
        alone, metric, dt = replace(self.core.terms(), L=None), self.core.metric(), self.core.step_size
        self.omega = largest_coupling(alone, metric, dt)
        for shrink in SHRINK if self.omega > 0 else SHRINK[:1]:
            if 0 < self.omega < (norm := self.norm()) / shrink:
                self._scale(shrink * self.omega / norm)
            self.certificate = self.core.certificate()
            proven = self.certificate.step
            if self.omega > 0 and proven is not None and proven.certified:
                # The power iteration starts anew from a fixed vector: resuming is bit-identical.
                fixed = torch.Generator().manual_seed(0)
                vector = torch.randn(self.core.hidden_size, generator=fixed, dtype=torch.float64)
                self.vector = vector.to(self.core.encoder.weight)
                self._estimate(FIRST)
                return
        failed = self.certificate if self.omega > 0 else certify(alone, metric, dt=dt)
        step: Any = failed.step
        why = "; ".join(failed.reasons) or step.reason
        if step.certified:  # of the modules alone, but omega needs more room than a certificate
            why = f"the bound on the modules' own factor is {step.contraction_factor}, too close to 1"
        raise ContractionError(
            f"the Euler step of dt {dt:g} must be certifiable by scaling the coupling; {why}. "
            "Use another dt or model, or leave keep_step_certified out."
        )

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
