"""The workloads, each with its contestants: ours, and what others would use, as fast as is easy.

Of the others, weights are stacked once a solve, and the input is given without a search. The first
contestant of a workload is that whose time the others are given in.

Useful operations are those of the products that a solve needs, a multiplication and an addition
counted as two: forward each sample with each entry of coupling and weights, backward the same for the
adjoint and once more for the gradient. Elementwise work and the single input are left out.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
import torchdiffeq
from torch import Tensor, nn

from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.inputs import CubicHermite
from ctrnn_assembly.models import build_model
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.solvers.cuda.graph import tf32
from ctrnn_assembly.solvers.fused import few_blocks

Backend = Literal["auto", "fused", "graph", "persistent"]
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
HAS_TORCHDYNO = find_spec("torchdyno") is not None
DEPTH = 4  # of stacks
SQUARE, COPIED, CALLS = 1024, 2**24, 2000  # side of the product, numbers and calls, of limits
Settings = Mapping[str, Any]


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
    """The last state by `solve`, with the settings of a backend; of a gated net by its layer."""
    if problem.is_gated:
        return Workload(lambda: problem.layer.last(problem.u), problem.parameters)
    terms, x0, given = problem.terms, problem.x0, {"u": problem.u, "dt": problem.dt, **settings}
    return Workload(lambda: solve(terms, x0, save="last", **given).last, problem.parameters)


def vector_field(problem: Problem, *, coupled: bool = True) -> Callable[[Tensor, Tensor], Tensor]:
    """f(x, u) of the problem, for x (batch, n) and u (batch, 1); the weights stacked once."""
    terms, (batch, n) = problem.terms, problem.x0.shape
    k, p = problem.units, problem.modules
    W = torch.stack(terms.blocks).mT  # (p, k, k)
    L = terms.L if coupled else None

    def f(x: Tensor, u: Tensor) -> Tensor:
        blocks = terms.pre(x).view(batch, p, k).transpose(0, 1)
        inner = torch.bmm(blocks, W).transpose(0, 1).reshape(batch, n)
        out = terms.post(inner + terms.inject(u)) - x
        return out if L is None else torch.addmm(out, x, L.mT)

    return f


def plain_loop(problem: Problem, *, implicit: bool = False) -> Workload:
    """x + dt f(x, u), step by step under autograd; implicit: (I - dt L)^-1 (x + dt (f(x, u) - L x))."""
    samples, L, dt = problem.u.unbind(1), problem.terms.L, problem.dt

    def last() -> Tensor:
        f, x = vector_field(problem, coupled=not implicit), problem.x0
        for u in samples:
            x = x + dt * f(x, u)
            if implicit and L is not None:
                x = torch.linalg.solve(torch.eye(len(L)).to(L) - dt * L, x.mT).mT
        return x

    return Workload(last, problem.parameters)


def plain_layer(problem: Problem) -> Workload:
    """A layer sample by sample, under autograd; its tensors are made once."""

    def last() -> Tensor:
        step, x = problem.layer.stepper(), problem.x0
        for u in problem.u.unbind(1):
            x = step(u, x)
        return x

    return Workload(last, problem.parameters)


def own(problem: Problem, method: str, *, by_torchdiffeq: bool = False) -> Workload:
    """A field of one's own, f(t, x, u) with u cubic between samples, at the times of all of them."""
    t = problem.dt * torch.arange(problem.steps, dtype=problem.u.dtype, device=problem.device)
    signal, given = CubicHermite(problem.u, t), dict[str, Any](rtol=1e-5, atol=1e-7)

    def last() -> Tensor:
        f, x0 = vector_field(problem), problem.x0
        if by_torchdiffeq:
            return torchdiffeq.odeint(lambda t, x: f(x, signal(t)), x0, t, method=method, **given)[-1]
        return solve(lambda t, x, u: f(x, u), x0, t, u=signal, solver=method, **given).last

    return Workload(last, problem.parameters)


def stack(problem: Problem, *, fused: bool = True) -> Workload:
    """A `deep-adadiag` of n units and features in every layer; if not fused, by torch's maps."""
    net: Any = build_model("deep-adadiag", 1, 1, depth=DEPTH, width=problem.n).core
    net.to(problem.device, problem.dtype).fusible = fused
    return Workload(lambda: net.last(problem.u), list(net.parameters()))


def recurrent(problem: Problem, kind: Literal["RNN", "LSTM"], layers: int = 1) -> Workload:
    """nn.RNN with relu from identity weights, or nn.LSTM with open forget gates: no gradient fades."""
    more = {"nonlinearity": "relu"} if kind == "RNN" else {}
    layer, u = getattr(nn, kind)(1, problem.n, layers, batch_first=True, **more), problem.u
    with torch.no_grad():
        for k in range(layers):
            if kind == "RNN":
                nn.init.eye_(getattr(layer, f"weight_hh_l{k}"))
            else:  # gates come as input, forget, cell, output
                getattr(layer, f"bias_ih_l{k}").view(4, -1)[1] = 5.0
    layer.to(u.device, u.dtype)
    return Workload(lambda: layer(u)[0][:, -1], list(layer.parameters()))


def torchdyno(problem: Problem, constrained: Literal["tanh"] | None) -> Workload:
    """Blocks bounded by tanh, or without a constraint, and its coupling: all are trained.

    Its input matrix is created as (m, n) and used as (n, m), so ours is put in its place; it stays
    frozen, as it is there.
    """
    terms, k, sequence = problem.terms, problem.units, problem.u.transpose(0, 1)
    L = cast(Tensor, terms.L).detach().cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it copies a tensor by torch.tensor
        core = import_module("torchdyno.models.rnn_assembly").RNNAssembly(
            input_size=1,
            out_size=1,
            blocks=[W.detach().cpu() for W in terms.blocks],
            coupling_blocks=[L[i * k : (i + 1) * k, j * k : (j + 1) * k] for i, j in terms.pairs],
            coupling_topology=list(terms.pairs),
            eul_step=problem.dt,
            activation="relu",
            constrained_blocks=constrained,
        )
    core._input_mat = nn.Parameter(cast(Tensor, terms.W_in).detach().clone(), requires_grad=False)
    core.to(problem.device)

    def last() -> Tensor:
        core.train(torch.is_grad_enabled())  # in evaluation it reuses the matrices of its first call
        return core.compute_states(sequence)[-1]

    return Workload(last, [core._blocks._blocks, core._couplings._couplings])


def limit(problem: Problem, kind: str) -> Workload:
    """What the machine itself can do: square products in a precision, bytes copied, calls of torch."""
    size = {"bytes": (COPIED,), "calls": (1,)}.get(kind, (SQUARE, SQUARE))
    x = torch.ones(size, dtype=PRECISIONS.get(kind, torch.float32), device=problem.device)
    out = torch.empty_like(x)

    def last() -> Tensor:
        if kind == "bytes":
            return out.copy_(x)
        with tf32() if kind == "tf32" else nullcontext():
            for _ in range(CALLS if kind == "calls" else 1):
                torch.add(x, x, out=out) if kind == "calls" else torch.mm(x, x, out=out)
        return out

    return Workload(last)


@dataclass(frozen=True)
class Contestant:
    name: str
    build: Callable[[Problem], Workload]
    changes: Settings = field(default_factory=dict)  # of the fields of its problem
    backend: Backend | None = None  # of ours
    precision: str = "float32"  # of the operands of its products
    coupled: bool = True  # whether it has modules and a coupling
    dense: int = 0  # the (n, n) matrices that a step needs in place of the coupling's blocks
    evaluations: int = 1  # of the field in a step; 0 if the solver chooses
    stored: int = 1  # states of a step that are kept for the gradient
    beside: str = ""  # whose time its own is given in; else the first of its work
    # Of states and gradients from the reference's, as relative norms; None if the equations are others.
    tolerance: float | None = None
    reference: Callable[[Problem], Workload] = plain_loop  # of the same steps

    def operations(self, problem: Problem) -> int:
        """The useful operations of one solve and its gradients, as the file defines them.

        L has n^2 entries where it is dense, else 2 C k^2 for C pairs of modules of k units; of the
        weights those count that are not 0. 0 if nobody knows the evaluations.
        """
        n, k, pairs = problem.n, problem.units, len(problem.terms.pairs)
        whole = self.dense == 0 and 0 < 2 * pairs == problem.modules * (problem.modules - 1)
        entries = n**2 if whole else self.dense * n**2 or 2 * pairs * k**2
        entries += sum(int(W.count_nonzero()) for W in problem.terms.blocks) if self.coupled else 0
        return 6 * self.evaluations * problem.steps * problem.batch * entries

    def is_present(self, device: str) -> bool:
        needs_gpu = self.backend in ("graph", "persistent") or self.precision == "tf32"
        has_gpu = device == "cuda" and torch.cuda.is_available()
        return (has_gpu or not needs_gpu) and (HAS_TORCHDYNO or not self.name.startswith("torchdyno"))

    def is_for(self, problem: Problem) -> bool:
        """Whether it can solve this: torchdyno needs a coupling, and persistent kernels a full one."""
        if self.name.startswith("torchdyno") and not problem.terms.pairs:
            return False
        return self.backend != "persistent" or few_blocks(problem.terms) is None


def _backend(backend: Backend) -> tuple[Contestant, ...]:
    """One backend of our Euler solver, with products of every precision."""
    build = partial(ours, solver="euler", backend=backend)
    euler = partial(Contestant, backend=backend, tolerance=1e-5)
    bf16, tf32 = (partial(build, matmul_precision=kind) for kind in ("bf16", "tf32"))
    sqrt = euler(f"ours-{backend}-sqrt", partial(build, recompute="sqrt"), stored=0)
    return (
        euler(f"ours-{backend}", build),
        euler(f"ours-{backend}-bf16", bf16, precision="bfloat16", tolerance=1e-2),
        euler(f"ours-{backend}-tf32", tf32, precision="tf32", tolerance=1e-3),
        *[sqrt] * (backend != "persistent"),  # which stores every state
    )


def _beside(ours: Contestant, name: str, build: Any, **more: Any) -> tuple[Contestant, Contestant]:
    """One of ours, and another on the same problem, both in its time."""
    ours = replace(ours, beside=ours.name)
    return ours, replace(ours, name=name, build=build, **more)


def _gated(kind: str) -> tuple[Contestant, Contestant]:
    net = {"net": f"adadiag-gated-{kind}"}
    mine = Contestant(f"ours-{kind}", ours, net, tolerance=1e-5, reference=plain_layer)
    return _beside(mine, f"plain-layer-{kind}", plain_layer)


def _imex(name: str, coupling: str) -> tuple[Contestant, Contestant]:
    steps, implicit = partial(ours, solver="imex"), partial(plain_loop, implicit=True)
    return _beside(_euler(f"euler-{name}", coupling=coupling), f"imex-{name}", steps, reference=implicit)


def _choice(n: int, batch: int) -> tuple[Contestant, Contestant]:
    """What `solve` takes for this size, and what it takes for others."""
    auto = _euler(f"auto-{n}-{batch}", n=n, units=min(n, 32), batch=batch)
    return _beside(auto, f"fused-{n}-{batch}", partial(ours, solver="euler", backend="fused"))


def _own(method: str, evaluations: int) -> tuple[Contestant, Contestant]:
    theirs = partial(own, method=method, by_torchdiffeq=True)
    checked: Any = {"evaluations": evaluations, "tolerance": 1e-3, "reference": theirs}
    mine = Contestant(f"ours-{method}", partial(own, method=method), **checked)
    return _beside(mine, f"torchdiffeq-{method}", theirs, tolerance=None)


def _deep() -> tuple[Contestant, Contestant]:
    """Dense are B, C and both halves of the mix of a layer, and an LSTM's gates but for the input."""
    layers, plain = partial(Contestant, coupled=False, stored=DEPTH), partial(stack, fused=False)
    lstm = partial(recurrent, kind="LSTM", layers=DEPTH)
    return (
        layers("ours-deep", stack, dense=4 * DEPTH, tolerance=1e-3, reference=plain),
        layers(f"nn.LSTM-{DEPTH}", lstm, dense=8 * DEPTH - 4),
    )


def _euler(name: str, **changes: Any) -> Contestant:
    return Contestant(name, partial(ours, solver="euler"), changes, tolerance=1e-5)


DIAGONAL = {"net": "adadiag-tanh"}
SMALL, C5 = {"n": 64, "units": 16, "batch": 32, "steps": 128}, {"coupling": "random:5"}
DYNO = Contestant("torchdyno-adadiag", partial(torchdyno, constrained="tanh"), DIAGONAL)
COUPLED = (
    _euler("ours"),
    _euler("ours-adadiag", **DIAGONAL),
    *(row for backend in get_args(Backend)[1:] for row in _backend(backend)),
    Contestant("plain-loop", plain_loop, tolerance=1e-5),
)
RNN = Contestant("nn.RNN", partial(recurrent, kind="RNN"), coupled=False, dense=1)
ASSEMBLY = (
    *COUPLED,
    RNN,
    Contestant("nn.LSTM", partial(recurrent, kind="LSTM"), coupled=False, dense=4),
    DYNO,
    Contestant("torchdyno-scn", partial(torchdyno, constrained=None)),
)
_LARGE = _euler("ours-4096", n=4096, units=64, coupling="random:200")
# Of each work the fields of its problem that are not the usual ones, and its contestants.
WORKS: dict[str, tuple[Settings, tuple[Contestant, ...]]] = {
    "dense": ({}, ASSEMBLY),
    "c20": ({"coupling": "random:20"}, COUPLED),  # to others few pairs make no difference
    "c5": (C5, (*COUPLED, RNN, DYNO)),
    "c5-16": ({**C5, "batch": 16}, ASSEMBLY),
    "small": (SMALL, ASSEMBLY),
    "gated": (C5, (*_gated("constant"), *_gated("input"), replace(DYNO, beside="ours-input"))),
    "imex": ({}, (*_imex("all", "all"), *_imex("c5", "random:5"))),
    "large": (DIAGONAL, (_euler("ours-512", coupling="random:50"), _LARGE)),
    "deep": ({"n": 64, "units": 64, "batch": 64, "steps": 784}, _deep()),
    "own": (SMALL, (*_own("rk4", 4), *_own("dopri5", 0))),
    "choice": ({}, tuple(row for n in (32, 128, 512, 1024) for m in (8, 64) for row in _choice(n, m))),
}
LIMITS = {
    kind: Contestant(f"limit of {kind}", partial(limit, kind=kind), precision=kind)
    for kind in (*PRECISIONS, "bytes", "calls")
}
