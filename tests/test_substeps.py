"""`substeps` refines the solver's step between two samples, and changes nothing else."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import CTRNN, AdaDiagTanh, Pairs, Stack, Subnetwork
from ctrnn_assembly.diagnostics.contraction import measure_contraction
from ctrnn_assembly.diagnostics.linearise import step_jacobian
from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
from ctrnn_assembly.diagnostics.spectrum import spectrum_at
from ctrnn_assembly.errors import ConfigError, ShapeError, SolverError
from ctrnn_assembly.inputs import Signal
from ctrnn_assembly.schemes import ADAPTIVE, FIXED_STEP, SCHEMES
from ctrnn_assembly.solvers import solve
from solver_problems import F64, mixed, normal, one_module, order, rng, tight
from solver_problems import one_thread as one_thread
from test_solvers_torchdiffeq import TIGHT, Sine, known_order, unconverged

TERMS = one_module("tanh", "x")
X0, U = normal(3, 6), normal(3, 4, 2, seed=1)
PARTS = (8, 16, 32, 64)
LENGTHS = torch.tensor([4, 2, 1])


def layer(solver: str = "euler", substeps: int = 1, **settings: object) -> CTRNN:
    options = {"dt": 0.2, "solver": solver, "substeps": substeps, "batch_first": True, **settings}
    return CTRNN(2, mixed(), generator=rng(7), **options).double()  # type: ignore[arg-type]


@unconverged
@pytest.mark.parametrize("solver", [*SCHEMES, *FIXED_STEP])
def test_more_substeps_converge_to_the_flow_under_the_held_input(solver: str) -> None:
    t, u = torch.tensor([0.0, 0.5, 1.0], dtype=F64), U[:, :2]

    def held(s: Tensor, x: Tensor) -> Tensor:
        return TERMS(x, u[:, int(s >= 0.5)])

    exact = tight(held, X0, t, 500)[:, -1]
    errors = [
        float((solve(TERMS, X0, u=u, dt=0.5, solver=solver, substeps=n, **TIGHT).last - exact).norm())
        for n in PARTS
    ]
    # Every interval starts anew: the first steps of implicit_adams are those of rk4.
    more = 0.3 if solver == "implicit_adams" else 0.15
    assert -0.15 < order(errors, [1 / n for n in PARTS]) - known_order(solver) < more
    assert errors[-1] < 2e-2 * float(exact.norm())


@pytest.mark.parametrize("backend", ["fused", "plain"])
@pytest.mark.parametrize("solver", SCHEMES)
def test_substeps_are_steps_of_an_input_that_is_repeated(solver: str, backend: str) -> None:
    short, often = 0.2 / 5, U.repeat_interleave(5, 1)
    options = {"solver": solver, "backend": backend, "lengths": LENGTHS}
    found = solve(TERMS, X0, u=U, dt=0.2, substeps=5, **options)  # type: ignore[arg-type]
    options["lengths"] = 5 * LENGTHS
    fine = solve(TERMS, X0, u=often, dt=short, **options)  # type: ignore[arg-type]
    assert_close(found.x, fine.x[:, ::5], rtol=1e-12, atol=1e-12)
    assert_close(found.t, fine.t[::5], rtol=1e-12, atol=1e-12)
    assert (found.steps, found.evaluations) == (20, 20)


@pytest.mark.parametrize("solver", [*SCHEMES, "rk4"])
def test_last_is_the_last_of_all_with_substeps(solver: str) -> None:
    for lengths in (None, LENGTHS):
        settings = {"u": U, "dt": 0.2, "solver": solver, "substeps": 3, "lengths": lengths}
        every = solve(TERMS, X0, **settings)  # type: ignore[arg-type]
        last = solve(TERMS, X0, save="last", **settings)  # type: ignore[arg-type]
        assert every.x.shape == (3, 5, 6)
        assert torch.equal(last.x[:, 0], every.x[:, -1])


def test_every_sample_may_last_differently_and_dt_has_its_gradient() -> None:
    dt = torch.linspace(0.1, 0.4, 12, dtype=F64).view(3, 4)
    found = solve(TERMS, X0, u=U, dt=dt, substeps=4)
    own = [solve(TERMS, X0[k : k + 1], u=U[k : k + 1], dt=dt[k], substeps=4).x[0] for k in range(3)]
    assert_close(found.x, torch.stack(own), rtol=1e-12, atol=1e-12)
    length = torch.tensor(0.2, dtype=F64, requires_grad=True)

    def last(dt: Tensor) -> Tensor:
        return solve(TERMS, X0, u=U, dt=dt, substeps=3, backend="plain").last

    assert torch.autograd.gradcheck(last, length)


@unconverged
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_a_signal_is_read_at_every_substep(solver: str) -> None:
    sine: Signal = Sine(U[:, :1], torch.zeros(1, dtype=F64))
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    coarse = solve(TERMS, X0, t, u=sine, solver=solver, substeps=50)
    fine = solve(TERMS, X0, torch.linspace(0, 1, 101, dtype=F64), u=sine, solver=solver)
    assert_close(coarse.x, fine.x[:, ::50], rtol=1e-12, atol=1e-12)


GATES = ("constant", "shared", "input", "state")


@pytest.mark.parametrize("kind", [*SCHEMES, "midpoint", *GATES])
def test_a_layer_steps_as_it_runs(kind: str) -> None:
    options = {"gate": kind} if kind in GATES else {"solver": kind}
    nets = [of_kind(substeps=n, **options) for n in (1, 4)]
    x = torch.zeros(3, nets[0].hidden_size, dtype=F64)
    for net in nets:
        stepped = net.step(U[:, 1], net.step(U[:, 0], x))
        assert_close(net(U)[0][:, 1], stepped, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(nets[0](U)[0], nets[1](U)[0], atol=1e-6)
    nets[0].dt = 0.05
    assert_close(nets[0](U.repeat_interleave(4, 1))[1], nets[1](U)[1], rtol=1e-12, atol=1e-12)


def of_kind(substeps: int, **options: object) -> CTRNN:
    if "solver" in options:
        return layer(substeps=substeps, **options)  # type: ignore[arg-type]
    from test_layer_interface import ctrnn

    return ctrnn(dt=0.2, substeps=substeps, **options).double()


def test_the_certificate_is_that_of_the_short_step() -> None:
    coarse, fine = layer(dt=0.6).certificate().step, layer(dt=0.6, substeps=8)
    found, short = fine.certificate().step, layer(dt=0.075).certificate().step
    assert coarse is not None
    assert found is not None
    assert short is not None
    assert not coarse.certified
    assert found.certified
    assert found == replace(short, substeps=8)
    q = found.contraction_factor
    assert q is not None
    assert found.sample_factor is not None
    assert q**8 <= found.sample_factor < q**8 * (1 + 1e-15)
    bound = fine.certificate().jacobian_bound(3)
    root = math.sqrt(fine.certificate().metric.condition_number)
    assert bound == pytest.approx(root * q**24)
    measured = measure_contraction(fine, normal(2, 30, 2), generator=rng(3))
    assert q < measured.factor**0.125 * 1.2  # of a sample, not of a step
    assert measured.factor <= found.sample_factor


@pytest.mark.parametrize("gate", ["shared", "input"])
def test_the_certificate_of_gates_is_that_of_the_short_step(gate: str) -> None:
    fine, short = (of_kind(substeps=n, gate=gate) for n in (4, 1))
    found, alone = fine.certificate().step, short.certificate(dt=0.05).step
    assert found is not None
    assert alone is not None
    assert (found.dt, found.contraction_factor) == (alone.dt, alone.contraction_factor)


@pytest.mark.parametrize("solver", [*SCHEMES, "rk4", "midpoint"])
def test_diagnostics_see_the_substeps(solver: str) -> None:
    net, x = layer(solver, 3), normal(2, 23, seed=4)
    u = U[:2, 0]
    J = step_jacobian(net, u, x)
    for k in range(2):
        own = torch.autograd.functional.jacobian(
            lambda v, k=k: net.step(u[k : k + 1], v)[0], x[k : k + 1]
        )
        assert_close(J[k], own[:, 0], rtol=1e-9, atol=1e-9)  # type: ignore[union-attr, index]
    radius = spectrum_at(net, u, x).step_eigenvalues
    assert radius is not None
    assert_close(radius.abs().amax(1), torch.linalg.eigvals(J).abs().amax(1), rtol=1e-9, atol=1e-9)


def test_exponents_are_per_unit_of_time_with_substeps() -> None:
    u, settings = normal(1, 60, 2, seed=5), {"k": 2, "transient": 30}
    x0 = torch.zeros(1, 23, dtype=F64)
    found = lyapunov_exponents(layer(substeps=4), u, x0, steps=30, generator=rng(), **settings)  # type: ignore[arg-type]
    often = u.repeat_interleave(4, 1)
    fine = lyapunov_exponents(layer(dt=0.05), often, x0, k=2, steps=120, transient=120, generator=rng())
    assert_close(found.exponents, fine.exponents, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_refined_is_refused_by_name() -> None:
    for solver, make in itertools.product(
        ADAPTIVE, (layer, lambda s, n: solve(TERMS, X0, u=U, dt=1, solver=s, substeps=n))
    ):
        with pytest.raises(SolverError, match=f"'{solver}' chooses its own steps"):
            make(solver, 2)
    for wrong in (0, 1.5):
        with pytest.raises(SolverError, match="whole number"):
            layer("euler", wrong)  # type: ignore[arg-type]
    with pytest.raises(SolverError, match="not both"):
        solve(TERMS, X0, u=U, dt=1, solver="rk4", substeps=2, step_size=0.1)


class Pendulum(torch.nn.Module):
    """A field of one's own with a held torque."""

    def forward(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return torch.stack([x[:, 1], u[:, 0] - torch.sin(x[:, 0])], -1)


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_substeps_refine_a_field_of_ones_own(solver: str) -> None:
    field, torque, x0 = Pendulum(), U[:, :, :1], normal(3, 2)
    t = torch.linspace(0, 2, 5, dtype=F64)
    exact = tight(lambda s, x: field(s, x, torque[:, min(int(s / 0.5), 3)]), x0, t, 300)
    found = [solve(field, x0, t, u=torque, solver=solver, substeps=n).x for n in PARTS]
    errors = [float((x - exact).norm()) for x in found]
    assert order(errors, [1 / n for n in PARTS]) == pytest.approx(known_order(solver), abs=0.15)
    net = CTRNN(1, field, size=2, dt=0.5, substeps=64, solver=solver, batch_first=True)  # type: ignore[call-arg]
    assert_close(net.double()(torque, x0[None])[0], found[-1][:, 1:], rtol=1e-6, atol=1e-6)
    step = net.step(torque[:, 0], x0)
    assert_close(step, found[-1][:, 1], rtol=1e-6, atol=1e-6)
    assert not net.certificate().certified


MADE = {
    "plain": lambda: CTRNN(1, Subnetwork(AdaDiagTanh(), 4), batch_first=True),
    "gated": lambda: CTRNN(1, Subnetwork(AdaDiagTanh(), 4), gate="input", batch_first=True),
    "stack": lambda: Stack(1, 4, [Pairs(4)], norm="layer", batch_first=True),
    "one field": lambda: Stack(1, 4, [Pairs(4)], norm="layer", one_field=True, batch_first=True),
}
CHANGED = [("substeps", 0), ("substeps", 2.5), ("solver", "no"), ("dt", 0.0), ("dt", math.nan)]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize(("name", "wrong"), CHANGED)
def test_settings_that_are_changed_by_hand_are_checked(make, name, wrong) -> None:
    layer = make()
    u, x = torch.ones(2, 5, 1), torch.ones(2, 4)
    setattr(layer, name, wrong)
    calls = [lambda: layer(u), lambda: layer.last(u), lambda: layer.step(u[:, 0], x)]
    for call in (*calls, layer.flow, layer.certificate):
        with pytest.raises((ConfigError, SolverError), match=f"{name} must be .*|got 'no': solver"):
            call()


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_the_flow_under_an_array_is_that_under_a_tensor(make) -> None:
    layer = make()
    u, x = torch.linspace(-1, 1, 2)[:, None], torch.ones(2, 4)
    assert_close(layer.flow(u.tolist())(x), layer.flow(u)(x))
    with pytest.raises(ShapeError, match=r"u must be \(batch, 1\); got \(2,\)"):
        layer.flow(u[:, 0].numpy())
