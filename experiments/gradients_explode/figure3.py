"""Figure 3 of 'Gradients explode', reduced: the seven MLPs trained on images, measured every epoch.

    python experiments/gradients_explode/figure3.py --data-dir DIR [--task images | smnist | digits]

Fully connected on whole images: 50 layers of 100 units and a linear readout, plain SGD on cross-entropy.
Reduced against the paper: 4,000 training images, 12 epochs, CIFAR-10 resized to 16x16, one seed.

Step sizes: one for each layer, fixed, such that at the start every layer's step is the same fraction of
its weights; the fraction is the best of RATES after two epochs. With exploding gradients one step size
for all would let the first steps overwrite the low layers, and the explosion with them.

Panels: classification error (held-out solid, training faint); GSC(0, 50), from the image to the last
hidden layer; effective depth, with S from the initial weights and R from their change; operator norm of
that change. All but the error are measured on one batch of 100 training images.

The result is written after every epoch.
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import mlps
import torch
import torch.nn.functional as F
from mlps import MLPS, keep, mlp, unit_rms
from rich.table import Table
from torch import Generator, Tensor, nn

from ctrnn_assembly.data import load_task
from ctrnn_assembly.data.task import Split, Task
from ctrnn_assembly.diagnostics.gradients import VJPs, effective_depth_of_gradient, gsc
from ctrnn_assembly.diagnostics.linearise import vjp
from ctrnn_assembly.errors import CtrnnError, DataError
from ctrnn_cli.shared import Column, console, table

Settings = argparse.Namespace
RATES = (0.03, 0.01, 0.003, 0.001, 0.0003)  # of the norm of W, in the first steps
TRIAL_EPOCHS = 2
SCOUTS = 10  # batches
BATCH = 100
PROBES = 20
COLUMNS = [
    Column("net", "net"),
    Column("rate", "rate", "g"),
    Column("error", "train err", ".3f"),
    Column("held_out_error", "held out", ".3f"),
    Column("before", "GSC before", ".4g"),
    Column("gsc", "after", ".4g"),
    Column("effective_depth", "eff. depth", "d"),
    Column("change_norm", "change of W", ".3g"),
]
LOG = {"yscale": "log", "xlabel": "epoch"}
PANELS: Any = (
    ("A  classification error", ("held_out_error", "error"), {"ylim": (0, 1), "xlabel": "epoch"}),
    ("B  GSC(0, L), image to last hidden layer", ("gsc",), LOG),
    ("C  effective depth", ("effective_depth",), {"xlabel": "epoch"}),
    ("D  |W - W(0)| / |W(0)|, operator norms, mean over layers", ("change_norm",), LOG),
)
NOTHING: dict[str, Any] = dict.fromkeys(("gsc", "effective_depth", "operator_norm", "change_norm"))


def classifier(name: str, images: Task, settings: Settings) -> nn.Sequential:
    """An MLP and a linear readout, (B, pixels) -> (B, classes); the same for the same seed."""
    generator, width = Generator().manual_seed(settings.seed), settings.width
    sizes = [images.train.x.shape[1], *[width] * settings.depth]
    readout = nn.Linear(width, images.n_class, dtype=torch.float32)
    nn.init.zeros_(readout.bias)
    hidden = mlp(name, sizes, generator, torch.float32)
    nn.init.normal_(readout.weight, std=width**-0.5, generator=generator)
    return nn.Sequential(*hidden, readout)


def linear(net: nn.Module) -> list[nn.Linear]:
    """The linear part of every layer, the readout last."""
    return [part for part in net.modules() if isinstance(part, nn.Linear)]


def load_images(settings: Settings) -> Task:
    """Rows of pixels, centred and at the length sqrt(pixels); whole batches, for batch norm."""
    side = settings.resize or (16 if settings.task == "images" else None)
    where = {"data_dir": settings.data_dir, "seed": settings.seed, "augment": False}
    task = load_task(settings.task, limit_train=settings.images, resize=side, **where)
    mean = task.train.x.flatten(1).float().mean(0)
    parts = []
    for split in (task.train, task.val):
        if not (whole := len(split) // BATCH * BATCH):
            raise DataError(f"each split needs {BATCH} images; got {len(split)}. Use --images.")
        rows = unit_rms(split.x[:whole].flatten(1).float() - mean)
        parts.append(Split(rows, split.y[:whole]))
    return replace(task, train=parts[0], val=parts[1])


def batches(split: Split) -> list[tuple[Tensor, Tensor]]:
    return list(zip(split.x.split(BATCH), split.y.split(BATCH), strict=True))


def optimizer(net: nn.Sequential, images: Task, rate: float) -> torch.optim.Optimizer:
    """Plain SGD with the step size rate |W| / |g| for each layer.

    Norms are Frobenius', |g| is the root mean square of the gradients of the first SCOUTS batches.
    """
    layers = linear(net)
    weights = [layer.weight for layer in layers]
    squares = torch.zeros(len(layers))
    scouts = batches(images.train)[:SCOUTS]
    for x, y in scouts:
        loss = F.cross_entropy(net(x), y)
        squares += torch.stack([g.square().sum() for g in torch.autograd.grad(loss, weights)])
    size = (squares / len(scouts)).sqrt().clamp(min=1e-30)
    groups = [
        {"params": list(layer.parameters()), "lr": rate * float(W.detach().norm() / g)}
        for layer, W, g in zip(layers, weights, size, strict=True)
    ]
    return torch.optim.SGD(groups)


def training(net: nn.Sequential, images: Task, rate: float, settings: Settings) -> Iterator[float]:
    """The mean losses of epochs, infinite once one overflows, which is the last."""
    steps, generator = optimizer(net, images, rate), Generator()
    generator.manual_seed(settings.seed)
    while True:
        losses = []
        for x, y in batches(images.train.take(torch.randperm(len(images.train), generator=generator))):
            loss = F.cross_entropy(net(x), y)
            if not bool(torch.isfinite(loss)):
                yield math.inf
                return
            steps.zero_grad()
            loss.backward()
            steps.step()
            losses.append(float(loss.detach()))
        yield sum(losses) / len(losses)


def best_rate(name: str, images: Task, settings: Settings) -> float:
    """Of RATES the one with the smallest training loss after TRIAL_EPOCHS."""
    losses = {}
    for rate in RATES:
        net = classifier(name, images, settings)
        losses[rate] = list(islice(training(net, images, rate, settings), TRIAL_EPOCHS))[-1]
    return min(losses, key=lambda rate: losses[rate])


@torch.no_grad()
def error(net: nn.Sequential, split: Split) -> float:
    """Share of wrong classes, in batches as in training."""
    return sum(float((net(x).argmax(1) != y).sum()) for x, y in batches(split)) / len(split)


# What is measured


def vjps(hidden: nn.Sequential, initial: list[Tensor], x: Tensor) -> list[VJPs]:
    """For each layer V -> (S^T V, R^T V): through phi and the norm, then through W(0) or W - W(0)."""

    def split(z: Tensor, y: Tensor, S: Tensor, R: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        q = vjp(y, z, V)
        return q @ S, q @ R

    found: list[VJPs] = []
    for (first, norm, phi), S in zip(hidden, initial, strict=True):
        z = first(x).detach().requires_grad_()
        y = phi(norm(z))
        found.append(partial(split, z, y, S, first.weight.detach() - S))
        x = y.detach()
    return found


def diagnose(net: nn.Sequential, initial: list[Tensor], images: Task, seed: int) -> dict[str, Any]:
    """GSC, effective depth and operator norms on the first batch, in float64; `initial` are the W(0)."""
    net = copy.deepcopy(net).double()
    hidden, readout = net[:-1], net[-1]
    x, y = batches(images.train)[0]
    x = x.double()
    try:
        scale = gsc(hidden, x, probes=PROBES, generator=Generator().manual_seed(seed))
    except DataError:  # overflow
        return NOTHING
    assert scale.standard_error is not None
    top = hidden(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(readout(top), y), top)
    found = effective_depth_of_gradient(vjps(hidden, initial, x), g)
    weights = [layer.weight.detach() for layer in linear(hidden)]
    norms = [
        torch.linalg.matrix_norm(torch.stack([W, W - W_0, W_0]), 2)
        for W, W_0 in zip(weights, initial, strict=True)
    ]
    own, change, before = torch.stack(norms).T
    large = (found.shares > 0.01).nonzero()
    return {
        "gsc": float(scale.value[0]),
        "gsc_error": float(scale.standard_error[0]),
        "effective_depth": found.depth,
        "effective_depth_1_percent": int(large.max()) if len(large) else 0,
        "operator_norm": float(own.mean()),
        "operator_norm_largest": float(own.max()),
        "change_norm": float((change / before).mean()),
    }


def run(name: str, images: Task, settings: Settings, result: dict[str, Any]) -> None:
    """Train one net and keep the result after every epoch."""
    began = time.perf_counter()
    rate = best_rate(name, images, settings)
    net = classifier(name, images, settings)
    initial = [layer.weight.detach().double().clone() for layer in linear(net[:-1])]
    record: dict[str, Any] = {"rate": rate, "complete": False, "epochs": []}
    result["nets"][name] = record
    losses = training(net, images, rate, settings)
    for epoch, loss in enumerate(chain([None], islice(losses, settings.epochs))):
        diverged = loss == math.inf
        row = {
            "epoch": epoch,
            "loss": loss,
            "error": error(net, images.train),
            "held_out_error": error(net, images.val),
            **(NOTHING if diverged else diagnose(net, initial, images, settings.seed)),
        }
        record["epochs"].append(row)
        record["seconds"] = time.perf_counter() - began
        record["complete"] = diverged or epoch == settings.epochs
        keep(f"gradients-explode-{settings.name}", result, settings.results)


def results_table(nets: dict[str, Any], title: str) -> Table:
    rows = [
        {"net": name, "rate": net["rate"], "before": net["epochs"][0]["gsc"], **net["epochs"][-1]}
        for name, net in nets.items()
    ]
    return table(rows, COLUMNS, title=title)


def settings_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = mlps.options(__doc__)
    parser.add_argument("--task", default="images", help="images (CIFAR-10 as JPEG), smnist or digits")
    parser.add_argument("--data-dir", type=Path, help="default: CTRNN_DATA_DIR")
    parser.add_argument("--images", type=int, default=4000, help="training images")
    parser.add_argument("--resize", type=int, help="pixels a side; default 16 for images, else all")
    parser.add_argument("--epochs", type=int, default=12)
    settings = parser.parse_args(arguments)
    settings.name = f"figure3-{settings.task}"
    return settings


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    settings = settings_from(arguments)
    try:
        images = load_images(settings)
    except CtrnnError as wrong:
        raise SystemExit(str(wrong)) from None
    count, pixels = images.train.x.shape
    result = mlps.begun(__file__, arguments, settings)
    result["settings"] |= {"rates": list(RATES), "batch": BATCH, "pixels": pixels}
    nets = result["nets"] = {}
    for name in MLPS:
        run(name, images, settings, result)
        print(f"{name}: {nets[name]['seconds']:.0f} s")
    result["seconds"] = sum(net["seconds"] for net in nets.values())
    console().print(results_table(nets, f"After {settings.epochs} epochs"))
    curves = {
        name: {key: [row[key] for row in net["epochs"]] for _, keys, _ in PANELS for key in keys}
        for name, net in nets.items()
    }
    what = f"{count} images of {pixels} values (task {settings.task})"
    title = f"Seven MLPs trained on {what}; A: training error faint"
    figure = mlps.draw(curves, PANELS, settings.epochs, (2, 2), title=title, height=7, width=9)
    print(f"{result['seconds']:.0f} s. {mlps.finish(settings.name, result, figure, settings)}")
    return result


if __name__ == "__main__":
    main()
