"""From a run to the pictures of its network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctrnn_assembly.certificates.rounding import DENSE
from ctrnn_assembly.certificates.wording import up
from ctrnn_assembly.data import Task
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.figures.graph import graph_figure
from ctrnn_assembly.figures.metric import metric_figure
from ctrnn_assembly.figures.states import states_figure
from ctrnn_assembly.figures.weights import weights_figure
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.training.run import Run
from ctrnn_cli.anatomy import Anatomy

if TYPE_CHECKING:  # a second to import
    from matplotlib.figure import Figure


def open_run(run: Path, *, initial: bool = False) -> tuple[Anatomy, str]:
    """The network of a run taken apart, and what to call it.

    Raises:
        ConfigError: if it is no run, or of a baseline; DataError: if it has no weights yet.
    """
    opened = Run.open(run, initial=initial)
    one_thread(opened.config.modules * opened.config.units)
    return Anatomy.of(opened.network().core, opened.config.model), opened.title


def one_thread(units: int) -> None:
    """A second thread slows small matrices down, most of all on a busy machine."""
    if units <= DENSE:
        torch.set_num_threads(1)


def weights_portrait(anatomy: Anatomy, title: str) -> Figure:
    """W and L."""
    W = anatomy.terms.weight().numpy()
    return weights_figure(W, anatomy.blocks, anatomy.coupling, title=title)


def graph_portrait(anatomy: Anatomy, title: str) -> Figure:
    """Modules and couplings."""
    sizes, pairs = anatomy.terms.sizes, anatomy.terms.pairs
    units = "-".join(str(size) for size in sorted({min(sizes), max(sizes)}))
    count = f"{len(pairs)} pair{'s' if len(pairs) != 1 else ''}"
    named = anatomy.topology if anatomy.topology in ("none", count) else f"{anatomy.topology}, {count}"
    about = f"{title}: {len(sizes)} x {units} units, coupling {named}"
    return graph_figure(anatomy.strengths(), pairs, anatomy.topology, title=about)


def metric_portrait(anatomy: Anatomy, title: str) -> Figure:
    """The network's own metric."""
    values = anatomy.metric_eigenvalues()
    condition = max(float(v.max()) for v in values) / min(float(v.min()) for v in values)
    kind = "diagonal" if anatomy.metric.is_diagonal else "block-diagonal"
    return metric_figure(values, up(condition), title=f"{title}: metric of the modules, {kind}")


def states_portrait(run: Path, *, initial: bool, sample: int, data_dir: str | None) -> Figure:
    """Input and states of one validation sample.

    Raises:
        ConfigError: for a sample that there is not; ConfigError, DataError: for data or weights.
    """
    opened = Run.open(run, initial=initial, data_dir=data_dir)
    one_thread(opened.config.modules * opened.config.units)
    task, model = opened.task, opened.model(double=True)
    u, y = one_sample(task, sample)
    with torch.no_grad():
        x = model.core(u)[0][0]
        guess = int(model(u).argmax())
    about = f"{opened.title}: validation sample {sample}"
    title = f"{about}, class {task.classes[y]}, classified as {task.classes[guess]}"
    rgb = task.train.x.ndim == 4 and not task.name.endswith("-planar")
    sizes, dt = module_sizes(model), getattr(model.core, "dt", None)
    return states_figure(u[0].numpy(), x.numpy(), sizes, dt, rgb=rgb, title=title)


def one_sample(task: Task, sample: int) -> tuple[Tensor, int]:
    """Input (1, T, m) in float64 without padding, and class, of a validation sample.

    Raises:
        ConfigError: if there is none of this number.
    """
    if not 0 <= sample < len(task.val):
        raise ConfigError(
            f"--sample must be in 0..{len(task.val) - 1}, the validation samples; got {sample}."
        )
    part = task.val.take(torch.tensor([sample]))
    length = None if part.lengths is None else int(part.lengths[0])
    return task.sequence(part.x)[:, :length].double(), int(part.y[0])


def module_sizes(model: SequenceClassifier) -> tuple[int, ...]:
    """The sizes of the modules; of a baseline, one of all units."""
    if isinstance(model.core, CTRNN):
        return model.core.field.terms().sizes
    return (int(model.core.hidden_size),)  # type: ignore[arg-type]
