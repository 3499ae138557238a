"""What a recurrent layer is given, read and checked, as sequences of one batch and length.

A PackedSequence is padded, one sequence (time, m) gets a batch of its own, and what is no tensor is read
by numpy. Past a sequence's length its last sample is held, so that padding by NaN harms no gradient.
Episodes within a sequence are the sequences of a larger batch: gathered, run at once, and put back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ctrnn_assembly.errors import ShapeError
from ctrnn_assembly.inputs import as_tensor, check_finite, held
from ctrnn_assembly.transforms import holds

Save = Literal["all", "last"]
Lengths = Tensor | None
Dt = float | Tensor | None
Data = Tensor | ArrayLike | PackedSequence | None  # what a user gives
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
Outputs = tuple[Tensor, Tensor]  # after each sample, (batch, time, n), and the last state
Run = Callable[[Tensor, Tensor, Lengths, Dt, Save], Outputs]


@dataclass(frozen=True)
class Sequences:
    """Samples u (batch, time, m), finite and held past the lengths, and what is given with them.

    lengths are (batch,), int64, or None; dt None, a number, (time,) or (batch, time); reset None or
    (batch, time), bool. `batched` is whether they came with a batch.
    """

    u: Tensor
    lengths: Lengths
    dt: Dt
    reset: Tensor | None
    batched: bool

    @classmethod
    def read(cls, u: Tensor, lengths: Data, dt: Data, reset: Data) -> "Sequences":
        """Check what is given with u, (batch, time, m) or (time, m)."""
        batched = u.ndim == 3
        u = u if batched else u[None]
        batch, time, _ = u.shape
        if dt is not None and not isinstance(dt, int | float):
            dt = as_tensor("dt", dt, u)
            dt = dt[..., 0] if dt.ndim == 2 + batched and dt.shape[-1] == 1 else dt
            must = f"dt must be a number, ({time},), ({batch}, {time}) or ({batch}, {time}, 1)"
            _check(dt.shape in ((), (time,), (batch, time)), must, dt, "Mend its shape.")
        if reset is not None:
            reset = as_tensor("reset", reset, u).to(u.device)
            reset = reset if batched else reset[None]
            fits, must = reset.shape == (batch, time), f"reset must be ({batch}, {time}), bool"
            _check(fits and reset.dtype == torch.bool, must, reset, "Call reset.bool(), say.")
        if lengths is not None:
            lengths = whole_lengths(lengths, u, 1, time)
            # Held, not only skipped: 0 times NaN would still reach the gradient.
            u = held(u, lengths)
            if isinstance(dt, Tensor) and dt.ndim:
                ends = lengths if dt.ndim == 2 else lengths.max()[None]
                dt = held(dt.view(len(ends), time, 1), ends).view_as(dt)
        check_finite(u)
        return cls(u, lengths, dt, reset, batched)

    def episodes(
        self, x: Tensor, fresh: Tensor, save: Save
    ) -> tuple[tuple[Tensor, Tensor, Lengths, Dt], Callable[[Tensor, Tensor], Outputs]]:
        """What a `Run` takes but `save`, and what makes its result that of the sequences.

        From states x (batch, .), and from `fresh` (1, .) before each sample with a reset.
        """
        if self.reset is None:
            return (self.u, x, self.lengths, self.dt), lambda output, x: (output, x)
        batch, time = self.reset.shape
        k, ends = torch.arange(time, device=x.device), self.lengths
        ends = k.new_full((batch,), time) if ends is None else ends
        begins = (self.reset | (k == 0)) & (k < ends[:, None])
        row, start = begins.nonzero(as_tuple=True)  # of each episode, (episodes,), in order
        after = torch.cat([start[1:], start.new_zeros(1)])
        final = after == 0  # the next episode is another sequence's
        end = torch.where(final, ends[row], after)
        if save == "last":  # what was before the last reset is forgotten
            row, start, end = row[final], start[final], end[final]
        steps = torch.arange(int((end - start).max()), device=x.device)
        at = (start[:, None] + steps).minimum(end[:, None] - 1)  # (episodes, steps)
        x = torch.where(self.reset[row, start][:, None], fresh, x[row])
        dt = self.dt
        if isinstance(dt, Tensor) and dt.ndim:
            dt = dt.to(x.device).expand(batch, time)[row[:, None], at]

        def put_back(output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            if save == "last":
                return output, x
            episode = begins.flatten().cumsum(0).view(batch, time) - 1
            output = output[episode, (k - start[episode]).clamp(max=len(steps) - 1)]
            return output, x[final]

        return (self.u[row[:, None], at], x, end - start, dt), put_back


def whole_lengths(lengths: Data, like: Tensor, low: int, high: int) -> Tensor:
    """Lengths, (batch,) int64, of the sequences `like`, (batch, ...); a ShapeError for other numbers."""
    k = torch.atleast_1d(as_tensor("lengths", lengths, like)).to(like.device)
    fits = k.shape == like.shape[:1] and k.dtype in WHOLE and holds((k >= low) & (k <= high))
    must = f"lengths must be ({like.shape[0]},), whole numbers as int64, in {low}..{high}"
    _check(fits, must, k, "Give how many steps of each count.")
    return k.long()


def _check(fits: bool, must: str, given: Tensor, fix: str) -> None:
    if not fits:
        got = f"{given.dtype} of shape {tuple(given.shape)}: {given.flatten().tolist()[:5]}"
        raise ShapeError(f"{must}; got {got}. {fix}")
