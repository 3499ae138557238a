"""A certificate on the terminal: the verdict in one line, then what it rests on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ctrnn_assembly.certificates import Certificate, Module
from ctrnn_assembly.certificates.wording import down, fact_rows, verdict, weights_rows

MANY, WORST = 20, 5


def show_certificate(certificate: Certificate, result: dict[str, Any]) -> None:
    """Verdict, facts and modules; `result` is what --json prints."""
    click.secho(verdict(certificate), fg="green" if certificate.certified else "red")
    console = Console(highlight=False)
    facts = Table(title=f"{result['model']}, {result['units']} units", show_header=False)
    for name, value in [*weights_rows(result["weights"]), *fact_rows(certificate)]:
        facts.add_row(name, Text(value))
    console.print(facts)
    if certificate.modules:
        console.print(module_table(certificate.modules))


def module_table(modules: tuple[Module, ...]) -> Table:
    """One row a module; the worst ones and a summary if there are many."""
    table = Table("module", "units", "theorem", "margin (1/tau)", "rate", title="modules")
    for column in table.columns[1:2] + table.columns[3:]:
        column.justify = "right"
    shown = sorted(modules, key=lambda m: m.margin)[:WORST] if len(modules) > MANY else modules
    for m in shown:
        table.add_row(str(m.index), str(m.size), m.theorem, down(m.margin), down(m.rate))
    rest = [m for m in modules if m not in shown]
    if rest:
        sizes = sorted({m.size for m in rest})
        theorems = Counter(m.theorem for m in rest)
        table.add_section()
        table.add_row(
            f"{len(rest)} more",
            "-".join(str(size) for size in {sizes[0]: 0, sizes[-1]: 0}),
            ", ".join(f"{name}: {count}" for name, count in theorems.most_common()),
            f">= {down(min(m.margin for m in rest))}",
            f">= {down(min(m.rate for m in rest))}",
        )
    return table
