"""The trusted kernel against exact rational arithmetic, and the metric search.

Every float is a rational number, so whether b I - S is positive semidefinite has an exact answer: an
L D L^T elimination in fractions. A bound that is too low by one bit fails here.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy import ndarray

from ctrnn_assembly import CONSTRAINTS, Subnetwork, certify
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.certificates.rounding import (
    DENSE,
    is_positive_definite,
    largest_eigenvalue,
    spectral_norm,
)
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Edge, Terms

Rational = list[list[Fraction]]
IDENTITY, TANH = ACTIVATIONS["identity"], ACTIVATIONS["tanh"]


def rational(A: ndarray | torch.Tensor) -> Rational:
    """The entries as they are, without rounding."""
    return [[Fraction(float(value)) for value in row] for row in np.asarray(A)]


def gram(A: Rational) -> Rational:
    """A^T A, exactly."""
    columns = list(zip(*A, strict=True))
    return [[sum(a * b for a, b in zip(p, q, strict=True)) for q in columns] for p in columns]


def is_definite(S: Rational, *, semi: bool = False) -> bool:
    """Whether S > 0 (or S >= 0), exactly; only the lower triangle is read, as LAPACK does."""
    n, A = len(S), [[S[max(i, j)][min(i, j)] for j in range(len(S))] for i in range(len(S))]
    for k in range(n):
        if A[k][k] < 0 or (A[k][k] == 0 and not semi):
            return False
        if A[k][k] == 0:
            if any(A[i][k] != 0 for i in range(k + 1, n)):
                return False
            continue
        for i, j in itertools.product(range(k + 1, n), repeat=2):
            if i >= j:
                A[i][j] -= A[i][k] * A[j][k] / A[k][k]
        for i, j in itertools.combinations(range(k + 1, n), 2):
            A[i][j] = A[j][i]
    return True


def shifted(S: Rational, bound: Fraction) -> Rational:
    """bound I - S."""
    return [[(bound if i == j else 0) - v for j, v in enumerate(row)] for i, row in enumerate(S)]


def symmetric(rng: np.random.Generator, n: int, low: float, high: float) -> ndarray:
    """Random signs and magnitudes from 10^low to 10^high."""
    X = rng.normal(size=(n, n)) * 10.0 ** rng.uniform(low, high, size=(n, n))
    return np.tril(X) + np.tril(X, -1).T


def hilbert(n: int) -> ndarray:
    return 1 / (np.arange(n)[:, None] + np.arange(n) + 1.0)


def wilkinson(n: int) -> ndarray:
    """Wilkinson's W+: pairs of eigenvalues that agree to many digits."""
    off = np.ones(n - 1)
    return np.diag(np.abs(np.arange(n) - (n - 1) / 2)) + np.diag(off, 1) + np.diag(off, -1)


def near_singular(rng: np.random.Generator, n: int) -> ndarray:
    """A rounded Gram matrix of n - 1 vectors in n dimensions: its sign is down to rounding."""
    X = rng.normal(size=(n, n - 1)) * 10.0 ** rng.uniform(-3, 3)
    S = X @ X.T
    return np.tril(S) + np.tril(S, -1).T


TRICKY = {
    "hilbert": [hilbert(n) for n in range(1, 15)],
    "wilkinson": [wilkinson(n) for n in (3, 5, 9, 21)],
    "moved to the edge": [
        W - (np.linalg.eigvalsh(W)[0] + s * 1e-16) * np.eye(len(W))
        for W in (wilkinson(9), hilbert(6), hilbert(9))
        for s in (-100, -10, -1, 0, 1, 10, 100)
    ],
    "ones": [np.ones((n, n)) for n in (1, 2, 5)],
    "zeros": [np.zeros((n, n)) for n in (1, 3)],
    "one by one": [np.array([[v]]) for v in (1.0, -1.0, 1e-300, -1e-300, 5e-324, 1e308, 0.0)],
    "pascal": [np.array([[math.comb(i + j, i) for j in range(12)] for i in range(12)], dtype=float)],
}


@pytest.mark.parametrize("name", TRICKY)
def test_no_matrix_with_a_negative_eigenvalue_is_called_positive_definite(name):
    for A in TRICKY[name]:
        for S in (A, -A):
            assert is_positive_definite(torch.tensor(S), 0.0) <= is_definite(rational(S))


def test_hilbert_and_its_like_are_decided_where_float64_can():
    assert all(is_positive_definite(torch.tensor(hilbert(n)), 0.0) for n in range(1, 11))
    assert not is_positive_definite(torch.tensor(hilbert(14)), 0.0)
    assert is_positive_definite(torch.eye(300), 0.999)
    assert not is_positive_definite(torch.eye(300), 1.0)


def test_random_and_nearly_singular_and_graded_matrices_are_never_called_positive_wrongly():
    rng, yes = np.random.default_rng(0), 0
    for trial in range(600):
        n = int(rng.integers(1, 7))
        S = [
            lambda n: near_singular(rng, max(n, 2)),
            lambda n: symmetric(rng, n, -1, 1) + n * rng.uniform(0, 3) * np.eye(n),
            lambda n: symmetric(rng, n, -150, 150),
            lambda n: symmetric(rng, n, -150, -140) + np.diag(10.0 ** rng.uniform(-140, 150, size=n)),
        ][trial % 4](n)
        answer = is_positive_definite(torch.tensor(S), 0.0)
        assert answer <= is_definite(rational(S)), S
        yes += answer
    assert yes > 100


def arrow(n: int, d: float, a: float, corner: float) -> torch.Tensor:
    """d on the diagonal, `a` along the last row and column, `corner` at the end."""
    S = torch.eye(n) * d
    S[-1, :-1] = S[:-1, -1] = a
    S[-1, -1] = corner
    return S


@pytest.mark.parametrize(
    "n",
    [3, 6],
)
def test_denormals_are_never_called_positive_wrongly(n):
    """Five squares of 0.4 of the smallest denormal round to 0 each; the shift underflows as well."""
    S = arrow(n, 1e-310, 1.4e-317, 5e-324)
    assert is_positive_definite(S, 0.0) <= is_definite(rational(S))


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_positive_and_has_no_finite_bound(junk):
    for S in (torch.tensor([[junk]]), torch.tensor([[1.0, junk], [junk, 1.0]]), torch.eye(2) * junk):
        assert not is_positive_definite(S, 0.0)
        assert largest_eigenvalue(S) == math.inf
        assert spectral_norm(S) == math.inf
    assert not is_positive_definite(torch.eye(2), junk)
    assert largest_eigenvalue(torch.eye(2), junk) == math.inf
    assert not spectral_norm(torch.eye(2), abs(junk)) < math.inf


def test_overflow_inside_is_not_a_proof():
    for top in (1e154, 1e200, 1.7e308):
        S = torch.tensor([[top, -top], [-top, top]])
        assert not is_positive_definite(S - torch.eye(2), 0.0)
        assert largest_eigenvalue(S) >= min(2 * top, 1.7e308)
        assert spectral_norm(S) >= min(2 * top, 1.7e308)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (6, 6)])
@pytest.mark.parametrize("decades", [0, 3, 20, 70])
def test_the_largest_eigenvalue_is_an_upper_bound_and_tight(size, decades):
    rng = np.random.default_rng(decades)
    for _ in range(20):
        S = symmetric(rng, size[0], -decades, decades)
        bound = largest_eigenvalue(torch.tensor(S))
        assert is_definite(shifted(rational(S), Fraction(bound)), semi=True)
        slack = 1e-9 * np.abs(S).max()
        assert bound - np.linalg.eigvalsh(S)[-1] <= slack


@pytest.mark.parametrize("error", [1e-12, 1e-3, 2.0])
def test_the_error_of_a_matrix_is_honoured(error):
    """The worst E with ||E|| = error is error v v^T for the top eigenvector; take v rational."""
    rng = np.random.default_rng(1)
    for n in (1, 2, 5):
        S = symmetric(rng, n, -1, 1)
        v = [Fraction(round(float(x) * 2**30), 2**30) for x in np.linalg.eigh(S)[1][:, -1]]
        scale = Fraction(error) / sum(x * x for x in v)
        moved = [
            [s + scale * v[i] * v[j] for j, s in enumerate(row)] for i, row in enumerate(rational(S))
        ]
        bound = largest_eigenvalue(torch.tensor(S), error)
        assert is_definite(shifted(moved, Fraction(bound)), semi=True)
        top = (
            np.linalg.eigvalsh(S)[-1] if error < 1 else np.linalg.norm(S)
        )  # Frobenius for a large error
        assert bound <= (top + error) * (1 + 1e-9)
        positive = torch.tensor(S) + (error - np.linalg.eigvalsh(S)[0]) * torch.eye(n)
        assert not is_positive_definite(positive, error * (1 + 1e-9) + 1e-9)
        assert is_positive_definite(positive + 1e-6 * torch.eye(n), error)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 2), (3, 3), (5, 5)])
@pytest.mark.parametrize("scale", [1.0, 1e-160, 1e-300, 1e150, 1e300])
def test_the_spectral_norm_is_an_upper_bound_and_tight(shape, scale):
    rng = np.random.default_rng(2)
    for trial in range(10):
        A = rng.normal(size=shape) * scale
        if trial % 3 == 1:  # rank one
            A = rng.normal(size=(shape[0], 1)) @ rng.normal(size=(1, shape[1])) * scale
        bound = spectral_norm(torch.tensor(A))
        assert is_definite(shifted(gram(rational(A)), Fraction(bound) ** 2), semi=True)
        assert bound <= np.linalg.norm(A / scale, 2) * scale * (1 + 1e-9)


def test_the_norm_of_graded_matrices_is_an_upper_bound():
    rng = np.random.default_rng(3)
    for _ in range(40):
        A = rng.normal(size=(4, 4)) * 10.0 ** rng.uniform(-150, 150, size=(4, 4))
        bound = spectral_norm(torch.tensor(A))
        assert is_definite(shifted(gram(rational(A)), Fraction(bound) ** 2), semi=True)


@pytest.mark.parametrize("scale", [1e-161, 1e-163, 1e-200, 1e-300])
def test_the_largest_eigenvalue_of_tiny_matrices_is_an_upper_bound(scale):
    assert largest_eigenvalue(scale * torch.ones(3, 3)) >= 2.999999 * scale


def test_the_last_addition_of_the_norm_does_not_round_down():
    assert Fraction(spectral_norm(torch.tensor([[1e-20]]), 1.0)) >= 1 + Fraction(1e-20)


def test_a_large_matrix_is_bounded_through_lanczos():
    n = DENSE + 1
    S = torch.diag(torch.linspace(-1, 1, n))
    S[0, 1] = S[1, 0] = 0.3
    assert 1 <= largest_eigenvalue(S) <= 1 + 1e-5
    cut = S[:, : 3 * n // 4]
    exact = float(torch.linalg.matrix_norm(cut, ord=2))
    assert exact * (1 - 1e-14) <= spectral_norm(cut) <= exact * (1 + 1e-5)


# --- What the kernel's users do with it: rounding must not be lost on the way ---


def plane(theta, L, edge):
    """Two units W = 0 in the metric diag(1, theta^2), with coupling L and a nonlinear edge 0 -> 1."""
    phi, one = Elementwise(((TANH, 2),)), Elementwise(((IDENTITY, 2),))
    edges = () if edge is None else (Edge(torch.tensor([[0.0, 0.0], [edge, 0.0]]), phi),)
    zero = torch.zeros(1, 1)
    L = torch.tensor([[0.0, L[0]], [L[1], 0.0]])
    terms = Terms((zero, zero), phi, one, torch.zeros(2), torch.ones(2), L, edges)
    return terms, Metric(tuple(Factor(torch.tensor([t]), torch.tensor([1 / t])) for t in (1.0, theta)))


@pytest.mark.parametrize("edge", [None, 1e-3])
def test_a_skewness_hidden_by_rounding_counts_with_edges_too(edge):
    """fl(L12 / theta) + fl(L21 theta) = 0, but the true sum is 28.7: the true rate is -13.4."""
    theta, L = 1.9974815733601186, (3.478275990352785e17, -8.717630866859683e16)
    true = (Fraction(L[0]) / Fraction(theta) + Fraction(L[1]) * Fraction(theta)) / 2
    assert abs(true) > 14
    assert not certify(*plane(theta, L, edge), search="none").certified


def one_module(W, theta, theta_inv, form="x", phi=TANH):
    """One module with a given weight and stored factor; tau = 1."""
    n = len(W)
    act, one = Elementwise(((phi, n),)), Elementwise(((IDENTITY, n),))
    pre, post = (act, one) if form == "x" else (one, act)
    terms = Terms((torch.as_tensor(W),), pre, post, torch.zeros(n), torch.ones(n))
    return terms, Metric((Factor(theta, theta_inv),))


@pytest.mark.parametrize(
    ("W", "inverse"),
    [
        ([[1e-300]], 1.0),  # OverflowError: math.exp of the search's log z
        ([[5e-324]], 1.0),  # ValueError: infinite bounds of the search
        ([[0.1, 0.2, 0.0], [0.0, 0.1, 0.2], [0.3, 0.0, 0.1]], math.nan),  # eigh of NaN
    ],
)
def test_certify_never_raises(W, inverse):
    n = len(W)
    certify(*one_module(torch.tensor(W), torch.ones(n), torch.full((n,), inverse), "r"), search="none")


# --- The search: metrics found from the plain weights ---


class Bare:
    """The plain weights of a module, with the identity for a metric."""

    def __init__(self, module):
        self.module = module

    def terms(self):
        return self.module.terms()

    def metric(self):
        return Metric((Factor.identity(self.module.size, torch.zeros(0)),))


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("name", [n for n, kind in CONSTRAINTS.items() if kind().rate])
def test_the_search_certifies_every_theorem_from_the_weights_alone(name, form):
    for size in (1, 4, 9):
        module = Subnetwork(CONSTRAINTS[name](margin=0.2), size, form=form)
        found = certify(Bare(module))
        assert found.certified, (size, found.reasons)
        assert found.rate > 0.02


def test_a_joint_search_proves_rates_that_no_single_theorem_does():
    more = 0
    for seed in (0, 5, 25):
        torch.manual_seed(seed)
        W = torch.randn(12, 12)
        W = 0.9 * W / torch.linalg.matrix_norm(W, ord=2) @ torch.diag(torch.randn(12).exp())
        terms, metric = one_module(W, torch.ones(12), torch.ones(12))
        found = certify(terms, metric)
        more += found.metric.origin == "search: joint"
        J = -torch.eye(12) + W
        assert not found.certified or found.rate <= -torch.linalg.eigvals(J).real.max() + 1e-9
    assert more == 3
