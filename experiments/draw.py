"""Draw the README's first picture, assembly.png: an assembly of assemblies from its own weights.

python experiments/draw.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

import ctrnn_assembly as ctrnn
from ctrnn_assembly import Assembly, SingularValueBounded, Subnetwork, couple
from ctrnn_assembly.figures.style import COLOURS, DIVERGING, new_figure, printed, save_figure

RADIUS = 0.62
BLUE, RED = COLOURS[:2]
LABELS = ["Theorem 1\nsparse", "Theorem 5", "Theorem 2", "AdaDiag"]
LABELS += [f"Theorem 5, n = {n}" for n in (16, 10, 10)]


def build() -> Assembly:
    """Two areas (a ring of four kinds, a star of three), coupled by negative feedback."""
    torch.manual_seed(1)
    bounded, sparse = SingularValueBounded, ctrnn.SparseAbsolute("relu", density=0.12, magnitude=1.0)
    kinds = (sparse, bounded("relu"), ctrnn.Symmetric("tanh"), ctrnn.AdaDiagTanh("tanh"))
    ring = [Subnetwork(kind, 16) for kind in kinds]
    star = [Subnetwork(bounded("tanh"), n) for n in (16, 10, 10)]
    return couple([couple(ring, "ring"), couple(star, "star")], "all", init_scale=0.5)


def circle(count: int, centre: tuple[float, float], radius: float, start: float = 0.0) -> ndarray:
    """Points on a circle, (count, 2)."""
    angles = start + 2 * np.pi * np.arange(count) / count
    return np.array(centre) + radius * np.stack([np.cos(angles), np.sin(angles)], 1)


@printed
def draw() -> Any:
    figure = new_figure(5.2, "", 10)
    net, labels, axes = build(), iter(LABELS), figure.subplots()
    ring, star = circle(4, (0, 0), 1.75, np.pi / 4), circle(3, (7.1, 0), 1.75, np.pi)
    boxes = [(ring, -2.5, 5.0, "area A: a ring"), (star, 4.4, 5.2, "area B: a star")]
    for area, (places, x, width, text) in zip(net.parts, boxes, strict=True):
        assert isinstance(area, Assembly)
        assert area.coupling is not None
        corners = [x, x + width, x + width, x], [-2.65, -2.65, 2.65, 2.65]
        axes.fill(*corners, fc="#f4f4f4", ec="#999999", lw=1)
        axes.text(x + width / 2, 2.85, text, ha="center", fontsize=11)
        for i, j in area.coupling.pairs:
            link(axes, places[i], places[j], BLUE, 1.6, RADIUS)
        for module, place in zip(area.parts, places, strict=True):
            assert isinstance(module, Subnetwork)
            heat_map(axes, module.weight.detach().numpy(), next(labels), place)
    link(axes, (2.55, 0), (4.35, 0), RED, 3)
    middle: dict[str, Any] = {"x": 3.45, "ha": "center"}
    axes.text(y=0.3, s="$L = \\Theta^{-1} K\\,\\Theta$", fontsize=11, color=RED, **middle)
    axes.text(y=-0.75, s="$K$ skew:\nnegative\nfeedback", va="center", fontsize=9, **middle)
    rate = f"certified to contract at rate {ctrnn.certify(net).rate:.3f} per time constant"
    axes.text(y=-3.15, s=f"{net.size} units, {rate}", fontsize=11, **middle)
    axes.set(xlim=(-2.7, 9.7), ylim=(-3.4, 3.3), aspect="equal")
    axes.axis("off")
    return figure


def link(axes: Any, a: Any, b: Any, colour: str, width: float, shrink: float = 0.0) -> None:
    a, b = np.array(a), np.array(b)
    step = (b - a) / np.linalg.norm(b - a) * shrink * 1.05
    arrow = {"arrowstyle": "<|-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", a + step, b - step, arrowprops=arrow)


def heat_map(axes: Any, W: ndarray, label: str, place: ndarray) -> None:
    """W of one module in a disc, blue negative, red positive, white zero."""
    (x, y), side, bound = place, RADIUS * 0.68, np.abs(W).max()
    axes.fill(*circle(200, (x, y), RADIUS).T, fc="white", ec="black", lw=1.2, zorder=2)
    box = (x - side, x + side, y - side, y + side)
    look = {"cmap": DIVERGING, "interpolation": "nearest", "zorder": 3}
    axes.imshow(W, vmin=-bound, vmax=bound, extent=box, **look)
    side, edge = (1, "bottom") if y > 0.2 else (-1, "top")
    axes.text(x, y + (RADIUS + 0.1) * side, label, ha="center", va=edge, fontsize=8, zorder=4)


if __name__ == "__main__":
    save_figure(draw(), Path(__file__).with_name("assembly.png"))
