"""Keep the outcome of a run as one JSON file in experiments/results/.

    python experiments/record.py runs/RUN "the command that made it" [COMMIT]

The file holds the summary, the configuration, the curve, the hardware, the date and the commit that
the run was made with (by default the one checked out now).
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import yaml

from ctrnn_assembly.callbacks import read_table
from ctrnn_assembly.runs import read_summary

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record(run: Path, command: str, commit: str = "HEAD") -> Path:
    summary = read_summary(run)
    ended = datetime.datetime.fromtimestamp((run / "summary.json").stat().st_mtime, datetime.UTC)
    asked = ["git", "rev-parse", commit]
    found = subprocess.run(asked, capture_output=True, text=True, check=True)
    numbers = [{k: float(v) for k, v in row.items() if v} for row in read_table(run / "metrics.csv")]
    result = {
        "date": ended.date().isoformat(),
        "command": command,
        "commit": found.stdout.strip(),
        "hardware": f"{os.cpu_count()} cores of {processor()}",
        **summary,
        "config": yaml.safe_load((run / "config.yaml").read_text()) | {"data_dir": None},
        "curve": numbers,
    }
    path = RESULTS / f"{result['date']}-{run.name}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


if __name__ == "__main__":
    print(record(Path(sys.argv[1]), *sys.argv[2:]))
