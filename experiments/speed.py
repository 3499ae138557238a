"""How fast the solvers are, kept as JSON with all that it depends on.

    python experiments/speed.py table               # `ctrnn bench` at batch 128 and 16, for the README
    python experiments/speed.py curves              # over the couplings C, over n, and over the steps T

table   Leaves results/DATE-speed-DEVICE.json, from which `experiments/tables.py` makes the table.
curves  Time and memory of forward and backward; what stands at one point was timed interleaved. Leaves
        results/DATE-curves-DEVICE.json and pictures/curves-DEVICE.png.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from keep import about, keep

from ctrnn_assembly.benchmark.contestants import CONTESTANTS
from ctrnn_assembly.benchmark.measure import measure
from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.figures import style

PICTURES = Path(__file__).parent / "pictures"
Settings = argparse.Namespace
OURS_AND_OTHERS = ("ours-fused", "ours-adadiag-fused", "plain-loop", "torchdyno-adadiag")
Curve = dict[int, dict[str, tuple[str, ...]]]  # where on the axis: contestants by coupling
CURVES: dict[str, Curve] = {
    "coupled pairs C": {
        C: {f"random:{C}" if C else "none": OURS_AND_OTHERS} for C in (0, 5, 20, 60, 120)
    },
    "n": {
        n: {"all": ("ours-fused", "plain-loop", "nn.RNN"), "random:5": ("ours-fused",)}
        for n in (128, 256, 512, 1024, 2048)
    },
    "steps": {  # beyond 2,048, autograd's graph of a loop would not fit
        T: {"random:5": ("ours-fused", "ours-fused-sqrt", *["plain-loop"] * (T <= 2048))}
        for T in (64, 256, 1024, 4096, 16384)
    },
}


def measured(size: Problem, settings: Settings, *couplings: str, only: tuple[str, ...] = ()) -> Any:
    """What `ctrnn bench` reports; half a measurement is not kept."""
    report = measure(
        size,
        couplings,
        device=settings.device,
        threads=settings.threads,
        rounds=settings.rounds,
        only=[name for name in only if CONTESTANTS[name].is_present(settings.device)],
    )
    if report["interrupted"]:
        sys.exit("interrupted: nothing is kept.")
    return report


def table(settings: Settings) -> dict[str, Any]:
    """`ctrnn bench` at two batch sizes."""
    return {"runs": [measured(Problem(batch=batch), settings) for batch in (128, 16)]}


def measure_curve(axis: str, settings: Settings) -> list[dict[str, Any]]:
    """One row a point and contestant."""
    found = []
    for x, by_coupling in CURVES[axis].items():
        size = Problem(batch=settings.batch, **({axis: x} if axis in ("n", "steps") else {}))
        for coupling, names in by_coupling.items():
            rows = measured(size, settings, coupling, only=names)["rows"]
            found += [{"curve": axis, "x": x, **r} for r in rows if r["kind"] == "forward_backward"]
    return found


def label(row: dict[str, Any]) -> str:
    return row["name"] + (f", {row['coupling']}" if row["curve"] in ("n", "steps") else "")


@style.printed
def curves_figure(found: dict[str, list[dict[str, Any]]], title: str) -> Any:
    """Above: medians and minima. Below: peak memory."""
    figure = style.new_figure(5.2, title)
    panels = figure.subplots(2, len(found), sharex="col", squeeze=False)
    labels = dict.fromkeys(label(row) for rows in found.values() for row in rows)
    for (above, below), (axis, rows) in zip(panels.T, found.items(), strict=True):
        for k, name in enumerate(labels):
            look = style.line_style(k) | {"markersize": 3, "linewidth": 1.2}
            low = look | {"linestyle": "none", "marker": "_", "markersize": 6}
            line = [row for row in rows if label(row) == name]
            x = [row["x"] for row in line]
            above.plot(x, [row["median_s"] for row in line], **look, label=name)
            above.plot(x, [row["min_s"] for row in line], **low)
            below.plot(x, [row["peak_mb"] or float("nan") for row in line], **look)
        below.set_xlabel(axis)
        for axes in (above, below):
            style.log_axis(axes)
            if axis in ("n", "steps"):
                axes.set_xscale("log", base=2)
    panels[0, 0].set_ylabel("seconds; - is the minimum")
    panels[1, 0].set_ylabel("peak memory (MB)")
    style.legend_below(figure, [panels[0, 0]], 3)
    return figure


def curves(settings: Settings) -> dict[str, Any]:
    """Measure the curves and draw them."""
    found = {axis: measure_curve(axis, settings) for axis in settings.only or CURVES}
    title = f"forward and backward, batch {settings.batch}, 196 steps and 16 x 32 where not on the axis"
    picture = PICTURES / f"curves-{settings.device}.png"
    style.save_figure(curves_figure(found, f"{title}; {settings.device}"), picture)
    print(picture)
    return {"rounds": settings.rounds, "rows": [row for rows in found.values() for row in rows]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=("table", "curves"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU; else torch's own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128, help="of curves")
    parser.add_argument("--only", action="append", choices=CURVES, help="this curve only")
    settings = parser.parse_args()
    stem, make = {"table": ("speed", table), "curves": ("curves", curves)}[settings.what]
    facts = make(settings)
    print(keep(f"{stem}-{settings.device}", about(__file__) | facts))
