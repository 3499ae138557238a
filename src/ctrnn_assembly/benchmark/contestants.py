"""The table of contestants: a row is a name, how it is built, and what it can be compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch

from ctrnn_assembly.benchmark import baselines, torchdyno_core
from ctrnn_assembly.benchmark.operations import (
    Kind,
    assembly_operations,
    imex_operations,
    recurrent_operations,
)
from ctrnn_assembly.benchmark.ours import ours
from ctrnn_assembly.benchmark.problem import Blocks, Problem
from ctrnn_assembly.benchmark.task import Task
from ctrnn_assembly.errors import ConfigError

Backend = Literal["adjoint", "graph", "persistent"]
GPU_BACKENDS = ("graph", "persistent")


@dataclass(frozen=True)
class Contestant:
    """One way to solve a problem.

    Args:
        build: prepares it for a problem.
        operations: the useful operations of a solve.
        blocks: the modules of its problem.
        backend: of ours; None for the others.
        products: precision of the operands of its products; its rate is then that of such products.
        coupled: whether it has a coupling; the others count under the coupling "all".
        sparse: whether its cost depends on the coupling; else a slow one need not be timed for each.
        tolerance: of states and gradients from those of `reference`, as relative norms; None where
            the equations are others.
        reference: the plain loop of its steps.
    """

    name: str
    build: Callable[[Problem], Task]
    operations: Callable[[Problem, Kind], int] = assembly_operations
    blocks: Blocks = "dense"
    backend: str | None = None
    products: Literal["full", "tf32", "bf16"] = "full"
    coupled: bool = True
    sparse: bool = False
    tolerance: float | None = None
    reference: Callable[[Problem], Task] = baselines.plain_loop

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("ours-")


def _backend(backend: Backend) -> tuple[Contestant, ...]:
    """One backend of our Euler solver, on every kind of field that it is for."""
    build = partial(ours, method="euler", backend=backend)
    euler = partial(Contestant, backend=backend, sparse=True, tolerance=1e-5)
    rows = (
        euler(f"ours-{backend}", build),
        euler(f"ours-{backend}-bf16", partial(build, products="bf16"), products="bf16", tolerance=1e-2),
        euler(f"ours-{backend}-tf32", partial(build, products="tf32"), products="tf32", tolerance=1e-3),
        euler(f"ours-adadiag-{backend}", build, blocks="diagonal"),
        euler(f"ours-sparse-frozen-{backend}", build, blocks="sparse"),
    )
    if backend == "persistent":  # which stores every state
        return rows
    return (*rows, euler(f"ours-{backend}-sqrt", partial(build, checkpoint="sqrt")))


CONTESTANTS: tuple[Contestant, ...] = (
    *(row for backend in get_args(Backend) for row in _backend(backend)),
    Contestant(
        "ours-imex",
        partial(ours, method="imex", backend="adjoint"),
        imex_operations,
        tolerance=1e-5,
        reference=baselines.plain_imex,
    ),
    Contestant("plain-loop", baselines.plain_loop, tolerance=1e-5),
    Contestant("torchdiffeq-euler", baselines.torchdiffeq_euler, tolerance=1e-5),
    Contestant("nn.RNN", baselines.rnn, partial(recurrent_operations, gates=1), coupled=False),
    Contestant("nn.LSTM", baselines.lstm, partial(recurrent_operations, gates=4), coupled=False),
    Contestant("torchdyno-adadiag", torchdyno_core.adadiag, blocks="diagonal"),
    Contestant("torchdyno-scn", torchdyno_core.scn),
    Contestant("torchdyno-scn-frozen", torchdyno_core.scn_frozen, blocks="sparse"),
)


def present(contestant: Contestant, device: str) -> bool:
    """Whether a contestant can run here."""
    needs_gpu = contestant.backend in GPU_BACKENDS or contestant.products == "tf32"
    if needs_gpu and not (device == "cuda" and torch.cuda.is_available()):
        return False
    return torchdyno_core.is_installed() or not contestant.name.startswith("torchdyno")


def chosen(device: str, backends: Sequence[str] = (), only: Sequence[str] = ()) -> list[Contestant]:
    """The contestants to time on a device: of ours those of the given backends, of all those named."""
    return [
        contestant
        for contestant in CONTESTANTS
        if present(contestant, device)
        and (not only or contestant.name in only)
        and (not backends or not contestant.is_ours or contestant.backend in backends)
    ]


def check_choice(devices: Sequence[str], backends: Sequence[str], only: Sequence[str]) -> None:
    """Refuse backends and names of which there is nothing on any of the devices.

    Raises:
        ConfigError: naming the first, and what there is.
    """
    here = [contestant for device in devices for contestant in chosen(device)]
    usable = dict.fromkeys(c.backend for c in here if c.backend)
    names = dict.fromkeys(c.name for c in here)
    where = " or ".join(devices)
    for backend in backends:
        if backend not in usable:
            raise ConfigError(
                f"backend {backend!r} cannot run on {where}; there are: {', '.join(usable)}. "
                "Leave --backend out."
            )
    for name in only:
        if name not in names:
            raise ConfigError(
                f"contestant {name!r} cannot run on {where}; there are: {', '.join(names)}."
            )
