"""Each baseline is the formula of its source, checked against torch."""

import pytest
import torch
from torch import Tensor, nn

from ctrnn_assembly.baselines import LSTM, VanillaRNN
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


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (VanillaRNN, {"hidden_size": 0}, "hidden_size must be at least 1; got 0"),
        (LSTM, {"input_size": -1}, "input_size must be at least 1; got -1"),
    ],
)
def test_impossible_settings_raise_config_error(cls: type, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**({"input_size": M, "hidden_size": N} | options))
