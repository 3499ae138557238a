"""Batches of a split in memory, in an order that depends on (seed, epoch) only; and its measures."""

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.certificates.result import finite
from ctrnn_assembly.data import Split, Task
from ctrnn_assembly.data.targets import MEASURES, known, measures_of
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.layers import SequenceClassifier

# Input, classes, and what else is given: `Split.given`.
Batch = tuple[Tensor, Tensor, dict[str, Any]]


@dataclass(eq=False)
class Batches:
    """Batches of a split in memory, with a seed shuffled and augmented by one of (seed, epoch).

    `noise` is that of `noisy`; `share` a process's rank, and the number of processes.
    """

    task: Task
    split: Split
    batch_size: int
    _: KW_ONLY
    seed: int | None = None
    noise: float = 0.0
    share: tuple[int, int] = (0, 1)
    epoch: int = 0

    def to(self, device: torch.device) -> None:
        """Move the data to the device if they fit into half of its free memory."""
        split = self.split
        if device.type == "cuda" and split.x.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            self.split = Split(**{k: x.to(device) for k, x in vars(split).items() if x is not None})

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.split) / self.share[1]) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        generator, order = None, torch.arange(len(self.split))
        rank, count = self.share
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(len(self.split), generator=generator)
            # Gradients are averaged over processes: each takes as many steps.
            order = torch.cat([order, order[: -len(order) % count]])
        order = order[rank::count].to(self.split.x.device)
        for index in order.split(self.batch_size) if len(order) else ():
            part = self.split.take(index)
            u = self.task.sequence(part.x, generator)
            if self.noise and generator is not None:
                u = noisy(u, part.lengths, self.noise, generator)
            yield u, part.y, part.given


def timed(model: SequenceClassifier, given: dict[str, Any]) -> dict[str, Any]:
    """What a batch gives, where the model is, with its dt in the model's time."""
    device, core = model.readout.weight.device, model.core
    scales = {"lengths": 1, "dt": getattr(core, "dt", None)}
    if "dt" in given and scales["dt"] is None:
        raise ConfigError("a baseline has no dt for samples that are not equally far apart. Drop time.")
    return {k: part if part is None else scales[k] * part.to(device) for k, part in given.items()}


def noisy(u: Tensor, lengths: Tensor | None, amount: float, generator: torch.Generator) -> Tensor:
    """u (batch, time, m) with noise of `amount` standard deviations of each channel's valid steps."""
    steps = torch.arange(u.shape[1], device=u.device)
    valid = u.flatten(0, 1) if lengths is None else u[steps < lengths[:, None]]
    noise = torch.randn(u.shape, generator=generator, dtype=u.dtype).to(u.device)
    return u + amount * valid.std(0, correction=0) * noise


@torch.no_grad()
def outputs_of(model: SequenceClassifier, split: Split) -> Tensor:
    """What a net puts out of series as they are stored, (N, k) or (N, T, k) float64 on the CPU."""
    weight, found = model.eval().readout.weight, []
    for index in torch.arange(len(split)).split(256):
        part = split.take(index)
        found.append(model(part.x.to(weight), **timed(model, part.given)).double().cpu())
    return torch.cat(found)


@torch.no_grad()
def answers(
    model: SequenceClassifier, batches: Batches, forward: Any = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and y of all batches, where the model is; a DataError for a class that it does not know.
    `forward` may stand in for the model: (input, lengths=..., dt=...) -> logits."""
    weight, y = model.eval().readout.weight, batches.split.y
    last = y.shape[-1] - 1 if y.is_floating_point() else int(y.max())
    for u, y, given in batches:
        logits = (forward or model)(u.to(weight), **timed(model, given))
        if logits.shape[-1] <= last:
            what = f"has a class {last}, which does not fit the model's {logits.shape[-1]} outputs"
            raise DataError(f"{batches.task.name} {what}. Use the task that it was trained on.")
        yield logits, y.to(weight.device)


def evaluate(model: SequenceClassifier, batches: Batches) -> Tensor:
    """`sums_of` all batches, on the model's device."""
    zero = torch.zeros((), device=model.readout.weight.device)
    return sum((sums_of(batches.task.loss(*a), *a) for a in answers(model, batches)), zero)


def sums_of(loss: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    """Summed loss, correct classes and how many are `known` of one batch, (3,), from its mean loss; in
    float64 to sum over an epoch, where the device has it."""
    count = known(y).sum()
    correct = 0 * count if y.is_floating_point() else (logits.detach().argmax(-1) == y).sum()
    sums = torch.stack([loss.detach() * count, correct, count])
    return sums if sums.device.type == "mps" else sums.double()


def measure(
    model: SequenceClassifier, task: Task, split: Split, forward: Any = None
) -> dict[str, float | None]:
    """`measures_of` a split, by `forward` as in `answers`; the MSE in the data's own unit, or None."""
    outputs = [logits for logits, _ in answers(model, Batches(task, split, 256), forward)]
    found = dict.fromkeys(MEASURES, math.nan) | measures_of(torch.cat(outputs).cpu(), split.y)
    if task.unit:
        found["mse"] = (found["mse"] * torch.tensor(task.unit).double().square()).mean()
    return {name: finite(float(x)) for name, x in found.items()}
