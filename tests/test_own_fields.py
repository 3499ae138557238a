"""A vector field of one's own: solved, and run as a layer, driven, backwards, and refused by name."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.testing import assert_close
from torchdiffeq import odeint

from cli_tools import Cli
from ctrnn_assembly import (
    CTRNN,
    SingularValueBounded,
    Solution,
    Subnetwork,
    Unconstrained,
    certify,
    couple,
    solve,
)
from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
from ctrnn_assembly.diagnostics.spectrum import spectrum_along
from ctrnn_assembly.errors import ConfigError, CtrnnError, DataError, ShapeError, SolverError
from ctrnn_assembly.inputs import CubicHermite, LinearInterpolation, Signal, ZeroOrderHold
from ctrnn_assembly.schemes import SCHEMES, SOLVERS
from ctrnn_assembly.training.config import TrainConfig
from solver_problems import F64, normal, one_module

TERMS = one_module("tanh", "x")
X0, U = normal(3, 6), normal(3, 8, 2, seed=1)
CALLABLE = [solver for solver in SOLVERS if solver not in ("imex", "exponential-euler")]
EITHER = [(solver, TERMS) for solver in SOLVERS] + [
    (solver, lambda t, x: TERMS(x)) for solver in CALLABLE
]
TIMES = torch.linspace(0, 0.8, 9, dtype=F64)


def driven(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
    return TERMS(x, u)


def pendulum(t: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x[:, 1], -torch.sin(x[:, 0]) - 0.2 * x[:, 1]], 1)


class VanDerPol(nn.Module):
    def __init__(self, mu: float = 1.0) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=F64))

    def forward(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        q, v = x.unbind(-1)
        return torch.stack([v, self.mu * (1 - q**2) * v - q + u[..., 0]], -1)


@torch.no_grad()
@pytest.mark.parametrize("solver", CALLABLE)
@pytest.mark.parametrize("kind", [None, LinearInterpolation, CubicHermite])
def test_a_driven_field_of_ones_own_is_solved_as_the_same_terms_are(
    solver: str, kind: type[Signal] | None
) -> None:
    t, u = TIMES[:5], U[:, :4] if kind is None else kind(U[:, :4], TIMES[:4])
    options = {"solver": solver, "rtol": 1e-2, "atol": 1e-2}
    expected = solve(TERMS, X0, t, u=u, **options).x  # type: ignore[arg-type]
    found = solve(driven, X0, t, u=u, **options).x  # type: ignore[arg-type]
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5", "implicit_adams", "scipy_solver"])
def test_an_input_is_added_to_a_field_that_does_not_read_it(solver: str) -> None:
    u = normal(3, 8, 2, seed=2)
    options = {"u": u, "solver": solver, "rtol": 1e-3, "atol": 1e-4}
    added = solve(pendulum, X0[:, :2], TIMES, **options).x  # type: ignore[arg-type]
    read = solve(lambda t, x, u: pendulum(t, x) + u, X0[:, :2], TIMES, **options).x  # type: ignore[arg-type]
    assert torch.equal(added, read)


def test_an_adaptive_solve_of_a_driven_field_agrees_with_scipy() -> None:
    f, x0, u = VanDerPol(), torch.tensor([[1.0, 0.0]], dtype=F64), normal(1, 9, 1, seed=3)
    x = solve(f, x0, TIMES, u=LinearInterpolation(u, TIMES), solver="dopri5", rtol=1e-9, atol=1e-11).x
    held = lambda t: np.interp(t, TIMES, u[0, :, 0])  # noqa: E731
    known = solve_ivp(
        lambda t, x: [x[1], (1 - x[0] ** 2) * x[1] - x[0] + held(t)],
        (0, 0.8), x0[0].numpy(), t_eval=TIMES.numpy(), rtol=1e-11, atol=1e-12, max_step=0.01,
    )  # fmt: skip
    assert_close(x[0].detach(), torch.from_numpy(known.y.T), rtol=0, atol=1e-7)  # of the two tolerances


@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5"])
def test_times_of_a_step_each_for_every_sample_and_gradients_of_a_module(solver: str) -> None:
    f, x0, u = VanDerPol(), normal(3, 2), normal(3, 5, 1, seed=1)
    grads = torch.autograd.grad(solve(f, x0, u=u, dt=0.1, solver=solver).last.sum(), f.parameters())
    assert float(grads[0].abs()) > 1e-4
    h, mu = 1e-5, 1.0
    with torch.no_grad():
        ends = [solve(VanDerPol(mu + s), x0, u=u, dt=0.1, solver=solver).last.sum() for s in (-h, h)]
    assert_close(grads[0], (ends[1] - ends[0]) / (2 * h), rtol=1e-4, atol=1e-6)  # a difference


def test_euler_of_ones_own_takes_steps_of_its_own_for_every_sample() -> None:
    seen, dt = [], 0.01 + torch.rand(3, 8, dtype=F64)

    def f(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        seen.append(t)
        return TERMS(x, u)

    assert_close(solve(f, X0, u=U, dt=dt).x, solve(TERMS, X0, u=U, dt=dt).x, rtol=1e-12, atol=1e-12)
    assert_close(seen[2], dt[:, :2].sum(1)[:, None], rtol=1e-14, atol=0)


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5", "implicit_adams"])
def test_tuples_and_states_of_any_shape_are_those_of_torchdiffeq(solver: str) -> None:
    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, _ = state
        return torch.tanh(z).flip(-1) - t * z, -z.square().flatten(1).sum(1)

    z, log_p = normal(3, 2, 4), torch.zeros(3, dtype=F64)
    found = solve(f, (z, log_p), TIMES, solver=solver, rtol=1e-7, atol=1e-9)
    expected = odeint(f, (z, log_p), TIMES, method=solver, rtol=1e-7, atol=1e-9)
    for mine, theirs in zip(found.x, expected, strict=True):
        # torchdiffeq's order of an Adams method is 12, ours 4; ours ends the last step of dopri5 at t.
        tolerance = {"implicit_adams": 1e-4, "dopri5": 1e-6}.get(solver, 1e-12)
        assert_close(mine, theirs.transpose(0, 1), rtol=tolerance, atol=tolerance)
    assert [part.shape for part in found.last] == [(3, 2, 4), (3,)]
    alone = solve(lambda t, z: f(t, (z, log_p))[0], z, TIMES, solver=solver, rtol=1e-7, atol=1e-9)
    assert_close(alone.x, found.x[0], rtol=1e-5, atol=1e-6)  # of other adaptive steps


@torch.no_grad()
@pytest.mark.parametrize(("solver", "field"), EITHER)
def test_time_may_run_backwards_repeat_or_stand_still(solver: str, field: object) -> None:
    t = torch.linspace(0, 0.3, 31, dtype=F64)
    given = {"solver": solver, "rtol": 1e-4, "atol": 1e-5}
    there = solve(field, X0, t, **given)  # type: ignore[arg-type]
    back = solve(field, there.last, t.flip(0), **given)  # type: ignore[arg-type]
    assert torch.equal(back.t, t.flip(0))
    # Euler's steps there and back differ by dt; the others are of order 2 or more.
    assert_close(back.last, X0, rtol=0, atol=0.15 if solver in SCHEMES else 2e-3)
    for save in ("all", "last"):
        twice = solve(field, X0, t.repeat_interleave(2), save=save, **given)  # type: ignore[arg-type]
        assert torch.equal(twice.last, there.last)
        if save == "all":
            assert torch.equal(twice.x, there.x.repeat_interleave(2, 1))
        assert torch.equal(solve(field, X0, t[:1], save=save, **given).x, X0[:, None])  # type: ignore[arg-type]
        assert torch.equal(solve(field, X0, [0.5, 0.5], save=save, **given).last, X0)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["rk4", "dopri5", "euler"])
def test_inputs_are_held_backwards_and_over_repeated_times(solver: str) -> None:
    t = torch.tensor([0.0, 0.1, 0.1, 0.3, 0.4], dtype=F64)
    u = normal(3, 4, 2, seed=5)
    there = solve(TERMS, X0, t, u=u, solver=solver, backend="auto")
    dropped = solve(TERMS, X0, t[[0, 1, 3, 4]], u=u[:, [0, 2, 3]], solver=solver)
    assert_close(there.x[:, [0, 1, 3, 4]], dropped.x, rtol=1e-12, atol=1e-12)
    back = solve(TERMS, X0, t.flip(0), u=u.flip(1), solver=solver)
    same = solve(TERMS, X0, t.flip(0), u=ZeroOrderHold(u[:, [0, 2, 3]], t[[0, 1, 3]]), solver=solver)
    assert_close(back.x, same.x, rtol=1e-9, atol=1e-9)
    minus = solve(lambda s, x, u: -TERMS(x, u), X0, -t.flip(0), u=u.flip(1), solver=solver)
    assert_close(back.x, minus.x, rtol=1e-9, atol=1e-9)


def test_a_contracting_field_expands_backwards() -> None:
    net = Subnetwork(SingularValueBounded("tanh"), 6).double()
    x = solve(net, torch.stack([X0[0], X0[0] + 1e-3]), [1.0, 0.5, 0.0], solver="dopri5").x
    gaps = (x[0] - x[1]).norm(dim=-1)
    assert gaps[0] < gaps[1] < gaps[2]
    assert "backwards" in str(solve.__doc__)


@pytest.mark.parametrize("t", [[0, 0.1, 0.2], np.array([0.0, 0.1, 0.2]), (0.0, 0.1, 0.2)])
def test_times_may_be_a_list_or_an_array(t: object) -> None:
    expected = solve(pendulum, X0[:, :2], torch.tensor([0.0, 0.1, 0.2], dtype=F64), solver="rk4").x
    assert torch.equal(solve(pendulum, X0[:, :2], t, solver="rk4").x, expected)


def test_a_solution_says_what_it_has() -> None:
    names = vars(Solution)["__dataclass_fields__"]
    assert all(f"\n        {name}: " in str(Solution.__doc__) for name in names)
    assert "(batch, n)" in str(Solution.last.__doc__)


STRUCTURED = [{"solver": "imex"}, {"solver": "exponential-euler"}, {"backend": "fused"},
              {"backend": "graph"}, {"recompute": "sqrt", "save": "last"},
              {"matmul_precision": "bf16"}]  # fmt: skip


@pytest.mark.parametrize("settings", STRUCTURED)
def test_what_needs_the_tensors_of_a_field_says_so_by_name(settings: dict[str, object]) -> None:
    name, value = next(iter(settings.items()))
    message = f"{name}={value!r} needs the tensors of the field.*a field of your own.*euler, rk4"
    with pytest.raises(SolverError, match=message):
        solve(pendulum, X0[:, :2], TIMES, **settings)  # type: ignore[arg-type]
    settings = {key: value for key, value in settings.items() if key != "save"}
    with pytest.raises(SolverError, match=message):
        CTRNN(2, pendulum, size=2, **settings)  # type: ignore[arg-type]


WRONG = [
    (3, X0, None, ConfigError, r"got 3. Use Subnetwork.*or lambda t, x: -x"),
    (nn.Linear(6, 6), X0, None, ConfigError, r"f\(t, x\) or f\(t, x, u\); got Linear.*lambda t, x: f"),
    (lambda x: x, X0, None, ConfigError, r"arguments \(x\)"),
    (driven, X0, None, SolverError, r"reads an input; got none. Pass u="),
    (lambda t, x: x[:, :1], X0, None, ShapeError, r"\(3, 6\) torch.float64 on cpu; got \(3, 1\)"),
    (lambda t, x: (x,), X0, None, ShapeError, r"got a tuple of \(3, 6\)"),
    (lambda t, x: x.float(), X0, None, ShapeError, r"torch.float64 on cpu; got \(3, 6\) torch.float32"),
    (lambda t, x: -x, X0, U, ShapeError, r"with batch 3 and m = 6; got \(3, 8, 2\)"),
    (driven, X0, U[:2], ShapeError, r"with batch 3"),
    (lambda t, x: -x, torch.tensor(1.0), None, ShapeError, r"x0\[None\]"),
    (lambda t, x: -x, torch.ones(3, dtype=torch.long), None, ShapeError, r"floating point"),
    (lambda t, x: x, (X0, X0[:2]), None, ShapeError, r"one batch"),
    (lambda t, x: x, (X0, X0), U, ShapeError, r"not added to a tuple.*f\(t, x, u\)"),
]  # fmt: skip


@pytest.mark.parametrize("solver", ["euler", "rk4"])
@pytest.mark.parametrize(("f", "x0", "u", "error", "message"), WRONG)
def test_wrong_calls_are_one_sentence_with_the_right_one(
    f: object, x0: Tensor, u: Tensor | None, error: type[CtrnnError], message: str, solver: str
) -> None:
    with pytest.raises(error, match=message):
        solve(f, x0, TIMES, u=u, solver=solver)


def test_a_default_is_no_input_unless_its_name_says_so() -> None:
    with_mu = solve(lambda t, x, mu=2.0: -mu * x, X0, TIMES, u=torch.zeros(3, 8, 6, dtype=F64))
    assert_close(with_mu.x, solve(lambda t, x: -2 * x, X0, TIMES).x, rtol=1e-12, atol=1e-12)
    optional = lambda t, x, u=None: -x if u is None else -x + u  # noqa: E731
    assert torch.equal(solve(optional, X0, TIMES).x, solve(lambda t, x: -x, X0, TIMES).x)
    u = normal(3, 8, 6)
    assert torch.equal(solve(optional, X0, TIMES, u=u).x, solve(lambda t, x: -x, X0, TIMES, u=u).x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("solver", "interpolation"),
    [("euler", "hold"), *product(["rk4", "dopri5", "scipy_solver"], ["hold", "linear", "cubic"])],
)
def test_a_layer_of_ones_own_field_reads_the_input_as_it_is(solver: str, interpolation: str) -> None:
    options = {"solver": solver, "rtol": 1e-3, "atol": 1e-4}
    layer = CTRNN(1, VanDerPol(), size=2, dt=0.1, interpolation=interpolation, **options)  # type: ignore[arg-type]
    u = normal(8, 3, 1)
    output, h_n = layer(u)
    signal = {"hold": ZeroOrderHold, "linear": LinearInterpolation, "cubic": CubicHermite}[interpolation]
    t = torch.arange(9, dtype=F64) * 0.1
    given = signal(u.transpose(0, 1), t[:-1])
    x = solve(layer.field, torch.zeros(3, 2, dtype=F64), t, u=given, **options).x  # type: ignore[arg-type]
    assert_close(output.transpose(0, 1), x[:, 1:], rtol=1e-4, atol=1e-5)  # t is summed up: other steps
    assert torch.equal(h_n[0], output[-1])


@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5"])
def test_an_encoded_input_is_added_in_a_layer(solver: str) -> None:
    layer = CTRNN(3, pendulum, size=2, solver=solver, batch_first=True)
    u = normal(4, 6, 3)
    x = solve(pendulum, X0.new_zeros(4, 2), u=layer.encoder(u), dt=0.03, solver=solver).x
    assert_close(layer(u)[0], x[:, 1:], rtol=1e-6, atol=1e-6)
    state = X0.new_zeros(4, 2)
    for sample in u.unbind(1):
        state = layer.step(sample, state)
    assert_close(state, x[:, -1], rtol=1e-5, atol=1e-6)
    layer(u)[0].sum().backward()
    assert all(float(p.grad.norm()) > 0 for p in layer.encoder.parameters())


def test_a_layer_of_ones_own_field_proves_nothing_and_is_inspected() -> None:
    layer = CTRNN(1, VanDerPol(), size=2, dt=0.05, batch_first=True)
    for found in (layer.certificate(), layer.certificate(solver="rk4"), certify(layer)):
        assert not found.certified
        assert "no proof is known for a field of your own" in found.reasons[0]
    assert not layer.certificate().step.certified  # type: ignore[union-attr]
    for refused in (layer.terms, layer.metric):
        with pytest.raises(ConfigError, match=r"field of your own, VanDerPol. Use step\(u, x\) or flow"):
            refused()
    with pytest.raises(ConfigError, match="gates need a Subnetwork"):
        CTRNN(1, VanDerPol(), size=2, gate="constant")
    u = normal(1, 40, 1)
    # mu > 0: the origin is unstable, with eigenvalues mu / 2 +- i sqrt(1 - mu^2 / 4).
    found = spectrum_along(layer, u[0], at=[0])
    assert_close(found.abscissa, torch.tensor([0.5], dtype=F64), rtol=1e-9, atol=1e-9)
    assert lyapunov_exponents(layer, u, k=2, steps=40).exponents.isfinite().all()


def test_a_layer_without_any_parameter_has_a_dtype() -> None:
    layer = CTRNN(1, lambda t, x, u: -x + u, size=1)
    assert layer.double()(normal(5, 2, 1))[0].dtype == F64
    assert layer.float()(normal(5, 2, 1).float())[0].dtype == torch.float32
    layer.load_state_dict(layer.state_dict())


def test_the_size_of_a_layer_is_asked_for_where_it_is_not_known() -> None:
    with pytest.raises(ConfigError, match=r"got None. Use CTRNN\(m, f, size=n\)"):
        CTRNN(1, VanDerPol())
    with pytest.raises(ConfigError, match=r"got 5. Use size=6, or leave it out"):
        CTRNN(1, Subnetwork(SingularValueBounded("tanh"), 6), size=5)
    with pytest.raises(ConfigError, match=r"got 64. Use Subnetwork"):
        CTRNN(3, 64)


@pytest.mark.parametrize("solver", ["explicit_adams", "implicit_adams"])
@pytest.mark.parametrize("end", [5.0, -5.0, 300.0])
def test_adams_methods_take_a_float32_linspace(solver: str, end: float) -> None:
    t = torch.linspace(0, end, 501, dtype=torch.float32)
    x = solve(pendulum, 0.1 * X0[:, :2], t, solver=solver, rtol=1e-3, atol=1e-3)
    assert x.last.isfinite().all()
    uneven = t.clone()
    uneven[250] += 0.01 * t[1]
    with pytest.raises(SolverError, match="needs equal steps"):
        solve(pendulum, 0.1 * X0[:, :2], uneven, solver=solver)


def test_implicit_suggests_what_is_meant() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'imex'.*'implicit_adams'"):
        solve(TERMS, X0, TIMES, solver="implicit")


def test_tolerances_have_one_default() -> None:
    from inspect import signature

    for name in ("rtol", "atol"):
        found = {signature(f).parameters[name].default for f in (solve, CTRNN)}
        assert found == {TrainConfig.model_fields[name].default}, name


EXPLODING = Subnetwork(Unconstrained("relu"), 4, weight=1000 * torch.eye(4)).double()


@pytest.mark.parametrize("save", ["all", "last"])
@pytest.mark.parametrize("backend", ["fused", "plain"])
@pytest.mark.parametrize("solver", [*SCHEMES, "rk4"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([200, 150])])
def test_an_overflow_names_time_and_state(
    solver: str, backend: str, save: str, lengths: Tensor | None
) -> None:
    x0, options = torch.ones(2, 4, dtype=F64), {"solver": solver, "save": save, "lengths": lengths}
    options["backend"] = backend if solver in SCHEMES else "auto"
    u = torch.zeros(2, 200, 4, dtype=F64)
    with pytest.raises(SolverError) as caught:
        solve(EXPLODING, x0, u=u, dt=1.0, **options)  # type: ignore[arg-type]
    words = str(caught.value)
    assert all(part in words for part in (solver, "became inf at t = ", "unit 0 of sample 0")), words
    step = int(words.split("step ")[1].split()[0])
    assert f"t = {step}," in words
    # A step multiplies by 1e12 at most.
    assert 1e296 < float(words.split("before it was ")[1].split(". ")[0]) < math.inf


def test_an_overflow_past_a_sequences_end_is_none() -> None:
    x0, u = torch.ones(2, 4, dtype=F64), torch.zeros(2, 200, 4, dtype=F64)
    for save in ("all", "last"):
        x = solve(EXPLODING, x0, u=u, dt=1.0, lengths=torch.tensor([3, 20]), save=save)  # type: ignore[arg-type]
        assert x.last.isfinite().all()


@pytest.mark.parametrize(("solver", "field"), EITHER)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_state_to_start_from_must_be_finite(solver: str, field: object, bad: float) -> None:
    x0 = X0.clone()
    x0[1, 4] = bad
    with pytest.raises(DataError, match=rf"x0 must be finite; got {bad} at index \(1, 4\)"):
        solve(field, x0, TIMES, solver=solver)


def test_own_fields_overflow_by_name_and_layers_with_gates_too() -> None:
    t = torch.linspace(0, 50, 51, dtype=F64)
    with pytest.raises(SolverError, match=r"'euler': the state became .*inf at t = \d+, step \d+"):
        solve(lambda t, x: x**3, 10 * torch.ones(1, 2, dtype=F64), t)
    net = Subnetwork(Unconstrained("relu"), 4, weight=1000 * torch.eye(4))
    gated = CTRNN(2, net, gate="input", dt=100.0).double()
    with pytest.raises(SolverError, match=r"became .*inf at t = \d+, step"):
        gated(normal(300, 1, 2))


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_a_layer_of_too_strong_coupling_says_when_its_state_overflows(solver: str) -> None:
    parts = [Subnetwork(SingularValueBounded("tanh"), 4) for _ in range(2)]
    layer = CTRNN(2, couple(parts, init_scale=1000.0), dt=1.0, solver=solver)
    for call in (layer, layer.last):
        with pytest.raises(SolverError, match=rf"{solver}.* became .*(inf|nan) at t = \d+, step \d+"):
            call(normal(400, 3, 2))


def test_a_state_for_tensors_is_a_tensor() -> None:
    with pytest.raises(ShapeError, match=r"x0 must be one tensor; got 2"):
        solve(TERMS, (X0, X0), TIMES)


@pytest.mark.parametrize("x0", [X0.numpy(), X0.tolist(), [X0[0], X0[1], X0[2]], None])
def test_the_state_of_an_own_field_is_a_tensor_or_refused_by_its_type(x0: object) -> None:
    """A list of tensors would be a batch of them, and not a tuple."""
    with pytest.raises(ShapeError, match=rf"x0 must be .*; got {type(x0).__name__}\. Use"):
        solve(pendulum, x0, TIMES)
    with pytest.raises(ShapeError, match=r"got a tuple of \(3, 6\) torch.float64 on cpu, float"):
        solve(pendulum, (X0, 1.0), TIMES)


def test_times_have_a_gradient_in_eulers_plain_loop_only() -> None:
    t = TIMES.clone().requires_grad_()
    (g,) = torch.autograd.grad(solve(pendulum, X0[:, :2], t).last.sum(), t)
    assert float(g.abs().max()) > 1e-3
    with pytest.raises(SolverError, match="no gradient with respect to times"):
        solve(pendulum, X0[:, :2], t, solver="rk4")


def test_transforms_of_torch_differentiate_a_step_of_ones_own() -> None:
    layer, u = CTRNN(1, VanDerPol(), size=2, dt=0.1), normal(1, 1)
    J = torch.func.jacrev(lambda x: layer.step(u, x[None])[0])(torch.tensor([0.5, 0.2], dtype=F64))
    known = torch.tensor([[1, 0.1], [0.1 * (-2 * 0.5 * 0.2 - 1), 1 + 0.1 * (1 - 0.25)]], dtype=F64)
    assert_close(J, known, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("command", ["train", "certify digits", "spectrum digits"])
def test_the_command_line_suggests_what_is_meant(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    error = Cli(capsys).refuses(*command.split(), "--solver", "implicit")
    assert "Did you mean 'imex' or 'implicit_adams'?" in error
