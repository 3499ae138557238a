"""Proofs of whole steps: sharp for every scheme, form and metric, and never below the exact factor."""

import dataclasses
import math
import time

import mpmath
import numpy as np
import pytest
import torch

from ctrnn_assembly import CONSTRAINTS, Assembly, Hierarchy, Subnetwork, certify, couple
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.certificates import rounding, steps
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.lmi import Search, Weighed
from ctrnn_assembly.certificates.steps import multipliers, propagator, prove_step, step_system
from ctrnn_assembly.certificates.verifier import Ball, inverse
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.terms import Edge, Terms
from oracles import array, exact_field


def random_net(n: int, form: str, dense: bool, edge: bool) -> tuple[Terms, Metric]:
    """One module with a coupling inside it and, as it may be, an edge, in a random metric."""
    act, one = (Elementwise(((ACTIVATIONS[name], n),)) for name in ("tanh", "identity"))
    pre, post = (act, one) if form == "x" else (one, act)
    K, tau = torch.randn(n, n), torch.full((n,), 0.5 + float(torch.rand(())))
    theta = torch.eye(n) + 0.4 * torch.randn(n, n) / n**0.5 if dense else (torch.randn(n) / 3).exp()
    inverse = torch.linalg.inv(theta) if dense else 1 / theta
    T = theta if dense else torch.diag(theta)
    W = torch.linalg.solve(T, 0.6 * torch.randn(n, n) / n**0.5 @ T)
    L = torch.linalg.solve(T, 2 * (K - K.mT) / n**0.5 @ T)
    edges = (Edge(0.2 * torch.randn(n, n).tril(-1), act),) if edge else ()
    return Terms((W,), pre, post, torch.zeros(n), tau, L, edges), Metric((Factor(theta, inverse),))


def by_lmi(whole: Interconnection, solver: str, dt: float) -> float:
    system = step_system(whole, solver, dt)
    return Weighed.of(system, multipliers(system, whole.system[1], dt)).factor(dt)


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("solver", SCHEMES)
def test_the_bound_of_a_step_is_sharp_and_not_below_the_exact_factor(solver, form, edge):
    ratios = []
    for trial in range(12):
        terms, metric = random_net(2 + trial % 3, form, trial % 2 == 1, edge)
        dt = (0.05, 0.3, 1.0)[trial % 3]
        bound = by_lmi(Interconnection.of(terms, metric), solver, dt)
        ratios.append(bound / exact_field(terms, metric).factor(dt, solver))
    assert min(ratios) >= 1 - 1e-12
    assert np.median(ratios) <= 1.01
    assert max(ratios) <= 1.15


@pytest.mark.parametrize("solver", SCHEMES)
def test_a_proof_is_about_the_row_of_the_scheme(solver):
    """I + dt Q (A + X D Z) is A_row + C_row N: that every row has A - I = C (L - I) is relied on."""
    terms, metric = random_net(4, "x", False, True)
    whole, dt = Interconnection.of(terms, metric), 0.3
    A, C = SCHEMES[solver].pair(dt / terms.tau, terms.L)
    A, C = (torch.diag(X) if X.ndim == 1 else X for X in (A, C))
    slopes = torch.rand(4)
    N = terms.blocks[0] * slopes + terms.edges[0].K * slopes
    T = metric.theta() * terms.tau.sqrt()
    weighed = Weighed.of(step_system(whole, solver, dt), whole.system[1])
    read = torch.nonzero((terms.edges[0].K != 0).any(0)).flatten()
    D = torch.cat([slopes, slopes[read]])
    step = torch.eye(4) + dt * (weighed.A + (weighed.B * D) @ weighed.C)
    assert torch.allclose(T @ (A + C @ N) @ torch.linalg.inv(T), step, atol=1e-13)


@pytest.mark.parametrize("condition", [1.0, 1e8, 1e13])
def test_the_error_of_an_inverse_is_bounded(condition):
    A = torch.randn(4, 4) @ torch.diag(torch.tensor([1.0, 1.0, 1.0, 1 / condition]))
    found = inverse(Ball(A.numpy()))
    with mpmath.workdps(60):
        exact = mpmath.matrix(array(A).tolist()) ** -1
        for i in range(4):
            for j in range(4):
                assert abs(exact[i, j] - mpmath.mpf(float(found.mid[i, j]))) <= found.off[i, j]
    assert found.off.max() < 1e-12 or condition > 1


@pytest.mark.parametrize("name", ["symmetric", "product"])
def test_exponential_euler_is_certified_in_dense_metrics(name):
    net = couple([Subnetwork(CONSTRAINTS[name](), 4) for _ in range(2)], "all")
    step = certify(net, dt=0.1, solver="exponential-euler", search="none").step
    exact = exact_field(net.terms(), net.metric()).factor(0.1, "exponential-euler")
    assert step.certified
    assert exact <= step.contraction_factor <= 1 - 0.9 * (1 - exact)
    assert step.max_dt > 0


def test_an_edge_counts_in_every_bound_of_a_step():
    """Two units in a chain of strong gain: each alone contracts at every short step."""
    parts = [Subnetwork(CONSTRAINTS["adadiag-tanh"]("tanh", margin=0.3), 1) for _ in range(2)]
    net = Assembly(parts, Hierarchy([1, 1], [(0, 1)], psi="tanh", init_scale=20.0))
    field = exact_field(net.terms(), net.metric())
    whole = Interconnection.of(net.terms().detach_cpu(), net.metric().detach_cpu())
    for solver in SCHEMES:
        for dt in (1e-3, 0.3, 1.5):
            bound = prove_step(whole, solver).factor(dt)
            assert field.factor(dt, solver) - 1e-12 <= bound <= 1.02 * field.factor(dt, solver)


def test_steps_that_contract_between_steps_that_do_not_are_not_promised():
    """The steps of exponential Euler that contract need not be an interval: max_dt proves each below."""
    found = 0
    for _ in range(12):
        terms, metric = random_net(2, "x", False, False)
        whole, field = Interconnection.of(terms, metric), exact_field(terms, metric)
        for solver in ("imex", "exponential-euler"):
            largest = min(prove_step(whole, solver).max_dt, 100.0)
            steps = largest * np.linspace(0.02, 1, 25) if largest > 0 else ()
            assert all(field.factor(float(dt), solver) < 1 + 1e-12 for dt in steps)
            found += largest > 0
    assert found >= 4


def test_exponential_euler_is_promised_no_further_than_it_is_near_to_eulers_step():
    """Of every slope: |step - Euler's at h| <= dt^2 / 2 ||K + 1 / t - 1 / tau|| ||J||."""
    for _ in range(5):
        terms, metric = random_net(3, "x", True, False)
        whole, field = Interconnection.of(terms, metric), exact_field(terms, metric)
        flow, t = field.rate_family(), float(whole.tau[0])
        proof = steps.exponential_euler_step(whole)
        if math.isinf(proof.max_dt):  # by the norms
            continue
        _, K, _, _ = field.balanced
        J = np.linalg.norm(flow.at(flow.corners), 2, axis=(1, 2)).max()
        dt = min(proof.max_dt, t)
        h, drift = -t * math.expm1(-dt / t), np.linalg.norm(K, 2) * J / 2
        assert proof.factor(dt) >= (field.factor(h, "euler") + dt * dt * drift) * (1 - 1e-12)


def test_a_metric_is_sought_where_only_the_step_fails():
    M, W = np.array([[1.7, -0.9], [-0.9, 1.1]]), torch.tensor([[0.1, -0.7], [-1.0, -0.1]])
    act, one = (Elementwise(((ACTIVATIONS[name], 2),)) for name in ("tanh", "identity"))
    terms = Terms((W,), act, one, torch.zeros(2), torch.ones(2))
    theta = torch.tensor(np.linalg.cholesky(M).T)
    metric = Metric((Factor(theta, torch.linalg.inv(theta)),))
    assert certify(terms, metric, dt=0.9, search="none").certified
    assert not certify(terms, metric, dt=0.9, search="none").step.certified
    found = certify(terms, metric, dt=0.9)
    assert found.step.certified
    assert found.metric.origin.startswith("search")


@pytest.mark.parametrize(("solver", "k"), [("euler", 30), ("imex", 4), ("exponential-euler", 26)])
def test_metric_and_multipliers_are_sought_together(solver, k):
    generator = torch.Generator().manual_seed(1)
    for _ in range(k + 1):
        W = 0.6 * torch.randn(4, 4, generator=generator)
    act, one = (Elementwise(((ACTIVATIONS[name], 4),)) for name in ("tanh", "identity"))
    terms, dt = Terms((W,), act, one, torch.zeros(4), torch.ones(4)), (0.5, 1.0, 1.5)[k % 3]
    found = certify(terms, dt=dt, solver=solver)
    assert found.metric.origin == "search: joint"
    exact = exact_field(terms, found.metric.matrix).factor(dt, solver)
    assert exact * (1 - 1e-12) <= found.step.contraction_factor < 1
    assert found.rate <= exact_field(terms, found.metric.matrix).rate()


def test_very_short_steps_are_proven_without_cancellation():
    terms, metric = random_net(3, "x", True, False)
    rate = certify(terms, metric, search="none").rate
    for solver in SCHEMES:
        step = certify(terms, metric, dt=1e-6, solver=solver, search="none").step
        assert step.certified is (rate > 1e-5)
        assert (1 - step.contraction_factor) / 1e-6 == pytest.approx(rate, rel=1e-2)
        assert math.isfinite(step.contraction_factor)


@pytest.mark.parametrize("permuted", [False, True])
def test_a_cascade_is_certified_in_any_order(permuted):
    """W = .5 I + 5 above the diagonal: Theta_ii = .02^-i proves the rate .406."""
    n = 8
    W = 0.5 * torch.eye(n) + torch.diag(torch.full((n - 1,), 5.0), 1)
    order = torch.randperm(n) if permuted else torch.arange(n)
    act, one = (Elementwise(((ACTIVATIONS[name], n),)) for name in ("tanh", "identity"))
    found = certify(Terms((W[order][:, order],), act, one, torch.zeros(n), torch.ones(n)))
    assert found.certified, found.reasons
    assert 0.4 < found.rate < 0.5


def test_one_way_edges_are_weighted_by_certified_rates():
    parts = [Subnetwork(CONSTRAINTS["adadiag-tanh"]("tanh"), 2) for _ in range(6)]
    pairs = [(k, k + 1) for k in range(5)]
    net = Assembly(parts, Hierarchy([2] * 6, pairs, init_scale=5.0))
    own, found = certify(net, search="none"), certify(net)
    assert own.metric.condition_number > 1e20
    assert found.metric.condition_number < 1e-6 * own.metric.condition_number
    assert found.crossing_time < own.crossing_time
    assert found.metric.origin == "search: weights from certified rates"
    assert own.rate / 2 <= found.rate <= exact_field(net.terms(), found.metric.matrix).rate()


def test_what_was_rounded_is_taken_off_the_proof_of_a_step(monkeypatch):
    """Every matrix within the errors must have the mu; without them the computed one alone would."""
    n = 3
    eye, none = torch.eye(n), torch.zeros(n, n)
    for A_error, B_error in ((1e-3, 0.0), (0.0, 1e-3)):
        exact, blurred = (Weighed(-eye, none, none, off) for off in (0.0, A_error + B_error))
        mu = exact.mu(0.1)
        assert exact.proves(0.1, mu - 1e-9)
        assert not blurred.proves(0.1, mu - 1e-4 * max(A_error, B_error))
        # The worst A within the error lowers mu by it; of B and C, by (b + c)^2 / 4.
        assert blurred.proves(0.1, mu - 5e-3)
    terms, metric = random_net(3, "x", True, False)
    whole = Interconnection.of(terms, metric)
    rough = dataclasses.replace(whole, K_error=1e-2)
    assert by_lmi(rough, "imex", 0.3) > by_lmi(whole, "imex", 0.3) + 1e-4
    Q, error = propagator(rough, "imex", 0.3)
    moved = 1e-2 * torch.eye(3)  # a K within its error
    true = torch.linalg.inv(torch.eye(3) - 0.3 * (whole.K + moved))
    assert float(torch.linalg.matrix_norm(true - Q, 2)) <= error
    system, moved = rough.system[0], step_system(rough, "imex", 0.3)
    for X, off in ((system.A, moved.A_error), (system.X, float(moved.X_error.norm()))):
        assert 1e-4 < float(torch.linalg.matrix_norm((true - Q) @ X, 2)) <= off
    # the error of Q alone, whatever that of A is
    monkeypatch.setattr(steps, "propagator", lambda *_: (Q, 1e-2))
    system, moved = whole.system[0], step_system(whole, "imex", 0.3)
    assert moved.A_error >= 1e-2 * float(torch.linalg.matrix_norm(system.A, 2))
    assert bool((moved.X_error >= 1e-2 * system.X.norm(dim=0)).all())


@pytest.mark.slow
def test_thousands_of_units_with_few_couplings_are_certified_by_their_entries():
    net = couple([Subnetwork(CONSTRAINTS["adadiag-tanh"](), 32) for _ in range(128)], "random:200")
    begun = time.process_time()
    assert certify(net, dt=0.03).step.certified
    assert time.process_time() - begun < 20


def test_the_gram_of_few_entries_is_that_of_all():
    A = torch.randn(1100, 1100) * (torch.rand(1100, 1100) < 0.01)
    assert torch.allclose(rounding._gram(A), A.mT @ A, atol=1e-13)


@pytest.mark.parametrize("solver", ["euler", "exponential-euler"])
def test_many_units_have_the_closed_form_alone_where_only_the_rate_is_sought(solver):
    """What an epoch of a training can wait for: no better than the whole proof."""
    field = couple([Subnetwork(CONSTRAINTS["absolute"]("tanh"), 52) for _ in range(5)], "ring")
    quick, whole = (
        certify(field, dt=0.05, solver=solver, search=search).step.contraction_factor
        for search in ("rate", "fast")
    )
    known = Interconnection.of(field.terms().detach_cpu(), field.metric().detach_cpu())
    assert quick == pytest.approx(steps.CLOSED_FORMS[solver](known).factor(0.05), rel=1e-12)
    assert quick >= whole


@pytest.mark.parametrize("modules", [(), ((7, True),), ((3, True), (4, False)), ((2, False), (5, True))])
def test_the_slope_of_a_search_is_that_of_autograd(modules):
    made = torch.Generator().manual_seed(0)
    A, B, C, y, w = torch.randn(5, 7, 7, dtype=torch.float64, generator=made)
    search = Search(Weighed(A, B, C, 0.0), 0.1, modules)
    count = 7 + sum(n * (n + 1) // 2 if dense else n for n, dense in modules)
    x = torch.randn(count, dtype=torch.float64, generator=made) / 3
    weights = torch.rand(7, dtype=torch.float64, generator=made)

    def form(x: torch.Tensor) -> torch.Tensor:
        at = search.at(x)
        step = at.A @ y + at.B @ w
        return (2 * y * step + 2 * w * (at.C @ y) + 0.1 * step.square()).sum(0) @ weights

    expected = torch.autograd.functional.jacobian(form, x)
    torch.testing.assert_close(search.slope(x, search.at(x), y, w, weights), expected)
