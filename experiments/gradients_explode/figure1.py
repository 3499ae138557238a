"""The first experiment of 'Gradients explode' (figure 1): seven random MLPs on Gaussian noise.

    python experiments/gradients_explode/figure1.py

50 layers of 100 units, then the error layer, f_0 = the dot product of label and prediction. Layers are
numbered from there, as in the 2018 report on the paper's reproducibility, and the coefficient is its

    GSC(l, 0) = Q[||J||_qm] Q[|f_l|] / Q[|f_0|],    J = df_0 / df_l,

Q the root of the mean square over observations and data sets, each of these with fresh weights. Exact.
Inputs and labels are Gaussian; inputs have the length sqrt(width). Three panels: GSC(l, 0) over l;
standard deviation and sign diversity of the pre-activations over depth.

A net explodes by our criterion if the least-squares line of log GSC over l grows by a factor of at least
GROWTH a layer and explains at least FIT of the variance.
"""

import math
import time
from argparse import Namespace
from typing import Any

import mlps
import torch
from mlps import MLPS, mlp, unit_rms
from scipy.stats import linregress
from torch import Tensor, nn

from ctrnn_assembly.diagnostics.gradients import gsc

GROWTH = 1.02  # a layer: a factor of 2.7 over 50 layers
FIT = 0.95
PAPER = {"batch-relu", "layer-tanh", "batch-tanh", "selu"}
REPORT = PAPER - {"layer-tanh"}
BATCH_RELU = math.sqrt(math.pi / (math.pi - 1))  # its growth a layer in wide nets, by theory
LOG = {"yscale": "log", "xlabel": "l, layers from the error layer"}
DEPTH = {"xlabel": "layers from the input"}
PANELS: Any = (
    ("A  GSC(l, 0)", 1, ("gsc", "gsc_low", "gsc_high"), LOG),
    ("B  deviation of pre-activations", 1, ("deviation",), DEPTH | {"yscale": "log"}),
    ("C  sign diversity of pre-activations", 1, ("diversity",), DEPTH | {"ylim": (0, 0.52)}),
)


def growth(log_gsc: Tensor) -> tuple[float, float]:
    """Factor a layer of the line through log GSC over l, and the variance it explains."""
    line = linregress(range(len(log_gsc)), log_gsc)
    return math.exp(line.slope), float(line.rvalue) ** 2


def dataset(name: str, number: int, settings: Namespace) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A net, its inputs and the labels, all of this number's generator."""
    generator = torch.Generator().manual_seed(settings.seed + number)
    size = (2, settings.observations, settings.width)
    x, label = torch.randn(size, generator=generator, dtype=torch.float64) / settings.width**0.5
    return mlp(name, [settings.width] * (settings.depth + 1), generator), unit_rms(x), label


@torch.no_grad()
def preactivations(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What the nonlinearity of each layer sees, (B, width) each."""
    found = []
    for linear, norm, phi in net.children():
        found.append(norm(linear(x)))
        x = phi(found[-1])
    return found


def preactivation_statistics(preactivations: list[Tensor]) -> Tensor:
    """Deviation, root of the mean variance, and diversity, mean min(P, N) / (P + N): (2, layers)."""
    z = torch.stack(preactivations)
    positive, negative = (z > 0).sum(1), (z < 0).sum(1)
    share = torch.minimum(positive, negative) / (positive + negative).clamp(min=1)
    return torch.stack([z.var(1, correction=0).mean(1).sqrt(), share.to(z).mean(1)])


def scale_to_error(net: nn.Sequential, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """||J||_qm and |f_l|, root mean squares over the observations, l = 0..L + 1 (the input) each."""
    found = gsc([*net, lambda f: (f * label).sum(1, keepdim=True)], x)
    return found.jacobian.flip(0), found.size.flip(0)


def measure(name: str, settings: Namespace) -> dict[str, Any]:
    """Curves of one network over all data sets."""
    jacobians, sizes, statistics = [], [], []
    for k in range(settings.datasets):
        net, x, label = dataset(name, k, settings)
        jacobian, size = scale_to_error(net, x, label)
        jacobians.append(jacobian)
        sizes.append(size)
        statistics.append(preactivation_statistics(preactivations(net, x)))
    J, f = torch.stack(jacobians), torch.stack(sizes)
    each = (J * f / f[:, :1])[:, 1:]
    expected = (J.square().mean(0) * f.square().mean(0) / f[:, 0].square().mean()).sqrt()[1:]
    deviation, diversity = torch.stack(statistics).mean(0)
    factors = torch.tensor([growth(row.log())[0] for row in each])
    factor, fit = growth(expected.log())
    return {
        "gsc": expected.tolist(),
        "gsc_low": each.amin(0).tolist(),
        "gsc_high": each.amax(0).tolist(),
        "growth": factor,
        "growth_error": float(factors.std() / len(factors) ** 0.5) if len(factors) > 1 else None,
        "fit": fit,
        "explodes": factor >= GROWTH and fit >= FIT,
        "deviation": deviation.tolist(),
        "diversity": diversity.tolist(),
    }


def growth_rows(nets: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "net": name,
            "GSC": f"{net['gsc'][-1]:.4g}",
            "range": f"{net['gsc_low'][-1]:.4g} to {net['gsc_high'][-1]:.4g}",
            "growth/layer": f"{net['growth']:.4f} ± {net['growth_error'] or math.nan:.4f}",
            "fit": f"{net['fit']:.3f}",
            "explodes": "yes" if net["explodes"] else "no",
            "paper": "explodes" if name in PAPER else "",
            "report": "explodes" if name in REPORT else "",
        }
        for name, net in nets.items()
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    settings = mlps.options(__doc__, datasets=10, observations=100).parse_args(arguments)
    result = mlps.begun(settings)
    began = time.perf_counter()
    nets = {name: measure(name, settings) for name in MLPS}
    result |= {
        "seconds": time.perf_counter() - began,
        "criterion": {"growth": GROWTH, "fit": FIT},
        "nets": nets,
        "table": growth_rows(nets),
    }
    heading = (
        f"GSC({settings.depth + 1}, 0) of {settings.datasets} data sets. Explodes: log GSC is linear in "
        f"depth, fit at least {FIT}, and grows by {GROWTH} or more a layer; theory for batch-relu: "
        f"{BATCH_RELU:.4f}. Paper, report: what they say."
    )
    title = "Seven random MLPs on Gaussian noise (faint: range over data sets)"
    size: Any = {"shape": (1, 3), "height": 4.2, "width": 11}
    mlps.finish("figure1", result, settings, heading, nets, PANELS, title=title, **size)
    return result


if __name__ == "__main__":
    main()
