"""A run on one HTML page that needs nothing but itself: escaped text, tables, and pictures inside.

Pictures are SVG as data URIs: each is a document of its own, so that their ids cannot collide.
"""

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ctrnn_assembly.certificates.wording import down, fact_rows, verdict, weights_rows
from ctrnn_assembly.figures.curves import curves_figure, margin_figure
from ctrnn_assembly.figures.network import NETWORK_FIGURES, NetworkArrays
from ctrnn_assembly.figures.style import rendered
from ctrnn_assembly.reproduction.experiments import published_for
from ctrnn_assembly.training.config import to_yaml
from ctrnn_assembly.training.run import Run, validation


def report(folder: str | Path) -> str:
    """The page of a run folder: of its trained weights, of its last epoch, or of its initial weights."""
    run = Run.open(folder)
    if run.file is None:
        run = Run.open(folder, initial=True)
    layer, proven, weights = run.model(data=False).core, run.certificate(), run.weights.as_dict()
    figures, radii, published = {}, [], published_for([run])
    if run.epochs:
        figures = {"curves": curves_figure([run], published), "margins": margin_figure([run])}
    baseline = getattr(layer, "field", None) is None
    if not baseline:
        net = NetworkArrays(layer, run.title)
        figures |= {name: draw(net) for name, draw in NETWORK_FIGURES.items()}
        radii = eigenvalue_rows(net)
    facts, before = fact_rows(proven), (run.summary or {}).get("certificate_initial")
    if facts and isinstance(before, dict) and before.get("certified"):
        facts.append(("rate before training", f">= {down(float(before['rate']))}"))
    loader = PackageLoader("ctrnn_assembly", "figures")
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    return pages.get_template("report.html").render(
        run=run,
        config=run.config,
        summary=run.summary or {},
        proven=proven,
        verdict=verdict(proven),
        facts=facts,
        weights=weights_rows(weights),
        radii=radii,
        published=published,
        baseline=baseline,
        images={name: image(figure) for name, figure in figures.items()},
        exact=json.dumps({"weights": weights, **proven.as_dict()}, indent=2, allow_nan=False),
        yaml=to_yaml(run.config),
        down=down,
        validation=validation,
    )


def eigenvalue_rows(net: NetworkArrays) -> list[tuple[str, str]]:
    """The largest real parts, and the modulus of a step."""
    rows = [
        (f"largest real part of {name}", f"{net.spectra[name].real.max():.4g}{unit}")
        for name, unit in (("W", ""), ("L", ""), ("J", " per unit of time"))
        if name in net.spectra
    ]
    if net.has_step:
        radius = abs(net.spectra["step"]).max()
        rows.append((f"largest modulus of a step ({net.about_step})", f"{radius:.6f}"))
    return rows


def image(figure: Any) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(rendered(figure, "svg")).decode()
