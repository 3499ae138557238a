"""How small a perturbation of the input changes a classifier's answer: projected gradient descent.

The gap between the logit of the class and the next one is lowered by steepest descent in the norm of
the perturbation, projected onto a ball whose radius is bisected for each sample. What is found is an
upper bound on the distance to another class, where `robustness` has a lower one.

Cost: rounds x restarts x steps gradients. Source: Madry et al. 2018 (arXiv 1706.06083).
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

TINY = 1e-300


def attack(
    model: Callable[..., Tensor],
    u: Tensor,
    lengths: Tensor | None = None,
    *,
    norm: str,
    steps: int = 10,
    restarts: int = 1,
    rate: float = 0.25,
    rounds: int = 10,
) -> Tensor:
    """The size of the smallest perturbation found that changes each class, (samples,); inf for none.

    Args:
        model: (u, lengths=...) -> logits (samples, k) of inputs u (samples, time, m), each of its own.
        norm: "largest", of |delta_t|_2 over time, or "rms", their root mean square.
        steps, restarts: of descent at a radius, from 0 first and then from random points of the sphere.
        rate: length of a step, as a share of the radius. rounds: radii, doubled first, then bisected.
    """
    time, generator = torch.arange(u.shape[1], device=u.device), torch.Generator().manual_seed(0)
    last = time.new_full((len(u),), len(time)) if lengths is None else lengths
    valid = (time < last[:, None]).to(u)[..., None]

    def sizes(d: Tensor) -> Tensor:
        """|d_t|, (samples, time, 1), or the root of their mean square, (samples, 1, 1)."""
        squares = d.square().sum(-1, keepdim=True)
        if norm == "rms":
            squares = squares.sum(1, keepdim=True) / last[:, None, None]
        return squares.sqrt().clamp(min=TINY)

    def gap(d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Between the class and the next; its steepest ascent, of size 1; and how far that raises it."""
        d = d.detach().requires_grad_()
        with warnings.catch_warnings():  # of inputs beyond those that a certificate speaks of
            warnings.simplefilter("ignore")
            logits = model(u + d, lengths=lengths)
        found = logits.gather(1, y)[:, 0] - logits.scatter(1, y, -torch.inf).amax(1)
        slope = torch.autograd.grad(found.sum(), d)[0]
        steepest = slope / sizes(slope)
        return found.detach(), steepest, (slope * steepest).sum((1, 2))

    with torch.no_grad():
        y = model(u, lengths=lengths).argmax(-1, keepdim=True)
    start = torch.zeros_like(u)
    value, first, falls = gap(start)
    radius = (value / falls.clamp(min=TINY)).clamp(1e-12, 1e12)  # if the net were linear
    low, best = torch.zeros_like(radius), torch.full_like(radius, torch.inf)
    for _ in range(rounds):
        ball = radius[:, None, None]
        for restart in range(restarts):
            d, way = start, first
            if restart:
                d = valid * torch.randn(u.shape, generator=generator).to(u)
                d = ball * d / sizes(d)
                way = gap(d)[1]
            for _ in range(steps):
                d = d - rate * ball * way
                d = d * (ball / sizes(d)).clamp(max=1)
                value, way, _ = gap(d)
                size = sizes(d).amax((1, 2))
                best = torch.where((value < 0) & (size < best), size, best)
        low = torch.where(best > radius, radius, low)
        radius = torch.where(best.isinf(), 2 * radius, (low + best.clamp(max=1e12)) / 2)
    return best
