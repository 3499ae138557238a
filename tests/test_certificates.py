"""Certificates against exact extremal checks: never above the truth, and able to fail."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

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
from ctrnn_assembly.contracting.interface import raw_tensors
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.linalg import one_thread
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.schemes import SCHEMES
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
    for trial in range(20):
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


def exact_factor(terms, metric, solver, dt):
    """max ||A + C N(D)|| over the vertices D of the slopes; A, C the scheme's row in the metric."""
    root, theta = terms.tau.sqrt(), metric.theta()
    T, inverse = theta * root, metric.inverse().theta() / root[:, None]
    L = torch.zeros(terms.n, terms.n) if terms.L is None else terms.L
    A, C = (array(X) for X in SCHEMES[solver].pair(dt / terms.tau, T @ L @ inverse))
    C = np.diag(C) if C.ndim == 1 else C
    W, T, inverse = array(terms.weight()), array(T), array(inverse)
    inside = np.array([terms.pre.units[k].name == "identity" for k in range(terms.n)])
    maps = [(terms.post if inside[k] else terms.pre).units[k] for k in range(terms.n)]
    worst = 0.0
    for D in vertices([phi.slope for phi in maps]):
        N = np.where(inside[:, None], D[:, None] * W, W * D)
        worst = max(worst, np.linalg.norm(A + C @ (T @ N @ inverse), 2))
    return worst


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("solver", SCHEMES)
def test_the_factor_of_a_step_bounds_the_row_of_its_scheme(solver, form):
    names = [name for name in CONSTRAINTS if CONSTRAINTS[name]().rate is not None]
    taus = (1.0, 1.0), (0.5, 2.0), (torch.tensor([0.5, 1.0, 2.0]), 1.0)
    certified = 0
    for trial, name in enumerate(names):
        tau = taus[trial % 3]
        options = {"outside_set": "rescale", "density": 0.4} if name == "sparse-absolute" else {}
        first = Subnetwork(CONSTRAINTS["adadiag-tanh"](margin=0.2), 3, form=form, tau=tau[0])
        second = Subnetwork(CONSTRAINTS[name](**options), 3, form=form, tau=tau[1])
        net = couple([first, second], "all" if trial % 4 else "none", init_scale=0.3 * (1 + trial % 9))
        dt = (0.02, 0.1, 0.4)[trial % 3]
        step = certify(net, dt=dt, solver=solver, search="none").step
        exact = exact_factor(net.terms(), net.metric(), solver, dt)
        assert step.contraction_factor is None or step.contraction_factor >= exact - 1e-9, name
        assert step.certified == (step.contraction_factor is not None and step.contraction_factor < 1)
        certified += step.certified
    assert certified >= 3


def test_a_step_bound_in_the_short_form_is_false_for_a_dense_metric():
    """Slopes do not commute with a dense Theta: G = Theta W Theta^-1, C = g I falls below the truth."""
    M, W = np.array([[1.7, -0.9], [-0.9, 1.1]]), np.array([[0.1, -0.7], [-1.0, -0.1]])
    theta = np.linalg.cholesky(M).T
    inverse, eye = np.linalg.inv(theta), np.eye(2)

    def bound(G, C):  # of the step y+ = G w with slopes in [0, 1], over multipliers
        def squared(log_T):
            T = np.diag(np.exp(log_T))
            H = 2 * T - G.T @ G
            if np.linalg.eigvalsh(H)[0] <= 0:
                return 1e3
            return np.linalg.eigvalsh(C.T @ T @ np.linalg.inv(H) @ T @ C)[-1]

        starts = ([s, s + d] for s in (0.0, 1.0) for d in (-1.0, 0.0, 1.0))
        return min(minimize(squared, x, method="Nelder-Mead").fun for x in starts) ** 0.5

    exact = exact_factor(terms_of(W), metric_of(M), "euler", 1.0)
    assert exact == pytest.approx(1.1601, abs=1e-4)
    assert bound(theta @ W @ inverse, eye) == pytest.approx(0.888, abs=1e-3)
    assert bound(theta @ W, inverse) == pytest.approx(1.1602, abs=1e-4)
    for solver in SCHEMES:
        exact = exact_factor(terms_of(W), metric_of(M), solver, 1.0)
        step = certify(terms_of(W), metric_of(M), dt=1.0, solver=solver, search="none").step
        assert exact * (1 - 1e-12) <= step.contraction_factor <= 1.03 * exact
        assert step.certified == (exact < 1)
        if solver != "exponential-euler":
            assert step.contraction_factor == pytest.approx(1.1601, abs=1e-4)
    # In another metric the step does contract.
    assert certify(terms_of(W), metric_of(M), dt=1.0).step.contraction_factor < 0.85


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
        gap = (solve(terms, x, t, solver=method).x - solve(terms, y, t, solver=method).x).norm(dim=-1)[0]
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


def test_an_unknown_search_is_refused():
    with pytest.raises(ConfigError, match=r"got 'fsat'.*search must be one of none, rate, fast"):
        certify(Subnetwork(AdaDiagTanh("tanh"), 2), search="fsat")


@pytest.mark.parametrize("dt", [None, 0.1])
@pytest.mark.parametrize("solver", ["eulre", "bogus", ""])
def test_an_unknown_solver_is_refused(solver, dt):
    net = Subnetwork(AdaDiagTanh("tanh"), 2)
    with pytest.raises(ConfigError, match=r"got .*solver must be one of euler, imex, ") as refused:
        certify(net, dt=dt, solver=solver)
    assert ("Did you mean 'euler'?" in str(refused.value)) == (solver == "eulre")
    assert certify(net, dt=0.1, solver="rk4").step.reason == "no proof is known for steps of rk4"


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


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize(
    "name", [n for n, k in CONSTRAINTS.items() if k().rate and n != "sparse-absolute"]
)
def test_the_rate_of_a_class_is_proven_at_its_smallest_margin(name, form):
    options = {} if name == "product" else {"margin": 1e-3}
    for stir in (1.0, 10.0, 100.0):
        module = Subnetwork(CONSTRAINTS[name](**options), 8, form=form)
        with torch.no_grad():
            for raw in raw_tensors(module):
                raw.copy_(stir * torch.randn_like(raw))
        assert certify(module, search="none").rate >= module.rate * (1 - 1e-6)


def test_proofs_of_two_threads_do_not_restore_the_limit_of_each_other():
    """The number of threads of a BLAS is the process's: who is second would read, and leave, 1."""
    begun, order = threading.Event(), []

    def second():
        begun.wait()
        with one_thread():
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with one_thread(), one_thread():
        begun.set()
        other.join(0.3)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
