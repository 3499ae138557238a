"""What a recurrent layer is given, read and checked, as sequences of one batch and length.

A PackedSequence is padded, one sequence (time, m) gets a batch of its own, and what is no tensor is read
by numpy. Past a sequence's length its last sample is held: what stands there is never read, so that NaN
(the usual padding of unequal time series) harms no gradient.

Episodes within a sequence are the sequences of a larger batch: gathered, run at once, and put back. So
every solver, backend and gate takes them, and every gradient is right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ctrnn_assembly.errors import ShapeError
from ctrnn_assembly.inputs import check_finite, held
from ctrnn_assembly.transforms import holds

Save = Literal["all", "last"]
Lengths = Tensor | None
Dt = float | Tensor | None
Given = Tensor | ArrayLike | None  # of a user
Run = Callable[[Tensor, Tensor, Lengths, Dt, Save], tuple[Tensor, Tensor]]


def as_tensor(name: str, given: Any, like: Tensor) -> Tensor:
    """A tensor as it is, and any other array or list of numbers as numpy reads it, where `like` is."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, tuple) and any(isinstance(part, Tensor) and part.ndim for part in given):
        raise ShapeError(
            f"{name} must be one tensor; got a tuple of {len(given)}. Pass torch.cat({name}, dim=-1)."
        )
    array = np.array(given, order="C")
    if array.dtype.kind not in "biuf":
        raise ShapeError(
            f"{name} must be a tensor, a PackedSequence or an array of numbers; got "
            f"{type(given).__name__}."
        )
    return torch.from_numpy(array).to(like.device)


@dataclass(frozen=True)
class Sequences:
    """Samples u (batch, time, m), finite and held past the lengths, and what is given with them.

    lengths are (batch,), int64, or None; dt None, a number, (time,) or (batch, time); reset None or
    (batch, time), bool. `batched` is whether they came with a batch, `packed` what they came in.
    """

    u: Tensor
    lengths: Lengths
    dt: Dt
    reset: Tensor | None
    batched: bool
    packed: PackedSequence | None

    @classmethod
    def read(
        cls, u: Tensor, lengths: Given, dt: Given, reset: Given, packed: PackedSequence | None = None
    ) -> "Sequences":
        """Check what is given with u, (batch, time, m) or (time, m)."""
        batched = u.ndim == 3
        u = u if batched else u[None]
        batch, time, _ = u.shape
        if dt is not None and not isinstance(dt, int | float):
            dt = as_tensor("dt", dt, u)
            dt = dt[..., 0] if dt.ndim == (3 if batched else 2) and dt.shape[-1] == 1 else dt
            if dt.shape not in ((), (time,), (batch, time)):
                raise ShapeError(
                    f"dt must be a number, ({time},), ({batch}, {time}) or ({batch}, {time}, 1); got "
                    f"{tuple(dt.shape)}."
                )
        if reset is not None:
            reset = as_tensor("reset", reset, u)
            reset = reset if batched else reset[None]
            if reset.shape != (batch, time) or reset.dtype != torch.bool:
                raise ShapeError(
                    f"reset must be ({batch}, {time}), bool; got {reset.dtype} of shape "
                    f"{tuple(reset.shape)}. Call reset.bool(), or transpose it."
                )
            reset = reset.to(u.device)
        if lengths is not None:
            lengths = _lengths(as_tensor("lengths", lengths, u), batch, time).to(u.device)
            # Held, not only skipped: 0 times NaN would still reach the gradient.
            u = held(u, lengths)
            if isinstance(dt, Tensor) and dt.ndim:
                ends = lengths if dt.ndim == 2 else lengths.max()[None]
                dt = held(dt.view(len(ends), time, 1), ends).view_as(dt)
        check_finite(u)
        return cls(u, lengths, dt, reset, batched, packed)

    def over_episodes(self, run: Run, x: Tensor, fresh: Tensor, save: Save) -> tuple[Tensor, Tensor]:
        """`run` from states x (batch, .), and from `fresh` (1, .) before each sample with a reset."""
        if self.reset is None:
            return run(self.u, x, self.lengths, self.dt, save)
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
        output, x = run(self.u[row[:, None], at], x, end - start, dt, save)
        if save == "last":
            return output, x
        episode = begins.flatten().cumsum(0).view(batch, time) - 1
        output = output[episode, (k - start[episode]).clamp(max=len(steps) - 1)]
        return output, x[final]

    def pack(self, output: Tensor) -> PackedSequence:
        """Outputs (batch, time, n) packed as the samples were."""
        assert self.packed is not None
        order = self.packed.sorted_indices
        output = output if order is None else output[order]
        valid = torch.arange(len(output)) < self.packed.batch_sizes[:, None]  # (time, batch)
        return PackedSequence(output.transpose(0, 1)[valid.to(output.device)], *self.packed[1:])


def _lengths(lengths: Tensor, batch: int, time: int) -> Tensor:
    lengths = lengths.reshape(-1) if lengths.ndim == 0 else lengths
    whole = not lengths.is_floating_point() and lengths.dtype != torch.bool
    if lengths.shape != (batch,) or not whole or not holds((lengths >= 1) & (lengths <= time)):
        raise ShapeError(
            f"lengths must be ({batch},), whole numbers as int64, in 1..{time}; got {lengths.dtype} of "
            f"shape {tuple(lengths.shape)}: {lengths.tolist()[:5]}. Drop empty sequences."
        )
    return lengths.long()
