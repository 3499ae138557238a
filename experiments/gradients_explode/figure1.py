"""Figure 1 of 'Gradients explode': seven random MLPs, 50 layers of 100 units, on Gaussian noise.

    python experiments/gradients_explode/figure1.py [--probes 10 | --probes 0] [--exact]

Ten data sets of 100 observations, each with fresh weights. Three panels: GSC(50 - j, 50), from the last
layer back over j layers; standard deviation and sign diversity of the pre-activations over depth. The
GSC is an estimate from `--probes` random signs (0: exact, costly with batch norm), unbiased before the
root; `--exact` sets it beside the exact value on the first data set.

A net explodes by our criterion if the least-squares line of log GSC over j grows by a factor of at least
GROWTH a layer and explains at least FIT of the variance.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from mlps import MLPS, gaussian_data, mlp, preactivations
from outcome import COLOURS, HERE, RESULTS, curve, environment, finish, keep
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ctrnn_assembly.diagnostics.gradient_scale import gsc, preactivation_statistics

GROWTH = 1.02  # a layer: a factor of 2.7 over 50 layers
FIT = 0.95
CHECK_PROBES = 200  # for the comparison with the exact value: a standard error of 1 %
REPORTED_SECONDS = 30 * 60  # of the reproducibility report, for 1,000 observations
# The paper's four, as we know it: its text was not at hand here.
PAPER = {"batch-relu", "layer-tanh", "batch-tanh", "selu"}
REPORT = {"layer-tanh": "does not"}
BATCH_RELU = math.sqrt(math.pi / (math.pi - 1))  # its growth a layer in wide nets, by theory


def growth(log_gsc: Tensor) -> tuple[float, float]:
    """Factor a layer of the line through log GSC over j = 0..L, and the variance it explains."""
    depth = torch.arange(len(log_gsc), dtype=log_gsc.dtype)
    depth, centred = depth - depth.mean(), log_gsc - log_gsc.mean()
    slope = (depth * centred).sum() / depth.square().sum()
    rest = (centred - slope * depth).square().sum() / centred.square().sum()
    return float(slope.exp()), float(1 - rest)


def explodes(factor: float, fit: float) -> bool:
    """Our criterion."""
    return factor >= GROWTH and fit >= FIT


def measure(name: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Curves of one network over all data sets, and the seconds that its GSC took."""
    logs, deviations, diversities, errors, seconds = [], [], [], [], 0.0
    for number in range(settings.datasets):
        generator = torch.Generator().manual_seed(settings.seed + number)
        x = gaussian_data(generator, observations=settings.observations, width=settings.width)
        net = mlp(name, generator, depth=settings.depth, width=settings.width)
        began = time.perf_counter()
        probes = settings.probes or None
        found = gsc(net, x, probes=probes, generator=generator)
        seconds += time.perf_counter() - began
        logs.append(found.value.log().flip(0))  # from the last layer back
        error = found.standard_error
        errors.append(0.0 if error is None else float(error[0] / found.value[0]))
        deviation, diversity = preactivation_statistics(preactivations(net, x))
        deviations.append(deviation)
        diversities.append(diversity)
    log_gsc = torch.stack(logs)
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
        "explodes": explodes(factor, fit),
        "deviation": torch.stack(deviations).mean(0).tolist(),
        "diversity": torch.stack(diversities).mean(0).tolist(),
        "seconds": seconds,
    }


def exact(name: str, settings: argparse.Namespace) -> dict[str, float]:
    """The exact GSC(0, L) of the first data set beside an estimate of it."""
    generator = torch.Generator().manual_seed(settings.seed)
    x = gaussian_data(generator, observations=settings.observations, width=settings.width)
    net = mlp(name, generator, depth=settings.depth, width=settings.width)
    began = time.perf_counter()
    true = gsc(net, x)
    seconds = time.perf_counter() - began
    guess = gsc(net, x, probes=CHECK_PROBES, generator=generator)
    assert guess.standard_error is not None
    return {
        "exact": float(true.value[0]),
        "estimate": float(guess.value[0]),
        "standard_error": float(guess.standard_error[0]),
        "products": true.products,
        "seconds": seconds,
    }


def table(nets: dict[str, dict[str, Any]], settings: argparse.Namespace) -> Table:
    title = (
        f"GSC(0, {settings.depth}), width {settings.width}: geometric mean and range of "
        f"{settings.datasets} data sets of {settings.observations}"
    )
    caption = (
        f"Explodes: log GSC linear in depth (fit at least {FIT}), growing by {GROWTH} or more a layer. "
        f"Theory for batch-relu: {BATCH_RELU:.4f}. Paper: its four exploding nets as we know them, text "
        "not at hand. Report: what the reproducibility report says."
    )
    shown = Table(
        title=title, caption=caption, box=SIMPLE, padding=0, pad_edge=False, collapse_padding=True
    )
    for column in ("net", "GSC", "range", "growth/layer", "fit", "explodes", "paper", "report"):
        justify: Any = "left" if column in ("net", "paper", "report") else "right"
        shown.add_column(column, justify=justify, no_wrap=True)
    for name, net in nets.items():
        spread = "" if net["growth_error"] is None else f"±{net['growth_error']:.4f}"
        shown.add_row(
            name,
            short(net["gsc"][-1]),
            f"{short(net['gsc_low'][-1])} - {short(net['gsc_high'][-1])}",
            f"{net['growth']:.4f}{spread}",
            f"{net['fit']:.3f}",
            "yes" if net["explodes"] else "no",
            "explodes" if name in PAPER else "",
            REPORT.get(name, ""),
        )
    return shown


def short(value: float) -> str:
    """Two or three digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def exact_table(checks: dict[str, dict[str, float]]) -> Table:
    shown = Table(title="First data set: exact GSC(0, L) and the estimate", box=SIMPLE)
    for column in ("net", "exact", "estimate", "off by", "products", "seconds"):
        shown.add_column(column, justify="left" if column == "net" else "right")
    for name, check in checks.items():
        off = (check["estimate"] - check["exact"]) / check["standard_error"]
        shown.add_row(
            name,
            f"{check['exact']:.5g}",
            f"{check['estimate']:.4g} ± {check['standard_error']:.2g}",
            f"{off:+.1f} errors",
            f"{check['products']}",
            f"{check['seconds']:.1f}",
        )
    return shown


def draw(nets: dict[str, dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
    depth = len(next(iter(nets.values()))["deviation"])
    every = max(1, depth // 10)
    steps = list(range(depth + 1))
    for name, net in nets.items():
        curve(axes[0], name, steps, net["gsc"], every)
        low, high = net["gsc_low"], net["gsc_high"]
        axes[0].fill_between(steps, low, high, color=COLOURS[name], alpha=0.15, lw=0)
        curve(axes[1], name, steps[1:], net["deviation"], every)
        curve(axes[2], name, steps[1:], net["diversity"], every)
    axes[0].set(yscale="log", ylabel="GSC(L - j, L)", xlabel="layers back from the last one, j")
    axes[1].set(yscale="log", ylabel="standard deviation", xlabel="layer")
    axes[2].set(ylim=(0, 0.52), ylabel="min(P, N) / (P + N)", xlabel="layer")
    titles = "gradient scale coefficient", "pre-activation deviation", "pre-activation sign diversity"
    for axis, letter, title in zip(axes, "ABC", titles, strict=True):
        axis.set_title(f"{letter}  {title}", fontsize=10)
        axis.grid(alpha=0.25)
    finish(figure, axes[0], path, "Seven random MLPs on Gaussian noise (bands: range over data sets)")
    plt.close(figure)


def settings_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", type=int, default=10)
    parser.add_argument("--observations", type=int, default=100)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--probes", type=int, default=10, help="random signs of an estimate; 0: exact")
    parser.add_argument("--exact", action="store_true", help="also check the first data set exactly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path, default=HERE / "figure1", help="without an ending")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    settings = settings_from(arguments)
    torch.set_num_threads(settings.threads)
    console = Console()
    given = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python experiments/gradients_explode/figure1.py", *given])
    result = environment(command, settings.seed)
    keys = ("datasets", "observations", "depth", "width", "probes")
    result["settings"] = {key: getattr(settings, key) for key in keys}
    began, worked = time.perf_counter(), time.process_time()
    nets = {name: measure(name, settings) for name in MLPS}
    result["seconds"] = time.perf_counter() - began
    result["cpu_seconds"] = time.process_time() - worked
    result["gsc_seconds"] = sum(net["seconds"] for net in nets.values())
    result["criterion"] = {"growth": GROWTH, "fit": FIT}
    result["nets"] = nets
    console.print(table(nets, settings))
    observations = settings.datasets * settings.observations
    scaled = REPORTED_SECONDS * observations / 1000
    console.print(
        f"{observations} observations, all {len(nets)} nets: {result['seconds']:.1f} s "
        f"({result['cpu_seconds']:.1f} s of CPU, {result['gsc_seconds']:.1f} s in GSC); the report: "
        f"{scaled / 60:.3g} minutes, {scaled / result['seconds']:.0f} times as long."
    )
    if settings.exact:
        result["exact"] = {name: exact(name, settings) for name in MLPS}
        console.print(exact_table(result["exact"]))
    draw(nets, settings.figure)
    path = settings.results / f"{result['date']}-gradients-explode-figure1.json"
    keep(path, result)
    console.print(f"Wrote {path} and {settings.figure}.png, .pdf")
    return result


if __name__ == "__main__":
    main()
