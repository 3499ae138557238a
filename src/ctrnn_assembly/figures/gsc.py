"""The gradient scale coefficient back through time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ctrnn_assembly.figures.style import PRINT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gsc_figure(rows: list[dict[str, Any]], *, title: str, squared: bool) -> Figure:
    """GSC(t, T) and the norm of the Jacobian with its certified bound, on a logarithmic scale."""
    import matplotlib
    from matplotlib.figure import Figure

    curves = (
        ("gsc", "GSC(t, T)" + (" squared" if squared else ""), "#0072B2", "o-"),
        ("jacobian", "||dx(T) / dx(t)||, root mean square", "#009E73", "s--"),
        ("jacobian_bound", "its certified bound", "#D55E00", ":"),
    )
    with matplotlib.rc_context(PRINT):
        figure = Figure(figsize=(4.8, 3.2), dpi=200, layout="constrained")
        axes = figure.subplots()
        for key, label, colour, style in curves:
            kept = [(row["step"], row[key]) for row in rows if row[key] is not None and row[key] > 0]
            if kept:
                steps, values = zip(*kept, strict=True)
                axes.plot(steps, values, style, color=colour, markersize=3, linewidth=1.2, label=label)
        axes.axhline(1, color="0.35", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_xlabel("t (steps); the loss is at the last one")
        axes.set_ylabel("gain from t to T")
        axes.legend(fontsize=7)
        axes.set_title(title, fontsize=9, parse_math=False)
    return figure
