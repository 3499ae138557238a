"""The training of figure 3: images as rows of pixels, plain SGD, and its step sizes."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mlps import mlp, unit_rms
from torch import Tensor, nn

from ctrnn_assembly.data import load_task
from ctrnn_assembly.errors import DataError

RATES = {
    "layer": (0.03, 0.01, 0.003, 0.001, 0.0003),  # of the norm of W, in the first steps
    "one": (0.1, 0.03, 0.01, 0.003, 0.001),  # of the gradient
}
TRIAL_EPOCHS = 2
SCOUTS = 10  # batches
BATCH = 100


@dataclass(frozen=True)
class Images:
    """Rows of pixels, centred and at the length sqrt(pixels), and classes."""

    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor
    classes: int


class Classifier(nn.Module):
    """An MLP and a linear readout, (B, pixels) -> (B, classes)."""

    def __init__(self, name: str, pixels: int, classes: int, settings: argparse.Namespace) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(settings.seed)
        size = {"depth": settings.depth, "width": settings.width}
        self.hidden = mlp(name, generator, n_input=pixels, dtype=torch.float32, **size)
        self.readout = nn.Linear(settings.width, classes, dtype=torch.float32)
        nn.init.normal_(self.readout.weight, std=settings.width**-0.5, generator=generator)
        nn.init.zeros_(self.readout.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.hidden(x))


def load_images(settings: argparse.Namespace) -> Images:
    """Training and held-out images; batches must be whole, for batch norm."""
    side = settings.resize or (16 if settings.task == "images" else None)
    found = load_task(
        settings.task,
        data_dir=settings.data_dir,
        limit_train=settings.images,
        resize=side,
        augment=False,
        seed=settings.seed,
    )
    rows = [part.x.flatten(1).float() for part in (found.train, found.val)]
    mean = rows[0].mean(0)
    whole = [len(part) // BATCH * BATCH for part in rows]
    if 0 in whole:
        raise DataError(f"each split needs {BATCH} images; got {[len(r) for r in rows]}. Use --images.")
    x, held_out_x = (unit_rms(part[:k] - mean) for part, k in zip(rows, whole, strict=True))
    y, held_out_y = found.train.y[: whole[0]], found.val.y[: whole[1]]
    return Images(x, y, held_out_x, held_out_y, found.n_class)


def optimizer(net: Classifier, images: Images, rate: float, steps: str) -> torch.optim.Optimizer:
    """Plain SGD, by `steps` with one step size for all or one for each layer.

    That of a layer is rate |W| / |g|, with Frobenius norms and |g| the root mean square of the
    gradients of the first SCOUTS batches.
    """
    if steps == "one":
        return torch.optim.SGD(net.parameters(), lr=rate)
    layers = [*net.hidden, net.readout]
    weights = [layer.weight for layer in layers]
    squares = torch.zeros(len(layers))
    batches = list(zip(images.x.split(BATCH), images.y.split(BATCH), strict=True))[:SCOUTS]
    for x, y in batches:
        loss = F.cross_entropy(net(x), y)
        squares += torch.stack([g.square().sum() for g in torch.autograd.grad(loss, weights)])
    size = (squares / len(batches)).sqrt().clamp(min=1e-30)
    groups = [
        {"params": list(layer.parameters()), "lr": rate * float(W.detach().norm() / g)}
        for layer, W, g in zip(layers, weights, size, strict=True)
    ]
    return torch.optim.SGD(groups)


def train_epoch(
    net: Classifier, images: Images, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> float:
    """One epoch; the mean loss, infinite once it overflows."""
    total, count = 0.0, 0
    for chosen in torch.randperm(len(images.x), generator=generator).split(BATCH):
        loss = F.cross_entropy(net(images.x[chosen]), images.y[chosen])
        if not bool(torch.isfinite(loss)):
            return math.inf
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = total + float(loss.detach()), count + 1
    return total / count


def best_rate(name: str, images: Images, settings: argparse.Namespace) -> float:
    """Of RATES the one with the smallest training loss after TRIAL_EPOCHS."""
    losses = {}
    for rate in RATES[settings.steps]:
        net = Classifier(name, images.x.shape[1], images.classes, settings)
        steps = optimizer(net, images, rate, settings.steps)
        generator = torch.Generator().manual_seed(settings.seed)
        losses[rate] = [train_epoch(net, images, steps, generator) for _ in range(TRIAL_EPOCHS)][-1]
    return min(losses, key=lambda rate: losses[rate])


@torch.no_grad()
def error(net: Classifier, x: Tensor, y: Tensor) -> float:
    """Share of wrong classes, in batches as in training."""
    wrong = [(net(a).argmax(1) != b).sum() for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)]
    return float(sum(wrong)) / len(x)
