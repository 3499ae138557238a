"""`ctrnn list`: everything that has a name, with one line each."""

import click

from ctrnn_cli.output import emit, facts, json_option

KINDS = ("tasks", "models", "theorems", "solvers", "topologies", "gates", "diagnostics", "recipes")
GATES = {
    "constant": "trained time scales: certified as time constants 1 / nu",
    "shared": "one gate of the input for all units: certified at the rate lo lam",
    "input": "a gate of the input for each unit: certified if (hi - lo) ||L|| < 2 lo lam",
    "state": "gates of input and state, as published: no certificate",
}


@click.command("list")
@click.argument("kind", required=False, type=click.Choice(KINDS))
@json_option
def list_command(kind: str | None, as_json: bool) -> None:
    """List what can be named on the command line."""
    from ctrnn_assembly.contracting import CONSTRAINTS
    from ctrnn_assembly.data import TASKS
    from ctrnn_assembly.models import MODELS
    from ctrnn_assembly.schemes import SCHEMES
    from ctrnn_assembly.solvers import FIXED_STEP, SOLVERS
    from ctrnn_assembly.topology import TOPOLOGIES
    from ctrnn_assembly.training.config import recipes
    from ctrnn_cli.main import COMMANDS

    def solver(name: str) -> str:
        if name in SCHEMES:
            return f"one step a sample: {SCHEMES[name].summary}"
        return "torchdiffeq, fixed step" if name in FIXED_STEP else "torchdiffeq, adaptive"

    docs = {name: (kind.__doc__ or "").strip().splitlines()[0] for name, kind in CONSTRAINTS.items()}
    tables: dict[str, dict[str, str]] = {
        "tasks": {name: entry.about for name, entry in TASKS.items()},
        "models": {name: model.summary for name, model in MODELS.items()},
        "theorems": {name: doc.split(";")[0].rstrip(".") for name, doc in docs.items()},
        "solvers": {name: solver(name) for name in SOLVERS},
        "topologies": dict(TOPOLOGIES),
        "gates": GATES,
        "diagnostics": {name: said for name, (module, said) in COMMANDS.items() if module == "inspect"},
        "recipes": {name: entry["about"] for name, entry in recipes().items()},
    }
    if kind is not None:
        tables = {kind: tables[kind]}
    shown = (facts(entries.items(), title=title) for title, entries in tables.items())
    emit(tables, *shown, as_json=as_json)
