"""Input signals u(t) from samples: zero-order hold, linear, cubic Hermite.

A signal is called u(t) and gives (batch, m), beyond its first and last time the first and last sample.
`breaks` are the times where u or u' jumps, onto which solvers with several stages must step.
"""

from bisect import bisect_right
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.errors import DataError, ShapeError
from ctrnn_assembly.transforms import holds, transformed


class Signal:
    """Samples (batch, time, m) at increasing times (time,), one grid for the whole batch; or (batch,
    time, ...) for a field of one's own.

    With `lengths` (batch,), from 1, a sequence ends with that many samples; its last one is held after.
    A subclass writes `between`, or `__call__`, and which times are its `breaks`. ShapeError or DataError
    if shapes do not fit, a value is not finite, or times do not increase.
    """

    jumps: ClassVar[Any] = slice(0)

    def __init__(self, samples: Tensor, times: Tensor, lengths: Tensor | None = None) -> None:
        samples, times = torch.as_tensor(samples), torch.as_tensor(times)
        if lengths is not None:
            samples = held(samples, torch.as_tensor(lengths))
        if samples.ndim < 3 or times.ndim != 1 or samples.shape[1] != len(times) or len(times) < 1:
            must = "samples must be (batch, time, m) and times (time,)"
            raise ShapeError(f"{must}; got {tuple(samples.shape)} and {tuple(times.shape)}.")
        check_finite(samples)
        if not (holds(torch.isfinite(times)) and holds(times.diff() > 0)):
            raise DataError(f"sample times must be finite and increase; got {times.tolist()[:5]}...")
        self.samples, self.times, self.breaks = samples, times, times[self.jumps]
        self.rounded: dict[torch.dtype, list[float]] = {}

    def between(self, k: int, s: Tensor) -> Tensor:
        """u at the fraction s, 0-dimensional in 0..1, of the way from times[k] to times[k+1]."""
        return self.samples[:, k]

    def __call__(self, t: Tensor) -> Tensor:
        """u(t), (batch, m), for a 0-dimensional t."""
        # Rounded as solvers round t, so that a step from a sample's time sees that sample.
        if t.dtype not in self.rounded:
            self.rounded[t.dtype] = self.times.to(t.dtype).tolist()
        times = self.rounded[t.dtype]
        k = max(bisect_right(times, t.item()) - 1, 0)
        if k >= len(times) - 1:
            return self.samples[:, -1]
        learns = self.times.requires_grad or transformed()
        at: Any = self.times.to(t) if learns else times
        s = (t - at[k]) / (at[k + 1] - at[k])
        return self.between(k, s.clamp(0, 1).to(self.samples))


class ZeroOrderHold(Signal):
    """u(t) = s_k for t_k <= t < t_k+1: what a fixed-step network with one step a sample sees.

    >>> u = ZeroOrderHold(torch.tensor([[[0.0], [1.0], [0.0]]]), torch.arange(3.0))
    >>> u(torch.tensor(0.5)), u.breaks
    (tensor([[0.]]), tensor([1., 2.]))
    """

    jumps = slice(1, None)


class LinearInterpolation(Signal):
    """Straight lines between samples.

    >>> LinearInterpolation(torch.tensor([[[0.0], [1.0], [0.0]]]), torch.arange(3.0))(torch.tensor(0.5))
    tensor([[0.5000]])
    """

    jumps = slice(None)

    def between(self, k: int, s: Tensor) -> Tensor:
        return torch.lerp(self.samples[:, k], self.samples[:, k + 1], s)


class CubicHermite(Signal):
    """Piecewise cubic with continuous slope; the slope at a sample is the mean of its two secants.

    They are made once, of a copy: what is written into the samples later does not reach them.

    >>> CubicHermite(torch.tensor([[[0.0], [1.0], [0.0]]]), torch.arange(3.0))(torch.tensor(0.5))
    tensor([[0.6250]])
    """

    def __init__(self, samples: Tensor, times: Tensor, lengths: Tensor | None = None) -> None:
        super().__init__(torch.as_tensor(samples).clone(), times, lengths)
        samples, times = self.samples, self.times
        count, features = len(times), [1] * (samples.ndim - 2)
        ends = torch.as_tensor([count] if lengths is None else lengths, device=samples.device)
        self.breaks = torch.cat([times[:1], times[(ends - 1).to(times.device)]])  # constants begin
        rise, width = samples.diff(dim=1), times.diff().view(-1, *features).to(samples)
        secants = rise / width
        before, after = torch.cat([secants[:, :1], secants], 1), torch.cat([secants, secants[:, -1:]], 1)
        mean = (before + after) / 2
        last = torch.arange(count, device=samples.device) == ends[:, None] - 1
        last = last.view(*last.shape, *features)
        # On the left and on the right of a sample: they differ at the last one, which is held.
        left, right = torch.where(last, before, mean)[:, 1:], mean.masked_fill(last, 0)[:, :-1]
        b, c = width * right, width * left
        powers = samples[:, :-1], b, 3 * rise - 2 * b - c, b + c - 2 * rise
        self.powers = torch.stack(powers).movedim(2, 0)  # of s, in each interval

    def between(self, k: int, s: Tensor) -> Tensor:
        a, b, c, d = self.powers[k]
        return torch.addcmul(a, s, torch.addcmul(b, s, torch.addcmul(c, s, d)))


INTERPOLATIONS: Any = {"hold": ZeroOrderHold, "linear": LinearInterpolation, "cubic": CubicHermite}


def over_samples(
    u: Tensor, dt: float | Tensor, lengths: Tensor | None, interpolation: str
) -> dict[str, Any]:
    """What `solve` takes for samples u (batch, time, m), dt apart: u and dt, or times and a signal."""
    if interpolation == "hold":
        return {"u": u, "dt": dt}
    if isinstance(dt, Tensor) and dt.ndim > 1:
        raise ShapeError(f"interpolation={interpolation!r} needs one dt for all samples.")
    lasting = torch.as_tensor(dt, dtype=torch.float64, device=u.device).expand(u.shape[1])
    t = torch.cat([lasting.new_zeros(1), lasting.cumsum(0)])
    return {"u": INTERPOLATIONS[interpolation](u, t[:-1], lengths), "t": t}


def held(samples: Tensor, lengths: Tensor) -> Tensor:
    """Samples (batch, time, m) whose last valid one is held past the lengths (batch,)."""
    k = torch.arange(samples.shape[1], device=samples.device)
    last = k.minimum(lengths.to(k)[:, None] - 1)
    return samples.gather(1, last[..., None].expand_as(samples))


def check_finite(samples: Tensor, what: str = "the input") -> None:
    """Refuse NaN and infinite numbers: a DataError with the index of the first."""
    if holds(torch.isfinite(samples)):
        return
    where = tuple((~torch.isfinite(samples)).nonzero()[0].tolist())
    got = f"{float(samples[where])} at index {where} of {tuple(samples.shape)}"
    raise DataError(f"{what} must be finite; got {got}. Clean or mask the data first.")


def as_tensor(name: str, given: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor as it is; else what numpy reads, where `like` is and, if it is given, of a dtype."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, tuple) and any(isinstance(part, Tensor) and part.ndim for part in given):
        raise ShapeError(f"{name} must be one tensor; got {len(given)}. Pass torch.cat({name}, dim=-1).")
    array = np.array(given, order="C")
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"{name} must be a tensor or array of numbers; got {type(given).__name__}.")
    return torch.from_numpy(array).to(like.device, dtype)
