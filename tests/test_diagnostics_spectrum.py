"""Spectra of the Jacobian, in the metric, of the steps: the facts and oracles of the theory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly import (
    CTRNN,
    AdaDiagTanh,
    NegativeProduct,
    SingularValueBounded,
    Subnetwork,
    Symmetric,
    certify,
    couple,
)
from ctrnn_assembly.diagnostics import spectrum
from ctrnn_assembly.diagnostics.linearise import behaviour, flow_jacobian, step_jacobian
from ctrnn_assembly.diagnostics.spectrum import module_spectra, spectrum_along, spectrum_at
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError, SolverError
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.solvers import solve
from diagnostic_problems import field, rotation, skew
from oracles import abscissa, array
from solver_problems import FIELDS, mixed, normal, one_module, rng
from solver_problems import one_thread as one_thread

CERTIFIED = ["uniform", "mixed", "nested", "hierarchy", "uncoupled"]


def same_set(found: Tensor, expected: np.ndarray, tol: float) -> None:
    """Equal as multisets of complex numbers, matched one to one."""
    apart = np.abs(found.numpy()[:, None] - expected[None])
    rows, columns = scipy.optimize.linear_sum_assignment(apart)
    assert len(rows) == len(found) == len(expected)
    assert apart[rows, columns].max() <= tol


@pytest.mark.parametrize("seed", range(3))
def test_a_net_of_feedback_alone_lies_on_the_line_minus_one(seed: int) -> None:
    n = 24
    K = skew(n, seed)
    theta = (0.5 * normal(n, seed=seed + 10)).exp()
    L = K * theta / theta[:, None]  # M L + L^T M = 0 for M = diag(theta^2)
    metric = Metric((Factor(theta, 1 / theta),))
    found = spectrum_at(field(torch.zeros(n, n), L=L), None, normal(2, n), metric=metric)
    assert float((found.eigenvalues.real + 1).abs().max()) <= 1e-10
    omega = np.linalg.eigvalsh(1j * array(K))
    np.testing.assert_allclose(np.sort(found.eigenvalues[0].imag.numpy()), omega, atol=1e-10)
    assert found.local_rates is not None
    assert_close(found.local_rates, torch.ones(2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FIELDS)
def test_the_generalised_jacobian_from_its_definition(name: str) -> None:
    net = FIELDS[name]()
    x, u = normal(2, net.size), normal(2, net.size, seed=1)
    J = array(flow_jacobian(net, u, x))
    theta = array(net.metric().theta()) @ np.diag(array(net.tau) ** 0.5)
    F = theta @ J @ np.linalg.inv(theta)
    root, inverse = spectrum.norm_of(behaviour(net), net.metric())
    np.testing.assert_allclose(array(root) @ J[0] @ array(inverse), F[0], rtol=1e-9, atol=1e-9)
    M = theta.T @ theta
    for k, rate in enumerate(spectrum_at(net, u, x).local_rates):
        pencil = scipy.linalg.eigh((M @ J[k] + J[k].T @ M) / 2, M, eigvals_only=True)
        assert float(rate) == pytest.approx(-pencil[-1], abs=1e-9)


@pytest.mark.parametrize("name", FIELDS)
def test_no_eigenvalue_is_right_of_the_symmetric_parts_largest(name: str) -> None:
    net = FIELDS[name]()
    found = spectrum_at(net, None, 3 * normal(6, net.size))
    assert found.local_rates is not None
    assert bool((found.abscissa <= -found.local_rates + 1e-9).all())
    for k, J in enumerate(array(flow_jacobian(net, None, found.x))):
        assert float(found.abscissa[k]) == pytest.approx(abscissa(J), abs=1e-10)


@pytest.mark.parametrize("name", CERTIFIED)
def test_local_rates_are_at_least_the_certified_rate(name: str) -> None:
    net = FIELDS[name]()
    certificate = certify(net, search="none")
    assert certificate.certified
    u = 2 * normal(8, net.size)
    found = spectrum_along(net, u, at=range(9), dt=0.1, x0=3 * normal(net.size, seed=1))
    assert found.local_rates is not None
    assert float(found.local_rates.min()) >= certificate.rate
    assert float(-found.abscissa.max()) >= certificate.rate


def test_a_wrong_metric_does_not_reach_the_certified_rate() -> None:
    # Without diag(tau), or with the identity, the symmetric part of this net is larger.
    net = mixed()
    identity = Metric((Factor.identity(net.size, net.tau),))
    rate = lambda **changes: spectrum_at(net, None, torch.zeros(1, net.size), **changes).local_rates  # noqa: E731
    assert float(rate(metric=identity)) < float(rate()) - 0.01


def test_oracle_17_identity_metric_feedback_can_be_unstable() -> None:
    W = torch.zeros(3, 3)
    W[0, 1] = 4
    L = torch.tensor([[0.0, 0, -1], [0, 0, 1], [1, -1, 0]])
    found = spectrum_at(field(W, "tanh", L=L), None, torch.zeros(1, 3))
    assert float(found.abscissa) == pytest.approx(0.1795090246, abs=1e-8)


def test_oracle_18_feedback_in_a_metric() -> None:
    L = torch.tensor([[0.0, 3.0], [-0.75, 0.0]])
    terms = field(torch.zeros(2, 2), L=L)
    found = spectrum_at(terms, None, torch.zeros(1, 2))
    same_set(found.eigenvalues[0], np.array([-1 + 1.5j, -1 - 1.5j]), 1e-12)
    same_set(torch.linalg.eigvals(terms.L), np.array([1.5j, -1.5j]), 1e-12)


@pytest.mark.parametrize(("omega", "radius"), [(10.0, 1.0153325), (5.0, 0.9815294)])
def test_oracle_39_euler_radius(omega: float, radius: float) -> None:
    found = spectrum_at(field(torch.zeros(2, 2), L=rotation(omega)), None, torch.zeros(1, 2), dt=0.03)
    assert found.step_radius is not None
    assert float(found.step_radius) == pytest.approx(radius, abs=1e-6)


def test_oracle_26_the_leak_alone() -> None:
    x = torch.zeros(1, 3)
    S = step_jacobian(field(torch.zeros(3, 3)), None, x, dt=0.03, solver="exponential-euler")
    assert_close(1 - S[0].diagonal(), torch.full((3,), 0.0295544665), rtol=0, atol=1e-9)


@pytest.mark.parametrize("omega", [0.5, 3.0, 40.0])
def test_semi_implicit_radii_stay_inside_the_unit_circle(omega: float) -> None:
    h, terms, x = 0.3, field(torch.zeros(2, 2), L=rotation(omega)), torch.zeros(1, 2)
    radius = {
        "euler": math.hypot(1 - h, h * omega),
        "imex": (1 - h) / math.hypot(1, h * omega),
        "exponential-euler": math.exp(-h),
    }
    for method, expected in radius.items():
        found = spectrum_at(terms, None, x, dt=h, solver=method).step_radius
        assert found is not None
        assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", ["euler", "imex", "exponential-euler"])
def test_the_steps_spectrum_is_that_of_its_matrix(method: str) -> None:
    net, dt = mixed(), 0.2
    x = normal(2, net.size)
    found = spectrum_at(net, None, x, dt=dt, solver=method)
    assert found.step_eigenvalues is not None
    S = array(step_jacobian(net, None, x, dt=dt, solver=method))
    for k in range(2):
        same_set(found.step_eigenvalues[k], np.linalg.eigvals(S[k]), 1e-9)
    if method == "euler":
        same_set(found.step_eigenvalues[0], 1 + dt * found.eigenvalues[0].numpy(), 1e-12)


@pytest.mark.parametrize("method", ["euler", "imex"])
def test_eigenvalues_descend_by_real_part_and_modulus(method: str) -> None:
    # A slow real mode has the largest real part, fast rotations the largest moduli of the Euler step.
    L = torch.block_diag(torch.zeros(2, 2), rotation(9.0), rotation(5.0))
    terms, x = field(torch.diag(torch.tensor([0.9, -3.0, 0.0, 0.0, 0.0, 0.0])), L=L), torch.zeros(1, 6)
    full = spectrum_at(terms, None, x, dt=0.2, solver=method)
    assert full.step_eigenvalues is not None
    assert bool((full.eigenvalues[0].real.diff() <= 1e-12).all())
    assert bool((full.step_eigenvalues[0].abs().diff() <= 1e-12).all())
    assert float(full.eigenvalues[0, 0].real) == pytest.approx(-0.1, abs=1e-12)
    if method == "euler":
        assert float(full.step_radius) == pytest.approx(math.hypot(0.8, 1.8), abs=1e-12)


def test_modules_alone() -> None:
    net = FIELDS["mixed"]()
    terms, x = net.terms().detach_cpu(), normal(2, net.size)
    J = array(flow_jacobian(net, None, x))
    start = 0
    for values, W in zip(module_spectra(net, None, x), terms.blocks, strict=True):
        k = slice(start, start + len(W))
        same_set(values[1], np.linalg.eigvals(J[1, k, k]), 1e-9)
        start = k.stop


def test_facts_of_adadiag_symmetric_and_product_modules() -> None:
    g = rng(3)
    diagonal = couple(
        [Subnetwork(AdaDiagTanh("tanh"), 6, generator=g) for _ in range(3)], "all"
    ).double()
    w = torch.cat([W.diagonal() for W in diagonal.terms().detach_cpu().blocks])
    values = spectrum_at(diagonal, None, torch.zeros(1, 18)).eigenvalues[0]
    assert float(values.real.max()) <= -1 + float(w.max()) + 1e-12
    assert float(values.real.min()) >= -1 + float(w.min()) - 1e-12
    assert float(values.real.sum()) == pytest.approx(float(w.sum()) - 18, abs=1e-10)
    symmetric = Subnetwork(Symmetric("tanh"), 8, generator=g).double()
    assert float(spectrum_at(symmetric, None, normal(3, 8)).eigenvalues.imag.abs().max()) <= 1e-9
    product = Subnetwork(NegativeProduct("tanh"), 8, generator=g).double()
    assert float(spectrum_at(product, None, normal(3, 8)).abscissa.max()) <= -1 + 1e-9


def test_eigenvalues_in_the_left_half_plane_prove_nothing() -> None:
    # Oracle 14: slopes (1, e^-2) and (e^-2, 1) in turn; every Jacobian has real parts -1.
    c, slope = 5.0, math.exp(-2)
    x = math.acosh(slope**-0.5)  # tanh'(x) = e^-2
    W = rotation(c)
    terms, turns = field(W, "tanh"), torch.tensor([[0.0, x], [x, 0.0]])
    found = spectrum_at(terms, None, turns)
    assert_close(found.eigenvalues.real, -torch.ones(2, 2), rtol=0, atol=1e-12)
    assert_close(found.eigenvalues.imag.abs(), torch.full((2, 2), c / math.e), rtol=0, atol=1e-12)
    duration = math.pi * math.e / (2 * c)
    first, second = (scipy.linalg.expm(duration * array(J)) for J in flow_jacobian(terms, None, turns))
    radius = np.abs(np.linalg.eigvals(second @ first)).max()
    assert radius == pytest.approx(1.3391740, abs=1e-6)


@pytest.mark.parametrize("method", ["euler", "imex", "dopri8"])
def test_a_trajectory_is_the_solvers_and_meets_its_own_samples(method: str) -> None:
    layer = CTRNN(
        2, couple([Subnetwork(SingularValueBounded("tanh"), 4, form="r") for _ in range(2)], "all")
    )
    layer = layer.double()
    u, at = normal(6, 2), [0, 2, 5, 6]
    found = spectrum_along(layer, u, at=at, dt=0.1, x0=normal(8, seed=1), solver=method)
    terms = layer.field.terms().driven(layer.encoder.weight, layer.encoder.bias)
    options = {"rtol": 1e-9, "atol": 1e-11}
    x = solve(terms, normal(1, 8, seed=1), u=u[None], dt=0.1, solver=method, **options).x[0, at]
    assert_close(found.x, x.detach(), rtol=0, atol=1e-12)
    assert_close(found.times, 0.1 * torch.tensor(at), rtol=0, atol=1e-15)
    step = {} if method == "dopri8" else {"dt": 0.1, "solver": method}
    there = spectrum_at(layer, u[[0, 2, 5, 5]], x, **step)
    assert_close(found.eigenvalues, there.eigenvalues, rtol=0, atol=1e-10)
    assert (found.step_radius is None) == (method == "dopri8")


def gated(kind: str) -> CTRNN:
    parts = [Subnetwork(SingularValueBounded("tanh"), 4, generator=rng(k)) for k in range(2)]
    field = couple(parts, "all", generator=rng(7))
    layer = CTRNN(2, field, gate=kind, dt=0.5, generator=rng(3)).double()
    for parameter in layer.gates.parameters():
        parameter.data.add_(normal(*parameter.shape, seed=5))
    return layer


def differences(f: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    """The Jacobian of f at x (n,), by central differences."""
    h = 1e-6
    columns = [(f((x + h * e)[None]) - f((x - h * e)[None]))[0] / (2 * h) for e in torch.eye(len(x))]
    return array(torch.stack(columns, 1))


@pytest.mark.parametrize("kind", ["constant", "shared", "input", "state"])
def test_gated_nets_have_the_spectra_of_what_they_do(kind: str) -> None:
    layer, x, u = gated(kind), normal(1, 8), normal(1, 2, seed=1)
    found = spectrum_at(layer, u, x)
    # 1e-7: the differences.
    same_set(found.eigenvalues[0], np.linalg.eigvals(differences(layer.flow(u), x[0])), 1e-7)
    S = differences(lambda z: layer.step(u, z), x[0])
    same_set(found.step_eigenvalues[0], np.linalg.eigvals(S), 1e-7)
    assert [values.shape for values in module_spectra(layer, u, x)] == [(1, 4), (1, 4)]
    M = layer.metric().theta() * behaviour(layer).tau.sqrt()
    F = array(M) @ differences(layer.flow(u), x[0]) @ np.linalg.inv(array(M))
    assert float(found.local_rates) == pytest.approx(-np.linalg.eigvalsh((F + F.T) / 2)[-1], abs=1e-7)


@pytest.mark.parametrize("net", [nn.RNN(2, 4), nn.GRU(2, 4, num_layers=2), nn.LSTM(2, 3)])
def test_torchs_nets_have_the_spectra_of_their_steps(net: nn.RNNBase) -> None:
    known, u = behaviour(net), normal(5, 2)
    found = spectrum_along(net, u, at=[0, 3, 5])
    assert found.eigenvalues is found.local_rates is None
    net = net.double()
    # From a zero state the hidden state is the output, whose rows all but the last are known.
    output = net(u[:, None])[0][:, 0]
    assert_close(
        found.x[1:, known.size // 2 :][:, -4:]
        if net.num_layers == 2
        else found.x[1:, : net.hidden_size],
        output[[2, 4]].detach(),
    )
    for k, sample in enumerate((u[0], u[3], u[4])):
        S = differences(lambda z, v=sample: known.step(v[None], z), found.x[k])
        same_set(found.step_eigenvalues[k], np.linalg.eigvals(S), 1e-7)
    blocks = module_spectra(net, u[:1], found.x[:1])
    assert len(blocks) == len(known.sizes)
    assert sum(known.sizes) == known.size


def test_without_an_input_or_a_metric() -> None:
    terms = one_module("tanh", "x")
    found = spectrum_along(replace(terms, W_in=None), at=[0, 3], dt=0.1)
    assert found.local_rates is None
    assert found.eigenvalues.shape == (2, 6)
    assert not bool(found.x[0].any())


def test_a_diverging_trajectory_is_refused() -> None:
    terms = field(torch.diag(torch.tensor([5000.0, 0.0])), bias=torch.ones(2))
    with pytest.raises(SolverError, match="overflowed within 400 steps"):
        spectrum_along(terms, at=[400], dt=0.1)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ShapeError, "not empty", lambda t, x: spectrum_at(t, None, x[:0])),
        (DataError, "nan", lambda t, x: spectrum_at(t, None, x * torch.nan)),
        (
            ShapeError,
            "6 units",
            lambda t, x: spectrum_at(t, None, x, metric=Metric((Factor(x[0, :5], x[0, :5]),))),
        ),
        (
            DataError,
            "metric",
            lambda t, x: spectrum_at(t, None, x, metric=Metric((Factor(0 * x[0], x[0]),))),
        ),
        (ConfigError, "at must", lambda t, x: spectrum_along(t, at=[], dt=0.1)),
        (ConfigError, "at must", lambda t, x: spectrum_along(t, at=[-1], dt=0.1)),
        (ConfigError, "whole numbers", lambda t, x: spectrum_along(t, at=[1.5], dt=0.1)),
        (ConfigError, "in 0..3", lambda t, x: spectrum_along(t, normal(3, 2), at=[4], dt=0.1)),
        (
            ShapeError,
            "not empty",
            lambda t, x: spectrum_along(t, normal(0, 2), at=[0], dt=0.1),
        ),
        (ShapeError, "m = 2", lambda t, x: spectrum_along(t, normal(3, 5), at=[0], dt=0.1)),
        (ShapeError, "x0 must", lambda t, x: spectrum_along(t, at=[0], dt=0.1, x0=x)),
        (ConfigError, "dt must", lambda t, x: spectrum_along(t, at=[0], dt=-1.0)),
        (ConfigError, "solver must", lambda t, x: spectrum_along(t, at=[0], dt=0.1, solver="magic")),
    ],
)
def test_what_cannot_be_is_refused(error, words, call) -> None:
    with pytest.raises(error, match=words):
        call(one_module("tanh", "x"), normal(3, 6))
