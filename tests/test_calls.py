"""What a layer may be given: as nn.RNN, arrays, lists, and episodes inside a sequence."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from ctrnn_assembly.baselines import LSTM
from ctrnn_assembly.diagnostics.gradients import gsc_over_time
from ctrnn_assembly.diagnostics.spectrum import spectrum_along
from ctrnn_assembly.errors import ConfigError, DataError, ShapeError
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.models import build_model
from ctrnn_assembly.recurrent import Recurrent
from ctrnn_assembly.training.config import make_config
from test_layer_interface import BASELINES, LAYERS, M, N, built, ctrnn, normal

EXACT = {"rtol": 1e-12, "atol": 1e-12}
LENGTHS = [4, 6, 1]
every_layer = pytest.mark.parametrize("name", LAYERS)


def trained(net: Recurrent) -> Recurrent:
    """A copy that starts in a state of its own."""
    net = copy.deepcopy(net)
    net.x_0 = nn.Parameter(normal(net.state_size, seed=9))
    return net


@every_layer
def test_a_packed_sequence_gives_a_packed_sequence(name: str) -> None:
    net, u, h_0 = built(name), normal(3, 6, M), normal(1, 3, built(name).state_size, seed=2)
    output, h_n = net(u, h_0, lengths=torch.tensor(LENGTHS))
    packed = pack_padded_sequence(u, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    given, h_given = net(packed, h_0)
    theirs, h_theirs = nn.RNN(M, N, batch_first=True).double()(packed)
    assert isinstance(given, PackedSequence)
    assert given.data.shape == theirs.data.shape
    assert_close(h_given, h_n, **EXACT)
    assert h_given[..., :N].shape == h_theirs.shape
    for mine, torchs in zip(given[1:], theirs[1:], strict=True):
        assert torch.equal(mine, torchs)
    opened, lengths = pad_packed_sequence(given, batch_first=True)
    assert lengths.tolist() == LENGTHS
    for one, whole, k in zip(opened, output, LENGTHS, strict=True):
        assert_close(one[:k], whole[:k], **EXACT)
    assert_close(net.last(packed, h_0), net.last(u, h_0, lengths=LENGTHS), **EXACT)
    # In order, and with time first: a packed sequence says neither, so batch_first changes nothing.
    ordered = pack_padded_sequence(u[[1, 0, 2]], torch.tensor([6, 4, 1]), batch_first=True)
    net.batch_first = False
    assert_close(net(ordered)[0].data, net(packed)[0].data, **EXACT)
    assert net(ordered)[0].sorted_indices is None
    with pytest.raises(ShapeError, match="PackedSequence has its own lengths"):
        net(packed, lengths=LENGTHS)


@every_layer
def test_one_sequence_needs_no_batch(name: str) -> None:
    net, u = built(name), normal(6, M)
    h_0 = normal(1, net.state_size, seed=2)
    output, h_n = net(u, h_0)
    whole, last = net(u[None], h_0[None])
    rnn = nn.RNN(M, N, batch_first=True).double()
    for mine, theirs in zip(net(u), rnn(u), strict=True):
        assert mine[..., :N].shape == theirs.shape
    assert torch.equal(output, whole[0])
    assert torch.equal(h_n, last[0])
    assert torch.equal(net.last(u), net.last(u[None])[0])
    assert torch.equal(net.last(u, lengths=4), net.last(u[:4]))
    reset = torch.arange(6) == 3
    assert torch.equal(net(u, reset=reset)[0], net(u[None], reset=reset[None])[0][0])
    with pytest.raises(ShapeError, match=rf"h_0 must be \(1, {net.state_size}\); got"):
        net(u, h_0[None])


@every_layer
def test_arrays_and_lists_are_taken(name: str) -> None:
    net = built(name).float()
    u, h_0 = normal(3, 6, M), normal(1, 3, net.state_size, seed=2)
    given = net(u.numpy(), h_0.numpy(), lengths=LENGTHS)
    expected = net(u.float(), h_0.float(), lengths=torch.tensor(LENGTHS))
    for mine, wanted in zip(given, expected, strict=True):
        assert torch.equal(mine, wanted)
    # Of any stride, byte for byte and read only; whole numbers too.
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 6, 2)[::-1]
    pixels.flags.writeable = False
    as_floats = torch.from_numpy(pixels.astype(np.float32))
    for counts in (LENGTHS, tuple(LENGTHS), np.array(LENGTHS, np.int32), torch.tensor(LENGTHS).int()):
        assert torch.equal(net.last(pixels, lengths=counts), net.last(as_floats, lengths=LENGTHS))
    sample, x = u[:, 0], h_0[0]
    for one, state in ((sample.numpy(), x.numpy()), (sample.tolist(), x.tolist())):
        assert torch.equal(net.step(one, state), net.step(sample.float(), x.float()))
    reset = np.zeros((3, 6), bool)
    assert torch.equal(net(as_floats, reset=reset.tolist())[0], net(as_floats)[0])
    with pytest.raises(ShapeError, match="input must be a tensor or array of numbers"):
        net("text")


@every_layer
def test_a_tensor_of_another_dtype_is_refused(name: str) -> None:
    net, u = built(name).float(), normal(3, 6, M)
    for call in (net, net.last, SequenceClassifier(net, 3).float()):
        with pytest.raises(ShapeError, match=r"torch.float32.*got torch.float64.*net\.double\(\)"):
            call(u)
    with pytest.raises(
        ShapeError, match=r"float64.*got torch.float32.*input\.to\('cpu', torch.float64\)"
    ):
        built(name)(u.float())
    with pytest.raises(ShapeError, match=r"u must be torch.float32.*net\.double\(\)"):
        net.step(u[:, 0], torch.zeros(3, net.state_size).float())
    with torch.autocast("cpu"):  # whose layers hand bfloat16 on
        assert net(u.bfloat16())[0].shape == (3, 6, N)
        assert net.step(u[:, 0].bfloat16(), net.initial(3).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in BASELINES])
def test_dt_may_be_a_column_and_is_not_read_beyond_lengths(name: str) -> None:
    net, u = built(name), normal(3, 6, M)
    dt = 0.05 + normal(3, 6).abs()
    if name == "rk4":  # one grid for the batch
        for k, one in enumerate(u):
            given = torch.cat([dt[k, : LENGTHS[k]], torch.full((6 - LENGTHS[k],), torch.nan).double()])
            expected = net(one[: LENGTHS[k]], dt=dt[k, : LENGTHS[k]])[0]
            assert torch.equal(net(one, lengths=LENGTHS[k], dt=given)[0][: LENGTHS[k]], expected)
        return
    assert torch.equal(net(u, dt=dt[..., None])[0], net(u, dt=dt)[0])
    assert torch.equal(net(u, dt=dt.tolist())[0], net(u, dt=dt.numpy())[0])
    past = torch.arange(6) >= torch.tensor(LENGTHS)[:, None]
    broken, blank = dt.masked_fill(past, torch.nan), u.masked_fill(past[..., None], torch.inf)
    output, h_n = net(blank, lengths=LENGTHS, dt=broken[..., None])
    for k, length in enumerate(LENGTHS):
        alone = net(u[k : k + 1, :length], dt=dt[k : k + 1, :length])
        assert_close(output[k, :length], alone[0][0], **EXACT)
        assert_close(h_n[0, k], alone[1][0, 0], **EXACT)
    output.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    with pytest.raises(ShapeError, match=r"dt must be a number, .*; got.*\(3, 5\)"):
        net(u, dt=dt[:, :5])


def by_hand(net: Recurrent, u: Tensor, x: Tensor, k: int, reset: Tensor, **call: Tensor) -> tuple:
    """Sequence k, one call for each episode, from x (batch, state_size)."""
    begins = [0, *(reset[1:].nonzero()[:, 0] + 1).tolist(), len(u)]
    h, outputs = x[k][None], []
    for begin, end in itertools.pairwise(begins):
        if reset[begin]:
            h = u.new_zeros(1, net.state_size) if net.x_0 is None else net.x_0[None]
        output, h = net(u[begin:end], h, **{key: v[begin:end] for key, v in call.items()})
        outputs.append(output)
    return torch.cat(outputs), h[0]


def gradients(net: Recurrent, value: Tensor, *others: Tensor) -> list[Tensor]:
    wanted = [*net.parameters(), *others]
    found = torch.autograd.grad(value, wanted, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


@every_layer
@pytest.mark.parametrize("initial_state", ["zero", "trained"])
def test_episodes_are_sequences_of_their_own(name: str, initial_state: str) -> None:
    net = built(name) if initial_state == "zero" else trained(built(name))
    u, x = normal(3, 6, M).requires_grad_(), normal(3, net.state_size, seed=2).requires_grad_()
    reset = torch.tensor([[0, 0, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]]).bool()
    with_dt = name not in (*BASELINES, "rk4")
    dt = {"dt": 0.05 + normal(3, 6, seed=4).abs() / 3} if with_dt else {}
    past = torch.arange(6) >= torch.tensor(LENGTHS)[:, None]
    for lengths in (None, LENGTHS):
        blank = u if lengths is None else u.masked_fill(past[..., None], torch.nan)
        output, h_n = net(blank, x[None], lengths=lengths, reset=reset, **dt)
        total = value = normal(1)[0] * 0
        for k, end in enumerate(lengths or [6] * 3):
            own = {key: v[k, :end] for key, v in dt.items()}
            one, last = by_hand(net, u[k, :end], x, k, reset[k, :end], **own)
            assert_close(output[k, :end], one, **EXACT)
            assert_close(output[k, end:], one[-1:].expand(6 - end, N), **EXACT)
            assert_close(h_n[0, k], last, **EXACT)
            assert_close(
                net.last(blank, x[None], lengths=lengths, reset=reset, **dt)[k], last[:N], **EXACT
            )
            value = value + (one * normal(end, N, seed=k)).sum() + last.square().sum()
            total = total + (output[k, :end] * normal(end, N, seed=k)).sum() + h_n[0, k].square().sum()
        pairs = zip(gradients(net, total, u, x), gradients(net, value, u, x), strict=True)
        for mine, wanted in pairs:
            assert_close(mine, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "plain"},
        {"recompute": "sqrt"},
        {"substeps": 3},
        {"gate": "state", "substeps": 3},
        {"solver": "dopri5", "rtol": 1e-13, "atol": 1e-14},  # else its steps depend on the batch
    ],
)
def test_every_solver_and_backend_takes_episodes(settings: dict[str, str]) -> None:
    net, u = ctrnn(**settings), normal(3, 6, M)
    reset = torch.arange(6).expand(3, 6) == torch.tensor([[2], [0], [5]])
    for k in range(3):
        assert_close(
            net.last(u, reset=reset)[k], by_hand(net, u[k], normal(3, N), k, reset[k])[1], **EXACT
        )


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_a_signal_between_samples_ends_with_its_own_sequence(kind: str) -> None:
    net, u = ctrnn(solver="rk4", interpolation=kind).double(), normal(3, 6, M)
    reset = torch.tensor([[0, 0, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    output = net(u, lengths=LENGTHS)[0]
    for k, end in enumerate(LENGTHS):
        assert_close(output[k, :end], net(u[k, :end])[0], **EXACT)
        alone = by_hand(net, u[k], normal(3, N), k, reset[k])[0]
        assert_close(net(u, normal(1, 3, N), reset=reset)[0][k], alone, **EXACT)


@every_layer
def test_an_initial_state_is_trained(name: str) -> None:
    plain, net = built(name), trained(built(name))
    u = normal(3, 6, M)
    assert plain.x_0 is None
    x_0 = net.x_0[None, None].expand(1, 3, -1)
    assert torch.equal(net(u)[0], plain(u, x_0)[0])
    assert torch.equal(net.last(u), plain.last(u, x_0))
    assert torch.equal(net(u, 0 * x_0)[0], plain(u)[0])
    net.last(u).sum().backward()
    assert net.x_0.grad.abs().sum() > 0
    # Contraction is of any two states, wherever the first one comes from.
    assert net.certificate() == plain.certificate()


@pytest.mark.parametrize("name", ["euler", "state", "lstm"])
def test_diagnostics_start_where_the_net_does(name: str) -> None:
    net, u = trained(built(name)), normal(1, 6, M)
    x_0 = net.x_0.detach()
    assert torch.equal(spectrum_along(net, u[0], at=[0]).x[0], x_0)
    mine, given = gsc_over_time(net, u), gsc_over_time(net, u, x_0[None])
    assert torch.equal(mine.value, given.value)


def test_initial_states_are_settings() -> None:
    net = ctrnn(initial_state="trained")
    assert torch.equal(net.x_0, torch.zeros(N))
    assert LSTM(M, N, initial_state="trained").x_0.shape == (2 * N,)
    for name in ("svd-combo", "lstm", "lipschitz", "adadiag-gated"):
        model = build_model(name, M, 3, modules=2, units=3, initial_state="trained")
        assert "core.x_0" in model.state_dict()
        config = make_config({"model": name, "initial_state": "trained"})
        assert build_model(config, M, 3).core.x_0 is not None
        other = build_model({"model": name, "modules": 2, "units": 3}, M, 3)
        assert "core.x_0" not in other.state_dict()
    with pytest.raises(
        ConfigError,
        match=r"initial_state must be one of zero, trained\.",
    ):
        ctrnn(initial_state="train")


@pytest.mark.parametrize("name", ["euler", "state", "lstm"])
def test_the_classifier_takes_what_its_layer_takes(name: str) -> None:
    net, u = built(name), normal(3, 6, M)
    model = SequenceClassifier(net, 4).double()
    logits = model(u, lengths=LENGTHS)
    packed = pack_padded_sequence(u, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    assert_close(model(packed), logits, **EXACT)
    assert_close(model(u[0, :4]), logits[0], **EXACT)
    assert torch.equal(model(u.numpy(), lengths=np.array(LENGTHS)), logits)
    h_0, reset = normal(1, 3, net.state_size), torch.arange(6).expand(3, 6) == 3
    assert_close(model(u, h_0, reset=reset), model(u[:, 3:]), **EXACT)
    assert_close(model(u, h_0), model.readout(net.last(u, h_0)), **EXACT)


def test_what_does_not_fit_is_said() -> None:
    net, u = built("lstm"), normal(3, 6, M)
    wrong = [
        (
            {"reset": torch.zeros(3, 6)},
            r"reset must be \(3, 6\), bool; got torch.float.*reset\.bool\(\)",
        ),
        ({"reset": torch.zeros(6, 3).bool()}, r"\(3, 6\), bool; got torch.bool of shape \(6, 3\)"),
        (
            {"h_0": (normal(1, 3, N), normal(1, 3, N))},
            r"h_0 must be one tensor.*torch\.cat\(h_0, dim=-1\)",
        ),
        ({"lengths": [1, 2]}, r"lengths must be \(3,\).*got"),
        ({"lengths": [1.0, 2.0, 3.0]}, "whole numbers.*got torch.float"),
    ]
    for call, message in wrong:
        with pytest.raises(ShapeError, match=message):
            net(u, **call)
    broken = u.clone()
    broken[1, 3] = torch.nan
    with pytest.raises(DataError, match=re.escape("(1, 3, 0)")):
        net(broken, lengths=[4, 4, 1])


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_a_field_of_ones_own_takes_all_of_it(solver: str) -> None:
    """It has no parameter, and its time begins anew with an episode."""
    options = {"dt": 0.1, "solver": solver, "batch_first": True, "initial_state": "trained"}
    net = CTRNN(M, lambda t, x, u: torch.sin(t) * x[:, [1, 0]] - x**3 + u, size=M, **options)
    nn.init.normal_(net.x_0)
    u = normal(3, 6, M)
    packed = pack_padded_sequence(u, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    assert_close(net.last(packed), net.last(u, lengths=LENGTHS), **EXACT)
    reset = torch.tensor([[0, 0, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]]).bool()
    output = net(u, reset=reset)[0]
    for k in range(3):
        alone = by_hand(net, u[k], net.initial(3), k, reset[k])[0]
        assert_close(output[k], alone, **EXACT)
        assert_close(net(u[k], reset=reset[k])[0], alone, **EXACT)
    if solver == "euler":
        blank, dt = u.clone(), 0.1 + normal(3, 6).abs()
        expected = net.last(u, lengths=LENGTHS, dt=dt)
        blank[2, 1:], dt[2, 1:] = torch.nan, torch.nan
        assert_close(net.last(blank, lengths=LENGTHS, dt=dt), expected, **EXACT)
