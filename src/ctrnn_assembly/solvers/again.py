"""`Loop`: a pass over time with a hand-written adjoint, differentiable any number of times.

The adjoint is of one gradient, and no graph of autograd. Where it is differentiated (create_graph=True),
or many are asked for at once (is_grads_batched=True), plain steps from the same tensors take its place.
"""

from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor as is_batched


class Loop(torch.autograd.Function):
    """`forward` takes tensors, or None, after all else, saves states and these, and leaves in ctx
    `plain`, which gives of the tensors what it returns, or that after earlier states, by autograd, and
    `adjoint`, which gives of `needed`, grads, states and the tensors the gradients that are needed.
    """

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors, and None for what stands before them."""
        states, *tensors = ctx.saved_tensors
        before = [None] * (len(ctx.needs_input_grad) - len(tensors))
        needed = ctx.needs_input_grad[len(before) :]
        with torch.autocast(grads[0].device.type, enabled=False):  # as in the forward pass
            if not ((more := torch.is_grad_enabled()) or any(map(is_batched, grads))):
                return (*before, *ctx.adjoint(needed, grads, states, *tensors))
            with torch.enable_grad():
                # Aliases: one leaf may have been computed from another.
                own: list[Any] = [None if leaf is None else leaf.view_as(leaf) for leaf in tensors]
                asked = [need and leaf is not None for need, leaf in zip(needed, own, strict=True)]
                made = ctx.plain(*own)
                whole = zip(made if isinstance(made, tuple) else (made,), grads, strict=True)
                last, at = [one[-len(grad) :] for one, grad in whole], [*compress(own, asked)]
                found = iter(torch.autograd.grad(last, at, grads, create_graph=more, allow_unused=True))
        return (*before, *(next(found) if one else None for one in asked))
