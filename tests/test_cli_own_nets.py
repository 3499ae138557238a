"""`ctrnn spectrum --module ... --data ...`, and its four sisters: nets and inputs of the user's own."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cli_tools import Cli
from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
from ctrnn_assembly.diagnostics.spectrum import spectrum_along
from stored_runs import store_run, strict_json
from test_cli_diagnostics import COMMANDS, QUICK

NETS = """
import torch
from torch import nn
from beside import SIZE
from ctrnn_assembly import CTRNN, AdaDiagTanh, SequenceClassifier, Subnetwork
from ctrnn_assembly.diagnostics.linearise import Behaviour

def gru():
    return nn.GRU(3, SIZE, num_layers=2, batch_first=True)

def layer():
    return CTRNN(3, Subnetwork(AdaDiagTanh("tanh"), SIZE), dt=0.1)

def classifier():
    return SequenceClassifier(layer(), 2)

cell = nn.LSTMCell(3, SIZE)  # a net, not what makes one

def flow():
    return Behaviour(3, flow=lambda u: lambda x: -x + u.tanh(), input_size=3, dt=0.1)

def oscillator():
    def field(t, x, u):
        q, v = x.unbind(-1)
        return torch.stack([v, (1 - q**2) * v - q + u[..., 0]], -1)
    return CTRNN(3, field, size=2, dt=0.1, solver="rk4")

def step():
    return Behaviour(2, step=lambda u, x: x / 2 + u[:, :2])

def needs(size):
    return nn.GRU(3, size)

def broken():
    return nn.GRU(3, SIZE) + 1

def wrong():
    return Behaviour(2, step=lambda u, x: x @ nn.Linear(2, 2).weight.float(), input_size=3)

def number():
    return 3

def whole():
    return nn.Sequential(nn.Linear(3, 2))
"""


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


@pytest.fixture
def nets(tmp_path):
    """FILE.py, which imports from a file beside it."""
    (tmp_path / "beside.py").write_text("SIZE = 4\n")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "lyapunov"])
def test_a_field_of_ones_own_is_looked_at(cli, nets, command):
    found = result(cli, command, "--module", f"{nets}:oscillator", "--samples", 1)
    assert found["rows"]
    assert (found["solver"], found["certificate"]["certified"]) == ("rk4", False)
    assert "a field of your own" in found["certificate"]["reasons"][0]


def result(cli, command, *args):
    done = cli(command, *QUICK[command], "--json", *args)
    assert done.code == 0, done.err
    return strict_json(done.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_looks_at_a_net_of_the_users_own(cli, nets, tmp_path, command):
    for name in ("gru", "layer", "classifier", "cell", "flow"):
        found = result(cli, command, "--module", f"{nets}:{name}", "--samples", 1)
        assert found["rows"], name
        assert found["certificate"]["certified"] == (name in ("layer", "classifier"))
        assert (found["task"], found["split"], found["samples"]) == (None, "random", 1)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_and_draws_a_net_of_the_users_own(cli, nets, tmp_path, command):
    done = cli(command, "--module", f"{nets}:gru", *QUICK[command], "--plot", tmp_path / "x.png")
    assert "GRU on random inputs" in done.out
    assert "no certificate is defined for GRU" in done.out
    assert (tmp_path / "x.png").stat().st_size > 4000


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_every_command_takes_inputs_of_any_dtype(cli, nets, tmp_path, command, dtype):
    np.savez(tmp_path / "x.npz", X=np.ones((2, 40, 3), dtype))
    found = result(cli, command, "--module", f"{nets}:layer", "--data", tmp_path / "x.npz", "--dt", 0.2)
    assert (found["samples"], found["length"], found["dt"]) == (2, 40, 0.2)
    assert found["certificate"]["discrete"]["dt"] == 0.2
    store_run(tmp_path / "run", model="adadiag-tanh")
    np.savez(tmp_path / "one.npz", X=np.ones((3, 40, 1), dtype))
    found = result(cli, command, tmp_path / "run", "--data", tmp_path / "one.npz", "--samples", 1)
    assert (found["split"], found["samples"], found["length"]) == ("data", 1, 40)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("prefix", ["", "model.rnn."])
def test_the_sizes_of_a_saved_net_are_those_of_its_tensors(cli, tmp_path, kind, prefix):
    net = kind(3, 5, num_layers=2, bias=not prefix)
    state = {prefix + name: x for name, x in net.state_dict().items()}
    save_file(state | {"model.head.weight": torch.ones(2, 5)}, tmp_path / "net.safetensors")
    X = np.random.default_rng(0).standard_normal((1, 64, 3))
    np.savez(tmp_path / "x.npz", X=X)
    given = ("--module", tmp_path / "net.safetensors", "--data", tmp_path / "x.npz")
    u = torch.from_numpy(X)
    found = result(cli, "spectrum", *given)
    radii = spectrum_along(net, u[0], at=[0, 16, 32]).step_radius
    assert [row["step_radius"] for row in found["rows"]] == pytest.approx(radii.tolist())
    found = result(cli, "lyapunov", *given)
    exponents = lyapunov_exponents(
        net, u, k=3, steps=60, generator=torch.Generator().manual_seed(0)
    ).exponents
    assert [row["exponent"] for row in found["rows"]] == pytest.approx(exponents.tolist())


def test_a_solver_of_a_map_is_refused_and_that_of_a_flow_is_taken(cli, nets):
    found = result(cli, "lyapunov", "--module", f"{nets}:flow", "--solver", "rk4", "--dt", 0.1)
    assert found["solver"] == "rk4"
    assert found["rows"][0]["exponent"] == pytest.approx(-1, abs=1e-5)
    said = cli.refuses("spectrum", "--module", f"{nets}:gru", "--solver", "imex")
    assert "a map has its own step only" in said


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("nothing.py:make", "there is no file nothing.py"),
        ("nothing.safetensors", "there is no file nothing.safetensors"),
        ("nets", "must be FILE.py:NAME or FILE.safetensors"),
        ("nets.py:", "must be FILE.py:NAME or FILE.safetensors"),
        ("nets.py:grv", "Did you mean 'gru'"),
        ("nets.py:needs", "missing 1 required positional argument: 'size'"),
        ("nets.py:broken", "fails in line 35: TypeError"),
        ("nets.py:wrong", "its net fails in line 38: RuntimeError"),
        ("nets.py:number", "got int"),
        ("nets.py:whole", "does not tell how wide its state is"),
        ("bad.py:make", "it fails in line 1: ZeroDivisionError"),
        ("bad.safetensors", "holds no state of one nn.RNN"),
        ("other.safetensors", "holds no state of one nn.RNN"),
    ],
)
def test_a_net_that_cannot_be_made_is_refused(cli, nets, tmp_path, monkeypatch, module, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("1 / 0\n")
    (tmp_path / "bad.safetensors").write_bytes(b"noise")
    save_file({"encoder.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    assert reason in cli.refuses("spectrum", "--module", module)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (None, "must be a file that ends in .npz"),
        ({"x": np.ones((2, 4, 3))}, "must hold an array X; got x"),
        (
            {"X": np.ones((4, 3))},
            "got 1. One recording is X of (1, time, 3), or a .csv with a column id",
        ),
        ({"X": np.ones((2, 4, 5))}, "must have 3 channels, as the net reads; got 5"),
        ({"X": np.ones((2, 4, 3), complex)}, "got complex numbers"),
        ({"X": np.full((2, 4, 3), np.nan)}, "values must be finite; got nan at series '0', step 0"),
        ({"X": np.ones((2, 4, 3), object)}, "cannot be read as arrays"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(cli, nets, tmp_path, arrays, reason):
    if arrays is not None:
        np.savez(tmp_path / "x.npz", **arrays)
    assert reason in cli.refuses("spectrum", "--module", f"{nets}:gru", "--data", tmp_path / "x.npz")


def test_what_belongs_to_a_run_is_refused_for_a_net(cli, nets, tmp_path):
    store_run(tmp_path / "run", model="adadiag-tanh")
    np.savez(tmp_path / "x.npz", X=np.ones((2, 4, 3)))
    assert "name a run" in cli.refuses("gsc")
    assert "name a run" in cli.refuses("gsc", tmp_path / "run", "--module", f"{nets}:gru")
    assert "--split is of a run" in cli.refuses("gsc", "--module", f"{nets}:gru", "--split", "test")
    assert "--initial is of a run" in cli.refuses("gsc", "--module", f"{nets}:gru", "--initial")
    given = ("gsc", tmp_path / "run", "--data", tmp_path / "x.npz")
    assert "--task is of a run" in cli.refuses(*given, "--task", "digits")
    assert "must have 1 channels, as the net reads; got 3" in cli.refuses(*given)
    assert "--data" in cli.refuses("gsc", "--module", f"{nets}:step")
    assert "samples" in cli.refuses("gsc", "--module", f"{nets}:gru", "--samples", 0)


def test_series_of_any_file_and_length_drive_a_net(cli, nets, tmp_path):
    rows = ["id,a,b,c", *(f"{k},{step},0.5,-1" for k in (7, 8) for step in range(20 + 10 * (k == 8)))]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    given = ("--module", f"{nets}:layer", "--data", tmp_path / "x.csv", "--at", "25")
    found = result(cli, "spectrum", *given)
    assert (found["samples"], found["length"]) == (2, 30)
    dt = found["dt"]
    assert [row["time"] for row in found["rows"]] == pytest.approx([20 * dt, 25 * dt])
