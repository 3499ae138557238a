"""Each baseline is the formula of its source, checked against torch or independent numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrnn_assembly.baselines import LSTM, AntisymmetricRNN, LipschitzRNN, VanillaRNN
from ctrnn_assembly.errors import ConfigError

M, N = 3, 5
EXACT = {"rtol": 0, "atol": 1e-12}


def sample(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (VanillaRNN, nn.RNN),
        (LSTM, nn.LSTM),
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_wrappers_equal_torch(ours: type, torchs: type, batch_first: bool) -> None:
    net = ours(M, N, batch_first=batch_first).double()
    twin = torchs(M, N, batch_first=batch_first).double()
    twin.load_state_dict({k.removeprefix("rnn."): v for k, v in net.state_dict().items()})
    x, h = sample(4, 4, M), sample(1, 4, N, seed=2)
    state = (h, 0.5 * h) if ours is LSTM else h
    mine, theirs = net(x, torch.cat(state, -1) if ours is LSTM else h), twin(x, state)
    torch.testing.assert_close(mine[0], theirs[0], **EXACT)
    last = torch.cat(theirs[1], -1) if ours is LSTM else theirs[1]
    torch.testing.assert_close(mine[1], last, **EXACT)


def parameters(net: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy() for k, v in net.named_parameters()}


@pytest.mark.parametrize("n", [1, 2, 6])
def test_antisymmetric_matrix_is_skew_minus_gamma(n: int) -> None:
    net = AntisymmetricRNN(M, n, gamma=0.25).double()
    K, entries = net.matrices()[0].detach(), net.upper.detach()
    skew = K + 0.25 * torch.eye(n, dtype=K.dtype)
    assert torch.equal(skew, -skew.T)
    assert entries.numel() == n * (n - 1) // 2
    assert torch.equal(skew[tuple(np.triu_indices(n, 1))], entries)


def test_antisymmetric_follows_the_formula() -> None:
    net = AntisymmetricRNN(M, N, eps=0.3, gamma=0.2).double()
    x, h = sample(6, 2, M), sample(2, N, seed=2)
    net.inputs.bias.data.normal_()  # the bias starts at 0, which would hide a lost one
    p = parameters(net)
    W = np.zeros((N, N))
    W[np.triu_indices(N, 1)] = p["upper"]
    K = W - W.T - 0.2 * np.eye(N)
    V, b, state = p["inputs.weight"], p["inputs.bias"], h.numpy()
    for u in x.numpy():
        state = state + 0.3 * np.tanh(state @ K.T + u @ V.T + b)
    torch.testing.assert_close(net(x, h[None])[1][0], torch.from_numpy(state), **EXACT)


def test_lipschitz_follows_the_formula() -> None:
    net = LipschitzRNN(M, N, eps=0.3, beta=0.9, gamma=0.4, init_std=2.0).double()
    net.inputs.bias.data.normal_()
    p = parameters(net)
    M_A, M_W, eye = p["M_A"], p["M_W"], np.eye(N)
    A = 0.1 * (M_A + M_A.T) + 0.9 * (M_A - M_A.T) - 0.4 * eye
    W = 0.1 * (M_W + M_W.T) + 0.9 * (M_W - M_W.T) - 0.4 * eye
    for ours, written in zip(net.matrices(), (A, W), strict=True):
        torch.testing.assert_close(ours.detach(), torch.from_numpy(written), **EXACT)
    x, h = sample(6, 2, M), sample(2, N, seed=2)
    state = h.numpy()
    for u in x.numpy():
        inner = state @ W.T + u @ p["inputs.weight"].T + p["inputs.bias"]
        state = state + 0.3 * (state @ A.T + np.tanh(inner))
    torch.testing.assert_close(net(x, h[None])[1][0], torch.from_numpy(state), **EXACT)


def test_initial_weights_have_the_stated_spread() -> None:
    torch.manual_seed(0)
    n = 200
    anti, lips = AntisymmetricRNN(50, n, init_std=4.0), LipschitzRNN(50, n)
    spread = {
        anti.upper: 4.0 / n**0.5,
        anti.inputs.weight: 50**-0.5,
        lips.M_A: 0.1 / n,
        lips.M_W: 0.1 / n,
        lips.inputs.weight: (2 / (50 + n)) ** 0.5,
    }
    for weight, std in spread.items():  # at least 10,000 draws each: 3 % is four standard errors
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert not anti.inputs.bias.any()
    assert not lips.inputs.bias.any()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (VanillaRNN, {"hidden_size": 0}, "hidden_size must be at least 1; got 0"),
        (LSTM, {"input_size": -1}, "input_size must be at least 1; got -1"),
        (AntisymmetricRNN, {"eps": 0.0}, "eps must be positive and finite; got 0"),
        (AntisymmetricRNN, {"eps": float("nan")}, "eps must be .*got nan"),
        (AntisymmetricRNN, {"gamma": -0.1}, "gamma must be .*got -0.1"),
        (LipschitzRNN, {"beta": 1.5}, r"beta must be in \[0, 1\]; got 1.5"),
        (LipschitzRNN, {"gamma": float("inf")}, "gamma must be .*got inf"),
    ],
)
def test_impossible_settings_raise_config_error(cls: type, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**({"input_size": M, "hidden_size": N} | options))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (AntisymmetricRNN, {}),
        (LipschitzRNN, {"init_std": 2.0}),
    ],
)
def test_gradients_match_finite_differences(cls: type, options: dict) -> None:
    net = cls(M, N, eps=0.3, **options).double()
    names, values = zip(*net.named_parameters(), strict=True)

    def run(x: Tensor, h_0: Tensor, *weights: Tensor) -> Tensor:
        given = dict(zip(names, weights, strict=True))
        call = torch.func.functional_call
        return call(net, given, (x, h_0), {"lengths": torch.tensor([2, 3])})[0]

    leaves = [t.detach().requires_grad_() for t in (sample(3, 2, M), sample(1, 2, N), *values)]
    assert torch.autograd.gradcheck(run, leaves)
