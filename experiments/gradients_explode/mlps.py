"""The seven networks of 'Gradients explode', f_l = phi(norm(W_l f_{l-1})), and what their figures share.

| name | norm | phi | variance of W |
|---|---|---|---|
| relu, layer-relu, batch-relu | none, layer, batch | ReLU | 2 / columns |
| tanh, layer-tanh, batch-tanh | none, layer, batch | tanh | 1 / columns |
| selu | none | SELU | 1 / columns |

Weights are Gaussian; there are no biases, and the norms have no gain or shift. Batch norm uses the
statistics of the batch it sees, always.

Source: Philipp, Song and Carbonell 2017 (arXiv 1712.05577), section 3.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from ctrnn_assembly.figures import style
from ctrnn_assembly.training.provenance import provenance
from ctrnn_cli.shared import console, table

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from keep import RESULTS, keep, shown  # noqa: E402, F401

MLPS = ("relu", "layer-relu", "batch-relu", "tanh", "layer-tanh", "batch-tanh", "selu")
NORMS: Any = {
    "": nn.Identity,
    "layer": partial(nn.LayerNorm, elementwise_affine=False),
    "batch": partial(nn.BatchNorm1d, affine=False, track_running_stats=False),
}
PHIS: Any = {"relu": nn.ReLU, "tanh": nn.Tanh, "selu": nn.SELU}


def mlp(
    name: str, sizes: Sequence[int], generator: Generator, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """One of `MLPS`, each layer nn.Sequential(W, norm, phi), of as many units as `sizes` says."""
    norm, _, phi = name.rpartition("-")
    layers = []
    for columns, rows in pairwise(sizes):
        linear = nn.Linear(columns, rows, bias=False, dtype=dtype)
        variance = (2 if phi == "relu" else 1) / columns
        nn.init.normal_(linear.weight, std=variance**0.5, generator=generator)
        layers.append(nn.Sequential(linear, NORMS[norm](rows), PHIS[phi]()))
    return nn.Sequential(*layers)


def unit_rms(x: Tensor) -> Tensor:
    """Rows of x (B, d) at the length sqrt(d)."""
    return normalize(x) * x.shape[1] ** 0.5


def options(docstring: str | None, **numbers: int) -> argparse.ArgumentParser:
    """The options of all figures, and whole numbers of one figure with their defaults."""
    parser = argparse.ArgumentParser(description=str(docstring).split("\n\n")[0])
    for name, default in {"depth": 50, "width": 100, "seed": 0, "threads": 1, **numbers}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--figure", type=Path, help="without an ending")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    return parser


def begun(settings: argparse.Namespace) -> dict[str, Any]:
    """The result of a script before it has measured: what it depends on."""
    torch.set_num_threads(settings.threads)
    given = {name: value for name, value in vars(settings).items() if not isinstance(value, Path)}
    return provenance(seed=settings.seed) | {"settings": given}


@style.printed
def finish(
    name: str,
    result: dict[str, Any],
    args: argparse.Namespace,
    heading: str,
    nets: Mapping[str, Any],
    panels: Sequence[tuple[str, int, Sequence[str], Any]],
    **look_of_figure: Any,
) -> None:
    """Print the table of a result, keep the result, draw it as png and pdf, and say where.

    Panels are (title, first x, keys, axes' settings), a curve a net; those of further keys are faint.
    """
    console().print(table(result["table"], title=heading))
    figure, grid = style.new_figure(**look_of_figure)
    for axes, (title, first, keys, settings) in zip(grid.flat, panels, strict=True):
        for net, curves in nets.items():
            look: Any = style.line_style(MLPS.index(net)) | {"label": net}
            for key in keys:
                y = np.array(curves[key], float)
                y = np.where(y > 0, y, np.nan) if "yscale" in settings else y
                x, every = range(first, first + len(y)), max(1, len(y) // 10)
                axes.plot(x, y, **look, markevery=every, ms=3.5, lw=1.3)
                look |= {"alpha": 0.3, "marker": "", "label": ""}
        axes.set(**settings)
        axes.set_title(title, loc="left")
        axes.grid(alpha=0.25)
    style.legend_below(figure, [figure.axes[0]], len(MLPS))
    path = args.figure or HERE / name
    for ending in (".png", ".pdf"):
        style.save_figure(figure, path.with_suffix(ending))
    kept = keep(f"gradients-explode-{name}", result, args.results)
    print(f"{result['seconds']:.0f} s. Wrote {kept} and {path}.png, .pdf")
