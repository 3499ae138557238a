"""Sublayers that are hooked, replaced, pruned or quantised act: they are called, or refused."""

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from ctrnn_assembly import CTRNN, SequenceClassifier, SingularValueBounded, Subnetwork, certify, couple
from ctrnn_assembly.baselines import LSTM, AntisymmetricRNN, LipschitzRNN, VanillaRNN
from ctrnn_assembly.contracting import AdaDiagTanh
from ctrnn_assembly.errors import ConfigError, ShapeError
from ctrnn_assembly.gates import Gate
from ctrnn_assembly.solvers import solve
from oracles import of_exact_steps

SETTINGS: dict[str, dict[str, Any]] = {
    **{solver: {"solver": solver} for solver in ("euler", "imex", "exponential-euler", "rk4")},
    "linear": {"solver": "rk4", "interpolation": "linear"},
    "cubic": {"solver": "rk4", "interpolation": "cubic"},
    "substeps": {"substeps": 3},
    "plain": {"backend": "plain"},
    **{f"{gate} gates": {"gate": gate} for gate in get_args(Gate)},
}


def layer(seed: int = 0, **settings: Any) -> CTRNN:
    generator = torch.Generator().manual_seed(seed)
    parts = [Subnetwork(AdaDiagTanh(), 3, form=form, generator=generator) for form in ("x", "r")]
    options = {"dt": 0.1, "batch_first": True, "generator": generator} | settings
    return CTRNN(2, couple(parts, generator=generator), **options)  # type: ignore[arg-type]


def outputs(net: CTRNN, u: Tensor) -> list[Tensor]:
    """What every way into a layer gives."""
    lengths = torch.tensor([5, 2, 4])
    states, last = net(u)
    found = [states, last, net.last(u), *net(u, lengths=lengths), net.last(u, lengths=lengths)]
    x = states[:, 0].detach()
    return [*found, net.step(u[:, 1], x), net.flow(u[:, 1])(x), net.flow()(x)]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_hook_on_the_encoder_acts_everywhere(name: str) -> None:
    net, u = layer(**SETTINGS[name]), torch.randn(3, 5, 2)
    twice = copy.deepcopy(net)
    with torch.no_grad():
        for each in twice.encoder.parameters():
            each.mul_(2)
    seen: list[Tensor] = []
    net.encoder.register_forward_hook(lambda module, given, out: seen.append(out) or 2 * out)
    for one, other in zip(outputs(net, u), outputs(twice, u), strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert seen
    net(u)[0].square().sum().backward()
    twice(u)[0].square().sum().backward()
    for (key, one), other in zip(net.named_parameters(), twice.parameters(), strict=True):
        factor = 2 if key.startswith("encoder") else 1
        assert_close(one.grad, factor * other.grad, rtol=1e-10, atol=1e-10)


class LoRA(nn.Module):
    """A frozen Linear plus a trained product of low rank, as peft replaces one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.weight = base.weight  # what a reader of the weight would take for all
        self.A, self.B = nn.Linear(2, 1, bias=False), nn.Linear(1, 6, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        return self.base_layer(u) + self.B(self.A(u))


def merged(lora: Any) -> nn.Linear:
    made = copy.deepcopy(lora.base_layer)
    made.weight = nn.Parameter(made.weight + lora.B.weight @ lora.A.weight)
    return made


@pytest.mark.parametrize("name", SETTINGS)
def test_lora_on_the_encoder_counts_and_trains(name: str) -> None:
    net, u = layer(**SETTINGS[name]), torch.randn(3, 5, 2)
    net.encoder = LoRA(net.encoder)
    plain = copy.deepcopy(net)
    plain.encoder = merged(plain.encoder)
    for one, other in zip(outputs(net, u), outputs(plain, u), strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)
    net.last(u).square().sum().backward()
    assert net.encoder.A.weight.grad.abs().min() > 0


def sequential(encoder: nn.Linear) -> nn.Module:
    return nn.Sequential(encoder, nn.Tanh(), nn.Linear(6, 6))


def forward_replaced(encoder: nn.Linear) -> nn.Module:
    encoder.forward = lambda u: u @ u.new_ones(2, 6)  # type: ignore[method-assign]
    return encoder


def pruned(encoder: nn.Linear) -> nn.Module:
    return prune.l1_unstructured(encoder, "weight", amount=0.5)


REPLACED: dict[str, Callable[[Any], nn.Module]] = {
    "sequential": sequential,
    "own forward": forward_replaced,
    "pruned": pruned,
    "parametrised": parametrizations.spectral_norm,
    "old weight norm": torch.nn.utils.spectral_norm,
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_stands_for_the_encoder_is_what_drives_the_units(name: str) -> None:
    net, u = layer(), torch.randn(3, 5, 2)
    net.encoder = REPLACED[name](net.encoder)
    net.eval()
    for _ in range(2):  # pruned weights of the last step would be stale
        drive = net.encoder(u)
        x, field = u.new_zeros(3, 6), net.field.terms()
        for k in range(5):
            x = x + 0.1 * field(x, drive[:, k])
        assert_close(net.last(u), x, rtol=1e-12, atol=1e-12)
        net.last(u).sum().backward()
        with torch.no_grad():
            for each in net.parameters():
                each.sub_(0.1 if each.grad is None else 0.1 * each.grad)


@pytest.mark.parametrize("gate", [None, "constant", "input"])
def test_the_certificate_does_not_depend_on_the_encoder(gate: Any) -> None:
    net = layer(gate=gate)
    before = net.certificate()
    net.encoder = nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 6))
    assert of_exact_steps(net.certificate()) == of_exact_steps(before)
    with pytest.raises(ConfigError, match=r"a Sequential with .* is called|gates of kind"):
        net.terms()
    nn.init.constant_(net.encoder[2].bias, torch.nan)
    broken = net.certificate()
    assert not broken.certified
    assert "encoder" in broken.reasons[0]


def test_an_encoder_of_the_wrong_width_is_refused() -> None:
    net = layer()
    net.encoder = nn.Sequential(nn.Linear(2, 5))
    with pytest.raises(ShapeError, match=r"\(\.\.\., 2\) to \(\.\.\., 6\); got \(3, 5, 5\).*nn\.L"):
        net(torch.randn(3, 5, 2))


class Doubled(Subnetwork):
    def forward(self, *given: Any) -> Tensor:
        return 2 * super().forward(*given)


def test_a_field_that_would_not_be_called_is_refused() -> None:
    net, u = layer(), torch.randn(3, 5, 2)
    handle = net.field.register_forward_hook(lambda *given: None)
    for call in (net, net.last, net.terms, net.certificate):
        with pytest.raises(ConfigError, match=r"got Assembly with hooks.*Hook the layer"):
            call(u) if call in (net, net.last) else call()
    handle.remove()
    net(u)
    with pytest.raises(ConfigError, match=r"Doubled with hooks.* or a forward of its own"):
        CTRNN(2, Doubled(SingularValueBounded(), 4))(torch.randn(3, 5, 2))
    with pytest.raises(ConfigError, match=r"Doubled with hooks.* or a forward of its own"):
        solve(Doubled(SingularValueBounded(), 4), torch.zeros(1, 4), [0.0, 1.0])
    gated = layer(gate="constant")
    prune.l1_unstructured(gated.gates, "constant", amount=0.5)
    with pytest.raises(ConfigError, match=r"Gates with .*a pruned tensor"):
        gated(u)


def test_weights_that_are_drawn_anew_at_each_reading_are_not_certified() -> None:
    field = Subnetwork(SingularValueBounded(), 1)  # two readings of one weight are often the same
    parametrize.register_parametrization(field, "weight", nn.Dropout(0.5))
    net = CTRNN(2, field)
    for prove in (lambda: certify(field), net.certificate):
        field.train()
        for seed in range(8):
            torch.manual_seed(seed)
            assert "call eval()" in prove().reasons[0]
        field.eval()
        assert prove().certified


@pytest.mark.parametrize("make", [layer, lambda: LSTM(2, 6, batch_first=True)])
def test_a_hook_on_the_core_of_a_classifier_sees_all_states(make: Callable[[], Any]) -> None:
    model, u, seen = SequenceClassifier(make(), 3), torch.randn(3, 5, 2), []
    for given in ({}, {"lengths": torch.tensor([5, 1, 3])}):
        expected = model(u, **given)
        handle = model.core.register_forward_hook(lambda module, given, out: seen.append(out[0]))
        assert_close(model(u, **given), expected, rtol=1e-12, atol=1e-12)
        handle.remove()
    assert [out.shape for out in seen] == [(3, 5, 6)] * 2


def test_torchs_own_layer_can_be_the_core() -> None:
    model, u = SequenceClassifier(layer(), 3), torch.randn(3, 5, 2)
    model.core = nn.GRU(2, 6, batch_first=True)  # type: ignore[assignment]
    assert_close(model(u), model.readout(model.core(u)[0][:, -1]))


@pytest.mark.parametrize("kind", [VanillaRNN, LSTM, AntisymmetricRNN, LipschitzRNN])
def test_hooks_in_a_baseline_act_in_every_call(kind: Any) -> None:
    net, u, seen = kind(2, 6, batch_first=True), torch.randn(3, 5, 2), []
    inner = getattr(net, "rnn", None) or net.inputs
    inner.register_forward_hook(lambda module, given, out: seen.append(1))
    net(u), net.last(u), net.step(u[:, 0], u.new_zeros(3, net.state_size))
    if hasattr(net, "inputs"):
        net.flow()(u.new_zeros(3, 6))
    assert len(seen) == (4 if hasattr(net, "inputs") else 3)


QUANTISED: list[Callable[[], Any]] = [
    layer,
    lambda: layer(gate="input"),
    lambda: LSTM(2, 6, batch_first=True),
    lambda: LipschitzRNN(2, 6, batch_first=True),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", QUANTISED)
def test_dynamic_quantisation_computes_almost_the_same(make: Callable[[], Any]) -> None:
    model = SequenceClassifier(make(), 3).float()
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear, nn.LSTM})
    assert "quantized" in str(type(small.readout))
    u = torch.randn(4, 6, 2, dtype=torch.float32)
    # 8-bit weights and inputs: about one per cent of the largest value.
    assert_close(small(u), model(u), rtol=0.05, atol=0.05)
    assert small.core.certificate().certified == model.core.certificate().certified


def test_a_hook_on_the_weight_takes_the_claimed_rate_away() -> None:
    net = couple([Subnetwork(SingularValueBounded(), 4), Subnetwork(AdaDiagTanh(), 3)])
    claimed = net.rate
    for leaf in net.leaves():
        handle = leaf.constraint.register_forward_hook(lambda module, given, W: 30 * W + 3)
        assert net.rate is None
        assert not certify(net).certified
        assert net(0.0, torch.randn(2, 7)).shape == (2, 7)
        handle.remove()
    assert net.rate == claimed


def test_hooks_on_couplings_and_gates_act() -> None:
    for gate, find in (("state", lambda net: net.gates), ("input", lambda net: net.gates.reader)):
        net, u = layer(gate=gate), torch.randn(3, 5, 2)
        before = net.last(u)
        find(net).register_forward_hook(lambda module, given, out: out / 2)
        assert not torch.allclose(net.last(u), before)
    net = layer()
    before = net.last(u)
    net.field.coupling.K.register_forward_hook(lambda module, given, K: 0 * K)
    assert not net.terms().L.any()  # type: ignore[union-attr]
    assert net.certificate().certified
    assert not torch.allclose(net.last(u), before)
