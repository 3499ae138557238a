"""What every baseline answers where a `CTRNN` has terms, a metric and a certificate."""

from __future__ import annotations

import math
from typing import NoReturn

from torch import Tensor

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.certify import Search
from ctrnn_assembly.errors import ConfigError


class Uncertified:
    """The answers of a layer that is not an assembly of contracting modules."""

    def terms(self) -> NoReturn:
        """Refused: x' is not of the form of `Terms`."""
        raise ConfigError(
            f"{type(self).__name__} has no terms: its weights are not those of an assembly. Use "
            "step(u, x), or a CTRNN."
        )

    def metric(self) -> NoReturn:
        """Refused: no metric is known in which the layer contracts."""
        raise ConfigError(
            f"{type(self).__name__} has no metric in which it is known to contract. Use a CTRNN."
        )

    def certificate(
        self, *, dt: float | None = None, solver: str | None = None, search: Search = "fast"
    ) -> Certificate:
        """A certificate that certifies nothing, and says why; dt is 1, a sample, if None."""
        reason = (
            f"{type(self).__name__} is a baseline: no certificate is defined for it, as nothing bounds "
            "how far two of its states may part. Use svd-combo, say"
        )
        step = 1.0 if dt is None else dt
        return Certificate.refused(reason, dt=step, solver=solver or "own step")

    def firing_rates(self, x: Tensor) -> Tensor:
        """The state itself, (..., n)."""
        return x

    def project_(self) -> None:
        """Nothing: the raw weights have no set to stay in."""


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ConfigError unless `value` is finite and in [low, high]."""
    if not (math.isfinite(value) and low <= value <= high):
        closing = "]" if math.isfinite(high) else ")"
        raise ConfigError(f"{name} must lie in [{low}, {high}{closing}; got {value}.")


def check_own_step(dt: object) -> None:
    """Raise ConfigError if a step was given to a layer whose step is a part of its weights."""
    if dt is not None:
        raise ConfigError(f"a baseline's step is its own; got dt={dt}. Leave dt out, or use a CTRNN.")
