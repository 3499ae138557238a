"""Pairs with step lengths that read their input: the loop, the proofs for all gates, what is refused."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ctrnn_assembly import AdaDiagTanh, Subnetwork
from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.baselines import FreePairs
from ctrnn_assembly.certificates.selective import SelectivePairs
from ctrnn_assembly.diagnostics.linearise import step_jacobian
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.models import build_model
from ctrnn_assembly.pairs import Pairs, StepGate
from ctrnn_assembly.robustness import certified_radii
from ctrnn_assembly.solvers import pairs, solve
from ctrnn_assembly.stack import Stack
from solver_problems import F64, gain_matrix, normal

U = 2.0


def net(depth=2, seed=0, gain=0.5, phi="tanh", width=5, **options):
    """In float64 and evaluation mode, with statistics of some data and gates away from their start."""
    torch.manual_seed(seed)
    fields = [Pairs(6, horizon=20.0, phi=phi) for _ in range(depth)]
    settings = {"batch_first": True, "gate_range": 2.0, "input_range": U, **options}
    made = Stack(2, width, fields, **settings).double()
    with torch.no_grad():
        for layer in made.layers:
            layer.gate.reader.weight.normal_(std=gain)
            layer.d.normal_(std=0.3)
    made(inputs(16, 20, seed=seed + 50))
    return made.eval()


def inputs(*shape, seed=1):
    return U * (2 * torch.rand(*shape, 2, dtype=F64, generator=torch.Generator().manual_seed(seed)) - 1)


def random_pairs(seed, p=200, phi="tanh"):
    rng = torch.Generator().manual_seed(seed)
    draw = torch.rand(5, p, dtype=F64, generator=rng)
    alpha, omega = 10 ** (2.5 * draw[0] - 2), 2 * draw[1] ** 2
    w = (1.98 * draw[2:4] - 0.99).mT
    return SelectivePairs(alpha, omega, w / ACTIVATIONS[phi].g, ACTIVATIONS[phi], 0.5, 2.0)


def plain_selective(terms, x0, e, h):
    """The states of `pairs.selective`, one exact step after another, by complex numbers."""
    alpha, omega = pairs.rates(terms)
    A, w, states = torch.complex(-alpha, omega), torch.cat(terms.blocks).flatten(), [x0]
    for t in range(h.shape[1]):
        x, E = states[-1], torch.exp(h[:, t] * A)
        given = x, w * terms.pre(x) + e[:, t] + terms.bias
        z, g = (torch.view_as_complex(part.unflatten(-1, (-1, 2))) for part in given)
        states.append(torch.view_as_real(E * z + alpha * (E - 1) / A * g).flatten(-2))
    return torch.stack(states, 1)


def matrices(of, h):
    """E and C of the pairs at h, complex."""
    A = torch.complex(-of.alpha, of.omega)
    E = torch.exp(h * A)
    return E, of.alpha * (E - 1) / A


@pytest.mark.parametrize("phi", ["tanh", "relu", "identity"])
def test_compiled_and_plain_loop_agree_with_all_gradients(phi):
    field = Pairs(6, phi=phi).double()
    h = (0.3 + torch.rand(4, 7, 3, dtype=F64)).requires_grad_()
    x0, e = normal(4, 6, seed=6).requires_grad_(), normal(4, 7, 6, seed=7).requires_grad_()
    found = []
    for run in (pairs.selective, plain_selective):
        x = run(field.terms(), x0, e, h)
        leaves = (x0, e, h, *field.parameters())
        first = torch.autograd.grad((x * normal(*x.shape, seed=8)).sum(), leaves, create_graph=True)
        kept = [g for g in first if g.requires_grad]
        second = torch.autograd.grad(sum(g.square().sum() for g in kept), leaves, allow_unused=True)
        found.append((x, *first, *(g for g in second if g is not None)))
    for ours, twin in zip(*found, strict=True):
        assert_close(ours, twin, rtol=1e-10, atol=1e-10)


def test_equal_steps_are_those_of_exponential_euler_and_zero_ones_leave_the_state():
    field, x0, e = Pairs(6).double(), normal(4, 6), normal(4, 7, 6, seed=2)
    h = torch.full((4, 7, 3), 0.7, dtype=F64)
    expected = solve(field, x0, u=e, dt=0.7, solver="exponential-euler").x
    assert_close(pairs.selective(field.terms(), x0, e, h), expected, rtol=1e-10, atol=1e-12)
    still = pairs.selective(field.terms(), x0, e, 0 * h)
    assert (still == x0[:, None]).all()


def test_float32_agrees_to_the_precision_of_its_tanh():
    low, x0, e, h = Pairs(6), normal(4, 6), normal(4, 7, 6, seed=2), 0.5 + normal(4, 7, 3).abs()
    high = copy.deepcopy(low).double()
    found = pairs.selective(low.terms(), x0.float(), e.float(), h.float())
    expected = pairs.selective(high.terms(), x0, e, h)
    assert_close(found.double(), expected, rtol=3e-6, atol=3e-6)  # within 5e-7 of tanh a step


def test_gates_start_at_one_so_that_the_net_starts_as_the_one_without():
    names, u = ("deep-selective", "deep-adadiag"), inputs(3, 9)
    gated, plain = (build_model(name, 2, 3, depth=2, width=6).double() for name in names)
    plain.load_state_dict({k: x for k, x in gated.state_dict().items() if "gate" not in k})
    assert_close(gated(u), plain(u), rtol=1e-10, atol=1e-10)
    assert gated.core.layers[0].gate.reader.weight.grad is None
    gated(u).sum().backward()
    assert gated.core.layers[0].gate.reader.weight.grad.any()


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_step_at_a_time_is_the_sequence_with_lengths(norm):
    made, u, lengths = net(norm=norm), inputs(4, 9), torch.tensor([9, 3, 1, 7])
    _, h = made(u, lengths=lengths)
    x, ends = torch.zeros(4, made.state_size, dtype=F64), {}
    for k in range(9):
        x = made.step(u[:, k], x)
        ends |= {b: x[b] for b in range(4) if lengths[b] == k + 1}
    assert_close(h[0], torch.stack([ends[b] for b in range(4)]), rtol=1e-10, atol=1e-12)


def test_a_short_sample_moves_along_the_flow_with_its_gates():
    made, u, x = net(), inputs(3, 1), within(net(), normal(1, 3, 12))
    moved = (made(u, x, dt=1e-7)[1] - x)[0] / 1e-7
    assert_close(made.flow(u[:, 0])(x[0]), moved, rtol=1e-4, atol=1e-4)  # differences of first order


@pytest.mark.parametrize("solver", ["exponential-euler", "dopri5"])
def test_linear_pairs_are_solved_exactly_for_any_dt(solver):
    made = net(phi=None, dt=0.5, solver=solver)
    u = inputs(3, 4)
    for dt in (0.5, torch.tensor([0.5, 0.3, 1.0, 0.2], dtype=F64)):
        both = []
        for one, made.substeps in (("exponential-euler", 1), (solver, 3 if solver != "dopri5" else 1)):
            made.solver = one
            both.append(made(u, dt=dt)[0])
        assert_close(*both, rtol=1e-5, atol=1e-5)  # dopri5's tolerance is 1e-6 a step


def test_no_gate_sequence_at_its_bounds_exceeds_the_factor():
    """1e4 sequences of 20 steps, slopes at corners; one step may be as slow as the bound says."""
    of, rng, closest = random_pairs(0, p=10_000), torch.Generator().manual_seed(1), 0.0
    x = torch.exp(-of.low * of.alpha)
    q = x + (1 - x) * of.w.abs().amax(1)
    z = torch.view_as_complex(torch.randn(10_000, 2, dtype=F64, generator=rng))
    for _ in range(20):
        corner = torch.randint(2, (10_000, 3), generator=rng)
        E, C = matrices(of, torch.where(corner[:, 0] == 0, of.low, of.high))
        g = torch.view_as_complex((of.w * corner[:, 1:] * torch.view_as_real(z)).contiguous())
        moved = E * z + C * g
        share = moved.abs() / z.abs() / q
        assert float(share.max()) <= 1 + 1e-12
        closest, z = max(closest, float(share.max())), moved / moved.abs()
    assert closest > 0.99, f"the bound is {1 / closest:.3f} times the slowest step found"
    assert float(q.max()) * (1 - 1e-12) <= of.factor < 1


@pytest.mark.parametrize("phi", ["tanh", "relu", "sigmoid"])
def test_responses_speeds_and_reaches_bound_what_they_name(phi):
    of, e = random_pairs(2, phi=phi), torch.linspace(0.1, 5, 200, dtype=F64)
    hs, angle = torch.linspace(0.5, 2, 61, dtype=F64), torch.linspace(0, 6.25, 40, dtype=F64)
    r, worst, speed = of.reach(e), torch.zeros(200, dtype=F64), torch.zeros(200, dtype=F64)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    for h in hs:
        E, C = matrices(of, h)
        worst = torch.maximum(worst, C.abs())
        for z in (r * turn, 0.5 * r * turn):
            g = torch.view_as_complex((of.w * of.phi(torch.view_as_real(z))).contiguous())
            A = torch.complex(-of.alpha, of.omega)
            for b in (e * turn.roll(shift, 0) for shift in (0, 7, 20)):
                assert bool(((E * z + C * (g + b)).abs() <= r * (1 + 1e-12)).all())
                speed = torch.maximum(speed, (E * (A * z + of.alpha * (g + b))).abs().amax(0))
    assert bool((worst <= of.response * (1 + 1e-12)).all())
    assert bool((speed <= of.speed(e) * (1 + 1e-12)).all())
    tight = float((worst / of.response).median()), float((speed / of.speed(e)).max())
    assert min(tight) > 0.6, f"response and speed are within {tight} of what was found"


def test_the_slope_of_a_gate_is_its_steepest():
    gate = StepGate(1, 1, 4.0).double()
    z = torch.linspace(-3, 3, 20001, dtype=F64)
    gate.reader.weight.data.fill_(1.0)
    delta = gate(z[:, None])[:, 0].detach()
    steepest = float((delta.diff() / z.diff()).max())
    assert steepest <= gate.slope <= steepest * (1 + 1e-5)
    assert gate.bounds[0] <= float(delta.min()) < float(delta.max()) <= gate.bounds[1]


def distances(made, d):
    parts = zip(made.layers, d.split(made.layer_sizes, -1), strict=True)
    return torch.stack([(layer.field.tau.sqrt() * part).norm(dim=-1) for layer, part in parts])


def test_radii_end_where_the_claim_does():
    model, u = build_model("deep-selective", 2, 3, depth=1, width=4).double().eval(), inputs(3, 4)
    model.readout.bias.data[0] = 1e9  # a margin that would allow any perturbation
    room = 3 - u.abs().amax((1, 2))
    assert_close(certified_radii(model, u)[1], torch.stack([room, room / 2]), rtol=1e-12, atol=0)


def gamma_of(made):
    return torch.from_numpy(gain_matrix(made.bounds(1.0, made.solver)))


def within(made, x):
    """States, scaled into what inputs can reach."""
    radii = torch.cat(made._radii()).repeat_interleave(2)
    z = x.unflatten(-1, (-1, 2)).norm(dim=-1).repeat_interleave(2, -1)
    return x / z.clamp(min=1.0) * radii


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("seed", range(2))
def test_no_adversarial_pair_of_trajectories_exceeds_gamma(norm, seed):
    """Ascent on the share of the bound, by two states and the input, all within the claim."""
    made = net(norm=norm, seed=seed, gain=1.0).requires_grad_(False)
    gamma, closest = gamma_of(made), 0.0
    assert made.certificate().step.certified
    start = normal(3, 64, made.state_size, seed=seed).requires_grad_()
    source = normal(64, 2, seed=3).requires_grad_()
    adam = torch.optim.Adam([start, source], lr=0.1)
    for k in range(40):
        x, y, u = *within(made, start[:2]), U * torch.tanh(source)
        if k % 2:  # differences below alone, and small ones
            y = x + 1e-3 * (within(made, start[2]) - x) * (torch.arange(12) < 6)
        share = distances(made, made.step(u, x) - made.step(u, y)) / (gamma @ distances(made, x - y))
        assert float(share.detach().max()) <= 1 + 1e-9
        closest = max(closest, float(share[1].detach().max()))
        adam.zero_grad()
        (-share.clamp(min=1e-12).log().sum()).backward()
        adam.step()
    assert closest > 1e-3, f"the worst share of the bound that was found is {closest:.2g}"


def test_what_moves_through_the_gate_alone_is_in_the_gain():
    made = net(gain=1.0, phi="sigmoid").requires_grad_(False)
    made.layers[1].B.weight.zero_()  # no drive: all that enters is the length of the step
    gamma = gamma_of(made)
    x = within(made, normal(200, 12))
    y = torch.cat([within(made, normal(200, 12, seed=4))[:, :6], x[:, 6:]], -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = distances(made, made.step(inputs(200), x) - made.step(inputs(200), y))
    assert bool((moved <= gamma @ distances(made, x - y)).all())
    assert float(moved[1].max()) > 1e-3
    assert float(gamma[1, 0]) > 0


def test_states_stay_within_reach_and_the_whole_is_as_near_as_the_proof_says():
    made = net(gain=1.0)
    found = made.certificate()
    assert found.certified
    assert found.step.certified
    assert "inputs |u| <= 2 and initial states" in str(found)
    x, y = within(made, normal(2, 1, 12)).unbind(0)
    u = U * inputs(1, int(found.cascade.samples)).sign()
    ends = [made(u, one[None])[1][0].detach() for one in (x, y)]
    assert not made._beyond(torch.cat(ends), made._radii())
    assert distances(made, ends[0] - ends[1]).max() <= 1e-3 * distances(made, x - y).max()
    slower = made.bounds(1.0, made.solver)[0].certificate
    assert "bound is given" in made.layers[0].bound(1.0, made.solver).missing
    plain = copy.deepcopy(made.layers[0])
    plain.gate = None
    assert slower.rate == pytest.approx(plain.bound(1.0, made.solver).certificate.rate / 2, rel=1e-5)


class Narrower(StepGate):
    """It says of itself what is not so."""

    @property
    def slope(self):
        return 1e-9


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda net: net.train(), "training mode"),
        (lambda net: setattr(net.layers[1].mix, "kind", "linear"), "the mix linear has no bound"),
        (lambda net: setattr(net.layers[1].mix, "kind", "glu"), "glu has no Lipschitz constant"),
        (lambda net: setattr(net, "encoder", torch.nn.Sequential(net.encoder)), "encoder is no plain"),
        (lambda net: net.layers[0].gate.reader.weight.data.fill_(math.nan), "NaN"),
        (lambda net: setattr(net.layers[1], "B", torch.nn.Linear(5, 6)), "B without bias"),
        (lambda net: net.layers[0].gate.register_forward_hook(lambda *_: None), "Gate has hooks"),
        (lambda net: setattr(net.layers[0], "gated", lambda *_: None), "Layer has hooks or methods"),
        (lambda net: setattr(net.layers[0], "gate", Narrower(5, 3, 2.0)), "Narrower has hooks or meth"),
        (lambda net: setattr(net.layers[0], "field", FreePairs(6)), "need Pairs; got FreePairs"),
        (lambda net: setattr(net, "x_0", torch.nn.Parameter(1e6 * normal(12))), "initial state"),
    ],
)
def test_what_has_no_proof_is_refused_by_name(change, why):
    made = net()
    change(made)
    found = made.certificate()
    assert not found.certified
    assert not found.step.certified
    assert why in found.reasons[0]


def test_a_gated_step_of_another_solver_has_no_proof():
    found = net().certificate(solver="rk4")
    assert found.certified
    assert "no proof is known for gated steps of rk4" in found.step.reason


def test_an_unbounded_activation_is_bounded_by_its_slope_below_one_or_not_at_all():
    of = random_pairs(3, phi="relu")
    assert bool(of.reach(torch.ones(200, dtype=F64)).isfinite().all())
    steep = SelectivePairs(of.alpha, of.omega, 2 * of.w, of.phi, 0.5, 2.0)
    assert not bool(steep.reach(torch.ones(200, dtype=F64)).isfinite().all())
    assert steep.factor > 1


def test_inputs_and_states_outside_of_the_claim_are_warned_of_at_the_call():
    made, u = net(), inputs(2, 5)
    far = torch.full((1, 2, 12), 1e4, dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        h = made(u)[1]
        made(u, h)
        made.step(u[:, 0], h[0])
        made.train()(9 * u)
        made.eval()
    for call in (lambda: made(9 * u), lambda: made.step(9 * u[:, 0], h[0])):
        with pytest.warns(RuntimeWarning, match=r"inputs \|u\| <= 2 .* got an input of 1"):
            call()
    for call in (lambda: made(u, far), lambda: made.step(u[:, 0], far[0])):
        with pytest.warns(RuntimeWarning, match="an initial state that they cannot reach"):
            call()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"gate_range": 1.0}, r"gate_range must be in \(1, 1000"),
        ({"gate_range": math.nan}, r"gate_range must be in \(1, 1000"),
        ({"solver": "imex"}, "gated pairs step by .* got 'imex'"),
        ({"one_field": True}, "layer by layer; got .* one_field=True"),
        ({"input_range": 0.0}, "input_range must be"),
        ({"input_range": math.inf}, "input_range must be"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(options, why):
    with pytest.raises(ConfigError, match=why):
        net(**options)
    with pytest.raises(ConfigError, match="gates of steps need Pairs"):
        Stack(2, 4, [Subnetwork(AdaDiagTanh("tanh"), 4)], gate_range=2.0)


def test_gates_take_the_recurrent_rate_and_no_decay_in_training():
    names = {n for n, _ in build_model("deep-selective", 1, 3, depth=1, width=4).named_parameters()}
    assert {"core.layers.0.gate.reader.weight", "core.layers.0.gate.reader.bias"} <= names
    assert np.isfinite(StepGate(3, 2, 2.0).slope)


def test_gated_pairs_that_are_made_one_field_by_hand_are_not_certified():
    """The constructor refuses it: the proof is of one layer after the other."""
    layer = net()
    assert layer.certificate(solver="exponential-euler").certified
    layer.one_field = True
    found = layer.certificate()
    assert not found.certified
    assert "gated pairs are proven layer by layer; set one_field=False" in found.reasons[0]


@pytest.mark.parametrize("substeps", [1, 3])
def test_the_jacobian_of_a_gated_step_is_that_of_plain_operations(substeps):
    """Its rows are asked for at once, of a loop that is compiled."""
    made, u = net(substeps=substeps).requires_grad_(False), inputs(4)
    x, step = 0.1 * normal(4, made.state_size), made.stepper()
    plain = torch.func.vmap(torch.func.jacrev(lambda z, v: step(v[None], z[None])[0]))(x, u)
    assert_close(step_jacobian(made, u, x), plain, rtol=0.0, atol=1e-12)
