"""What every figure shares: its size, colours that colour-blind readers tell apart, limits, files."""

import io
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray
from torch.nn.functional import max_pool2d

from ctrnn_assembly.training.run import write

Array = NDArray[np.float64]

WIDTH = 7.2  # inches, the text width of a page
printed = matplotlib.rc_context(fname=Path(__file__).with_name("print.mplstyle"))  # for functions
# Okabe and Ito's, without the yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
GREY, BLACK = "0.35", "#000000"
SIDE = 480  # cells of a heat map, no more than pixels, beyond which neighbours share one
NUMBERED = 24  # modules beyond which not every one is numbered
PER_TAU = "1 / unit of tau"


def new_figure(
    height: float, title: str, shape: tuple[int, int] = (1, 1), width: float = WIDTH, **panels: Any
) -> tuple[Figure, Any]:
    """A figure of inches and its panels; the title is a user's text, in which $ is no formula."""
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    figure.suptitle(fill(title, round(14 * width)), fontsize=9, parse_math=False)
    return figure, figure.subplots(*shape, **panels)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix, whole or not at all, without the date."""
    write(path, rendered(figure, path.suffix.lower().removeprefix(".")))


@printed
def rendered(figure: Figure, kind: str) -> bytes:
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def line_style(k: int) -> dict[str, Any]:
    """Colour and marker of the k-th line; the marker differs where colours come round again."""
    marker = MARKERS[(k + k // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[k % len(COLOURS)], "marker": marker}


def empty(axes: Axes, reason: str) -> None:
    """A panel with nothing to draw says why."""
    axes.axis("off")
    place: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, reason, color=GREY, parse_math=False, **place)


def bound_of(A: Array) -> float:
    """The limit of a symmetric colour scale: few outliers of A would else leave its rest white."""
    size = np.abs(A[(A != 0) & np.isfinite(A)])
    return float(np.quantile(size, 0.98)) if len(size) else 1.0


def pooled(A: Array, side: int = SIDE) -> Array:
    """A with at most `side` rows and columns: of neighbours, the entry of largest modulus."""
    cell = [max(1, -(-k // side)) for k in A.shape]
    size = torch.from_numpy(np.abs(np.nan_to_num(A)))[None]
    _, at = max_pool2d(size, cell, ceil_mode=True, return_indices=True)
    return A.ravel()[at[0].numpy()]


def draw_eigenvalues(
    axes: Axes, values: NDArray[Any], colour: Any, marker: str = "o", label: str = ""
) -> None:
    """One dot an eigenvalue, (n,) complex, in the complex plane."""
    look: dict[str, Any] = {"color": colour, "markersize": 2.2, "mew": 0, "linestyle": "none"}
    axes.plot(values.real, values.imag, marker, label=label or None, **look)


def raised(axes: Axes, share: float, **legend: Any) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + share * (high - low))
    axes.legend(**legend)


def legend_below(figure: Figure, panels: list[Axes], columns: int) -> None:
    """The labels of panels below the figure; names of folders among them are no formulas."""
    found: dict[str, Any] = {}
    for handles, labels in (axes.get_legend_handles_labels() for axes in panels):
        found |= dict(zip(labels, handles, strict=True))
    legend = figure.legend(found.values(), list(found), loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)


def whole_numbers(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def log_axis(axes: Axes) -> None:
    axes.set_yscale("log")  # of what is drawn already, with plain numbers at its ticks
    decades = np.log10(np.divide(*axes.get_ylim()[::-1]))
    between = [1.0] if decades > 2.5 else [1.0, 2.0, 5.0] if decades > 0.7 else [*range(1, 10)]
    axes.yaxis.set_major_locator(LogLocator(subs=between))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
