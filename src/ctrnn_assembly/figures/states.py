"""The input of one sample, and the states that it drives."""

import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures import style
from ctrnn_assembly.training.run import Run

SIDE = 1024


@style.printed
@torch.no_grad()
def draw_states(run: Run, sample: int = 0) -> Figure:
    """One validation sample of a run's task, without its padding.

    Above: the input over time. Below: every unit as a row, module under module.

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
    x = model.core(u)[0][0].T.numpy()  # (n, T)
    guess = task.classes[int(model(u).argmax())]
    title = f"validation sample {sample}, class {task.classes[int(part.y[0])]}, classified as {guess}"
    figure = style.new_figure(4.2, f"{run.title}: {title}")
    upper, lower = figure.subplots(2, 1, height_ratios=[1, 3], sharex=True)
    dt = getattr(model.core, "dt", None)  # a baseline may have no time
    T, m = u.shape[1:]
    step = 1.0 if dt is None else dt
    rgb = m == 3 and part.x.ndim == 4 and "-planar" not in task.name
    colours = (style.COLOURS[1], style.COLOURS[2], style.COLOURS[0]) if m == 3 else style.COLOURS
    names = ("red", "green", "blue") if rgb else tuple(str(k) for k in range(m))
    edges = [k * step for k in range(T + 1)]
    for k, values in enumerate(u[0].T.numpy()):
        colour = colours[k % len(colours)]
        upper.stairs(values, edges, baseline=None, color=colour, linewidth=0.7, label=names[k])
    if 1 < m <= len(colours):
        upper.legend(loc="lower right", bbox_to_anchor=(1, 0.95), fontsize=8, ncols=m)
    upper.set_ylabel("input u" if m <= len(colours) else f"input u, {m} features")
    bound, beyond = style.bound_of(x)
    image = style.heat_map(lower, x, Normalize(-bound, bound), side=SIDE)
    image.set_extent((0, T * step, len(x), 0))
    lower.set_aspect("auto")
    field = getattr(model.core, "field", None)  # a baseline is one module
    style.borders(lower, (len(x),) if field is None else field.terms().sizes, columns=False)
    lower.set(ylabel="unit", xlabel="sample" if dt is None else "time t (unit of tau)")
    style.colour_bar(image, lower, "state x", pad=0.01, extend="both" if beyond else "neither")
    return figure
