"""Independent answers, in numpy, from the definitions; nothing here calls the code under test.

The Jacobian of a module is affine in the slopes D, so its largest log-norm over a box of slopes is
attained at one of the 2^n vertices: `worst_rate` is exact, not a sample. `exact` does the work.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import networkx as nx
import numpy as np
import torch
from numpy import ndarray
from scipy.linalg import block_diag
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Activation, Elementwise
from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Edge, Terms
from exact import Field


def sloped(lo: float, hi: float) -> Activation:
    """lo x + (hi - lo) tanh x, whose slopes are all of (lo, hi]."""
    return Activation(f"slopes {(lo, hi)}", lambda x: lo * x + (hi - lo) * torch.tanh(x), (lo, hi))


def of_exact_steps(found: Certificate) -> Certificate:
    """A certificate without what it says of the arithmetic, which also depends on dtype and input."""
    return found if found.step is None else replace(found, step=replace(found.step, meeting=None))


def array(tensor: Tensor) -> ndarray:
    """The values as they are, cast up to float64."""
    return tensor.detach().double().numpy()


def vertices(intervals: list[tuple[float, float]]) -> ndarray:
    """All corners of a box, at most (2^n, n); a side without extent has one corner."""
    sides = [sorted(set(interval)) for interval in intervals]
    assert np.prod([len(side) for side in sides]) <= 2**14, "too many vertices"
    return np.array(list(itertools.product(*sides))).reshape(-1, len(sides))


def rates(J: ndarray, M: ndarray) -> ndarray:
    """The contraction rate of each Jacobian J, (k, n, n), in the metric M: -lmax(sym(T J T^-1))."""
    T = np.linalg.cholesky(M).T  # T^T T = M
    F = T @ J @ np.linalg.inv(T)
    return -np.linalg.eigvalsh((F + F.swapaxes(-1, -2)) / 2)[..., -1]


def worst_rate(
    W: ndarray, M: ndarray, form: str = "x", slope: tuple[float, float] = (0.0, 1.0)
) -> float:
    """The exact contraction rate of one module (tau = 1) over all slopes in the interval."""
    return assembly_rate([W], [form], [slope], M)


def assembly_rate(
    blocks: list[ndarray],
    forms: list[str],
    slopes: list[tuple[float, float]],
    M: ndarray,
    *,
    L: ndarray | None = None,
    K: ndarray | None = None,
    psi: tuple[float, float] = (0.0, 1.0),
    tau: ndarray | None = None,
) -> float:
    """The exact rate of tau x' = -x + modules + L x + K psi(x) in M, over all slopes.

    Slopes of psi are varied for the units that K reads from only.
    """
    units = [(s, f) for s, f, W in zip(slopes, forms, blocks, strict=True) for _ in W]
    tau = np.ones(len(units)) if tau is None else tau
    field = Field(
        block_diag(*blocks),
        np.array([form == "x" for _, form in units]),
        np.array([slope for slope, _ in units]),
        tau,
        np.linalg.cholesky(M).T / np.sqrt(tau),
        np.zeros_like(M) if L is None else L,
        () if K is None else ((K, np.array(psi)),),
    )
    return field.exact_rate()


def exact_field(terms: Terms, metric: Metric) -> Field:
    """What the tensors of a net say, for exact rates and factors."""
    units = range(terms.n)
    before = np.array([terms.pre.units[k].name != "identity" for k in units])
    phis = [(terms.pre if x else terms.post).units[k] for k, x in enumerate(before)]
    edges = [(array(e.K), np.array([e.psi.units[k].slope for k in units])) for e in terms.edges]
    return Field(
        block_diag(*map(array, terms.blocks)),
        before,
        np.array([phi.slope for phi in phis]),
        array(terms.tau),
        block_diag(*(matrix(array(theta)) for theta in thetas(metric))),
        np.zeros((terms.n, terms.n)) if terms.L is None else array(terms.L),
        tuple(edges),
    )


def terms_and_metric(
    blocks: Sequence[ndarray],
    thetas: Sequence[ndarray],
    acts: Sequence[Activation],
    forms: Sequence[str],
    tau: ndarray,
    L: ndarray | None = None,
    edges: tuple[Edge, ...] = (),
) -> tuple[Terms, Metric]:
    """A net from arrays, float64; a theta is a matrix or its diagonal."""
    identity, units = ACTIVATIONS["identity"], list(zip(acts, map(len, blocks), forms, strict=True))
    pre = Elementwise(tuple((a if f == "x" else identity, n) for a, n, f in units))
    post = Elementwise(tuple((identity if f == "x" else a, n) for a, n, f in units))
    weights, time = tuple(map(torch.tensor, blocks)), torch.tensor(tau)
    coupling = None if L is None else torch.tensor(L)
    pairs = ((t, 1 / t if t.ndim == 1 else np.linalg.inv(t)) for t in thetas)
    metric = Metric(tuple(Factor(*map(torch.tensor, pair)) for pair in pairs))
    return Terms(weights, pre, post, 0 * time, time, coupling, edges), metric


def matrix(theta: ndarray) -> ndarray:
    """The matrix of a theta, which may be its diagonal."""
    return np.diag(theta) if theta.ndim == 1 else theta


def thetas(metric: Metric) -> list[Tensor]:
    """The blocks of Theta, a vector each where it is diagonal."""
    return [factor.theta for factor in metric.factors]


def abscissa(A: ndarray) -> float:
    """The largest real part of an eigenvalue."""
    return float(np.linalg.eigvals(A).real.max())


def absolute_radius(W: ndarray) -> float:
    """rho(|W|), exactly 0 for an acyclic W, for which eigenvalues have large errors."""
    if nx.is_directed_acyclic_graph(nx.from_numpy_array(W != 0, create_using=nx.DiGraph)):
        return 0.0
    return float(np.abs(np.linalg.eigvals(np.abs(W))).max())


def one_determinant(M: ndarray) -> ndarray:
    """M scaled to det M = 1, the normalisation of the library's metrics."""
    return M / np.exp(np.linalg.slogdet(M)[1] / len(M))


def hierarchy_rate(rates: Sequence[float], gains: ndarray, kappa: ndarray) -> float:
    """The rate of parts under one-way coupling in blkdiag(kappa_i M_i), from rates and gains alone.

    -lmax(sym(kappa^1/2 (G - diag(rates)) kappa^-1/2)), gains[i, j] of the edge j -> i in the parts'
    metrics (THEORY section 5). For feedback in the parts' metrics it is min(rates).
    """
    root = np.sqrt(kappa)
    C = root[:, None] * gains / root - np.diag(rates)
    return -float(np.linalg.eigvalsh((C + C.T) / 2)[-1])


def commutator_rate(lam: float, omega: float, lo: float, hi: float) -> float:
    """lo lam - (hi - lo) omega / 2: the rate of AdaDiag under gates of the input (THEORY section 3)."""
    return lo * lam - (hi - lo) * omega / 2


def local_rate(found) -> float:
    """Of a `Measurement`, the rate over the worst interval."""
    return -math.log(found.factor) / found.dt if found.factor > 0 else math.inf
