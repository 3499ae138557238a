"""Figures of certificates: numbers to matplotlib figures, nothing is computed here.

Colours are Okabe and Ito's, told apart by colour-blind readers; lines differ in their dashes as well.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ctrnn_assembly.certificates.wording import down
from ctrnn_assembly.figures.style import PRINT

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ctrnn_assembly.certificates import Certificate, StepCertificate
    from ctrnn_assembly.certificates.curves import FactorCurve

STYLES: dict[str, tuple[str, Any]] = {
    "euler": ("#0072B2", "-"),
    "imex": ("#D55E00", (0, (5, 1.5))),
    "exponential-euler": ("#009E73", (0, (1.2, 1.2))),
}
BARS, FAILED, WHOLE = "#56B4E9", "#E69F00", "#000000"
MANY = 24  # modules beyond which not every one is numbered


def certificate_figure(
    certificate: Certificate, curves: tuple[FactorCurve, ...], *, title: str
) -> Figure:
    """Left: the proven factor of a step against dt. Right: the rate of every module and of the whole."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PRINT):
        figure = Figure(figsize=(7.2, 3.3), dpi=200, layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_factors(left, curves, certificate.step)
        draw_rates(right, certificate)
        verdict = "certified" if certificate.certified else "NOT certified"
        figure.suptitle(f"{title} ({verdict})", fontsize=9, parse_math=False)
    return figure


def draw_factors(axes: Axes, curves: tuple[FactorCurve, ...], step: StepCertificate | None) -> None:
    """One curve a solver as far as it contracts, the line at 1, and the step that was asked for."""
    axes.set_title("one step of the solver", fontsize=9)
    axes.set_xlabel("step dt (unit of tau)")
    axes.set_ylabel("factor of the distance, at most")
    finite = [gain for curve in curves for gain in curve.factors if gain <= 1]
    if not finite:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no step is proven", ha="center", va="center", transform=axes.transAxes)
        return
    for above, curve in zip(range(3 + len(curves), 3, -1), curves, strict=True):
        colour, dashes = STYLES[curve.solver]
        label = f"{curve.solver}: {longest(curve.max_dt)}"
        style: Any = {"color": colour, "zorder": above}
        axes.plot(curve.dts, curve.factors, linestyle=dashes, linewidth=1.6, label=label, **style)
        if 0 < curve.max_dt < math.inf:  # seen even where the curve hardly leaves 1
            axes.plot(curve.max_dt, 1, "|", markersize=10, markeredgewidth=1.6, **style)
    if step is not None:
        height, marker, verdict = 1.0, "x", "not certified"
        if step.certified and step.contraction_factor is not None:
            height, marker, verdict = step.contraction_factor, "o", "contracts"
        label = f"{step.solver}, dt {step.dt:g}: {verdict}"
        axes.plot(step.dt, height, marker, color=WHOLE, markersize=4.5, zorder=9, label=label)
    axes.axhline(1, color="0.35", linewidth=0.8)
    lowest = min(finite)
    depth = max(1 - lowest, 1e-6)
    axes.set_xscale("log")
    axes.set_xlim(curves[0].dts[0], curves[0].dts[-1])
    axes.set_ylim(lowest - 0.06 * depth, 1 + 0.08 * depth)
    axes.legend(loc="lower left", fontsize=8)


def longest(max_dt: float) -> str:
    """The largest certified dt, rounded down."""
    if max_dt == 0:
        return "no dt"
    return "every dt" if math.isinf(max_dt) else f"up to {down(max_dt)}"


def draw_rates(axes: Axes, certificate: Certificate) -> None:
    """A bar for each module, other ones for those that fail, and a line for the whole."""
    axes.set_title("modules", fontsize=9)
    axes.set_xlabel("module")
    axes.set_ylabel("rate, at least (1 / unit of tau)")
    known = [module for module in certificate.modules if math.isfinite(module.rate)]
    if not known:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing is proven", ha="center", va="center", transform=axes.transAxes)
        return
    for certified, colour, hatch in ((True, BARS, ""), (False, FAILED, "////")):
        chosen = [module for module in known if module.certified == certified]
        if chosen:
            axes.bar(
                [module.index for module in chosen],
                [module.rate for module in chosen],
                width=0.8,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.4,
                label="module" if certified else "module that fails",
            )
    if math.isfinite(certificate.rate):
        label = f"the whole: {down(certificate.rate)}"
        axes.axhline(certificate.rate, color=WHOLE, linewidth=1.4, linestyle="--", label=label)
    axes.axhline(0, color="0.35", linewidth=0.8)
    count = len(certificate.modules)
    if count <= MANY:
        axes.set_xticks(range(count), [str(k) for k in range(count)], fontsize=8 if count <= 12 else 7)
    axes.set_xlim(-0.7, count - 0.3)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))
    axes.legend(loc="upper center", fontsize=8, ncols=2)
