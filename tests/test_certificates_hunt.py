"""A hunt for a certificate that says yes wrongly: random small networks against every slope vertex."""

from dataclasses import replace
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from boundary_nets import SOLVERS, classes, drawn
from ctrnn_assembly import CTRNN, SequenceClassifier, SingularValueBounded, Stack, Subnetwork, couple
from ctrnn_assembly.activations import ACTIVATIONS, Activation, Elementwise, around
from ctrnn_assembly.certificates import certify
from ctrnn_assembly.certificates.gates import certify_gated
from ctrnn_assembly.certificates.given import terms_of, uncertain
from ctrnn_assembly.contracting import AdaDiagTanh, FiringRate, SparseAbsolute
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.terms import Edge
from false_yes import judge
from oracles import sloped, terms_and_metric

TANH = ACTIVATIONS["tanh"]


@pytest.mark.parametrize("seed", range(4))
def test_no_certificate_claims_more_than_the_exact_worst_case(seed):
    rng, found = np.random.default_rng(seed), []
    for case in chain(*(drawn(rng, label) for label in classes()[seed::14])):
        found.append(judge(rng, case, [seed], "none"))
        assert not found[-1].offence
    certified, steps = (sum(one.counts[key] for one in found) for key in ("certified", "step_certified"))
    sharp = sum(one.counts["certified"] and one.slack[0] < 1e-3 for one in found)
    assert min(certified, 2 * steps, 3 * sharp) >= 15, (certified, steps, sharp)  # not vacuous


def plane(W, theta, tau=(1.0, 1.0)):
    """One x-form module of two tanh units."""
    return terms_and_metric([np.array(W)], [np.array(theta)], [TANH], "x", np.array(tau))


def test_edges_do_not_trust_the_stored_inverse():
    edge = Edge(torch.tensor([[0.0, 0.0], [50.0, 0.0]]), Elementwise(((TANH, 2),)))
    terms, _ = terms_and_metric(
        [np.zeros((1, 1))] * 2, [np.ones(1)] * 2, [TANH] * 2, "xx", np.ones(2), edges=(edge,)
    )
    for one in (torch.ones(1), torch.ones(1, 1)):
        assert not certify(terms, Metric((Factor(one, 0 * one),) * 2), search="none").certified


@pytest.mark.parametrize("tau", [1e-12, 1.0, 1e9])
def test_the_answer_does_not_depend_on_the_unit_of_time(tau):
    for W, expected in ((0.5, True), (1 - 1e-15, False)):  # the second: a rate within rounding
        certificate = certify(*plane([[W, 0.0], [0.0, W]], [1.0, 1.0], [tau, tau]), search="none")
        assert certificate.certified is expected


@pytest.mark.parametrize("dt", [float("nan"), float("inf"), -0.1, 0.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_that_is_none_is_not_certified(dt, solver):
    step = certify(
        *plane([[-5.0, 1.0], [0.0, -5.0]], [1.0, 1.0]), dt=dt, solver=solver, search="none"
    ).step
    assert not step.certified


def test_a_diagonal_weight_in_a_dense_metric_has_no_diagonal_norm():
    fields = plane([[0.8, 0.0], [0.0, 0.3]], [[1.0, 1.0], [0.0, 1.0]])
    assert not certify(*fields, dt=1.8, search="none").step.certified  # the exact factor is 1.74


def test_metrics_that_are_none_or_too_badly_conditioned_are_refused():
    for tau in ((1.0, 10.0), (0.0, 0.0), (-1.0, 1.0)):  # exact rates: -0.87, undefined, undefined
        assert not certify(
            *plane(np.zeros((2, 2)), [[1.0, 3.0], [0.0, 1.0]], tau), search="none"
        ).certified
    a, b = 0.03833137827700805, -121214.49954028094  # exact rate -1.6e-17, hidden by rounding
    W = [[0.9985285393121959, a], [a, 0.0014720931432361762]]
    assert not certify(
        *plane(W, [[4654.168732321899, b], [b, 3157624.491437218]]), search="none"
    ).certified


def test_only_the_identity_is_called_identity():
    with pytest.raises(ConfigError):
        Activation("identity", lambda x: 3 * x, (0.0, 3.0))


def test_a_leak_that_almost_cancels_does_not_hide_its_rounding():
    """1 - w s is a cancellation whose rounding a step of a million tau makes visible."""
    slope, w, dt = 1.7580993408473768, 0.5687953325311048, 1537515.3750351532
    act = sloped(slope, slope)
    terms, metric = terms_and_metric([np.array([[w]])], [np.ones(1)], [act], "x", np.ones(1))
    step = certify(terms, metric, dt=dt, search="none").step
    exact = abs(1 + Fraction(dt) * (-1 + Fraction(w) * Fraction(slope)))
    assert exact > 1
    assert not step.certified


def test_only_real_tensors_of_the_right_shapes_are_certified():
    terms, metric = plane([[0.1, 0.2], [0.3, 0.1]], [1.0, 1.0])
    assert certify(terms, metric, search="none").certified
    W = terms.blocks[0]
    broken = [
        replace(terms, blocks=(torch.tensor([[0, 5j], [-5j, 0]]),)),  # grows at the rate 4
        replace(terms, blocks=(W[:1],)),
        replace(terms, blocks=()),
        replace(terms, L=torch.zeros(1, 2)),
        replace(terms, tau=torch.ones(3)),
        replace(terms, pre=Elementwise(((TANH, 1),))),
        replace(terms, edges=(Edge(torch.zeros(2), Elementwise(((TANH, 2),))),)),
    ]
    for bad in broken:
        certificate = certify(bad, metric, dt=0.1, search="none")
        assert not certificate.certified
        assert certificate.reasons[0]
    for theta in (torch.ones(3), torch.ones(2, 3), torch.tensor([1.0, -1.0])):
        assert not certify(terms, Metric((Factor(theta, theta),)), search="none").certified


class Scaled(SingularValueBounded):
    """A set of one's own whose metric comes with a wrong inverse of Theta."""

    def metric(self, *raw, form):
        found = super().metric(*raw, form=form)
        return Factor(found.theta, 0.3 * found.theta_inv)


def test_the_gain_of_a_stack_does_not_trust_the_stored_inverse():
    torch.manual_seed(0)
    fields = [Subnetwork(Scaled("tanh"), 4)]
    net = Stack(2, 4, fields, mix="linear", norm="none", solver="euler", dt=0.1).eval()
    still = torch.zeros(400, 3, 2)
    still[:, 1:] = 1e-4 * torch.eye(2)
    with torch.no_grad():
        y = net.last(still)
    slopes = (y[1:] - y[0]) / 1e-4  # of the last output in a constant input
    assert float(torch.linalg.matrix_norm(slopes, 2)) <= net.certificate().cascade.l2_gain


class Tripled(Subnetwork):
    def forward(self, *given):
        return 3 * given[1]


class Turned(CTRNN):
    def step(self, u, x):
        return 2 * super().step(u, x)


class Closed(CTRNN):
    def forward(self, input, h_0):
        return super().forward(input + 50 * h_0, h_0)


class Steeper(Subnetwork):
    def activations(self):
        return around(Activation("steeper", lambda x: torch.tanh(5 * x), (0.0, 5.0)), self.size)


class Louder(nn.Linear):
    def __call__(self, x):
        return 10 * super().__call__(x)


class Drawn(nn.Module):
    def forward(self, W):
        return (1 + torch.rand(())) * W


class Loop(nn.Module):
    """A net whose `core` is driven by its own state."""

    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, x):
        return self.core.step(50 * x, x)


def test_what_is_called_is_certified_or_nothing():
    """A field, layer or net that does something else than the tensors in it say."""
    hooked = couple([Subnetwork(SingularValueBounded("tanh"), 3) for _ in range(2)])
    assert certify(hooked).certified
    hooked.parts[1].register_forward_hook(lambda *given: -given[-1])
    assert hooked.rate is None
    core = CTRNN(3, Subnetwork(SingularValueBounded("tanh"), 3))
    assert certify(SequenceClassifier(core, 2), dt=0.1) == core.certificate(dt=0.1)
    for net, name in (
        (Tripled(SingularValueBounded("tanh"), 3), "Tripled"),
        (hooked, "Subnetwork"),
        (Turned(3, core.field), "Turned"),
        (Closed(3, core.field), "Closed"),
        (Loop(core), "Loop"),
    ):
        found = certify(net, dt=0.1)
        assert not found.certified
        assert not found.step.certified
        assert name in found.reasons[0]


def test_no_rate_by_construction_under_methods_that_its_proof_does_not_know():
    fields = [Steeper(SingularValueBounded("tanh"), 3) for _ in range(2)]
    assert fields[0].rate is None
    assert couple(fields).rate is None


def test_a_stack_whose_parts_are_called_otherwise_has_no_constants():
    def net():
        return Stack(2, 4, [Pairs(4)]).eval()

    called, hooked, random, drawn_at_input = net(), net(), net(), net()
    called.layers[0].C.__class__ = Louder
    nn.utils.parametrize.register_parametrization(random.layers[0].C, "weight", Drawn(), unsafe=True)
    nn.utils.parametrize.register_parametrization(drawn_at_input.encoder, "weight", Drawn(), unsafe=True)
    assert not any(one.certificate().certified for one in (called, random, drawn_at_input))
    nn.utils.parametrizations.weight_norm(hooked.layers[0].C)  # the same at each reading
    assert hooked.certificate().certified
    rnn = nn.RNN(1, 3)
    nn.init.zeros_(rnn.weight_hh_l0)
    everywhere = nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        assert not hooked.certificate().certified
        assert not certify(rnn).certified
        assert hooked.layers[0].field.rate is not None  # which no one calls
    finally:
        everywhere.remove()
    assert certify(rnn).certified


def by_calls(net, step=None):
    """How far two states are, at first and after 60 samples under one input, a call each."""
    u, h = torch.randn(60, 1, 2), torch.tensor([[[1.0] * 3], [[-1.0] * 3]])
    start = float((h[0] - h[1]).norm())
    with torch.no_grad():
        for sample in u:
            h = torch.stack([net(sample[None], x[None])[1][0] for x in h])
    return start, float((h[0] - h[1]).norm())


def test_parts_that_draw_numbers_when_they_are_called_are_not_certified():
    """Dropout, noise of a hook and weights drawn at each call give two states different inputs."""

    def net(**gate):
        torch.manual_seed(0)
        return CTRNN(2, Subnetwork(SingularValueBounded("tanh", margin=0.3), 3), dt=0.3, **gate)

    noisy, hooked, drawn_anew, gated = net(), net(), net(), net(gate="shared", gate_bounds=(0.1, 1.0))
    noisy.encoder = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    handle = hooked.encoder.register_forward_hook(lambda m, given, out: out + torch.randn_like(out))
    drawn_anew.encoder = nn.Sequential(nn.Linear(2, 3))
    nn.utils.parametrize.register_parametrization(drawn_anew.encoder[0], "weight", Drawn(), unsafe=True)
    gated.gates.reader = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1))
    for one in (noisy, hooked, drawn_anew, gated):
        start, end = by_calls(one)
        assert end > 0.01 * start
        assert not one.certificate().certified
    deep = Stack(2, 4, [Pairs(4)], norm="none")
    deep.encoder = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5))
    assert not deep.certificate().certified
    handle.remove()
    for one in (noisy.eval(), hooked, gated.eval(), deep.eval()):
        assert one.certificate().certified
    assert by_calls(noisy)[1] < 0.02
    noisy.encoder.append(nn.Flatten(0, 1)).append(nn.BatchNorm1d(3)).append(nn.Unflatten(0, (1, 2)))
    assert noisy.train().certificate().step is not None
    assert not bool(noisy.encoder[3].running_mean.any())  # no call of the certificate's counts


class Around(nn.Module):
    """What it does not know its net answers, as `torch.compile` does it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "net" else getattr(self.net, name)

    def forward(self, u, h):
        output, h = self.net(u, h)
        return output, 3 * h


def test_hooks_on_a_layer_and_what_is_around_it_are_not_certified():
    torch.manual_seed(0)
    core = CTRNN(2, Subnetwork(SingularValueBounded("tanh"), 3), dt=0.1)
    field, compiled = torch.compile(core.field), torch.compile(core, backend="eager")
    assert certify(compiled) == core.certificate()
    assert certify(field).certified
    compiled.register_forward_hook(lambda module, given, out: (out[0], 3 * out[1]))
    field.register_forward_hook(lambda module, given, out: -out)
    hooked = CTRNN(2, core.field, dt=0.1)
    hooked.register_forward_hook(lambda module, given, out: (out[0], 3 * out[1]))
    for net in (hooked, Around(core)):
        start, end = by_calls(net)
        assert end > 10 * start
    for net in (hooked, compiled, field, Around(core), Around(core.field)):
        assert not certify(net).certified


def test_autocast_may_keep_states_apart():
    """bfloat16 rounds a factor of .9985 to 1: states stay apart in a map, and must not in a layer."""
    half, weight = 0.5 - 2**-9, torch.tensor([[0.9985]])
    rnn = nn.RNN(1, 2, nonlinearity="relu", bias=False).float()
    layer = CTRNN(1, Subnetwork(AdaDiagTanh("relu", margin=0.001), 1, weight=weight), dt=0.5, bias=False)
    layer, u = layer.float(), torch.zeros(50, 2, 1).float()
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(torch.tensor([[0.5, half], [half, 0.5]]))
        h, x = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]).float(), torch.ones(1, 1).float()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(rnn(u, h)[1].float(), h)
            assert not certify(rnn).certified
            assert layer.certificate().step.certified
            for _ in range(1000):
                x = layer.step(u[0, :1], x)
    assert certify(rnn).certified
    assert 0 < float(x) <= layer.certificate().step.contraction_factor ** 1000 * 1.01


def test_a_map_in_half_precision_may_keep_states_apart():
    """(1, 1) is multiplied by 1 - 2^-9, which bfloat16 rounds to 1."""
    half = 0.5 - 2**-9
    net = nn.RNN(1, 2, nonlinearity="relu", bias=False).bfloat16()
    with torch.no_grad():
        net.weight_hh_l0.copy_(torch.tensor([[0.5, half], [half, 0.5]]))
        h = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]).bfloat16()
        assert torch.equal(net(torch.zeros(50, 2, 1).bfloat16(), h)[1], h)
    assert not certify(net).certified
    assert certify(net.float()).certified


def test_gates_of_the_input_have_no_bound_for_uncertain_weights():
    """Of W = 0 within a ball of radius .6, two different gates cost more than two equal ones."""
    terms = uncertain(terms_of(np.zeros((2, 2))), 0.6)
    metric = Metric((Factor.identity(2, terms.tau),))
    found = certify_gated(terms, metric, gate="input", lo=0.2, hi=1.0, dt=0.05)
    N, v = torch.tensor([0.2, 1.0]).diag(), torch.tensor([0.952, 0.306])
    dW = 0.6 * torch.outer(N @ v, v) / ((N @ v).norm() * v.norm())
    J = N @ (dW - torch.eye(2))
    assert not found.certified
    assert not found.rate > -float(torch.linalg.eigvalsh((J + J.mT) / 2)[-1])
    assert certify_gated(terms, metric, gate="shared", lo=0.2, hi=1.0).certified


def test_a_part_of_a_stack_that_counts_as_false_is_looked_at() -> None:
    class Empty(torch.nn.Linear):
        def __len__(self) -> int:
            return 0

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 10 * super().forward(input)

    net = Stack(2, 4, [Pairs(4)]).eval()
    assert net.certificate().certified
    net.layers[0].C = Empty(4, 4)
    assert not net.certificate().certified


def two(kind):
    return couple([Subnetwork(SingularValueBounded("tanh"), 2) for _ in range(2)], kind=kind)


def edited(name):
    """A net, and what changes a part of it so that its guarantee by construction is void."""
    frozen = SparseAbsolute("tanh", density=0.4, outside_set="rescale", magnitude=3.0)
    sparse = Subnetwork(frozen, 6, generator=torch.Generator().manual_seed(0))
    dense, hierarchy, feedback, free = Subnetwork(FiringRate("tanh"), 4), *map(two, COUPLINGS_OF)
    steep = Activation("steep", lambda x: torch.tanh(3 * x), (0.0, 3.0))
    pairs, bounded = Pairs(4), Subnetwork(SingularValueBounded("tanh"), 4)
    edits = {
        "steeper phi": (sparse, lambda: setattr(sparse.constraint, "phi", steep)),
        "margin of frozen weights": (sparse, lambda: setattr(sparse.constraint, "margin", 0.9)),
        "margin of pairs": (pairs, lambda: setattr(pairs.constraint, "margin", 1.9)),
        "margin": (bounded, lambda: setattr(bounded.constraint, "margin", 1.9)),
        "tau": (dense, lambda: dense.tau[0].fill_(30.0)),
        "negative tau": (bounded, lambda: bounded.tau[0].fill_(-1.0)),
        "infinite bias": (bounded, lambda: bounded.bias[0].detach().fill_(torch.inf)),
        "both ways": (hierarchy, lambda: setattr(hierarchy.coupling, "K", free.coupling.K)),
        "places": (
            hierarchy,
            lambda: hierarchy.coupling.K.places.copy_(torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3]])),
        ),
        "psi": (feedback, lambda: setattr(feedback.coupling, "psi", Elementwise(((TANH, 4),)))),
        "share": (free, lambda: setattr(free.coupling, "share", 1.0)),
    }
    return edits[name]


COUPLINGS_OF = ("hierarchy", "feedback", "free")
EDITS = (
    "steeper phi", "margin of frozen weights", "margin of pairs", "margin", "tau", "negative tau",
    "infinite bias", "both ways", "places", "psi", "share",
)  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_no_rate_by_construction_of_parts_that_were_changed_by_hand(name):
    net, edit = edited(name)
    assert net.rate is not None or name == "share"
    edit()
    assert net.rate is None
    assert couple([net, Subnetwork(AdaDiagTanh(), 2)]).rate is None


def test_feedback_stays_feedback_wherever_its_values_are_put():
    """Where L_ij and L_ji are both given, and where i = j, L is still skew in the metric."""
    net = two("feedback")
    net.coupling.K.places.copy_(torch.tensor([[0, 2, 1, 1], [2, 0, 1, 0]]))
    L, M = net.terms().L.detach(), net.metric().theta().square().detach()
    assert float((M @ L + L.mT @ M).abs().max()) < 1e-12
    assert float(L.abs().max()) > 0.1
    assert net.rate is not None


def test_an_encoder_that_takes_one_length_alone_is_refused_in_a_sentence():
    class Placed(nn.Linear):
        def forward(self, u):
            assert u.shape[-2] == 20
            return super().forward(u)

    layer = CTRNN(1, Subnetwork(AdaDiagTanh(), 4), batch_first=True)
    layer.encoder = Placed(1, 4)
    assert layer(torch.ones(1, 20, 1))[0].isfinite().all()
    assert "its encoder called with two samples" in certify(layer).reasons[0]


@pytest.mark.parametrize("name", ["certificate", "terms"])
def test_the_answer_of_another_net_is_none_of_this_one(name):
    one, other = (Subnetwork(AdaDiagTanh(), 4) for _ in range(2))
    one, other = (CTRNN(1, part) if name == "certificate" else part for part in (one, other))
    setattr(one, name, getattr(other, name))
    assert "no certificate is defined for" in certify(one).reasons[0]
