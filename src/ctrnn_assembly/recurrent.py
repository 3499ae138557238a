"""The calling convention of every recurrent layer: that of `torch.nn.RNN`, checked in one place.

    output, h_n = net(input, h_0=None, lengths=None)    every output, and the last valid state
    x           = net.last(input, lengths=None)         the last valid output alone, (batch, n)
    x_next      = net.step(u, x)                        one sample later, by plain torch operations

A sequence shorter than the longest one keeps its last state from its end on. What pads it is never
read, so NaN may stand there (the usual padding of unequal time series) and harms no gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ctrnn_assembly.errors import ConfigError, ShapeError
from ctrnn_assembly.inputs import check_finite

Save = Literal["all", "last"]
Lengths = Tensor | None
Dt = float | Tensor | None


class Recurrent(nn.Module, ABC):
    """A recurrent layer; a subclass says how a state moves, this class checks what it is given.

    Args:
        input_size, hidden_size: features of a sample, m, and units, n, at least 1.
        batch_first: whether input and output are (batch, time, .) instead of (time, batch, .).

    Raises: at a call, ShapeError for a tensor of the wrong shape, dtype or device, and DataError for an
        input that is not finite.
    """

    certificate: Callable[..., Any]  # what is proven of the layer as its weights are; never None
    firing_rates: Callable[[Tensor], Tensor]  # what the units send out in states x, (..., n)

    def __init__(self, input_size: int, hidden_size: int, *, batch_first: bool = False) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if size < 1:
                raise ConfigError(f"{name} must be at least 1; got {size}. Pass {name}=1 or more.")
        self.input_size, self.hidden_size, self.batch_first = input_size, hidden_size, batch_first
        self.state_size = hidden_size  # the width of the state; that of an LSTM is more

    def forward(
        self, input: Tensor, h_0: Tensor | None = None, *, lengths: Lengths = None, dt: Dt = None
    ) -> tuple[Tensor, Tensor]:
        """The outputs after each sample, (time, batch, n), and the last state, (1, batch, state_size).

        Args:
            input: (time, batch, m) of any dtype; with batch_first, batch and time change places.
            h_0: initial state, (1, batch, state_size); zero if None.
            lengths: valid steps of each sample, (batch,), 1..time; the state stays from there on.
            dt: instead of a CTRNN's own dt: a number, (time,) or (batch, time).
        """
        if dt is not None and not hasattr(self, "dt"):
            raise ConfigError(
                f"a baseline's step is its own; got dt={dt}. Leave dt out, or use a CTRNN."
            )
        output, x = self._run(*self._checked(input, h_0, lengths), dt, "all")
        return output if self.batch_first else rearrange(output, "batch time n -> time batch n"), x[None]

    def last(self, input: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The last valid output, (batch, n), from a zero state; `input` as in `forward`."""
        return self._run(*self._checked(input, None, lengths), None, "last")[1][:, : self.hidden_size]

    def step(self, u: Tensor, x: Tensor) -> Tensor:
        """The state one sample later: u (batch, m), x (batch, state_size) -> (batch, state_size).

        Plain torch operations, which `torch.func` differentiates; `forward` up to rounding.
        """
        if u.ndim != 2 or u.shape[1] != self.input_size:
            raise ShapeError(
                f"u must be (batch, {self.input_size}); got {tuple(u.shape)}. Pass one sample, input[t] "
                "of an input (time, batch, m)."
            )
        self._check_state("x", x, (len(u), self.state_size))
        return self._step(u.to(x.dtype), x)

    @abstractmethod
    def _run(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt, save: Save) -> tuple[Tensor, Tensor]:
        """Outputs (batch, time, n), unless save="last", and the last state, of what `_checked` gives."""

    @abstractmethod
    def _step(self, u: Tensor, x: Tensor) -> Tensor:
        """`step` of tensors that fit."""

    def _checked(
        self, input: Tensor, h_0: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """u (batch, time, m), finite, zero past the lengths, x (batch, state_size), and lengths."""
        if input.ndim != 3 or input.shape[2] != self.input_size or 0 in input.shape:
            order = "(batch, time, m)" if self.batch_first else "(time, batch, m)"
            raise ShapeError(
                f"input must be {order} with m = {self.input_size}, at least one sample and at least "
                f"one step; got {tuple(input.shape)}. batch_first is {self.batch_first}."
            )
        like = next(self.parameters())
        u = input if self.batch_first else rearrange(input, "time batch m -> batch time m")
        u = u.to(like.dtype)
        batch, time, _ = u.shape
        if lengths is not None:
            whole = lengths.shape == (batch,) and lengths.dtype == torch.int64
            if not whole or bool(((lengths < 1) | (lengths > time)).any()):
                raise ShapeError(
                    f"lengths must be ({batch},), int64, in 1..{time}; got {lengths.dtype} of shape "
                    f"{tuple(lengths.shape)}: {lengths.tolist()[:5]}. Drop empty sequences."
                )
            lengths = lengths.to(u.device)
            past = torch.arange(time, device=u.device) >= lengths[:, None]  # (batch, time)
            # Blanked, not only skipped: 0 times NaN would still reach the gradient.
            u = u.masked_fill(past[..., None], 0)
        check_finite(u)
        if h_0 is None:
            return u, like.new_zeros(batch, self.state_size), lengths
        self._check_state("h_0", h_0, (1, batch, self.state_size))
        return u, h_0[0], lengths

    def _check_state(self, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
        like = next(self.parameters())
        if x.shape != shape:
            raise ShapeError(f"{name} must be {shape}; got {tuple(x.shape)}.")
        # Under autocast a layer gives, and takes, states of lower precision.
        mixed = x.dtype != like.dtype and not torch.is_autocast_enabled(like.device.type)
        if mixed or x.device != like.device:
            raise ShapeError(
                f"{name} must be {like.dtype} on {like.device}, as the weights; got {x.dtype} on "
                f"{x.device}. Call {name}.to({like.dtype}), or net.to(...)."
            )
