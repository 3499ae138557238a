"""Draw the README's pictures of a trained run by the command line itself.

ctrnn train --out runs/digits
python experiments/draw_readme.py runs/digits
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"
COMMANDS = {
    "certificate": ("certify",),
    "spectrum": ("spectrum", "--samples", "2"),
    "contraction": ("contraction", "--twin", "--samples", "2"),
    "lyapunov": ("lyapunov", "--samples", "2", "--steps", "1000"),
    "fixed-points": ("fixed-points", "--samples", "2"),
    "gsc": ("gsc", "--samples", "2"),
}


def main(run: str) -> None:
    """Each picture by one command; stops with its error if one fails."""
    for name, (command, *options) in COMMANDS.items():
        file = FOLDER / f"{name}.png"
        call = [sys.executable, "-m", "ctrnn_cli.main", command, run, *options, "--plot", str(file)]
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        print(file)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python experiments/draw_readme.py RUN")
    main(sys.argv[1])
