"""Given matrices: what is certified of them, of all within an uncertainty, and of `nn.RNN`."""

import numpy as np
import pytest
import torch

from cli_tools import Cli
from ctrnn_assembly import Uncertainty, certify
from ctrnn_assembly.certificates import terms_of
from ctrnn_assembly.certificates.given import uncertain
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.terms import Terms


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


@pytest.mark.parametrize("trials", [4, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("solver", SCHEMES)
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_no_system_within_the_uncertainty_is_slower_than_certified(place, solver, trials) -> None:
    """Vertices of the slopes, and of the uncertainty: balls and intervals, with coupling and without."""
    rng, certified = np.random.default_rng(3), 0
    for trial in range(trials):
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
        dt, how = float(rng.choice([0.03, 0.5, 1.0])), {"solver": solver, "search": "none"}
        found = certify(terms, metric, dt=dt, uncertainty=by, **how)
        certified += found.certified and found.step.certified
        assert certify(terms, metric, dt=dt, **how).rate >= found.rate
        for _ in range(60):
            W, moved = within(uncertain(terms, by), rng)
            slopes = torch.from_numpy(rng.choice([0.0, 1.0], 2 * n))
            rate, factor = exact(terms, W, moved, metric.theta(), dt, solver, slopes)
            assert rate >= found.rate
            if found.step.contraction_factor is not None:
                assert factor <= found.step.contraction_factor
    assert certified >= trials / 5
