"""Gated time scales: the model, and its certificate against every vertex of slopes and gates.

The Jacobian N A(D) is affine in each gate and in each slope, and both the log-norm and the norm of a
step are convex, so their worst values over the box of gates and slopes are at its corners: the oracles
here are exact, not samples.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray
from scipy.linalg import expm
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.assembly import Assembly, couple
from ctrnn_assembly.certificates import certify
from ctrnn_assembly.certificates.gates import certify_gated
from ctrnn_assembly.certificates.result import Certificate
from ctrnn_assembly.contracting import AdaDiagTanh, NegativeProduct, SingularValueBounded, Symmetric
from ctrnn_assembly.errors import ConfigError, CtrnnError, DataError, ShapeError
from ctrnn_assembly.inputs import LinearInterpolation, Signal, ZeroOrderHold
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.models import build_model
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.subnetwork import Subnetwork
from ctrnn_assembly.terms import Edge, Terms
from oracles import array, commutator_rate, of_exact_steps, rates, sloped, vertices

GATES = ["constant", "shared", "input", "congruence", "state"]
SKEW = np.array([[0.0, 1.0], [-1.0, 0.0]])
IDENTITY, TANH = ACTIVATIONS["identity"], ACTIVATIONS["tanh"]
ACTS = [ACTIVATIONS[name] for name in ("tanh", "relu", "sigmoid", "gelu", "identity")]
ACTS += [sloped(*s) for s in ((0.2, 0.8), (-0.5, 1.0), (0.0, 3.0))]


# The oracle: exact worst cases by enumeration, in numpy.


def net(
    blocks: list[ndarray], theta: ndarray, L: ndarray | None = None, **kind: Any
) -> tuple[Terms, Metric]:
    """Terms and diagonal metric diag(theta^2) from arrays; kind: phi, form of each block, and edge."""
    n = len(theta)
    acts = kind.get("acts", [TANH] * len(blocks))
    forms = kind.get("forms", ["x"] * len(blocks))
    units = list(zip(acts, map(len, blocks), forms, strict=True))
    pre = Elementwise(tuple((a if form == "x" else IDENTITY, k) for a, k, form in units))
    post = Elementwise(tuple((IDENTITY if form == "x" else a, k) for a, k, form in units))
    edges = (kind["edge"],) if kind.get("edge") is not None else ()
    coupling = None if L is None else torch.tensor(L)
    terms = Terms(
        tuple(map(torch.tensor, blocks)), pre, post, torch.zeros(n), torch.ones(n), coupling, edges
    )
    parts = torch.tensor(theta).split([len(W) for W in blocks])
    return terms, Metric(tuple(Factor(t, 1 / t) for t in parts))


def ungated_jacobians(terms: Terms) -> ndarray:
    """A for every corner of the slopes, (v, n, n)."""
    n, W = terms.n, array(terms.weight())
    inside = np.array([terms.post.units[k].name != "identity" for k in range(n)])
    phis = [terms.post.units[k] if inside[k] else terms.pre.units[k] for k in range(n)]
    L = np.zeros((n, n)) if terms.L is None else array(terms.L)
    if not terms.edges:
        D = vertices([phi.slope for phi in phis])
        S = np.zeros_like(D)
    else:
        both = vertices([p.slope for p in phis] + [terms.edges[0].psi.units[k].slope for k in range(n)])
        D, S = both[:, :n], both[:, n:]
    rows, columns = np.where(inside, D, 1), np.where(inside, 1, D)
    A = rows[:, :, None] * W * columns[:, None, :] + L - np.eye(n)
    return A + array(terms.edges[0].K) * S[:, None, :] if terms.edges else A


def exact_rate(terms: Terms, M: ndarray, gates: ndarray) -> float:
    """The smallest rate of N A(D) in the metric M, for gates (k, n)."""
    A = ungated_jacobians(terms)
    return float(min(rates(nu[:, None] * A, M).min() for nu in gates))


def exact_gain(terms: Terms, M: ndarray, gates: ndarray, dt: float) -> float:
    """The largest ||I + dt N A(D)|| in the metric M, for gates (k, n)."""
    A, T = ungated_jacobians(terms), np.linalg.cholesky(M).T
    steps = (np.eye(len(M)) + dt * nu[:, None] * A for nu in gates)
    return float(max(np.linalg.norm(T @ S @ np.linalg.inv(T), 2, axis=(-2, -1)).max() for S in steps))


def random_net(rng: np.random.Generator, kind: str) -> tuple[Terms, Metric]:
    """A random field of up to 4 units: "adadiag", "coupled" (any W, L) or "edge"."""
    sizes = [(1, 1), (2, 1), (3,), (2, 2), (1, 1, 1)][rng.integers(5)]
    n = sum(sizes)
    theta = np.exp(rng.normal(size=n) * rng.choice([0.0, 0.3, 1.0]))
    acts = [ACTS[k] for k in rng.integers(len(ACTS), size=len(sizes))]
    forms = list(rng.choice(["x", "r"], len(sizes)))
    blocks = []
    for k, act, part in zip(sizes, acts, np.split(theta, np.cumsum(sizes)[:-1]), strict=True):
        X = rng.normal(size=(k, k))
        if kind != "adadiag":
            X = [X, X - X.T, -X @ X.T, np.diag(np.diag(X))][rng.integers(4)]
            X = X / float(np.linalg.norm(X, 2)) * rng.choice([0.1, 0.3, 0.6, 0.95]) if X.any() else X
        else:
            X = np.diag(rng.uniform(-0.95, 0.95, k))
        blocks.append(X * part / part[:, None] / act.g)
    K = rng.normal(size=(n, n)) * rng.choice([0.01, 0.1, 0.5, 2.0])
    K = K - K.T if kind == "adadiag" else [K - K.T, K - K.T + 0.02 * K, np.tril(K, -1)][rng.integers(3)]
    L = K * theta / theta[:, None]
    edge = None
    if kind == "edge":
        weight = np.tril(rng.normal(size=(n, n)), -1) * rng.choice([0.05, 0.2]) * theta / theta[:, None]
        psi = ACTS[rng.integers(len(ACTS))]
        edge = Edge(torch.tensor(weight), Elementwise(((psi, n),)))
    return net(blocks, theta, L, acts=acts, forms=forms, edge=edge)


def random_bounds(rng: np.random.Generator) -> tuple[float, float]:
    lo = float(np.exp(rng.uniform(-3, 1)))
    return lo, lo * float(rng.choice([1.02, 1.2, 2.0, 10.0]))


def check_against_vertices(
    certificate: Certificate, terms: Terms, M: ndarray, gates: ndarray, dt: float
) -> tuple[bool, bool]:
    """Assert that no claim exceeds the truth; whether it certifies the flow, and the step."""
    true_rate = exact_rate(terms, M, gates)
    assert certificate.rate <= true_rate + 1e-12 * abs(true_rate)
    step = certificate.step
    assert step is not None
    assert step.dt == dt
    if not certificate.certified:
        assert certificate.reasons
        assert not step.certified
        return False, False
    assert certificate.rate > 0
    if step.contraction_factor is not None:
        assert exact_gain(terms, M, gates, dt) <= step.contraction_factor * (1 + 1e-12)
    if 0 < step.max_dt < 1e3:
        assert exact_gain(terms, M, gates, step.max_dt) < 1
    if step.certified:
        assert step.contraction_factor is not None
        assert step.contraction_factor < 1
        assert dt <= step.max_dt
    return True, step.certified


# The certificate.


def certificate_of(
    terms: Terms,
    metric: Metric,
    *,
    gate: Any,
    nu: Tensor | None = None,
    dt: float | None = None,
    **bounds: Any,
) -> Certificate:
    """As a layer's: constant gates nu (n,) are time constants."""
    if gate == "constant" and nu is not None:
        return certify(replace(terms, tau=1 / nu), metric, dt=dt, search="none")
    return certify_gated(terms, metric, gate=gate, dt=dt, **bounds)


@pytest.mark.parametrize("kind", ["adadiag", "coupled", "edge"])
@pytest.mark.parametrize("gate", ["constant", "shared", "input"])
def test_no_certificate_exceeds_the_worst_vertex(gate: str, kind: str) -> None:
    rng = np.random.default_rng([GATES.index(gate), len(kind)])
    flows = steps = 0
    for _ in range(20 if kind == "edge" else 32):
        terms, metric = random_net(rng, kind)
        lo, hi = random_bounds(rng)
        dt = float(rng.choice([0.02, 0.3, 1.0]) / hi)
        nu = None
        M = array(metric.matrix())
        if gate == "constant":
            nu = torch.tensor(rng.uniform(lo, hi, terms.n))
            gates = array(nu)[None]
            M = M / array(nu)
        elif gate == "shared":
            gates = np.outer([lo, hi], np.ones(terms.n))
        else:
            gates = vertices([(lo, hi)] * terms.n)
        certificate = certificate_of(terms, metric, gate=gate, lo=lo, hi=hi, nu=nu, dt=dt)
        flow, step = check_against_vertices(certificate, terms, np.diag(np.diag(M)), gates, dt)
        flows, steps = flows + flow, steps + step
    assert flows >= 10  # not vacuous
    assert steps >= 6


@pytest.mark.parametrize("solver", ["euler", "imex"])
@pytest.mark.parametrize("kind", ["adadiag", "coupled", "edge"])
def test_congruence_gates_stay_below_their_rate_and_factor(kind: str, solver: str) -> None:
    """Gates at both bounds and between, slopes at all corners; L of any size costs nothing."""
    rng = np.random.default_rng([len(kind), len(solver)])
    certified, tightness = 0, 0.0
    for _ in range(10 if kind == "edge" else 20):
        terms, metric = random_net(rng, kind)
        lo, hi = random_bounds(rng)
        dt = float(rng.choice([0.02, 0.3, 1.0]) / hi)
        bounds: dict[str, Any] = {"lo": lo, "hi": hi, "solver": solver}
        found = certificate_of(terms, metric, gate="congruence", dt=dt, **bounds)
        corners = np.sqrt(vertices([(lo, hi)] * terms.n))
        roots = np.concatenate([corners, np.sqrt(rng.uniform(lo, hi, (12, terms.n)))])[:, None]
        M, A, eye = array(metric.matrix()), ungated_jacobians(terms), np.eye(terms.n)
        J = roots[..., None] * A * roots[:, :, None]
        worst = rates(J.reshape(-1, *M.shape), M).min()
        assert found.rate <= worst + 1e-12 * abs(worst)
        q = found.step.contraction_factor  # type: ignore[union-attr]
        if not found.step.certified:  # type: ignore[union-attr]
            continue
        steps, T = eye + dt * J, np.diag(np.sqrt(np.diag(M)))
        if solver == "imex":
            SLS = roots[..., None] * array(terms.L) * roots[:, :, None]
            steps = np.linalg.solve(eye - dt * SLS, steps - dt * SLS)
        worst = np.linalg.norm(T @ steps @ np.linalg.inv(T), 2, axis=(-2, -1)).max()
        assert worst <= q * (1 + 1e-12)
        certified, tightness = certified + 1, max(tightness, worst / q)
    assert certified >= 3
    assert tightness > 0.95, f"the tightest bound is {1 / tightness:.4f} times the worst step"


def test_congruence_gates_take_any_coupling_and_phi_inside_as_written() -> None:
    terms, metric = net([np.diag([0.9, -0.3])], np.ones(2), 1e4 * SKEW, forms=["r"])
    found = certificate_of(terms, metric, gate="congruence", lo=1e-3, hi=0.2, dt=1.0, solver="imex")
    assert found.step is not None
    assert found.step.certified
    assert found.rate == pytest.approx(1e-4, rel=1e-6)
    assert not certificate_of(terms, metric, gate="input", lo=0.19, hi=0.2).certified
    # With S before W and not before x under phi, one unit's S is another's: no such proof, and false.
    W, s = np.array([[0.0, 0.9], [0.9, 0.0]]), np.array([1.0, 0.01])
    J = s[:, None] * (s[:, None] * W) - np.diag(s**2)
    assert np.linalg.eigvalsh((J + J.T) / 2).max() > 0
    right = s[:, None] * (W - np.eye(2)) * s
    assert np.linalg.eigvalsh(right).max() <= -0.1 * s.min() ** 2


@pytest.mark.parametrize("form", ["x", "r"])
def test_congruence_gates_by_imex_step_as_their_formula_says(form: str) -> None:
    rng = torch.Generator().manual_seed(1)
    parts = [Subnetwork(SingularValueBounded("tanh"), 3, form=form, generator=rng) for _ in range(2)]  # type: ignore[arg-type]
    net = CTRNN(2, couple(parts, init_scale=5.0), gate="congruence", solver="imex", batch_first=True)
    terms, u, x = net.field.terms(), normal(1, 1, 2), normal(1, 1, 6)
    s = net.gates(net.gates.reader(u[0]), x[0])[0].sqrt()  # type: ignore[misc,operator]
    W, L, z = terms.weight(), terms.L, x[0, 0]
    drive = net.encoder(u[0, 0])
    inner = W @ (s * z.tanh()) + drive if form == "x" else torch.tanh(W @ (s * z) + drive)
    h = net.dt
    left = torch.eye(6) - h * torch.diag(s) @ L @ torch.diag(s)
    expected = torch.linalg.solve(left, z + h * s * (inner - s * z))
    assert_close(net(u, x)[0][0, 0], expected, rtol=1e-12, atol=1e-12)
    J = torch.func.jacrev(net.flow(u[0]))(x[0])[0, :, 0]
    D = 1 - (z if form == "x" else W @ (s * z) + drive).tanh() ** 2
    A = (W * D if form == "x" else D[:, None] * W) + L - torch.eye(6)
    assert_close(J, s[:, None] * A * s, rtol=1e-10, atol=1e-12)
    assert net.certificate().step.certified  # type: ignore[union-attr]


def test_the_gate_bound_of_adadiag() -> None:  # oracle 29
    assert commutator_rate(0.1, 0.05, 0.05, 0.2) == pytest.approx(0.00125, abs=1e-12)
    terms, metric = net([np.diag([0.9, 0.9])], np.ones(2), 0.05 * SKEW)
    certificate = certificate_of(terms, metric, gate="input", lo=0.05, hi=0.2)
    # Weak coupling is better bounded as a part of the rest of W: b = 0.05, low = 0.1.
    assert certificate.rate == pytest.approx(0.05 * 0.1 - 0.15 * 0.05**2 / 0.4, abs=1e-12)
    assert 0.00125 < certificate.rate <= exact_rate(terms, np.eye(2), vertices([(0.05, 0.2)] * 2))


@pytest.mark.parametrize("omega", [0.21, 0.5, 2.0])
def test_strong_coupling_gets_the_bound_of_the_theory(omega: float) -> None:
    terms, metric = net([np.diag([0.9, -0.3])], np.ones(2), omega * SKEW)
    certificate = certificate_of(terms, metric, gate="input", lo=0.19, hi=0.2)
    assert certificate.rate == pytest.approx(commutator_rate(0.1, omega, 0.19, 0.2), abs=1e-12)
    assert certificate.certified == (0.01 * omega < 2 * 0.19 * 0.1)


def test_constant_gates_are_time_constants() -> None:  # oracle 37
    nu, w = torch.tensor([0.1, 0.02]), [0.5, -0.9]
    for blocks in ([np.diag(w)], [np.array([[x]]) for x in w]):
        terms, metric = net(blocks, np.ones(2))
        for phi in (1.0, 0.0):
            scaled = replace(terms, blocks=tuple(phi * W for W in terms.blocks))
            certificate = certificate_of(scaled, metric, gate="constant", lo=0.01, hi=0.2, nu=nu)
            assert certificate.rate == pytest.approx(0.02, abs=1e-12)


def test_the_bound_of_diagonal_modules_is_wrong_for_others() -> None:
    terms, metric = net([0.9 * -SKEW], np.ones(2))
    lam = certify(terms, metric, search="none").rate
    assert lam == pytest.approx(0.55, abs=1e-6)
    true = exact_rate(terms, np.eye(2), vertices([(0.05, 0.2)] * 2))
    assert true < 0.9 * commutator_rate(lam, 0.0, 0.05, 0.2)
    certificate = certificate_of(terms, metric, gate="input", lo=0.05, hi=0.2)
    assert certificate.rate <= true
    assert not certificate.certified


def test_gates_of_the_state_are_never_certified() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        terms, metric = random_net(rng, rng.choice(["adadiag", "coupled"]))
        lo, hi = random_bounds(rng)
        certificate = certificate_of(terms, metric, gate="state", lo=lo, hi=hi, dt=0.01)
        assert not certificate.certified
        assert certificate.rate == -math.inf
        assert certificate.step is not None
        assert not certificate.step.certified
        assert "not known to contract" in certificate.reasons[0]
        assert certificate.as_dict()["rate"] is None


def test_a_field_without_a_certificate_gets_none_by_gates() -> None:
    terms, metric = net([np.array([[1.5]])], np.ones(1))
    for gate in GATES:
        nu = torch.ones(1) if gate == "constant" else None
        certificate = certificate_of(terms, metric, gate=gate, lo=0.1, hi=0.2, nu=nu, dt=0.1)
        assert not certificate.certified
        assert certificate.rate <= exact_rate(terms, np.eye(1), np.array([[0.1], [0.2]]))
        assert not certificate.step.certified  # type: ignore[union-attr]
        assert certificate.reasons


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("gate", GATES)
def test_weights_that_are_not_finite_are_refused(gate: str, bad: float) -> None:
    for place in ("blocks", "L", "metric"):
        terms, metric = net([np.diag([0.5, 0.5])], np.ones(2), 0.1 * SKEW)
        if place == "metric":
            metric = metric.scaled(torch.full((2,), bad))
        elif place == "L":
            terms.L[0, 1] = bad  # type: ignore[index]
        else:
            terms.blocks[0][0, 0] = bad
        nu = torch.full((2,), 0.1) if gate == "constant" else None
        certificate = certificate_of(terms, metric, gate=gate, lo=0.1, hi=0.1, nu=nu, dt=0.1)
        assert not certificate.certified
        assert not certificate.step.certified  # type: ignore[union-attr]
    assert not certificate_of(
        *net([np.diag([0.5, 0.5])], np.ones(2)), gate="constant", lo=0.1, hi=0.2,
        nu=torch.tensor([0.1, bad]),
    ).certified  # fmt: skip


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gates_that_are_not_finite_are_refused(gate: str, bad: float) -> None:
    net = layer(gate)
    for parameter in net.gates.parameters():  # type: ignore[union-attr]
        kept = parameter.detach().clone()
        parameter.data.view(-1)[0] = bad
        certificate = net.certificate()
        # A constant gate of inf is hi, and no step of it is NaN.
        if not (gate == "constant" and bad == float("inf")):
            assert not certificate.certified
            assert not certificate.step.certified  # type: ignore[union-attr]
        parameter.data.copy_(kept)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dt", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_step_is_not_certified(gate: str, dt: float) -> None:
    nu = torch.full((2,), 0.1) if gate == "constant" else None
    terms, metric = net([np.diag([0.5, 0.5])], np.ones(2))
    step = certificate_of(terms, metric, gate=gate, lo=0.1, hi=0.1, nu=nu, dt=dt).step
    assert step is not None
    assert not step.certified
    assert step.contraction_factor is None


def test_a_certified_step_is_at_most_the_largest_one() -> None:
    terms, metric = net([np.diag([0.9, 0.9])], np.ones(2), 2 * SKEW)
    for gate in ("shared", "input"):
        settings: dict[str, Any] = {"gate": gate, "lo": 0.199, "hi": 0.2}
        largest = certificate_of(terms, metric, **settings, dt=0.01).step
        assert largest is not None
        for factor in (0.999, 1 + 1e-15, 1.01):
            dt = largest.max_dt * factor
            step = certificate_of(terms, metric, **settings, dt=dt).step
            assert step is not None
            assert step.certified == (factor < 1.005)
            assert (dt <= step.max_dt) == step.certified
            assert step.certified or "not below 1" in step.reason
    # Oracle 22: h = nu dt below 0.04878; the gates' disc bound is that at lo = hi.
    exact = certificate_of(terms, metric, gate="input", lo=0.2, hi=0.2, dt=0.01).step
    assert exact is not None
    assert exact.max_dt == pytest.approx(0.0487804878 / 0.2, rel=1e-6)


@pytest.mark.parametrize("gate", ["shared", "congruence", "input"])
def test_steps_of_several_lengths_are_bounded_by_the_worst(gate: str) -> None:
    terms, metric = net([np.diag([0.5, 0.3])], np.ones(2), 0.1 * SKEW)
    settings: dict[str, Any] = {"gate": gate, "lo": 0.18, "hi": 0.2}
    both = certificate_of(terms, metric, **settings, dt=[0.5, 2.0]).step  # type: ignore[arg-type]
    ends = [certificate_of(terms, metric, **settings, dt=dt).step for dt in (0.5, 2.0)]
    factors = [end.contraction_factor for end in ends]  # type: ignore[union-attr]
    assert both is not None
    assert both.certified
    assert both.contraction_factor == max(factors)  # type: ignore[type-var]
    between = certificate_of(terms, metric, **settings, dt=1.1).step
    assert between is not None
    assert between.contraction_factor < both.contraction_factor  # type: ignore[operator]
    assert not certificate_of(terms, metric, **settings, dt=[0.5, 50.0]).step.certified  # type: ignore


def test_gates_slower_than_float64_can_tell_are_not_certified() -> None:
    terms, metric = net([np.diag([0.5, 0.5])], np.ones(2), 0.1 * SKEW)
    step = certificate_of(terms, metric, gate="shared", lo=1e-50, hi=1.0, dt=1.0).step
    assert step is not None
    assert not step.certified
    assert "slowest gate" in step.reason
    assert step.contraction_factor is not None
    assert step.contraction_factor >= 1


def test_equal_bounds_lose_nothing() -> None:
    terms, metric = net([np.array([[0.3, 0.4], [-0.5, 0.1]])], np.ones(2), 0.3 * SKEW)
    lam = certify(terms, metric, search="none").rate
    for gate in ("shared", "input"):
        certificate = certificate_of(terms, metric, gate=gate, lo=0.3, hi=0.3)
        assert certificate.rate == pytest.approx(0.3 * lam, rel=1e-12)


def test_dense_metrics_take_gates_of_whole_modules_only() -> None:
    field = couple([Subnetwork(Symmetric("tanh"), 3), Subnetwork(NegativeProduct("tanh"), 2)])
    terms, metric = field.terms(), field.metric()
    apart = torch.tensor([0.1, 0.1, 0.11, 0.2, 0.2])
    certificate = certificate_of(terms, metric, gate="constant", lo=0.1, hi=0.2, nu=apart)
    assert "dense metric" in certificate.reasons[0]
    apart[2] = 0.1
    assert certificate_of(terms, metric, gate="constant", lo=0.1, hi=0.2, nu=apart).certified
    assert certificate_of(terms, metric, gate="shared", lo=0.1, hi=0.2).certified
    refused = certificate_of(terms, metric, gate="input", lo=0.19, hi=0.2)
    assert not refused.certified
    assert "diagonal metric" in refused.reasons[0]
    layer = CTRNN(2, field, gate="constant")
    assert layer.gates.constant.shape == (2,)
    nn.init.uniform_(layer.gates.constant)
    assert layer.certificate().certified


def test_one_wrong_argument_of_the_certificate_is_named() -> None:
    terms, metric = net([np.diag([0.5, 0.5])], np.ones(2))
    good: dict[str, Any] = {"gate": "shared", "lo": 0.1, "hi": 0.2}
    slow = replace(terms, tau=2 * terms.tau)
    cases: list[tuple[Terms, dict[str, Any], str]] = [
        (terms, {"gate": "nope"}, "gate must be one of"),
        (terms, {"lo": 0.0}, "0 < lo <= hi"),
        (terms, {"lo": 0.3}, "0 < lo <= hi"),
        (terms, {"hi": float("inf")}, "0 < lo <= hi"),
        (terms, {"hi": float("nan")}, "0 < lo <= hi"),
        (terms, {"gate": "constant"}, "Constant gates are time constants"),
        (slow, {}, "tau = 1"),
    ]
    for wrong, change, message in cases:
        with pytest.raises(CtrnnError, match=message):
            certificate_of(wrong, metric, **{**good, **change})


# Known counter-examples: refused, and they do diverge.


def rotating(omega: float, lo: float, hi: float, **settings: object) -> CTRNN:
    """Two units, W = 0, coupled at strength omega; the input (+-1, +-1) sets each gate to hi or lo."""
    units = [Subnetwork(AdaDiagTanh("tanh"), 1, weight=torch.zeros(1, 1)) for _ in range(2)]
    field = couple(units, "all")
    layer = CTRNN(2, field, gate="input", gate_bounds=(lo, hi), bias=False, **{"dt": 1.0, **settings})  # type: ignore[arg-type]
    with torch.no_grad():
        field.coupling.K.values.fill_(omega)  # type: ignore[union-attr,operator]
        layer.gates.reader.weight.copy_(50 * torch.eye(2))
        layer.gates.reader.bias.zero_()
        layer.encoder.weight.zero_()
    return layer


def driven(layer: CTRNN, u: Signal) -> Callable[[Tensor, Tensor], Tensor]:
    """f(t, x) of a layer under a signal, for other solvers than the layer's own."""
    return lambda t, x: layer.flow(u(t))(x)


def test_alternating_gates_diverge_in_continuous_time() -> None:  # oracle 30
    lo, hi = 0.2 / math.e**2, 0.2
    layer = rotating(20.0, lo, hi)
    assert not layer.certificate().certified
    assert layer.certificate().rate < 0
    quarter = math.pi / 2 / (20 * math.sqrt(lo * hi))
    one, two = (np.diag(nu) @ (20 * SKEW - np.eye(2)) for nu in ([hi, lo], [lo, hi]))
    for A in (one, two):
        assert np.linalg.eigvals(A).real.max() < -0.1  # each setting alone is stable
    grown = np.abs(np.linalg.eigvals(expm(two * quarter) @ expm(one * quarter))).max()
    exponent = math.log(grown) / (2 * quarter)
    assert exponent == pytest.approx(0.8254, abs=5e-4)
    # The layer itself, by dopri5, one solve a piece of constant input.
    x, signs, t = torch.eye(2), torch.tensor([[[1.0, -1.0]]]), torch.tensor([0.0, quarter])
    with torch.no_grad():
        for _ in range(10):
            u = ZeroOrderHold(signs.expand(2, 1, 2), torch.zeros(1))
            x = solve(driven(layer, u), x, t, solver="dopri5", rtol=1e-9, atol=1e-9).last
            signs = -signs
    exponent = math.log(float(torch.linalg.eigvals(x).abs().max())) / (10 * quarter)
    assert exponent == pytest.approx(0.8254, abs=5e-4)


def test_published_bounds_diverge_in_discrete_time() -> None:
    lo, hi, omega = 1e-5, 0.2, 2.8
    layer = rotating(omega, lo, hi, batch_first=True)
    certificate = layer.certificate()
    assert not certificate.certified
    assert not certificate.step.certified  # type: ignore[union-attr]
    A = omega * SKEW - np.eye(2)
    for nu in itertools.product(np.linspace(lo, hi, 9), repeat=2):  # each gate held constant is stable
        assert np.abs(np.linalg.eigvals(np.eye(2) + np.diag(nu) @ A)).max() < 1
    u = torch.tensor([[1.0, -1.0]]).repeat(6, 1)
    u = torch.cat([u, -u]).repeat(20, 1)[None].expand(2, -1, -1)  # (2, 240, 2)
    with torch.no_grad():
        x = layer(u, torch.eye(2)[None])[0]
    assert float(x[:, -1].norm()) > 1e8
    slow = rotating(omega, lo, hi, batch_first=True)  # the same speed for both units, however it changes
    with torch.no_grad():
        x = slow(u.abs() * u[..., :1].sign(), torch.eye(2)[None])[0]
    assert float(x[:, -1].norm()) < 1e-1


# The layer.


def field(seed: int = 3, gain: float = 0.1) -> Assembly:
    generator = torch.Generator().manual_seed(seed)
    parts = [Subnetwork(AdaDiagTanh("tanh"), n, generator=generator) for n in (3, 4)]
    return couple(parts, "all", init_scale=gain, generator=generator)


def layer(gate: str = "input", **settings: object) -> CTRNN:
    chosen = {"batch_first": True, "dt": 1.0, **settings}
    net = CTRNN(2, field(), gate=gate, generator=torch.Generator().manual_seed(4), **chosen)  # type: ignore[arg-type]
    if gate in ("constant", "state"):  # start at zero, which would hide mistakes
        values = net.gates.constant if gate == "constant" else net.gates.state
        nn.init.normal_(values, generator=torch.Generator().manual_seed(6))
    return net


def normal(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gate", GATES)
def test_the_layer_does_what_its_formula_says(gate: str) -> None:
    net, u = layer(gate, dt=0.7), normal(3, 6, 2)
    p = {name: array(value) for name, value in net.gates.named_parameters()}
    terms = net.field.terms()
    W, L = array(torch.block_diag(*terms.blocks)), array(terms.L)  # type: ignore[arg-type]
    b = array(terms.bias) + array(net.encoder.bias)
    x = np.zeros((3, 7))
    for k in range(6):
        s = u[:, k].numpy()
        z = p["constant"] if gate == "constant" else s @ p["reader.weight"].T + p["reader.bias"]
        z = z + p["state"] * x if gate == "state" else z
        nu = 0.1 + 0.1 / (1 + np.exp(-z))
        left, right = (np.sqrt(nu),) * 2 if gate == "congruence" else (nu, 1)
        F = -right * x + (right * np.tanh(x)) @ W.T + (right * x) @ L.T
        x = x + 0.7 * left * (F + b + s @ array(net.encoder.weight).T)
        assert_close(net(u)[0][:, k].detach(), torch.tensor(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_step_by_step_equals_the_whole_sequence(gate: str, dtype: torch.dtype) -> None:
    net, u, x = layer(gate).to(dtype), normal(3, 50, 2).to(dtype), normal(3, 7).to(dtype)
    whole, last = net(u, x[None])
    # W_in u is one product for all steps, which a matrix library may round differently.
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    for k, sample in enumerate(u.unbind(1)):
        x = net.step(sample, x)
        assert_close(x, whole[:, k], rtol=tolerance, atol=tolerance)
    assert torch.equal(whole[:, -1], last[0])


@pytest.mark.parametrize("gate", GATES)
def test_gates_that_cannot_move_give_the_ungated_layer(gate: str) -> None:
    net, u = layer(gate, gate_bounds=(0.3, 0.3)), normal(3, 6, 2)
    ungated = CTRNN(2, net.field, dt=0.3, batch_first=True)
    ungated.encoder = copy.deepcopy(net.encoder)
    if gate == "congruence":  # the input is under one root of the gate, all else under both
        for parameter in ungated.encoder.parameters():
            parameter.data *= 0.3**-0.5
    assert_close(net(u)[0], ungated(u)[0], rtol=1e-12, atol=1e-12)


def test_constant_gates_equal_time_constants() -> None:
    weight = normal(4, 4) / 10
    module = Subnetwork(SingularValueBounded("tanh"), 4, weight=weight)
    net = CTRNN(2, module, gate="constant", batch_first=True, dt=0.5)
    nn.init.normal_(net.gates.constant)
    nu = net.gates.constants()
    ungated = Subnetwork(SingularValueBounded("tanh"), 4, weight=weight, tau=1 / nu.detach())
    ungated.load_state_dict({**net.field.state_dict(), "tau": ungated.tau})
    other = CTRNN(2, ungated, batch_first=True, dt=0.5)
    other.encoder = net.encoder
    u = normal(3, 20, 2)
    assert_close(net(u)[0], other(u)[0], rtol=1e-12, atol=1e-12)
    own = certify(ungated.terms(), ungated.metric(), dt=0.5, search="none")
    assert of_exact_steps(net.certificate()) == of_exact_steps(own)
    assert net.certificate().certified


@pytest.mark.parametrize("gate", GATES)
def test_gradients_reach_every_parameter(gate: str) -> None:
    net = layer(gate)
    net(normal(3, 6, 2), normal(1, 3, 7))[0].square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_gradients_are_those_of_finite_differences() -> None:
    net = layer("state")
    names = [name for name, _ in net.named_parameters()]

    def output(u: Tensor, x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(net, given, (u, x))[0]

    inputs = (normal(2, 3, 2).requires_grad_(), normal(1, 2, 7).requires_grad_(), *net.parameters())
    assert torch.autograd.gradcheck(output, inputs)


@pytest.mark.parametrize("gate", GATES)
def test_the_state_stays_past_a_sequences_end(gate: str) -> None:
    net, u = layer(gate), normal(3, 6, 2)
    lengths = torch.tensor([6, 1, 4])
    output, h_n = net(u, lengths=lengths)
    full, _ = net(u)
    for i, k in enumerate(lengths):
        assert torch.equal(output[i, :k], full[i, :k])
        assert (output[i, k - 1 :] == output[i, k - 1]).all()
        assert torch.equal(h_n[0, i], full[i, k - 1])
    assert torch.equal(net.last(u, lengths=lengths), h_n[0])


@pytest.mark.parametrize("gate", GATES)
def test_shapes_follow_nn_rnn(gate: str) -> None:
    rnn, u = nn.RNN(2, 7), normal(6, 3, 2)  # (time, batch, m)
    ours, first = layer(gate, batch_first=False), layer(gate)
    for arguments in ((u,), (u, normal(1, 3, 7))):
        for mine, theirs in zip(ours(*arguments), rnn(*arguments), strict=True):
            assert mine.shape == theirs.shape
    assert torch.equal(first(u.transpose(0, 1))[0].transpose(0, 1), ours(u)[0])
    assert first.firing_rates(normal(3, 7)).equal(torch.tanh(normal(3, 7)))


@pytest.mark.parametrize("gate", GATES)
def test_all_forms_of_dt_agree(gate: str) -> None:
    net, u = layer(gate, dt=0.5), normal(3, 6, 2)
    expected, _ = net(u)
    for dt in (0.5, torch.full((6,), 0.5), torch.full((3, 6), 0.5)):
        assert_close(net(u, dt=dt)[0], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("gate", GATES)
def test_small_steps_approach_the_flow(gate: str) -> None:
    net, samples = layer(gate), normal(3, 5, 2)
    u, t = LinearInterpolation(samples, torch.linspace(0, 4, 5)), torch.tensor([0.0, 4.0])
    with torch.no_grad():
        exact = solve(driven(net, u), torch.zeros(3, 7), t, solver="dopri5").last
        errors = []
        for steps in (400, 800):
            fine = torch.stack([u(s) for s in torch.arange(steps) * 4 / steps], 1)
            errors.append(float((net(fine, dt=4 / steps)[1][0] - exact).abs().max()))
    assert errors[0] < 5e-3
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)  # first order


@pytest.mark.parametrize("gate", ["constant", "shared", "input", "congruence"])
def test_two_states_approach_at_every_certified_step(gate: str) -> None:
    net = layer(gate, gate_bounds=(0.19, 0.2), dt=2.0)
    certificate = net.certificate()
    assert certificate.certified
    assert certificate.step is not None
    assert certificate.step.certified
    root = net.gates.constants().detach().rsqrt() if gate == "constant" else torch.ones(7)
    u, x = 3 * normal(1, 25, 2).expand(2, -1, -1), normal(1, 2, 7)
    with torch.no_grad():
        states = torch.cat([x[0][:, None], net(u, x)[0]], 1)
    apart = ((states[0] - states[1]) * root).norm(dim=-1)
    assert float((apart[1:] / apart[:-1]).max()) <= certificate.step.contraction_factor  # type: ignore[operator]


def test_gates_of_the_state_keep_one_equilibrium_for_a_constant_input() -> None:
    net = layer("state", gate_bounds=(0.05, 0.2), dt=0.05)
    lam = certify(net.field.terms(), net.field.metric(), search="none").rate
    u = normal(1, 1, 2).expand(5, 8000, -1)
    with torch.no_grad():
        x = net(u, 2 * normal(1, 5, 7))[0]
    apart = (x - x[:1, -1:]).norm(dim=-1)  # the metric is the identity
    assert float(apart[:, -1].max()) < 1e-9
    t = 0.05 * torch.arange(8000)
    # 0.9 is the room for the error of the steps.
    bound = 2 * apart[:, :1] * torch.exp(-0.9 * lam * 0.05 * t)
    assert bool((apart <= bound + 1e-9).all())


@pytest.mark.parametrize("gate", GATES)
def test_copies_casts_and_modes_give_the_same_output(gate: str) -> None:
    net, u = layer(gate), normal(3, 6, 2)
    expected = net(u)[0]
    other = layer(gate)
    for parameter in other.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    assert not torch.equal(other(u)[0], expected)
    other.load_state_dict(net.state_dict())
    for same in (other, copy.deepcopy(net), net.eval(), net.train()):
        assert torch.equal(same(u)[0], expected)
    cast = copy.deepcopy(net).float()
    assert_close(cast(u.float())[0].double(), expected, rtol=1e-4, atol=1e-5)  # float32
    if gate != "state":
        assert cast.certificate().rate == pytest.approx(net.certificate().rate, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "nope"}, "gate must be one of constant, shared, input, congruence, state"),
        ({"gate_bounds": (0.0, 0.2)}, "0 < lo <= hi"),
        ({"gate_bounds": (0.3, 0.2)}, "0 < lo <= hi"),
        ({"gate_bounds": (0.1, float("nan"))}, "0 < lo <= hi"),
        ({"gate_bounds": (0.1, float("inf"))}, "0 < lo <= hi"),
        ({"gate": None, "gate_bounds": (0.1, 0.2)}, "need a gate"),
        ({"solver": "imex"}, "solved by euler.*; got solver='imex'"),
        ({"gate": "congruence", "solver": "exponential-euler"}, "congruence gates by imex; got solver"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"dt": float("nan")}, "dt must be positive"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CTRNN(2, field(), **{"gate": "input", **settings})  # type: ignore[arg-type]


def test_a_field_with_its_own_time_constants_is_refused() -> None:
    with pytest.raises(ConfigError, match="tau = 1"):
        CTRNN(2, Subnetwork(AdaDiagTanh("tanh"), 3, tau=2.0), gate="constant")


def test_wrong_inputs_are_refused() -> None:
    net = layer()
    for bad in (normal(3, 6, 5), normal(3), normal(3, 1, 2)[:, :0]):
        with pytest.raises(ShapeError, match=r"\(batch, time, m\) with m = 2"):
            net(bad)
    with pytest.raises(ShapeError, match=r"h_0 must be \(1, 3, 7\); got \(3, 7\)"):
        net(normal(3, 6, 2), normal(3, 7))
    with pytest.raises(ShapeError, match=r"u must be \(batch, 2\)"):
        net.step(normal(3, 5), normal(3, 7))
    with pytest.raises(ShapeError, match=r"x must be \(3, 7\)"):
        net.step(normal(3, 2), normal(3, 5))
    with pytest.raises(CtrnnError, match="lengths"):
        net(normal(3, 6, 2), lengths=torch.tensor([7, 1, 1]))
    u = normal(3, 6, 2)
    u[1, 4, 0] = float("nan")
    with pytest.raises(DataError, match=r"must be finite.*\(1, 4, 0\)"):
        net(u)


# The models by name.


def gated_core(model: SequenceClassifier) -> CTRNN:
    assert isinstance(model.core, CTRNN)
    return model.core


def test_the_published_model_has_the_published_size_and_no_certificate() -> None:
    model = build_model("adadiag-gated", 1, 10, coupling="random:20")
    assert sum(p.numel() for p in model.parameters()) == 28_160  # PUBLISHED, sMNIST
    core = gated_core(model)
    assert (core.gates.lo, core.gates.hi, core.dt) == (1e-5, 0.2, 1.0)
    certificate = core.certificate()
    assert not certificate.certified
    assert "one equilibrium" in certificate.reasons[0]


@pytest.mark.parametrize("gate", ["constant", "shared", "input", "congruence"])
def test_the_other_gated_models_start_certified(gate: str) -> None:
    model = build_model(f"adadiag-gated-{gate}", 2, 3, modules=4, units=5, coupling="ring", dt=0.1)
    certificate = gated_core(model).certificate()
    assert certificate.certified, certificate.reasons
    assert certificate.step is not None
    assert certificate.step.certified, certificate.step.reason


def test_gated_models_take_their_bounds_and_refuse_other_solvers() -> None:
    small: dict[str, Any] = {"modules": 2, "units": 3}
    model = build_model("adadiag-gated-input", 1, 2, gate_bounds=(0.5, 0.6), **small)
    assert (gated_core(model).gates.lo, gated_core(model).gates.hi) == (0.5, 0.6)
    with pytest.raises(ConfigError, match="got solver='rk4'"):
        build_model("adadiag-gated", 1, 2, solver="rk4", **small)
    with pytest.raises(ConfigError, match="nope"):
        build_model("adadiag-gated", 1, 2, nope=1, **small)


def made_anew(net: CTRNN, name: str) -> None:
    """A step and gates of the same net that neither reads."""
    if name == "stepper":
        net.stepper = lambda: lambda u, x: 9 * x  # type: ignore[method-assign]
    elif name == "gates":
        assert net.gates is not None
        net.gates.register_forward_hook(lambda module, given, nu: 9 * nu)
    elif name == "metric":  # one gate a unit, which a dense metric does not commute with
        net.field = Subnetwork(Symmetric("tanh"), 3).double()
    else:  # three gates, of which one is proven
        assert net.gates is not None
        net.gates.kind = "shared"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("stepper", "a CTRNN has hooks or methods of its own"),
        ("gates", "a Gates has hooks or methods of its own"),
        ("metric", "the gates were made for another metric"),
        ("kind", ""),
    ],
)
def test_a_layer_that_was_changed_is_not_certified(name: str, why: str) -> None:
    field = Subnetwork(SingularValueBounded("tanh"), 3).double()
    net = CTRNN(2, field, gate="congruence", dt=0.1).double()
    assert net.certificate().step.certified
    made_anew(net, name)
    if name == "kind":
        with pytest.raises(ShapeError, match="a shared gate is one number a sample; got 3"):
            net(torch.zeros(1, 1, 2, dtype=torch.float64))
        return
    found = net.certificate()
    assert not found.certified
    assert not found.step.certified
    assert why in found.reasons[0]


@pytest.mark.parametrize("gate", ["shared", "input", "congruence"])
def test_gated_states_that_rounding_keeps_apart_are_not_certified(gate: Any) -> None:
    """Exact steps would bring them to .82 of their distance."""
    field = Subnetwork(AdaDiagTanh("tanh"), 1, weight=torch.tensor([[0.9]]))
    net = CTRNN(1, field, gate=gate, gate_bounds=(0.001, 0.0011), dt=0.5, bias=False)
    assert net.certificate().step.certified
    net = net.bfloat16()
    x = torch.tensor([[[0.5], [-0.5]]]).to(net.encoder.weight)
    last = net(torch.zeros(4000, 2, 1).to(x), x)[1].detach()
    assert float((last[0, 0] - last[0, 1]).abs()) >= 1
    found = net.certificate()
    assert found.certified
    assert "no proof is known of" in found.step.reason


@pytest.mark.parametrize("gate", ["shared", "congruence"])
def test_gated_steps_of_other_solvers_have_no_proof(gate: Any) -> None:
    field = Subnetwork(SingularValueBounded("tanh"), 3).double()
    for solver in ("exponential-euler", *(("imex",) if gate == "shared" else ())):
        found = certify_gated(
            field.terms(), field.metric(), gate=gate, lo=0.1, hi=1.0, dt=0.1, solver=solver
        )
        assert found.certified
        assert found.step is not None
        assert f"no proof is known for steps of {solver} with {gate} gates" in found.step.reason
