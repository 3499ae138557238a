"""Nets and inputs of the user's own, as the command line names them by --module and --data."""

import re
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ctrnn_assembly.data.own import of_arrays, read_series
from ctrnn_assembly.diagnostics.linearise import Behaviour
from ctrnn_assembly.errors import ConfigError, DataError, check_within, refusing, unknown
from ctrnn_assembly.terms import Terms

KINDS = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}  # by the rows of weight_hh for each unit
IN_PYTHON = "Build the net in Python, and use --module FILE.py:NAME."


def load_net(named: str) -> Any:
    """What a file of Python calls by a name, called without arguments unless a net; or a stored net."""
    is_state = named.endswith(".safetensors")
    file, _, name = (named, "", "") if is_state else named.rpartition(":")
    if not is_state and not (file.endswith(".py") and name):
        raise ConfigError(f"--module must be FILE.py:NAME or FILE.safetensors; got {named!r}.")
    if not Path(file).is_file():
        raise ConfigError(f"--module {named}: there is no file {file}. Name one that is there.")
    if is_state:
        return torch_net(Path(file))
    sys.path.append(str(Path(file).resolve().parent))  # for what it imports from beside it
    found = _run(file, "it", runpy.run_path, file)
    if name not in found:
        raise unknown(f"--module {file}: NAME", name, [one for one in found if one[0] != "_"])
    made = found[name]
    is_net = isinstance(made, nn.Module | Behaviour | Terms) or not callable(made)
    return made if is_net else _run(file, f"{name}(), which must return a net,", made)


def try_out(named: str, net: Behaviour, u: Tensor) -> None:
    """Call the net once, so that what fails in it is said in one sentence."""
    _run(named.rpartition(":")[0], "its net", net.own_map(), u, u.new_zeros(len(u), net.size))


def _run(file: str, what: str, function: Any, *arguments: Any) -> Any:
    """Call what the user wrote; whatever it raises is a ConfigError with the line."""
    try:
        return function(*arguments)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[::-1]
        line = next((f" in line {f.lineno}" for f in frames if f.filename == file), "")
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(f"--module {file}: {what} fails{line}: {reason}") from error


def torch_net(file: Path) -> nn.Module:
    """nn.RNN (with tanh), nn.GRU or nn.LSTM, float64, from its state, perhaps within a larger one."""
    with refusing(f"{file} holds no state of one nn.RNN, nn.GRU or nn.LSTM", IN_PYTHON):
        held = safetensors.torch.load_file(file)
        (start,) = (k.removesuffix("weight_hh_l0") for k in held if k.endswith("weight_hh_l0"))
        names = {k: k.removeprefix(start) for k in held if k.startswith(start)}
        state = {k: held[one] for one, k in names.items() if re.match(r"(weight|bias)_[ih][hr]_l\d", k)}
        (rows, n), m = state["weight_hh_l0"].shape, state["weight_ih_l0"].shape[1]
        layers = sum(re.fullmatch(r"weight_hh_l\d+", name) is not None for name in state)
        kind, bias, backward = KINDS[rows // n], "bias_hh_l0" in state, "weight_hh_l0_reverse" in state
        net = kind(m, n, layers, bias=bias, bidirectional=backward, dtype=torch.float64)
        net.load_state_dict(state)
    return net


def load_inputs(data: Path | None, m: int | None, samples: int | None) -> tuple[Tensor, Tensor]:
    """The first series of a file, by default 4, or random ones: (samples, T, m) float64, and lengths."""
    if data is not None:
        series = read_series(data, None, {})
    elif m is None:
        raise ConfigError("a function does not tell how wide its input is. Use --data FILE.")
    else:
        X = np.random.default_rng(0).standard_normal((max(4, samples or 4), 100, m))
        series = of_arrays("random inputs", X, None, None, None, None, None, target=None)
    x = series.filled("refuse")
    count = min(4, len(x)) if samples is None else samples
    if x.shape[2] != (m or x.shape[2]):
        must = f"{series.what} must have {m} channels, as the net reads; got {x.shape[2]}"
        raise DataError(f"{must}. One recording is X of (1, time, {m}), or a .csv with a column id.")
    check_within(f"[1, {len(x)}]", f"{series.what} has {len(x)} series.", samples=count)
    return torch.from_numpy(x[:count]), torch.from_numpy(series.lengths[:count])
