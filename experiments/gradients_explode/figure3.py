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
from mlps import MLPS, Layer, about, keep, mlp, number, unit_rms
from rich.table import Table
from torch import Generator, Tensor, nn

from ctrnn_assembly.data import load_task
from ctrnn_assembly.data.task import Split, Task
from ctrnn_assembly.diagnostics.gradients import VJPs, effective_depth_of_gradient, gsc
from ctrnn_assembly.errors import CtrnnError, DataError
from ctrnn_assembly.figures import style
from ctrnn_cli.shared import console, table

Settings = argparse.Namespace
RATES = (0.03, 0.01, 0.003, 0.001, 0.0003)  # of the norm of W, in the first steps
TRIAL_EPOCHS = 2
SCOUTS = 10  # batches
BATCH = 100
PROBES = 20
NOTHING: dict[str, Any] = dict.fromkeys(("gsc", "effective_depth", "operator_norm", "change_norm"))


class Classifier(nn.Module):
    """An MLP and a linear readout, (B, pixels) -> (B, classes)."""

    def __init__(self, name: str, images: Task, settings: Settings) -> None:
        super().__init__()
        generator, pixels = Generator().manual_seed(settings.seed), images.train.x.shape[1]
        self.hidden = mlp(name, [pixels, *[settings.width] * settings.depth], generator, torch.float32)
        self.readout = nn.Linear(settings.width, images.n_class, dtype=torch.float32)
        nn.init.normal_(self.readout.weight, std=settings.width**-0.5, generator=generator)
        nn.init.zeros_(self.readout.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.hidden(x))


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


def optimizer(net: Classifier, images: Task, rate: float) -> torch.optim.Optimizer:
    """Plain SGD with the step size rate |W| / |g| for each layer.

    Norms are Frobenius', |g| is the root mean square of the gradients of the first SCOUTS batches.
    """
    layers = [*net.hidden, net.readout]
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


def training(net: Classifier, images: Task, rate: float, settings: Settings) -> Iterator[float]:
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
        net = Classifier(name, images, settings)
        losses[rate] = list(islice(training(net, images, rate, settings), TRIAL_EPOCHS))[-1]
    return min(losses, key=lambda rate: losses[rate])


@torch.no_grad()
def error(net: Classifier, split: Split) -> float:
    """Share of wrong classes, in batches as in training."""
    return sum(float((net(x).argmax(1) != y).sum()) for x, y in batches(split)) / len(split)


# What is measured


def vjps(hidden: nn.Sequential, x: Tensor) -> list[VJPs]:
    """For each layer V -> (S^T V, R^T V): through phi and the norm, then through W(0) or W - W(0)."""

    def split(z: Tensor, y: Tensor, S: Tensor, R: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        (q,) = torch.autograd.grad(y, z, V, retain_graph=True, is_grads_batched=True)
        return q @ S, q @ R

    found: list[VJPs] = []
    for layer in hidden:
        assert isinstance(layer, Layer)
        W = layer.weight.detach()
        z = (x @ W.mT).requires_grad_()
        y = layer.phi(layer.normalise(z))
        found.append(partial(split, z, y, layer.initial, W - layer.initial))
        x = y.detach()
    return found


def diagnose(net: Classifier, images: Task, settings: Settings) -> dict[str, Any]:
    """GSC, effective depth and operator norms on the first batch, in float64."""
    net = copy.deepcopy(net).double()
    x, y = batches(images.train)[0]
    x = x.double()
    generator = Generator().manual_seed(settings.seed)
    try:
        scale = gsc(net.hidden, x, probes=PROBES, generator=generator)
    except DataError:  # overflow
        return NOTHING
    assert scale.standard_error is not None
    top = net.hidden(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net.readout(top), y), top)
    found = effective_depth_of_gradient(vjps(net.hidden, x), g)
    layers = (layer for layer in net.hidden if isinstance(layer, Layer))
    pairs = [(layer.weight.detach(), layer.initial) for layer in layers]
    norms = [torch.linalg.matrix_norm(torch.stack([W, W - W_0, W_0]), 2) for W, W_0 in pairs]
    own, change, initial = torch.stack(norms).T
    large = (found.shares > 0.01).nonzero()
    return {
        "gsc": float(scale.value[0]),
        "gsc_error": float(scale.standard_error[0]),
        "effective_depth": found.depth,
        "effective_depth_1_percent": int(large.max()) if len(large) else 0,
        "operator_norm": float(own.mean()),
        "operator_norm_largest": float(own.max()),
        "change_norm": float((change / initial).mean()),
    }


def run(name: str, images: Task, settings: Settings, result: dict[str, Any]) -> None:
    """Train one net and keep the result after every epoch."""
    began = time.perf_counter()
    rate = best_rate(name, images, settings)
    net = Classifier(name, images, settings)
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
            **(NOTHING if diverged else diagnose(net, images, settings)),
        }
        record["epochs"].append(row)
        record["seconds"] = time.perf_counter() - began
        record["complete"] = diverged or epoch == settings.epochs
        keep(f"gradients-explode-{settings.name}", result, settings.results)


def results_table(result: dict[str, Any]) -> Table:
    rows = []
    for name, net in result["nets"].items():
        first, last = net["epochs"][0], net["epochs"][-1]
        row = {
            "net": name,
            "rate": f"{net['rate']:g}",
            "train err": f"{last['error']:.3f}",
            "held out": f"{last['held_out_error']:.3f}",
            "GSC before": number(first["gsc"]),
            "after": number(last["gsc"]),
            "eff. depth": number(last["effective_depth"]),
            "change of W": number(last["change_norm"]),
        }
        rows.append(row)
    return table(rows, title=f"After {result['settings']['epochs']} epochs")


@style.printed
def draw(result: dict[str, Any], what: str) -> Any:
    figure = style.new_figure(7, f"Seven MLPs trained on {what}; A: training error faint", 9)
    grid, end = figure.subplots(2, 2), result["settings"]["epochs"]
    panels = {
        "held_out_error": ("A  classification error", "linear"),
        "gsc": ("B  GSC(0, L), image to last hidden layer", "log"),
        "effective_depth": ("C  effective depth", "linear"),
        "change_norm": ("D  |W - W(0)| / |W(0)|, operator norms, mean over layers", "log"),
    }
    for axes, (key, (title, scale)) in zip(grid.flat, panels.items(), strict=True):
        for k, (name, net) in enumerate(result["nets"].items()):
            rows = [
                row for row in net["epochs"] if row[key] is not None and (row[key] or scale != "log")
            ]
            mlps.curve(axes, name, [row["epoch"] for row in rows], [row[key] for row in rows])
            if key == "held_out_error":
                faint = {"color": style.line_style(k)["color"], "alpha": 0.3, "lw": 1}
                axes.plot([row["epoch"] for row in rows], [row["error"] for row in rows], **faint)
        mlps.panel(axes, title, yscale=scale, xlabel="epoch", xlim=(-0.04 * end, 1.04 * end))
    grid[0, 0].set_ylim(0, 1)
    grid[1, 0].yaxis.get_major_locator().set_params(integer=True)
    return figure


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


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    settings = settings_from(arguments)
    torch.set_num_threads(settings.threads)
    try:
        images = load_images(settings)
    except DataError as reason:
        print(f"Skipped, no images: {reason}")
        return None
    except CtrnnError as wrong:
        raise SystemExit(str(wrong)) from None
    keys = ("task", "images", "resize", "epochs", "depth", "width")
    count, pixels = images.train.x.shape
    measured = {"rates": list(RATES), "batch": BATCH, "pixels": pixels}
    result = about(__file__, arguments, seed=settings.seed)
    result["settings"] = {key: getattr(settings, key) for key in keys} | measured
    result["nets"] = {}
    for name in MLPS:
        run(name, images, settings, result)
        print(f"{name}: {result['nets'][name]['seconds']:.0f} s")
    result["seconds"] = sum(net["seconds"] for net in result["nets"].values())
    what = f"{count} images of {pixels} values (task {settings.task})"
    console().print(results_table(result))
    wrote = mlps.finish(settings.name, result, draw(result, what), settings)
    print(f"{result['seconds']:.0f} s. {wrote}")
    return result


if __name__ == "__main__":
    main()
