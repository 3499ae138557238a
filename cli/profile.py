"""`ctrnn train --profile`: where the time of a training run went, stage by stage.

A stopwatch runs through the stages of `trainer.fit`; every moment belongs to one of them, the innermost.
Lightning's profiler names most of them. The solver's forward pass is the core without the making of
weights from parameters; in the backward pass the border is where the gradients of the last of these
weights are known. On a GPU every border waits for it, so a profiled run is a little slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import torch
from lightning.pytorch.profilers import Profiler
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ctrnn_assembly.terms import Terms
from ctrnn_assembly.training.fit import Training

DATA, FORWARD, BACKWARD, WEIGHTS = "data", "solver forward", "solver backward", "parametrisation"
OPTIMISER, CERTIFICATE, VALIDATION = "optimiser", "certificate", "validation"
CHECKPOINT, OTHER = "checkpoint writing", "other"
STAGES = (
    DATA,
    FORWARD,
    BACKWARD,
    WEIGHTS,
    OPTIMISER,
    CERTIFICATE,
    VALIDATION,
    CHECKPOINT,
    OTHER,
)
WHOLE = (CERTIFICATE, VALIDATION, CHECKPOINT)  # what they call belongs to them
# Parts of the names of Lightning's actions; the first that fits. A training step and its backward pass
# run inside the step of the optimiser, and are not of it.
ACTIONS = (
    ("train_dataloader_next", DATA),
    ("val_next", VALIDATION),
    ("validation_step", VALIDATION),
    ("ModelCheckpoint", CHECKPOINT),
    (".training_step", OTHER),
    ("Strategy.backward", OTHER),
    ("optimizer_step", OPTIMISER),
    ("optimizer_zero_grad", OPTIMISER),
    ("gradient_clipping", OPTIMISER),
)


class Stopwatch:
    """Seconds of each stage; stages nest, and a moment counts for the innermost."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.clock, self.stack, self.since = clock, [OTHER], clock()

    def enter(self, stage: str) -> None:
        self._charge()
        self.stack.append(self.stack[-1] if self.stack[-1] in WHOLE else stage)

    def leave(self) -> None:
        self._charge()
        self.stack.pop()

    def become(self, stage: str) -> None:
        """From now on the innermost stage is another one."""
        self._charge()
        self.stack[-1] = stage

    def _charge(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = self.clock()
        self.seconds[self.stack[-1]] += now - self.since
        self.since = now


class Profile(Profiler):
    """A stopwatch driven by Lightning's actions and, once attached, by the parts of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Stopwatch()
        self.made: list[Tensor] = []  # the weights of the current step that were made from parameters

    def setup(self, *args: Any, **kwargs: Any) -> None:
        super().setup(*args, **kwargs)
        self.watch = Stopwatch()

    def start(self, action_name: str) -> None:
        stage = stage_of(action_name)
        if stage is not None:
            self.watch.enter(stage)

    def stop(self, action_name: str) -> None:
        if stage_of(action_name) is not None:
            self.watch.leave()

    def teardown(self, stage: str | None) -> None:
        self.watch.become(OTHER)  # counts what came last
        super().teardown(stage)

    def attach(self, training: Training) -> None:
        """Watch the certificate, the core and the making of its weights."""
        core: Any = training.model.core
        replace: Callable[..., None] = object.__setattr__  # a method of this one object
        replace(training, "certificate", self._timed(CERTIFICATE, training.certificate))
        field = getattr(core, "field", None)  # a baseline has none
        if field is not None:
            replace(field, "terms", self._timed(WEIGHTS, field.terms, self._keep))
        replace(core, "last", self._timed(FORWARD, core.last, self._follow_back))

    def _timed(
        self, stage: str, method: Callable[..., Any], then: Callable[[Any], None] | None = None
    ) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.watch.enter(stage)
            try:
                result = method(*args, **kwargs)
            finally:
                self.watch.leave()
            if then is not None and torch.is_grad_enabled():
                then(result)
            return result

        return timed

    def _keep(self, terms: Terms) -> None:
        self.made = [tensor for tensor in terms.tensors() if tensor.grad_fn is not None]

    def _follow_back(self, last: Tensor) -> None:
        """Have the backward pass say when it enters the solver, and when it leaves it."""
        if not last.requires_grad:
            return
        waiting = len(self.made)

        def known(gradient: Tensor) -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                self.watch.become(WEIGHTS)

        for tensor in self.made:
            tensor.register_hook(known)
        last.register_hook(lambda gradient: self.watch.become(BACKWARD))
        self.made = []


def stage_of(action: str) -> str | None:
    """The stage of one of Lightning's actions; None where it does not matter."""
    return next((stage for part, stage in ACTIONS if part in action), None)


def show_profile(seconds: dict[str, float], *, err: bool) -> None:
    """The table, and the share that is not the solver's."""
    total = sum(seconds.values())
    table = Table("", "seconds", "share", title="where the time of training went")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.3f}", f"{100 * value / total:.1f} %")
    table.add_section()
    table.add_row("total", f"{total:.3f}", "100.0 %")
    Console(stderr=err).print(table)
    outside = total - seconds[FORWARD] - seconds[BACKWARD]
    click.echo(f"outside the solver: {100 * outside / total:.1f} % of the time of training", err=err)
