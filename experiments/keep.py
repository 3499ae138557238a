"""Keep what an experiment measured as one JSON file in results/, with all that it depends on."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ctrnn_assembly.benchmark.environment import environment

RESULTS = Path(__file__).parent / "results"


def keep(name: str, result: dict[str, Any]) -> Path:
    """Write results/DATE-NAME.json; a data folder of this machine is left out of the command."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    asked = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, cwd=RESULTS.parent)
    facts = {"date": date, "command": command(), "commit": found.stdout.strip() or None}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date}-{name}.json"
    path.write_text(json.dumps({**facts, **environment(), **result}, indent=1, allow_nan=False) + "\n")
    return path


def command() -> str:
    """What was typed, without paths of this machine."""
    script, *given = sys.argv
    words = ["DATA" if before == "--data-dir" else word
             for before, word in zip(["", *given], given, strict=False)]  # fmt: skip
    words = ["--data-dir=DATA" if word.startswith("--data-dir=") else word for word in words]
    return " ".join(["python", f"experiments/{Path(script).name}", *words])
