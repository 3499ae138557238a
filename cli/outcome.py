"""What a finished run says of itself: date, hardware, versions, commit, curve."""

from __future__ import annotations

import datetime
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml

import ctrnn_assembly
from ctrnn_assembly.training.callbacks import read_table
from ctrnn_assembly.training.provenance import processor
from ctrnn_cli.fit import versions


def outcome(run: Path, summary: dict[str, Any], command: str) -> dict[str, Any]:
    """What a run folder tells: date, hardware, commit, summary, configuration and curve."""
    ended = datetime.datetime.fromtimestamp((run / "config.yaml").stat().st_mtime, datetime.UTC)
    if (run / "summary.json").exists():
        ended = datetime.datetime.fromtimestamp((run / "summary.json").stat().st_mtime, datetime.UTC)
    rows = read_table(run / "metrics.csv")
    tested = [float(row["test_accuracy"]) for row in rows if row.get("test_accuracy")]
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return {
        "date": ended.date().isoformat(),
        "command": command,
        **checkout(),
        "hardware": hardware(config["device"]),
        "threads": config["threads"] or torch.get_num_threads(),
        **summary,
        "versions": {k: v for k, v in versions().items() if k not in ("hardware", "threads")},
        "best_epoch_accuracy": max(tested, default=None),
        "final_epoch_accuracy": tested[-1] if tested else None,
        "config": config | {"data_dir": None},
        "curve": curve(rows),
    }


def curve(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """metrics.csv by column, to 6 digits; None where there is no value."""
    names = [name for name in (rows[-1] if rows else {}) if name is not None]
    return {name: [_number(row.get(name)) for row in rows] for name in names}


def _number(text: Any) -> float | None:
    value = float(text) if text not in (None, "") else math.nan
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.6g}")


def hardware(device: str) -> str:
    """The graphics card if the run could use one, else the processor with its number of cores."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores of {processor()}"


def checkout() -> dict[str, Any]:
    """The commit that this code is checked out at, and whether it has been changed since."""
    package = Path(ctrnn_assembly.__file__).resolve()
    commands = Path(__file__).resolve().parent
    tracked = _git(package.parent, "ls-files", "--error-unmatch", package.name)
    if not tracked:  # installed, not checked out
        return {"commit": None, "modified": None}
    changed = _git(package.parent, "status", "--porcelain", "--", str(package.parent), str(commands))
    return {"commit": _git(package.parent, "rev-parse", "HEAD"), "modified": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        asked = ["git", "-C", str(folder), *arguments]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None
