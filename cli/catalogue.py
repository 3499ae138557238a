"""`ctrnn list`: everything that has a name, with one line each."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

STEPS = {
    "euler": "one step a sample: forward Euler, fused, with its own adjoint",
    "euler-plain": "one step a sample: forward Euler, by autograd",
    "imex": "one step a sample: implicit in L, contracts however strong the coupling",
    "exponential-euler": "one step a sample: exact in -x + L x",
}


@click.command("list", short_help="Tasks, models, theorems, solvers, topologies, recipes.")
@click.argument(
    "kind",
    required=False,
    type=click.Choice(["tasks", "models", "theorems", "solvers", "topologies", "recipes"]),
)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list_command(kind: str | None, as_json: bool) -> None:
    """List what can be named on the command line."""
    tables = catalogue()
    if kind is not None:
        tables = {kind: tables[kind]}
    if as_json:
        click.echo(json.dumps(tables, indent=2))
        return
    for title, entries in tables.items():
        table = Table(title=title, show_header=False, title_justify="left")
        for name, about in entries.items():
            table.add_row(name, about)
        Console().print(table)


def catalogue() -> dict[str, dict[str, str]]:
    """Names and one line each, by kind."""
    from ctrnn_assembly.contracting import CONSTRAINTS
    from ctrnn_assembly.data import known_tasks
    from ctrnn_assembly.models import MODELS
    from ctrnn_assembly.solvers import FIXED_STEP, GRID_METHODS, METHODS
    from ctrnn_assembly.topology import TOPOLOGIES
    from ctrnn_assembly.training.config import recipes

    def solver(name: str) -> str:
        if name in GRID_METHODS:
            return STEPS[name]
        return "torchdiffeq, fixed step" if name in FIXED_STEP else "torchdiffeq, adaptive"

    def theorem(doc: str | None) -> str:
        return (doc or "").strip().splitlines()[0].split(";")[0].rstrip(".")

    return {
        "tasks": known_tasks(),
        "models": dict(MODELS),
        "theorems": {name: theorem(kind.__doc__) for name, kind in CONSTRAINTS.items()},
        "solvers": {name: solver(name) for name in METHODS},
        "topologies": dict(TOPOLOGIES),
        "recipes": {name: entry["about"] for name, entry in recipes().items()},
    }
