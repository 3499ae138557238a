"""The declared slope intervals, on which every certificate rests."""

import copy
import pickle

import pytest
import torch
from scipy.optimize import minimize_scalar

from ctrnn_assembly.activations import ACTIVATIONS, Activation, Elementwise, activation
from ctrnn_assembly.errors import ConfigError

every_activation = pytest.mark.parametrize("name", ACTIVATIONS)
CUBIC = Activation("cubic", lambda x: x - x.clamp(-1, 1) ** 3 / 3, (0.0, 1.0))


def joined_map(runs: list[tuple[Activation, int]]) -> Elementwise:
    """One map of several runs, as an assembly joins those of its parts."""
    return Elementwise.join(Elementwise((run,)) for run in runs)


def secant_slopes(phi: Activation) -> torch.Tensor:
    """(phi(a) - phi(b)) / (a - b) of neighbours on a grid of [-20, 20] with a point at 0."""
    x = torch.linspace(-20, 20, 80001)
    return phi(x).diff() / x.diff()


@every_activation
def test_declared_interval_contains_every_slope(name: str) -> None:
    phi = ACTIVATIONS[name]
    slopes = secant_slopes(phi)
    # Differences of values near 20 cost 4e-15 / 5e-4 = 7e-12.
    assert slopes.min() >= phi.slope[0] - 1e-10
    assert slopes.max() <= phi.slope[1] + 1e-10


@every_activation
def test_declared_interval_is_tight(name: str) -> None:
    phi = ACTIVATIONS[name]
    slopes = secant_slopes(phi)
    assert slopes.min() <= phi.slope[0] + 1e-3
    assert slopes.max() >= phi.slope[1] - 1e-3


@pytest.mark.parametrize(
    ("name", "near", "largest"), [("gelu", 1.4, 1.1289042), ("silu", 2.4, 1.0998393)]
)
def test_non_monotone_slopes_are_rounded_outwards(name: str, near: float, largest: float) -> None:
    phi = ACTIVATIONS[name]

    def negative_slope(x: float) -> float:
        z = torch.tensor(x, requires_grad=True)
        return -float(torch.autograd.grad(phi(z), z)[0])

    top = -minimize_scalar(negative_slope, (near - 0.5, near, near + 0.5), tol=1e-12).fun
    assert top == pytest.approx(largest, abs=1e-5)  # THEORY oracle 35
    assert top <= phi.slope[1] <= top + 1e-7
    assert phi.slope[0] == pytest.approx(1 - phi.slope[1], abs=1e-9)  # phi'(-x) = 1 - phi'(x)
    assert phi.g == phi.slope[1]
    assert not phi.monotone


def test_selu_slope_bound() -> None:
    assert ACTIVATIONS["selu"].g == pytest.approx(1.7580993408, abs=1e-9)  # THEORY oracle 35


def test_only_gelu_and_silu_are_not_monotone() -> None:
    assert {name for name, phi in ACTIVATIONS.items() if not phi.monotone} == {"gelu", "silu"}


@every_activation
def test_slope_at_equals_autograd(name: str) -> None:
    phi = ACTIVATIONS[name]
    x = (3 * torch.randn(4, 50)).requires_grad_()
    (expected,) = torch.autograd.grad(phi(x).sum(), x)
    torch.testing.assert_close(phi.slope_at(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_activation
def test_values_and_slopes_stay_finite_and_keep_their_dtype(name: str, dtype: torch.dtype) -> None:
    phi = ACTIVATIONS[name]
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=dtype)
    for value in (phi(x), phi.slope_at(x)):
        assert value.dtype == dtype
        assert torch.isfinite(value).all()


def test_users_activation_needs_no_derivative() -> None:
    x = torch.linspace(-2, 2, 41)
    expected = torch.where(x.abs() < 1, 1 - x**2, torch.ones_like(x))
    inside = (x.abs() - 1).abs() > 1e-9
    torch.testing.assert_close(CUBIC.slope_at(x)[inside], expected[inside], rtol=0, atol=1e-14)
    with torch.no_grad():
        assert CUBIC.slope_at(x).shape == x.shape
    assert activation(CUBIC) is CUBIC


@every_activation
def test_activations_can_be_pickled_and_copied(name: str) -> None:
    phi = ACTIVATIONS[name]
    mine = Activation("mine", torch.tanh, phi.slope)
    for one in (phi, mine):
        assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)
    assert pickle.loads(pickle.dumps(joined_map([(phi, 2), (mine, 1)]))).runs == ((phi, 2), (mine, 1))


@pytest.mark.parametrize(
    ("slope", "g", "monotone"),
    [((0.0, 3.0), 3.0, True), ((-2.0, 1.0), 2.0, False), ((0.5, 0.5), 0.5, True)],
)
def test_slope_bound_is_the_largest_magnitude(
    slope: tuple[float, float], g: float, monotone: bool
) -> None:
    phi = Activation("mine", torch.tanh, slope)
    assert phi.g == g
    assert phi.monotone is monotone


@pytest.mark.parametrize(
    "slope",
    [(1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0), (0.0, float("nan")), (0.0, 0.0)],
)
def test_bad_interval_is_refused(slope: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="slope interval of activation 'mine'"):
        Activation("mine", torch.tanh, slope)


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'tahn'") as caught:
        activation("tahn")
    assert all(name in str(caught.value) for name in ACTIVATIONS)


def test_elementwise_applies_each_activation_to_its_own_units() -> None:
    runs = [(ACTIVATIONS["relu"], 2), (CUBIC, 1), (ACTIVATIONS["tanh"], 3)]
    whole = joined_map(runs)
    x = 2 * torch.randn(5, 6)
    for apply, values in (
        (lambda phi, z: phi(z), whole(x)),
        (lambda phi, z: phi.slope_at(z), whole.slope_at(x)),
    ):
        torch.testing.assert_close(values[:, :2], apply(runs[0][0], x[:, :2]), rtol=0, atol=0)
        torch.testing.assert_close(values[:, 2:3], apply(CUBIC, x[:, 2:3]), rtol=0, atol=0)
        torch.testing.assert_close(values[:, 3:], apply(runs[2][0], x[:, 3:]), rtol=0, atol=0)


def test_elementwise_joins_neighbours_only() -> None:
    tanh, relu = ACTIVATIONS["tanh"], ACTIVATIONS["relu"]
    joined = joined_map([(tanh, 2), (tanh, 1), (relu, 1), (tanh, 1)])
    assert joined.runs == ((tanh, 3), (relu, 1), (tanh, 1))


def test_elementwise_identity_is_recognised() -> None:
    identity = ACTIVATIONS["identity"]
    assert joined_map([(identity, 2), (identity, 3)]).is_identity
    assert not joined_map([(identity, 2), (ACTIVATIONS["relu"], 3)]).is_identity
