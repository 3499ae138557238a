"""What the baselines share: one shape contract, and sequences of unequal length.

B batch, T time, m inputs, n units. Inside, time comes first: (T, B, m).
A sequence shorter than T keeps its last state from its end on, and what pads it is never read,
so NaN may stand there (the usual padding of unequal time series) and harms no gradient.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ctrnn_assembly.errors import ConfigError, ShapeError

State = TypeVar("State")  # h, or (h, c)


def check_size(name: str, value: int) -> None:
    """Raise ConfigError unless `value` is at least 1."""
    if value < 1:
        raise ConfigError(f"{name} must be at least 1; got {value}. Pass {name}=1 or more.")


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ConfigError unless `value` is finite and in [low, high]."""
    if not (math.isfinite(value) and low <= value <= high):
        closing = "]" if math.isfinite(high) else ")"
        raise ConfigError(
            f"{name} must lie in [{low}, {high}{closing}; got {value}. Pass a {name} in that range."
        )


def check_tensor(name: str, value: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ShapeError unless `value` has this shape and `like`'s dtype and device.

    Under autocast the dtype is left alone: mixing dtypes is what autocast is for.
    """
    if tuple(value.shape) != shape:
        raise ShapeError(
            f"{name} must have shape {shape}; got {tuple(value.shape)}. Reshape {name} to {shape}."
        )
    mixed = value.dtype != like.dtype and not torch.is_autocast_enabled(like.device.type)
    if mixed or value.device != like.device:
        raise ShapeError(
            f"{name} must be {like.dtype} on {like.device} like the network's weights; "
            f"got {value.dtype} on {value.device}. Call {name}.to({like.dtype}) or net.to(...)."
        )


def time_major(input: Tensor, input_size: int, batch_first: bool, like: Tensor) -> Tensor:
    """The checked input as (T, B, m), whichever layout the network takes.

    Raises:  ShapeError: unless input is (T, B, m), or (B, T, m) with batch_first, T and B >= 1.
    """
    layout = f"({'B, T' if batch_first else 'T, B'}, {input_size})"
    if input.ndim != 3 or input.shape[-1] != input_size or 0 in input.shape:
        raise ShapeError(
            f"input must have shape {layout} with B, T at least 1; got {tuple(input.shape)}. "
            f"Reshape it, or change input_size or batch_first (now {batch_first})."
        )
    check_tensor("input", input, tuple(input.shape), like)
    return input.transpose(0, 1) if batch_first else input


def check_step(u: Tensor, input_size: int, like: Tensor) -> int:
    """The batch size B of one step's input; raise ShapeError unless u is (B, m)."""
    if u.ndim != 2 or u.shape[1] != input_size:
        raise ShapeError(
            f"u must have shape (B, {input_size}); got {tuple(u.shape)}. "
            "Pass one time step, input[t] of a (T, B, m) input."
        )
    check_tensor("u", u, tuple(u.shape), like)
    return len(u)


def check_lengths(lengths: Tensor | None, T: int, B: int) -> None:
    """Raise ShapeError unless lengths is None, or (B,) int64 with values in 1..T."""
    if lengths is None:
        return
    if tuple(lengths.shape) != (B,) or lengths.dtype != torch.int64:
        raise ShapeError(
            f"lengths must be int64 of shape ({B},), one a sequence; got {lengths.dtype} of "
            f"shape {tuple(lengths.shape)}. Pass torch.tensor([...], dtype=torch.int64)."
        )
    low, high = (int(bound) for bound in lengths.aminmax())
    if low < 1 or high > T:
        raise ShapeError(
            f"lengths must lie in 1..{T}, the steps of the input; got {low}..{high}. "
            f"Pass lengths.clamp(1, {T}), or drop the empty sequences."
        )


def hold_last(output: Tensor, lengths: Tensor, T: int) -> Tensor:
    """Repeat each sequence's last valid row of output (T', B, n) up to T steps: (T, B, n)."""
    lengths = lengths.to(output.device)
    time = torch.arange(T, device=output.device)[:, None].minimum(lengths - 1)  # (T, B)
    return output.gather(0, time[..., None].expand(-1, -1, output.shape[-1]))


def run_packed(
    rnn: nn.RNNBase, input: Tensor, state: State | None, lengths: Tensor | None
) -> tuple[Tensor, State]:
    """Run a torch RNN on input (T, B, m): (output (T, B, n), its last valid state).

    Packed, because torch returns only the last LSTM cell state: c at a sequence's own end could
    not be picked from a full run.
    """
    if lengths is None:
        output, last = rnn(input, state)
        return output, last
    packed, last = rnn(pack_padded_sequence(input, lengths.cpu(), enforce_sorted=False), state)
    output, _ = pad_packed_sequence(packed)
    return hold_last(output, lengths, len(input)), last
