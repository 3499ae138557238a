"""Lyapunov exponents against closed forms, products of Jacobians, certificates and known attractors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly import CTRNN, LinearInterpolation, SingularValueBounded, Subnetwork, certify, couple
from ctrnn_assembly.diagnostics.linearise import Behaviour, flow_jacobian, step_jacobian
from ctrnn_assembly.diagnostics.lyapunov import Lyapunov, lyapunov_exponents
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError, SolverError
from ctrnn_assembly.solvers import solve
from diagnostic_problems import field, rotation
from oracles import array
from solver_problems import FIELDS, normal, one_module, rng
from solver_problems import one_thread as one_thread

# The factor of one step of a linear mode x' = a x.
FACTORS: dict[str, Callable[[complex, float], complex]] = {
    "euler": lambda a, dt: 1 + dt * a,
    "exponential-euler": lambda a, dt: np.exp(-dt) + (1 - np.exp(-dt)) * (a + 1),
    "imex": lambda a, dt: 1 + dt * a,
}


def runge_kutta(f: Callable[[Tensor, Tensor], Tensor], t: Tensor, x: Tensor, h: float) -> Tensor:
    a = f(t, x)
    b = f(t + h / 2, x + h / 2 * a)
    c = f(t + h / 2, x + h / 2 * b)
    return x + h / 6 * (a + 2 * b + 2 * c + f(t + h, x + h * c))


def of_flow(f: Callable[[Tensor], Tensor], x0: Tensor, **settings) -> Lyapunov:
    net = Behaviour(x0.shape[-1], flow=lambda u: f)
    return lyapunov_exponents(net, x0=x0, solver="rk4", **settings)


def of_driven_flow(
    f: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    *,
    dt: float,
    steps: int,
    transient: int,
    **settings,
) -> Lyapunov:
    """Of x' = f(t, x), with the time as the input of its own step."""
    net = Behaviour(x0.shape[-1], step=lambda t, x: runge_kutta(f, t[0, 0], x, dt), dt=dt)
    times = dt * torch.arange(transient + steps, dtype=torch.float64)[None, :, None]
    return lyapunov_exponents(net, times, x0, steps=steps, transient=transient, **settings)


@pytest.mark.parametrize("method", FACTORS)
def test_a_diagonal_linear_system(method: str) -> None:
    W, dt = torch.diag(torch.tensor([-2.0, 0.5, 0.9, -0.5])), 0.1
    found = lyapunov_exponents(field(W), k=4, dt=dt, steps=200, transient=800, solver=method)
    modes = [FACTORS[method](w - 1, dt) for w in (0.9, 0.5, -0.5, -2.0)]
    expected = torch.tensor([math.log(abs(mode)) for mode in modes])
    # The frame has turned up to exp(-0.4 80): the smallest gap over the transient.
    assert_close(found.exponents, expected / dt, rtol=0, atol=1e-12)
    assert float(found.errors.max()) <= 1e-12


@pytest.mark.parametrize("omega", [0.5, 6.0])
def test_a_rotation(omega: float) -> None:
    terms, h = field(torch.zeros(2, 2), L=rotation(omega)), 0.2
    expected = {
        "euler": math.log(math.hypot(1 - h, h * omega)) / h,
        "imex": math.log((1 - h) / math.hypot(1, h * omega)) / h,
        "exponential-euler": -1.0,
    }
    for method, value in expected.items():
        found = lyapunov_exponents(terms, k=2, dt=h, steps=30, solver=method)
        assert_close(found.exponents, torch.full((2,), value), rtol=0, atol=1e-12)
    flow = lyapunov_exponents(terms, x0=normal(1, 2), k=2, dt=0.01, steps=100, solver="rk4")
    # 1e-6: the classical Runge-Kutta method, (omega dt)^5 / dt at most.
    assert_close(flow.exponents, -torch.ones(2), rtol=0, atol=1e-6)


def test_a_non_normal_system_has_the_exponents_of_its_diagonal() -> None:
    W = torch.tensor([[0.5, 8.0, -3.0], [0.0, -0.5, 9.0], [0.0, 0.0, -2.0]])
    found = lyapunov_exponents(field(W), k=3, dt=0.05, steps=400, transient=800)
    expected = torch.log(1 + 0.05 * torch.tensor([-0.5, -1.5, -3.0])) / 0.05
    assert_close(found.exponents, expected, rtol=0, atol=1e-11)
    flow = lyapunov_exponents(field(W), k=3, dt=0.05, steps=100, transient=500, solver="rk4")
    # 1e-4: the error of the Runge-Kutta step, 3^5 dt^4 / 120, more where the frame still turns.
    assert_close(flow.exponents, torch.tensor([-0.5, -1.5, -3.0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["euler", "imex", "exponential-euler"])
def test_all_exponents_sum_to_the_mean_log_determinant(method: str) -> None:
    net, dt, T = FIELDS["hierarchy"](), 0.1, 25
    terms, x0, u = net.terms().detach_cpu(), normal(2, net.size), normal(2, T, net.size, seed=1)
    found = lyapunov_exponents(net, u, k=net.size, dt=dt, steps=T, transient=0, x0=x0, solver=method)
    for b in range(2):
        x, total = x0[b], 0.0
        for k in range(T):
            step = lambda z, v=u[b, k]: solve(terms, z[None], u=v[None, None], dt=dt, solver=method).last  # noqa: E731
            S = torch.autograd.functional.jacobian(lambda z, f=step: f(z)[0], x)
            total += float(torch.linalg.slogdet(S)[1])
            x = step(x)[0]
        assert float(found.per_trajectory[b].sum()) == pytest.approx(total / (T * dt), abs=1e-9)


def test_k_exponents_are_the_first_of_all() -> None:
    terms, u = one_module("tanh", "r"), normal(2, 40, 2)
    settings = {"dt": 0.1, "steps": 400, "transient": 400, "x0": normal(2, 6, seed=1)}
    full = lyapunov_exponents(terms, u, k=6, generator=rng(1), **settings)
    some = lyapunov_exponents(terms, u, k=2, generator=rng(2), **settings)
    # 1e-3: frames from different starts agree as far as they have turned.
    assert_close(some.exponents, full.exponents[:2], rtol=0, atol=1e-3)


def test_a_field_and_its_own_callable_have_the_same_flow_exponents() -> None:
    net = FIELDS["hierarchy"]()
    terms, x0 = net.terms().detach_cpu(), normal(2, net.size)
    settings = {"k": 3, "dt": 0.1, "steps": 20}
    ours = lyapunov_exponents(net, x0=x0, solver="rk4", generator=rng(1), **settings)
    theirs = of_flow(terms, x0, generator=rng(1), **settings)
    assert_close(ours.per_trajectory, theirs.per_trajectory, rtol=0, atol=1e-11)
    assert float(ours.times[-1]) == pytest.approx(2.0)
    assert_close(ours.history[-1], ours.exponents, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["euler", "imex"])
@pytest.mark.parametrize("sequences", [1, 2])
def test_a_looped_input_gives_floquet_exponents(sequences: int, method: str) -> None:
    # A contracting net follows its periodic input; the exponents are those of the period's Jacobian.
    W = torch.tensor([[0.5, 2.0, 0.0], [0.1, -1.0, 1.0], [0.1, 0.2, -2.5]])
    terms, dt, T = field(W, "tanh"), 0.25, 7
    u = 1.5 * normal(sequences, T, 3, seed=2)
    period = u.flatten(0, 1)  # trajectory 0: sequence 0, then 1, then 0, ...
    x = solve(terms, torch.zeros(1, 3), u=period.repeat(60, 1)[None], dt=dt, solver=method).last
    monodromy = torch.eye(3)
    for v in period:
        monodromy = (torch.eye(3) + dt * flow_jacobian(terms, v[None], x)[0]) @ monodromy
        x = solve(terms, x, u=v[None, None], dt=dt, solver=method).last
    multipliers = np.linalg.eigvals(array(monodromy))
    assert np.abs(multipliers.imag).max() == 0
    expected = np.sort(np.log(np.abs(multipliers)))[::-1] / (dt * len(period))
    steps = 60 * len(period)
    found = lyapunov_exponents(terms, u, k=3, dt=dt, steps=steps, transient=steps, solver=method)
    # 1e-6: what is left of the transient.
    for own in found.per_trajectory:
        np.testing.assert_allclose(own.numpy(), expected, atol=1e-6)


def test_inputs_make_a_net_expand_whose_every_step_contracts_in_spectrum() -> None:
    # Slopes (1, e^-2) and (e^-2, 1) in turn (THEORY, Theorem 7), reached by a bounded periodic input.
    c, dt, half, slope = 5.0, 0.01, 85, math.exp(-2)
    far = math.acosh(slope**-0.5)
    W = rotation(c)
    turns = torch.tensor([[0.0, far]] * half + [[far, 0.0]] * half)
    after = turns.roll(-1, 0)
    u = (after - turns) / dt + turns - torch.tanh(turns) @ W.mT
    product = np.eye(2)
    for x in turns:
        D = np.diag(1 - np.tanh(array(x)) ** 2)
        S = np.eye(2) + dt * (-np.eye(2) + array(W) @ D)
        assert np.abs(np.linalg.eigvals(S)).max() < 1
        product = S @ product
    radius = np.abs(np.linalg.eigvals(product)).max()
    assert radius > 1.2
    # The expanding orbit would leave the forced one by rounding after some 200 periods.
    found = lyapunov_exponents(
        field(W, "tanh"), u[None], k=1, dt=dt, steps=170 * 20, transient=170 * 20, x0=turns[:1]
    )
    assert float(found.exponents) == pytest.approx(math.log(radius) / (dt * 170), abs=1e-6)
    assert float(found.exponents) > 0.1


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("uniform", "euler"),
        ("uniform", "imex"),
        ("uniform", "exponential-euler"),
        ("mixed", "euler"),
        ("mixed", "imex"),
        ("nested", "euler"),
        ("hierarchy", "exponential-euler"),
    ],
)
def test_certified_steps_bound_the_largest_exponent(name: str, method: str) -> None:
    net, steps, dt = FIELDS[name](), 150, 0.05
    certificate = certify(net, dt=dt, solver=method, search="none")
    assert certificate.step is not None
    assert certificate.step.certified
    assert certificate.step.contraction_factor is not None
    u = 2 * normal(2, steps, net.size)
    found = lyapunov_exponents(net, u, k=1, dt=dt, steps=steps, solver=method, generator=rng(0))
    # The frame may add what the Euclidean norm and the metric differ by, once.
    frame = math.log(certificate.metric.condition_number) / (2 * steps * dt)
    assert (
        float(found.per_trajectory.max()) <= math.log(certificate.step.contraction_factor) / dt + frame
    )


@pytest.mark.parametrize("name", ["mixed", "nested"])
def test_a_certified_rate_bounds_the_flows_largest_exponent(name: str) -> None:
    net, dt, steps = FIELDS[name](), 0.1, 100
    certificate = certify(net, search="none")
    terms = net.terms().detach_cpu()
    signal = LinearInterpolation(2 * normal(2, 21, net.size), torch.linspace(0, 11, 21))
    x0 = normal(2, net.size, seed=1)
    found = of_driven_flow(lambda t, x: terms(x, signal(t)), x0, k=1, dt=dt, steps=steps, transient=10)
    frame = math.log(certificate.metric.condition_number) / (2 * steps * dt)
    # 1e-5: the error of the Runge-Kutta steps.
    assert float(found.per_trajectory.max()) <= -certificate.rate + frame + 1e-5


def lorenz(x: Tensor) -> Tensor:
    a, b, c = x.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def test_lorenz_to_two_digits() -> None:
    # Many trajectories in place of a long one, from the attractor: 20 units of time first.
    x, h = normal(4500, 3, scale=5.0) + torch.tensor([0.0, 0.0, 25.0]), 0.02
    for _ in range(1000):
        x = runge_kutta(lambda t, x: lorenz(x), torch.tensor(0.0), x, h)
    found = of_flow(lorenz, x, k=3, dt=h, steps=360, transient=300)
    # 0.01: two digits, four standard errors; the sum is -(10 + 1 + 8/3) everywhere.
    assert_close(found.exponents, torch.tensor([0.906, 0.0, -14.572]), rtol=0, atol=0.01)
    assert float(found.errors.max()) < 0.004
    assert float(found.exponents.sum()) == pytest.approx(-41 / 3, abs=5e-3)


def test_the_textbook_example_expands_with_eigenvalues_in_the_left_half_plane() -> None:
    def matrix(t: Tensor) -> Tensor:
        s, c = torch.sin(t), torch.cos(t)
        rows = (-1 + 1.5 * c * c, 1 - 1.5 * s * c), (-1 - 1.5 * s * c, -1 + 1.5 * s * s)
        return torch.stack([torch.stack(row) for row in rows])

    for t in torch.linspace(0, 6, 7):
        assert_close(torch.linalg.eigvals(matrix(t)).real, torch.full((2,), -0.25))
    found = of_driven_flow(
        lambda t, x: x @ matrix(t).mT, normal(2, 2), k=2, dt=0.04, steps=300, transient=300
    )
    # 1e-6: the error of the Runge-Kutta step and of the frame after 12 units of time.
    assert_close(found.exponents, torch.tensor([0.5, -1.0]), rtol=0, atol=1e-6)
    x4 = math.hypot(-4.8298094, 5.5920569)  # oracle 15, from (1, 0)
    assert math.log(x4) / 4 == pytest.approx(float(found.exponents[0]), abs=1e-6)


def test_a_singular_step_has_an_exponent_of_minus_infinity() -> None:
    found = lyapunov_exponents(field(torch.diag(torch.tensor([0.5, 0.0]))), k=2, dt=1.0, steps=20)
    assert float(found.exponents[0]) == pytest.approx(math.log(0.5), abs=1e-12)
    assert float(found.exponents[1]) == -math.inf
    assert float(found.errors[1]) == math.inf


def test_errors_shrink_with_the_run_and_cover_the_truth() -> None:
    # A scalar net under noise: log|1 + dt(-1 + w tanh'(x))| averages over the stationary states.
    terms, dt = field(torch.tensor([[0.8]]), "tanh"), 0.5
    u = 3 * normal(1, 6000, 1)
    long = lyapunov_exponents(terms, u, k=1, dt=dt, steps=5000, transient=100)
    short = lyapunov_exponents(terms, u, k=1, dt=dt, steps=300, transient=100)
    assert float(long.errors) < 0.5 * float(short.errors)
    assert abs(float(short.exponents - long.exponents)) < 5 * float(short.errors)
    assert float(lyapunov_exponents(terms, u, k=1, dt=dt, steps=1).errors) == math.inf


def test_a_gru_has_the_exponents_of_the_product_of_its_jacobians() -> None:
    net, u, x0 = nn.GRU(2, 5).double(), normal(1, 30, 2), normal(1, 5, seed=1)
    found = lyapunov_exponents(net, u, x0, k=5, steps=30, transient=0)
    total = 0.0
    for k in range(30):
        S = step_jacobian(net, u[:, k], x0)[0]
        total += float(torch.linalg.slogdet(S)[1])
        x0 = net(u[:, k][None], x0[None])[1][0].detach()
    assert float(found.exponents.sum()) == pytest.approx(total / 30, abs=1e-9)
    assert found.dt == 1
    assert_close(found.history[-1], found.exponents)
    assert found.history.shape == (30, 5)


def test_a_function_and_its_layer_have_the_same_exponents() -> None:
    parts = [Subnetwork(SingularValueBounded("tanh"), 3, generator=rng(k)) for k in range(2)]
    layer = CTRNN(2, couple(parts, "all", generator=rng(5)), dt=0.1, generator=rng(6)).double()
    u, x0 = normal(2, 20, 2), normal(2, 6, seed=1)
    settings = {"k": 3, "steps": 40, "dt": 0.1}
    ours = lyapunov_exponents(layer, u, x0, generator=rng(1), **settings)
    theirs = lyapunov_exponents(lambda u, h: layer.step(u, h), u, x0, generator=rng(1), **settings)
    assert_close(ours.per_trajectory, theirs.per_trajectory, rtol=0, atol=1e-10)


def test_gates_of_the_state_make_a_net_expand_where_the_exponents_say_so() -> None:
    layer = CTRNN(1, Subnetwork(SingularValueBounded("tanh"), 4, generator=rng(0)), gate="state", dt=1.0)
    layer = layer.double()
    u, x0 = normal(1, 60, 1), normal(1, 4, seed=1)
    found = lyapunov_exponents(layer, u, x0, k=1, steps=60, transient=0, generator=rng(2))
    near = torch.cat([x0, x0 + 1e-7 * normal(1, 4, seed=3)])
    first = float((near[0] - near[1]).norm())
    for k in range(60):
        near = layer.step(u[:, k].expand(2, -1), near).detach()
    measured = math.log(float((near[0] - near[1]).norm()) / first) / 60
    # 0.1: two random directions over 60 steps.
    assert float(found.exponents) == pytest.approx(measured, abs=0.1)


def test_a_float32_layer_with_its_encoder() -> None:
    layer = CTRNN(
        2, couple([Subnetwork(SingularValueBounded("tanh"), 4) for _ in range(2)], "all")
    ).float()
    found = lyapunov_exponents(layer, normal(3, 20, 2).float(), k=2, dt=0.1, steps=60)
    assert found.exponents.dtype == torch.float64
    assert found.per_trajectory.shape == (3, 2)
    assert float(found.exponents[0]) < 0


def test_an_unstable_run_is_refused() -> None:
    terms = field(torch.diag(torch.tensor([30.0, 0.0])))
    with pytest.raises(SolverError, match="must stay finite"):
        lyapunov_exponents(terms, k=1, dt=1.0, steps=2000)


def test_a_field_without_gradient_is_refused() -> None:
    with pytest.raises(ConfigError, match="detach"):
        flow(normal(1, 2), f=lambda x: -x.detach())


def run(t, u, **changes):
    return lyapunov_exponents(t, u, **{"k": 1, "dt": 0.1, "steps": 5, **changes})


def flow(x0, f=lambda x: -x, **changes):
    return of_flow(f, x0, **{"k": 1, "dt": 0.1, "steps": 5, **changes})


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ConfigError, r"k must be in \[1, 6\]", lambda t, u: run(t, u, k=0)),
        (ConfigError, r"k must be in \[1, 6\]", lambda t, u: run(t, u, k=7)),
        (ConfigError, "dt must be", lambda t, u: run(t, u, dt=math.inf)),
        (ConfigError, "steps must", lambda t, u: run(t, u, steps=0)),
        (ConfigError, "transient must", lambda t, u: run(t, u, transient=-1)),
        (ConfigError, "rk4", lambda t, u: run(t, u, solver="dopri5")),
        (ShapeError, "not empty", lambda t, u: run(t, u[:, :0])),
        (ShapeError, "not empty", lambda t, u: run(t, u[:0])),
        (ShapeError, "u must be", lambda t, u: run(t, u[0])),
        (ShapeError, "u must be", lambda t, u: run(t, u[..., :1])),
        (DataError, "nan", lambda t, u: run(t, u * torch.nan)),
        (ShapeError, "x0 must be", lambda t, u: run(t, u, x0=normal(2, 5))),
        (DataError, "nan", lambda t, u: run(t, u, x0=normal(2, 6) * torch.nan)),
        (ShapeError, "x0 must be", lambda t, u: flow(normal(3))),
        (ShapeError, "x0 must be", lambda t, u: flow(normal(0, 3))),
        (ShapeError, "keep the shape", lambda t, u: flow(normal(2, 3), f=lambda x: x[:, :2])),
        (ConfigError, "k must be", lambda t, u: flow(normal(2, 3), k=4)),
        (DataError, "nan", lambda t, u: flow(normal(2, 3) * torch.nan)),
    ],
)
def test_what_cannot_be_is_refused(error, words, call) -> None:
    with pytest.raises(error, match=words):
        call(one_module("tanh", "x"), normal(2, 10, 2))
