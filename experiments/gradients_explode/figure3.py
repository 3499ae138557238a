"""Figure 3 of 'Gradients explode', reduced: the seven MLPs trained on images, measured every epoch.

    python experiments/gradients_explode/figure3.py --data-dir DIR [--task images | smnist | digits]

Fully connected on whole images: 50 layers of 100 units and a linear readout, plain SGD on cross-entropy.
Reduced against the paper: 4,000 training images, 12 epochs, CIFAR-10 resized to 16x16, one seed.

Step sizes: one for each layer, fixed, such that at the start every layer's step is the same fraction of
its weights; the fraction is the best of RATES after two epochs. With exploding gradients one step size
for all (`--steps one`) lets the first steps overwrite the low layers, and the explosion with them.

Panels: classification error (held-out solid, training faint); GSC(0, 50), from the image to the last
hidden layer; effective depth, with S from the initial weights and R from their change; operator norm of
that change. All but the error are measured on one batch of 100 training images.

The result is written after every epoch. A run that was cut off goes on with the first unfinished net.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mlps import MLPS, Layer
from rich.console import Console
from rich.table import Table
from sgd import BATCH, RATES, Classifier, Images, best_rate, error, load_images, optimizer, train_epoch
from shared import HERE, about, curve, keep, options, panel, save, table
from torch import Tensor, nn

from ctrnn_assembly.diagnostics.effective_depth import EffectiveDepth, VJPs, effective_depth_of_gradient
from ctrnn_assembly.diagnostics.gradient_scale import gsc
from ctrnn_assembly.errors import CtrnnError, DataError
from ctrnn_assembly.figures.style import line_style, new_figure, printed

PROBES = 20
NOTHING: dict[str, float | None] = dict.fromkeys(
    ("gsc", "effective_depth", "operator_norm", "change_norm")
)


def vjps(hidden: nn.Sequential, x: Tensor) -> list[VJPs]:
    """For each layer V -> (S^T V, R^T V): through phi and the norm, then through W(0) or W - W(0)."""

    def vjp(z: Tensor, y: Tensor, S: Tensor, R: Tensor) -> VJPs:
        def back(V: Tensor) -> tuple[Tensor, Tensor]:
            (q,) = torch.autograd.grad(y, z, V, retain_graph=True, is_grads_batched=True)
            return q @ S, q @ R

        return back

    found = []
    for layer in hidden:
        assert isinstance(layer, Layer)
        W = layer.weight.detach()
        z = (x @ W.mT).requires_grad_()
        y = layer.phi(layer.normalise(z))
        found.append(vjp(z, y, layer.initial, W - layer.initial))
        x = y.detach()
    return found


def depth_of(net: Classifier, x: Tensor, y: Tensor) -> EffectiveDepth:
    """Effective depth of the loss gradient at the image, for a batch."""
    with torch.no_grad():
        top = net.hidden(x)
    top.requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net.readout(top), y), top)
    return effective_depth_of_gradient(vjps(net.hidden, x), g)


def operator_norms(layer: nn.Module) -> Tensor:
    """Largest singular values of W, W - W(0) and W(0), (3,)."""
    assert isinstance(layer, Layer)
    W = layer.weight.detach()
    return torch.linalg.matrix_norm(torch.stack([W, W - layer.initial, layer.initial]), 2)


def diagnose(net: Classifier, images: Images, settings: argparse.Namespace) -> dict[str, float | None]:
    """GSC, effective depth and operator norms on the first batch, in float64."""
    net = copy.deepcopy(net).double()
    x, y = images.x[:BATCH].double(), images.y[:BATCH]
    generator = torch.Generator().manual_seed(settings.seed)
    try:
        scale = gsc(net.hidden, x, probes=PROBES, generator=generator)
    except DataError:  # overflow
        return NOTHING
    assert scale.standard_error is not None
    found = depth_of(net, x, y)
    norms = torch.stack([operator_norms(layer) for layer in net.hidden])  # (layers, 3)
    large = (found.shares > 0.01).nonzero()
    return {
        "gsc": float(scale.value[0]),
        "gsc_error": float(scale.standard_error[0]),
        "effective_depth": found.depth,
        "effective_depth_1_percent": int(large.max()) if len(large) else 0,
        "operator_norm": float(norms[:, 0].mean()),
        "operator_norm_largest": float(norms[:, 0].max()),
        "change_norm": float((norms[:, 1] / norms[:, 2]).mean()),
    }


def run(name: str, images: Images, settings: argparse.Namespace, result: dict[str, Any]) -> None:
    """Train one net and keep the result after every epoch."""
    began = time.perf_counter()
    rate = best_rate(name, images, settings)
    net = Classifier(name, images.x.shape[1], images.classes, settings)
    steps = optimizer(net, images, rate, settings.steps)
    generator = torch.Generator().manual_seed(settings.seed)
    record: dict[str, Any] = {"rate": rate, "complete": False, "epochs": []}
    result["nets"][name] = record
    for epoch in range(settings.epochs + 1):
        loss = train_epoch(net, images, steps, generator) if epoch else None
        diverged = loss is not None and not math.isfinite(loss)
        row = {
            "epoch": epoch,
            "loss": loss,
            "error": error(net, images.x, images.y),
            "held_out_error": error(net, images.held_out_x, images.held_out_y),
            **(NOTHING if diverged else diagnose(net, images, settings)),
        }
        record["epochs"].append(row)
        record["seconds"] = time.perf_counter() - began
        record["complete"] = diverged or epoch == settings.epochs
        keep(stem(settings), result, settings.results, digits=6)
        if diverged:
            break


def earlier(settings: argparse.Namespace, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The newest result of the same settings and seed, with its finished nets."""
    for path in sorted(settings.results.glob(f"*-{stem(settings)}.json"), reverse=True):
        kept = json.loads(path.read_text())
        if (kept["settings"], kept["seed"]) == (wanted["settings"], wanted["seed"]):
            return kept | {"nets": {k: net for k, net in kept["nets"].items() if net["complete"]}}
    return None


def stem(settings: argparse.Namespace) -> str:
    return f"gradients-explode-figure3-{settings.task}-{settings.steps}"


def results_table(result: dict[str, Any]) -> Table:
    rows = []
    for name, net in result["nets"].items():
        first, last = net["epochs"][0], net["epochs"][-1]
        errors = (f"{last[key]:.3f}" for key in ("error", "held_out_error"))
        values = (first["gsc"], last["gsc"], last["effective_depth"], last["change_norm"])
        rows.append((name, f"{net['rate']:g}", *errors, *map(number, values)))
    columns = (
        "net",
        "rate",
        "train err",
        "held out",
        "GSC before",
        "after",
        "eff. depth",
        "change of W",
    )
    return table(columns, rows, title=f"After {result['settings']['epochs']} epochs")


def number(value: float | None) -> str:
    """Three digits, without an exponent up to a million."""
    if value is None:
        return "none"
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


@printed
def draw(result: dict[str, Any], what: str) -> Any:
    figure = new_figure(7, f"Seven MLPs trained on {what}; A: training error faint", 9)
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
            curve(axes, name, [row["epoch"] for row in rows], [row[key] for row in rows])
            if key == "held_out_error":
                faint = {"color": line_style(k)["color"], "alpha": 0.3, "lw": 1}
                axes.plot([row["epoch"] for row in rows], [row["error"] for row in rows], **faint)
        panel(axes, title, yscale=scale, xlabel="epoch", xlim=(-0.04 * end, 1.04 * end))
    grid[0, 0].set_ylim(0, 1)
    grid[1, 0].yaxis.get_major_locator().set_params(integer=True)
    return figure


def settings_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--task", default="images", help="images (CIFAR-10 as JPEG), smnist or digits")
    parser.add_argument("--data-dir", type=Path, help="default: CTRNN_DATA_DIR")
    parser.add_argument("--steps", choices=tuple(RATES), default="layer", help="step sizes, see above")
    parser.add_argument("--images", type=int, default=4000, help="training images")
    parser.add_argument("--resize", type=int, help="pixels a side; default 16 for images, else all")
    parser.add_argument("--epochs", type=int, default=12)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    settings = settings_from(arguments)
    torch.set_num_threads(settings.threads)
    console = Console(highlight=False)
    try:
        images = load_images(settings)
    except DataError as reason:
        console.print(f"Skipped, no images: {reason}")
        return None
    except CtrnnError as wrong:
        raise SystemExit(str(wrong)) from None
    keys = ("task", "steps", "images", "resize", "epochs", "depth", "width")
    measured = {"rates": list(RATES[settings.steps]), "batch": BATCH, "pixels": images.x.shape[1]}
    result = about(__file__, arguments, seed=settings.seed)
    result["settings"] = {key: getattr(settings, key) for key in keys} | measured
    result["nets"] = {}
    if kept := earlier(settings, result):
        result = kept
        console.print(f"Going on: {len(result['nets'])} of {len(MLPS)} nets are there.")
    for name in MLPS:
        if name not in result["nets"]:
            run(name, images, settings, result)
            console.print(f"{name}: {result['nets'][name]['seconds']:.0f} s")
    result["seconds"] = sum(net["seconds"] for net in result["nets"].values())
    path = keep(stem(settings), result, settings.results, digits=6)
    figure = settings.figure or HERE / f"figure3-{settings.task}-{settings.steps}"
    pixels = f"{len(images.x)} images of {images.x.shape[1]} values (task {settings.task})"
    rule = "one step size a layer" if settings.steps == "layer" else "one step size for all layers"
    save(draw(result, f"{pixels}, {rule}"), figure)
    console.print(results_table(result))
    console.print(f"{result['seconds']:.0f} s. Wrote {path} and {figure}.png, .pdf")
    return result


if __name__ == "__main__":
    main()
