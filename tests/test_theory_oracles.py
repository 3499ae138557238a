"""The numeric oracles of the theory (numbers of its section 10), and where each of them is held.

| oracle | what | test |
|---|---|---|
| 1 | Theorem 1 metric and rate of a chain | test_contracting `test_metzler_scaling_of_a_chain`; |
| | | test_certificates `test_oracles_of_the_continuous_rate` |
| 2, 4, 12 | worst rates in the identity and in a full Lyapunov metric | test_contracting |
| | | `test_oracle_reproduces_known_rates`; test_certificates `test_what_does_not_contract_is_...` |
| 3 | Theorem 1 rate; exact rate in its metric | test_contracting |
| | | `test_largest_margin_that_a_weight_admits`; test_certificates `test_oracles_of_the_contin...` |
| 5, 6, 7, 8, 11 | maps of Theorems 1, 2, 3 and 5 | test_contracting `test_theorem1_map`, |
| | | `test_theorem2_map_and_metrics`, `test_theorem3_metrics`, `test_theorem5_map` |
| 9, 10 | sharp rates of Theorems 4 and 5 | test_contracting `test_largest_margin_that_a_weight_admits` |
| 13 | exponent of the worst switching | test_counterexamples |
| 14, 15 | alternating slopes; the textbook system | test_counterexamples `test_oracle_14_...`, |
| | | `test_oracle_15_...` |
| 16, 18 | the mirrored block of equation 3 | test_coupling `test_mirrored_block_of_equation_3` |
| 17 | skew coupling without the metric | test_coupling `test_skew_coupling_without_the_metric_is_...`; |
| | | test_certificates `test_oracle_17_...` |
| 19 | scales of a hierarchy of two | test_coupling `test_hierarchy_scales_of_two_modules` |
| 20 to 28, 39, 40 | small gains, discrete steps, the published clip | here |
| 29, 30, 37 | gates | test_gated |
| 31, 32 | gradient scale coefficient | test_gsc |
| 33 | growth of the batch-ReLU net | test_gradients_explode |
| 34 | effective depth | test_effective_depth `test_oracle_34_...` |
| 35 | slope bounds | test_activations |
| 36 | pairs and parameters | test_topology `test_counts_of_sixteen_modules`; |
| | | test_coupling `test_parameter_counts` |
| 38 | metric of Theorem 6 | test_theorem6 `test_oracle_38_...` |
"""

import math

import numpy as np
import pytest
import torch
from numpy import ndarray

from ctrnn_assembly import AdaDiagClip, Subnetwork, certify
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.coupling import hierarchy_scales
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Edge, Terms
from oracles import abscissa, exact_field, hierarchy_rate, rates, vertices

TURN = np.array([[0.0, 1.0], [-1.0, 0.0]])
TANH, IDENTITY = ACTIVATIONS["tanh"], ACTIVATIONS["identity"]


def net(blocks: list[ndarray], L: ndarray | None = None, edge: ndarray | None = None) -> Terms:
    """x-form tanh modules with tau = 1."""
    n = sum(map(len, blocks))
    phi, identity = Elementwise(((TANH, n),)), Elementwise(((IDENTITY, n),))
    edges = () if edge is None else (Edge(torch.tensor(edge), phi),)
    L = None if L is None else torch.tensor(L)
    weights = tuple(map(torch.tensor, blocks))
    return Terms(weights, phi, identity, torch.zeros(n), torch.ones(n), L, edges)


def identity(terms: Terms) -> Metric:
    return Metric(tuple(Factor(torch.ones(n), torch.ones(n)) for n in terms.sizes))


def certified(W: ndarray, L: ndarray | None = None, **step: object) -> Certificate:
    """The certificate of one module and a coupling inside it, in the identity metric."""
    terms = net([W], L)
    return certify(terms, identity(terms), **step, search="none")


def largest_dt(W: ndarray, L: ndarray) -> float:
    return certified(W, L, dt=1e-4).step.max_dt


def exact_factor(W: ndarray, L: ndarray, h: float) -> float:
    """max ||I + h (-I + L + W D)|| over all slopes D, by their corners."""
    eye = np.eye(len(W))
    D = vertices([(0.0, 1.0)] * len(W))
    return float(np.linalg.norm(eye + h * (L - eye + W * D[:, None, :]), 2, axis=(1, 2)).max())


def exact_dt(W: ndarray, L: ndarray) -> float:
    """The largest contracting h, from below, by bisection: contraction holds on an interval of h."""
    low, high = 0.0, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_factor(W, L, middle) < 1 else (low, middle)
    return low


def rotation(size: int) -> ndarray:
    return np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]


H = np.array([[-1.0, 0.3, 0.1], [0.2, -0.8, 0.3], [0.25, 0.1, -0.9]])


def test_oracle_20_small_gains_in_a_cycle() -> None:
    best = -abscissa(H)
    assert best == pytest.approx(0.4717711, abs=1e-6)
    rate, gains = -np.diag(H), H - np.diag(np.diag(H))
    values, right = np.linalg.eig(H)
    x = np.abs(right[:, values.real.argmax()].real)
    values, left = np.linalg.eig(H.T)
    y = np.abs(left[:, values.real.argmax()].real)
    kappa = y / x  # the metric of the Perron vectors reaches the best rate
    assert rates(H, np.diag(kappa)) == pytest.approx(best, abs=1e-12)
    assert hierarchy_rate(list(rate), gains, kappa) == pytest.approx(best, abs=1e-9)
    own = hierarchy_scales(torch.tensor(gains), torch.tensor(rate)).numpy()
    assert rate.min() / 2 <= hierarchy_rate(list(rate), gains, own) <= best
    # A network of three modules with nonlinear edges in a cycle, which reaches these gains.
    terms = net([np.array([[1 - r]]) for r in rate], edge=gains)
    root = torch.tensor(kappa).sqrt()
    metric = Metric(tuple(Factor(r.view(1), 1 / r.view(1)) for r in root))
    assert certify(terms, metric, search="none").rate == pytest.approx(best, abs=1e-6)
    assert certify(terms, metric, search="none").rate <= best


def test_oracles_21_and_27_pure_rotation() -> None:
    W, L = np.zeros((2, 2)), 3 * TURN
    assert exact_dt(W, L) == pytest.approx(0.2, abs=1e-6)
    assert largest_dt(W, L) == pytest.approx(2 / (1 + 3**2), rel=1e-6)
    assert largest_dt(W, L) <= 0.2


@pytest.mark.parametrize(
    ("w", "omega", "rate", "limit"),
    [((0.9, 0.9), 2.0, 0.1, 0.0487804878), ((0.9, -0.5), 3.0, 0.1, 0.0218579235)],
    ids=["oracle 22", "oracle 40"],
)
def test_oracles_22_and_40_the_euler_step_of_adadiag_is_exact(
    w: tuple[float, float], omega: float, rate: float, limit: float
) -> None:
    W, L = np.diag(w), omega * TURN
    exact, found = exact_dt(W, L), largest_dt(W, L)
    assert exact == pytest.approx(limit, abs=1e-7)
    assert exact * (1 - 1e-6) <= found <= exact
    assert certified(W, L).rate == pytest.approx(rate, abs=1e-9)
    w_m = max(0.0, -min(w))
    assert exact == pytest.approx(2 * rate / (omega**2 + rate * (1 + w_m)), rel=1e-9)


@pytest.mark.parametrize(
    ("w", "omega"),
    [((0.0, 0.0), 8.1034972), ((0.99, -0.99), 0.8042180)],
    ids=["W = 0", "AdaDiag"],
)
def test_oracle_23_the_strongest_coupling_at_the_default_step(
    w: tuple[float, float], omega: float
) -> None:
    W = np.diag(w)
    assert certified(W, (omega - 1e-6) * TURN, dt=0.03).step.certified
    assert not certified(W, (omega + 1e-6) * TURN, dt=0.03).step.certified
    assert exact_factor(W, (omega + 1e-6) * TURN, 0.03) > 1  # nor does it contract


@pytest.mark.parametrize(
    ("rho", "limit"), [(0.9, 0.0477326969), (0.5, 0.2105263158)], ids=["oracle 24", "oracle 25"]
)
def test_oracles_24_and_25_the_disc(rho: float, limit: float) -> None:
    assert 2 * (1 - rho) / (4 + 1 - rho**2) == pytest.approx(limit, abs=1e-9)
    L = 2 * np.kron(np.eye(2), TURN)
    for W in (rho * rotation(4), rho * np.eye(4)[::-1].copy()):
        found, exact = largest_dt(W, L), exact_dt(W, L)
        assert exact == pytest.approx(limit, rel=1e-8)  # no larger step contracts
        assert exact * (1 - 1e-6) <= found <= exact
    aligned = rho * np.kron(TURN, np.eye(2))  # commutes with L: more than the disc proves
    assert 1.1 * limit < largest_dt(aligned, L) <= exact_dt(aligned, L)


def test_oracle_26_factors_of_the_semi_implicit_steps() -> None:
    h, rho = 0.03, 0.9
    share = -math.expm1(-h)
    assert share == pytest.approx(0.0295544665, abs=1e-9)
    # Without coupling, exponential Euler is an Euler step of that length.
    W = rho * rotation(3)
    leak_only = certified(W, dt=h, solver="exponential-euler").step.contraction_factor
    assert leak_only == pytest.approx(certified(W, dt=share).step.contraction_factor, abs=1e-12)
    assert leak_only == pytest.approx(1 - 0.1 * share, abs=1e-9)
    # With coupling it is exact in the coupling; IMEX is an Euler step of the modules.
    L = 12 * (np.triu(np.ones((3, 3)), 1) - np.tril(np.ones((3, 3)), -1))
    assert not certified(W, L, dt=h).step.certified
    coupled = certified(W, L, dt=h, solver="exponential-euler").step.contraction_factor
    field = exact_field(net([W], L), identity(net([W], L)))
    assert field.factor(h, "exponential-euler") <= coupled <= 1 - 0.1 * share + 1e-9
    imex = certified(W, L, dt=h, solver="imex").step.contraction_factor
    assert field.factor(h, "imex") <= imex <= 1 - h * 0.1 + 1e-9
    # Two steps that the library does not offer, from their definitions.
    implicit = np.linalg.inv((1 + h) * np.eye(3) - h * L)
    D = vertices([(0.0, 1.0)] * 3)
    worst = np.linalg.norm(implicit @ (np.eye(3) + h * W * D[:, None, :]), 2, axis=(1, 2)).max()
    assert worst <= (1 + h * rho) / (1 + h) == pytest.approx(0.9970873786, abs=1e-9)
    backward = np.linalg.inv(np.eye(3) - h * (L - np.eye(3) + W * D[:, None, :]))
    assert np.linalg.norm(backward, 2, axis=(1, 2)).max() <= 1 / (1 + h * 0.1) + 1e-12
    one = np.linalg.inv(np.eye(1) - h * (np.diag([rho]) - np.eye(1)))  # sharp for one unit
    assert one.item() == pytest.approx(1 / (1 + h * 0.1)) == pytest.approx(0.9970089731, abs=1e-9)


def published_clip(w: torch.Tensor) -> torch.Tensor:
    """AdaDiag's clip as published."""
    return torch.where(w.abs() > 1, 0.99 * w.sign(), w)


def test_oracle_28_the_published_clip_leaves_rate_zero_and_the_librarys_does_not() -> None:
    given = torch.tensor([1.5, 1.0, 0.995, -3.0])
    assert published_clip(given).tolist() == [0.99, 1.0, 0.995, -0.99]
    assert not certified(np.diag(published_clip(given).numpy())).certified
    assert certified(np.diag([0.995])).rate == pytest.approx(0.005, abs=1e-12)
    module = Subnetwork(AdaDiagClip("tanh"), 4)
    with torch.no_grad():
        module.parametrizations.weight.original0.copy_(given)
    kept = module.weight.diagonal().detach()
    assert kept.numpy() == pytest.approx([0.99, 0.99, 0.99, -0.99], rel=2e-5)
    assert bool((kept.abs() < 0.99).all())
    assert certify(module).rate >= 0.01


@pytest.mark.parametrize(("omega", "radius"), [(10.0, 1.0153325), (5.0, 0.9815294)])
def test_oracle_39_the_radius_of_an_euler_step(omega: float, radius: float) -> None:
    step = certified(np.zeros((2, 2)), omega * TURN, dt=0.03).step
    eigenvalues = np.linalg.eigvals(np.eye(2) + 0.03 * (omega * TURN - np.eye(2)))
    assert np.abs(eigenvalues).max() == pytest.approx(radius, abs=1e-6)
    assert step.contraction_factor == pytest.approx(radius, abs=1e-6)
    assert step.certified is (radius < 1)
