"""Products of many vectors with the Jacobians of a chain, one layer after another.

A block V holds m vectors at once, (m, B, ...): cotangents from the last layer back (`backward`), or
tangents from the first layer on (`forward`). All B samples share a pass; where no layer couples them,
one pass with the same unit vector for every sample gives a column of every sample's own Jacobian.
Vectors are rescaled on the way, so that single precision does for Jacobians of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from ctrnn_assembly.errors import ConfigError, DataError, ShapeError

Layer = Callable[[Tensor], Tensor]
Link = Callable[[Tensor], Tensor]  # (m, B, features there) -> (m, B, features here)
State = Tensor | tuple[Tensor, ...]

CHUNK = 2**18  # numbers in a block of vectors: small enough for a cache
FAR = 1e9  # vectors shorter than 1 / FAR or longer are rescaled, before single precision runs out


def checked_layers(layers: Sequence[Layer] | nn.Sequential) -> list[Layer]:
    if not isinstance(layers, (Sequence, nn.Sequential, nn.ModuleList)) or not len(layers):
        raise ConfigError(
            "layers must be a non-empty list of callables or nn.Sequential; got "
            f"{type(layers).__name__}. Pass [layer_1, layer_2, ...]."
        )
    return list(layers)


@contextmanager
def untouched(layers: Iterable[object]) -> Iterator[None]:
    """Without gradients of parameters, and without updates of batch norm's running statistics."""
    modules = [layer for layer in layers if isinstance(layer, nn.Module)]
    frozen = [p for m in modules for p in m.parameters() if p.requires_grad]
    found = [n for m in modules for n in m.modules() if isinstance(n, _BatchNorm)]
    norms = [n for n in dict.fromkeys(found) if n.training and n.track_running_stats]
    try:
        for p in frozen:
            p.requires_grad_(False)
        for n in norms:
            n.track_running_stats = False  # in training mode: use the batch, and leave the rest alone
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)
        for n in norms:
            n.track_running_stats = True


def couples_samples(layers: Sequence[Layer] | nn.Sequential, x: Tensor) -> bool:
    """Whether a layer's output for some sample depends on another sample, as with batch norm.

    Asked of the gradient: that of the first half of the outputs by the second half of the inputs is
    exactly zero if samples are treated apart. One vector-Jacobian product a layer.
    """
    layers = checked_layers(layers)
    half = len(x) // 2
    with untouched(layers):
        states, links = backward(layers, x)
    for out, link in zip(states[:0:-1], links, strict=True):
        signs = torch.ones_like(out).flatten(1)
        signs[:, ::2] = -1  # a normalised layer's outputs may add up to a constant
        signs[half:] = 0
        if bool((link(signs.view(1, *out.shape))[0, half:] != 0).any()) and half:
            return True
    return False


def backward(layers: Sequence[Layer], x: Tensor) -> tuple[list[Tensor], list[Link]]:
    """f_0 = x to f_L, and V -> V df_k/df_{k-1} from the last layer to the first."""
    states, links = [_checked_input(x)], []
    for layer in layers:
        with torch.enable_grad():
            f = states[-1].requires_grad_()
            y = layer(f.clone())  # a copy: the layer may work in place
        links.append(_pull(f, y))
        states.append(_checked_state(y.detach(), x, len(states)))
    return [f.detach() for f in states], links[::-1]


def _pull(f: Tensor, y: Tensor) -> Link:
    """V -> V dy/df for V of (m, B, ...), by batched vector-Jacobian products."""
    if not y.requires_grad:  # a constant
        return lambda V: V.new_zeros(len(V), *f.shape)
    return lambda V: torch.autograd.grad(
        y, f, V, retain_graph=True, is_grads_batched=True, materialize_grads=True
    )[0]


@torch.no_grad()
def forward(layers: Sequence[Layer], x: Tensor) -> tuple[list[Tensor], list[Link]]:
    """f_0 = x to f_L, and V -> df_{k+1}/df_k V from the first layer to the last."""
    states = [_checked_input(x)]
    for layer in layers:
        states.append(_checked_state(layer(states[-1].clone()), x, len(states)))
    return states, [_push(layer, f) for layer, f in zip(layers, states, strict=False)]


def _push(layer: Layer, f: Tensor) -> Link:
    """V -> dy/df V for V of (m, B, ...), by batched Jacobian-vector products."""
    return vmap(lambda v: jvp(lambda x: layer(x.clone()), (f,), (v,))[1])


def _checked_input(x: Tensor) -> Tensor:
    if x.ndim < 2 or not x.numel() or not x.is_floating_point():
        raise ShapeError(f"x must be a floating-point (B, ...); got {tuple(x.shape)}, {x.dtype}.")
    return _checked_state(x.detach(), x, 0)


def _checked_state(f: Tensor, x: Tensor, k: int) -> Tensor:
    if f.ndim < 2 or len(f) != len(x):
        raise ShapeError(f"layer {k} must give (B, ...) with B = {len(x)}; got {tuple(f.shape)}.")
    if not bool(torch.isfinite(f).all()):
        raise DataError(f"f_{k} must be finite; got NaN or infinite values. Scale net or x down.")
    return f


def pull_copies(step: Layer, f: Tensor) -> Link:
    """As `_pull`, by one backward pass over m copies of the batch.

    Solvers with their own backward pass and cuDNN's nets cannot be vectorised over cotangents, but
    take any batch; `step` treats its samples apart and repeats its input.
    """

    def link(V: Tensor) -> Tensor:
        with torch.enable_grad():
            x = f.repeat(len(V), 1).requires_grad_()
            return torch.autograd.grad(step(x), x, V.reshape(x.shape))[0].view(len(V), *f.shape)

    return link


def stretch(net: nn.Module, u: Tensor, like: State, batch_dim: int) -> Layer:
    """The map of packed states (m B, N) over a stretch of input u, which all m copies see."""

    def step(flat: Tensor) -> Tensor:
        repeats = [1, 1, 1]
        repeats[batch_dim] = len(flat) // u.shape[batch_dim]
        return pack(net(u.repeat(*repeats), unpack(flat, like))[1])

    return step


def pack(state: State) -> Tensor:
    """(layers, B, n) each -> (B, N)."""
    parts = (state,) if isinstance(state, Tensor) else state
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)


def unpack(flat: Tensor, like: State) -> State:
    """The inverse of `pack`, for any number of samples."""
    parts = (like,) if isinstance(like, Tensor) else like
    sizes = [part.shape[0] * part.shape[2] for part in parts]
    split = flat.split(sizes, dim=1)
    shaped = [
        s.view(len(flat), part.shape[0], part.shape[2]).transpose(0, 1).contiguous()
        for s, part in zip(split, parts, strict=True)
    ]
    return shaped[0] if isinstance(like, Tensor) else tuple(shaped)


def blocks(
    at: Tensor, coupled: bool, probes: int | None, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Vectors at one end of the chain, (m, B, ...) like `at`: random signs, or all unit vectors.

    If samples are not coupled, one block row holds the same unit vector for every sample.
    """
    batch, n = len(at), at[0].numel()
    rows = max(1, CHUNK // at.numel())
    total = probes or (batch * n if coupled else n)
    for start in range(0, total, rows):
        index = torch.arange(start, min(start + rows, total), device=at.device)
        m = len(index)
        if probes is not None:
            device = at.device if generator is None else generator.device
            bits = torch.randint(2, (m, *at.shape), generator=generator, device=device)
            yield bits.to(at) * 2 - 1
            continue
        block = at.new_zeros(m, batch * n if coupled else n)
        block.scatter_(1, index[:, None], 1)
        block = block if coupled else block[:, None].expand(m, batch, n)
        yield block.reshape(m, *at.shape)


def propagate(links: Sequence[Link], blocks: Iterable[Tensor], keep: bool) -> Tensor:
    """|V|^2 before and after each link, (points, m, B): every random draw, or their sum (m = 1)."""
    found: list[Tensor] = []
    for V in blocks:
        energies = [energy(V)]
        scale = energies[0].new_ones(len(V))
        for link in links:
            V = link(V)
            size = energy(V)
            energies.append(size * scale[:, None].square())
            V, factor = _rescaled(V, size.sum(1).sqrt())
            scale = scale * factor
        part = torch.stack(energies)
        found.append(part if keep else part.sum(1, keepdim=True))
    return torch.cat(found, dim=1) if keep else torch.stack(found).sum(0)


def _rescaled(V: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of size 1, and their size (m,), where it is far from 1; links are linear."""
    far = torch.isfinite(size) & (size > 0) & ((size > FAR) | (size * FAR < 1))
    factor = torch.where(far, size, 1.0)
    if bool(far.any()):
        V = V / factor.to(V).view(-1, *[1] * (V.ndim - 1))
    return V, factor


def energy(V: Tensor) -> Tensor:
    """Squared norms of V (m, B, ...), (m, B), in float64 where there is one."""
    wide = V.dtype if V.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(V.flatten(2), dim=2, dtype=wide).square()
