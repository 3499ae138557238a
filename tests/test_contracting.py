"""Each theorem's weights contract in its metric, by the vertices of the slopes, not by its proof."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.nn.utils.parametrize import cached

from ctrnn_assembly.activations import ACTIVATIONS, Activation
from ctrnn_assembly.contracting import CONSTRAINTS, Contracting, FiringRate
from ctrnn_assembly.contracting.interface import raw_tensors
from ctrnn_assembly.errors import ContractionError, ShapeError
from ctrnn_assembly.linalg import log_metzler_scaling, working_precision
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.subnetwork import Subnetwork
from oracles import array, one_determinant, worst_rate

CERTIFIED = [name for name in CONSTRAINTS if CONSTRAINTS[name]().rate is not None]
TRAINABLE = [name for name in CERTIFIED if not CONSTRAINTS[name].frozen]
MONOTONE_ONLY = ("symmetric", "product", "firing-rate")
NO_GUARANTEE = ("unconstrained", "published-sparse")
SPARSE = {"density": 0.3, "magnitude": 0.5, "outside_set": "rescale"}
STEEP = Activation("steep", lambda x: torch.tanh(30 * x), (0.0, 30.0))


def constraint(name: str, phi: str | Activation = "tanh", **options: float) -> Contracting:
    return CONSTRAINTS[name](phi, **(SPARSE if name == "sparse-absolute" else {}) | options)


def claimed_slopes(rule: Contracting) -> tuple[float, float]:
    """The box of slopes that the theorem claims: [0, g] if it uses phi' >= 0, else [-g, g]."""
    g = rule.phi.g
    return (0.0, g) if rule.phi.monotone and rule.theorem != "Theorem 5" else (-g, g)


def measured_rate(module: Subnetwork, form: str) -> float:
    """The exact rate of the weight in use, in the metric M = Theta^T Theta of the same raws."""
    rule = module.constraint
    theta = array(rule.metric(*working_precision(*raw_tensors(module)), form=form).theta)
    M = np.diag(theta**2) if theta.ndim == 1 else theta.T @ theta
    return worst_rate(array(module.weight), M, form, claimed_slopes(rule))


def assert_member(module: Subnetwork) -> None:
    W, rule = array(module.weight), module.constraint
    assert np.isfinite(W).all()
    for form in ("x", "r"):
        assert measured_rate(module, form) >= rule.rate
    structure = {
        "Theorem 2": W - W.T,
        "Theorem 4": np.triu(W, 1),
        "AdaDiag tanh": W - np.diag(np.diag(W)),
        "AdaDiag clip": W - np.diag(np.diag(W)),
    }
    assert not structure.get(rule.theorem, np.zeros(1)).any()


def train_absurdly(module: Subnetwork, *, steps: int = 100, lr: float = 1e3) -> None:
    """SGD on a random loss whose gradient in W is bounded, so that only the map can diverge."""
    optimiser = torch.optim.SGD(module.parametrizations.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        (module.weight * torch.randn(module.size, module.size, dtype=module.tau.dtype)).sum().backward()
        optimiser.step()


def test_oracle_reproduces_known_rates() -> None:
    """THEORY section 10: 2, 4, 12, 38 and the x- and r-metrics of 8."""
    strong = np.array([[0.0, 4.0], [0.0, 0.0]])
    skew = np.array([[0.0, -1.0], [1.0, 0.0]])
    W, M = np.array([[0.0, 0.3], [-3.0, 0.0]]), np.array([[25.25, 8.25], [8.25, 2.975]])
    assert worst_rate(strong, np.eye(2), slope=(1.0, 1.0)) == pytest.approx(-1, abs=1e-12)
    assert worst_rate(strong, np.diag([1 / 16, 1.0]), slope=(1.0, 1.0)) == pytest.approx(0.5)
    assert worst_rate(W, M) == pytest.approx(-1.9573136734, abs=1e-8)
    assert worst_rate(1.99 * skew, np.eye(2)) == pytest.approx(0.005, abs=1e-9)
    assert worst_rate(3 * skew, np.eye(2)) == pytest.approx(-0.5, abs=1e-9)
    W8 = -np.array([[6.0, 1.0], [6.0, 4.0]])
    for form, M in (("x", [[8.0, -2.0], [-2.0, 2.0]]), ("r", [[18.0, 3.0], [3.0, 2.0]])):
        assert worst_rate(W8, np.array(M), form) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("name", CERTIFIED)
def test_weight_contracts_in_its_metric_at_any_raw_value(name: str, n: int, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    for phi in ("tanh", "selu", STEEP, "gelu"):
        if phi == "gelu" and name in MONOTONE_ONLY:
            continue
        module = Subnetwork(constraint(name, phi), n)
        assert_member(module)
        if name in TRAINABLE:
            for scale in (1e4, 1e12):
                with torch.no_grad():
                    for raw in raw_tensors(module):
                        raw.copy_(scale * torch.randn_like(raw))
                assert_member(module)
    assert module.weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("name", TRAINABLE)
def test_weight_contracts_after_sgd_with_an_absurd_step(name: str, n: int, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    module = Subnetwork(constraint(name), n)
    before = module.weight.clone()
    train_absurdly(module)
    assert not torch.equal(module.weight, before)
    assert_member(module)


@pytest.mark.parametrize("margin", [0.001, 0.3, 0.9])
@pytest.mark.parametrize("name", CERTIFIED)
def test_margin_is_the_guaranteed_rate(name: str, margin: float) -> None:
    module = Subnetwork(constraint(name, margin=margin), 4)
    if name in TRAINABLE:
        train_absurdly(module)
    assert_member(module)
    assert module.constraint.rate == (0.99 if name == "product" else margin)


@pytest.mark.parametrize("margin", [0.0, 0.0009, 1.0, -1.0, float("nan")])
@pytest.mark.parametrize("name", [name for name in CERTIFIED if name != "product"])
def test_impossible_margin_is_refused(name: str, margin: float) -> None:
    with pytest.raises(ContractionError, match=r"margin must be in \[0.001, 1\)"):
        constraint(name, margin=margin)


@pytest.mark.parametrize("phi", ["gelu", "silu", Activation("dip", torch.sin, (-1.0, 1.0))])
@pytest.mark.parametrize("name", MONOTONE_ONLY)
def test_non_monotone_activation_is_refused(name: str, phi: str | Activation) -> None:
    with pytest.raises(ContractionError, match="slopes >= 0"):
        constraint(name, phi)


NO = {
    "absolute": {
        "radius 2": [[0.0, 4.0], [1.0, 0.0]],
        "radius 1": [[0.0, 1.0], [1.0, 0.0]],
        "skew of radius 1": [[0.0, -1.0], [1.0, 0.0]],
        "excited unit": [[1.0, 0.0], [0.0, 0.0]],
        "dense": [[0.6, -0.6], [0.6, 0.6]],
        "too strong a chain": [[0.0, 1e7], [0.0, 0.0]],
    },
    "symmetric": {
        "asymmetric": [[0.0, 0.5], [0.4, 0.0]],
        "eigenvalue 1": [[1.0, 0.0], [0.0, -1.0]],
        "eigenvalue 2": [[0.0, 2.0], [2.0, 0.0]],
    },
    "product": {
        "signs differ": [[-1.0, 0.5], [-0.5, -1.0]],
        "Q indefinite": [[-1.0, -3.0], [-3.0, -1.0]],
        "Q singular": [[-1.0, -1.0], [-1.0, -1.0]],
        "W positive": [[0.5, 0.0], [0.0, 0.5]],
        "one way": [[-1.0, -0.5], [0.0, -1.0]],
        # W_12 W_23 W_31 = W_21 W_32 W_13 holds for every P1 Q P2.
        "cycle": [[-1.0, -0.3, -0.3], [-0.3, -1.0, -0.3], [-0.1, -0.3, -1.0]],
    },
    "triangular": {
        "upper": [[0.0, 0.1], [0.0, 0.0]],
        "excited unit": [[0.5, 0.0], [5.0, 1.0]],
    },
    "singular": {
        "norm above 1 in every P": [[0.0, 4.0], [1.0, 0.0]],
        "rotation": [[0.0, -1.0], [1.0, 0.0]],
        "identity": [[1.0, 0.0], [0.0, 1.0]],
    },
    "adadiag-tanh": {
        "off-diagonal": [[0.0, 0.1], [0.0, 0.0]],
        "w = 1": [[1.0, 0.0], [0.0, 0.0]],
        "w = -1.2": [[-1.2, 0.0], [0.0, 0.0]],
    },
}
NO["sparse-absolute"] = NO["absolute"]
NO["adadiag-clip"] = NO["adadiag-tanh"]


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in NO for case in NO[name]])
def test_weight_outside_the_set_is_refused(name: str, case: str) -> None:
    W = torch.tensor(NO[name][case])
    with pytest.raises(ContractionError):
        constraint(name).right_inverse(W)
    module = Subnetwork(constraint(name), len(W))
    before = module.weight.clone()
    with pytest.raises(ContractionError):
        module.weight = W
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("name", CERTIFIED)
def test_slope_bound_enters_the_condition(name: str) -> None:
    if name == "product":  # the rate is 1 for every g
        return
    W = torch.diag(torch.full((2,), 0.5))
    constraint(name, "tanh").right_inverse(W)
    with pytest.raises(ContractionError):
        constraint(name, Activation("twice", lambda x: torch.tanh(2 * x), (0.0, 2.0))).right_inverse(W)


@pytest.mark.parametrize("name", ["absolute", "sparse-absolute", "triangular"])
def test_strong_self_inhibition_is_in_theorem_1_for_monotone_phi_only(name: str) -> None:
    W = torch.tensor([[-5.0, 0.0], [0.5, -5.0]])
    module = Subnetwork(constraint(name), 2, weight=W)
    torch.testing.assert_close(module.weight, W, rtol=0, atol=1e-9)
    assert_member(module)
    with pytest.raises(ContractionError):
        constraint(name, "gelu").right_inverse(W)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_not_a_finite_square_matrix_is_refused(name: str) -> None:
    rule = CONSTRAINTS[name]()
    for bad in (torch.zeros(2, 3), torch.zeros(2), torch.zeros(0, 0), torch.zeros(1, 2, 2)):
        with pytest.raises(ShapeError):
            rule.right_inverse(bad)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ContractionError, match="finite"):
            rule.right_inverse(torch.tensor([[value, 0.0], [0.0, 0.0]]))


def drawn(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """A member of the set, made without the library's map."""
    A = rng.normal(size=(n, n))
    if name in ("absolute", "sparse-absolute"):
        scale = np.exp(rng.uniform(-1, 1, n))
        return scale[:, None] * A / scale * (0.8 / np.abs(np.linalg.eigvals(np.abs(A))).max())
    if name == "symmetric":
        values = rng.uniform(-0.5, 0.9, n)
        Q = np.linalg.qr(A)[0]
        W = Q * values @ Q.T
        return (W + W.T) / 2
    if name == "product":
        P1, P2 = np.exp(rng.uniform(-0.4, 0.4, (2, n)))
        Q = np.linalg.qr(A)[0]
        return -P1[:, None] * (Q * rng.uniform(0.2, 1.5, n) @ Q.T) * P2
    if name == "triangular":
        return np.tril(A, -1) / n + np.diag(rng.uniform(-2, 0.8, n))
    if name == "singular":
        return A * (0.9 / np.linalg.norm(A, 2))
    return np.diag(rng.uniform(-0.98, 0.98, n))


@pytest.mark.parametrize("name", CERTIFIED)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_every_member_is_reached(name: str, n: int, seed: int) -> None:
    torch.set_default_dtype(torch.float64)
    W = torch.from_numpy(drawn(name, n, np.random.default_rng(seed)))
    rule = constraint(name)
    raw = rule.right_inverse(W)
    assert all(torch.isfinite(r).all() for r in raw)
    # AdaDiag's inverse stops 1e-7 inside the boundary; Newton and atanh lose digits near theirs.
    torch.testing.assert_close(rule(*raw), W, rtol=1e-8, atol=1e-8)
    again = rule(*rule.right_inverse(rule(*raw)))
    torch.testing.assert_close(again, rule(*raw), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CERTIFIED)
def test_every_sample_is_accepted(name: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    rule = constraint(name)
    few = name == "firing-rate"  # whose inverse is a search
    for n in (1, 2, 3, 16):
        for seed in range(20 if n == 16 or few else 150):
            W = rule.sample(n, torch.Generator().manual_seed(seed))
            error = (rule(*rule.right_inverse(W)) - W).abs().max()
            assert error < 1e-5  # float32 raw tensors


@pytest.mark.parametrize("name", [k for k, kind in CONSTRAINTS.items() if "init_scale" in kind.settings])
def test_every_set_that_takes_an_init_scale_samples_by_it(name: str) -> None:
    kind = CONSTRAINTS[name]
    by = [{}, *({"init_scale": factor * kind.init_scale} for factor in (1.0, 2.0, 0.0))]
    usual, same, doubled, none = (kind(**one).sample(6, torch.Generator().manual_seed(0)) for one in by)
    assert torch.equal(usual, same)
    assert not torch.allclose(usual, doubled)
    assert not torch.allclose(usual, none)
    for W in (doubled, none):
        torch.testing.assert_close(Subnetwork(kind(), 6, weight=W).weight, W, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("name", CERTIFIED)
def test_two_trajectories_close_at_the_certified_rate(name: str, form: str) -> None:
    """|x - y|_M falls at least as e^(-rate t) between any two times, under one random input."""
    for phi in ("tanh", "relu"):
        module = Subnetwork(constraint(name, phi, margin=0.2), 4, form=form)
        if name in TRAINABLE:
            train_absurdly(module, steps=3, lr=30.0)
        theta = array(module.metric().theta())
        a, w = torch.randn(2, 4), 3 * torch.rand(4)

        def field(
            t: float,
            z: np.ndarray,
            module: Subnetwork = module,
            a: Tensor = a,
            w: Tensor = w,
        ) -> np.ndarray:
            x = torch.from_numpy(z).view(2, 4)
            u = a[0] * torch.sin(w * t) + a[1] * torch.cos(2 * w * t)
            return module(t, x, u.expand(2, 4)).numpy().ravel()

        times = np.linspace(0, 3, 13)
        start = 2 * torch.randn(8).numpy()
        with torch.no_grad(), cached():  # the weight is made once
            path = solve_ivp(
                field, (0, 3), start, method="LSODA", t_eval=times, rtol=1e-9, atol=1e-11
            ).y.reshape(2, 4, -1)
        distance = np.linalg.norm(theta @ (path[0] - path[1]), axis=0)
        factor = np.exp(-module.rate * np.diff(times))
        assert (distance[1:] <= distance[:-1] * factor * (1 + 1e-6) + 1e-8).all()


def test_metzler_scaling_of_a_chain() -> None:
    """THEORY oracle 1: W = [[0,4],[0,0]], r = 1 gives P = diag(.2, 5) and rate .6."""
    W = np.array([[0.0, 4.0], [0.0, 0.0]])
    log_theta = log_metzler_scaling(torch.from_numpy(W), 1.0)
    P = np.exp(2 * array(log_theta))
    np.testing.assert_allclose(P, [0.2, 5.0], rtol=1e-12)
    assert worst_rate(W, np.diag(P)) == pytest.approx(0.6, abs=1e-12)
    assert log_metzler_scaling(torch.tensor([[0.0, 4.0], [0.25, 0.0]]), 1.0) is None
    assert log_metzler_scaling(torch.tensor([[0.0, 4.0], [1.0, 0.0]]), 1.0) is None


@pytest.mark.parametrize(
    ("name", "W", "best"),
    [
        ("absolute", [[0.0, 0.3], [-3.0, 0.0]], 0.0513167019),  # oracle 3
        ("sparse-absolute", [[0.0, 0.3], [-3.0, 0.0]], 0.0513167019),
        ("triangular", [[0.5, 0.0], [7.0, -2.0]], 0.5),  # oracle 9
        ("singular", [[0.0, -0.9], [0.9, 0.0]], 0.1),  # oracle 10
        ("symmetric", [[0.5, 0.0], [0.0, -1.0]], 0.5),  # oracle 6
        ("adadiag-tanh", [[0.7, 0.0], [0.0, -0.3]], 0.3),
    ],
)
def test_largest_margin_that_a_weight_admits(name: str, W: list[list[float]], best: float) -> None:
    options = {"max_condition": 1e20} if name == "triangular" else {}
    rule = constraint(name, margin=best - 1e-4, **options)
    assert_member(Subnetwork(rule, 2, weight=torch.tensor(W)))
    with pytest.raises(ContractionError, match="needs"):
        constraint(name, margin=best + 1e-4, **options).right_inverse(torch.tensor(W))


def test_theorem1_map() -> None:
    """THEORY oracle 5, with the radius r = 1 - margin."""
    rule = constraint("absolute")
    W = array(rule(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.zeros(2)))
    np.testing.assert_allclose(W / 0.99, [[0, 0.5], [0.5, 0]], rtol=2e-5)
    assert worst_rate(W / rule.radius, np.eye(2)) == pytest.approx(0.5, abs=1e-12)


def symmetric_raw(R: list[float], c: float, radius: float, bound: float = 2.0) -> tuple[Tensor, ...]:
    """Raw tensors of Theorem 2 for R = diag(R): R = .05 + G / (1 + |G| / (bound sqrt n))."""
    squashed = torch.tensor(R) - 0.05
    n = len(R)
    G = squashed / (1 - squashed.norm() / (bound * n**0.5))
    share = c / radius
    return torch.diag((n * G).sqrt()), torch.tensor([share / (1 - share)]).log()


def test_theorem2_map_and_metrics() -> None:
    """THEORY oracles 6 and 7; the r-metric is the inverse of the x-metric."""
    rule = constraint("symmetric")
    for R, expected in ((0.5, 0.25), (1.0, 0.0)):
        W = rule(*symmetric_raw([R, R], 0.25, rule.radius))
        torch.testing.assert_close(W, expected * torch.eye(2), rtol=0, atol=1e-12)
    raw = symmetric_raw([0.5**0.5, 0.5**0.5 + 1.5**0.5], 0.5, rule.radius)
    W, M = array(rule(*raw)), array(Metric((rule.metric(*working_precision(*raw), form="x"),)).matrix())
    np.testing.assert_allclose(W, np.diag([0.5, -1.0]), atol=1e-12)
    np.testing.assert_allclose(M, one_determinant(np.diag([2, 2 - 3**0.5])), atol=1e-9)
    np.testing.assert_allclose(
        array(Metric((rule.metric(*working_precision(*raw), form="r"),)).matrix()),
        np.linalg.inv(M),
        atol=1e-9,
    )
    assert worst_rate(W, M) == pytest.approx(0.5, abs=1e-9)


def test_theorem3_metrics() -> None:
    """THEORY oracle 8, W scaled by 1/4 to lie within the bounds on Q."""
    W = -torch.tensor([[6.0, 1.0], [6.0, 4.0]]) / 4
    rule = constraint("product")
    raw = rule.right_inverse(W)
    for form, M in (("x", [[8.0, -2.0], [-2.0, 2.0]]), ("r", [[18.0, 3.0], [3.0, 2.0]])):
        expected = one_determinant(np.array(M))
        found = array(Metric((rule.metric(*working_precision(*raw), form=form),)).matrix())
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert worst_rate(array(W), found, form) == pytest.approx(1, abs=1e-9)


def test_theorem5_map() -> None:
    """THEORY oracle 11: A = I gives s(X) = 1 / sqrt 2."""
    rule = constraint("singular")
    W = array(rule(torch.eye(3), torch.zeros(3)))
    assert np.linalg.norm(W, 2) / rule.radius == pytest.approx(0.7071067812, abs=1e-9)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_state_dict_copies_casts_and_modes_keep_the_weight(name: str) -> None:
    module, fresh = (Subnetwork(constraint(name), 16) for _ in range(2))
    W, M = module.weight.detach().clone(), module.metric().matrix().detach().clone()
    assert not torch.equal(fresh.weight, W)
    fresh.load_state_dict(module.state_dict())
    twin = copy.deepcopy(module)
    for other in (fresh, twin, module.eval(), module.train()):
        assert torch.equal(other.weight, W)
        assert torch.equal(other.metric().matrix(), M)
    there_and_back = twin.to(torch.float32)
    assert there_and_back.weight.dtype == torch.float32
    assert there_and_back.metric().theta().dtype == torch.float64  # so that couplings round once
    torch.testing.assert_close(there_and_back.weight, W.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there_and_back.to(torch.float64).weight, W, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_assigned_weight_is_a_copy(name: str) -> None:
    module = Subnetwork(constraint(name), 3)
    W = torch.diag(torch.tensor([-0.5, -0.25, -0.3]))
    module.weight = W
    torch.testing.assert_close(module.weight, W.clone(), rtol=0, atol=1e-9)
    given_at_start = Subnetwork(constraint(name), 3, weight=W)
    expected = W.clone()
    W *= 1e3
    for held in (module, given_at_start):
        torch.testing.assert_close(held.weight, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NO_GUARANTEE)
def test_controls_claim_no_rate(name: str) -> None:
    module = Subnetwork(constraint(name), 16)
    assert module.constraint.rate is None
    assert module.rate is None
    assert torch.equal(module.metric().matrix(), torch.eye(16))


def test_a_set_whose_activation_was_replaced_by_none_of_its_own_claims_no_rate() -> None:
    module = Subnetwork(constraint("symmetric"), 3)
    module.constraint.phi = ACTIVATIONS["gelu"]
    assert module.rate is None


@pytest.mark.parametrize("metric", ["x", "r"])
def test_membership_check_can_fail(metric: str) -> None:
    """The check used above rejects the metric of the other form, and a scaled weight."""
    torch.manual_seed(3)
    rule = constraint("product")
    raw = rule.right_inverse(rule.sample(4))
    W = array(rule(*raw))
    theta = array(rule.metric(*working_precision(*raw), form=metric).theta)
    other = "r" if metric == "x" else "x"
    assert worst_rate(W, theta.T @ theta, metric) > 0.99
    assert worst_rate(W, theta.T @ theta, other) < 0.99


def test_firing_rates_contract_at_every_vertex_beyond_the_other_theorems() -> None:
    """Theorem 35 against sampled slopes; some W are larger than any other set here allows."""
    rule, largest = FiringRate("relu", margin=0.1), 0.0
    for seed in range(40):
        torch.manual_seed(seed)
        n = int(torch.randint(1, 7, ()))
        raw = torch.randn(n, n), 2 * torch.randn(n, n), torch.randn(n)
        W, factor = rule(*raw), rule.metric(*working_precision(*raw), form="r")
        for slopes in torch.randint(0, 2, (50, n)).double():
            J = factor.theta @ (slopes[:, None] * W - torch.eye(n)) @ factor.theta_inv
            assert torch.linalg.eigvalsh(J + J.mT)[-1] / 2 <= -0.1
        largest = max(largest, float(torch.linalg.matrix_norm(W, 2)))
    assert largest > 10
