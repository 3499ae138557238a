"""A run on one HTML page that needs nothing but itself: escaped text, tables, SVG as data URIs."""

import json
from base64 import b64encode
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ctrnn_assembly.certificates.result import down, fact_rows, verdict, weights_rows
from ctrnn_assembly.data.targets import in_words
from ctrnn_assembly.figures.curves import curves_figure, margin_figure
from ctrnn_assembly.figures.diagnostics import weights_figure
from ctrnn_assembly.figures.style import rendered
from ctrnn_assembly.reproduction.experiments import published_for
from ctrnn_assembly.training.config import to_yaml
from ctrnn_assembly.training.run import Run, validation


def report(folder: str | Path) -> str:
    """The page of a run folder: of its trained weights, of its last epoch, or of its initial weights."""
    run = Run.open(folder)
    if run.file is None:
        run = Run.open(folder, initial=True)
    layer, proven, weights = run.build(data=False).core, run.certificate, run.weights.as_dict()
    figures, published = {}, published_for([run])
    if run.epochs:
        figures = {"curves": curves_figure([run], published), "margins": margin_figure([run])}
    if is_assembly := getattr(layer, "field", None) is not None:  # no baseline
        figures["weights"] = weights_figure(layer, title=run.title)
    loader = PackageLoader("ctrnn_assembly", "figures")
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    summary = run.summary or {}
    facts, before = fact_rows(proven), summary.get("certificate_initial")
    if facts and isinstance(before, dict) and before.get("certified"):
        facts.append(("rate before training", f">= {down(float(before['rate']))}"))
    return pages.get_template("report.html").render(
        run=run,
        summary=summary,
        proven=proven,
        verdict=verdict(proven),
        facts=facts,
        weights=weights_rows(weights),
        is_assembly=is_assembly,
        published=published,
        images={name: b64encode(rendered(figure, "svg")).decode() for name, figure in figures.items()},
        exact=json.dumps({"weights": weights, **proven.as_dict()}, indent=2, allow_nan=False),
        yaml=to_yaml(run.config),
        down=down,
        validation=validation,
        in_words=in_words,
    )
