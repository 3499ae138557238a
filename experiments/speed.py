"""How fast the solvers are: `ctrnn bench` at batch 128 and 16, kept as JSON with all that it depends on.

    python experiments/speed.py

Leaves results/DATE-speed-DEVICE.json, from which `experiments/tables.py` makes the table of the README.
"""

import argparse
import sys
from typing import Any

from keep import about, keep

from ctrnn_assembly.benchmark.measure import measure
from ctrnn_assembly.benchmark.problem import Problem


def measured(batch: int, **settings: Any) -> dict[str, Any]:
    """What `ctrnn bench` reports; half a measurement is not kept."""
    report = measure(Problem(batch=batch), **settings)
    if report["interrupted"]:
        sys.exit("interrupted: nothing is kept.")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU; else torch's own")
    parser.add_argument("--rounds", type=int, default=7)
    settings = vars(parser.parse_args())
    runs = [measured(batch, **settings) for batch in (128, 16)]
    print(keep(f"speed-{settings['device']}", about(__file__) | {"runs": runs}))
