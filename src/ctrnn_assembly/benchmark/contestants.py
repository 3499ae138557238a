"""The table of contestants: our backends, and what others would use, as fast as little effort makes it.

Of the others, weights are stacked once a solve, the input is given without a search, and torchdiffeq
keeps no state but the last (else its backward pass is quadratic in T).

Useful operations are those of the products that a solve needs, a multiplication and an addition
counted as two: forward each sample with each entry of coupling and weights, backward the same for the
adjoint and once more for each entry that is trained. Elementwise work and the single input are left out.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
import torchdiffeq
from torch import Tensor, nn

from ctrnn_assembly.benchmark.problem import Blocks, Problem
from ctrnn_assembly.solvers import solve

Backend = Literal["fused", "graph", "persistent"]
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
TORCHDYNO = "torchdyno.models.rnn_assembly"
HAS_TORCHDYNO = find_spec("torchdyno") is not None


@dataclass(frozen=True)
class Workload:
    """A contestant prepared for one problem."""

    last: Callable[[], Tensor]  # solves it, and returns the last state, (batch, n)
    parameters: Sequence[Tensor] = ()  # what a gradient is asked of

    def run(self) -> tuple[Tensor, ...]:
        """Solve it; gradients of the mean square of the last state, of a product none."""
        last = self.last()
        return torch.autograd.grad(last.square().mean(), self.parameters) if self.parameters else ()


def ours(problem: Problem, **settings: Any) -> Workload:
    """The last state by `solve`, with the settings of a backend."""
    terms, x0, given = problem.terms, problem.x0, {"u": problem.u, "dt": problem.dt, **settings}
    return Workload(lambda: solve(terms, x0, save="last", **given).last, problem.parameters)


def field(problem: Problem, *, coupled: bool = True) -> Callable[[Tensor, Tensor], Tensor]:
    """f(x, u) of the problem, for x (batch, n) and u (batch, 1); the weights stacked once."""
    terms, (batch, n) = problem.terms, problem.x0.shape
    k, p = problem.units, problem.modules
    W = torch.stack(terms.blocks).mT  # (p, k, k)
    L = terms.L if coupled else None

    def f(x: Tensor, u: Tensor) -> Tensor:
        assert terms.W_in is not None
        blocks = terms.pre(x).view(batch, p, k).transpose(0, 1)
        inner = torch.bmm(blocks, W).transpose(0, 1).reshape(batch, n)
        out = terms.post(inner + torch.addmm(terms.bias, u, terms.W_in.mT)) - x
        return out if L is None else torch.addmm(out, x, L.mT)

    return f


def plain_loop(problem: Problem, *, implicit: bool = False) -> Workload:
    """x + dt f(x, u), step by step under autograd; implicit: (I - dt L)^-1 (x + dt (f(x, u) - L x))."""
    samples, x0, L = problem.u.unbind(1), problem.x0, problem.terms.L

    def last() -> Tensor:
        f, x = field(problem, coupled=not implicit), x0
        for u in samples:
            x = x + problem.dt * f(x, u)
            if implicit and L is not None:
                x = torch.linalg.solve(torch.eye(len(L)).to(L) - problem.dt * L, x.mT).mT
        return x

    return Workload(last, problem.parameters)


def torchdiffeq_euler(problem: Problem) -> Workload:
    """odeint(method="euler") on the same grid."""
    u, x0 = problem.u.unbind(1), problem.x0
    grid = problem.dt * torch.arange(problem.steps + 1, dtype=x0.dtype, device=x0.device)
    options = {"grid_constructor": lambda f, y0, t: grid}

    def last() -> Tensor:
        f, samples = field(problem), iter(u)

        def following(t: Tensor, x: Tensor) -> Tensor:
            return f(x, next(samples))  # Euler evaluates once a step, in order

        return torchdiffeq.odeint(following, x0, grid[[0, -1]], method="euler", options=options)[-1]

    return Workload(last, problem.parameters)


def recurrent(problem: Problem, kind: Literal["RNN", "LSTM"]) -> Workload:
    """nn.RNN with relu from identity weights, or nn.LSTM with open forget gates: no gradient fades."""
    more = {"nonlinearity": "relu"} if kind == "RNN" else {}
    layer, u = getattr(nn, kind)(1, problem.n, batch_first=True, **more), problem.u
    with torch.no_grad():
        if kind == "RNN":
            nn.init.eye_(layer.weight_hh_l0)
        else:  # gates come as input, forget, cell, output
            layer.bias_ih_l0.view(4, -1)[1] = 5.0
    layer.to(u.device, u.dtype)
    return Workload(lambda: layer(u)[0][:, -1], list(layer.parameters()))


def torchdyno(problem: Problem, constrained: Literal["tanh", "fixed"] | None) -> Workload:
    """Blocks bounded by tanh, frozen, or without a constraint and trained; so is its coupling.

    Its input matrix is created as (m, n) and used as (n, m), so ours is put in its place; it stays
    frozen, as it is there.
    """
    terms, k, sequence = problem.terms, problem.units, problem.u.transpose(0, 1)
    assert terms.L is not None
    assert terms.W_in is not None
    L = terms.L.detach().cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it copies a tensor by torch.tensor
        core = import_module(TORCHDYNO).RNNAssembly(
            input_size=1,
            out_size=1,
            blocks=[W.detach().cpu() for W in terms.blocks],
            coupling_blocks=[L[i * k : (i + 1) * k, j * k : (j + 1) * k] for i, j in terms.pairs],
            coupling_topology=list(terms.pairs),
            eul_step=problem.dt,
            activation="relu",
            constrained_blocks=constrained,
        )
    core._input_mat = nn.Parameter(terms.W_in.detach().clone(), requires_grad=False)
    core.to(problem.device)

    def last() -> Tensor:
        core.train(torch.is_grad_enabled())  # in evaluation it reuses the matrices of its first call
        return core.compute_states(sequence)[-1]

    used = (core._blocks._blocks, core._couplings._couplings)
    return Workload(last, [tensor for tensor in used if tensor.requires_grad])


def product(problem: Problem, precision: str) -> Workload:
    """One (batch, n) by (n, n) product a step into a given tensor: what the machine itself can do."""
    generator, kind = torch.Generator().manual_seed(0), PRECISIONS[precision]
    x, W = (
        torch.randn(rows, problem.n, generator=generator, dtype=torch.float32).to(problem.device, kind)
        for rows in (problem.batch, problem.n)
    )
    out = torch.empty_like(x)

    def last() -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        for _ in range(problem.steps):
            torch.mm(x, W, out=out)
        torch.backends.cuda.matmul.allow_tf32 = before
        return out

    return Workload(last)


@dataclass(frozen=True)
class Contestant:
    """One way to solve a problem."""

    name: str
    build: Callable[[Problem], Workload]
    blocks: Blocks = "dense"  # the modules of its problem
    backend: Backend | None = None  # of ours
    precision: str = "float32"  # of the operands of its products; its rate is that of such products
    coupled: bool = True  # whether it has modules and a coupling; the others count under "all"
    dense: int = 0  # the (n, n) matrices that a step needs in place of the coupling's blocks
    # Of states and gradients from the reference's, as relative norms; None if the equations are others.
    tolerance: float | None = None
    reference: Callable[[Problem], Workload] = plain_loop  # of the same steps

    def operations(self, problem: Problem) -> int:
        """The useful operations of one solve and its gradients, as the file defines them.

        L has n^2 entries where it is dense, else 2 C k^2 for C pairs of modules of k units; of the
        weights those count that are not 0. Sparse ones are frozen.
        """
        n, k, pairs = problem.n, problem.units, len(problem.terms.pairs)
        whole = self.dense == 0 and 0 < 2 * pairs == problem.modules * (problem.modules - 1)
        trained = n**2 if whole else self.dense * n**2 or 2 * pairs * k**2
        weights = sum(int(W.count_nonzero()) for W in problem.terms.blocks) if self.coupled else 0
        entries = trained + weights
        trained = trained if problem.blocks == "sparse" else entries
        return 2 * problem.steps * problem.batch * (2 * entries + trained)

    def is_present(self, device: str) -> bool:
        """Whether it can run here."""
        needs_gpu = self.backend in ("graph", "persistent") or self.precision == "tf32"
        has_gpu = device == "cuda" and torch.cuda.is_available()
        return (has_gpu or not needs_gpu) and (HAS_TORCHDYNO or not self.name.startswith("torchdyno"))


def _backend(backend: Backend) -> tuple[Contestant, ...]:
    """One backend of our Euler solver, on every kind of field that it is for."""
    build = partial(ours, solver="euler", backend=backend)
    euler = partial(Contestant, backend=backend, tolerance=1e-5)
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


_IMEX = partial(ours, solver="imex", backend="fused")
_TABLE = (
    *(row for backend in get_args(Backend) for row in _backend(backend)),
    Contestant(
        "ours-imex", _IMEX, dense=2, tolerance=1e-5, reference=partial(plain_loop, implicit=True)
    ),
    Contestant("plain-loop", plain_loop, tolerance=1e-5),
    Contestant("torchdiffeq-euler", torchdiffeq_euler, tolerance=1e-5),
    Contestant("nn.RNN", partial(recurrent, kind="RNN"), coupled=False, dense=1),
    Contestant("nn.LSTM", partial(recurrent, kind="LSTM"), coupled=False, dense=4),
    Contestant("torchdyno-adadiag", partial(torchdyno, constrained="tanh"), "diagonal"),
    Contestant("torchdyno-scn", partial(torchdyno, constrained=None)),
    Contestant("torchdyno-scn-frozen", partial(torchdyno, constrained="fixed"), "sparse"),
)
CONTESTANTS = {contestant.name: contestant for contestant in _TABLE}
PRODUCTS = tuple(
    Contestant("product", partial(product, precision=kind), precision=kind, coupled=False, dense=1)
    for kind in PRECISIONS
)
