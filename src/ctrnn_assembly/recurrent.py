"""The calling convention of every recurrent layer: that of `torch.nn.RNN`, checked in one place.

    output, h_n = net(input, h_0=None, ...)         every output, and the last valid state
    x           = net.last(input, h_0=None, ...)    the last valid output alone, (batch, n)
    x_next      = net.step(u, x)                    one sample later, by plain torch operations

A sequence shorter than the longest one keeps its last state from its end on; see `calls`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import getattr_static
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ctrnn_assembly.calls import Data, Dt, Lengths, Outputs, Run, Save, Sequences
from ctrnn_assembly.errors import ConfigError, ShapeError, check_known, check_within
from ctrnn_assembly.inputs import as_tensor
from ctrnn_assembly.transforms import states

InitialState = Literal["zero", "trained"]
NO_TRACE = "a loop over time with a hand-written gradient runs as it is"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
CASTS = {torch.float64: "double", torch.float32: "float", torch.float16: "half"}


class Recurrent(nn.Module, ABC):
    """A recurrent layer; a subclass says how a state moves, this class checks what it is given.

    Args:
        input_size, hidden_size: features of a sample, m, and units, n, at least 1.
        state_size: width of the state, if it is not that of the output.
        batch_first: whether input and output are (batch, time, .) instead of (time, batch, .).
        initial_state: where sequences start without an h_0: "zero", or "trained", a parameter x_0 that
            starts at zero. No certificate depends on it.

    Raises: at a call, ShapeError for a tensor of the wrong shape, dtype or device, and DataError for an
        input that is not finite.

    >>> layer: Recurrent = LSTM(1, 4, batch_first=True, initial_state="trained")
    >>> layer.last(torch.randn(2, 7, 1)).shape, layer.x_0.shape  # h alone, and [h, c]
    (torch.Size([2, 4]), torch.Size([8]))
    """

    traceable = True  # whether a step is plain operations of torch, which look at no value
    certificate: Callable[..., Any]  # what is proven of the layer as its weights are; never None
    x_0: nn.Parameter | None  # the trained initial state, (state_size,)
    dt: float  # time between samples; baselines have neither it nor substeps
    substeps: int
    state_parts = 1  # of n units each; those of an LSTM are h and c
    layer_sizes: tuple[int, ...] = ()  # of a stack, whose h_0 may be a tuple of each layer's
    output_is_state = True  # the first n units of it

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        batch_first: bool = False,
        initial_state: InitialState = "zero",
        state_size: int | None = None,
    ) -> None:
        super().__init__()
        check_within("[1, inf)", input_size=input_size, hidden_size=hidden_size)
        check_known("initial_state", initial_state, ("zero", "trained"))
        self.input_size, self.hidden_size, self.batch_first = input_size, hidden_size, batch_first
        self.state_size = state_size or self.state_parts * hidden_size
        own = nn.Parameter(torch.zeros(self.state_size)) if initial_state == "trained" else None
        self.register_parameter("x_0", own)

    def forward(
        self, input: Data, h_0: Data = None, *, lengths: Data = None, dt: Data = None, reset: Data = None
    ) -> tuple[Any, Tensor]:
        """The outputs after each sample, (time, batch, n), and the last state, (1, batch, state_size).

        Args:
            input: (time, batch, m), with batch_first (batch, time, m), of the weights' dtype; one
                sequence (time, m), without a batch; or a PackedSequence, and so is the output. Arrays
                of numpy are converted.
            h_0: initial states, (1, batch, state_size); if None, those of `initial_state`.
            lengths: valid steps of each sequence, (batch,), 1..time; the state stays from there on.
            dt: instead of a CTRNN's own dt: a number, (time,), (batch, time) or (batch, time, 1).
            reset: (batch, time), bool: an episode begins here, in the state of `initial_state`.
        """
        given = self._read(input, lengths, dt, reset)
        sequences, put_back = given.episodes(*self._starts(h_0, given), "all")
        output, x = put_back(*self._way(sequences[-1])(*sequences, "all"))
        if isinstance(input, PackedSequence):
            assert given.lengths is not None
            options = {"batch_first": True, "enforce_sorted": input.sorted_indices is None}
            return pack_padded_sequence(output, given.lengths.cpu(), **options), x[None]
        if not given.batched:
            return output[0], x
        return output if self.batch_first else rearrange(output, "batch time n -> time batch n"), x[None]

    def last(self, input: Data, h_0: Data = None, **others: Data) -> Tensor:
        """The last valid output alone, (batch, n), or (n,) of one sequence; all else as in `forward`."""
        given = self._read(input, **others)
        sequences, put_back = given.episodes(*self._starts(h_0, given), "last")
        output, state = put_back(*self._way(sequences[-1])(*sequences, "last"))
        x = state[:, : self.hidden_size] if self.output_is_state else output[:, -1]
        return x if given.batched else x[0]

    def initial(self, batch: int) -> Tensor:
        """The states that sequences start from without an h_0, (batch, state_size)."""
        like = self._like
        return like.new_zeros(batch, self.state_size) if self.x_0 is None else self.x_0.repeat(batch, 1)

    def firing_rates(self, x: Tensor) -> Tensor:
        """What the units send out in states x, (..., n): these themselves, unless a layer says more."""
        return x

    def step(self, u: Data, x: Data) -> Tensor:
        """u (batch, m), x (batch, state_size) -> x one sample later, by plain torch operations."""
        u, x = self._sample(u), as_tensor("x", x, self._like, self._like.dtype)
        self._check_state("x", x, (u.shape[0], self.state_size))
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # as in a solve
            return self.stepper()(u.to(self._like.dtype), x.to(self._like.dtype))

    def _sample(self, u: Data) -> Tensor:
        """One sample of each sequence, (batch, m), as a tensor; of None zeros, (1, m)."""
        like = self._like
        u = like.new_zeros(1, self.input_size) if u is None else as_tensor("u", u, like, like.dtype)
        if u.ndim != 2 or u.shape[1] != self.input_size:
            fix = "Pass one sample, input[t] of an input (time, batch, m)."
            raise ShapeError(f"u must be (batch, {self.input_size}); got {tuple(u.shape)}. {fix}")
        self._check_like("u", u)
        return u

    def _way(self, dt: Dt) -> Run:
        """`_run`, or `_by_steps` in an export; called by the caller, a frame less."""
        if torch.compiler.is_exporting() and dt is None and self.traceable:
            return self._by_steps
        if torch.compiler.is_compiling():  # whose default compiler refuses `scan` (torch 2.15)
            return torch.compiler.disable(self._run, reason=NO_TRACE)
        return self._run

    def _by_steps(self, u: Tensor, x: Tensor, lengths: Lengths, *_: Any) -> Outputs:
        """As `_run`: one plain step after another, which torch transforms, or traces as one operator."""
        found = states(self.stepper(), x, u.transpose(0, 1), lengths=lengths)
        return found.transpose(0, 1)[..., : self.hidden_size], found[-1]

    @abstractmethod
    def _run(self, u: Tensor, x: Tensor, lengths: Lengths, dt: Dt, save: Save) -> Outputs:
        """Outputs (batch, time, n), unless save="last", and the last state, of tensors that fit."""

    @abstractmethod
    def stepper(self) -> Callable[[Tensor, Tensor], Tensor]:
        """`step` of tensors that fit, (u, x) -> x+, with its matrices built once."""

    def _read(self, input: Data, lengths: Data = None, dt: Data = None, reset: Data = None) -> Sequences:
        if dt is not None and not hasattr(self, "dt"):
            raise ConfigError(f"a baseline's step is its own; got dt={dt}. Drop it, or use a CTRNN.")
        like = self._like
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ShapeError(f"a PackedSequence has its own lengths; got {lengths}. Leave them out.")
            u, lengths = pad_packed_sequence(input, batch_first=self.batch_first)
        else:
            u = as_tensor("input", input, like, like.dtype)
        if u.ndim not in (2, 3) or u.shape[-1] != self.input_size or 0 in u.shape:
            order = "(batch, time, m)" if self.batch_first else "(time, batch, m)"
            raise ShapeError(
                f"input must be {order} with m = {self.input_size}, at least one sample and at least "
                f"one step, or one sequence (time, m); got {tuple(u.shape)}. batch_first is "
                f"{self.batch_first}."
            )
        self._check_like("input", u)
        if u.ndim == 3 and not self.batch_first:
            u = rearrange(u, "time batch m -> batch time m")
        return Sequences.read(u.to(like.dtype), lengths, dt, reset)

    def _starts(self, h_0: Data, given: Sequences) -> tuple[Tensor, Tensor]:
        """Where the sequences start, (batch, state_size), and where an episode does, (1, state_size)."""
        batch, fresh = given.u.shape[0], self.initial(1)  # `len` is a constant to an exporter
        if h_0 is None:
            return self.initial(batch), fresh
        if self.layer_sizes and isinstance(h_0, tuple | list):
            parts = [as_tensor("each of h_0", z, fresh, fresh.dtype) for z in h_0]
            shapes = [tuple(z.shape) for z in parts]
            sizes = tuple(shape[-1] if shape else 0 for shape in shapes)
            if sizes != self.layer_sizes or len({shape[:-1] for shape in shapes}) > 1:
                must = f"h_0 must be a tensor, or one a layer, of {self.layer_sizes} units"
                raise ShapeError(f"{must}; got {shapes}.")
            h_0 = torch.cat(parts, dim=-1)
        x = as_tensor("h_0", h_0, fresh, fresh.dtype)
        shape = (1, batch, self.state_size) if given.batched else (1, self.state_size)
        self._check_state("h_0", x, shape)
        return x.reshape(batch, self.state_size), fresh

    @property
    def _like(self) -> Tensor:
        """Of the dtype and device of the weights; quantised ones are no parameters, and read float32."""
        return next(self.parameters(), torch.empty(0, dtype=torch.float32))

    def _made(self, part: nn.Module) -> Tensor:
        """What a part makes of two samples; its buffers, such as running means, stay as they are."""
        buffers = {name: x.clone() for name, x in part.named_buffers()}
        return functional_call(part, buffers, self._like.new_ones(1, 2, self.input_size))

    def _check_state(self, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
        if x.shape != shape:
            raise ShapeError(f"{name} must be {shape}; got {tuple(x.shape)}.")
        self._check_like(name, x)

    def _check_like(self, name: str, x: Tensor) -> None:
        like = self._like
        # Under autocast a layer gives, and takes, tensors of lower precision.
        mixed = x.dtype != like.dtype and not torch.is_autocast_enabled(like.device.type)
        if mixed or x.device != like.device:
            other = f"net.{CASTS[x.dtype]}(), or " if x.dtype in CASTS else ""
            must = f"{name} must be {like.dtype} on {like.device}, as the weights"
            fix = f"Call {other}{name}.to({str(like.device)!r}, {like.dtype})."
            raise ShapeError(f"{must}; got {x.dtype} on {x.device}. {fix}")


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is `kind.forward` alone: no hook, and no call of its own."""
    inherited = all(getattr(type(module), k) is getattr(kind, k) for k in ("forward", "__call__"))
    return inherited and "forward" not in vars(module) and not any(getattr(module, k) for k in HOOKS)


def is_unchanged(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is plain, no hook is of all modules, and all but its certificate is from `kind`."""
    hooked = any(getattr(nn.modules.module, f"_global{name}") for name in HOOKS)
    return is_plain(module, kind) and not hooked and methods_of_its_own(module, kind) <= {"certificate"}


def methods_of_its_own(module: nn.Module, kind: type[nn.Module]) -> set[str]:
    """The methods and properties of `kind` that its class, or it alone, has anew."""
    made = {
        name
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]
        for name, value in vars(base).items()
        if (callable(value) or isinstance(value, property)) and not name.startswith("__")
    }
    anew = {k for k in made if getattr_static(type(module), k) is not getattr_static(kind, k)}
    return anew | (made & vars(module).keys())
