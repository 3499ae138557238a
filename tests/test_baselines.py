"""The baselines keep one contract: shapes, steps, lengths, gradients, copies, errors."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ctrnn_assembly.baselines import LSTM, AntisymmetricRNN, LipschitzRNN, VanillaRNN
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError

M, N = 3, 5
NETS = {
    "tanh": (VanillaRNN, {}),
    "lstm": (LSTM, {}),
    "antisymmetric": (AntisymmetricRNN, {"eps": 0.3, "gamma": 0.2}),
    "lipschitz": (LipschitzRNN, {"eps": 0.3, "beta": 0.9, "init_std": 2.0}),
}
every_net = pytest.mark.parametrize("name", NETS)
EXACT = {"rtol": 0, "atol": 1e-12}


def build(name: str, *, batch_first: bool = False) -> nn.Module:
    torch.manual_seed(0)
    cls, options = NETS[name]
    return cls(M, N, batch_first=batch_first, **options).double()


def sample(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(name: str, h: Tensor) -> Tensor:
    """h as this network's state: the LSTM's is [h, c]."""
    return torch.cat([h, 0.5 * h], -1) if name == "lstm" else h


def hidden(state: Tensor) -> Tensor:
    return state[..., :N]


def walk(net: nn.Module, input: Tensor, h: Tensor) -> list[Tensor]:
    """Every state after step(), one step after another, input (T, B, m)."""
    states = []
    for u in input:
        h = net.step(u, h)
        states.append(h)
    return states


@every_net
@pytest.mark.parametrize("B", [1, 4])
@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("batch_first", [False, True])
def test_shapes_and_layout(name: str, B: int, T: int, batch_first: bool) -> None:
    net = build(name, batch_first=batch_first)
    x = sample(T, B, M)
    given = x.transpose(0, 1) if batch_first else x
    output, h_n = net(given)
    assert (net.input_size, net.hidden_size, net.batch_first) == (M, N, batch_first)
    assert output.shape == ((B, T, N) if batch_first else (T, B, N))
    assert hidden(h_n).shape == (1, B, N)
    last = output[:, -1] if batch_first else output[-1]
    torch.testing.assert_close(hidden(h_n)[0], last, **EXACT)
    torch.testing.assert_close(net.last(given), last, **EXACT)
    time_first = output.transpose(0, 1) if batch_first else output
    torch.testing.assert_close(time_first, build(name)(x)[0], **EXACT)


@every_net
def test_steps_equal_the_sequence(name: str) -> None:
    net, x, h = build(name), sample(7, 4, M), sample(4, N, seed=2)
    states = walk(net, x, pair(name, h))
    output, h_n = net(x, pair(name, h[None]))
    torch.testing.assert_close(torch.stack([hidden(s) for s in states]), output, **EXACT)
    if name == "lstm":
        torch.testing.assert_close(states[-1], h_n[0], **EXACT)


@every_net
@pytest.mark.parametrize("longest", [7, 5])
@pytest.mark.parametrize("batch_first", [False, True])
def test_state_freezes_past_a_sequence_end(name: str, longest: int, batch_first: bool) -> None:
    net, x, h = build(name, batch_first=batch_first), sample(7, 3, M), sample(1, 3, N, seed=2)
    lengths = torch.tensor([2, longest, 1])
    padded = x.clone()
    for b, length in enumerate(lengths.tolist()):
        padded[length:, b] = torch.nan
    given = (padded.transpose(0, 1) if batch_first else padded).requires_grad_()
    output, h_n = net(given, pair(name, h), lengths=lengths)
    output = output.transpose(0, 1) if batch_first else output
    for b, length in enumerate(lengths.tolist()):
        alone = walk(net, x[:length, b : b + 1], pair(name, h[0, b : b + 1]))
        expected = torch.cat([hidden(s) for s in alone])
        torch.testing.assert_close(output[:length, b], expected, **EXACT)
        torch.testing.assert_close(output[length:, b], expected[-1].expand(7 - length, N), **EXACT)
        torch.testing.assert_close(hidden(h_n)[0, b], expected[-1], **EXACT)
        if name == "lstm":
            torch.testing.assert_close(h_n[0, b], alone[-1][0], **EXACT)
    last = net.last(given, lengths=lengths)
    torch.testing.assert_close(last, hidden(net(given, lengths=lengths)[1])[0], **EXACT)
    output.square().sum().backward()
    for grad in (given.grad, *(p.grad for p in net.parameters())):
        assert torch.isfinite(grad).all()


@every_net
def test_copies_give_the_same_output(name: str) -> None:
    net, x = build(name), sample(5, 2, M)
    output = net(x)[0]
    fresh = NETS[name][0](M, N, **NETS[name][1]).double()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x)[0], output)
    assert torch.equal(copy.deepcopy(net)(x)[0], output)
    assert torch.equal(net.eval()(x)[0], output)
    single = copy.deepcopy(net).to(torch.float32)(x.float())[0]
    assert single.dtype == torch.float32
    # Five steps of float32 rounding, of states of size about one.
    torch.testing.assert_close(single.double(), output, rtol=1e-5, atol=1e-5)
    assert copy.deepcopy(net).float().to(torch.float64)(x)[0].dtype == torch.float64


@every_net
def test_wrong_tensors_raise_shape_error_naming_what_came(name: str) -> None:
    net, x, h = build(name), sample(6, 2, M), sample(2, N)
    width = net.state_size
    wrong = [
        (lambda: net(sample(6, 2, 4)), r"\(time, batch, m\) with m = 3.*got \(6, 2, 4\)"),
        (lambda: net(sample(6, 4)), r"got \(6, 4\)"),
        (lambda: net(sample(0, 2, M)), r"got \(0, 2, 3\)"),
        (lambda: net(x, pair(name, h[None]).float()), "float64.*got torch.float32"),
        (lambda: net(x, pair(name, h)), rf"h_0.*\(1, 2, {width}\).*got \(2, {width}\)"),
        (lambda: net(x, lengths=torch.tensor([1, 2, 3])), r"lengths.*\(2,\).*got.*\(3,\)"),
        (lambda: net(x, lengths=torch.tensor([1.0, 2.0])), "int64.*got torch.float32"),
        (lambda: net(x, lengths=torch.tensor([0, 7])), r"1\.\.6.*\[0, 7\]"),
        (lambda: net.last(x[0, 0]), r"got \(3,\)"),
        (lambda: net.step(x, pair(name, h)), r"u must.*\(batch, 3\); got \(6, 2, 3\)"),
        (lambda: net.step(x[0], pair(name, h[:1])), rf"x.*\(2, {width}\); got \(1, {width}\)"),
    ]
    for call, message in wrong:
        with pytest.raises(ShapeError, match=message):
            call()
    with pytest.raises(DataError, match="must be finite"):
        net(x / 0)


def test_a_baselines_step_is_its_own() -> None:
    for name in NETS:
        with pytest.raises(ConfigError, match=r"got dt=0\.1"):
            build(name)(sample(6, 2, M), dt=0.1)
