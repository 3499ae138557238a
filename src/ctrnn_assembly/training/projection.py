"""Keep the Euler step certified while training: scale the coupling into the ball that the modules allow.

    L = Theta^-1 S Theta with S = sum over the levels of K - K^T, so ||L||_M = ||S|| in every metric
    K <- min(1, omega / ||S||) K at every level, omega = largest_coupling(modules, dt)

After an optimiser step ||S|| is estimated by power iteration, from below, and omega is the last epoch's:
cheap, and inside up to a few percent. At the end of an epoch, before anything is validated or saved,
omega is computed anew, ||S|| is bounded with its rounding, and the result is certified as it stands.
Nothing is kept from one epoch to the next but what follows from the weights: resuming is exact.

Cost: O(n^2) after a step; omega, one certificate and O(n^3) at the end of an epoch.
Not done: the nearest point of the ball, which would shrink only the largest singular values of S, and
would fill blocks that the topology leaves empty.

Source: THEORY section 6, the disc lemma; `largest_coupling`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ctrnn_assembly.assembly import Assembly
from ctrnn_assembly.certificates import Certificate, certify, largest_coupling
from ctrnn_assembly.certificates.rounding import spectral_norm
from ctrnn_assembly.coupling import Feedback, Hierarchy
from ctrnn_assembly.errors import ConfigError, ContractionError
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.subnetwork import Subnetwork

FIRST, EACH = 30, 4  # products with S when an epoch starts, and after each step
# omega is for a skew S; what rounding of L to float32 adds in a dense metric is shrunk away.
SHRINK = (0.999, 0.99, 0.9, 0.5)


class StepProjection:
    """The coupling of a model, kept where the Euler step of its `dt` is certified.

    Args:
        model: a classifier whose core is a `CTRNN` with solver euler, coupled by `Feedback` or not at
            all. Its coupling is scaled in place, at once.

    Attributes:
        omega: the largest ||L||_M that the modules allow.
        certificate: of the weights as `project` left them.

    Raises:
        ConfigError: if there is nothing to project: another solver, coupling or kind of model.
        ContractionError: if the modules alone have no certified step.

    Guarantee: `project` leaves weights whose `certificate` holds in continuous time and for the step, or
    raises; weights that are not finite are left as they are, and not certified. Between two calls
    `after_step` holds the coupling near the ball, without a guarantee.
    """

    omega: float
    certificate: Certificate

    def __init__(self, model: SequenceClassifier) -> None:
        core = model.core
        if not isinstance(core, CTRNN) or core.gates is not None:
            raise ConfigError(
                "keep_step_certified scales the feedback coupling of a CTRNN without gates; got another "
                f"core, a {type(core).__name__}. Leave it out."
            )
        self.model, self.core = model, core
        _check_solver(core.solver)
        self.levels = feedback_levels(core.field)
        leaves = [core.field] if isinstance(core.field, Subnetwork) else core.field.leaves()
        self.is_trained = any(p.requires_grad for leaf in leaves for p in leaf.parameters())
        self.start()

    def start(self) -> None:
        """Project the weights that training starts, or goes on, from."""
        self._bound_coupling()
        self._shrink()

    @torch.no_grad()
    def start_epoch(self) -> None:
        """Forget the last epoch's singular vector, which a resumed run would not have."""
        fixed = torch.Generator().manual_seed(0)
        v = torch.randn(self.core.field.size, generator=fixed, dtype=torch.float64)
        self.vector = v.to(self.core.encoder.weight)
        self._estimate(FIRST)

    @torch.no_grad()
    def after_step(self) -> None:
        """Scale the coupling down if its estimated norm exceeds omega; reads nothing from the device."""
        if self.levels:
            self._scale((self.omega / self._estimate(EACH)).clamp(max=1))

    @torch.no_grad()
    def project(self) -> None:
        """Scale the coupling until the step is certified, with an omega of the modules as they are now.

        Raises:
            ContractionError: if the modules alone have no certified step.
        """
        if not all(bool(p.isfinite().all()) for p in self.core.field.parameters()):
            self.certificate = self._certify()
            return
        if self.is_trained:
            self._bound_coupling()
        self._shrink()

    def norm(self) -> float:
        """An upper bound on ||S||, which is ||L||_M but for rounding; infinite if K is not finite."""
        n = self.core.field.size
        S = torch.zeros(n, n, dtype=torch.float64)
        for coupling, units in self.levels:
            K = coupling.K().detach().cpu().double()
            S[units, units] += K - K.mT
        return spectral_norm(S)

    @torch.no_grad()
    def _bound_coupling(self) -> None:
        """omega, from the modules alone."""
        alone, metric = replace(self.core.field.terms(), L=None), self.core.field.metric()
        self.omega = largest_coupling(alone, metric, self.core.dt)
        if self.omega == 0:
            raise ContractionError(self._refusal(certify(alone, metric, dt=self.core.dt, search="none")))

    @torch.no_grad()
    def _shrink(self) -> None:
        """Scale the coupling into the ball, and on until the step is certified as it was rounded."""
        norm, below = self.norm(), 1e-6
        while self.omega < norm < math.inf:  # float32 may round a scaled K outwards
            self._scale((1 - below) * self.omega / norm)
            norm, below = self.norm(), 2 * below
        self.certificate = self._certify()
        for shrink in SHRINK:
            if _holds(self.certificate):
                return
            self._scale(shrink)
            self.certificate = self._certify()
        if not _holds(self.certificate):
            raise ContractionError(self._refusal(self.certificate))

    def _certify(self) -> Certificate:
        return self.core.certificate()

    def _refusal(self, certificate: Certificate) -> str:
        """Why scaling the coupling is not enough, from the certificate that failed."""
        step = certificate.step
        assert step is not None
        why = "; ".join(certificate.reasons) or step.reason
        if step.certified:  # of the modules alone, but omega needs more room than a certificate
            why = f"the bound on the modules' own factor is {step.contraction_factor}, too close to 1"
        return (
            f"the Euler step of dt {self.core.dt:g} must be certifiable by scaling the coupling; {why}. "
            "Use another dt or model, or leave keep_step_certified out."
        )

    def _estimate(self, products: int) -> Tensor:
        """||S|| from below, by power iteration: |S v| never falls along it, as S is normal."""
        matrices = [(coupling.K(), units) for coupling, units in self.levels]
        norm = self.vector.new_zeros(())
        for _ in range(products):
            v = self.vector / self.vector.norm()
            turned = torch.zeros_like(v)
            for K, units in matrices:
                turned[units] += K @ v[units] - K.mT @ v[units]
            norm = turned.norm()
            self.vector = torch.where(norm > 0, turned, v)
        return norm

    def _scale(self, factor: float | Tensor) -> None:
        for coupling, _ in self.levels:
            coupling.K.values.mul_(factor)


def feedback_levels(field: Subnetwork | Assembly, start: int = 0) -> list[tuple[Feedback, slice]]:
    """Every feedback coupling of a nested assembly, with the units that it joins.

    Raises:
        ConfigError: if a level is coupled in another way.
    """
    if isinstance(field, Subnetwork):
        return []
    found: list[tuple[Feedback, slice]] = []
    if isinstance(field.coupling, Feedback):
        found.append((field.coupling, slice(start, start + field.size)))
    elif field.coupling is not None:
        why = "a free coupling has no certificate to keep"
        if isinstance(field.coupling, Hierarchy):
            why = "a hierarchy changes its metric with its size, so the modules give no bound on it"
        raise ConfigError(f"keep_step_certified needs coupling_kind feedback; {why}.")
    for part in field.children_fields():
        found += feedback_levels(part, start)
        start += part.size
    return found


def _check_solver(solver: str) -> None:
    if solver == "euler":
        return
    if solver in ("imex", "exponential-euler"):
        raise ConfigError(
            f"keep_step_certified is for solver euler; with {solver} the coupling cannot break the "
            "step, so there is nothing to project. Leave it out."
        )
    raise ConfigError(
        f"keep_step_certified is for solver euler; no proof is known for steps of {solver}. Use euler, "
        "or imex without it."
    )


def _holds(certificate: Certificate) -> bool:
    return certificate.step is not None and certificate.step.certified
