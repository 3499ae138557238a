"""A run on one HTML page that needs nothing but itself: escaped text, tables, and pictures inside.

Pictures are SVG as data URIs: each is a document of its own, so that their ids cannot collide.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.wording import down, fact_rows, verdict, weights_rows
from ctrnn_assembly.figures.curves import curves_figure, margin_figure
from ctrnn_assembly.figures.network import NetworkArrays, draw_graph, draw_metric, draw_weights
from ctrnn_assembly.figures.spectrum import parts_figure
from ctrnn_assembly.figures.style import rendered
from ctrnn_assembly.reproduction.published import published_for
from ctrnn_assembly.training.config import to_yaml
from ctrnn_assembly.training.run import Run, validation, weights_file

MEANING = (
    "Certified means: for every input, two states under the same input approach each other at least at "
    "the rate below, in the metric below, whatever the task and the data are. Every number is a bound, "
    "rounded to the side that claims less."
)
CAUTION = (
    "Eigenvalues alone prove nothing: the Jacobian changes with the state, and a product of matrices "
    "that are each stable may grow. The proof, where there is one, is the certificate:"
)
CAPTIONS = {
    "curves": "Accuracy and loss over epochs: validation full, training dashed.",
    "margins": "Bounds after every epoch: the contraction rate, at least; the factor of a step, at "
    "most; the largest certified dt, where it was recorded. A rate below 0 or a factor above 1 proves "
    "nothing.",
    "weights": "W within the modules and L between them; 0 is white. Row: to this unit; column: from "
    "it. Arrows at the ends of a colour bar: some entries lie beyond it.",
    "graph": "The modules (numbers) and their couplings (lines). Colour and width: the spectral norm of "
    "L in the metric. Negative feedback is equally strong both ways; an arrow is a one-way coupling.",
    "metric": "Eigenvalues of the metric diag(tau) M, module by module. Euclidean distances may grow by "
    "the root of the condition number before they shrink.",
    "spectra": "Eigenvalues of W, of L, of the Jacobian J = (-I + W D + L) / tau (x-form; D: the slopes "
    "of phi) just above x = 0 under no input, and of one step of the solver (I + dt J for Euler) with "
    "the unit circle. Shaded: growth.",
}
# Nothing is loaded from anywhere, even if a text should slip through unescaped.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #bbb; }
nav a { margin-right: .9rem; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; }
th, td { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
thead th { background: #eee; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; break-inside: avoid; }
figure img { width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #444; }
.verdict { padding: .6rem .9rem; border-left: .4rem solid; font-weight: 600; }
.yes { border-color: #0072B2; background: #e8f2f9; }
.no { border-color: #D55E00; background: #fbeee5; }
pre { background: #f4f4f4; padding: .6rem; overflow: auto; font-size: .8rem; }
"""


def report(folder: str | Path) -> str:
    """The page of a run folder: of its trained weights, of its last epoch, or of its initial weights.

    Raises:
        ConfigError: if it is no run; DataError: if a file in it is damaged.
    """
    run = Run.open(folder)
    if run.path is not None and weights_file(run.path) is None:
        run = Run.open(folder, initial=True)
    layer, proven = run.network().core, run.certificate()
    said = paragraph(verdict(proven), f"verdict {'yes' if proven.certified else 'no'}")
    baseline = getattr(layer, "field", None) is None
    chapters = [
        ("Summary", said + summary(run, baseline)),
        ("Certificate", said + certificate(run, proven)),
        ("Training curves", over_epochs(run, "curves")),
    ]
    if not baseline:
        net = NetworkArrays.of(layer, run.title)
        chapters += [
            ("Certificate over epochs", over_epochs(run, "margins")),
            ("Weights", picture(draw_weights(net), "weights")),
            ("Graph", picture(draw_graph(net), "graph")),
            ("Metric", picture(draw_metric(net), "metric", other_metric(proven))),
            ("Eigenvalues", paragraph(CAUTION) + said + eigenvalues(net)),
        ]
    versions = (run.summary or {}).get("versions")
    chapters += [
        ("Configuration", configuration(run)),
        (
            "Versions and hardware",
            table((str(key), str(value)) for key, value in versions.items())
            if isinstance(versions, dict)
            else paragraph("Not recorded: the run is not finished."),
        ),
    ]
    return page(f"{run.config.model} on {run.task_as_used}", chapters)


def summary(run: Run, baseline: bool) -> str:
    """What was trained, and how well it does."""
    config, done = run.config, len(run.epochs)
    units = config.modules * config.units
    rows: list[tuple[str, object]] = [
        ("run folder", "none: a configuration" if run.path is None else str(run.path.resolve())),
        ("model", config.model),
        ("task", run.task_as_used),
        ("size", f"{units} units" if baseline else f"{config.modules} x {config.units} units"),
        ("epochs", f"{done} of {config.epochs}"),
        ("seed", str(config.seed)),
    ]
    unfinished = paragraph(f"This run is not finished: {done} of {config.epochs} epochs.", "verdict no")
    if run.summary is not None:
        unfinished = ""
        rows += [
            ("test accuracy", f"{100 * run.summary['test_accuracy']:.2f} %"),
            ("validation accuracy", validation(run.summary)),
            ("trained parameters", f"{run.summary['parameters']:,.0f}"),
            ("training time", f"{run.summary['seconds']:.0f} s"),
        ]
    return unfinished + table([*rows, *weights_rows(run.weights.as_dict())])


def certificate(run: Run, proven: Certificate) -> str:
    """Reasons, facts, modules, and the exact numbers."""
    parts = []
    if proven.reasons:
        parts.append(table((f"reason {k + 1}", said) for k, said in enumerate(proven.reasons)))
    facts = fact_rows(proven)
    before = (run.summary or {}).get("certificate_initial")
    if facts and isinstance(before, dict) and before.get("certified"):
        facts.append(("rate before training", f">= {down(float(before['rate']))}"))
    parts += [paragraph(MEANING), table(facts)] if facts else []
    if proven.modules:
        rows = [
            (m.index, m.size, m.theorem, down(m.margin), down(m.rate), "yes" if m.certified else "NO")
            for m in proven.modules
        ]
        parts.append(table(rows, ("module", "units", "theorem", "margin (1/tau)", "rate", "certified")))
    exact = {"weights": run.weights.as_dict(), **proven.as_dict()}
    text = json.dumps(exact, indent=2, allow_nan=False)
    return "\n".join([*parts, details("exact numbers, as ctrnn certify --json prints them", text)])


def over_epochs(run: Run, what: str) -> str:
    """Accuracies with published ones, or the certificate."""
    if not run.epochs:
        return paragraph("No epoch has ended yet.")
    if what == "margins":
        return picture(margin_figure([run]), what)
    published = published_for([run])
    note = (
        " The published accuracies are of test sets, selected as the legend says." if published else ""
    )
    return picture(curves_figure([run], published), what, note)


def other_metric(proven: Certificate) -> str:
    """Says so where the certificate is not in the metric that is drawn."""
    origin = proven.metric.origin
    if origin in ("given", "none"):
        return ""
    return f" The certificate rests on another metric, found by {origin}."


def eigenvalues(net: NetworkArrays) -> str:
    """Spectra, and their extreme values."""
    found = net.spectra()
    names = {"W": "largest real part of W", "L": "largest real part of L", "J": "largest real part of J"}
    rows = [
        (name, f"{found[key].real.max():.4g}{' per unit of time' if key == 'J' else ''}")
        for key, name in names.items()
        if found[key] is not None
    ]
    if found["step"] is not None:
        radius = float(np.abs(found["step"]).max())
        rows.append((f"largest modulus of a step ({found['about_step']})", f"{radius:.6f}"))
    return picture(parts_figure(**found, title=f"{net.title}: eigenvalues"), "spectra") + table(rows)


def configuration(run: Run) -> str:
    """Every setting, and the file itself to copy."""
    rows = ((key, str(value)) for key, value in run.config.model_dump(mode="json").items())
    return table(rows) + "\n" + details("config.yaml", to_yaml(run.config))


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page, from headings and the HTML below them."""
    named = [(f"s{k}", escape(heading), body) for k, (heading, body) in enumerate(sections)]
    links = "\n".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in named)
    bodies = "\n".join(
        f'<section id="{key}">\n<h2>{heading}</h2>\n{body}\n</section>' for key, heading, body in named
    )
    return f"""<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<nav>
{links}
</nav>
{bodies}
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>\n' if kind else f"<p>{escape(text)}</p>\n"


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A table; without a head, the first cell of a row is its name."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = []
    for row in rows:
        cells = [cell(value) for value in row]
        if not head:
            cells[0] = f'<th scope="row">{escape(str(row[0]))}</th>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    top = f"<thead><tr>{top}</tr></thead>\n" if head else ""
    return f"<table>\n{top}<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def cell(value: object) -> str:
    kind = ' class="number"' if isinstance(value, int | float) else ""
    return f"<td{kind}>{escape(str(value))}</td>"


def details(summary: str, text: str) -> str:
    """Long plain text, folded away."""
    return f"<details><summary>{escape(summary)}</summary>\n<pre>{escape(text)}</pre>\n</details>"


def picture(figure: Figure, what: str, note: str = "") -> str:
    """A figure inside the page, with its caption."""
    caption = escape(CAPTIONS[what] + note, quote=True)
    source = "data:image/svg+xml;base64," + base64.b64encode(rendered(figure, "svg")).decode()
    image = f'<img src="{source}" alt="{caption}">'
    return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>\n"
