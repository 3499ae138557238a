"""Certificates against exact extremal checks: never above the truth, and able to fail."""

import dataclasses

import numpy as np
import pytest
import torch

from ctrnn_assembly import (
    CONSTRAINTS,
    AdaDiagTanh,
    Assembly,
    Feedback,
    Hierarchy,
    PublishedSparse,
    SparseAbsolute,
    Subnetwork,
    Unconstrained,
    certify,
    couple,
)
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.solvers.semi_implicit import exponential_matrices, imex_matrices
from ctrnn_assembly.terms import Terms
from oracles import array, assembly_rate, vertices, worst_rate

IDENTITY = ACTIVATIONS["identity"]


def terms_of(W, phi="tanh", form="x", L=None, tau=1.0):
    """The terms of one module with a given weight."""
    W = torch.as_tensor(W)
    n = len(W)
    act, identity = Elementwise(((ACTIVATIONS[phi], n),)), Elementwise(((IDENTITY, n),))
    pre, post = (act, identity) if form == "x" else (identity, act)
    L = None if L is None else torch.as_tensor(L)
    return Terms((W,), pre, post, torch.zeros(n), torch.full((n,), float(tau)), L)


def metric_of(M):
    """The metric of one block, from the matrix M."""
    theta = torch.linalg.cholesky(torch.as_tensor(M)).mT
    if float((theta - torch.diag(theta.diagonal())).abs().max()) == 0:
        return Metric((Factor(theta.diagonal(), 1 / theta.diagonal()),))
    return Metric((Factor(theta, torch.linalg.inv(theta)),))


def module_rate(W, M, **kwargs):
    return certify(terms_of(W, **kwargs), metric_of(M), search="none").rate


def skew(n, omega):
    K = torch.randn(n, n)
    K = K - K.mT
    return K * (omega / torch.linalg.matrix_norm(K, ord=2))


@pytest.mark.parametrize(
    ("W", "M", "rate", "tolerance"),
    [
        ([[0.0, 4.0], [0.0, 0.0]], np.diag([0.2, 5.0]), 0.6, 1e-12),  # oracle 1
        ([[0.0, 0.3], [-3.0, 0.0]], np.diag([10.0, 1.0]), 0.5256583509, 1e-8),  # oracle 3
        ([[0.5, 0.0], [0.0, -1.0]], np.diag([2.0, 2.0 - np.sqrt(3.0)]), 0.5, 1e-8),  # oracle 6
        ([[0.0, -0.9], [0.9, 0.0]], np.eye(2), 0.55, 1e-8),  # oracle 10
        ([[0.0, -1.99], [1.99, 0.0]], np.eye(2), 0.005, 1e-8),  # oracle 12
    ],
)
def test_oracles_of_the_continuous_rate(W, M, rate, tolerance):
    assert module_rate(np.array(W), M) == pytest.approx(rate, abs=tolerance)


def test_oracle_8_theorem_3_in_both_forms():
    W = -np.array([[6.0, 1.0], [6.0, 4.0]])
    assert module_rate(W, np.array([[8.0, -2.0], [-2.0, 2.0]]) / 12) == pytest.approx(1, abs=1e-8)
    r_metric = np.array([[18.0, 3.0], [3.0, 2.0]])
    assert module_rate(W, r_metric, form="r") == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(
    ("W", "M"),
    [
        ([[0.0, 4.0], [0.0, 0.0]], np.eye(2)),  # oracle 2: rate -1
        ([[0.0, 0.3], [-3.0, 0.0]], np.array([[25.25, 8.25], [8.25, 2.975]])),  # oracle 4
        ([[0.0, -3.0], [3.0, 0.0]], np.eye(2)),  # oracle 12: rate -.5
        ([[0.0, -2.0], [2.0, 0.0]], np.eye(2)),  # Theorem 7: none at c = 2
        ([[1.0]], np.eye(1)),  # exactly on the boundary
    ],
)
def test_what_does_not_contract_is_refused_with_a_reason(W, M):
    certificate = certify(terms_of(np.array(W)), metric_of(M), search="none")
    assert not certificate.certified
    assert "module 0" in certificate.reasons[0]


@pytest.mark.parametrize("phi", ["tanh", "relu", "sigmoid", "selu", "gelu", "identity"])
@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("dense", [False, True])
def test_the_rate_never_exceeds_the_exact_worst_case(phi, form, dense):
    slope = ACTIVATIONS[phi].slope
    certified = 0
    for trial in range(30):
        n = 1 + trial % 5
        W = torch.randn(n, n) * (0.2 + 1.2 * torch.rand(())) / n**0.5
        A = torch.randn(n, n)
        M = A @ A.mT / n + torch.eye(n) if dense else torch.diag(torch.randn(n).exp())
        bound = module_rate(W, M.numpy(), phi=phi, form=form)
        assert bound <= worst_rate(array(W), M.numpy(), form, slope) + 1e-9
        certified += bound > 0
    assert certified >= 3  # the bound is not vacuous


@pytest.mark.parametrize("name", [n for n, kind in CONSTRAINTS.items() if kind().rate])
@pytest.mark.parametrize("form", ["x", "r"])
def test_every_theorem_is_certified_at_least_at_its_margin(name, form):
    module = Subnetwork(CONSTRAINTS[name](), 8, form=form, tau=2.0)
    certificate = certify(module)
    assert certificate.certified
    assert certificate.rate >= module.rate - 1e-9
    exact = worst_rate(array(module.weight), array(module.metric().matrix()), form) / 2
    assert certificate.rate <= exact + 1e-9


def test_feedback_costs_nothing_and_its_loss_is_seen():
    parts = [Subnetwork(SparseAbsolute(density=0.2), 6), Subnetwork(AdaDiagTanh(), 4)]
    net = couple(parts, "all")
    alone = min(certify(part).rate for part in parts)
    assert certify(net).rate == pytest.approx(alone, abs=1e-9)
    terms = net.terms()
    broken = dataclasses.replace(terms, L=terms.L.tril())  # one direction only
    assert certify(broken, net.metric(), search="none").rate < alone - 0.05
    swapped = dataclasses.replace(terms, L=terms.L.mT @ torch.diag(torch.randn(10).exp()))
    assert certify(swapped, net.metric(), search="none").rate < alone - 0.05


def test_oracle_17_skew_coupling_without_the_metric_is_refused():
    W = Terms(
        (torch.tensor([[0.0, 4.0], [0.0, 0.0]]), torch.zeros(1, 1)),
        Elementwise(((ACTIVATIONS["tanh"], 3),)),
        Elementwise(((IDENTITY, 3),)),
        torch.zeros(3),
        torch.ones(3),
        torch.tensor([[0.0, 0, -1], [0, 0, 1], [1, -1, 0]]),
    )
    metric = Metric((Factor(*(torch.tensor([0.2, 5.0]).pow(p) for p in (0.5, -0.5))),
                     Factor(torch.ones(1), torch.ones(1))))  # fmt: skip
    assert not certify(W, metric, search="none").certified


@pytest.mark.parametrize("psi", [None, "tanh"])
def test_a_hierarchy_is_certified_below_its_exact_rate(psi):
    parts = [Subnetwork(AdaDiagTanh(margin=0.3), 2), Subnetwork(SparseAbsolute(density=0.3), 3)]
    net = Assembly(parts, Hierarchy([2, 3], [(0, 1)], psi=psi, init_scale=2.0))
    certificate, terms = certify(net), net.terms()
    assert certificate.certified
    assert certificate.rate >= net.rate - 1e-9
    K = None if psi is None else array(terms.edges[0].K)
    exact = assembly_rate(
        [array(b) for b in terms.blocks],
        ["x", "x"],
        [(0.0, 1.0)] * 2,
        array(net.metric().matrix()),
        L=None if terms.L is None else array(terms.L),
        K=K,
    )
    assert certificate.rate <= exact + 1e-9


def exact_gain(terms, metric, step):
    """max over slope vertices of ||P + Q W D|| in the metric diag(tau) M; x-form, phi in [0, 1]."""
    theta = array(metric.theta()) @ np.diag(array(terms.tau) ** 0.5)
    inverse = np.linalg.inv(theta)
    W = array(terms.weight())
    corners = vertices([(0.0, 1.0)] * terms.n)
    P, Q = step
    return max(np.linalg.norm(theta @ (P + Q @ (W * D)) @ inverse, 2) for D in corners)


def one_step(terms, solver, dt):
    """P and Q of the step x -> P x + Q W D x, for constant slopes D."""
    if solver == "euler":
        inv_tau, eye = np.diag(1 / array(terms.tau)), np.eye(terms.n)
        return eye + dt * inv_tau @ (array(terms.L) - eye), dt * inv_tau
    make = imex_matrices if solver == "imex" else exponential_matrices
    return tuple(array(m) for m in make(terms, torch.tensor(dt)))


@pytest.mark.parametrize("solver", ["euler", "imex", "exponential-euler"])
@pytest.mark.parametrize("taus", [(1.0, 1.0), (0.5, 2.0)])
def test_the_gain_of_a_step_is_never_below_the_exact_one(solver, taus):
    certified = 0
    kinds = [CONSTRAINTS[k] for k in ("adadiag-tanh", "singular", "symmetric", "absolute")]
    for trial in range(12):
        parts = [Subnetwork(kinds[(trial + k) % 4](margin=0.2), 3, tau=taus[k]) for k in range(2)]
        net = couple(parts, "all", init_scale=0.3 * (1 + trial))
        dt = 0.02 + 0.04 * (trial % 3)
        terms, step = net.terms(), certify(net, dt=dt, solver=solver).step
        exact = exact_gain(terms, net.metric(), one_step(terms, solver, dt))
        assert step.contraction_factor >= exact - 1e-9
        assert step.certified == (step.contraction_factor < 1 - 1e-9)
        certified += step.certified
    # The bound of exponential Euler is crude when time constants differ.
    assert certified >= (3 if solver != "exponential-euler" or taus[0] == taus[1] else 0)


def test_oracles_of_the_euler_step():
    diagonal = torch.diag(torch.tensor([0.9, 0.9]))  # oracle 22
    L = torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    for W, limit in ((diagonal, 0.0487804878), (torch.zeros(2, 2), 0.4)):
        for share, expected in ((0.999, True), (1.001, False)):
            step = certify(terms_of(W, L=L), metric_of(np.eye(2)), dt=share * limit, search="none").step
            assert step.certified is expected
    # Oracle 24: Theorem 5 disc, rho = .9, omega = 2, on a weight that is not diagonal.
    W = 0.9 * torch.linalg.qr(torch.randn(4, 4))[0]
    L = torch.block_diag(L, L)
    for share, expected in ((0.999, True), (1.001, False)):
        dt = share * 0.0477326969
        assert (
            certify(terms_of(W, L=L), metric_of(np.eye(4)), dt=dt, search="none").step.certified
            is expected
        )


def test_euler_diverges_where_it_is_refused_and_imex_contracts():
    """Continuous time is certified; Euler at 0.03 grows; IMEX at 0.03 is certified and shrinks."""
    W, L = torch.diag(torch.full((8,), 0.5)), skew(8, 12.0)
    terms, metric = terms_of(W, L=L), metric_of(np.eye(8))
    euler = certify(terms, metric, dt=0.03, search="none")
    imex = certify(terms, metric, dt=0.03, solver="imex", search="none")
    assert euler.certified
    assert not euler.step.certified
    assert imex.step.certified
    from ctrnn_assembly.solvers import solve

    t = torch.arange(401) * 0.03
    x, y = torch.randn(2, 1, 8) * 1e-3
    for method, contracts in (("euler", False), ("imex", True)):
        gap = (solve(terms, x, t, method=method).x - solve(terms, y, t, method=method).x).norm(dim=-1)[0]
        assert (float(gap[-1]) < 1e-2 * float(gap[0])) is contracts
        if contracts:
            assert bool((gap[1:] <= imex.step.contraction_factor * gap[:-1] * (1 + 1e-9)).all())


def test_controls_and_broken_weights_are_refused():
    published = couple([Subnetwork(PublishedSparse(), 32, form="r") for _ in range(4)], "all")
    certificate = certify(published, dt=0.03)
    assert not certificate.certified
    assert "module" in certificate.reasons[0]
    assert not certificate.step.certified
    free = couple([Subnetwork(AdaDiagTanh(), 8) for _ in range(3)], "all", kind="free", init_scale=3.0)
    assert "coupling" in certify(free).reasons[0]
    wild = Subnetwork(Unconstrained(init_scale=5.0), 8)
    assert not certify(wild).certified
    with torch.no_grad():
        wild.parametrizations.weight.original0[0, 0] = float("nan")
    assert "NaN" in certify(wild).reasons[0]


def test_a_singular_metric_is_refused():
    metric = Metric((Factor(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])),))
    certificate = certify(terms_of(torch.zeros(2, 2)), metric, search="none")
    assert not certificate.certified


def test_a_wrong_stored_inverse_of_theta_does_not_help():
    """The certificate recomputes Theta^-1: a tampered file cannot shrink the coupling."""
    net = couple([Subnetwork(SparseAbsolute(density=0.2), 5) for _ in range(2)], "all")
    honest = certify(net)
    lie = Metric(tuple(Factor(f.theta, f.theta_inv * 0) for f in net.metric().factors))
    assert certify(net.terms(), lie, search="none").rate == pytest.approx(honest.rate, abs=1e-12)


def test_a_feedback_of_wrong_metrics_is_not_certified():
    parts = [Subnetwork(SparseAbsolute(density=0.15, magnitude=2.0), 8) for _ in range(2)]
    coupling = Feedback([8, 8], [(0, 1)], init_scale=2.0)
    net = Assembly(parts, coupling)
    identity = [Metric((Factor.identity(8, torch.zeros(1)),)) for _ in range(2)]
    skewed = dataclasses.replace(net.terms(), L=coupling.matrix(identity))
    assert certify(net).certified
    assert not certify(skewed, net.metric(), search="none").certified
