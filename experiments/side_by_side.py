"""What every diagnostic command says of a certified, a merely left-half-plane and an unstable network.

python experiments/side_by_side.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

COMMON = {"task": "digits", "modules": 4, "units": 8, "solver": "euler", "dt": 0.03}
SPARSE = {"model": "published-sparse-combo", "density": 0.15, "magnitude": 1.6}
FREE = {"model": "adadiag-tanh", "activation": "relu", "coupling_kind": "free"}
NETS: dict[str, dict[str, Any]] = {
    "certified": {"model": "adadiag-tanh", "margin": 0.3},
    "left half-plane": {**SPARSE, "coupling_scale": 0.5},
    "unstable": {**FREE, "coupling_scale": 4.0},
}
SAMPLES = ("--samples", "2")


def ask(file: Path, command: str, *options: str) -> dict[str, Any]:
    """The JSON of a command; certify's exit code 1 is an answer too."""
    call = [sys.executable, "-m", "ctrnn_cli.main", command, str(file), *options, "--json"]
    done = subprocess.run(call, capture_output=True, text=True)
    if not done.stdout:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def answers(file: Path) -> dict[str, str]:
    """One line a question."""
    certificate = ask(file, "certify")
    spectrum = ask(file, "spectrum", *SAMPLES, "--every", "16")["rows"]
    lyapunov = ask(file, "lyapunov", *SAMPLES, "--k", "2", "--steps", "640")
    contraction = ask(file, "contraction", *SAMPLES)
    points = ask(file, "fixed-points", *SAMPLES)
    gsc = ask(file, "gsc", *SAMPLES, "--every", "32")["rows"]
    step = certificate["discrete"]
    factor = f"factor <= {step['contraction_factor']:.5f}" if step["certified"] else "NOT certified"
    bounds = (lyapunov["certified_bound"], contraction["certified_factor"])
    exponent, largest = ("-" if bound is None else f"{bound:.5f}" for bound in bounds)
    return {
        "certify: continuous time": "certified" if certificate["certified"] else "NOT certified",
        "certify: rate, at least": f"{certificate['rate']:.4f}",
        "certify: Euler step": factor,
        "spectrum: largest Re eig J": f"{max(row['abscissa'] for row in spectrum):.4f}",
        "spectrum: smallest local rate": f"{min(row['local_rate'] for row in spectrum):.4f}",
        "spectrum: step radius": f"{max(row['step_radius'] for row in spectrum):.5f}",
        "lyapunov: largest exponent": f"{lyapunov['rows'][0]['exponent']:.4f}",
        "lyapunov: certified bound": exponent,
        "contraction: largest factor": f"{contraction['factor']:.5f}",
        "contraction: certified factor": largest,
        "contraction: growth of distances": f"{contraction['growth']:.4g}",
        "fixed-points": "; ".join(sorted({row["kind"] for row in points["rows"]})) or "none found",
        "gsc: |dx_T / dx_t|, t = T/2": f"{gsc[1]['jacobian']:.4f}",
    }


def main() -> None:
    """A column a network, a row a number."""
    columns = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in NETS.items():
            file = Path(folder) / f"{name.replace(' ', '-')}.yaml"
            file.write_text(yaml.safe_dump({**COMMON, **settings}))
            columns[name] = answers(file)
    table = Table("", *columns)
    for question in next(iter(columns.values())):
        table.add_row(question, *(column[question] for column in columns.values()))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
