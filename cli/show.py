"""Tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ctrnn_assembly.certificates.wording import short_rows


def show_summary(summary: dict[str, Any], run: Path) -> None:
    """The outcome of a run."""
    table = Table(title=f"{summary['model']} on {summary['task']}", show_header=False)
    table.add_row("test accuracy", f"{summary['test_accuracy']:.4f}")
    table.add_row("validation accuracy", validation(summary))
    table.add_row("trained parameters", f"{summary['parameters']:,}")
    table.add_row("epochs, seconds", f"{summary['epochs']}, {summary['seconds']}")
    for name, value in short_rows(summary["certificate"]):
        table.add_row(name, value)
    table.add_row("run folder", str(run))
    Console().print(table)


def validation(summary: dict[str, Any]) -> str:
    """Validation accuracy and the epoch that it chose."""
    epoch = summary["best_epoch"] + 1
    if summary["val_accuracy"] is None:
        return f"nothing held out; weights of the last epoch, {epoch}"
    return f"{summary['val_accuracy']:.4f} (epoch {epoch})"
