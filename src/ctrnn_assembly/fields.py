"""A vector field of the user's own: any function or `nn.Module` f(t, x) or f(t, x, u).

    f(t, x, u)    x' itself, u as it is given
    f(t, x)       x' = f(t, x) + u, if there is an input, which then has the shape of x

The state x is a tensor (batch, ...), or a tuple of such tensors; solvers see it packed, (batch, n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from ctrnn_assembly.errors import ConfigError, ShapeError, SolverError

State = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class OwnField:
    """f as solvers call it: (t, x, u) -> x', x and x' packed (batch, n), t a number or (batch, 1)."""

    f: Callable[..., Any]
    reads_input: bool
    sizes: tuple[tuple[int, ...], ...]  # of each part of the state, but for the batch
    is_tuple: bool

    def __call__(self, t: Tensor, x: Tensor, u: Tensor | None = None) -> Tensor:
        state = self.unpack(x)
        value = self.f(t, state, u) if self.reads_input else self.f(t, state)
        plain = state is x and isinstance(value, Tensor)  # the usual case, at once
        fits = value.shape == x.shape if plain else shapes(value) == shapes(state)
        if not fits or any(v.dtype != x.dtype for v in parts(value)):
            raise ShapeError(
                f"f must return x' like x, {described(state)}; got {described(value)}. Convert f or x0."
            )
        packed = value if plain else pack(value)
        return packed if self.reads_input or u is None else packed + u.flatten(1)

    def unpack(self, x: Tensor) -> Any:
        """The state, or the states (batch, time, n), as f takes it."""
        if not self.is_tuple and len(self.sizes[0]) == 1:
            return x  # without a view, which every evaluation would pay for
        widths = [torch.Size(size).numel() for size in self.sizes]
        split = x.split(widths, dim=-1)
        found = tuple(p.reshape(*x.shape[:-1], *size) for p, size in zip(split, self.sizes, strict=True))
        return found if self.is_tuple else found[0]

    def norm(self, x: Tensor) -> Tensor:
        """Largest root mean square of a part: what an adaptive solver compares with its tolerance."""
        return torch.stack([p.square().mean().sqrt() for p in parts(self.unpack(x))]).max()


def as_field(f: Any, x0: State, *, driven: bool) -> OwnField:
    """f on states like x0, with an input if it is driven.

    ConfigError for no field, ShapeError for an x0 that is no state, SolverError if it lacks its u.
    """
    reads, required = reads_input(f)
    if required and not driven:
        raise SolverError("f(t, x, u) reads an input; got none. Pass u=, or write f(t, x).")
    batches = {tuple(p.shape[:1]) if isinstance(p, Tensor) else () for p in parts(x0)}
    kinds = {(p.dtype, p.device) for p in parts(x0)} if () not in batches else set()
    if len(batches) != 1 or len(kinds) != 1 or not parts(x0)[0].is_floating_point():
        raise ShapeError(
            "x0 must be a floating point tensor (batch, ...), or a tuple of them with one batch, dtype "
            f"and device; got {described(x0)}. Use x0[None] for one state, or torch.tensor(x0)."
        )
    if driven and not reads and isinstance(x0, tuple):
        raise ShapeError("an input is not added to a tuple of states. Write f(t, x, u), which reads it.")
    sizes = tuple(tuple(p.shape[1:]) for p in parts(x0))
    return OwnField(f, reads and driven, sizes, isinstance(x0, tuple))


def reads_input(f: Any) -> tuple[bool, bool]:
    """Whether f has a third positional parameter without default or one named u; whether it needs it."""
    if not callable(f):
        raise ConfigError(
            "a field must be a Subnetwork, an Assembly, or a function or nn.Module f(t, x) or f(t, x, u)"
            f"; got {f!r:.60}. Use Subnetwork(SingularValueBounded('tanh'), 64), or lambda t, x: -x."
        )
    try:
        given = [*signature(f.forward if isinstance(f, nn.Module) else f).parameters.values()]
    except ValueError:  # a builtin that does not tell
        return False, False
    places = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is Parameter.empty for p in places)
    several = any(p.kind is p.VAR_POSITIONAL for p in given)
    if (len(places) < 2 and not several) or needed > 3:
        got = f"{type(f).__name__} with the arguments ({', '.join(p.name for p in places)})"
        raise ConfigError(f"a field must be f(t, x) or f(t, x, u); got {got}. Use lambda t, x: f(x).")
    return needed == 3 or (len(places) > 2 and places[2].name == "u"), needed == 3


def euler(field: OwnField, x0: Tensor, drive: Tensor | None, times: Tensor, steps: Tensor) -> Tensor:
    """Forward Euler, all states (time + 1, batch, n), x0 first; drive (time, batch, ...) is held."""
    if times.ndim == 2 and any(len(size) != 1 for size in field.sizes):
        raise ShapeError(f"dt of each sample needs states (batch, n); got {field.sizes}. Use one dt.")
    starts = times.to(x0) if times.ndim == 1 else times.to(x0).mT[..., None]
    states = [x0]
    for k, dt in enumerate(steps.to(x0)):
        x, u = states[-1], None if drive is None else drive[k]
        states.append(x + dt[:, None] * field(starts[k], x, u))
    return torch.stack(states)


def parts(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)


def pack(x: State) -> Tensor:
    flat = [p if p.ndim == 2 else p.reshape(len(p), -1) for p in parts(x)]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def shapes(x: Any) -> Any:
    """Of a tensor, or of each in a tuple; () for what is none."""
    found = tuple(tuple(p.shape) if isinstance(p, Tensor) else () for p in parts(x))
    return found if isinstance(x, tuple) else found[0]


def described(x: Any) -> str:
    """Shape, dtype and device of a tensor, or of each in a tuple; the type of what is none."""
    if not isinstance(x, tuple):
        return f"{tuple(x.shape)} {x.dtype} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
    return f"a tuple of {', '.join(map(described, x))}"
