"""What the two figures share: options, where a result is kept, tables, and how seven nets are drawn."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlps import MLPS
from rich.box import SIMPLE
from rich.table import Table

from ctrnn_assembly.figures.style import legend_below, line_style, save_figure

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from keep import RESULTS, about, keep  # noqa: E402

__all__ = ["HERE", "about", "curve", "keep", "options", "panel", "save", "table"]


def options(about: str | None) -> argparse.ArgumentParser:
    """A parser with the options of both."""
    parser = argparse.ArgumentParser(description=str(about).split("\n\n")[0])
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="without an ending")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    return parser


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], **look: Any) -> Table:
    """A narrow table; the first column stands left, and so do those of words."""
    shown = Table(box=SIMPLE, padding=0, pad_edge=False, collapse_padding=True, **look)
    for column in columns:
        words = column in ("net", "paper", "report")
        shown.add_column(column, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


def curve(axes: Any, name: str, x: Sequence[float], y: Sequence[float], every: int = 1) -> None:
    """One network's curve, in its colour and marker."""
    style = line_style(MLPS.index(name))
    axes.plot(x, y, **style, markevery=every, markersize=3.5, linewidth=1.3, label=name)


def panel(axes: Any, title: str, **settings: Any) -> None:
    """Title, axes and grid of a panel."""
    axes.set(**settings)
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.25)


def save(figure: Any, path: Path) -> None:
    """The figure as png and pdf, with one legend below all panels."""
    legend_below(figure, figure.axes[0], len(MLPS))
    for ending in (".png", ".pdf"):
        save_figure(figure, path.with_suffix(ending))
