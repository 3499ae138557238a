"""An assembly taken apart: its weights, graph, metric and eigenvalues; and its states over time."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from ctrnn_assembly.certificates.wording import up
from ctrnn_assembly.diagnostics import flow_jacobian, step_jacobian
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures import style
from ctrnn_assembly.figures.diagnostics import Values, draw_circle, make_square, set_limits
from ctrnn_assembly.figures.style import COLOURS, GREY, PER_TAU, Array
from ctrnn_assembly.schemes import GRID_SOLVERS
from ctrnn_assembly.topology import recognise
from ctrnn_assembly.training.run import Run

ABOVE_ZERO = 1e-9  # at 0 itself the slope of ReLU would be 0, and J = -I + L whatever W is
ENLARGED, IN_A_ROW = 16, 8  # blocks of W
STATES_SIDE = 1024  # cells of a heat map of states


class NetworkArrays:
    """The field of a layer without its gates, and the metric of its modules' own theorems, in float64.

    ConfigError for a baseline, which has neither.
    """

    def __init__(self, layer: Any, title: str) -> None:
        field = getattr(layer, "field", None)
        if field is None:
            raise ConfigError(
                f"this picture is of one assembly; got {type(layer).__name__}, a baseline or a stack of "
                "layers. Draw its curves or states."
            )
        self.layer, self.title = layer, title
        self.terms = field.terms().detach_cpu().double()
        self.metric = field.metric().detach_cpu().mapped(torch.Tensor.double)
        self.has_step = layer.solver in GRID_SOLVERS
        parts = f" in {layer.substeps} substeps" if layer.substeps > 1 else ""
        self.about_step = f"{layer.solver}, dt {layer.dt:g}{parts}"
        if not self.has_step:
            self.about_step = f"{layer.solver} chooses its own steps"

    def strengths(self) -> Array:
        """Spectral norms in the metric, (p, p): W_i on the diagonal, L_ij, from j to i, beside it."""
        terms, theta = self.terms, self.metric.theta()
        A = terms.weight() if terms.L is None else terms.weight() + terms.L
        K = torch.linalg.solve(theta, theta @ A, left=False)
        blocks = [row.split(terms.sizes, dim=1) for row in K.split(terms.sizes, dim=0)]
        found = np.zeros((len(blocks), len(blocks)))
        own = ((k, k) for k in range(len(blocks)))
        for i, j in [*own, *terms.pairs, *(pair[::-1] for pair in terms.pairs)]:
            found[i, j] = float(torch.linalg.matrix_norm(blocks[i][j], ord=2))
        return found

    def metric_eigenvalues(self) -> list[Array]:
        """Of diag(tau) M, (n_i,) for each module; a dense M_i has one tau."""
        scaled = self.metric.scaled(self.terms.tau.sqrt())
        return [factor.eigenvalues().numpy() for factor in scaled.factors]

    @cached_property
    def spectra(self) -> dict[str, Values]:
        """Eigenvalues of W, of J just above x = 0 under no input, and, if there are, L and a step."""
        x = torch.full((1, self.terms.n), ABOVE_ZERO, dtype=torch.float64)
        u = x.new_zeros(1, self.layer.input_size)
        found = {"W": self.terms.weight(), "J": flow_jacobian(self.layer, u, x)[0]}
        if self.terms.L is not None:
            found["L"] = self.terms.L
        if self.has_step:
            found["step"] = step_jacobian(self.layer, u, x)[0]
        return {name: torch.linalg.eigvals(A).numpy() for name, A in found.items()}


@style.printed
def draw_weights(net: NetworkArrays) -> Figure:
    """Heat maps. Top: W and L, each with its own colours. Below: the blocks of W enlarged."""
    blocks, L = [block.numpy() for block in net.terms.blocks], net.terms.L
    shown = blocks[:ENLARGED] if len(blocks) > 1 else []
    rows = -(-len(shown) // IN_A_ROW)
    figure = style.new_figure(3.35 + 1.05 * rows, net.title)
    frame = figure.add_gridspec(1 + bool(rows), 1, height_ratios=[3.1, 1.05 * rows][: 1 + bool(rows)])
    left, right = figure.add_subfigure(frame[0]).subplots(1, 2)
    norm = draw_matrix(left, net.terms.weight().numpy(), net.terms.sizes, "W, within the modules")
    if L is None:
        right.set_title("L, between the modules")
        style.empty(right, "no linear coupling")
    else:
        draw_matrix(right, L.numpy(), net.terms.sizes, "L, between the modules")
    if not rows:
        return figure
    count = "" if len(shown) == len(blocks) else f", the first {len(shown)} of {len(blocks)}"
    below = figure.add_subfigure(frame[1])
    below.suptitle(f"the modules enlarged, in the colours of W{count}", fontsize=9)
    for k, axes in enumerate(below.subplots(rows, IN_A_ROW, squeeze=False).flat):
        if k >= len(shown):
            axes.axis("off")
            continue
        style.heat_map(axes, shown[k], norm, side=128)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(str(k), fontsize=8, labelpad=2)
    return figure


def draw_matrix(axes: Axes, A: Array, sizes: tuple[int, ...], title: str) -> Normalize:
    """One matrix with its colour bar; returns the scale of its colours."""
    bound, beyond = style.bound_of(A)
    norm = Normalize(-bound, bound)
    image = style.heat_map(axes, A, norm)
    style.borders(axes, sizes)
    axes.set(title=title, xlabel="from unit", ylabel="to unit")
    style.colour_bar(image, axes, shrink=0.85, extend="both" if beyond else "neither")
    return norm


@style.printed
def draw_graph(net: NetworkArrays) -> Figure:
    """Left: modules and couplings. Right: their norms in the metric as a matrix, row from column."""
    strengths, pairs, sizes = net.strengths(), net.terms.pairs, net.terms.sizes
    p, topology = len(sizes), recognise(pairs, len(sizes))
    units = "-".join(str(size) for size in sorted({min(sizes), max(sizes)}))
    count = f"{len(pairs)} pair{'s' if len(pairs) != 1 else ''}"
    named = topology if topology in ("none", count) else f"{topology}, {count}"
    figure = style.new_figure(3.7, f"{net.title}: {p} x {units} units, coupling {named}")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    own = [f"{norm:.3g}" for norm in (strengths.diagonal().min(), strengths.diagonal().max())]
    about = f"of W: {' to '.join(dict.fromkeys(own))}"
    at, between = places(p, topology), np.where(np.eye(p) > 0, np.nan, strengths)
    between = np.where(between > 0, between, np.nan)
    radius = min(0.13, 2.2 / p)  # neighbours on the circle do not touch
    draw_modules(left, at, radius)
    if not pairs or np.isnan(between).all():
        style.empty(right, f"no linear coupling\nnorm in the metric {about}")
        return figure
    low, high = float(np.nanmin(between)), float(np.nanmax(between))
    norm = Normalize(low if low < 0.99 * high else 0.9 * low, high)
    colours = ScalarMappable(norm, style.SEQUENTIAL)
    draw_couplings(left, strengths, pairs, at, radius, colours)
    image = style.heat_map(right, between, norm, colours=style.SEQUENTIAL, side=max(p, style.SIDE))
    image.set_extent((-0.5, p - 0.5, p - 0.5, -0.5))
    style.module_ticks(right, p, vertical=True)
    right.set(xlabel="from module", ylabel="to module", title=f"norms in the metric; {about}")
    style.colour_bar(colours, right, "norm of L in the metric", shrink=0.85)
    return figure


def places(p: int, topology: str) -> Array:
    """Where the modules stand, (p, 2): on a circle, clockwise from the top; the hub of a star inside."""
    if p == 1:
        return np.zeros((1, 2))
    hub = int(topology == "star")
    angles = np.pi / 2 - 2 * np.pi * np.arange(p - hub) / (p - hub)
    return np.concatenate([np.zeros((hub, 2)), np.stack([np.cos(angles), np.sin(angles)], 1)])


def draw_couplings(
    axes: Axes, strengths: Array, pairs: Any, at: Array, radius: float, colours: ScalarMappable
) -> None:
    """Strong ones last, so that they lie on top; an arrow where only one direction is coupled."""
    widest = max(0.8, min(3.0, 90 / len(pairs)))
    for i, j in sorted(pairs, key=lambda pair: max(strengths[pair], strengths[pair[::-1]])):
        there, back = strengths[j, i], strengths[i, j]
        strength = max(there, back)
        width = 0.3 + (widest - 0.3) * strength / (colours.norm.vmax or 1.0)
        look: dict[str, Any] = {"color": colours.to_rgba(strength), "linewidth": width}
        start, end = (at[i], at[j]) if there >= back else (at[j], at[i])
        if min(there, back) > 0:
            axes.plot(*np.stack([start, end]).T, **look, zorder=1)
            continue
        inset = (end - start) / float(np.linalg.norm(end - start)) * radius * 1.1
        arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **look}
        axes.annotate("", end - inset, start + inset, arrowprops=arrow, zorder=1)


def draw_modules(axes: Axes, at: Array, radius: float) -> None:
    p = len(at)
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": "black", "linewidth": 0.9, "zorder": 2}
    for k, (x, y) in enumerate(at):
        axes.add_patch(Circle((x, y), radius, **look))
        if p <= 2 * style.NUMBERED:
            size = 9 if p <= 16 else 6
            axes.text(x, y, str(k), ha="center", va="center", fontsize=size, zorder=3)
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    axes.axis("off")


@style.printed
def draw_metric(net: NetworkArrays) -> Figure:
    """The eigenvalues of the network's own metric: a rising row of dots for each module."""
    eigenvalues = net.metric_eigenvalues()
    low, high = (float(f([f(values) for values in eigenvalues])) for f in (np.min, np.max))
    kind = "diagonal" if net.metric.is_diagonal else "block-diagonal"
    figure = style.new_figure(2.9, f"{net.title}: metric of the modules, {kind}")
    axes = figure.subplots()
    size = max(1.0, min(4.0, 900 / net.terms.n))
    for k, values in enumerate(eigenvalues):
        across = k + np.linspace(-0.36, 0.36, len(values)) if len(values) > 1 else np.array([k])
        axes.plot(across, np.sort(values), "o", color=COLOURS[k % 2], markersize=size, mew=0)
    for value in (low, high):
        axes.axhline(value, color=GREY, linewidth=0.7, linestyle=(0, (4, 2)))
    room = max((high / low) ** 0.15, 1.6)
    axes.set_ylim(low / room, high * room)
    style.log_axis(axes)
    style.module_ticks(axes, len(eigenvalues))
    axes.set_xlabel("module; its eigenvalues from the smallest to the largest")
    axes.set_ylabel("eigenvalue of diag(tau) M")
    place: dict[str, Any] = {"ha": "right", "va": "center", "transform": axes.get_yaxis_transform()}
    said = f"condition number {up(high / low)}"
    axes.text(0.995, high * room**0.5, said, fontsize=8, color=GREY, **place)
    return figure


@style.printed
def draw_spectra(net: NetworkArrays) -> Figure:
    """Eigenvalues of W, L, J and of one step; panels without eigenvalues say why."""
    figure, found = style.new_figure(5.4, f"{net.title}: eigenvalues"), net.spectra
    panels = dict(zip(("W", "L", "J", "step"), figure.subplots(2, 2).flat, strict=True))
    titles = {"W": "W", "L": "L", "step": "one step"}
    titles["J"] = f"Jacobian just above x = 0 ({PER_TAU}); shaded: growth"
    missing = {"L": "no linear coupling", "step": net.about_step}
    for name, axes in panels.items():
        axes.set_title(titles[name])
        if name not in found:
            style.empty(axes, missing[name])
            continue
        size = 3.0 if len(found[name]) <= 128 else 2.2
        style.draw_eigenvalues(axes, found[name], COLOURS[0], size=size)
        set_limits(axes, found[name])
        axes.set(xlabel="real part", ylabel="imaginary part")
    make_square(panels["W"])
    low, high = panels["J"].get_xlim()
    panels["J"].axvspan(0, 1e6, color=COLOURS[1], alpha=0.12, linewidth=0)
    panels["J"].set_xlim(low, max(high, 0.1 * (high - low)))
    if net.has_step:
        panels["step"].set_title(f"{net.about_step}; unit circle")
        draw_circle(panels["step"])
    return figure


@style.printed
@torch.no_grad()
def draw_states(run: Run, sample: int = 0) -> Figure:
    """One validation sample of a run's task, without its padding.

    Above: the input over time. Below: every unit as a row, module under module.
    """
    task, model = run.task, run.build(double=True)
    if not 0 <= sample < len(task.val):
        raise ConfigError(
            f"the sample must be in 0..{len(task.val) - 1}, the validation samples; got {sample}."
        )
    part = task.val.take(torch.tensor([sample]))
    length = None if part.lengths is None else int(part.lengths[0])
    u = task.sequence(part.x)[:, :length].double()
    x = model.core(u)[0][0].T.numpy()  # (n, T)
    guess = task.classes[int(model(u).argmax())]
    title = f"validation sample {sample}, class {task.classes[int(part.y[0])]}, classified as {guess}"
    figure = style.new_figure(4.2, f"{run.title}: {title}")
    upper, lower = figure.subplots(2, 1, height_ratios=[1, 3], sharex=True)
    dt = getattr(model.core, "dt", None)  # a baseline may have no time
    T, m = u.shape[1:]
    step = 1.0 if dt is None else dt
    rgb = m == 3 and part.x.ndim == 4 and "-planar" not in task.name
    colours = (COLOURS[1], COLOURS[2], COLOURS[0]) if m == 3 else COLOURS
    names = ("red", "green", "blue") if rgb else tuple(str(k) for k in range(m))
    edges = [k * step for k in range(T + 1)]
    for k, values in enumerate(u[0].T.numpy()):
        colour = colours[k % len(colours)]
        upper.stairs(values, edges, baseline=None, color=colour, linewidth=0.7, label=names[k])
    if 1 < m <= len(colours):
        upper.legend(loc="lower right", bbox_to_anchor=(1, 0.95), fontsize=8, ncols=m)
    upper.set_ylabel("input u" if m <= len(colours) else f"input u, {m} features")
    bound, beyond = style.bound_of(x)
    image = style.heat_map(lower, x, Normalize(-bound, bound), side=STATES_SIDE)
    image.set_extent((0, T * step, len(x), 0))
    lower.set_aspect("auto")
    field = getattr(model.core, "field", None)  # a baseline is one module
    style.borders(lower, (len(x),) if field is None else field.terms().sizes, columns=False)
    lower.set(ylabel="unit", xlabel="sample" if dt is None else "time t (unit of tau)")
    style.colour_bar(image, lower, "state x", pad=0.01, extend="both" if beyond else "neither")
    return figure


NETWORK_FIGURES = {
    "weights": draw_weights,
    "graph": draw_graph,
    "metric": draw_metric,
    "spectra": draw_spectra,
}
