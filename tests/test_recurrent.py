"""The recurrent layer: nn.RNN's convention, exact single steps, inputs between samples."""

import copy

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicHermiteSpline
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly.assembly import Assembly, couple
from ctrnn_assembly.contracting import SingularValueBounded, Symmetric
from ctrnn_assembly.errors import ConfigError, CtrnnError, DataError, ShapeError
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.schemes import SCHEMES, SOLVERS
from ctrnn_assembly.subnetwork import Subnetwork

TORCHDIFFEQ = [name for name in SOLVERS if name not in SCHEMES]


def field(form: str = "x") -> Assembly:
    generator = torch.Generator().manual_seed(3)
    parts = [
        Subnetwork(kind("tanh"), n, form=form, generator=generator)  # type: ignore[arg-type]
        for kind, n in ((SingularValueBounded, 3), (Symmetric, 4))
    ]
    return couple(parts, "all", generator=generator)


def layer(**settings: object) -> CTRNN:
    generator = torch.Generator().manual_seed(4)
    return CTRNN(2, field(), dt=0.1, batch_first=True, generator=generator, **settings)  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_steps(net: CTRNN, u: Tensor, x: Tensor) -> Tensor:
    states = []
    for sample in u.unbind(1):
        x = net.step(sample, x)
        states.append(x)
    return torch.stack(states, 1)


@pytest.mark.parametrize("solver", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_step_by_step_equals_the_whole_sequence(solver: str, dtype: torch.dtype) -> None:
    net, u, x0 = layer(solver=solver).to(dtype), normal(3, 50, 2).to(dtype), normal(3, 7).to(dtype)
    whole, last = net(u, x0[None])
    steps = by_steps(net, u, x0)
    # W_in u is one product for all steps, which a matrix library may round differently.
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    assert_close(steps, whole, rtol=tolerance, atol=tolerance)
    assert torch.equal(whole[:, -1], last[0])


@pytest.mark.parametrize("solver", TORCHDIFFEQ)
def test_torchdiffeq_methods_go_step_by_step_too(solver: str) -> None:
    net, u = layer(solver=solver, rtol=1e-6, atol=1e-7), normal(2, 4, 2)
    with torch.no_grad():  # scipy_solver has no gradient of its own
        whole, steps = net(u)[0], by_steps(net, u, u.new_zeros(2, 7))
    # Adaptive methods choose other steps when they start anew: equal to their tolerance only.
    assert_close(steps, whole, rtol=1e-4, atol=1e-4)


def test_shapes_follow_nn_rnn() -> None:
    rnn, u = nn.RNN(2, 7), normal(6, 3, 2)  # (time, batch, m)
    ours = CTRNN(2, field())
    for mine, theirs in zip(ours(u), rnn(u), strict=True):
        assert mine.shape == theirs.shape
    for mine, theirs in zip(ours(u, normal(1, 3, 7)), rnn(u, normal(1, 3, 7)), strict=True):
        assert mine.shape == theirs.shape
    first, rnn_first = layer(), nn.RNN(2, 7, batch_first=True)
    u = normal(3, 6, 2)
    for mine, theirs in zip(first(u), rnn_first(u), strict=True):
        assert mine.shape == theirs.shape


def test_batch_first_only_transposes() -> None:
    first = layer()
    second = copy.deepcopy(first)
    second.batch_first = False
    u = normal(3, 6, 2)
    output, h_n = first(u)
    other, h_other = second(u.transpose(0, 1))
    assert torch.equal(other.transpose(0, 1), output)
    assert torch.equal(h_other, h_n)
    assert torch.equal(first.last(u), second.last(u.transpose(0, 1)))


def test_a_sequence_goes_on_from_h_n() -> None:
    net, u = layer(), normal(3, 8, 2)
    whole, h_n = net(u)
    _, h_mid = net(u[:, :5])
    rest, h_end = net(u[:, 5:], h_mid)
    assert_close(rest, whole[:, 5:], rtol=1e-13, atol=1e-13)
    assert_close(h_end, h_n, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", ["euler", "imex", "exponential-euler", "rk4"])
def test_the_state_stays_past_a_sequences_end(solver: str) -> None:
    net, u = layer(solver=solver), normal(3, 6, 2)
    lengths = torch.tensor([6, 1, 4])
    output, h_n = net(u, lengths=lengths)
    full, _ = net(u)
    for i, k in enumerate(lengths):
        assert torch.equal(output[i, :k], full[i, :k])
        assert (output[i, k - 1 :] == output[i, k - 1]).all()
        assert torch.equal(h_n[0, i], full[i, k - 1])
    assert torch.equal(net.last(u, lengths=lengths), h_n[0])


@pytest.mark.parametrize("solver", SCHEMES)
def test_all_forms_of_dt_agree(solver: str) -> None:
    net, u = layer(solver=solver), normal(3, 6, 2)
    expected, _ = net(u)
    for dt in (0.1, torch.full((6,), 0.1), torch.full((3, 6), 0.1)):
        assert_close(net(u, dt=dt)[0], expected, rtol=1e-13, atol=1e-13)
    steps = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) / 5 + 0.01
    together, _ = net(u, dt=steps)
    for i in range(3):
        assert_close(net(u[i : i + 1], dt=steps[i])[0][0], together[i], rtol=1e-12, atol=1e-12)


def reference(net: CTRNN, u: Tensor, kind: str) -> np.ndarray:
    """The states of the first sample by scipy, from the definition of u(t)."""
    terms = net.field.terms()
    blocks = torch.block_diag(*terms.blocks).detach().numpy()
    assert terms.L is not None
    L, bias = terms.L.detach().numpy(), terms.bias.detach().numpy()
    W_in, b_in = (p.detach().numpy() for p in net.encoder.parameters())
    samples = u[0].numpy()
    times = np.arange(len(samples)) * net.dt
    secants = np.diff(samples, axis=0) / net.dt
    slopes = np.concatenate([secants[:1], (secants[1:] + secants[:-1]) / 2, secants[-1:]])
    spline = CubicHermiteSpline(times, samples, slopes)

    def signal(t: float) -> np.ndarray:
        t = min(t, times[-1])
        if kind == "linear":
            return np.array([np.interp(t, times, column) for column in samples.T])
        return spline(t)

    def f(t: float, x: np.ndarray) -> np.ndarray:
        return -x + blocks @ np.tanh(x) + bias + L @ x + W_in @ signal(t) + b_in

    x, states = np.zeros(7), []
    for start in times:  # breaks at the samples are stepped onto
        x = solve_ivp(f, (start, start + net.dt), x, rtol=1e-11, atol=1e-12).y[:, -1]
        states.append(x)
    return np.array(states)


@pytest.mark.parametrize("solver", ["rk4", "dopri5", "bosh3"])
@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_interpolated_inputs_are_those_of_the_definition(solver: str, kind: str) -> None:
    net = layer(solver=solver, interpolation=kind, rtol=1e-9, atol=1e-10)
    u = normal(2, 6, 2)
    expected = torch.from_numpy(reference(net, u, kind))
    # One step of rk4 a sample errs by about dt^5.
    tolerance = 1e-4 if solver == "rk4" else 1e-7
    assert_close(net(u)[0][0], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("solver", TORCHDIFFEQ)
@pytest.mark.parametrize("interpolation", ["hold", "linear", "cubic"])
def test_every_method_takes_every_input(solver: str, interpolation: str) -> None:
    net = layer(solver=solver, interpolation=interpolation, rtol=1e-5, atol=1e-6)
    exact = layer(solver="dopri5", interpolation=interpolation, rtol=1e-9, atol=1e-10)
    # Slow, since the Adams methods extrapolate the slope over several samples.
    u = torch.sin(torch.arange(16.0).view(2, 4, 2) / 3)
    with torch.no_grad():  # scipy_solver has no gradient of its own
        x, expected = net(u)[0], exact(u)[0]
    assert_close(x, expected, rtol=0.02, atol=0.02)  # the coarsest has order 2, dt 0.1


@pytest.mark.parametrize("solver", SCHEMES)
def test_copies_casts_and_modes_give_the_same_output(solver: str) -> None:
    net, u = layer(solver=solver), normal(3, 6, 2)
    expected = net(u)[0]
    other = layer(solver=solver)
    for parameter in other.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    assert not torch.equal(other(u)[0], expected)
    other.load_state_dict(net.state_dict())
    for same in (other, copy.deepcopy(net), net.eval(), net.train(), net.to(torch.float64)):
        assert torch.equal(same(u)[0], expected)
    cast = copy.deepcopy(net).float()
    assert_close(cast(u.float())[0].double(), expected, rtol=1e-4, atol=1e-5)  # float32
    assert_close(cast.to(torch.float64)(u)[0], expected, rtol=1e-5, atol=1e-6)  # rounded weights


def test_wrong_shapes_are_refused() -> None:
    net = layer()
    with pytest.raises(ShapeError, match=r"\(batch, time, m\) with m = 2.*got \(3, 6, 5\)"):
        net(normal(3, 6, 5))
    with pytest.raises(ShapeError, match="got \\(2,\\)"):
        net(normal(2))
    with pytest.raises(ShapeError, match="at least one step"):
        net(normal(3, 0, 2))
    with pytest.raises(ShapeError, match=r"h_0 must be \(1, 3, 7\); got \(3, 7\)"):
        net(normal(3, 6, 2), normal(3, 7))
    with pytest.raises(ShapeError, match=r"u must be \(batch, 2\)"):
        net.step(normal(3, 5), normal(3, 7))
    with pytest.raises(ShapeError, match="one dt for all samples"):
        layer(solver="rk4", interpolation="linear")(normal(3, 6, 2), dt=torch.full((3, 6), 0.1))
    with pytest.raises(CtrnnError, match="lengths"):
        net(normal(3, 6, 2), lengths=torch.tensor([7, 1, 1]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    u = normal(3, 6, 2)
    u[1, 4, 0] = bad
    with pytest.raises(DataError, match=r"must be finite.*\(1, 4, 0\)"):
        layer()(u)


@pytest.mark.parametrize(
    "settings", [{"solver": "nope"}, {"interpolation": "nope"}, {"dt": 0.0}, {"dt": float("nan")}]
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        CTRNN(2, field(), **settings)  # type: ignore[arg-type]


def test_the_classifier_reads_the_last_state_out() -> None:
    net = layer()
    model = SequenceClassifier(net, 4)
    u = normal(3, 6, 2)
    assert torch.equal(model(u), model.readout(net(u)[1][0]))
