"""What the two figures share: how a result is kept, and how seven networks are told apart."""

from __future__ import annotations

import datetime
import json
import math
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ctrnn_assembly
from ctrnn_assembly.training.provenance import processor
from ctrnn_assembly.training.run import write

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from record import RESULTS as RESULTS  # noqa: E402

matplotlib.use("agg")  # files only

# Okabe and Ito's colours without their yellow; the dashes tell phi, the markers the norm.
COLOURS = {
    "relu": "#E69F00",
    "layer-relu": "#56B4E9",
    "batch-relu": "#D55E00",
    "tanh": "#009E73",
    "layer-tanh": "#0072B2",
    "batch-tanh": "#CC79A7",
    "selu": "#000000",
}
DASHES = {"relu": "solid", "tanh": (0, (5, 1.5)), "selu": (0, (1, 1))}
MARKERS = {"": "o", "layer": "s", "batch": "^"}


def without_folder(arguments: Sequence[str]) -> list[str]:
    """The arguments with DATA for the folder of the data, which is one machine's own."""
    shown = list(arguments)
    for k, argument in enumerate(shown):
        if argument.startswith("--data-dir="):
            shown[k] = "--data-dir=DATA"
        elif k > 0 and arguments[k - 1] == "--data-dir":
            shown[k] = "DATA"
    return shown


def environment(command: str, seed: int) -> dict[str, Any]:
    """Date, command, commit, hardware, versions and seed of a result."""
    asked = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return {
        "date": datetime.date.today().isoformat(),
        "command": command,
        "commit": found.stdout.strip() or None,
        "hardware": f"{torch.get_num_threads()} thread(s) of {processor()}",
        "versions": {
            "python": platform.python_version(),
            "ctrnn-assembly": ctrnn_assembly.__version__,
            "torch": torch.__version__.split("+")[0],
            "matplotlib": matplotlib.__version__,
        },
        "seed": seed,
    }


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write one JSON file, whole or not at all; numbers get 6 digits, NaN and infinity null."""
    write(path, json.dumps(rounded(result), indent=1, allow_nan=False) + "\n")


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def curve(axis: Axes, name: str, x: Sequence[float], y: Sequence[float], every: int = 1) -> None:
    """One network's curve, in its colour, dash and marker."""
    norm, _, phi = name.rpartition("-")
    axis.plot(
        x,
        y,
        color=COLOURS[name],
        linestyle=DASHES[phi],
        marker=MARKERS[norm],
        markevery=every,
        markersize=4.5,
        linewidth=1.6,
        label=name,
    )


def finish(figure: Figure, axis: Axes, path: Path, title: str) -> None:
    """One legend below all panels, and the figure as png and pdf."""
    handles, labels = axis.get_legend_handles_labels()
    figure.suptitle(title, fontsize=11)
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, handlelength=3)
    for ending in (".png", ".pdf"):
        figure.savefig(path.with_suffix(ending), dpi=150)
