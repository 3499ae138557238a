"""The table of the README: `ctrnn bench` at batch 128 and 16, kept with all that it depends on.

    python experiments/speed.py [THREADS]

Leaves results/DATE-speed-DEVICE.json, from which `experiments/tables.py` makes the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch
from keep import keep

BATCHES = (128, 16)


def bench(batch: int, threads: int) -> dict[str, Any]:
    """One `ctrnn bench` as JSON, in a process of its own."""
    options = ["--batch", str(batch), "--threads", str(threads), "--budget", "0", "--json"]
    command = [sys.executable, "-m", "ctrnn_cli.main", "bench", *options]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout)


if __name__ == "__main__":
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    runs = [bench(batch, threads) for batch in BATCHES]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(keep(f"speed-{device}", {"threads": threads, "runs": runs}))
