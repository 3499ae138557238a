"""The tables of `ctrnn bench`, and the sentences below them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ctrnn_assembly.benchmark import Report

TITLES = {"forward_backward": "forward and backward", "forward": "forward, without a graph"}


def print_report(report: Report) -> None:
    """A table for forward and backward, one for forward, then what they depend on."""
    console = Console(highlight=False)
    for kind, title in TITLES.items():
        rows = [row for row in report.rows if row["kind"] == kind]
        if rows:
            console.print(_table(rows, f"{title}: {_size(report.facts)}"))
    for line in _lines(report):
        click.echo(line)


def _size(facts: dict[str, Any]) -> str:
    return (
        f"n {facts['n']} = {facts['modules']} x {facts['units']}, batch {facts['batch']}, "
        f"{facts['steps']} steps"
    )


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    devices = {row["device"] for row in rows}
    table = Table(title=title)
    for name in ("coupling", "contestant"):
        table.add_column(name, no_wrap=True)
    for name in ("median ms", "min ms", "share", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in rows:
        group = (row["coupling"], row["device"])
        if before not in (None, group):
            table.add_section()
        shown = row["coupling"] if before != group else ""
        before = group
        name = f"{row['name']} ({row['device']})" if len(devices) > 1 else row["name"]
        table.add_row(shown, name, *_numbers(row))
    return table


def _numbers(row: dict[str, Any]) -> Iterator[str]:
    yield f"{1000 * row['median_s']:.2f}"
    yield f"{1000 * row['min_s']:.2f}"
    yield "-" if row["share"] is None else f"{100 * row['share']:.1f} %"
    yield "-" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}"


def _lines(report: Report) -> Iterator[str]:
    facts = report.facts
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    yield f"{facts['hardware']}, threads: {facts['threads']}; {versions}"
    for device, rates in facts["product_rate"].items():
        for dtype, rate in rates.items():
            yield (
                f"product {facts['batch']} x {facts['n']} x {facts['n']} on {device}, {dtype}: "
                f"{rate['median'] / 1e9:.1f} GFLOP/s (median; at most {rate['max'] / 1e9:.1f}); "
                "share is of the median"
            )
    yield "MB: peak memory of the solve, 10^6 bytes"
    yield from _checked(facts["agreement"])
    yield from _faster(facts)


def _checked(agreement: list[dict[str, Any]]) -> Iterator[str]:
    """One line a tolerance: who was compared, and the largest difference."""
    for tolerance in sorted({row["tolerance"] for row in agreement}):
        rows = [row for row in agreement if row["tolerance"] == tolerance]
        largest = max(max(row["states"], row["gradients"]) for row in rows)
        names = ", ".join(dict.fromkeys(row["name"] for row in rows))
        yield (
            f"checked before timing: states and gradients of {names} agree with the plain loop in "
            f"float64 within {largest:.1e} (relative norms, at most {tolerance:g})"
        )


def _faster(facts: dict[str, Any]) -> Iterator[str]:
    if len(facts["devices"]) == 1:
        alone = len(facts["devices_present"]) == 1
        yield (
            "only the CPU is present: there is no other device to compare with"
            if alone
            else f"only {facts['devices'][0]} was timed; --device auto compares all that are present"
        )
        return
    for coupling, best in facts["faster_device"].items():
        yield (
            f"faster for this size with coupling {coupling}: {best['device']}, by {best['name']}, "
            f"{1000 * best['median_s']:.2f} ms forward and backward"
        )
