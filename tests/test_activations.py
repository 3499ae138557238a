"""The declared slope intervals, on which every certificate rests."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import mpmath
import pytest
import torch
from mpmath import iv
from torch import Tensor, nn

from ctrnn_assembly import SingularValueBounded, Subnetwork, certify, couple
from ctrnn_assembly.activations import ACTIVATIONS, Activation, Elementwise, activation
from ctrnn_assembly.certificates.result import fact_rows, verdict
from ctrnn_assembly.errors import ConfigError
from oracles import sloped

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


def curvature(name: str, x: Any) -> Any:
    """phi''(x) over a factor that is positive for x > 0."""
    if name == "gelu":  # phi'' = (2 - x^2) times the normal density
        return 2 - x * x
    if name == "silu":  # s (1 - s) (2 - x tanh(x / 2))
        return 2 - x * tanh(x / 2)
    t, d, c = tanh(ROOT * (x + CUBE * x**3)), ROOT * (1 + 3 * CUBE * x * x), 6 * ROOT * CUBE
    return d + c * x * x / 2 - x * t * d * d  # phi'' / (1 - t^2)


def slope(name: str, x: float) -> Any:
    z = mpmath.mpf(x)
    if name == "gelu":
        return mpmath.ncdf(z) + z * mpmath.npdf(z)
    if name == "silu":
        s = 1 / (1 + mpmath.exp(-z))
        return s + z * s * (1 - s)
    root = mpmath.sqrt(2 / mpmath.pi)
    t, d = mpmath.tanh(root * (z + CUBE * z**3)), root * (1 + 3 * CUBE * z * z)
    return ((1 + t) + z * (1 - t * t) * d) / 2


CUBE, ROOT = 0.044715, iv.sqrt(2 / iv.pi)


def tanh(x: Any) -> Any:
    """In interval arithmetic."""
    return 1 - 2 / (iv.exp(2 * x) + 1)


def has_sign(name: str, a: float, b: float, sign: int) -> bool:
    """Whether phi'' has that sign on [a, b], shown by interval arithmetic with bisection."""
    found, middle = sign * curvature(name, iv.mpf([a, b])), (a + b) / 2
    return found.a > 0 or (
        found.b > 0 and has_sign(name, a, middle, sign) and has_sign(name, middle, b, sign)
    )


@pytest.mark.parametrize(
    ("name", "peak"), [("gelu", 2**0.5), ("silu", 2.3993572805154), ("gelu_tanh", 1.418504008790829)]
)
def test_non_monotone_slopes_are_proven_bounds(name: str, peak: float) -> None:
    """phi' rises up to its one peak and falls to 1 from there, and phi'(-x) = 1 - phi'(x)."""
    phi, width = ACTIVATIONS[name], 1e-9
    assert has_sign(name, 1e-6, peak - width, 1)
    assert has_sign(name, peak + width, 40.0, -1)  # beyond, phi' differs from 1 by less than 1e-15
    top = slope(name, peak)
    # |phi''| < 2, so that phi' cannot rise by more than 2 widths next to the peak.
    assert top + 2 * width < phi.slope[1] < top + 1e-7
    assert phi.slope[0] == pytest.approx(1 - phi.slope[1], abs=1e-12)
    x = torch.linspace(-9, 9, 1001)
    torch.testing.assert_close(phi(x) - phi(-x), x, rtol=0, atol=1e-14)
    assert float(phi.slope_at(torch.tensor(peak))) == pytest.approx(float(top), abs=1e-12)
    assert phi.g == phi.slope[1]
    assert not phi.monotone


TORCH = {
    "LeakyReLU": (nn.LeakyReLU(), (0.01, 1.0)),
    "SiLU": (nn.SiLU(), (-0.09983932, 1.09983932)),
    "GELU": (nn.GELU(), (-0.12890415, 1.12890415)),
    "Softplus": (nn.Softplus(), (0.0, 1.0)),
    "ELU": (nn.ELU(), (0.0, 1.0)),
    "SELU": (nn.SELU(), (0.0, 1.75809934)),
    "Hardtanh": (nn.Hardtanh(), (0.0, 1.0)),
    "Sigmoid": (nn.Sigmoid(), (0.0, 0.25)),
    "Tanh": (nn.Tanh(), (0.0, 1.0)),
    "ReLU": (nn.ReLU(), (0.0, 1.0)),
    "Identity": (nn.Identity(), (1.0, 1.0)),
}
SET = [
    (nn.LeakyReLU(0.2), (0.2, 1.0)),
    (nn.LeakyReLU(-0.5), (-0.5, 1.0)),
    (nn.LeakyReLU(3.0), (1.0, 3.0)),
    (nn.ELU(2.0), (0.0, 2.0)),
    (nn.ELU(-0.3), (-0.3, 1.0)),
    (nn.Hardtanh(-2.0, 0.5), (0.0, 1.0)),
    (nn.ReLU6(), (0.0, 1.0)),
    (nn.Softplus(beta=3.0), (0.0, 1.0)),
    (nn.GELU(approximate="tanh"), (-0.12899307, 1.12899307)),
]


@pytest.mark.parametrize(("module", "bounds"), [*TORCH.values(), *SET], ids=str)
def test_a_module_of_torch_is_taken_with_its_true_slopes(
    module: nn.Module, bounds: tuple[float, float]
) -> None:
    phi, x = activation(module), torch.linspace(-30, 30, 1201)
    assert phi.proven
    assert phi.slope == pytest.approx(bounds, abs=2e-7)
    # torch's softplus is x from 20 / beta on, where log(1 + e^x) still differs by 2e-9.
    torch.testing.assert_close(phi(x), module(x), rtol=0, atol=3e-9)
    slopes = secant_slopes(phi)
    assert slopes.min() >= phi.slope[0] - 1e-9
    assert slopes.max() <= phi.slope[1] + 1e-9
    assert activation(module) is phi
    again = pickle.loads(pickle.dumps(phi))
    assert again.proven
    assert again.slope == phi.slope
    net = Subnetwork(SingularValueBounded(module), 4)
    certificate = certify(net)
    assert certificate.certified
    assert not certificate.declared


@pytest.mark.parametrize("name", TORCH)
def test_an_activation_has_the_name_that_torch_gives_it(name: str) -> None:
    assert activation(name).slope == pytest.approx(activation(TORCH[name][0]).slope, abs=1e-12)


class Steep(nn.GELU):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.PReLU(), "PReLU"),
        (Steep(), "Steep"),
        (nn.Softplus(1.0, 1.0), "Softplus"),
        (nn.Mish(), "Mish"),
    ],
)
def test_a_module_without_a_known_bound_is_refused(module: nn.Module, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        activation(module)


FALSE = {
    "twice": (lambda v: 2 * torch.tanh(v), (0.0, 1.0)),
    "slightly more": (lambda v: 1.001 * v, (0.0, 1.0)),
    "steep at 0 only": (lambda v: v + 1e-4 * torch.tanh(1e4 * v), (0.0, 1.0)),
    "steep far away": (lambda v: v + torch.relu(v - 5e5), (0.0, 1.0)),
    "negative far away": (lambda v: v - torch.relu(-3e4 - v) * 1.5, (0.0, 1.0)),
    "a narrow step": (lambda v: torch.tanh(1e4 * (v - 0.3)), (0.0, 9e3)),
    "gelu": (torch.nn.functional.gelu, (0.0, 1.0)),
    "gelu, rounded inwards": (torch.nn.functional.gelu, (-0.1289, 1.1289)),
    "sign": (torch.sign, (0.0, 1.0)),
    "round": (torch.round, (0.0, 1.0)),
    "square": (torch.square, (-100.0, 100.0)),
    "overflow": (lambda v: torch.log(1 + torch.exp(v)), (0.0, 1.0)),
    "decreasing": (lambda v: -torch.tanh(v), (0.0, 1.0)),
    "never flat": (torch.tanh, (0.1, 1.0)),
}


@pytest.mark.parametrize("name", FALSE)
def test_a_false_declaration_is_refused_with_the_secant(name: str) -> None:
    function, bounds = FALSE[name]
    with pytest.raises(ConfigError, match=r"declared to have slopes in .* got .* between x = "):
        Activation(name, function, bounds)


@pytest.mark.parametrize(
    "function",
    [lambda v: torch.softmax(v, -1), torch.sum, lambda v: v - v.mean(), lambda v: 0.5, lambda v: [v]],
)
def test_what_is_not_elementwise_is_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match="each number alone"):
        Activation("mixed", function, (-1.0, 1.0))


def test_units_that_are_mixed_in_a_batch_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="each number alone"):
        Activation("mixed", lambda v: v + v.roll(1, -1) if v.ndim > 1 else v, (0.0, 1.0))


@pytest.mark.parametrize("function", [torch.relu_, lambda v: v.mul_(2.0), lambda v: v.tanh_().clone()])
def test_what_works_in_place_is_refused(function: Any) -> None:
    """It would change the state x in -x + W phi(x): x.mul_(2) doubles it in every step."""
    with pytest.raises(ConfigError, match="not in place"):
        Activation("in place", function, (0.0, 2.0))


def test_trained_activations_are_refused() -> None:
    with pytest.raises(ConfigError, match="train no parameters"):
        Activation("prelu", nn.PReLU(), (0.0, 1.0))


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (lambda v: (v.exp() - (-v).exp()).clamp(-1, 1) / 2, (0.0, 1.2)),
        (lambda v: 2 / (1 + torch.exp(-2 * v)) - 1, (0.0, 1.0)),
        (lambda v: torch.sqrt(1 + v * v) - 1, (-1.0, 1.0)),
        (torch.sin, (-1.0, 1.0)),
        (lambda v: torch.tanh(30 * v) / 30, (0.0, 1.0)),
        (lambda v: 1e6 * torch.tanh(v), (0.0, 1e6)),
        (lambda v: 1e-6 * torch.tanh(v), (0.0, 1e-6)),
    ],
)
def test_a_true_declaration_is_believed_whatever_it_rounds(function: Any, bounds: Any) -> None:
    assert not Activation("mine", function, bounds).proven


def test_certificate_says_that_slopes_are_declared() -> None:
    mine = sloped(0.0, 0.9)
    for psi, phi, said in (("tanh", mine, True), (mine, "tanh", True), ("tanh", "tanh", False)):
        parts = [Subnetwork(SingularValueBounded(phi, margin=0.5), 3) for _ in range(2)]
        certificate = certify(couple(parts, kind="hierarchy", psi=psi, init_scale=0.01), dt=0.1)
        assert certificate.certified
        assert certificate.declared == ((mine.name,) if said else ())
        assert certificate.as_dict()["declared"] == [*certificate.declared]
        words = verdict(certificate), str(fact_rows(certificate))
        assert all(("declared, not proven" in one) == said for one in words)


def test_a_changed_activation_of_the_library_is_no_longer_proven() -> None:
    assert ACTIVATIONS["tanh"].proven
    assert not replace(ACTIVATIONS["tanh"], function=torch.sin, slope=(-1.0, 1.0)).proven
    with pytest.raises(ConfigError, match="declared to have slopes"):
        replace(ACTIVATIONS["tanh"], slope=(0.0, 0.5))


def test_selu_slope_bound() -> None:
    assert ACTIVATIONS["selu"].g == pytest.approx(1.7580993408, abs=1e-9)  # THEORY oracle 35


def test_only_gelu_and_silu_are_not_monotone() -> None:
    found = {name for name, phi in ACTIVATIONS.items() if not phi.monotone}
    assert found == {"gelu", "gelu_tanh", "silu"}


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
    mine = Activation("mine", torch.tanh, (0.0, 1.0))
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
    phi = sloped(*slope)
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


@pytest.mark.parametrize("slope", [1.0, "ab", ("0", "1"), (1.0,), (0.0, 1.0, 2.0), None])
def test_a_slope_that_is_no_interval_is_refused(slope) -> None:
    with pytest.raises(ConfigError, match=r"must be two numbers, \(lo, hi\)"):
        Activation("mine", torch.tanh, slope=slope)
