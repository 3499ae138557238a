"""`ctrnn train --profile`: where the time of training goes, by `torch.profiler`.

Recorded are the first steps of a run, the validation and the certificate that end its first epoch. The
stages are `record_function` blocks of `fit`; what one stage calls counts for it. On a GPU the seconds of
a stage are those in which it keeps the processor.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from rich.console import Console
from rich.table import Table

STAGES = ("data", "forward", "backward", "optimiser", "validation", "certificate")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes its own news to stderr
STEPS = 5  # recorded: a step is tens of thousands of operations
OPERATIONS = 10


class Profile:
    """Calls and seconds by name: of stages with what they call, of operations without."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs inside."""
        kinds = torch.profiler.ProfilerActivity
        activities = [kinds.CPU, kinds.CUDA] if torch.cuda.is_available() else [kinds.CPU]
        with torch.profiler.profile(activities=activities) as found:
            yield
        for event in found.key_averages():
            own = event.self_cpu_time_total + getattr(event, "self_device_time_total", 0)
            self.calls[event.key] += event.count
            self.seconds[event.key] += (event.cpu_time_total if event.key in STAGES else own) / 1e6

    def show(self, console: Console) -> None:
        """Print the seconds of each stage, and the operations that took longest."""
        operations = sorted(self.seconds.keys() - set(STAGES), key=lambda name: -self.seconds[name])
        total = sum(self.seconds[name] for name in STAGES) or 1.0
        for what, names in {"stage": STAGES, "operation": operations[:OPERATIONS]}.items():
            table = Table(what, "calls", "seconds", "share", title=f"time of training by {what}")
            for column in table.columns[1:]:
                column.justify = "right"
            for name in names:
                share = f"{100 * self.seconds[name] / total:.1f} %"
                table.add_row(name[:60], f"{self.calls[name]}", f"{self.seconds[name]:.4f}", share)
            console.print(table)


def recording(profile: Profile | None) -> AbstractContextManager[None]:
    """The context in which a profile records; nothing without one."""
    return nullcontext() if profile is None else profile.recording()
