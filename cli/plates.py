"""The pictures of a report, each with its caption."""

from __future__ import annotations

import numpy as np

from ctrnn_assembly.figures.curves import curves_figure
from ctrnn_assembly.figures.margin import margin_figure
from ctrnn_assembly.figures.spectra import spectra_figure
from ctrnn_assembly.reproduction.published import published_for
from ctrnn_cli.anatomy import Anatomy
from ctrnn_cli.history import short_names
from ctrnn_cli.page import paragraph, picture, table
from ctrnn_cli.portraits import graph_portrait, metric_portrait, weights_portrait
from ctrnn_cli.reported import Reported

CAUTION = (
    "Eigenvalues alone prove nothing: the Jacobian changes with the state, and a product of matrices "
    "that are each stable may grow. The proof, where there is one, is the certificate:"
)


def curves(reported: Reported) -> str:
    """Accuracy and loss over epochs."""
    history = reported.history
    if not history.rows:
        return paragraph("No epoch has ended yet.")
    published, names = published_for([history]), short_names([history.run])
    figure = curves_figure([history], names, published, title=history.task_as_used)
    caption = "Accuracy and loss over epochs: validation full, training dashed."
    if published:
        caption += " The published accuracies are of test sets, selected as the legend says."
    return picture(figure, "curves", caption)


def margins(reported: Reported) -> str:
    """The certificate over epochs."""
    history = reported.history
    if not history.rows:
        return paragraph("No epoch has ended yet.")
    figure = margin_figure([history], short_names([history.run]), title=history.task_as_used)
    caption = (
        "Bounds after every epoch: the contraction rate, at least; the factor of a step, at most; the "
        "largest certified dt, where it was recorded. A rate below 0 or a factor above 1 proves nothing."
    )
    return picture(figure, "margins", caption)


def weights(anatomy: Anatomy, reported: Reported) -> str:
    """W and L."""
    caption = (
        "W within the modules and L between them; 0 is white. Row: to this unit; column: from it. "
        "Arrows at the ends of a colour bar: some entries lie beyond it."
    )
    return picture(weights_portrait(anatomy, reported.name), "weights", caption)


def graph(anatomy: Anatomy, reported: Reported) -> str:
    """The modules and their couplings."""
    caption = (
        "The modules (numbers) and their couplings (lines). Colour and width: the spectral norm of L in "
        "the metric. Negative feedback is equally strong both ways; an arrow is a one-way coupling."
    )
    return picture(graph_portrait(anatomy, reported.name), "graph", caption)


def metric(anatomy: Anatomy, reported: Reported) -> str:
    """The eigenvalues of the metric."""
    caption = (
        "Eigenvalues of the metric diag(tau) M, module by module. Euclidean distances may grow by the "
        "root of the condition number before they shrink."
    )
    origin = reported.certificate.metric.origin
    if origin not in ("given", "none"):
        caption += f" The certificate rests on another metric, found by {origin}."
    return picture(metric_portrait(anatomy, reported.name), "metric", caption)


def eigenvalues(anatomy: Anatomy, reported: Reported) -> str:
    """Spectra, why they prove nothing, and what is proven."""
    found = anatomy.spectra()
    figure = spectra_figure(**found, title=f"{reported.name}: eigenvalues")
    rows = [("largest real part of W", f"{found['W'].real.max():.4g}")]
    if found["L"] is not None:
        rows.append(("largest real part of L", f"{found['L'].real.max():.4g}"))
    if found["J"] is not None:
        rows.append(("largest real part of J", f"{found['J'].real.max():.4g} per unit of time"))
    if found["step"] is not None:
        radius = float(np.abs(found["step"]).max())
        rows.append((f"largest modulus of a step ({found['about_step']})", f"{radius:.6f}"))
    caption = (
        "Eigenvalues of W, of L, of the Jacobian J = (-I + W D + L) / tau (x-form; D: the slopes of "
        "phi) just above x = 0 under no input, and of one step of the solver (I + dt J for Euler) with "
        "the unit circle. Shaded: growth."
    )
    return "\n".join(
        [paragraph(CAUTION), reported.verdict(), picture(figure, "spectra", caption), table(rows)]
    )
