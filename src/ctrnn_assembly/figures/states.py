"""The input of one sample, and the states that it drives."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures.style import (
    COLOURS,
    Array,
    borders,
    bound_of,
    colour_bar,
    heat_map,
    new_figure,
    printed,
)
from ctrnn_assembly.training.run import Run

SIDE = 1024


@printed
def states_figure(
    u: Array, x: Array, sizes: tuple[int, ...], dt: float | None, *, rgb: bool, title: str
) -> Figure:
    """Above: the input over time. Below: every unit as a row, module under module.

    Args:
        u: (T, m). x: the state after each sample, (T, n). sizes: of the modules.
        dt: time between samples, in the unit of tau; None for a network without a time.
        rgb: whether the three features are colours.
    """
    figure = new_figure(4.2, title)
    upper, lower = figure.subplots(2, 1, height_ratios=[1, 3], sharex=True)
    steps, m = u.shape
    step = 1.0 if dt is None else dt
    colours = (COLOURS[1], COLOURS[2], COLOURS[0]) if m == 3 else COLOURS
    names = ("red", "green", "blue") if m == 3 and rgb else tuple(str(k) for k in range(m))
    edges = [k * step for k in range(steps + 1)]
    for k in range(m):
        colour = colours[k % len(colours)]
        upper.stairs(u[:, k], edges, baseline=None, color=colour, linewidth=0.7, label=names[k])
    if 1 < m <= len(colours):
        upper.legend(loc="lower right", bbox_to_anchor=(1, 0.95), fontsize=8, ncols=m)
    upper.set_ylabel("input u" if m <= len(colours) else f"input u, {m} features")
    bound, beyond = bound_of(x)
    image = heat_map(lower, x.T, bound, side=SIDE)
    image.set_extent((0, steps * step, x.shape[1], 0))
    lower.set_aspect("auto")
    borders(lower, sizes, columns=False)
    lower.set_ylabel("unit")
    lower.set_xlabel("sample" if dt is None else "time t (unit of tau)")
    colour_bar(image, lower, "state x", pad=0.01, extend="both" if beyond else "neither")
    return figure


@torch.no_grad()
def draw_states(run: Run, sample: int = 0) -> Figure:
    """Input and states of one validation sample of a run's task, without its padding.

    Raises:
        ConfigError: for a sample that there is not; ConfigError, DataError: for data or weights.
    """
    task, model = run.task, run.model(double=True)
    if not 0 <= sample < len(task.val):
        raise ConfigError(
            f"the sample must be in 0..{len(task.val) - 1}, the validation samples; got {sample}."
        )
    part = task.val.take(torch.tensor([sample]))
    length = None if part.lengths is None else int(part.lengths[0])
    u = task.sequence(part.x)[:, :length].double()
    x = model.core(u)[0][0]
    guess, y = int(model(u).argmax()), int(part.y[0])
    title = f"{run.title}: validation sample {sample}, class {task.classes[y]}"
    field = getattr(model.core, "field", None)  # a baseline is one module, and may have no time
    sizes = (x.shape[1],) if field is None else field.terms().sizes
    return states_figure(
        u[0].numpy(),
        x.numpy(),
        sizes,
        getattr(model.core, "dt", None),
        rgb=task.train.x.ndim == 4 and "-planar" not in task.name,
        title=f"{title}, classified as {task.classes[guess]}",
    )
