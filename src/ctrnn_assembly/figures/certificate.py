"""A certificate: the proven factor of a step against its length, and the rate of every module."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrnn_assembly.certificates import Certificate, StepCertificate
from ctrnn_assembly.certificates.curves import FactorCurve
from ctrnn_assembly.certificates.wording import down
from ctrnn_assembly.figures import style
from ctrnn_assembly.figures.style import BLACK, COLOURS, GREY, PER_TAU

DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))


@style.printed
def certificate_figure(certificate: Certificate, curves: Sequence[FactorCurve], *, title: str) -> Figure:
    """Left: the proven factor of a step against dt. Right: the rate of every module and of the whole."""
    verdict = "certified" if certificate.certified else "NOT certified"
    figure = style.new_figure(3.3, f"{title} ({verdict})")
    left, right = figure.subplots(1, 2)
    draw_factors(left, curves, certificate.step)
    draw_rates(right, certificate)
    return figure


def draw_factors(axes: Axes, curves: Sequence[FactorCurve], step: StepCertificate | None) -> None:
    """One curve a solver as far as it contracts, the line at 1, and the step that was asked for."""
    axes.set_title("one step of the solver")
    proven = [factor for curve in curves for factor in curve.factors if factor <= 1]
    if not proven:
        style.empty(axes, "no step is proven")
        return
    for k, curve in enumerate(curves):
        look: Any = {"color": COLOURS[k], "zorder": 3 + len(curves) - k}
        longest = "every dt" if math.isinf(curve.max_dt) else f"up to {down(curve.max_dt)}"
        label = f"{curve.solver}: {longest if curve.max_dt else 'no dt'}"
        axes.plot(curve.dts, curve.factors, linestyle=DASHES[k % 3], linewidth=1.6, label=label, **look)
        if 0 < curve.max_dt < math.inf:  # seen even where the curve hardly leaves 1
            axes.plot(curve.max_dt, 1, "|", markersize=10, markeredgewidth=1.6, **look)
    if step is not None:
        height, marker, said = 1.0, "x", "not certified"
        if step.certified and step.contraction_factor is not None:
            height, marker, said = step.contraction_factor, "o", "contracts"
        label = f"{step.solver}, dt {step.dt:g}: {said}"
        axes.plot(step.dt, height, marker, color=BLACK, markersize=4.5, zorder=9, label=label)
    axes.axhline(1, color=GREY, linewidth=0.8)
    depth = max(1 - min(proven), 1e-6)
    axes.set(xlabel="step dt (unit of tau)", ylabel="factor of the distance, at most", xscale="log")
    axes.set_xlim(curves[0].dts[0], curves[0].dts[-1])
    axes.set_ylim(min(proven) - 0.06 * depth, 1 + 0.08 * depth)
    axes.legend(loc="lower left")


def draw_rates(axes: Axes, certificate: Certificate) -> None:
    """A bar for each module, hatched for those that fail, and a line for the whole."""
    axes.set_title("modules")
    known = [module for module in certificate.modules if math.isfinite(module.rate)]
    if not known:
        style.empty(axes, "nothing is proven")
        return
    kinds: Any = ((True, COLOURS[5], "", "module"), (False, COLOURS[4], "////", "module that fails"))
    for certified, colour, hatch, label in kinds:
        rates = {module.index: module.rate for module in known if module.certified == certified}
        if rates:
            look: Any = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
            axes.bar(list(rates), list(rates.values()), width=0.8, label=label, **look)
    if math.isfinite(certificate.rate):
        label = f"the whole: {down(certificate.rate)}"
        axes.axhline(certificate.rate, color=BLACK, linewidth=1.4, linestyle="--", label=label)
    axes.axhline(0, color=GREY, linewidth=0.8)
    style.module_ticks(axes, len(certificate.modules))
    axes.set(xlabel="module", ylabel=f"rate, at least ({PER_TAU})")
    style.raised(axes, 0.25, loc="upper center", ncols=2)
