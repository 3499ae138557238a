"""Given matrices: what is certified of them, of all within an uncertainty, and of `nn.RNN`."""

import itertools
import math
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from torch import nn

from cli_tools import Cli
from ctrnn_assembly import ConfigError, ShapeError, Uncertainty, certify
from ctrnn_assembly.certificates.certify import largest_uncertainty
from ctrnn_assembly.certificates.given import input_gain, terms_of, uncertain
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.terms import Terms
from stored_runs import strict_json


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "120")
    return Cli(capsys)


def hidden(n: int, norm: float, spread: float, seed: int = 0) -> np.ndarray:
    """D^-1 S D in an order of chance, ||S|| = norm."""
    rng = np.random.default_rng(seed)
    S = rng.standard_normal((n, n))
    d = np.exp(spread * rng.standard_normal(n))
    W, order = norm * S / np.linalg.norm(S, 2) * d / d[:, None], rng.permutation(n)
    return W[order][:, order]


def within(terms: Terms, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """W and L of chance at the edge of what the certificate is to hold for."""

    def moved(A: torch.Tensor, by: object) -> torch.Tensor:
        sign = torch.from_numpy(rng.choice([-1.0, 1.0], size=A.shape))
        if isinstance(by, torch.Tensor):
            return A + sign * by
        u, v = (torch.from_numpy(rng.standard_normal(len(A))) for _ in range(2))
        rank_one = torch.outer(u / u.norm(), v / v.norm())
        return A + by * (rank_one if rng.random() < 0.5 else sign / torch.linalg.matrix_norm(sign, 2))

    assert terms.within is not None
    W = torch.block_diag(*map(moved, terms.blocks, terms.within.W))
    L = torch.zeros_like(W) if terms.L is None else terms.L
    return W, moved(L, terms.within.L)


def exact(terms, W, L, theta, dt, solver, slopes):
    """Rate and factor in the metric at some slopes."""
    tau, n, D = terms.tau, terms.n, torch.diag(slopes)
    outside = terms.post.is_identity
    J = (W @ D if outside else D @ W) + L - torch.eye(n)
    A, P = SCHEMES[solver].pair(dt / tau, L)
    A, P = (X if X.ndim == 2 else torch.diag(X) for X in (A, P))
    step = A + P @ (W @ D if outside else D @ W)
    T = theta @ torch.diag(tau.sqrt())
    in_metric = T @ torch.diag(1 / tau) @ J @ torch.linalg.inv(T)
    rate = -float(torch.linalg.eigvalsh((in_metric + in_metric.mT) / 2)[-1])
    return rate, float(torch.linalg.matrix_norm(T @ step @ torch.linalg.inv(T), 2))


def some_metric(sizes: tuple[int, ...], dense: bool, rng: np.random.Generator) -> Metric:
    factors = []
    for n in sizes:
        diagonal = Factor.diagonal(torch.from_numpy(0.4 * rng.standard_normal(n)))
        theta = torch.diag(diagonal.theta) + 0.3 * torch.from_numpy(rng.standard_normal((n, n)))
        factors.append(Factor.dense(theta, torch.linalg.inv(theta)) if dense else diagonal)
    return Metric(tuple(factors))


@pytest.mark.parametrize("solver", SCHEMES)
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_no_system_within_the_uncertainty_is_slower_than_certified(place, solver) -> None:
    """Vertices of the slopes, and of the uncertainty: balls and intervals, with coupling and without."""
    rng, certified = np.random.default_rng(3), 0
    for trial in range(12):
        n = int(rng.integers(1, 4))
        blocks = [rng.uniform(0.1, 0.5) * hidden(n, 1, 0.1, seed=trial + k) for k in (0, 100)]
        if trial % 5 == 0:
            blocks = [np.diag(rng.uniform(-2, 0.6, n)) for _ in range(2)]
        K = rng.standard_normal((2 * n, 2 * n))
        L = None if trial % 3 == 0 else (K - K.T) * (0.2 if trial % 3 == 1 else 0)
        size, of_L = float(rng.choice([0.01, 0.05, 0.1])), rng.choice([0.0, 0.03])
        by = Uncertainty([abs(b) * size for b in blocks], of_L) if trial % 2 else size
        tau = 1.0 if trial % 4 < 2 else rng.uniform(0.5, 2, 2 * n)
        terms = terms_of(blocks, L, tau=tau, place=place, activation="relu")
        metric = some_metric(terms.sizes, trial % 4 == 0, rng)
        dt = float(rng.choice([0.03, 0.5, 1.0]))
        found = certify(terms, metric, dt=dt, solver=solver, uncertainty=by, search="none")
        certified += found.certified and found.step.certified
        assert certify(terms, metric, search="none").rate >= found.rate
        around = uncertain(terms, by)
        for _ in range(60):
            W, moved = within(around, rng)
            slopes = torch.from_numpy(rng.choice([0.0, 1.0], 2 * n))
            rate, factor = exact(terms, W, moved, metric.theta(), dt, solver, slopes)
            assert rate >= found.rate
            if found.step.contraction_factor is not None:
                assert factor <= found.step.contraction_factor
    assert certified >= 3


@pytest.mark.parametrize("solver", SCHEMES)
@pytest.mark.parametrize("which", ["radius", "widths", "L"])
def test_the_bounds_of_one_or_two_units_are_those_of_the_worst(which: str, solver: str) -> None:
    """Where the norms in the proofs are reached: nothing of what is uncertain may be left out."""
    for w in (0.5, -1.5):
        worst = torch.tensor([[0.1]], dtype=torch.float64)
        if which == "L":
            terms, by = terms_of([[[w]], [[w]]], activation="relu"), Uncertainty(0, 0.1)
            worst = 0.1 * torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        else:
            terms, by = terms_of([[w]], activation="relu"), 0.1
            by = by if which == "radius" else np.array([[0.1]])
        W, eye = torch.block_diag(*terms.blocks), torch.eye(terms.n, dtype=torch.float64)
        for dt in (0.05, 0.6):
            found = certify(terms, dt=dt, solver=solver, uncertainty=by, search="none")
            for sign, slope in itertools.product((-1, 1), (0.0, 1.0)):
                W_there = W if which == "L" else W + sign * worst
                L = sign * worst if which == "L" else 0 * eye
                there = exact(terms, W_there, L, eye, dt, solver, slope * torch.ones(terms.n).double())
                assert there[0] >= found.rate
                assert there[1] <= found.step.contraction_factor
            assert found.rate == pytest.approx(0.4 if w > 0 else 0.9, abs=0.15)


def test_only_another_metric_proves_a_hidden_scaling() -> None:
    W = hidden(6, 0.9, 1.0)
    assert np.linalg.norm(W, 2) > 1
    for place in ("outside", "inside"):
        assert not certify(W, search="none", place=place).certified
        found = certify(torch.from_numpy(W), tau=2.0, dt=0.03, place=place)
        assert found.certified
        assert found.step.certified
        assert found.metric.condition_number > 1
        assert found.rate == pytest.approx(certify(W, place=place).rate / 2, rel=1e-6)


@pytest.mark.slow
def test_three_hundred_units_in_half_a_minute(cli: Cli, tmp_path: Path) -> None:
    W = hidden(300, 0.9, 1.0)
    np.savez(tmp_path / "net.npz", W=W)
    begun = time.process_time()
    found = strict_json(cli("certify", "--weights", tmp_path / "net.npz", "--json").out)
    assert time.process_time() - begun < 30
    assert np.linalg.norm(W, 2) > 10
    assert found["certified"]
    assert found["discrete"]["certified"]
    assert found["metric"]["condition_number"] > 1


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_states_stay_as_near_as_the_input_gain_says(place: str) -> None:
    rng = np.random.default_rng(0)
    terms = terms_of(hidden(5, 0.9, 0.5), tau=rng.uniform(0.5, 2, 5), activation="selu", place=place)
    terms = terms_of([0.3 * W for W in terms.blocks], tau=terms.tau, activation="selu", place=place)
    gain, distance = input_gain(terms, certify(terms)), 0.0
    u = torch.from_numpy(rng.standard_normal((2, 5)))
    x = torch.zeros(2, 5, dtype=torch.float64)
    for _ in range(2000):
        x = x + 0.02 * terms(x, u)
        distance = max(distance, float((x[0] - x[1]).norm()))
    assert 0 < distance <= gain * float((u[0] - u[1]).norm())
    assert input_gain(terms_of(np.eye(2)), certify(np.eye(2))) == math.inf


def test_the_largest_uncertainty_is_certified_and_no_more() -> None:
    terms = terms_of(hidden(4, 0.5, 0.2), np.zeros((4, 4)))
    metric, how = certify(terms).metric.matrix, {"dt": 0.5, "search": "none"}
    for dt in (None, 0.5):
        how["dt"] = dt
        times = largest_uncertainty(terms, metric, 0.01, dt=dt)
        assert times > 1
        for share, holds in ((0.999, True), (1.01, False)):
            found = certify(terms, metric, uncertainty=0.01 * times * share, **how)
            assert (found.certified and (dt is None or found.step.certified)) is holds
    assert largest_uncertainty(terms, metric, 0.0) == math.inf
    # Reached by a linear unit: x' = -x + (.5 + d) x.
    unit = terms_of([[0.5]], activation="identity")
    for by in (1.0, 1e-30):  # of which rounding hides what once it costs
        times = largest_uncertainty(unit, certify(unit).metric.matrix, by)
        assert times * by == pytest.approx(0.5, rel=1e-4)
    for by in (1e-310, 5e-324):  # of which a finite number of times costs less than rounding
        assert 1e300 < largest_uncertainty(unit, certify(unit).metric.matrix, by) < math.inf


def moved_rnn(net: nn.RNN, slopes: list[torch.Tensor]) -> torch.Tensor:
    """The Jacobian of all layers' states in one sample, at slopes of each layer."""
    n, rows = net.hidden_size, []
    below = torch.zeros(n, n * net.num_layers)
    for k, slope in enumerate(slopes):
        row = torch.zeros(n, n * net.num_layers)
        row[:, k * n : (k + 1) * n] = getattr(net, f"weight_hh_l{k}")
        if k:
            row = row + getattr(net, f"weight_ih_l{k}") @ below
        below = slope[:, None] * row
        rows.append(below)
    return torch.cat(rows)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_is_certified_as_torch_computes_it(nonlinearity: str) -> None:
    net = nn.RNN(3, 6, 2, nonlinearity=nonlinearity, dtype=torch.float64)
    for k in (0, 1):
        W = torch.from_numpy(hidden(6, 0.8, 0.7, seed=k))
        getattr(net, f"weight_hh_l{k}").data.copy_(W)
    found = certify(net)
    assert found.certified
    assert found.of_map
    assert str(found).startswith("certified: the map h -> phi(W h + u)")
    rng = np.random.default_rng(1)
    growth = found.metric.condition_number**0.5
    with torch.no_grad():
        for T in (1, 5, 20):  # any products of vertices of the slopes
            for _ in range(40):
                P = torch.eye(12)
                for _ in range(T):
                    P = moved_rnn(net, [*torch.from_numpy(rng.choice([0.0, 1.0], (2, 6)))]) @ P
                assert torch.linalg.matrix_norm(P, 2) <= growth * found.step.contraction_factor**T
        u, h = torch.randn(60, 1, 3, dtype=torch.float64), 3 * torch.randn(2, 2, 1, 6).double()
        x, y = (net(u, start)[1] for start in h)
    begun = float((h[0] - h[1]).norm())
    assert float((x - y).norm()) <= growth * found.step.contraction_factor**60 * begun


def test_a_dense_metric_proves_more_than_any_diagonal_one() -> None:
    """A rotation and decay whose weights cancel within rows; never below the exact factor."""
    rng, proven = np.random.default_rng(0), 0
    for _ in range(12):
        W = torch.from_numpy(rng.standard_normal((2, 2)))
        W = W * 0.9 / torch.linalg.eigvals(W).abs().max()
        net = nn.RNN(1, 2, dtype=torch.float64)
        net.weight_hh_l0.data.copy_(W)
        found = certify(net)
        if not found.certified:
            continue
        proven += found.metric.kind == "dense"
        theta = found.metric.matrix.theta().double()
        for slopes in itertools.product([0.0, 1.0], repeat=2):
            J = theta @ (torch.tensor(slopes)[:, None] * W) @ torch.linalg.inv(theta)
            assert torch.linalg.matrix_norm(J, 2) <= found.step.contraction_factor * (1 + 1e-12)
    assert proven >= 1


def test_what_is_not_known_of_torch_nets_is_said() -> None:
    for kind in (nn.GRU, nn.LSTM):
        assert f"no certificate is defined for {kind.__name__}" in certify(kind(2, 3)).reasons[0]
    assert "bidirectional" in certify(nn.RNN(2, 3, bidirectional=True)).reasons[0]
    assert ".eval()" in certify(nn.RNN(2, 3, 2, dropout=0.1)).reasons[0]
    net = nn.RNN(2, 3)
    net.weight_hh_l0.data[0, 0] = math.nan
    assert "NaN" in certify(net).reasons[0]
    net.weight_hh_l0.data.copy_(1.2 * torch.eye(3))
    assert "no constant metric can show contraction" in certify(net).reasons[0]
    net.register_forward_hook(lambda *_: None)
    assert "hooks" in certify(net).reasons[0]
    assert certify(nn.RNN(2, 3, nonlinearity="relu").eval()).step.dt == 1
    with pytest.raises(ShapeError, match=r"got 2 values.* np.repeat\(tau, sizes\)"):
        certify([np.eye(2), np.eye(2)], tau=np.array([1.0, 2.0]))
    with pytest.raises(ConfigError, match="its own weights"):
        certify(nn.RNN(2, 3), uncertainty=0.1)


def test_files_of_every_kind_say_the_same(cli: Cli, tmp_path: Path) -> None:
    W, tau = 0.3 * hidden(4, 1.0, 0.2), np.array([1.0, 2, 3, 4])
    np.savez(tmp_path / "a.npz", W=W, tau=tau, L=np.zeros((4, 4)))
    scipy.io.savemat(tmp_path / "b.mat", {"W": scipy.sparse.csc_matrix(W), "tau": tau})
    np.savez(tmp_path / "c.npz", W0=W, tau=tau)
    np.save(tmp_path / "d.npy", W)
    np.savetxt(tmp_path / "e.csv", W, delimiter=",")
    rates = []
    for name in ("a.npz", "b.mat", "c.npz", "d.npy", "e.csv"):
        done = cli("certify", "--weights", tmp_path / name, "--json")
        found = strict_json(done.out)
        assert done.code == 0
        assert found["input_gain"] > 0
        assert found["discrete"]["dt"] == 0.03
        rates.append(found["rate"])
    expected = [certify(W, tau=times).rate for times in (tau, tau, tau, 1, 1)]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_the_command_says_for_which_uncertainty_it_is(cli: Cli, tmp_path: Path) -> None:
    W = 0.3 * hidden(2, 1.0, 0.2)
    np.save(tmp_path / "W.npy", W)
    given = ("certify", "--weights", tmp_path / "W.npy", "--uncertainty=1%")
    found = strict_json(cli(*given, "--json").out)
    assert found["rate"] == pytest.approx(certify(W, uncertainty=0.01 * abs(W)).rate, rel=1e-9)
    assert found["largest_uncertainty"] > 1
    shown = cli(*given, "--plot", tmp_path / "x.png").out
    assert "input to state" in shown
    assert "for all W and L within the uncertainty" in shown
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


BAD = {
    "nan.npz": ({"W": np.diag([0.0, np.nan])}, "W must be finite; got nan at index (1, 1)"),
    "wide.npz": ({"W": np.zeros((2, 3))}, "must be square"),
    "L.npz": ({"W": np.zeros((2, 2)), "L": np.zeros((3, 3))}, "L must be (2, 2)"),
    "tau.npz": ({"W": np.zeros((2, 2)), "tau": np.zeros(2)}, "tau must be"),
    "more.npz": ({"W": np.zeros((2, 2)), "V": np.zeros(2)}, "got 'V'"),
    "gap.npz": ({"W0": np.zeros((2, 2)), "W2": np.zeros((2, 2))}, "got 'W2'"),
    "none.npz": ({"L": np.zeros((2, 2))}, "must hold W"),
    "objects.npz": ({"W": np.array([1, None], dtype=object)}, "never loaded"),
    "complex.npz": ({"W": np.eye(2) * 1j}, "real numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_files_are_refused_in_a_sentence(cli: Cli, tmp_path: Path, name: str) -> None:
    arrays, said = BAD[name]
    np.savez(tmp_path / name, **arrays)
    assert said in cli.refuses("certify", "--weights", tmp_path / name)


def test_bytes_that_are_no_file_of_numbers_are_refused(cli: Cli, tmp_path: Path) -> None:
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    files = {"a.mat": b"junk" * 99, "a.npz": b"PKjunk", "a.csv": b"a,b", "a.txt": b"1", "empty.csv": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert name in cli.refuses("certify", "--weights", tmp_path / name)
    (tmp_path / "b.mat").write_bytes(header + bytes(600))
    assert "v7.3" in cli.refuses("certify", "--weights", tmp_path / "b.mat")
    assert "numbers and commas alone" in cli.refuses("certify", "--weights", tmp_path / "a.csv")
    assert "holds something" in cli.refuses("certify", "--weights", tmp_path / "not-there.csv")
    (tmp_path / "c.csv").write_text("0.1,0\n#0,0.1\n0,0.2\n")  # a row is not dropped, nor W another one
    assert "'#0'" in cli.refuses("certify", "--weights", tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("1,2\n3\n")
    assert "from 2 to 1 at row 2. A .csv" in cli.refuses("certify", "--weights", tmp_path / "d.csv")
    assert "--weights" in cli.refuses("certify")
    assert "by --weights FILE" in cli.refuses("certify", tmp_path / "a.npz")
    assert "--tau is of --weights" in cli.refuses("certify", "digits", "--tau=0")
    np.save(tmp_path / "W.npy", np.zeros((2, 2)))
    wrong = {
        "--uncertainty=x": "1%",
        "--tau=-1": "positive",
        "--dt=-1": "positive",
        "--substeps=2": "a run",
    }
    for setting, said in wrong.items():
        assert said in cli.refuses("certify", "--weights", tmp_path / "W.npy", setting)
