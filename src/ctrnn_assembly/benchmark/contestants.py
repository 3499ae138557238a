"""The table of contestants: a row is a name, how it is built, and what it can be compared with.

Useful operations are those of the products that a solve needs, a multiplication and an addition
counted as two. One step forward multiplies every sample with every entry of the coupling and of the
weights once. The backward pass does the same with the transposed matrices, for the adjoint, and once
more for the gradient of every entry that is trained. Elementwise work and the single input are left
out: a share of the product rate that is computed from these is what was used of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ctrnn_assembly.benchmark import rivals
from ctrnn_assembly.benchmark.problem import Blocks, Problem
from ctrnn_assembly.benchmark.rivals import Workload
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.solvers import solve

Kind = Literal["forward", "forward_backward"]
KINDS: tuple[Kind, ...] = ("forward", "forward_backward")
Backend = Literal["fused", "graph", "persistent"]
GPU_BACKENDS = ("graph", "persistent")
Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
}
Entries = Callable[[Problem], tuple[int, int]]


def assembly_entries(problem: Problem) -> tuple[int, int]:
    """Entries of coupling and weights, and how many of these are trained.

    L has n^2 where it is dense, else 2 C k^2 for C pairs of modules of k units; the weights n if they
    are diagonal, p k^2 if dense, and those that are not 0 if sparse, which are frozen.
    """
    n, k = problem.n, problem.units
    coupling = n**2 if problem.dense else 2 * len(problem.pairs) * k**2
    if problem.blocks == "sparse":
        return coupling + sum(int(W.count_nonzero()) for W in problem.terms.blocks), coupling
    weights = n if problem.blocks == "diagonal" else problem.modules * k**2
    return coupling + weights, coupling + weights


def imex_entries(problem: Problem) -> tuple[int, int]:
    """The two matrices of an implicit step are dense whatever the coupling is."""
    entries = 2 * problem.n**2 + problem.modules * problem.units**2
    return entries, entries


def dense_entries(problem: Problem, gates: int = 1) -> tuple[int, int]:
    """n^2 a gate: of nn.RNN 1, of nn.LSTM 4."""
    return gates * problem.n**2, gates * problem.n**2


@dataclass(frozen=True)
class Contestant:
    """One way to solve a problem.

    Args:
        build: prepares it for a problem.
        entries: of a problem, the matrix entries that a step needs, and those that are trained.
        blocks: the modules of its problem.
        backend: of ours; None for the others.
        precision: of the operands of its products; its rate is then that of such products.
        coupled: whether it has a coupling; the others count under the coupling "all".
        sparse: whether its cost depends on the coupling; else a slow one need not be timed for each.
        tolerance: of states and gradients from those of `reference`, as relative norms; None where
            the equations are others.
        reference: the plain loop of its steps.
    """

    name: str
    build: Callable[[Problem], Workload]
    entries: Entries = assembly_entries
    blocks: Blocks = "dense"
    backend: str | None = None
    precision: Precision = "float32"
    coupled: bool = True
    sparse: bool = False
    tolerance: float | None = None
    reference: Callable[[Problem], Workload] = rivals.plain_loop

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("ours-")

    def operations(self, problem: Problem, kind: Kind) -> int:
        """The useful operations of one run, as the file defines them."""
        entries, trained = self.entries(problem)
        backward = 0 if kind == "forward" else entries + trained
        return 2 * problem.steps * problem.batch * (entries + backward)

    def is_present(self, device: str) -> bool:
        """Whether it can run here."""
        needs_gpu = self.backend in GPU_BACKENDS or self.precision == "tf32"
        if needs_gpu and not (device == "cuda" and torch.cuda.is_available()):
            return False
        return rivals.has_torchdyno() or not self.name.startswith("torchdyno")


def ours(problem: Problem, **settings: Any) -> Workload:
    """The last state by `solve`, with the settings of a backend."""
    terms, u, x0 = problem.terms, problem.u, problem.x0

    def last() -> Tensor:
        return solve(terms, x0, u=u, dt=problem.dt, save="last", **settings).last

    return Workload(last, problem.parameters)


def product(problem: Problem, precision: Precision) -> Workload:
    """One (batch, n) by (n, n) product into a given tensor: what the machine itself can do."""
    generator = torch.Generator().manual_seed(0)
    x, W = (
        torch.randn(rows, problem.n, generator=generator, dtype=torch.float32).to(
            problem.device, PRECISIONS[precision]
        )
        for rows in (problem.batch, problem.n)
    )
    out = torch.empty_like(x)

    def last() -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.mm(x, W, out=out)
        torch.backends.cuda.matmul.allow_tf32 = before
        return out

    return Workload(last, ())


def _backend(backend: Backend) -> tuple[Contestant, ...]:
    """One backend of our Euler solver, on every kind of field that it is for."""
    build = partial(ours, solver="euler", backend=backend)
    euler = partial(Contestant, backend=backend, sparse=True, tolerance=1e-5)
    bf16, tf32 = (partial(build, matmul_precision=kind) for kind in ("bf16", "tf32"))
    rows = (
        euler(f"ours-{backend}", build),
        euler(f"ours-{backend}-bf16", bf16, precision="bfloat16", tolerance=1e-2),
        euler(f"ours-{backend}-tf32", tf32, precision="tf32", tolerance=1e-3),
        euler(f"ours-adadiag-{backend}", build, blocks="diagonal"),
        euler(f"ours-sparse-frozen-{backend}", build, blocks="sparse"),
    )
    if backend == "persistent":  # which stores every state
        return rows
    return (*rows, euler(f"ours-{backend}-sqrt", partial(build, recompute="sqrt")))


_TABLE = (
    *(row for backend in get_args(Backend) for row in _backend(backend)),
    Contestant(
        "ours-imex",
        partial(ours, solver="imex", backend="fused"),
        imex_entries,
        tolerance=1e-5,
        reference=partial(ours, solver="imex", backend="plain"),
    ),
    Contestant("plain-loop", rivals.plain_loop, tolerance=1e-5),
    Contestant("torchdiffeq-euler", rivals.torchdiffeq_euler, tolerance=1e-5),
    Contestant("nn.RNN", rivals.rnn, dense_entries, coupled=False),
    Contestant("nn.LSTM", rivals.lstm, partial(dense_entries, gates=4), coupled=False),
    Contestant("torchdyno-adadiag", partial(rivals.torchdyno, constrained="tanh"), blocks="diagonal"),
    Contestant("torchdyno-scn", partial(rivals.torchdyno, constrained=None)),
    Contestant("torchdyno-scn-frozen", partial(rivals.torchdyno, constrained="fixed"), blocks="sparse"),
)
CONTESTANTS = {contestant.name: contestant for contestant in _TABLE}


def chosen(device: str, backends: Sequence[str] = (), only: Sequence[str] = ()) -> list[Contestant]:
    """The contestants to time on a device: of ours those of the given backends, of all those named."""
    return [
        contestant
        for contestant in CONTESTANTS.values()
        if contestant.is_present(device)
        and (not only or contestant.name in only)
        and (not backends or not contestant.is_ours or contestant.backend in backends)
    ]


def check_choice(devices: Sequence[str], backends: Sequence[str], only: Sequence[str]) -> None:
    """Refuse backends and names of which there is nothing on any of the devices.

    Raises:
        ConfigError: naming the first, and what there is.
    """
    here = [contestant for device in devices for contestant in chosen(device)]
    where = " or ".join(devices)
    usable = dict.fromkeys(c.backend for c in here if c.backend)
    for backend in set(backends) - set(usable):
        raise ConfigError(
            f"backend {backend!r} cannot run on {where}; there are: {', '.join(usable)}. "
            "Leave --backend out."
        )
    names = dict.fromkeys(c.name for c in here)
    for name in set(only) - set(names):
        raise ConfigError(f"contestant {name!r} cannot run on {where}; there are: {', '.join(names)}.")
