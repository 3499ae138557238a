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
from mlps import MLPS, Layer, about, mlp, number, unit_rms
from rich.table import Table
from scipy.stats import linregress
from torch import Tensor, nn

from ctrnn_assembly.diagnostics.gradients import gsc
from ctrnn_assembly.figures import style
from ctrnn_cli.shared import console, table

GROWTH = 1.02  # a layer: a factor of 2.7 over 50 layers
FIT = 0.95
REPORTED_SECONDS = 30 * 60  # of the reproducibility report, for 1,000 observations
# The paper's four, as we know it: its text was not at hand here.
PAPER = {"batch-relu", "layer-tanh", "batch-tanh", "selu"}
REPORT = {"layer-tanh": "does not"}
BATCH_RELU = math.sqrt(math.pi / (math.pi - 1))  # its growth a layer in wide nets, by theory


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


def preactivations(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What the nonlinearity of each layer sees, (B, width) each."""
    found = []
    with torch.no_grad():
        for layer in net:
            assert isinstance(layer, Layer)
            found.append(layer.preactivation(x))
            x = layer.phi(found[-1])
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
        f"GSC(0, {settings.depth}), width {settings.width}: geometric mean and range of "
        f"{settings.datasets} data sets of {settings.observations}.\n"
        f"Explodes: log GSC linear in depth (fit at least {FIT}), growing by {GROWTH} or more a layer. "
        f"Theory for batch-relu: {BATCH_RELU:.4f}.\nPaper: its four exploding nets as we know them, "
        "text not at hand. Report: what the reproducibility report says."
    )
    rows = []
    for name, net in nets.items():
        value, low, high = (number(net[key][-1]) for key in ("gsc", "gsc_low", "gsc_high"))
        spread = "" if net["growth_error"] is None else f"±{net['growth_error']:.4f}"
        row = {
            "net": name,
            "GSC": value,
            "range": f"{low} - {high}",
            "growth/layer": f"{net['growth']:.4f}{spread}",
            "fit": f"{net['fit']:.3f}",
            "explodes": "yes" if net["explodes"] else "no",
            "paper": "explodes" if name in PAPER else "",
            "report": REPORT.get(name, ""),
        }
        rows.append(row)
    return table(rows, title=title)


@style.printed
def draw(nets: dict[str, dict[str, Any]]) -> Any:
    figure = style.new_figure(
        4.2, "Seven random MLPs on Gaussian noise (bands: range over data sets)", 11
    )
    left, middle, right = figure.subplots(1, 3)
    depth = len(next(iter(nets.values()))["deviation"])
    every, steps = max(1, depth // 10), list(range(depth + 1))
    for k, (name, net) in enumerate(nets.items()):
        mlps.curve(left, name, steps, net["gsc"], every)
        band = {"color": style.line_style(k)["color"], "alpha": 0.15, "lw": 0}
        left.fill_between(steps, net["gsc_low"], net["gsc_high"], **band)
        mlps.curve(middle, name, steps[1:], net["deviation"], every)
        mlps.curve(right, name, steps[1:], net["diversity"], every)
    back = {"ylabel": "GSC(L - j, L)", "xlabel": "layers back from the last one, j"}
    mlps.panel(left, "A  gradient scale coefficient", yscale="log", **back)
    deviation = {"yscale": "log", "ylabel": "standard deviation", "xlabel": "layer"}
    mlps.panel(middle, "B  pre-activation deviation", **deviation)
    diversity = {"ylim": (0, 0.52), "ylabel": "min(P, N) / (P + N)", "xlabel": "layer"}
    mlps.panel(right, "C  pre-activation sign diversity", **diversity)
    return figure


def settings_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = mlps.options(__doc__)
    parser.add_argument("--datasets", type=int, default=10)
    parser.add_argument("--observations", type=int, default=100)
    parser.add_argument("--probes", type=int, default=10, help="random signs of an estimate; 0: exact")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    settings = settings_from(arguments)
    torch.set_num_threads(settings.threads)
    result = about(__file__, arguments, seed=settings.seed)
    keys = ("datasets", "observations", "depth", "width", "probes")
    result["settings"] = {key: getattr(settings, key) for key in keys}
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
    observations = settings.datasets * settings.observations
    scaled = REPORTED_SECONDS * observations / 1000
    print(
        f"{observations} observations, all {len(nets)} nets: {result['seconds']:.1f} s "
        f"({result['cpu_seconds']:.1f} s of CPU, {result['gsc_seconds']:.1f} s in GSC); the report: "
        f"{scaled / 60:.3g} minutes, {scaled / result['seconds']:.0f} times as long."
    )
    print(mlps.finish("figure1", result, draw(nets), settings))
    return result


if __name__ == "__main__":
    main()
