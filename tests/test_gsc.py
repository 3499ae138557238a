"""The gradient scale coefficient against brute-force Jacobians, closed forms and its error bars."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctrnn_assembly import (
    CTRNN,
    AdaDiagTanh,
    SingularValueBounded,
    Subnetwork,
    Unconstrained,
    certify,
    couple,
)
from ctrnn_assembly.baselines import LSTM, AntisymmetricRNN, LipschitzRNN, VanillaRNN
from ctrnn_assembly.diagnostics.gradients import (
    gsc,
    gsc_over_time,
)
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError


def brute_force(layers: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """GSC of the batch as one vector, from one dense Jacobian."""

    def chain(z: Tensor) -> Tensor:
        for layer in layers:
            z = layer(z)
        return z

    J = torch.autograd.functional.jacobian(chain, x)
    return (J.square().sum() / x.numel()).sqrt() * x.norm() / chain(x).norm()


def orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n))[0]


def apart(W: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear layer in which every sample has its own weights, W (B, n, n)."""
    return lambda x: (W @ x[..., None])[..., 0]


def within(found: Tensor, expected: float, errors: float = 4.0) -> bool:
    """Whether the mean of found (samples,) agrees with what it estimates."""
    return abs(float(found.mean()) - expected) < errors * float(found.std()) / len(found) ** 0.5


# Closed forms


@pytest.mark.parametrize(("x", "square"), [((1.0, 1.0), 1.0), ((1.0, 0.0), 0.625), ((0.0, 1.0), 2.5)])
def test_oracle_31_a_diagonal_layer(x, square):
    net = [lambda z: z @ torch.diag(torch.tensor([2.0, 1.0]))]
    assert float(gsc(net, torch.tensor([x])).value[0] ** 2) == pytest.approx(square, abs=1e-12)


def test_orthogonal_linear_layers_have_gsc_one():
    layers = [nn.Linear(6, 6, bias=False) for _ in range(20)]
    for layer in layers:
        layer.weight.data = orthogonal(6)
    x = torch.randn(5, 6)
    one = torch.ones(21)
    torch.testing.assert_close(gsc(layers, x).value, one, rtol=0, atol=1e-13)
    single = torch.stack([gsc(nn.Sequential(*layers), one).value for one in x.split(1)])
    torch.testing.assert_close(single, one.expand(5, -1), rtol=0, atol=1e-13)


def test_he_relu_layers_have_gsc_one_in_expectation():
    n, draws = 16, 100
    x, jacobians, growths = torch.randn(1, n).expand(draws, n), [], []
    for _ in range(30):  # batches, each the mean over its samples
        weights = (torch.randn(draws, n, n) * (2 / n) ** 0.5 for _ in range(6))
        found = gsc([layer for W in weights for layer in (apart(W), torch.relu)], x)
        jacobians.append(found.jacobian[0].square())
        growths.append((found.size[-1] / found.size[0]).square())
    assert within(torch.stack(jacobians), 1.0)
    assert within(torch.stack(growths), 1.0)


def gaussian_linear(n: int, depth: int) -> float:
    """E[GSC^2] of Gaussian linear layers with variance 1 / n."""
    return (2 * (n - 1) * ((n - 1) / (n - 2)) ** depth - n + 2) / n


def test_oracle_32_gaussian_linear_layers():
    assert gaussian_linear(100, 50) == pytest.approx(2.3094337, abs=1e-6)
    n, depth, draws = 20, 10, 400
    layers_of = lambda: [apart(torch.randn(1, n, n) * n**-0.5) for _ in range(depth)]  # noqa: E731
    found = torch.stack([gsc(layers_of(), torch.randn(1, n)).value[0] for _ in range(draws)])
    assert within(found.square(), gaussian_linear(n, depth))


def test_a_constant_layer_and_a_vanishing_one():
    x = torch.randn(3, 4)
    constant = gsc([lambda z: torch.ones(3, 2)], x).value
    torch.testing.assert_close(constant[0], torch.tensor(0.0))
    nothing = gsc([lambda z: 0 * z], x).value
    assert bool(nothing[0].isnan())  # 0 / 0


# Against dense Jacobians


def plain() -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(inplace=True), nn.LayerNorm(6), nn.Linear(6, 3), nn.Tanh()
    )
    return net.double()


def batch_norm() -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.SELU(), nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Tanh()
    )
    return net.double()


@pytest.mark.parametrize("make", [plain, batch_norm])
def test_every_point_of_the_chain_is_autograd_s(make):
    net, x = make(), torch.randn(7, 4)
    layers, states = list(net), [x]
    for layer in layers:
        states.append(layer(states[-1].clone()).detach())
    found = gsc(net, x)
    for k in range(len(layers) + 1):
        clones = [lambda z, f=f: f(z.clone()) for f in layers[k:]]
        torch.testing.assert_close(found.value[k], brute_force(clones, states[k]), rtol=1e-10, atol=0)
    assert found.points == tuple(range(len(layers) + 1))
    at = states[-1]
    assert found.products == (at.numel() if make is batch_norm else at.shape[1])


def test_single_samples_are_autograd_s():
    net, x = plain(), torch.randn(7, 4)
    found = torch.stack([gsc(net, one).value for one in x.split(1)])
    clones = [lambda z, f=f: f(z.clone()) for f in net]
    for b in range(7):
        torch.testing.assert_close(found[b, 0], brute_force(clones, x[b : b + 1]), rtol=1e-10, atol=0)


def test_the_batch_form_is_the_form_with_expectations():
    net, x = plain(), torch.randn(7, 4)
    batch, single = gsc(net, x), [gsc(net, one) for one in x.split(1)]
    mean = torch.stack([found.jacobian for found in single]).square().mean(0).sqrt()
    sizes = torch.stack([found.size for found in single]).square().mean(0).sqrt()
    torch.testing.assert_close(batch.jacobian, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(batch.size, sizes, rtol=1e-12, atol=0)
    torch.testing.assert_close(batch.value, mean * sizes / sizes[-1], rtol=1e-12, atol=0)


def test_images_pass_through_convolutions():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    net, x = net.double(), torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(gsc(net, x).value[0], brute_force(list(net), x), rtol=1e-10, atol=0)


def test_measuring_leaves_the_net_as_it_was():
    net, x = batch_norm(), torch.randn(7, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for settings in ({}, {"probes": 3}):
        gsc(net, x, **settings)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm1d))


def test_who_couples_samples():
    """An exact value takes a product a feature of the output, or one a number of the coupled batch."""
    x = torch.randn(6, 4)
    assert gsc(batch_norm(), x).products == 6 * 3
    assert gsc([lambda z: z - z.mean(0)], x).products == 6 * 4
    assert gsc(batch_norm().eval(), x).products == gsc(plain(), x).products == 3
    assert gsc(batch_norm().eval(), x[:1]).products == 3


# The estimate


@pytest.mark.parametrize("make", [plain, batch_norm])
def test_the_estimate_of_the_square_is_unbiased_and_knows_its_error(make):
    net, x = make(), torch.randn(7, 4)
    generator = torch.Generator().manual_seed(3)
    true = gsc(net, x).value.square()
    found = gsc(net, x, probes=4000, generator=generator)
    assert found.standard_error is not None
    assert found.products == 4000
    error = 2 * found.value * found.standard_error
    assert bool(((found.value.square() - true).abs() <= 4 * error + 1e-12).all())
    few = [gsc(net, x, probes=8, generator=generator) for _ in range(120)]
    spread = torch.stack([f.value.square() for f in few]).std(0)
    told = torch.stack([2 * f.value * f.standard_error for f in few]).square().mean(0).sqrt()
    # 120 draws know a standard deviation to about 7 %; some tails are heavy
    torch.testing.assert_close(told, spread, rtol=0.35, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_estimate_of_the_root(samples):
    net, x = plain(), torch.randn(samples, 4)
    true = gsc(net, x).value
    found = gsc(net, x, probes=4000)
    assert found.standard_error is not None
    assert found.value.shape == found.standard_error.shape == true.shape == (6,)
    assert bool(((found.value - true).abs() <= 4 * found.standard_error + 1e-12).all())


def test_the_same_generator_gives_the_same_estimate():
    net, x = plain(), torch.randn(3, 4)
    a, b = (gsc(net, x, probes=5, generator=torch.Generator().manual_seed(7)).value for _ in range(2))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# Over time

SOLVERS = ("euler", "imex", "exponential-euler", "rk4")


def assembly():
    parts = [Subnetwork(AdaDiagTanh("tanh"), 2), Subnetwork(SingularValueBounded("tanh"), 3)]
    return couple(parts, "all").double()


def recurrent(name: str) -> nn.Module:
    if name in SOLVERS:
        return CTRNN(2, assembly(), batch_first=True, dt=0.3, solver=name)
    nets = {
        "gated": lambda: CTRNN(2, assembly(), gate="state", dt=1.0, batch_first=True),
        "rnn": lambda: VanillaRNN(2, 4, batch_first=True),
        "lstm": lambda: LSTM(2, 4),
        "antisymmetric": lambda: AntisymmetricRNN(2, 4, batch_first=True, eps=0.2),
        "lipschitz": lambda: LipschitzRNN(2, 4, eps=0.2),
        "nn.GRU": lambda: nn.GRU(2, 3, num_layers=2, batch_first=True),
    }
    return nets[name]()


RECURRENT = (*SOLVERS, "gated", "rnn", "lstm", "antisymmetric", "lipschitz", "nn.GRU")


@pytest.mark.parametrize("name", RECURRENT)
def test_gsc_over_time_is_autograd_s_through_the_whole_run(name):
    net = recurrent(name).double()
    u = torch.randn(3, 7, 2)
    layers, n = getattr(net, "num_layers", 1), getattr(net, "state_size", net.hidden_size)
    x0 = torch.randn(3, layers * n)

    def run(x: Tensor, first: int, last: int) -> Tensor:
        """The packed state (3, layers n) before sample `last`, by the net's own forward."""
        if first == last:
            return x
        part = u[:, first:last] if net.batch_first else u[:, first:last].transpose(0, 1)
        return net(part, x.view(3, layers, n).transpose(0, 1).contiguous())[1].transpose(0, 1).flatten(1)

    found = gsc_over_time(net, u, x0, every=3)
    assert found.points == (0, 3, 6, 7)
    for k, t in enumerate(found.points):
        expected = brute_force([lambda z, t=t: run(z, t, 7)], run(x0, 0, t).detach())
        # rk4 runs as one solve here and by samples there
        torch.testing.assert_close(found.value[k], expected, rtol=1e-9, atol=0)
    every = gsc_over_time(net, u, x0)
    torch.testing.assert_close(every.value[[0, 3, 6, 7]], found.value, rtol=1e-9, atol=0)
    assert every.products == layers * n


def test_gsc_over_time_of_a_function_of_your_own():
    W = torch.randn(3, 3)
    found = gsc_over_time(lambda u, h: torch.tanh(h @ W.mT + u), torch.randn(2, 4, 3), torch.randn(2, 3))
    assert found.products == 3
    assert bool(found.value.isfinite().all())


@pytest.mark.parametrize("solver", ["euler", "imex", "exponential-euler"])
@pytest.mark.parametrize("omega", [0.0, 2.5])
def test_a_linear_run_with_a_plane_skew_coupling_has_gsc_one(solver, omega):
    zero = torch.zeros(1, 1)
    parts = [Subnetwork(Unconstrained("tanh"), 1, weight=zero, bias=False) for _ in range(2)]
    field = couple([*parts], "all").double()
    for parameter in field.coupling.parameters():
        parameter.data.fill_(omega)
    L = field.terms().L
    assert L is not None
    torch.testing.assert_close(L.detach().abs(), omega * torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    net = CTRNN(1, field, dt=0.1, solver=solver, bias=False).double()
    for _ in range(4):
        found = gsc_over_time(net, torch.zeros(1, 30, 1), torch.randn(1, 2))
        torch.testing.assert_close(found.value, torch.ones(31), rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["euler", "imex"])
def test_contraction_bounds_the_jacobian(solver):
    parts = [Subnetwork(SingularValueBounded("tanh"), 4, tau=1.5) for _ in range(3)]
    field = couple(parts, "ring", init_scale=2.0).double()
    net = CTRNN(2, field, dt=0.05, solver=solver).double()
    certificate = certify(field, dt=0.05, solver=solver)
    assert certificate.step is not None
    assert certificate.step.certified
    for _ in range(5):
        found = gsc_over_time(net, 3 * torch.randn(1, 80, 2), every=4)
        back = 80 - torch.tensor(found.points, dtype=torch.float64)
        bound = certificate.metric.condition_number**0.5 * certificate.step.contraction_factor**back
        assert bool((found.jacobian <= bound).all())


def test_a_zero_initial_state_is_skipped():
    found = gsc_over_time(recurrent("euler").double(), torch.randn(2, 5, 2))
    assert bool(found.value[0].isnan())
    assert bool(found.value[1:].isfinite().all())
    assert bool(found.jacobian.isfinite().all())
    silent = gsc_over_time(recurrent("antisymmetric").double(), torch.zeros(2, 5, 2))
    assert bool(silent.value.isnan().all())


def test_the_estimate_over_time():
    net, u = recurrent("imex").double(), torch.randn(4, 6, 2)
    true = gsc_over_time(net, u).value[1:]
    found = gsc_over_time(net, u, probes=2000)
    assert found.standard_error is not None
    off = (found.value[1:] - true).abs()
    assert bool((off <= 4 * found.standard_error[1:] + 1e-12).all())


def test_single_precision_nets_are_measured_in_double():
    net, u = VanillaRNN(2, 4).float(), torch.randn(3, 6, 2)
    found = gsc_over_time(net, u.float()).value[1:]
    expected = gsc_over_time(net.double(), u.float().double()).value[1:]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("slope", [0.01, 100.0])
def test_products_neither_fade_nor_overflow_in_single_precision(slope):
    layers = [lambda z: slope * (z - z.detach()) + z.detach()] * 60
    found = gsc(layers, torch.ones(2, 3, dtype=torch.float32))
    torch.testing.assert_close(found.value, slope ** torch.arange(60.0, -1, -1), rtol=1e-4, atol=0)


# Refusals


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: gsc([], torch.ones(2, 2)), ConfigError, "layers"),
        (lambda: gsc(torch.relu, torch.ones(2, 2)), ConfigError, "layers"),
        (lambda: gsc([torch.relu], torch.ones(2, 2), probes=1), ConfigError, "probes"),
        (lambda: gsc([torch.relu], torch.ones(2)), ShapeError, "x must"),
        (lambda: gsc([torch.relu], torch.ones(2, 2).long()), ShapeError, "int64"),
        (lambda: gsc([torch.relu], torch.full((2, 2), float("nan"))), DataError, "f_0"),
        (lambda: gsc([lambda z: z / 0], torch.ones(2, 2)), DataError, "f_1"),
        (lambda: gsc([lambda z: z.sum(0)], torch.ones(2, 2)), ShapeError, "layer 1"),
        (lambda: gsc_over_time(nn.GRU(2, 3), torch.ones(4, 2)), ShapeError, "u must"),
        (lambda: gsc_over_time(nn.GRU(2, 3), torch.ones(4, 1, 2), every=0), ConfigError, "every"),
        (
            lambda: gsc_over_time(nn.GRU(2, 3, bidirectional=True), torch.ones(4, 1, 2)),
            ConfigError,
            "backwards",
        ),
    ],
)
def test_refusals_say_what_and_how(call, error, words):
    with pytest.raises(error, match=words):
        call()
