"""Tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def show_summary(summary: dict[str, Any], run: Path) -> None:
    """The outcome of a run."""
    table = Table(title=f"{summary['model']} on {summary['task']}", show_header=False)
    table.add_row("test accuracy", f"{summary['test_accuracy']:.4f}")
    table.add_row("validation accuracy", validation(summary))
    table.add_row("trained parameters", f"{summary['parameters']:,}")
    table.add_row("epochs, seconds", f"{summary['epochs']}, {summary['seconds']}")
    for name, value in certificate_rows(summary["certificate"]):
        table.add_row(name, value)
    table.add_row("run folder", str(run))
    Console().print(table)


def validation(summary: dict[str, Any]) -> str:
    """Validation accuracy and the epoch that it chose."""
    epoch = summary["best_epoch"] + 1
    if summary["val_accuracy"] is None:
        return f"nothing held out; weights of the last epoch, {epoch}"
    return f"{summary['val_accuracy']:.4f} (epoch {epoch})"


def certificate_rows(certificate: dict[str, Any]) -> list[tuple[str, str]]:
    """The certificate in two lines: continuous time, and the step."""
    if not certificate["certified"]:
        return [("certificate", "none: " + "; ".join(certificate["reasons"]))]
    proven = f"contracting, rate >= {certificate['rate']:.4g}"
    rows = [("certificate", f"{proven}, cond(M) {condition(certificate):.3g}")]
    step = certificate["discrete"]
    if step is not None:
        verdict = (
            f"contracting, factor <= {step['contraction_factor']:.6f}"
            if step["certified"]
            else step["reason"]
        )
        rows.append((f"{step['solver']} step, dt {step['dt']}", verdict))
    return rows


def condition(certificate: dict[str, Any]) -> float:
    """The condition number of the metric, infinite where it has none."""
    value = certificate["metric"]["condition_number"]
    return float("inf") if value is None else value
