"""Fields, inputs and references that the solver tests share; none of it uses the solvers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ctrnn_assembly import (
    AdaDiagTanh,
    Assembly,
    Hierarchy,
    NegativeProduct,
    SingularValueBounded,
    SparseAbsolute,
    Subnetwork,
    Symmetric,
    couple,
)
from ctrnn_assembly.activations import activation
from ctrnn_assembly.certificates.cascade import linear_system
from ctrnn_assembly.terms import Terms

F64 = torch.float64
DT = 0.03


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: more threads only wait for each other, 30 times longer on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=rng(seed), dtype=F64)


def _biased(net: Assembly) -> Assembly:
    """In float64, with biases that are not zero: a zero cannot show a missing term."""
    net = net.double()
    for k, leaf in enumerate(net.leaves()):
        with torch.no_grad():
            leaf.bias.copy_(normal(leaf.size, seed=100 + k, scale=0.3))
    return net


def uniform() -> Assembly:
    g = rng(1)
    parts = [Subnetwork(SingularValueBounded("tanh", init_scale=2.0), 8, generator=g) for _ in range(3)]
    return _biased(couple(parts, "all", generator=g))


def mixed(coupling: str = "all", kind: str = "feedback") -> Assembly:
    """Four kinds, sizes, activations and time constants, both forms; n = 23."""
    g = rng(2)
    parts = [
        Subnetwork(SingularValueBounded("tanh", init_scale=2.0), 8, tau=0.7, generator=g),
        Subnetwork(Symmetric("softplus"), 5, form="r", generator=g),
        Subnetwork(AdaDiagTanh("sigmoid"), 6, tau=torch.linspace(0.5, 2, 6), generator=g),
        Subnetwork(NegativeProduct("tanh"), 4, form="r", tau=1.5, generator=g),
    ]
    return _biased(couple(parts, coupling, kind=kind, generator=g))  # type: ignore[arg-type]


def nested() -> Assembly:
    g = rng(3)
    leaf = Subnetwork(SparseAbsolute("tanh"), 5, generator=g)
    return _biased(couple([mixed("ring"), leaf, uniform()], "all", generator=g))


def hierarchy() -> Assembly:
    """Nonlinear one-way edges inside and outside, and feedback inside."""
    g = rng(4)
    inner = couple(
        [Subnetwork(SingularValueBounded("tanh"), 4, generator=g) for _ in range(2)], "all", generator=g
    )
    pair = [
        Subnetwork(Symmetric("tanh"), 6, generator=g),
        Subnetwork(AdaDiagTanh("tanh"), 7, generator=g),
    ]
    lower = Assembly(pair, Hierarchy((6, 7), [(0, 1)], psi="softplus", generator=g))
    return _biased(Assembly([inner, lower], Hierarchy((8, 13), [(0, 1)], psi="tanh", generator=g)))


FIELDS: dict[str, Callable[[], Assembly]] = {
    "uniform": uniform,
    "mixed": mixed,
    "nested": nested,
    "hierarchy": hierarchy,
    "free": lambda: mixed("ring", "free"),
    "uncoupled": lambda: mixed("none"),
}


def one_module(phi: str, form: str, n: int = 6) -> Terms:
    """A module that need not contract: the solvers take any activation."""
    constraint = SingularValueBounded(activation(phi))
    terms = Subnetwork(constraint, n, form=form, generator=rng(5)).double().terms()  # type: ignore[arg-type]
    return Terms(
        tuple(W.detach() for W in terms.blocks),
        terms.pre,
        terms.post,
        normal(n, seed=6),
        0.5 + torch.rand(n, generator=rng(7), dtype=F64),
        L=normal(n, n, seed=8, scale=0.5),
        W_in=normal(n, 2, seed=9),
    )


def tight(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, substeps: int) -> Tensor:
    """Reference states at the times t, (batch, k, n), by the classical RK4 in small steps.

    No stage looks beyond an interval: f(s, x) is called with s strictly inside it.
    """
    states = [x]
    for a, b in pairwise(t):
        h = (b - a) / substeps
        for k in range(substeps):
            s = [a + h * (k + c) for c in (1e-9, 0.5, 1 - 1e-9)]
            k1 = f(s[0], x)
            k2 = f(s[1], x + h / 2 * k1)
            k3 = f(s[1], x + h / 2 * k2)
            k4 = f(s[2], x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(x)
    return torch.stack(states, 1)


def order(errors: list[float], steps: list[float]) -> float:
    """Slope of log error on log step, by regression."""
    x, y = torch.tensor(steps, dtype=F64).log(), torch.tensor(errors, dtype=F64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def gain_matrix(layers, **options):
    """Gamma of the layers of a stack, or with flow=True their H."""
    return linear_system(layers, **options)[:-1, :-1]
