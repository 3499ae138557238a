"""Draw the README's picture: an assembly of assemblies, from its own weights.

python experiments/draw_assembly.py experiments/assembly.png
"""

import sys

import matplotlib
import numpy as np
import torch

from ctrnn_assembly import (
    AdaDiagTanh,
    SingularValueBounded,
    SparseAbsolute,
    Subnetwork,
    Symmetric,
    certify,
    couple,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RADIUS = 0.62


def build():
    """Two areas (a ring of four kinds, a star of three), coupled by negative feedback."""
    torch.manual_seed(1)
    kinds = [
        (SparseAbsolute("relu", density=0.12, magnitude=1.0), "Theorem 1\nsparse"),
        (SingularValueBounded("relu"), "Theorem 5"),
        (Symmetric("tanh"), "Theorem 2"),
        (AdaDiagTanh("tanh"), "AdaDiag"),
    ]
    ring = [(Subnetwork(kind, 16), label) for kind, label in kinds]
    star = [(Subnetwork(SingularValueBounded("tanh"), n), f"Theorem 5, n = {n}") for n in (16, 10, 10)]
    areas = [couple([m for m, _ in ring], "ring"), couple([m for m, _ in star], "star")]
    return couple(areas, "all", init_scale=0.5), ring, star


def circle(count, centre, radius, start):
    angles = start + 2 * np.pi * np.arange(count) / count
    return [(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in angles]


def draw(path):
    net, ring, star = build()
    places = circle(4, (0, 0), 1.75, np.pi / 4) + circle(3, (7.1, 0), 1.75, np.pi)
    figure, axis = plt.subplots(figsize=(10, 5.2))
    for x, y, w, text in [(-2.35, -2.5, 4.7, "area A: a ring"), (4.55, -2.5, 4.9, "area B: a star")]:
        axis.add_patch(
            plt.matplotlib.patches.FancyBboxPatch(
                (x, y), w, 5.0, boxstyle="round,pad=0.15", fc="#f4f4f4", ec="#999999", lw=1
            )
        )
        axis.text(x + w / 2, y + 5.35, text, ha="center", fontsize=11)
    link(axis, (2.55, 0), (4.35, 0), "#D55E00", 3)
    axis.text(3.45, 0.3, "$L = \\Theta^{-1} K\\,\\Theta$", ha="center", fontsize=11, color="#D55E00")
    axis.text(3.45, -0.75, "$K$ skew:\nnegative\nfeedback", ha="center", va="center", fontsize=9)
    for area, offset in zip(net.parts, (0, 4), strict=True):
        for i, j in area.coupling.pairs:
            link(axis, places[offset + i], places[offset + j], "#0072B2", 1.6, RADIUS)
    for (module, label), place in zip(ring + star, places, strict=True):
        heat_map(axis, module, label, place)
    certificate = certify(net)
    axis.text(
        3.45,
        -3.15,
        f"{net.size} units, certified to contract at rate {certificate.rate:.3f} per time constant",
        ha="center",
        fontsize=11,
    )
    axis.set(xlim=(-2.7, 9.7), ylim=(-3.4, 3.3), aspect="equal")
    axis.axis("off")
    figure.savefig(path, dpi=150, bbox_inches="tight")


def link(axis, a, b, colour, width, shrink=0.0):
    a, b = np.array(a), np.array(b)
    step = (b - a) / np.linalg.norm(b - a) * shrink * 1.05
    arrow = {"arrowstyle": "<|-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", a + step, b - step, arrowprops=arrow)


def heat_map(axis, module, label, place):
    """W of one module, blue negative, red positive, white zero."""
    W = module.weight.detach().numpy()
    x, y = place
    side = RADIUS * 0.72
    scale = np.abs(W).max()
    axis.add_patch(plt.Circle(place, RADIUS, fc="white", ec="black", lw=1.2, zorder=2))
    box = (x - side / 1.05, x + side / 1.05, y - side / 1.05, y + side / 1.05)
    axis.imshow(W, cmap="RdBu_r", vmin=-scale, vmax=scale, extent=box, zorder=3, interpolation="nearest")
    above = y > 0.2
    axis.text(x, y + (RADIUS + 0.1) * (1 if above else -1), label, ha="center",
              va="bottom" if above else "top", fontsize=8, zorder=4)  # fmt: skip


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "experiments/assembly.png")
