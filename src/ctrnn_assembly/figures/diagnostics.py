"""What is drawn of a net: factors, rates, eigenvalues, distances, gradients, weights."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrnn_assembly.certificates import Certificate, StepCertificate
from ctrnn_assembly.certificates.certify import FactorCurve
from ctrnn_assembly.certificates.result import down, factor, samples_words, up
from ctrnn_assembly.diagnostics.contraction import Measurement
from ctrnn_assembly.diagnostics.fixed_points import FixedPoints
from ctrnn_assembly.diagnostics.lyapunov import Lyapunov
from ctrnn_assembly.diagnostics.spectrum import Spectrum
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures import style
from ctrnn_assembly.figures.style import BLACK, COLOURS, GREY, PER_TAU, Array

CERTIFIED: Any = {"color": COLOURS[1], "linewidth": 1.1, "linestyle": "--"}
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))
KINDS = {"stable": (0, "o"), "marginal": (4, "D"), "saddle": (1, "s"), "unstable": (3, "^")}
MAP = "this network is a map, not a flow"


@style.printed
def certificate_figure(certificate: Certificate, curves: Sequence[FactorCurve], *, title: str) -> Figure:
    """Left: a step's proven factor over dt, of a stack its layers' memory. Right: all rates."""
    verdict = "certified" if certificate.certified else "NOT certified"
    figure, (left, right) = style.new_figure(3.3, f"{title} ({verdict})", (1, 2))
    if certificate.cascade is None:
        draw_factors(left, curves, certificate.step)
    else:
        left.set_title("samples until differences are below a thousandth")
        cascade, memory = certificate.cascade, [layer.memory for layer in certificate.cascade.layers]
        left.bar(range(len(memory)), memory, width=0.8, color=COLOURS[5], label="layer alone")
        label = f"the whole, proven: {samples_words(cascade.samples)}"
        finish_bars(left, len(memory), "layer", "samples", cascade.samples, label)
    draw_rates(right, certificate)
    return figure


def draw_factors(axes: Axes, curves: Sequence[FactorCurve], step: StepCertificate | None) -> None:
    """One curve a solver, proven at its dots, the line at 1, and the step that was asked for."""
    axes.set_title("one step of the solver")
    proven = [factor for curve in curves for factor in curve.factors if factor <= 1]
    if not proven:
        style.empty(axes, "no step is proven")
        return
    for k, curve in enumerate(curves):
        look: Any = {"color": COLOURS[k], "zorder": 3 + len(curves) - k}
        longest = "every dt" if math.isinf(curve.max_dt) else f"up to {down(curve.max_dt)}"
        label = f"{curve.solver}: {longest if curve.max_dt else 'no dt'}"
        axes.plot(curve.dts, curve.factors, ".", linestyle=DASHES[k % 3], label=label, **look)
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
    part = "layer" if certificate.of_layers else "module"
    axes.set_title(f"{part}s")
    known = [module for module in certificate.modules if math.isfinite(module.rate)]
    if not known:
        style.empty(axes, "nothing is proven")
        return
    kinds: Any = ((True, COLOURS[5], "", part), (False, COLOURS[4], "////", f"{part} that fails"))
    for certified, colour, hatch, label in kinds:
        rates = {module.index: module.rate for module in known if module.certified == certified}
        if rates:
            look: Any = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
            axes.bar(list(rates), list(rates.values()), width=0.8, label=label, **look)
    rate, count = certificate.rate, len(certificate.modules)
    finish_bars(axes, count, part, f"rate, at least ({PER_TAU})", rate, f"the whole: {down(rate)}")


def finish_bars(axes: Axes, count: int, part: str, what: str, whole: float, label: str) -> None:
    """The axes of bars, one a part, and a line for the whole, which is not seen unless it is finite."""
    height = whole if math.isfinite(whole) else np.nan
    axes.axhline(height, color=BLACK, linewidth=1.4, linestyle="--", label=label)
    axes.axhline(0, color=GREY, linewidth=0.8)
    if count <= style.NUMBERED:
        axes.set_xticks(range(count), map(str, range(count)), fontsize=8 if count <= 12 else 7)
    axes.set(xlabel=part, ylabel=what, xlim=(-0.7, count - 0.3))
    style.raised(axes, 0.35, loc="upper center")


@style.printed
def spectrum_figure(
    found: Sequence[Spectrum], before: Sequence[Spectrum], certificate: Certificate, *, title: str
) -> Figure:
    """Eigenvalues of J, of the step, and the largest real parts over time; `before` training too."""
    verdict = "certified" if certificate.certified else "NOT certified; eigenvalues prove nothing"
    figure, (left, middle, right) = style.new_figure(3.4, f"{title} ({verdict})", (1, 3))
    rate, no_step = certificate.rate, "this solver has no fixed step"
    if draw_along(left, found, before, "eigenvalues", "Jacobian", MAP):
        left.set(xlabel=f"real part ({PER_TAU})", ylabel=f"imaginary part ({PER_TAU})")
        if certificate.certified:
            left.axvline(-rate, label=f"certified: -rate = {up(-rate, 3)}", **CERTIFIED)
    if draw_along(middle, found, before, "step_eigenvalues", "one step", no_step):
        draw_circle(middle)
    draw_extremes(right, found, certificate)
    style.legend_below(figure, [left, middle, right], 3)
    return figure


def draw_along(
    axes: Axes, found: Sequence[Spectrum], before: Sequence[Spectrum], name: str, title: str, reason: str
) -> bool:
    """All eigenvalues of this name, dark to light by time; says the reason if there are none."""
    axes.set_title(title)
    if getattr(found[0], name) is None:
        style.empty(axes, reason)
        return False
    old, now = ([getattr(s, name).numpy().ravel() for s in some] for some in (before, found))
    if old:
        label = f"before training, samples: {len(old)}"
        style.draw_eigenvalues(axes, np.concatenate(old), COLOURS[3], label=label)
    times = np.concatenate([np.repeat(s.times.numpy(), s.x.shape[1]) for s in found])
    values, label = np.concatenate(now), f"now, samples: {len(now)}; dark to light: time"
    axes.scatter(values.real, values.imag, 5, times, lw=0, cmap="cividis", label=label)
    set_limits(axes, np.concatenate([*old, values]))
    if name == "eigenvalues":
        axes.set_xlim(right=max(axes.get_xlim()[1], 0.05))
    return True


def draw_extremes(axes: Axes, found: Sequence[Spectrum], certificate: Certificate) -> None:
    axes.set_title("largest real part over time")
    if any(s.abscissa is None for s in found):
        style.empty(axes, MAP)
        return
    axes.set(xlabel="time (unit of tau)", ylabel=PER_TAU)
    for s in found:
        bound = None if s.local_rates is None else -s.local_rates
        curves = (s.abscissa, 0, "o-", "of eig J"), (bound, 2, "s--", "of sym J in the metric")
        for values, k, line, label in curves:
            if values is not None:
                look: Any = {"color": COLOURS[k], "label": label, "markersize": 2.5, "lw": 1}
                axes.plot(s.times.numpy(), values.numpy(), line, **look)
    if certificate.certified:
        axes.axhline(-certificate.rate, **CERTIFIED)


def set_limits(axes: Axes, values: Any) -> None:
    """Round the complex values, but not so narrow that rounding errors fill a panel; with both axes."""
    least = 0.02 * max(float(np.abs(values).max()), 1e-9)
    for limits, part in ((axes.set_xlim, values.real), (axes.set_ylim, values.imag)):
        middle, half = (part.max() + part.min()) / 2, 0.55 * max(float(np.ptp(part)), least)
        limits(middle - half, middle + half)
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)


def draw_circle(axes: Axes) -> None:
    """The unit circle: whole and round where dots go round it, else the arc beside them, stretched."""
    angles, (left, right), limits = np.linspace(0, 2 * np.pi, 20_001), axes.get_xlim(), axes.get_ylim()
    axes.plot(np.cos(angles), np.sin(angles), color=BLACK, linewidth=0.9, zorder=1, label="unit circle")
    axes.set(xlabel="real part", ylabel="imaginary part", ylim=limits)
    axes.set_xlim(left, max(right, 1 + 0.05 * (1 - left)))
    if limits[1] > 0.5:  # the same unit on both axes, whose limits then may widen
        axes.set_autoscale_on(True)
        axes.set_aspect("equal", adjustable="datalim")


@style.printed
def contraction_figure(
    found: Measurement, twin: Measurement | None, proven: Certificate, *, title: str
) -> Figure:
    """Left: distances in the metric, with the certified envelope. Right: Euclidean, and the twin."""
    figure, (left, right) = style.new_figure(3.1, title, (1, 2))
    times = found.times.numpy()
    draw_pairs(left, times, found.distances.numpy(), COLOURS[0], "pairs")
    step = proven.step
    if proven.certified and not proven.of_layers:
        curve = np.exp(-proven.rate * times)
        left.plot(times, curve, color=BLACK, linewidth=1.3, linestyle=":", label="exp(-rate t), flow")
    if step is not None and step.certified and step.contraction_factor is not None:
        label = f"certified: {factor(step.contraction_factor)} a step"
        growth = math.sqrt(proven.metric.condition_number) if proven.of_layers else 1.0
        curve = growth * step.contraction_factor ** (times / step.dt)
        left.plot(times, curve, color=COLOURS[1], linewidth=1.5, linestyle="--", label=label)
    left.set_title("Euclidean" if proven.of_layers else "in the metric of the certificate")
    overshoot = draw_pairs(right, times, found.euclidean.numpy(), COLOURS[0], "pairs")
    right.set_title(f"Euclidean: at most {overshoot:.3g} times the start")
    if twin is not None:
        limits = right.get_ylim()
        label = "twin: the modules excite each other"
        draw_pairs(right, times, twin.euclidean.numpy(), COLOURS[3], label)
        right.set_ylim(limits[0], 3 * max(1.0, overshoot))
    for axes in (left, right):
        axes.set(xlabel="time (unit of tau)", ylabel="distance / distance at the start")
        style.log_axis(axes)
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.legend(fontsize=7)
    return figure


def draw_pairs(axes: Axes, times: Array, distances: Array, colour: str, label: str) -> float:
    """One thin line a pair, as long as it is finite and not zero; the largest value drawn."""
    axes.set_yscale("log")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = distances / distances[:, :1]
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    axes.plot(times, values.T, color=colour, linewidth=0.7, alpha=0.7)[0].set_label(label)
    return float(np.nanmax(values))


@style.printed
def lyapunov_figure(found: Lyapunov, *, bound: float | None, title: str) -> Figure:
    """Left: the mean so far against time. Right: the spectrum, with the certified bound."""
    figure, (left, right) = style.new_figure(3.0, title, (1, 2))
    times, exponents, errors = found.times.numpy(), found.exponents.numpy(), found.errors.numpy()
    k = len(exponents)
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, k))
    for index, line in enumerate(found.history.numpy().T):
        name = {0: "largest", k - 1: f"number {k}"}.get(index)
        left.plot(times, line, color=colours[index], linewidth=1, label=name)
    left.set(xlabel="time (unit of tau)", ylabel=f"mean so far ({PER_TAU})", title="running estimate")
    bars = np.where(np.isfinite(errors), errors, 0)
    look: Any = {"label": "exponent, standard error", "color": COLOURS[0], "ms": 3, "capsize": 2}
    right.errorbar(range(1, k + 1), exponents, bars, None, "o", **look)
    right.set(ylabel=f"exponent ({PER_TAU})", title="at the end")
    style.whole_numbers(right, "index")
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=0.8)
        if bound is not None:
            axes.axhline(bound, label=f"certified in the long run: {up(bound, 3)}", **CERTIFIED)
        style.raised(axes, 0.4, fontsize=7, loc="upper right")
    return figure


@style.printed
def fixed_points_figure(
    found: Sequence[FixedPoints], *, rate: float | None = None, title: str
) -> Figure:
    """Eigenvalues of J by the kind of their fixed point, those of all inputs; the boundary Re = 0."""
    counts = ", ".join(str(len(points)) for points in found)
    figure, axes = style.new_figure(3.4, f"{title}; fixed points of each input: {counts}", width=4.6)
    labels = {kind: f"{kind} fixed point" for kind in KINDS}
    for points in found:
        for kind, values in zip(points.kinds, points.eigenvalues.numpy(), strict=True):
            colour, marker = KINDS[kind]
            style.draw_eigenvalues(axes, values, COLOURS[colour], marker, labels.pop(kind, ""))
    if len(labels) == len(KINDS):
        style.empty(axes, "no fixed point was found")
        return figure
    axes.axvline(0, color=BLACK, linewidth=0.9)
    if rate is not None:
        axes.axvline(-rate, label=f"-rate = {up(-rate, 3)}, certified", **CERTIFIED)
    axes.set(xlabel=f"Re of eig J ({PER_TAU})", ylabel=f"Im ({PER_TAU})")
    style.raised(axes, 0.2, fontsize=7, loc="upper left")
    return figure


@style.printed
def gsc_figure(rows: Sequence[dict[str, Any]], *, title: str) -> Figure:
    """GSC(t, T), and the norm of the Jacobian with its certified bound, of rows with these keys."""
    curves = (
        ("gsc", "GSC(t, T)", COLOURS[0], "o-"),
        ("jacobian", "||dx(T) / dx(t)||, root mean square", COLOURS[2], "s--"),
        ("jacobian_bound", "its certified bound", COLOURS[1], ":"),
    )
    figure, axes = style.new_figure(3.2, title, width=4.8)
    axes.axhline(1, color=GREY, linewidth=0.8)
    for key, label, colour, line in curves:
        kept = [(row["step"], row[key]) for row in rows if row[key] is not None and row[key] > 0]
        if kept:
            points = zip(*kept, strict=True)
            axes.plot(*points, line, label=label, color=colour, markersize=3, linewidth=1.2)
    axes.set(xlabel="t (steps); the loss is at the last one", ylabel="gain from t to T", yscale="log")
    style.log_axis(axes)
    axes.legend(fontsize=7)
    return figure


@style.printed
def weights_figure(layer: Any, *, title: str) -> Figure:
    """Heat maps of W and of L, each with its own colours; ConfigError for what has no field."""
    if (field := getattr(layer, "field", None)) is None:
        got = f"{type(layer).__name__}, a baseline or a stack of layers"
        raise ConfigError(f"this picture is of one assembly; got {got}. Draw its curves.")
    figure, panels = style.new_figure(3.35, title, (1, 2))
    terms = field.terms().detach_cpu().double()
    matrices = {"W, within the modules": terms.weight(), "L, between the modules": terms.L}
    for axes, (title, A) in zip(panels, matrices.items(), strict=True):
        axes.set_title(title)
        if A is None:
            style.empty(axes, "no linear coupling")
            continue
        bound, extent = style.bound_of(A.numpy()), (0, A.shape[1], A.shape[0], 0)
        look: Any = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound, "interpolation": "nearest"}
        # Row 0 on top, in a thin frame; in an SVG or PDF too it is drawn pixel by pixel.
        image = axes.imshow(style.pooled(A.numpy()), extent=extent, **look)
        for spine in axes.spines.values():
            spine.set(visible=True, linewidth=0.5, color=GREY)
        # Thin lines between modules, unless there are so many that they would hide the entries.
        for edge in np.cumsum(terms.sizes)[:-1] if len(terms.sizes) <= style.NUMBERED else ():
            axes.axhline(edge, color="0.75", linewidth=0.3)
            axes.axvline(edge, color="0.75", linewidth=0.3)
        axes.set(xlabel="from unit", ylabel="to unit")
        figure.colorbar(image, ax=axes, shrink=0.85, extend="both").outline.set_linewidth(0.5)
    return figure
