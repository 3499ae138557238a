"""Rivals of the certified stack: the same stack of as many parameters, other recurrences, or none."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ctrnn_assembly.baselines import GRU, LSTM, DeepBaseline, Pointwise, VanillaRNN
from ctrnn_assembly.block import Layer
from ctrnn_assembly.certificates import certify
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.models import build_model

RIVALS = ("deep-free", "deep-lstm", "deep-gru", "deep-none")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize(("width", "depth"), [(64, 4), (40, 2), (80, 4)])
def test_a_rival_has_the_certified_stack_s_parameters_and_its_other_parts(name, width, depth):
    ours, rival = (build_model(m, 1, 10, width=width, depth=depth) for m in ("deep-adadiag", name))
    assert abs(count(rival) / count(ours) - 1) < 0.05
    for one, other in zip(ours.core.layers, rival.core.layers, strict=True):
        assert type(other) is Layer
        assert (other.norm.kind, other.mix.kind) == (one.norm.kind, one.mix.kind)
        assert other.mix.inner.weight.shape == one.mix.inner.weight.shape


@pytest.mark.parametrize("name", RIVALS)
def test_steps_lengths_and_whole_sequences_agree(name):
    net = build_model(name, 2, 3, depth=2, width=10).double().eval().core
    for layer in net.layers:
        if name == "deep-free":  # some pairs leak the other way
            torch.nn.init.uniform_(layer.field.a, 0.5, 1.5)
    u = normal(3, 12, 2)
    output, last = net(u)
    x = net.initial(3)
    for t in range(12):
        x = net.step(u[:, t], x)
    assert_close(x, last[0], rtol=1e-10, atol=1e-12)
    cut, ends = net(u, lengths=torch.tensor([12, 5, 1]))
    assert_close(ends[0, 1], net(u[1:2, :5])[1][0, 0], rtol=1e-10, atol=1e-12)
    assert_close(cut[1, :5], output[1, :5], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", RIVALS)
def test_no_rival_is_certified_and_each_says_why(name):
    found = certify(build_model(name, 1, 10, depth=1, width=8).eval())
    assert not found.certified
    assert ("nothing bounds" in found.reasons[0]) or ("bounds how far" in found.reasons[0])


def test_what_does_not_apply_is_said_in_a_sentence():
    net = build_model("deep-lstm", 1, 10, depth=1, width=8).core
    for call in (net.terms, net.metric, net.flow, lambda: net(torch.zeros(4, 1, 1), dt=0.5)):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(ConfigError, match="an input a unit"):
        Pointwise(2, 3)
    with pytest.raises(ConfigError, match="is not used by model deep-lstm"):
        build_model("deep-lstm", 1, 10, horizon=7.0)


def test_free_pairs_start_as_the_constrained_and_leave_their_set_by_training():
    ours, free = (build_model(m, 1, 10, depth=2, width=8) for m in ("deep-adadiag", "deep-free"))
    u = normal(4, 9, 1)
    assert_close(free(u), ours(u))
    field = free.core.layers[0].field
    with torch.no_grad():
        field.a.fill_(1.2)  # the leak has the other sign
        field.theta.fill_(3.0)
    assert torch.equal(field.w, torch.full((8,), 3.0))
    assert_close(field.terms().L.diagonal(), torch.full((8,), 1.2))
    free(u).square().sum().backward()
    for name in ("a", "theta", "frequency"):
        assert getattr(field, name).grad.any()


def test_none_remembers_nothing():
    net = build_model("deep-none", 1, 10, depth=2, width=8).double().eval().core
    u = normal(2, 6, 1)
    other = u.clone()
    other[:, :3] += 1.0
    assert_close(net(u)[0][:, 3:], net(other)[0][:, 3:])


def test_gru_is_torch_s_and_an_lstm_starts_by_remembering():
    net = GRU(3, 5, batch_first=True).double()
    u = normal(2, 4, 3)
    x = net.initial(2)
    for t in range(4):
        x = net.step(u[:, t], x)
    assert_close(x, net.rnn(u)[1][0])
    rnn = LSTM(3, 5).rnn
    assert_close((rnn.bias_ih_l0 + rnn.bias_hh_l0)[5:10], torch.ones(5))
    W = VanillaRNN(3, 5).rnn.weight_hh_l0
    assert_close(W @ W.mT, torch.eye(5), atol=1e-5, rtol=0)


def test_maps_are_no_equation_that_could_be_one_field():
    for setting in ({"one_field": True}, {"solver": "imex"}):
        with pytest.raises(ConfigError, match="baselines by themselves, layer by layer; got"):
            DeepBaseline(1, 8, GRU, 2, **setting)


def test_recurrent_weights_are_those_of_the_fields():
    net = DeepBaseline(1, 8, GRU, 2, batch_first=True)
    inside = {id(p) for m in net.modules() if isinstance(m, nn.GRU) for p in m.parameters()}
    fields = [p for layer in net.layers for p in layer.field.parameters()]
    assert {id(p) for p in fields} == inside
