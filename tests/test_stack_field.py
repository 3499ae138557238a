"""A stack as one vector field of all layers, and several solver steps a sample."""

import re

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch.testing import assert_close

from cli_tools import Cli
from ctrnn_assembly import AdaDiagTanh, Subnetwork
from ctrnn_assembly.diagnostics.linearise import behaviour, trajectory
from ctrnn_assembly.errors import ConfigError, ShapeError, SolverError
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.stack import Stack
from ctrnn_assembly.training.run import Run
from ctrnn_assembly.training.swap import measured
from solver_problems import F64, gain_matrix, normal
from stored_runs import store_run, strict_json
from test_stack import distances, stack


def as_one(net, solver="exponential-euler", **changes):
    for name, value in {"one_field": True, "solver": solver, **changes}.items():
        setattr(net, name, value)
    return net.requires_grad_(False)


def smooth(t):
    return torch.sin(torch.tensor([0.5, 0.9], dtype=F64) * t)[None]


@pytest.mark.parametrize("one_field", [False, True])
@pytest.mark.parametrize("solver", ["exponential-euler", "imex", "euler", "rk4"])
def test_sampled_and_as_one_field_a_stack_converges_to_its_flow_to_first_order(solver, one_field):
    net = as_one(stack(norm="layer"), solver, one_field=one_field)
    field, ends, x0 = net._field(), torch.tensor([0.0, 2.0], dtype=F64), torch.zeros(1, 18, dtype=F64)
    exact = solve(
        lambda t, x: field(smooth(t), x), x0, ends, solver="dopri5", rtol=1e-10, atol=1e-12
    ).last
    errors = []
    for h in (1 / 16, 1 / 32, 1 / 64):  # the drive keeps dt = 1: the physics stay
        u = torch.cat([smooth(h * k) for k in range(int(2 / h))])[None]
        errors.append(float((net(u, dt=h)[1][0] - exact).abs().max()))
    np.testing.assert_allclose(np.diff(np.log2(errors)), -1, atol=0.15)


def test_under_the_same_held_input_the_two_differ_to_first_order_in_the_interval():
    net, gaps = as_one(stack(norm="rms"), "rk4"), []
    u = normal(2, 3, 2)
    for n in (8, 16, 32):
        finer = u.repeat_interleave(n, 1)
        ends = []
        for net.one_field in (True, False):
            ends.append(net(finer, dt=1 / n)[1])
        gaps.append(float((ends[0] - ends[1]).abs().max()))
    assert gaps[-1] > 1e-4
    np.testing.assert_allclose(np.diff(np.log2(gaps)), -1, atol=0.15)


@pytest.mark.parametrize("solver", ["exponential-euler", "euler", "rk4"])
@pytest.mark.parametrize("one_field", [False, True])
def test_a_step_at_a_time_is_the_sequence_with_substeps_and_lengths(solver, one_field):
    net = as_one(stack(dt=0.2), solver, one_field=one_field, substeps=3)
    u, lengths = normal(4, 6, 2), torch.tensor([6, 3, 1, 5])
    output, h = net(u, lengths=lengths)
    x, ends = torch.zeros(4, net.state_size, dtype=F64), {}
    for k in range(6):
        x = net.step(u[:, k], x)
        ends |= {b: x[b] for b in range(4) if lengths[b] == k + 1}
    # torch's matrix exponential, which a plain step takes, is within 1e-10 of the compiled pairs' own.
    close = {"rtol": 1e-6, "atol": 1e-8}
    assert_close(h[0], torch.stack([ends[b] for b in range(4)]), **close)
    first, middle = net(u[:, :2])
    second, last = net(u[:, 2:], net.split(middle))
    assert_close(torch.cat([first, second], 1)[0], output[0], **close)
    assert_close(last[0, 0], h[0, 0], **close)


def test_an_euler_step_of_one_field_is_that_of_its_flow_and_dopri5_solves_it():
    net, u, x = as_one(stack(dt=0.3), "euler"), normal(5, 2), normal(5, 18)
    assert_close(net.step(u, x), x + 0.3 * net.flow(u)(x), rtol=1e-12, atol=1e-14)
    net.solver = "dopri5"
    flow = net.flow(u)
    ends = torch.tensor([0.0, 0.3], dtype=F64)
    exact = solve(lambda t, x: flow(x), x, ends, solver="dopri5", rtol=1e-10, atol=1e-12).last
    assert_close(net.step(u, x), exact, rtol=1e-5, atol=1e-6)
    assert_close(net.flow()(x), net.flow(0 * u)(x))


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("seed", range(3))
def test_distances_in_continuous_time_stay_below_the_exponential_of_h(form, seed):
    """Every entry of H is needed: e(t) <= exp(H t) e(0), and the rate is the slowest layer's."""
    own = [Subnetwork(AdaDiagTanh("tanh"), 6, form=form, tau=tau) for tau in (2.0, 1.0, 3.0)]
    net = as_one(stack(seed=seed, norm="none", mix="linear", fields=own), "dopri5")
    bounds = [layer.bound(1.0, "euler") for layer in net.layers]
    H = gain_matrix(bounds, flow=True)
    x, y = normal(2, 64, net.state_size, seed=seed).unbind(0)
    far, u, before = 0.3, 3 * normal(64, 1, 2, seed=seed), distances_of(net, bounds, x - y)
    for k in range(1, 6):
        x, y = (net(u, z[None], dt=far)[1][0] for z in (x, y))
        assert (distances_of(net, bounds, x - y) <= expm(k * far * H) @ before * (1 + 1e-4)).all()


def distances_of(net, bounds, d):
    """|tau^1/2 Theta d_l| of every layer, in the metric of its certificate."""
    found = []
    for layer, bound, part in zip(net.layers, bounds, net.split(d), strict=True):
        theta = bound.certificate.metric.matrix.theta()
        found.append(((part * layer.field.tau.sqrt()) @ theta.mT).norm(dim=-1).numpy())
    return np.stack(found)


def test_no_eigenvalue_of_the_flow_and_no_long_run_is_slower_than_the_rate():
    net = as_one(stack(norm="none"))
    rate = net.certificate().rate
    slowest = min(layer.bound(1.0, "euler").certificate.rate for layer in net.layers)
    assert slowest * (1 - 1e-5) < rate < slowest
    flow = net.flow(normal(1, 2))
    for x in normal(20, net.state_size):
        J = torch.func.jacrev(lambda z: flow(z[None])[0])(x)
        assert float(torch.linalg.eigvals(J).real.max()) <= -rate


def test_the_facts_of_one_field_hold_for_a_solver_without_a_proof_of_its_step():
    net = as_one(stack(norm="none", fields=[Pairs(6, horizon=3.0) for _ in range(3)]), "rk4")
    found = net.certificate()
    assert found.certified
    assert not found.step.certified
    assert found.cascade.memory <= found.cascade.samples < 1e4
    x, y = normal(2, 1, net.state_size).unbind(0)
    start, u = distances(net, x - y).max(), normal(1, int(found.cascade.samples), 2)
    first, second = (net(u, z[None])[1][0] for z in (x, y))
    assert distances(net, first - second).max() <= 1e-3 * start
    assert stack(solver="dopri5").certificate().cascade is None  # of the sampled stack nothing is said


def test_the_input_gain_of_an_exact_solution_counts_its_feedback_within_a_sample(cli, tmp_path):
    """A step holds phi(z) over the sample; with w near 1 a state moves on for long under an input."""
    net = as_one(stack(norm="none", fields=[Pairs(2, phi="identity")], dt=3.0), "rk4", substeps=100)
    layer, u = net.layers[0], normal(2, 1, 1, 2)
    layer.field.theta.fill_(5.0)
    layer.field.frequency.zero_()
    layer.B.weight.copy_(torch.eye(2, 5))
    net.encoder.weight[2:] = 0
    ends = [net(one)[1][0] for one in u]
    reached = distances(net, ends[0] - ends[1]).max()
    entered = net.encoder.weight @ (u[0] - u[1])[0, 0]
    promised = float(net.certificate().cascade.layers[0].input_gain * entered.norm())
    assert 0.99 * promised < reached <= promised * (1 + 1e-6)  # of rk4's error
    store_run(tmp_path / "run", model="deep-adadiag", one_field=True, solver="rk4")
    assert "exact solution, from sample to sample" in cli("certify", tmp_path / "run").out


@pytest.mark.parametrize(("one_field", "substeps"), [(True, 1), (True, 3), (False, 3)])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_distances_stay_below_gamma_as_one_field_and_over_substeps(one_field, substeps, norm):
    net = as_one(stack(norm=norm, mix="linear"), one_field=one_field, substeps=substeps)
    found = net.certificate()
    q, growth = found.step.sample_factor, np.sqrt(found.metric.condition_number)
    factors = [layer.factor for layer in found.cascade.layers]
    assert q > max(factors)
    x, y = normal(2, 64, net.state_size).unbind(0)
    start = (x - y).norm(dim=-1)
    for k, u in enumerate(normal(12, 64, 2), 1):
        before = distances(net, x - y)
        x, y = net.step(u, x), net.step(u, y)
        assert (distances(net, x - y)[0] <= factors[0] * before[0] * (1 + 1e-9)).all()
        assert ((x - y).norm(dim=-1) <= growth * q**k * start).all()


def test_gamma_over_substeps_is_reached_and_a_single_steps_gain_would_be_too_small():
    """One unit a layer without coupling, all linear and of width 1: products of norms are exact."""
    options = {"norm": "none", "mix": "linear", "phi": "identity", "substeps": 5}
    net = Stack(2, 1, [Pairs(2, phi=None) for _ in range(2)], **options).double().requires_grad_(False)
    for layer in net.layers:
        layer.field.frequency.zero_()
    found = net.certificate()
    low, high = found.cascade.layers
    x = torch.zeros(720, 4, dtype=F64)
    angle = torch.linspace(0, 2 * torch.pi, 720, dtype=F64)
    y = torch.cat([torch.stack([angle.cos(), angle.sin()], 1), x[:, 2:]], 1)
    u = normal(1, 2).expand(720, 2)
    before = distances(net, y)[0]
    gap = distances(net, net.step(u, y) - net.step(u, x))
    entry = high.input_gain * low.output_gain * low.factor
    assert (gap[1] <= entry * before * (1 + 1e-9)).all()
    one = net.layers[1].bound(0.2, net.solver, drive_dt=1.0).input_gain
    assert (gap[1] / before).max() > 2 * one * low.output_gain * low.factor
    np.testing.assert_allclose(low.factor, float(torch.exp(-1 / net.layers[0].field.tau[0])), rtol=1e-6)


def test_gamma_as_one_field_has_no_factor_of_the_layer_below():
    layers = [layer.bound(1.0, "exponential-euler") for layer in stack(mix="linear").layers]
    before, after = gain_matrix(layers, one_field=True), gain_matrix(layers)
    factors = after.diagonal()
    np.testing.assert_allclose(before.diagonal(), factors)
    np.testing.assert_allclose(after[1, 0], before[1, 0] * factors[0], rtol=1e-8)


class Louder(Stack):
    def stepper(self):
        step = super().stepper()
        return lambda u, x: 9 * step(u, x)


def test_hooks_and_a_step_of_its_own_on_the_stack_take_its_certificate():
    hooked = stack()
    hooked.register_forward_hook(lambda module, given, result: result)
    for net in (hooked, Louder(2, 4, [Pairs(4)], norm="none")):
        found = net.certificate()
        assert not found.certified
        assert not found.step.certified
        assert f"a {type(net).__name__} has hooks or methods of its own" in found.reasons[0]


def test_states_of_each_layer_are_taken_and_given_as_a_tuple():
    net, u = stack(), normal(3, 4, 2)
    _, h = net(u)
    assert [z.shape for z in net.split(h)] == [(1, 3, 6)] * 3
    for given in (net.split(h), list(net.split(h))):
        assert_close(net(u, given)[1], net(u, h)[1], rtol=0, atol=0)
    with pytest.raises(ShapeError, match=r"one a layer, of \(6, 6, 6\) units; got \[\(1, 3, 6\)\]"):
        net(u, (h[..., :6],))


@pytest.mark.parametrize(
    ("make", "error", "why"),
    [
        (
            lambda: Stack(3, 8, Pairs(4)),
            ConfigError,
            "must be a non-empty list of fields; got Pairs",
        ),
        (
            lambda: Stack(3, 8, [lambda t, x: x]),
            ConfigError,
            "must be a field.* got function",
        ),
        (lambda: Stack(3, 8, [Pairs(4)], substeps=0), SolverError, "substeps must be a whole number"),
        (
            lambda: Stack(3, 8, [Pairs(4)], substeps=4, solver="dopri5"),
            SolverError,
            "chooses its own steps",
        ),
        (lambda: as_one(stack()).train().step(normal(1, 2), normal(1, 18)), ConfigError, "Call eval"),
        (lambda: as_one(stack()).train()(normal(1, 3, 2)), ConfigError, "fixed maps between its layers"),
        (lambda: stack(norm="none", dropout=0.1).train().flow(), ConfigError, "dropout in training"),
        (
            lambda: as_one(stack(), "dopri5")(normal(2, 3, 2), dt=torch.ones(2, 3, dtype=F64)),
            SolverError,
            "one time grid for the whole batch",
        ),
    ],
)
def test_what_one_field_and_substeps_cannot_be_is_refused(make, error, why):
    with pytest.raises(error, match=why):
        make()


@pytest.mark.parametrize("substeps", [1, 3])
def test_an_input_moves_the_output_of_one_field_by_no_more_than_its_gains(substeps):
    net = as_one(stack(norm="none", mix="linear", phi="identity"), substeps=substeps)
    facts = net.certificate().cascade
    u = normal(8, 30, 2)
    for v in (u + normal(8, 30, 2, seed=1), u + 1):
        moved, given = ((net(v)[0] - net(u)[0]).norm(dim=-1), (v - u).norm(dim=-1))
        assert (moved.amax(1) <= facts.peak_gain * given.amax(1)).all()
        assert (moved.norm(dim=1) <= facts.l2_gain * given.norm(dim=1)).all()
    net.solver = "rk4"
    assert net.certificate().cascade.l2_gain == np.inf


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "deep"
    store_run(folder, model="deep-adadiag", depth=2, width=4, solver="exponential-euler", dt=1.0)
    return folder


def test_the_accuracy_as_one_field_stands_beside_that_of_the_sampled_stack(cli, deep):
    done = cli("evaluate", deep, "--one-field", "--swap", "imex:2,rk4", "--json")
    assert done.code == 0, done.err
    rows = strict_json(done.out)["rows"]
    names = ["exponential-euler (trained)", "imex:2, one field", "rk4, one field"]
    assert [row["solver"] for row in rows] == names
    run = Run.open(deep, one_field=True, solver="rk4")
    assert rows[2]["test_accuracy"] == measured(run).measures["accuracy"]
    assert run.model.core.one_field


def test_what_the_command_line_asks_of_no_stack_is_an_error_of_one_sentence(cli, deep, tmp_path):
    store_run(tmp_path / "flat", model="adadiag-tanh", dt=0.03, solver="euler")
    for arguments, why in (
        (("evaluate", deep, "--swap", "dopri5:4"), "chooses its own steps; got substeps=4"),
        (("evaluate", deep, "--swap", "eulr"), "solver must be one of"),
        (("certify", tmp_path / "flat", "--one-field"), "--one-field is of deep models"),
        (("plot", deep, "--kind", "weights", "--out", tmp_path / "w.png"), "or a stack of layers"),
        (("export", deep, "--out", tmp_path / "net.pt2"), "of Stack. Use .* a CTRNN of a Subnetwork"),
    ):
        done = cli(*arguments)
        assert done.code == 2
        assert re.search(why, done.err), done.err
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("changes", [(), ("--one-field",), ("--one-field", "--solver", "rk4")])
def test_a_stacks_certificate_is_drawn_and_commands_say_that_they_look_at_all_layers(
    cli, deep, tmp_path, changes
):
    drawn = cli("certify", deep, "--plot", tmp_path / "c.png", *changes)
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "c.png").stat().st_size > 10_000
    assert ("of the exact solution, below a thousandth" in drawn.out) == ("rk4" in changes)
    for command in (("spectrum", "--at", "2,8"), ("lyapunov", "--steps", 40, "--k", 2)):
        done = cli(*command, deep, "--samples", 1, *changes)
        assert done.code == 0, done.err
        assert "all 2 layers together; the slowest, by its proof, is layer" in done.out
    found = strict_json(cli("spectrum", "--at", "2", deep, "--samples", 1, "--json", *changes).out)
    assert len(found["blocks"]["module_abscissa"]) == 2  # of each layer
    now = [row for row in found["rows"] if row["weights"] == "trained"]
    assert now
    assert all(row["abscissa"] <= -found["certificate"]["rate"] for row in now)


def test_a_sampled_stack_has_no_step_but_its_own_and_its_run_is_not_that_of_the_flow():
    net = stack(solver="rk4").requires_grad_(False)
    known, u = behaviour(net), normal(1, 5, 2)
    along = trajectory(known, u, torch.zeros(1, 18, dtype=F64), 5, dt=1.0, solver="rk4")
    assert_close(along[:, -1], net(u)[1][0], rtol=1e-9, atol=1e-12)
    with pytest.raises(ConfigError, match="a stack has its own step only; got 'euler'"):
        known.step_map(solver="euler")
    assert behaviour(as_one(net)).step_map(0.1, "euler") is not None
