"""Pairs and stacks of them: what is proven holds for what runs, and what has no proof is refused."""

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ctrnn_assembly import (
    CTRNN,
    Activation,
    AdaDiagTanh,
    SingularValueBounded,
    Subnetwork,
    Triangular,
    block,
    couple,
)
from ctrnn_assembly.block import Layer, Mixer, SequenceNorm
from ctrnn_assembly.certificates import certify
from ctrnn_assembly.certificates.cascade import samples_until, weighted_factor
from ctrnn_assembly.errors import ConfigError, SolverError
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.schemes import SCHEMES, step_pair
from ctrnn_assembly.stack import Stack
from solver_problems import F64, gain_matrix, normal

NORMS, MIXES = ("batch", "layer", "rms", "none"), ("linear", "glu", "tanh-glu", "mlp")


def stack(depth=3, seed=0, phi="tanh", solver="exponential-euler", dt=1.0, fields=None, **options):
    """In float64, in evaluation mode, with statistics of some data."""
    torch.manual_seed(seed)
    fields = fields or [Pairs(6, horizon=30.0, phi=phi) for _ in range(depth)]
    net = Stack(2, 5, fields, batch_first=True, solver=solver, dt=dt, **options).double()
    net.train()
    net(normal(16, 20, 2, seed=seed + 50))
    return net.eval()


def skewed_field():
    """Of one module, with a metric far from I."""
    W = torch.tensor([[0.5, 0.0], [30.0, 0.5]])
    return Subnetwork(Triangular("tanh"), 2, weight=W)


def distances(net, d):
    """|tau^1/2 d_l| of every layer, (layers, batch): M = I for pairs."""
    parts = zip(net.layers, d.detach().split(net.layer_sizes, -1), strict=True)
    return np.stack(
        [(layer.field.tau.sqrt() * part).norm(dim=-1).detach().numpy() for layer, part in parts]
    )


@pytest.mark.parametrize("phi", ["tanh", "relu", None])
def test_the_factor_of_pairs_is_at_most_their_closed_form_and_no_vertex_exceeds_it(phi):
    field = Pairs(10, horizon=20.0, phi=phi).double().requires_grad_(False)
    found = certify(field, dt=0.7, solver="exponential-euler")
    h, w = 0.7 / field.tau, field.w.abs()
    worst = w.view(-1, 2).max(1).values.repeat_interleave(2)
    exact = float((torch.exp(-h) - torch.expm1(-h) * worst).max())
    assert found.certified
    assert found.step.contraction_factor <= exact * (1 + 1e-6)
    rates = (1 - field.w.clamp(min=0)) / field.tau
    assert float(rates.min()) * (1 - 1e-6) <= found.rate <= float(rates.min())
    terms = field.terms().detach_cpu()
    A, C = step_pair(SCHEMES["exponential-euler"], terms, torch.tensor(0.7, dtype=F64))
    for k in range(0, 10, 2):  # the slopes of a pair at all corners
        block = slice(k, k + 2)
        for slopes in itertools.product((0.0, 1.0), repeat=2):
            J = A[block, block] + C[block, block] @ torch.diag(
                terms.weight().diagonal()[block] * torch.tensor(slopes)
            )
            assert float(torch.linalg.matrix_norm(J, ord=2)) <= found.step.contraction_factor


def test_a_forward_euler_step_of_pairs_is_refused_beyond_its_bound():
    field = Pairs(10, horizon=100.0).double()
    with torch.no_grad():
        field.log_rate.fill_(-5.0)
        field.frequency.fill_(0.6)
    step = certify(field, dt=1.0, solver="euler").step
    assert not step.certified
    assert "the largest certified dt is" in step.reason
    assert certify(field, dt=step.max_dt, solver="euler").step.certified


@pytest.mark.parametrize("solver", ["exponential-euler", "imex"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_at_a_time_is_the_sequence_with_lengths(norm, solver):
    net = stack(norm=norm, solver=solver)
    u, lengths = normal(4, 9, 2), torch.tensor([9, 3, 1, 7])
    _, h = net(u, lengths=lengths)
    x, ends = torch.zeros(4, net.state_size, dtype=F64), {}
    for k in range(9):
        x = net.step(u[:, k], x)
        ends |= {b: x[b] for b in range(4) if lengths[b] == k + 1}
    assert_close(h[0], torch.stack([ends[b] for b in range(4)]), rtol=1e-10, atol=1e-12)


def test_states_are_handed_over_and_a_chunked_sequence_is_the_whole():
    net, u = stack(), normal(3, 10, 2)
    whole, last = net(u)
    first, h = net(u[:, :4])
    second, end = net(u[:, 4:], h)
    assert_close(torch.cat([first, second], 1), whole, rtol=1e-10, atol=1e-12)
    assert_close(end, last, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mix", ["linear", "tanh-glu", "mlp"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(2))
def test_distances_stay_below_gamma_at_every_step(norm, mix, seed):
    net = stack(norm=norm, mix=mix, seed=seed)
    with torch.no_grad():
        for layer in net.layers:
            layer.d.normal_(std=0.3)
    layers = [layer.bound(1.0, net.solver) for layer in net.layers]
    gamma = gain_matrix(layers)
    x, y = normal(2, 64, net.state_size, seed=seed).unbind(0)
    u = 3 * normal(64, 12, 2, seed=seed + 9)
    bound = distances(net, x - y)
    for k in range(12):
        x, y = net.step(u[:, k], x), net.step(u[:, k], y)
        bound = gamma @ bound
        assert (distances(net, x - y) <= bound * (1 + 1e-9)).all()


def test_gamma_is_reached_where_the_constants_of_a_path_multiply_exactly():
    """Of width 1 and all linear, norms of products are products of norms: smaller entries are wrong."""
    options = {"norm": "none", "mix": "linear", "phi": "identity"}
    net = (
        Stack(2, 1, [Pairs(2, phi=None) for _ in range(3)], batch_first=True, **options).double().eval()
    )
    with torch.no_grad():
        net.layers[1].C.weight.zero_()  # layer 1 passes on what comes from below, and nothing of its own
        net.layers[1].mix.inner.weight.fill_(0.7)
        net.layers[1].d.fill_(0.4)
    gamma = gain_matrix([layer.bound(1.0, net.solver) for layer in net.layers])
    angle = torch.linspace(0, 2 * torch.pi, 4001, dtype=F64)
    for source in range(3):
        z = torch.zeros(4001, 6, dtype=F64)
        z[:, 2 * source : 2 * source + 2] = torch.stack([angle.cos(), angle.sin()], 1)
        x = torch.zeros_like(z)
        before, u = distances(net, z)[source], normal(1, 2).expand(4001, 2)
        reached = (distances(net, net.step(u, z) - net.step(u, x)) / before).max(1)
        assert (reached <= gamma[:, source] * (1 + 1e-9)).all()
        np.testing.assert_allclose(
            reached, gamma[:, source], rtol=1e-5, atol=1e-12
        )  # of 4,001 directions


def test_the_certificate_of_a_stack_names_what_it_rests_on_and_holds():
    net = stack(phi="tanh")
    found = net.certificate()
    assert found.certified
    assert found.step.certified
    cascade = found.cascade
    assert len(cascade.layers) == 3
    assert cascade.memory == max(layer.memory for layer in cascade.layers) <= cascade.samples < 1e6
    assert found.rate < min(layer.rate for layer in cascade.layers)
    # Two states under one input, for as long as the proof says: 1e-3 in the metric of every layer.
    x, y = normal(2, 1, net.state_size).unbind(0)
    start = distances(net, x - y).max()
    u = normal(1, int(cascade.samples), 2)
    ends = (net(u, z[None])[1][0] for z in (x, y))
    assert distances(net, next(ends) - next(ends)).max() <= 1e-3 * start
    assert found.as_dict()["cascade"]["samples"] == cascade.samples


class Louder(SequenceNorm):
    """Its forward is that of every norm; its constant is not."""

    def slopes(self):
        return 0.01 * super().slopes()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda net: net.train(), "batch norm in training mode couples"),
        (lambda net: setattr(net.layers[1].mix, "kind", "glu"), "glu has no Lipschitz constant"),
        (lambda net: net.layers[0].field.log_rate.data.fill_(torch.nan), "NaN"),
        (lambda net: net.layers[2].C.weight.data.fill_(torch.inf), "not finite"),
        (lambda net: net.layers[2].norm.bias.data.fill_(torch.nan), "NaN"),
        (lambda net: net.layers[0].norm.mean.fill_(torch.nan), "NaN"),
        (lambda net: net.layers[1].mix.inner.bias.data.fill_(torch.inf), "not finite"),
        (lambda net: setattr(net.layers[1].mix, "kind", "swiglu"), "no Lipschitz constant"),
        (lambda net: setattr(net.layers[1], "out", lambda s, v, x: 9 * s), "Layer has hooks or meth"),
        (lambda net: setattr(net.layers[1], "mask", lambda y: 9 * y), "Layer has hooks or methods"),
        (lambda net: setattr(net.layers[0], "norm", Louder("batch", 5)), "Louder has hooks or methods"),
        (lambda net: setattr(net.layers[0].norm, "eps", 0.0), "eps = 0.0, which must be a positive"),
        (lambda net: setattr(net.layers[0].norm, "eps", None), "eps = None, which must be a positive"),
        (lambda net: setattr(net.layers[0], "phi", torch.tanh), "phi must be an Activation"),
        (lambda net: setattr(net.layers[0], "scale", torch.ones(5)), "and scale a number"),
        (lambda net: net.layers[1].mix.register_forward_hook(lambda m, i, y: 9 * y), "Mixer has hooks"),
        (lambda net: net.layers[1].C.register_forward_hook(lambda m, i, y: y * y), "Linear has hooks"),
    ],
)
def test_what_has_no_proof_is_refused_by_name(change, why):
    net = stack()
    change(net)
    found = net.certificate()
    assert not found.certified
    assert not found.step.certified
    assert why in found.reasons[0]
    assert found.reasons[0].startswith("layer ")


def test_states_whose_decay_rounds_off_have_no_certificate():
    net = stack(1, fields=[Pairs(4, horizon=1e4)], norm="none").float()
    assert net.certificate().step.certified
    found = net.bfloat16().certificate()
    assert "may round off in torch.bfloat16" in found.reasons[0]
    assert net.layers[0].field.rate is None


def test_what_training_mode_and_the_encoder_do_is_refused_too():
    net = stack(norm="layer", dropout=0.5)
    assert net.certificate().certified
    assert "dropout in training mode" in net.train().certificate().reasons[0]
    net.eval().encoder.bias.data.fill_(torch.nan)
    assert "encoder is NaN" in net.certificate().reasons[0]


def test_a_layer_whose_step_does_not_contract_takes_the_step_and_not_the_flow():
    net = stack(solver="euler")
    found = net.certificate()
    assert found.certified
    assert not found.step.certified
    assert "layer 0: the bound on the step's factor" in found.step.reason
    free = couple([Subnetwork(AdaDiagTanh("tanh"), 1) for _ in range(2)], kind="free", init_scale=50.0)
    assert not stack(fields=[free]).certificate().certified


def test_a_solver_without_a_proof_leaves_the_flow_certified():
    found = stack().certificate(solver="dopri5")
    assert found.certified
    assert not found.step.certified
    assert found.step.reason == "layer 0: no proof is known for steps of dopri5"


def test_any_field_can_be_a_layer():
    fields = [
        couple([Subnetwork(SingularValueBounded("tanh"), 3, form=form) for _ in range(2)])
        for form in "xr"
    ]
    found = stack(fields=fields, solver="imex", dt=0.3).certificate()
    assert found.certified
    assert found.step.certified


@pytest.mark.parametrize("mix", ["linear", "tanh-glu", "mlp"])
def test_lipschitz_constants_of_mixes_bound_their_jacobians(mix):
    torch.manual_seed(1)
    part = Mixer(mix, 5).double()
    J = torch.func.vmap(torch.func.jacrev(part))(4 * normal(300, 5))
    norms = torch.linalg.matrix_norm(J.detach(), ord=2)
    assert float(norms.max()) <= part.lipschitz()
    assert float(norms.max()) > 0.2 * part.lipschitz()


@pytest.mark.parametrize("kind", NORMS)
def test_lipschitz_constants_of_norms_bound_their_jacobians(kind):
    part = SequenceNorm(kind, 5, eps=0.1).double()
    if kind != "none":
        with torch.no_grad():
            part.weight.uniform_(-2, 2)
    part(normal(30, 4, 5))
    part.eval()
    J, bound = (
        torch.func.vmap(torch.func.jacrev(part))(0.3 * normal(300, 5)),
        float(part.slopes().abs().max()),
    )
    norms = torch.linalg.matrix_norm(J.detach(), ord=2)
    assert 0.3 * bound < float(norms.max()) <= bound * (1 + 1e-12)


def test_batch_norm_is_torchs_and_never_reads_what_pads():
    ours, theirs = SequenceNorm("batch", 3).double(), torch.nn.BatchNorm1d(3).double()
    s, valid = normal(6, 4, 3), torch.arange(4) < torch.tensor([4, 1, 3, 2, 4, 4])[:, None]
    for _ in range(3):
        found = ours(s, valid)[valid]
        assert_close(found, theirs(s[valid]), rtol=1e-10, atol=1e-12)
    ours.eval(), theirs.eval()
    assert_close(ours(s[valid]), theirs(s[valid]), rtol=1e-10, atol=1e-12)


def test_a_dt_of_the_call_keeps_the_drive_of_the_nets_own_and_its_gain():
    net = stack(depth=2, norm="none", mix="linear", dt=0.01)
    found = net.certificate(dt=1.0)
    assert found.step.certified
    gain = found.cascade.layers[1].input_gain, net.layers[1].bound(1.0, net.solver).input_gain
    assert gain[0] > 2 * gain[1]
    x, y = normal(2, 64, net.state_size).unbind(0)
    y = torch.cat([y[:, :6], x[:, 6:]], 1)  # equal above: all that enters comes from below
    ends = [net(normal(64, 1, 2), z[None], dt=1.0)[1][0] for z in (x, y)]
    q = [layer.factor for layer in found.cascade.layers]
    low, high = distances(net, ends[0] - ends[1])
    assert (low <= q[0] * distances(net, x - y)[0]).all()
    assert (high <= gain[0] * found.cascade.layers[0].output_gain * low * (1 + 1e-9)).all()


@pytest.mark.parametrize("rates", [(0.0, -7.0), (-7.0, 0.0), (0.0, 0.0)])
def test_euclidean_distances_grow_no_more_than_the_condition_number_says(rates):
    net = stack(fields=[Pairs(4, horizon=9.0) for _ in rates], norm="none", mix="linear")
    with torch.no_grad():
        for layer, rate in zip(net.layers, rates, strict=True):
            layer.field.log_rate.fill_(rate)
    skewed = stack(fields=[skewed_field()], norm="none", mix="linear", solver="imex")
    u = 0.01 * normal(1, 2)
    for one in (net, skewed):
        found = one.certificate()
        assert found.step.certified
        J = torch.func.vmap(torch.func.jacrev(lambda x, one=one: one.step(u, x[None])[0]))
        norms = torch.linalg.matrix_norm(J(1e-3 * normal(50, one.state_size)).detach(), ord=2)
        assert float(norms.max()) <= found.jacobian_bound(1)
    assert float(norms.max()) > 2
    assert not stack(solver="dopri5").certificate().metric.condition_number < np.inf


@pytest.mark.parametrize("seed", range(3))
def test_inputs_move_the_output_by_no_more_than_the_gains_of_a_stack(seed):
    net, u = stack(seed=seed), normal(32, 40, 2, seed=seed)
    moved = u + 0.1 * normal(32, 40, 2, seed=seed + 1)
    facts = net.certificate().cascade
    entered, left = ((a - b).norm(dim=-1) for a, b in ((u, moved), (net(u)[0], net(moved)[0])))
    assert (left.max(1).values <= facts.peak_gain * entered.max(1).values).all()
    assert (left.norm(dim=1) <= facts.l2_gain * entered.norm(dim=1)).all()
    net.encoder.register_forward_hook(lambda module, given, out: 9 * out)
    assert net.certificate().cascade.peak_gain == net.certificate().cascade.l2_gain == np.inf


def test_the_gains_of_a_stack_are_reached_by_a_constant_input():
    options = {"norm": "none", "mix": "linear", "phi": "identity"}
    net = Stack(1, 1, [Pairs(2, phi=None) for _ in range(3)], batch_first=True, **options).double()
    with torch.no_grad():
        for layer in net.layers:
            layer.field.frequency.zero_()
            layer.C.weight.copy_(layer.B.weight.mT)
            layer.mix.inner.weight.abs_()
    facts = net.certificate().cascade
    u = torch.ones(1, 6 * int(facts.memory), 1, dtype=F64)
    moved = net(u)[0] - net(0 * u)[0]
    assert_close(moved[0, -1].abs().item(), facts.peak_gain, rtol=1e-6, atol=0.0)
    longer = net(torch.cat([u] * 9, 1))[0] - net(torch.cat([0 * u] * 9, 1))[0]
    reached = float(longer.detach().norm()) / (9 * u.shape[1]) ** 0.5
    assert 0.95 * facts.l2_gain < reached <= facts.l2_gain


def test_slopes_that_are_declared_are_named_for_every_layer_and_mix():
    mine, other = (Activation(name, torch.tanh, slope=(0.0, 1.0)) for name in ("mine", "other"))
    fields = [Pairs(4), Subnetwork(SingularValueBounded(other), 4)]
    found = Stack(2, 4, fields, norm="none", phi=mine).certificate()
    assert found.certified
    assert found.declared == ("mine", "other")


def test_samples_until_is_the_smallest_count_and_stays():
    gamma = np.array([[0.9, 0.0], [5.0, 0.8]])
    t = samples_until(gamma, 1e-3)
    powers = [np.linalg.matrix_power(gamma, k).sum(1).max() for k in range(3 * int(t))]
    assert max(powers[int(t) :]) <= 1e-3 < powers[int(t) - 2]
    assert samples_until(np.array([[0.5, 0.0], [1.0, 1.0]]), 1e-3) == np.inf
    q, growth = weighted_factor(gamma)
    e = np.random.default_rng(0).random((2, 1000))
    start = np.linalg.norm(e, axis=0)
    for k in range(1, 60):
        e = gamma @ e
        assert (np.linalg.norm(e, axis=0) <= growth * q**k * start * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("gamma", "proven"),
    [
        (np.zeros((1, 1)), True),  # forgets at once
        (np.array([[0.0, 0.0], [1e3, 0.0]]), True),
        (np.array([[1 - 2.0**-53]]), False),
        (np.array([[0.5, 0.0], [np.inf, 0.1]]), False),
    ],
)
def test_extreme_gains_have_a_factor_or_none(gamma, proven):
    q, growth = weighted_factor(gamma)
    assert ((q, growth) == (1.0, np.inf)) == (not proven)
    assert 0 <= q <= 1


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Stack(2, 4, []), "non-empty list"),
        (lambda: Stack(2, 4, [Pairs(4)], norm="group"), "norm must be one of"),
        (lambda: Stack(2, 4, [Pairs(4)], mix="tanh_glu"), "tanh-glu"),
        (lambda: Stack(2, 4, [Pairs(4)], dropout=1.0), "dropout must be in"),
        (lambda: Pairs(5), "must be even"),
        (lambda: CTRNN(2, Pairs(4), gate="constant"), "a gated field must have tau = 1.* a trained tau"),
        (lambda: Pairs(4, horizon=1.0), r"horizon must be in \(2.5, inf\)"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(make, why):
    with pytest.raises(ConfigError, match=why):
        make()


def losses(net, u, dtype=F64):
    """Output, last states, every gradient and the statistics of one training step's two passes."""
    torch.manual_seed(3)
    u = u.detach().to(dtype).requires_grad_()
    x0 = (0.1 * normal(len(u), net.state_size)).to(dtype).requires_grad_()
    output, last = net(u, x0[None])
    (output.sin().sum() + last.square().sum()).backward()
    found = [output, last, u.grad, x0.grad, *(p.grad for p in net.parameters()), *net.buffers()]
    return [tensor.detach() for tensor in found]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"norm": "batch"},
        {"norm": "layer"},
        # Steps of .6 grow over 790 of them.
        pytest.param(
            {"norm": "none", "solver": "euler", "mix": "glu", "dt": 0.1}, marks=pytest.mark.slow
        ),
        pytest.param({"norm": "rms", "phi": None, "solver": "imex"}, marks=pytest.mark.slow),
    ],
)
def test_the_compiled_layers_have_the_values_and_gradients_of_plain_ones(options, training, monkeypatch):
    monkeypatch.setattr(block, "LARGE", 0)
    nets = []
    for _ in range(2):
        net = stack(**({"dropout": 0.2, "scale": 0.7, "dt": 0.6} | options)).train(training)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * normal(*p.shape, seed=p.numel()))
        nets.append(net)
    # Pieces of several sequences, of which the last is smaller, and of less than one.
    for u in (normal(75, 30, 2), normal(2, 790, 2)):
        found = losses(nets[0], u)
        with monkeypatch.context() as patch:
            patch.setattr(Layer, "fused", lambda *_: None)
            for a, b in zip(found, losses(nets[1], u), strict=True):
                assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_compiled_layers_in_float32_are_near_those_in_float64(monkeypatch):
    monkeypatch.setattr(block, "LARGE", 0)
    net, u = stack().train(), normal(30, 40, 2)
    exact = losses(net, u)
    net.zero_grad()
    for a, b in zip(losses(stack().train().float(), u, torch.float32), exact, strict=True):
        assert_close(a.double(), b, rtol=1e-3, atol=2e-5 * float(b.abs().max()) + 1e-5)


def test_compiled_layers_are_differentiated_twice(monkeypatch):
    monkeypatch.setattr(block, "LARGE", 0)
    net = stack(depth=2).train()
    u = normal(3, 4, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda u: net(u)[0].square().sum((1, 2)), u, atol=1e-7)


@pytest.mark.parametrize("part", ["norm", "mix", "B"])
def test_a_hooked_part_of_a_layer_is_called(part, monkeypatch):
    monkeypatch.setattr(block, "LARGE", 0)
    net, seen = stack(), []
    before = net(normal(2, 9, 2))[0]
    getattr(net.layers[1], part).register_forward_hook(lambda *_: seen.append(1))
    assert_close(net(normal(2, 9, 2))[0], before, rtol=1e-10, atol=1e-12)
    assert seen == [1]


@pytest.mark.slow
def test_an_overflow_in_a_compiled_layer_says_when_and_where(monkeypatch):
    monkeypatch.setattr(block, "LARGE", 0)
    net = stack(phi="relu", norm="none", solver="euler", dt=20.0)
    with torch.no_grad(), pytest.raises(SolverError, match=r"the state became .* at t = "):
        net(1e300 * normal(2, 400, 2).abs())


def test_one_sample_alone_has_no_variance_of_its_own():
    norm = SequenceNorm("batch", 3).double()
    s = normal(1, 1, 3)
    assert_close(norm(s), s / (1 + norm.eps) ** 0.5)
    assert norm.mean.abs().max() == 0


def test_samples_beyond_the_lengths_do_not_count_in_batch_norm():
    norms, s, lengths = [SequenceNorm("batch", 3).double() for _ in range(2)], normal(2, 4, 3), (4, 2)
    valid = torch.arange(4) < torch.tensor(lengths)[:, None]
    v = norms[0](torch.where(valid[..., None], s, 1e6), valid)
    assert_close(v[valid], norms[1](s[valid]))
    assert_close(norms[0].var, norms[1].var)


def test_a_hook_that_no_solver_would_call_is_refused_at_any_depth():
    parts = [Subnetwork(AdaDiagTanh(), 4) for _ in range(2)]
    net = Stack(3, 5, [couple(parts, "all")], batch_first=True).eval()
    parts[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="got ParametrizedSubnetwork with hooks"):
        net(torch.randn(2, 7, 3))


def test_a_layer_without_a_bound_leaves_the_gates_above_it_without_one():
    """States above it get farther than a layer with tanh-glu in its place would let them."""
    fields = [Pairs(4), Pairs(4)]
    net = Stack(2, 4, fields, norm="none", gate_range=3.0, batch_first=True).eval()
    radii = net._radii()
    net.layers[0].gate, net.layers[0].mix = None, Mixer("linear", 4)
    with torch.no_grad():
        net.layers[0].mix.inner.weight.mul_(1e5)
        h = net(3 * torch.ones(1, 200, 2))[1][0]
    assert float((h[:, 4:].unflatten(-1, (-1, 2)).norm(dim=-1) / radii[1]).max()) > 2
    found = net.certificate()
    assert not found.certified
    assert "layer 1" in found.reasons[0]
