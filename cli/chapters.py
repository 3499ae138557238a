"""The chapters of a report, each as HTML, and the whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ctrnn_assembly.certificates.wording import down, fact_rows, weights_rows
from ctrnn_assembly.training.config import to_yaml
from ctrnn_cli import plates
from ctrnn_cli.anatomy import Anatomy
from ctrnn_cli.history import History
from ctrnn_cli.page import details, page, paragraph, table
from ctrnn_cli.reported import Reported
from ctrnn_cli.show import validation

MEANING = (
    "Certified means: for every input, two states under the same input approach each other at least at "
    "the rate below, in the metric below, whatever the task and the data are. Every number is a bound, "
    "rounded to the side that claims less."
)


def report(run: Path) -> str:
    """The page.

    Raises:
        ConfigError: if it is no run; DataError: if a file in it is damaged.
    """
    reported = Reported.read(run)
    chapters = [
        ("Summary", summary(reported)),
        ("Certificate", certificate(reported)),
        ("Training curves", plates.curves(reported)),
    ]
    if not reported.baseline:
        anatomy = Anatomy.of(reported.core, reported.history.config.model)
        chapters += [
            ("Certificate over epochs", plates.margins(reported)),
            ("Weights", plates.weights(anatomy, reported)),
            ("Graph", plates.graph(anatomy, reported)),
            ("Metric", plates.metric(anatomy, reported)),
            ("Eigenvalues", plates.eigenvalues(anatomy, reported)),
        ]
    chapters += [
        ("Configuration", configuration(reported.history)),
        ("Versions and hardware", versions(reported.history)),
    ]
    return page(f"{reported.history.config.model} on {reported.history.task}", chapters)


def summary(reported: Reported) -> str:
    """What was trained, how well it does, and whether it is proven to contract."""
    history = reported.history
    config, done = history.config, len(history.rows)
    parts = [reported.verdict()]
    if not history.finished:
        unfinished = f"This run is not finished: {done} of {config.epochs} epochs."
        parts.append(paragraph(unfinished, "verdict no"))
    units = config.modules * config.units
    rows = [
        ("run folder", str(history.run.resolve())),
        ("model", config.model),
        ("task", history.task_as_used),
        ("size", f"{units} units" if reported.baseline else f"{config.modules} x {config.units} units"),
        ("epochs", f"{done} of {config.epochs}"),
        ("seed", str(config.seed)),
        *results(history),
        *weights_rows(reported.source.weights.as_dict()),
    ]
    return "\n".join([*parts, table(rows)])


def results(history: History) -> list[tuple[str, str]]:
    """The numbers of summary.json; none before the end."""
    if not history.finished:
        return []
    return [
        ("test accuracy", f"{100 * history.number('test_accuracy'):.2f} %"),
        ("validation accuracy", validation(history.summary)),
        ("trained parameters", f"{history.number('parameters'):,.0f}"),
        ("training time", f"{history.number('seconds'):.0f} s"),
    ]


def certificate(reported: Reported) -> str:
    """Verdict, reasons, facts, modules, and the exact numbers."""
    proven = reported.certificate
    parts = [reported.verdict()]
    if proven.reasons:
        parts.append(table([(f"reason {k + 1}", said) for k, said in enumerate(proven.reasons)]))
    if reported.baseline:
        return "\n".join(parts)
    facts = fact_rows(proven)
    before = rate_before(reported.history)
    if facts and before is not None:
        facts.append(("rate before training", f">= {down(before)}"))
    parts += [paragraph(MEANING), table(facts)] if facts else []
    if proven.modules:
        rows = [
            (m.index, m.size, m.theorem, down(m.margin), down(m.rate), "yes" if m.certified else "NO")
            for m in proven.modules
        ]
        parts.append(table(rows, ("module", "units", "theorem", "margin (1/tau)", "rate", "certified")))
    exact: dict[str, Any] = {"weights": reported.source.weights.as_dict(), **proven.as_dict()}
    text = json.dumps(exact, indent=2, allow_nan=False)
    return "\n".join([*parts, details("exact numbers, as ctrnn certify --json prints them", text)])


def rate_before(history: History) -> float | None:
    """The certified rate of the initial weights, from the summary."""
    initial = history.summary.get("certificate_initial")
    rate = initial.get("rate") if isinstance(initial, dict) and initial.get("certified") else None
    return float(rate) if isinstance(rate, int | float) and math.isfinite(rate) else None


def configuration(history: History) -> str:
    """Every setting, and the file itself to copy."""
    rows = [(key, str(value)) for key, value in history.config.model_dump(mode="json").items()]
    return table(rows) + "\n" + details("config.yaml", to_yaml(history.config))


def versions(history: History) -> str:
    """From summary.json."""
    found = history.summary.get("versions")
    if not isinstance(found, dict):
        return paragraph("Not recorded: the run is not finished.")
    return table([(str(key), str(value)) for key, value in found.items()])
