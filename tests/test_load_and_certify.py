"""A run is loaded in one line, and whatever a user has in hand is certified by one call."""

from pathlib import Path

import pytest
import torch
from torch import nn

import ctrnn_assembly
from ctrnn_assembly import CTRNN, AdaDiagTanh, Pairs, SequenceClassifier, Stack, Subnetwork, certify
from ctrnn_assembly.baselines import LSTM
from ctrnn_assembly.errors import ConfigError, CtrnnError, DataError
from stored_runs import store_run


def layer(**settings) -> CTRNN:
    return CTRNN(3, Subnetwork(AdaDiagTanh("tanh"), 4), batch_first=True, dt=0.3, **settings)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_is_loaded_in_one_line(tmp_path, kind):
    config = store_run(tmp_path / "x", model="adadiag-tanh")
    run = ctrnn_assembly.load_run(kind(tmp_path / "x"))
    assert run.config == config
    assert run.certificate.certified
    assert run.certificate == run.model.core.certificate()
    assert run.model is run.model  # read once
    assert not run.model.training
    u, y, _ = run.inputs("val", 2)
    assert run.model(u.to(run.model.readout.weight.dtype)).shape == (2, len(run.task.classes))
    assert len(y) == 2


def test_a_run_that_is_not_there_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="there is no run folder or file of that name"):
        ctrnn_assembly.load_run(tmp_path / "nothing")
    store_run(tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").unlink()
    run = ctrnn_assembly.load_run(tmp_path / "x")
    with pytest.raises(DataError, match="no epoch has ended"):
        _ = run.model


def test_a_layer_a_classifier_and_a_field_are_certified_alike():
    net = layer(solver="imex")
    found = certify(net)
    assert found.certified
    assert (found.step.solver, found.step.dt) == ("imex", 0.3)  # a layer's own step
    assert certify(SequenceClassifier(net, 2)) == found == net.certificate()
    assert certify(net.field, dt=0.3, solver="imex").rate == found.rate
    assert certify(net.field).step is None


def test_a_layer_answers_for_itself():
    """Gates and rounded operands are part of it: the field alone would say too much."""
    gated = layer(gate="input")
    assert certify(gated, dt=0.2) == gated.certificate(dt=0.2)
    rounded = layer(matmul_precision="bf16")
    assert "bf16" in certify(rounded, dt=0.1).step.meeting.arithmetic
    assert "baseline" in certify(LSTM(3, 4)).reasons[0]
    with pytest.raises(ConfigError, match=r"certify\(layer.field, metric\)"):
        certify(rounded, rounded.metric())


@pytest.mark.parametrize("net", [nn.GRU(3, 4), torch.tanh, nn.Sequential(layer())])
def test_of_any_other_net_nothing_is_proven(net):
    found = certify(net, dt=0.1)
    assert not found.certified
    assert not found.step.certified
    assert "no certificate is defined for" in found.reasons[0]


@pytest.mark.parametrize(
    "make", [lambda: nn.RNN(3, 4), layer, lambda: layer().field, lambda: Stack(3, 4, [Pairs(4)]).eval()]
)
def test_of_weights_that_are_not_there_nothing_is_proven(make):
    found = certify(make().to("meta"), dt=0.1)
    assert not found.certified
    assert "meta" in found.reasons[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stack(3, 4, [Pairs(4)], dt="0.1"), "dt must be .*; got '0.1'"),
        (lambda: AdaDiagTanh(margin="0.1"), "margin must be .*; got '0.1'"),
        (lambda: Stack(3, 4, [Pairs(4)], gate_range=(1, 2)), r"gate_range must be .*; got \(1, 2\)"),
        (lambda: layer(gate="input", gate_bounds=0.1), r"gate_bounds must be \(lo, hi\).*; got 0.1"),
    ],
)
def test_what_is_no_number_is_refused_by_its_name(make, message):
    with pytest.raises(ValueError, match=message) as found:
        make()
    assert isinstance(found.value, CtrnnError)


@pytest.mark.parametrize("net", [None, "runs/x", 3])
def test_what_is_no_net_is_refused(net):
    with pytest.raises(ConfigError, match="must be a layer, a classifier, a field"):
        certify(net)
    with pytest.raises(ConfigError, match="Did you mean 'imex'"):
        certify(layer(), solver="imx")


def test_a_certificate_prints_as_a_summary():
    lines = str(certify(layer())).splitlines()
    assert lines[0].startswith("certified: contracts at a rate of at least 0.")
    assert any(line.startswith("  euler step, dt 0.3: factor <= 0.") for line in lines)
    refused = str(certify(nn.GRU(3, 4)))
    assert refused.startswith("NOT certified: no certificate is defined for GRU")
    assert "\n" not in refused


def test_a_metric_of_matrices_is_no_coupling():
    """Taken as L, this one has given W a rate of .411, and no rate is above 1 - .617."""
    W, M = (
        torch.tensor([[0.0, 1.8247], [0.20876, 0.0]]),
        torch.tensor([[0.2797, -0.1831], [-0.1831, 0.1223]]),
    )
    with pytest.raises(ConfigError, match=r"metric must be a Metric; got NoneType, Tensor"):
        certify(W, metric=M)
    assert certify(W, L=M).rate == certify(W, M).rate > certify(W).rate
