"""Eigenvalues of the Jacobian at the fixed points, in the complex plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrnn_assembly.figures.style import PRINT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ctrnn_assembly.certificates import Certificate
    from ctrnn_assembly.diagnostics.fixed_points import FixedPoints

STYLES = {
    "stable": ("#0072B2", "o"),
    "marginal": ("#E69F00", "D"),
    "saddle": ("#D55E00", "s"),
    "unstable": ("#CC79A7", "^"),
}


def fixed_points_figure(found: list[FixedPoints], certificate: Certificate, *, title: str) -> Figure:
    """One marker an eigenvalue, by the kind of its fixed point, with the boundary Re = 0."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PRINT):
        figure = Figure(figsize=(4.6, 3.4), dpi=200, layout="constrained")
        axes = figure.subplots()
        labelled: set[str] = set()
        for points in found:
            for kind, values in zip(points.kinds, points.eigenvalues.numpy(), strict=True):
                colour, marker = STYLES[kind]
                label = None if kind in labelled else f"{kind} fixed point"
                labelled.add(kind)
                axes.plot(values.real, values.imag, marker, color=colour, markersize=2.8, mew=0,
                          linestyle="none", label=label)  # fmt: skip
        axes.axvline(0, color="#000000", linewidth=0.9)
        if certificate.certified:
            label = f"-rate = {-certificate.rate:.3g}, certified"
            axes.axvline(-certificate.rate, color="#D55E00", linewidth=1.1, linestyle="--", label=label)
        if not labelled:
            axes.text(0.5, 0.5, "no fixed point was found", ha="center", transform=axes.transAxes)
        axes.set_xlabel("Re (1 / unit of tau)")
        axes.set_ylabel("Im (1 / unit of tau)")
        axes.margins(y=0.2)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7, loc="upper left")
        counts = ", ".join(str(len(points)) for points in found)
        axes.set_title(f"{title}\nfixed points of each input: {counts}", fontsize=8, parse_math=False)
    return figure
