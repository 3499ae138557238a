"""The second experiment of 'Gradients explode' (figure 3): the four exploding MLPs, trained on images.

    python experiments/gradients_explode/figure3.py --data-dir DIR [--images 3000]

As in the 2018 report on the paper's reproducibility: 51 linear layers, 50 of 100 units and a readout, on
whole images; softmax, and the error layer f_0 = log of the probability of the right class. Plain SGD,
one rate for all layers, from the best of RATES; a rate is cut by .333 when the training error has not
fallen for 5 epochs. The best has the lowest training error within `--search-epochs`. Reduced: fewer
images, the CIFAR-10 that is at hand, batches of 100 (the report's are not known to us), one seed.

Panels: training error; GSC(L, 0), from the image to the error layer, on 100 training images; effective
depth, with S from the initial weights and R from their change; operator norm of that change layer by
layer. Nets of batch norm: GSC from PROBES random signs. The result is written after every epoch.
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
from mlps import keep, mlp, shown, unit_rms
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ctrnn_assembly.data import load_task
from ctrnn_assembly.data.task import Split, Task
from ctrnn_assembly.diagnostics.gradients import VJPs, effective_depth_of_gradient, gsc
from ctrnn_assembly.diagnostics.linearise import vjp
from ctrnn_assembly.errors import CtrnnError, DataError
from ctrnn_cli.shared import Column

Settings = argparse.Namespace
EXPLODING = ("batch-relu", "layer-tanh", "batch-tanh", "selu")
RATES = tuple(digit * 10.0**power for power in range(5, -6, -1) for digit in (3, 1))[1:]
BATCH = 100
PROBES = 20
COLUMNS = [
    Column("net", "net"),
    Column("rate", "rate", "g"),
    Column("lowest", "lowest err", ".3f"),
    Column("error", "last err", ".3f"),
    Column("held_out_error", "held out", ".3f"),
    Column("before", "GSC before", ".4g"),
    Column("gsc", "after", ".4g"),
    Column("effective_depth", "eff. depth", "d"),
    Column("deepest", "largest", "d"),
]
EPOCH = {"xlabel": "epoch"}
CHANGE = {"yscale": "log", "xlabel": "linear layers from the error layer"}
PANELS: Any = (
    ("A  training error", 0, ("error",), EPOCH | {"ylim": (0, 1)}),
    ("B  GSC(L, 0), image to error layer", 0, ("gsc",), EPOCH | {"yscale": "log"}),
    ("C  effective depth", 0, ("effective_depth",), EPOCH),
    ("D  operator norm of W - W(0)", 1, ("changes",), CHANGE),
)
NOTHING: dict[str, Any] = dict.fromkeys(("gsc", "effective_depth"))


def classifier(name: str, images: Task, settings: Settings) -> nn.Sequential:
    """An MLP and a linear readout, (B, pixels) -> (B, classes); the same for the same seed."""
    generator, width = Generator().manual_seed(settings.seed), settings.width
    sizes = [images.train.x.shape[1], *[width] * settings.depth]
    readout = nn.Linear(width, images.n_class, bias=False, dtype=torch.float32)
    hidden = mlp(name, sizes, generator, torch.float32)
    nn.init.normal_(readout.weight, std=width**-0.5, generator=generator)
    return nn.Sequential(*hidden, readout)


def linear(net: nn.Module) -> list[Tensor]:
    """The weights of the linear layers in float64, the readout's last."""
    return [part.weight.detach().double() for part in net.modules() if isinstance(part, nn.Linear)]


def load_images(settings: Settings) -> Task:
    """Rows of pixels, centred and at the length sqrt(pixels); whole batches, for batch norm."""
    where = {"data_dir": settings.data_dir, "seed": settings.seed, "augment": False}
    task = load_task(settings.task, limit_train=settings.images, resize=settings.resize, **where)
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


def training(net: nn.Sequential, images: Task, rate: float, settings: Settings) -> Iterator[float]:
    """The training error of each epoch, of the weights as they were at each batch; NaN on overflow."""
    steps, generator = torch.optim.SGD(net.parameters(), rate), Generator()
    cuts = ReduceLROnPlateau(steps, factor=0.333, patience=4, threshold=0)
    generator.manual_seed(settings.seed)
    while True:
        wrong = 0.0
        for x, y in batches(images.train.take(torch.randperm(len(images.train), generator=generator))):
            out = net(x)
            loss = F.cross_entropy(out, y)
            if not bool(torch.isfinite(loss)):
                yield math.nan
                return
            steps.zero_grad()
            loss.backward()
            steps.step()
            wrong += float((out.argmax(1) != y).sum())
        yield wrong / len(images.train)
        cuts.step(wrong)


def search(name: str, images: Task, settings: Settings) -> dict[float, float]:
    """The lowest training error that each rate reaches, 1 if its loss overflows."""
    found = {}
    for rate in RATES:
        net = classifier(name, images, settings)
        errors = list(islice(training(net, images, rate, settings), settings.search_epochs))
        found[rate] = 1.0 if math.isnan(errors[-1]) else min(errors)
    return found


@torch.no_grad()
def error(net: nn.Sequential, split: Split) -> float:
    return sum(float((net(x).argmax(1) != y).sum()) for x, y in batches(split)) / len(split)


def vjps(hidden: nn.Sequential, initial: list[Tensor], x: Tensor) -> list[VJPs]:
    """For each layer V -> (S^T V, R^T V): through phi and the norm, then through W(0) or W - W(0)."""

    def split(z: Tensor, y: Tensor, S: Tensor, R: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        q = vjp(y, z, V)
        return q @ S, q @ R

    found: list[VJPs] = []
    for (first, norm, phi), S in zip(hidden, initial, strict=False):
        z = first(x).detach().requires_grad_()
        y = phi(norm(z))
        found.append(partial(split, z, y, S, first.weight.detach() - S))
        x = y.detach()
    return found


def log_probability(y: Tensor, out: Tensor) -> Tensor:
    """The error layer, (B, classes) -> (B, 1)."""
    return out.log_softmax(1).gather(1, y[:, None])


def diagnose(
    name: str, net: nn.Sequential, initial: list[Tensor], images: Task, seed: int
) -> dict[str, Any]:
    """GSC and effective depth on the first batch, in float64; `initial` are the W(0)."""
    net = copy.deepcopy(net).double()
    x, y = batches(images.train)[0]
    x, probes = x.double(), PROBES if name.startswith("batch") else None
    generator = Generator().manual_seed(seed)
    try:
        scale = gsc([*net, partial(log_probability, y)], x, probes=probes, generator=generator)
    except DataError:  # overflow
        return NOTHING
    hidden, readout = net[:-1], net[-1]
    top = hidden(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(log_probability(y, readout(top)).sum(), top)
    depth, value = effective_depth_of_gradient(vjps(hidden, initial, x), g)[0], float(scale.value[0])
    return {"gsc": value if math.isfinite(value) else None, "effective_depth": depth}


def run(name: str, images: Task, settings: Settings, result: dict[str, Any]) -> None:
    """Search the rate, train the net, and keep the result after every epoch."""
    began = time.perf_counter()
    searched = search(name, images, settings)
    rate = min(searched, key=lambda rate: searched[rate])
    net = classifier(name, images, settings)
    initial = linear(copy.deepcopy(net))
    record: dict[str, Any] = {"rate": rate, "complete": False, "epochs": []}
    record["searched"] = {f"{rate:g}": lowest for rate, lowest in searched.items()}
    result["nets"][name] = record
    errors = training(net, images, rate, settings)
    first = error(net, images.train)
    for epoch, wrong in enumerate(chain([first], islice(errors, settings.epochs))):
        overflow = math.isnan(wrong)
        row = {"epoch": epoch, "error": 1.0 if overflow else wrong}
        row["held_out_error"] = error(net, images.val)
        row |= NOTHING if overflow else diagnose(name, net, initial, images, settings.seed)
        record["epochs"].append(row)
        pairs = zip(reversed(linear(net)), reversed(initial), strict=True)
        record["changes"] = [float(torch.linalg.matrix_norm(W - W_0, 2)) for W, W_0 in pairs]
        record["seconds"] = time.perf_counter() - began
        record["complete"] = overflow or epoch == settings.epochs
        keep(f"gradients-explode-{settings.name}", result, settings.results)


def settings_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = mlps.options(__doc__, images=3000, search_epochs=70, epochs=100)
    parser.add_argument("--task", default="images", help="images (CIFAR-10 as JPEG), smnist or digits")
    parser.add_argument("--data-dir", type=Path, help="default: CTRNN_DATA_DIR")
    parser.add_argument("--resize", type=int, help="pixels a side; default: all")
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
    result = mlps.begun(settings)
    result["settings"] |= {"rates": list(RATES), "batch": BATCH, "pixels": pixels}
    nets = result["nets"] = {}
    rows, curves = [], {}
    for name in EXPLODING:
        run(name, images, settings, result)
        print(f"{name}: {nets[name]['seconds']:.0f} s", flush=True)
        net, epochs = nets[name], nets[name]["epochs"]
        row = {"net": name, "rate": net["rate"], "before": epochs[0]["gsc"], **epochs[-1]}
        curve = {key: [row[key] for row in epochs] for key in ("error", "gsc", "effective_depth")}
        row |= {"lowest": min(curve["error"]), "deepest": max(d or 0 for d in curve["effective_depth"])}
        rows.append(row)
        curves[name] = curve | {"changes": net["changes"]}
    result["seconds"] = sum(net["seconds"] for net in nets.values())
    result["table"] = shown(rows, COLUMNS)
    title = f"Exploding MLPs trained on {count} images of {pixels} values (task {settings.task})"
    heading, size = f"After {settings.epochs} epochs", {"shape": (2, 2), "height": 7, "width": 9}
    mlps.finish(settings.name, result, settings, heading, curves, PANELS, title=title, **size)
    return result


if __name__ == "__main__":
    main()
