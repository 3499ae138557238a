"""Figure 1 of 'Gradients explode': seven random MLPs, 50 layers of 100 units, on Gaussian noise.

    python experiments/gradients_explode/figure1.py [--probes 10]

Ten data sets of 100 observations, each with fresh weights. Three panels: GSC(50 - j, 50), from the last
layer back over j layers; standard deviation and sign diversity of the pre-activations over depth. The
GSC is an estimate from `--probes` random signs, unbiased before the root; exact with `--probes 0`, which
is costly.

A net explodes by our criterion if the least-squares line of log GSC over j grows by a factor of at least
GROWTH a layer and explains at least FIT of the variance.
"""

import argparse
import math
import time
from typing import Any

import mlps
import torch
from mlps import MLPS, mlp, unit_rms
from rich.table import Table
from scipy.stats import linregress
from torch import Tensor, nn

from ctrnn_assembly.diagnostics.gradients import gsc
from ctrnn_cli.shared import console, table

GROWTH = 1.02  # a layer: a factor of 2.7 over 50 layers
FIT = 0.95
REPORTED = "30 minutes for 1,000"  # the reproducibility report
# The paper's four, as we know it: its text was not at hand here.
PAPER = {"batch-relu", "layer-tanh", "batch-tanh", "selu"}
REPORT = {"layer-tanh": "does not"}
BATCH_RELU = math.sqrt(math.pi / (math.pi - 1))  # its growth a layer in wide nets, by theory
DEVIATION = {"yscale": "log", "xlabel": "layer"}
PANELS: Any = (
    ("A  GSC(L - j, L) over j", ("gsc", "gsc_low", "gsc_high"), {"yscale": "log", "xlabel": "j"}),
    ("B  deviation of pre-activations", ("deviation",), DEVIATION),
    ("C  sign diversity of pre-activations", ("diversity",), {"ylim": (0, 0.52), "xlabel": "layer"}),
)


def growth(log_gsc: Tensor) -> tuple[float, float]:
    """Factor a layer of the line through log GSC over j = 0..L, and the variance it explains."""
    line = linregress(range(len(log_gsc)), log_gsc)
    return math.exp(line.slope), float(line.rvalue) ** 2


def dataset(name: str, number: int, settings: argparse.Namespace) -> tuple[nn.Sequential, Tensor, Any]:
    """A net and its data, both of this number's generator, which goes on."""
    generator = torch.Generator().manual_seed(settings.seed + number)
    size = (settings.observations, settings.width)
    x = unit_rms(torch.randn(size, generator=generator, dtype=torch.float64))
    return mlp(name, [settings.width] * (settings.depth + 1), generator), x, generator


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


def measure(name: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Curves of one network over all data sets, and the seconds that its GSC took."""
    logs, statistics, errors, seconds = [], [], [], 0.0
    for k in range(settings.datasets):
        net, x, generator = dataset(name, k, settings)
        began = time.perf_counter()
        found = gsc(net, x, probes=settings.probes or None, generator=generator)
        seconds += time.perf_counter() - began
        logs.append(found.value.log().flip(0))  # from the last layer back
        error = found.standard_error
        errors.append(0.0 if error is None else float(error[0] / found.value[0]))
        statistics.append(preactivation_statistics(preactivations(net, x)))
    log_gsc = torch.stack(logs)
    deviation, diversity = torch.stack(statistics).mean(0)
    factors = torch.tensor([growth(row)[0] for row in log_gsc])
    factor, fit = growth(log_gsc.mean(0))
    return {
        "gsc": log_gsc.mean(0).exp().tolist(),
        "gsc_low": log_gsc.amin(0).exp().tolist(),
        "gsc_high": log_gsc.amax(0).exp().tolist(),
        "gsc_end": log_gsc[:, -1].exp().tolist(),
        "relative_standard_error": max(errors),
        "growth": factor,
        "growth_error": float(factors.std() / len(factors) ** 0.5) if len(factors) > 1 else None,
        "fit": fit,
        "explodes": factor >= GROWTH and fit >= FIT,
        "deviation": deviation.tolist(),
        "diversity": diversity.tolist(),
        "seconds": seconds,
    }


def growth_table(nets: dict[str, dict[str, Any]], settings: argparse.Namespace) -> Table:
    title = (
        f"GSC(0, {settings.depth}) of {settings.datasets} data sets. Explodes: log GSC is linear in "
        f"depth, fit at least {FIT}, and grows by {GROWTH} or more a layer; theory for batch-relu: "
        f"{BATCH_RELU:.4f}. Paper, report: what they say, as far as we know."
    )
    rows = [
        {
            "net": name,
            "GSC": f"{net['gsc'][-1]:.4g}",
            "range": f"{net['gsc_low'][-1]:.4g} to {net['gsc_high'][-1]:.4g}",
            "growth/layer": f"{net['growth']:.4f} ± {net['growth_error'] or math.nan:.4f}",
            "fit": f"{net['fit']:.3f}",
            "explodes": "yes" if net["explodes"] else "no",
            "paper": "explodes" if name in PAPER else "",
            "report": REPORT.get(name, ""),
        }
        for name, net in nets.items()
    ]
    return table(rows, title=title)


def settings_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = mlps.options(__doc__)
    parser.add_argument("--datasets", type=int, default=10)
    parser.add_argument("--observations", type=int, default=100)
    parser.add_argument("--probes", type=int, default=10, help="random signs of an estimate; 0: exact")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    settings = settings_from(arguments)
    result = mlps.begun(__file__, arguments, settings)
    began, worked = time.perf_counter(), time.process_time()
    nets = {name: measure(name, settings) for name in MLPS}
    result |= {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "gsc_seconds": sum(net["seconds"] for net in nets.values()),
        "criterion": {"growth": GROWTH, "fit": FIT},
        "nets": nets,
    }
    console().print(growth_table(nets, settings))
    print(
        f"{settings.datasets * settings.observations} observations: {result['seconds']:.1f} s, of which "
        f"{result['gsc_seconds']:.1f} s in GSC. The report: {REPORTED}."
    )
    title = "Seven random MLPs on Gaussian noise (faint: range over data sets)"
    figure = mlps.draw(nets, PANELS, settings.depth, (1, 3), title=title, height=4.2, width=11)
    print(mlps.finish("figure1", result, figure, settings))
    return result


if __name__ == "__main__":
    main()
