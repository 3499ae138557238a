"""IMEX and exponential Euler: maps, gradients, contraction whatever the coupling, fixed points."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import AdaDiagTanh, Assembly, SingularValueBounded, Subnetwork, Symmetric, couple
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.schemes import SCHEMES, step_pair
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.terms import Terms
from solver_problems import DT, F64, FIELDS, hierarchy, mixed, normal, one_module, rng, uniform
from solver_problems import one_thread as one_thread

METHODS = ("imex", "exponential-euler")


def explicit_part(terms: Terms, x: Tensor, u: Tensor | None) -> Tensor:
    """tau x' + x - L x, from the definition."""
    out = terms(x, u) * terms.tau + x
    return out if terms.L is None else out - x @ terms.L.mT


@pytest.mark.parametrize("name", FIELDS)
def test_imex_solves_its_linear_system(name: str) -> None:
    terms = FIELDS[name]().terms()
    x0, u = normal(3, terms.n), normal(3, 6, terms.n, seed=1)
    states = solve(terms, x0, u=u, dt=0.2, solver="imex").x
    h = torch.diag(0.2 / terms.tau)
    L = torch.zeros(terms.n, terms.n, dtype=F64) if terms.L is None else terms.L
    R = torch.linalg.inv(torch.eye(terms.n, dtype=F64) - h @ L)
    x = x0
    for k in range(6):
        x = (x + (explicit_part(terms, x, u[:, k]) - x) @ h) @ R.mT
        assert_close(states[:, k + 1], x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["mixed", "hierarchy", "free", "uncoupled"])
def test_exponential_euler_solves_the_frozen_linear_ode(name: str) -> None:
    # One step = the exact solution of tau x' = -x + L x + g with g frozen, here by scipy.
    terms = FIELDS[name]().terms()
    x0, u = normal(1, terms.n), normal(1, 1, terms.n, seed=1)
    step = solve(terms, x0, u=u, dt=0.3, solver="exponential-euler").last[0].detach()
    g = explicit_part(terms, x0, u[:, 0])[0].detach().numpy()
    L = 0 if terms.L is None else terms.L.detach().numpy()
    tau = terms.tau.numpy()
    exact = solve_ivp(
        lambda t, x: (-x + L @ x + g if terms.L is not None else -x + g) / tau,
        (0, 0.3),
        x0[0].numpy(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    # 1e-9: the tolerance that DOP853 reaches.
    assert_close(step, torch.from_numpy(exact.y[:, -1]), rtol=1e-9, atol=1e-10)


def test_exponential_euler_is_exact_without_weights() -> None:
    n = 5
    L = normal(n, n, scale=3.0)
    L = L - L.mT
    identity = Elementwise(((ACTIVATIONS["identity"], n),))
    tau = 0.5 + torch.rand(n, generator=rng(1), dtype=F64)
    bias = normal(n, seed=2)
    terms = Terms((torch.zeros(n, n, dtype=F64),), identity, identity, bias, tau, L=L)
    x0 = normal(3, n, seed=3)
    x = solve(terms, x0, torch.tensor([0.0, 0.4, 2.0]), solver="exponential-euler").last
    A = (L - torch.eye(n, dtype=F64)) / tau[:, None]
    rest = torch.linalg.solve(-A, bias / tau)
    assert_close(x, rest + (x0 - rest) @ torch.matrix_exp(2 * A).mT, rtol=1e-11, atol=1e-11)


def test_without_coupling_they_are_euler_with_their_own_step() -> None:
    # imex: h itself; exponential: h' = 1 - exp(-h) (THEORY 6).
    net = mixed("none")
    x0, u = normal(3, net.size), normal(3, 20, net.size, seed=1)
    imex = solve(net, x0, u=u, dt=0.1, solver="imex").x
    assert_close(imex, solve(net, x0, u=u, dt=0.1).x, rtol=1e-12, atol=1e-12)
    exponential = solve(net, x0, u=u, dt=0.1, solver="exponential-euler").x
    tau = -0.1 / torch.log1p(-0.1 / net.tau)  # then 1 - exp(-0.1 / tau) = 0.1 / net.tau
    slowed = solve(replace(net.terms(), tau=tau), x0, u=u, dt=0.1, solver="exponential-euler").x
    assert_close(slowed, imex, rtol=1e-11, atol=1e-11)
    assert float((exponential - imex).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("solver", METHODS)
def test_every_sample_may_have_its_own_steps(solver: str) -> None:
    net = mixed()
    dt = torch.tensor([0.01, 0.1, 0.3], dtype=F64)[torch.randint(3, (4, 9), generator=rng())]
    x0, u = normal(4, net.size), normal(4, 9, net.size, seed=1)
    lengths = torch.tensor([9, 0, 4, 1])
    together = solve(net, x0, u=u, dt=dt, lengths=lengths, solver=solver)
    for k, length in enumerate(lengths.tolist()):
        one = slice(k, k + 1)
        alone = solve(net, x0[one], u=u[one], dt=dt[one], solver=solver)
        expected = alone.x[0, torch.arange(10).clamp(max=length)]
        assert_close(together.x[k], expected, rtol=1e-12, atol=1e-12)
        assert_close(together.t[k], alone.t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", METHODS)
@pytest.mark.parametrize("form", ["x", "r"])
def test_gradients_pass_gradcheck(solver: str, form: str) -> None:
    base = one_module("tanh", form, n=3)

    def states(x0: Tensor, u: Tensor, *tensors: Tensor) -> Tensor:
        W, bias, tau, L, W_in = tensors
        terms = replace(base, blocks=(W,), bias=bias, tau=tau, L=L, W_in=W_in)
        return solve(terms, x0, u=u, dt=torch.tensor([0.2, 0.1, 0.2]), solver=solver).x

    inputs = [normal(2, 3, seed=1), normal(2, 3, 2, seed=2), *base.tensors()]
    assert torch.autograd.gradcheck(states, [v.detach().requires_grad_() for v in inputs])


@pytest.mark.parametrize("solver", METHODS)
def test_float32_agrees_with_float64(solver: str) -> None:
    parts = [
        Subnetwork(SingularValueBounded("tanh"), 6, generator=rng(1)),
        Subnetwork(Symmetric("tanh"), 5),
    ]
    net = couple(parts, "all", generator=rng(2)).float()
    x0, u = normal(3, 11).float(), normal(3, 200, 11, seed=1).float()
    single = solve(net, x0, u=u, dt=DT, solver=solver).x
    double = solve(net.double(), x0.double(), u=u.double(), dt=DT, solver=solver).x
    assert single.dtype == torch.float32
    assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [uniform, mixed])
@pytest.mark.parametrize("dt", [0.03, 0.5, 10.0])
def test_the_implicit_factor_never_expands_in_the_metric(
    build: Callable[[], Assembly], dt: float
) -> None:
    net = build()
    terms = net.terms()
    with torch.no_grad():
        big = replace(terms, L=terms.L * 30)
        # With W = 0 and H = dt / tau, P + Q = R; the metric of the assembly is blkdiag(tau M).
        P, Q = step_pair(SCHEMES["imex"], big, torch.tensor(dt, dtype=F64))
        theta = net.metric().theta() * terms.tau.sqrt()
        balanced = theta @ (P + Q) @ torch.linalg.inv(theta)
        assert float(torch.linalg.matrix_norm(balanced, ord=2)) <= 1 + 1e-12
        wrong = replace(big, L=big.L + 2 * torch.eye(net.size, dtype=F64))
        P, Q = step_pair(SCHEMES["imex"], wrong, torch.tensor(0.03, dtype=F64))
        assert float(torch.linalg.matrix_norm(theta @ (P + Q) @ torch.linalg.inv(theta), ord=2)) > 1


def adadiag_pair(omega: float) -> Terms:
    """tanh, AdaDiag rate 0.5, coupling norm omega: the example of THEORY 6."""
    parts = [Subnetwork(AdaDiagTanh("tanh", margin=0.5), 8, generator=rng(1)) for _ in range(2)]
    terms = couple(parts, "all", generator=rng(2)).double().terms()
    L = terms.L.detach()  # type: ignore[union-attr]
    return replace(terms, L=L * omega / torch.linalg.matrix_norm(L, ord=2))


def test_euler_diverges_and_the_semi_implicit_maps_contract_at_the_own_step_factor() -> None:
    terms, steps = adadiag_pair(12.0), 1000
    assert float((terms.L + terms.L.mT).abs().max()) < 1e-6  # type: ignore[union-attr]
    with torch.no_grad():
        x0, u = normal(2, 16), normal(1, steps, 16, seed=1).expand(2, -1, -1)
        euler = solve(terms, x0, u=u, dt=DT).x
        assert float(euler[:, -1].norm() / euler[:, 0].norm()) > 1e10
        W = max(abs(float(w)) for block in terms.blocks for w in block.diagonal())
        factors = {
            # The W entries lie in [-W, W]: |1 - h + h d w| <= 1 - h + h W.
            "imex": 1 - DT + DT * W,
            "exponential-euler": math.exp(-DT) + (1 - math.exp(-DT)) * W,
        }
        for solver, factor in factors.items():
            x = solve(terms, x0, u=u, dt=DT, solver=solver).x
            distance = (x[0] - x[1]).norm(dim=-1)
            assert float((distance[1:] / distance[:-1])[distance[:-1] > 1e-8].max()) <= factor + 1e-6
            assert float(distance[-1]) < 1e-5
            assert float(x.abs().max()) < 100


@pytest.mark.parametrize("solver", METHODS)
@pytest.mark.parametrize("build", [uniform, mixed, hierarchy])
def test_fixed_points_are_the_equilibria_of_the_field(
    build: Callable[[], Assembly], solver: str
) -> None:
    net = build()
    with torch.no_grad():
        u = normal(2, 1, net.size, seed=1).expand(-1, 3000, -1)
        x = solve(net, normal(2, net.size), u=u, dt=0.1, solver=solver, save="last").last
        assert float(net.terms()(x, u[:, 0]).abs().max()) < 1e-10
        assert float(x.abs().max()) > 0.1
