"""The frozen sparse modules: sampler, metric, files; and the published construction."""

import numpy as np
import pytest
import torch

from ctrnn_assembly.contracting import PublishedSparse, SparseAbsolute
from ctrnn_assembly.contracting.interface import raw_tensors
from ctrnn_assembly.contracting.theorem1 import sparse_uniform
from ctrnn_assembly.errors import ConfigError, ContractionError
from ctrnn_assembly.subnetwork import Subnetwork
from oracles import absolute_radius, array, worst_rate


def test_frozen_module_trains_its_bias_only() -> None:
    for rule in (SparseAbsolute("tanh"), PublishedSparse()):
        module = Subnetwork(rule, 32)
        assert [name for name, _ in module.named_parameters()] == ["bias"]
        buffers = dict(module.named_buffers())
        assert all(any(raw is b for b in buffers.values()) for raw in raw_tensors(module))
        saved = {name.rsplit(".", 1)[-1] for name in module.state_dict()}
        assert saved >= ({"original0", "original1"} if rule.rate else {"original0"})
        assert not module.weight.requires_grad


def test_draw_has_the_exact_number_of_positions_and_the_bound() -> None:
    n, density, magnitude = 32, 0.033, 6.0
    counts = []
    for seed in range(200):
        W = sparse_uniform(n, density, magnitude, torch.Generator().manual_seed(seed))
        counts.append(int((W != 0).sum()))
        assert not W.diagonal().any()
        assert W.abs().max() <= magnitude
    assert max(counts) == 34  # round(.033 * 32^2), reached by a third of the draws
    # Each position falls on the diagonal with probability 1/32; 4 standard errors.
    assert np.mean(counts) == pytest.approx(34 * 31 / 32, abs=0.3)
    full = sparse_uniform(n, 1.0, magnitude)
    assert int((full != 0).sum()) == n * n - n
    assert float(full.max()) > 0.95 * magnitude
    assert float(full.min()) < -0.95 * magnitude


def test_sample_is_reproducible_by_its_generator() -> None:
    rule = SparseAbsolute("tanh", density=0.1, magnitude=0.5)
    one, two, other = (rule.sample(16, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


# THEORY section 8, n = 32: P(rho(|W|) < 1). 500 draws; four standard errors and the table's .02.
@pytest.mark.parametrize(
    ("density", "magnitude", "expected"),
    [(0.10, 0.5, 1.0), (0.10, 1.0, 0.0), (0.033, 2.0, 0.60), (0.033, 6.0, 0.32)],
)
def test_acceptance_share_of_the_draws(density: float, magnitude: float, expected: float) -> None:
    draws = [array(sparse_uniform(32, density, magnitude)) for _ in range(500)]
    share = np.mean([absolute_radius(W) < 1 for W in draws])
    tolerance = 0.02 + 4 * (expected * (1 - expected) / 500) ** 0.5
    assert share == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("magnitude", "max_condition"), [(0.5, 1e2), (1.0, 1e2), (2.0, 1e4), (6.0, 1e6)]
)
def test_accepted_metric_is_well_conditioned(magnitude: float, max_condition: float) -> None:
    rule = SparseAbsolute("relu", magnitude=magnitude, max_condition=max_condition)
    for _ in range(5):
        theta = array(Subnetwork(rule, 32).metric().factors[0].theta)
        assert (theta.max() / theta.min()) ** 2 <= max_condition
        assert np.prod(theta) == pytest.approx(1, rel=1e-9)  # det M = 1


def test_impossible_setting_names_itself() -> None:
    rule = SparseAbsolute("relu", density=0.9, magnitude=30.0, tries=10)
    with pytest.raises(ContractionError, match=r"density 0\.9 and magnitude 30"):
        rule.sample(16)


def test_rescale_mode_enters_the_set_at_any_setting() -> None:
    rule = SparseAbsolute("relu", density=0.9, magnitude=30.0, outside_set="rescale", margin=0.2)
    W = array(Subnetwork(rule, 8).weight)
    assert absolute_radius(W) == pytest.approx(0.9 * rule.radius, rel=1e-9)
    theta = array(rule.right_inverse(torch.from_numpy(W))[1])
    assert worst_rate(W, np.diag(np.exp(2 * theta))) >= 0.2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"density": 0.0}, ConfigError),
        ({"density": 1.1}, ConfigError),
        ({"magnitude": 0.0}, ConfigError),
        ({"magnitude": float("nan")}, ConfigError),
        ({"max_condition": 1.0}, ConfigError),
        ({"outside_set": "shrink"}, ConfigError),
        ({"densities": 0.1}, ConfigError),
    ],
)
def test_bad_settings_are_refused(options: dict[str, float], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        SparseAbsolute("relu", **options)


def test_loading_a_weight_that_contracts_too_slowly_is_refused() -> None:
    options = {"density": 0.5, "magnitude": 1.0, "outside_set": "rescale"}
    slow = Subnetwork(SparseAbsolute("tanh", margin=0.01, **options), 8)
    fast = Subnetwork(SparseAbsolute("tanh", margin=0.9, **options), 8)
    with pytest.raises(ContractionError, match="Theorem 1"):
        fast.load_state_dict(slow.state_dict())
    slow.load_state_dict(fast.state_dict())
    state = slow.state_dict()
    state["parametrizations.weight.original1"] = 9 * torch.randn(8)  # not the metric of W
    with pytest.raises(ContractionError, match="Theorem 1"):
        slow.load_state_dict(state)


def test_loading_keeps_the_metric_that_the_couplings_were_trained_with() -> None:
    options = {"density": 0.5, "magnitude": 1.0, "outside_set": "rescale"}
    saved = Subnetwork(SparseAbsolute("tanh", margin=0.3, **options), 8)
    loaded = Subnetwork(SparseAbsolute("tanh", margin=0.1, **options), 8)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.metric().matrix(), saved.metric().matrix())


def test_published_module_does_not_contract_in_the_published_metric() -> None:
    """THEORY E10: at 32 units a single slope vertex, all active, already grows in M = I."""
    for seed in range(8):
        rule = PublishedSparse()
        W = array(Subnetwork(rule, 32, generator=torch.Generator().manual_seed(seed)).weight)
        assert absolute_radius(W) < 0.2  # the unshrunk weight was accepted below 1
        assert np.abs(W).max() > 3
        assert worst_rate(W, np.eye(32), slope=(1.0, 1.0)) < 0
    small = array(PublishedSparse(density=0.2, magnitude=6.0).sample(6))
    assert worst_rate(small, np.eye(6)) < 0
