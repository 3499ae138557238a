"""A run on one HTML page that needs nothing but itself: escaped text, tables, and pictures inside.

Pictures are SVG as data URIs: each is a document of its own, so that their ids cannot collide.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.wording import down, fact_rows, verdict, weights_rows
from ctrnn_assembly.figures.curves import curves_figure, margin_figure
from ctrnn_assembly.figures.network import NetworkArrays, draw_graph, draw_metric, draw_weights
from ctrnn_assembly.figures.spectrum import parts_figure
from ctrnn_assembly.figures.style import rendered
from ctrnn_assembly.reproduction.experiments import published_for
from ctrnn_assembly.training.config import to_yaml
from ctrnn_assembly.training.run import Run, validation

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


def report(folder: str | Path) -> str:
    """The page of a run folder: of its trained weights, of its last epoch, or of its initial weights."""
    run = Run.open(folder)
    if run.file is None:
        run = Run.open(folder, initial=True)
    layer, proven = run.model(data=False).core, run.certificate()
    said = paragraph(verdict(proven), f"verdict {'yes' if proven.certified else 'no'}")
    baseline = getattr(layer, "field", None) is None
    chapters = [
        ("Summary", said + summary(run, baseline)),
        ("Certificate", said + certificate(run, proven)),
        ("Training curves", over_epochs(run, "curves")),
    ]
    if not baseline:
        net, origin = NetworkArrays.of(layer, run.title), proven.metric.origin
        elsewhere = f" The certificate rests on another metric, found by {origin}."
        other = "" if origin in ("given", "none") else elsewhere
        chapters += [
            ("Certificate over epochs", over_epochs(run, "margins")),
            ("Weights", picture(draw_weights(net), "weights")),
            ("Graph", picture(draw_graph(net), "graph")),
            ("Metric", picture(draw_metric(net), "metric", other)),
            ("Eigenvalues", paragraph(CAUTION) + said + eigenvalues(net)),
        ]
    settings = table(run.config.model_dump(mode="json").items())
    chapters.append(("Configuration", f"{settings}\n{details('config.yaml', to_yaml(run.config))}"))
    versions = paragraph("Not recorded: the run is not finished.")
    if isinstance(known := (run.summary or {}).get("versions"), dict):
        versions = table(known.items())
    chapters.append(("Versions and hardware", versions))
    return page(f"{run.config.model} on {run.task_as_used}", chapters)


def summary(run: Run, baseline: bool) -> str:
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
    reasons = [(f"reason {k}", said) for k, said in enumerate(proven.reasons, 1)]
    parts = [table(reasons)] if reasons else []
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
    if not run.epochs:
        return paragraph("No epoch has ended yet.")
    if what == "margins":
        return picture(margin_figure([run]), what)
    published = published_for([run])
    note = " The published accuracies are of test sets, selected as the legend says."
    return picture(curves_figure([run], published), what, note if published else "")


def eigenvalues(net: NetworkArrays) -> str:
    found = net.spectra()
    rows = [
        (f"largest real part of {key}", f"{found[key].real.max():.4g}{unit}")
        for key, unit in (("W", ""), ("L", ""), ("J", " per unit of time"))
        if found[key] is not None
    ]
    if found["step"] is not None:
        radius = float(np.abs(found["step"]).max())
        rows.append((f"largest modulus of a step ({found['about_step']})", f"{radius:.6f}"))
    return picture(parts_figure(**found, title=f"{net.title}: eigenvalues"), "spectra") + table(rows)


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page, from headings and the HTML below them."""
    links, bodies = [], []
    for k, (heading, body) in enumerate(sections):
        links.append(f'<a href="#s{k}">{escape(heading)}</a>')
        bodies.append(f'<section id="s{k}">\n<h2>{escape(heading)}</h2>\n{body}\n</section>')
    template = Template((resources.files(__package__) / "report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), links="\n".join(links), sections="\n".join(bodies))


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>\n'


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A table; with a head, numbers stand to the right; without, the first cell of a row is its name."""
    lines = ["<table>"]
    if head:
        names = "".join(cell(name, 'th scope="col"') for name in head)
        lines.append(f"<thead><tr>{names}</tr></thead>")
    lines.append("<tbody>")
    for row in rows:
        tags = ['td class="number"' if head and isinstance(v, int | float) else "td" for v in row]
        if not head:
            tags[0] = 'th scope="row"'
        lines.append(f"<tr>{''.join(map(cell, row, tags))}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])


def cell(value: object, tag: str) -> str:
    return f"<{tag}>{escape(str(value))}</{tag[:2]}>"


def details(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n<pre>{escape(text)}</pre>\n</details>"


def picture(figure: Figure, what: str, note: str = "") -> str:
    caption = escape(CAPTIONS[what] + note, quote=True)
    source = "data:image/svg+xml;base64," + base64.b64encode(rendered(figure, "svg")).decode()
    image = f'<img src="{source}" alt="{caption}">'
    return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>\n"
