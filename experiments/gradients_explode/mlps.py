"""The seven networks of 'Gradients explode', f_l = phi(norm(W_l f_{l-1})), and how they are drawn.

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
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ctrnn_assembly.figures import style

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from keep import RESULTS, about, keep  # noqa: E402, F401

MLPS = ("relu", "layer-relu", "batch-relu", "tanh", "layer-tanh", "batch-tanh", "selu")


class Layer(nn.Module):
    """x (B, columns) -> phi(norm(W x)), (B, rows)."""

    initial: Tensor

    def __init__(self, W: Tensor, name: str) -> None:
        super().__init__()
        self.norm, _, phi = name.rpartition("-")
        self.phi = {"relu": torch.relu, "tanh": torch.tanh, "selu": F.selu}[phi]
        self.weight = nn.Parameter(W)
        self.register_buffer("initial", W.clone(), persistent=False)

    def normalise(self, z: Tensor) -> Tensor:
        if self.norm == "layer":
            return F.layer_norm(z, z.shape[1:])
        if self.norm == "batch":
            return F.batch_norm(z, None, None, training=True)
        return z

    def preactivation(self, x: Tensor) -> Tensor:
        """What phi sees, (B, rows)."""
        return self.normalise(x @ self.weight.mT)

    def forward(self, x: Tensor) -> Tensor:
        return self.phi(self.preactivation(x))


def mlp(
    name: str, sizes: Sequence[int], generator: Generator, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """One of `MLPS`, of as many units a layer as `sizes` says from the input on."""
    gain = 2.0 if name.endswith("relu") else 1.0
    layers = []
    for columns, rows in pairwise(sizes):
        W = torch.randn(rows, columns, generator=generator, dtype=dtype)
        layers.append(Layer(W * (gain / columns) ** 0.5, name))
    return nn.Sequential(*layers)


def unit_rms(x: Tensor) -> Tensor:
    """Rows of x (B, d) at the length sqrt(d)."""
    return x * x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True)


def options(docstring: str | None) -> argparse.ArgumentParser:
    """A parser with the options of both figures."""
    parser = argparse.ArgumentParser(description=str(docstring).split("\n\n")[0])
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="without an ending")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    return parser


def number(value: float | None) -> str:
    """Three digits, without an exponent up to a million."""
    if value is None:
        return "none"
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


def curve(axes: Any, name: str, x: Sequence[float], y: Sequence[float], every: int = 1) -> None:
    """One network's curve, in its colour and marker."""
    look = style.line_style(MLPS.index(name))
    axes.plot(x, y, **look, markevery=every, markersize=3.5, linewidth=1.3, label=name)


def panel(axes: Any, title: str, **settings: Any) -> None:
    """Title, axes and grid of a panel."""
    axes.set(**settings)
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.25)


def finish(name: str, result: dict[str, Any], figure: Any, settings: argparse.Namespace) -> str:
    """Keep the result, save the figure as png and pdf, with a legend below all panels; say where."""
    style.legend_below(figure, [figure.axes[0]], len(MLPS))
    path = settings.figure or HERE / name
    for ending in (".png", ".pdf"):
        style.save_figure(figure, path.with_suffix(ending))
    kept = keep(f"gradients-explode-{name}", result, settings.results)
    return f"Wrote {kept} and {path}.png, .pdf"
