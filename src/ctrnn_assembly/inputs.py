"""Input signals u(t) from samples: zero-order hold, linear, cubic Hermite.

A signal is called u(t) and gives (batch, m). Beyond its first and last sample time it keeps the first
and last sample. `breaks` are the times where u or its slope jumps; solvers with several stages must
step onto each of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ctrnn_assembly.errors import DataError, ShapeError


class Signal(ABC):
    """Samples (batch, time, m) at increasing times (time,), one grid for the whole batch.

    Raises:
        ShapeError: if the shapes do not fit. DataError: if a value is NaN or infinite, or the times
        do not increase.
    """

    def __init__(self, samples: Tensor, times: Tensor) -> None:
        if samples.ndim != 3 or times.ndim != 1 or samples.shape[1] != len(times) or len(times) < 1:
            raise ShapeError(
                "samples must be (batch, time, m) and times (time,); got "
                f"{tuple(samples.shape)} and {tuple(times.shape)}."
            )
        check_finite(samples)
        if not bool((times.diff() > 0).all()) or not bool(torch.isfinite(times).all()):
            raise DataError(f"sample times must be finite and increase; got {times.tolist()[:5]}...")
        self.samples, self.times = samples, times

    @property
    def breaks(self) -> Tensor:
        """Times of discontinuities of u or u'."""
        return self.times[:0]

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """u(t), (batch, m), for a 0-dimensional t."""

    def interval(self, t: Tensor) -> int:
        """The k with times[k] <= t < times[k+1], clamped to the samples.

        The times are first rounded to the dtype of t: solvers round t to the dtype of the state, and
        a step that starts at a sample time must see that sample.
        """
        k = int(torch.searchsorted(self.times.to(t), t.reshape(1), right=True)) - 1
        return min(max(k, 0), len(self.times) - 1)

    def fraction(self, t: Tensor, k: int) -> Tensor:
        """How far t is from times[k] to times[k+1], in 0..1; 0-dimensional."""
        return ((t - self.times[k]) / self.width(k)).clamp(0, 1).to(self.samples)

    def width(self, k: int) -> Tensor:
        """times[k+1] - times[k], 0-dimensional."""
        return self.times[k + 1] - self.times[k]


class ZeroOrderHold(Signal):
    """u(t) = s_k for t_k <= t < t_k+1: what a fixed-step network with one step a sample sees."""

    @property
    def breaks(self) -> Tensor:
        return self.times[1:]

    def __call__(self, t: Tensor) -> Tensor:
        return self.samples[:, self.interval(t)]


class LinearInterpolation(Signal):
    """Straight lines between samples."""

    @property
    def breaks(self) -> Tensor:
        return self.times

    def __call__(self, t: Tensor) -> Tensor:
        k = self.interval(t)
        if k == len(self.times) - 1:
            return self.samples[:, -1]
        return torch.lerp(self.samples[:, k], self.samples[:, k + 1], self.fraction(t, k))


class CubicHermite(Signal):
    """Piecewise cubic with continuous slope; the slope at a sample is the mean of its two secants."""

    def __init__(self, samples: Tensor, times: Tensor) -> None:
        super().__init__(samples, times)
        if len(times) < 2:
            self.slopes = torch.zeros_like(samples)
            return
        secants = samples.diff(dim=1) / times.diff()[:, None].to(samples)
        inner = (secants[:, 1:] + secants[:, :-1]) / 2
        self.slopes = torch.cat([secants[:, :1], inner, secants[:, -1:]], 1)

    @property
    def breaks(self) -> Tensor:
        return self.times[[0, -1]]  # where the constant begins

    def __call__(self, t: Tensor) -> Tensor:
        k = self.interval(t)
        if k == len(self.times) - 1:
            return self.samples[:, -1]
        s, width = self.fraction(t, k), self.width(k).to(self.samples)
        a, b = self.samples[:, k], self.samples[:, k + 1]
        da, db = width * self.slopes[:, k], width * self.slopes[:, k + 1]
        value = a * (1 + 2 * s) * (1 - s) ** 2 + b * s**2 * (3 - 2 * s)
        return value + da * s * (1 - s) ** 2 - db * s**2 * (1 - s)


INTERPOLATIONS: dict[str, type[Signal]] = {
    "hold": ZeroOrderHold,
    "linear": LinearInterpolation,
    "cubic": CubicHermite,
}


def check_finite(samples: Tensor) -> None:
    """Refuse NaN and infinite inputs, naming the first place.

    Raises:
        DataError: with the sample, time and feature of the first bad value.
    """
    if bool(torch.isfinite(samples).all()):
        return
    where = tuple((~torch.isfinite(samples)).nonzero()[0].tolist())
    raise DataError(
        f"the input must be finite; got {float(samples[where])} at index {where} of "
        f"{tuple(samples.shape)}. Clean or mask the data first."
    )
