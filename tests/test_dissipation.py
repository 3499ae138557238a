"""Weighted l2 gains of the layers of a stack: reached by what is linear, held by what is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ctrnn_assembly import SingularValueBounded, Subnetwork
from ctrnn_assembly.certificates.cascade import samples_until
from ctrnn_assembly.certificates.dissipation import (
    LayerSystem,
    _sector,
    forgetting,
    proven_storage,
    smallest_gain,
)
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.stack import Stack
from solver_problems import F64, gain_matrix, normal

LINEAR = {"norm": "none", "mix": "linear", "phi": "identity"}


def stack(seed=0, fields=None, width=4, **options):
    """In float64, in evaluation mode, with paths around the pairs and statistics of some data."""
    torch.manual_seed(seed)
    fields = fields or [Pairs(6, horizon=30.0) for _ in range(3)]
    net = Stack(2, width, fields, batch_first=True, **options).double()
    net(normal(16, 20, 2, seed=seed + 50))
    with torch.no_grad():
        for layer in net.layers:
            layer.d.normal_(std=0.3)
    return net.eval().requires_grad_(False)


def systems(net):
    return [layer.bound(1.0, net.solver).system for layer in net.layers]


def one_pair(w=0.0, frequency=0.0):
    """Linear but for slopes in [0, 1] of w: one pair, one input and output at its resonance."""
    turn = np.array([[np.cos(frequency), -np.sin(frequency)], [np.sin(frequency), np.cos(frequency)]])
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    B, C = np.array([[0.3], [0.1]]), np.array([[1.0, -0.5]])
    return LayerSystem(0.9 * turn, 0.1 * w * np.eye(2), B, C, zero, one, (0.0, 1.0), (1.0, 1.0))


def gain_at_all_frequencies(system, rho):
    z = rho * np.exp(1j * np.linspace(0, np.pi, 20001))[:, None, None]
    x = np.linalg.solve(z * np.eye(len(system.A)) - system.A, np.broadcast_to(system.B, (20001, 2, 1)))
    y = system.W @ (z * (system.C @ x) + system.D)  # of the new states
    return float(np.linalg.norm(y, axis=(1, 2)).max())


@pytest.mark.parametrize("rho", [1.0, 0.95])
@pytest.mark.parametrize("frequency", [0.0, 0.4])
def test_the_gain_of_a_linear_pair_is_its_largest_over_all_frequencies(frequency, rho):
    system = one_pair(frequency=frequency)
    exact = gain_at_all_frequencies(system, rho)
    assert proven_storage(system, rho, exact * 0.999) is None
    assert proven_storage(system, rho, exact * 1.2)[0] == exact * 1.2
    assert exact <= smallest_gain(system, rho)[0] <= 1.2 * exact


def test_the_gain_with_slopes_is_at_least_that_of_the_worst_constant_slope():
    system = one_pair(w=0.6)
    worst = gain_at_all_frequencies(replace(system, A=system.A + system.F), 0.98)
    assert proven_storage(system, 0.98, worst * 0.999) is None
    assert worst <= smallest_gain(system, 0.98)[0] <= 1.3 * worst
    assert smallest_gain(system, 0.959) is None  # the slope 1 is a pole at .96


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.129, 1.129), (1.0, 1.0)])
def test_sectors_hold_for_all_slopes_and_end_at_their_bounds(slopes):
    form = _sector(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), np.ones(1), slopes)
    low, high = slopes
    values = [np.array([1.0, s]) @ form @ np.array([1.0, s]) for s in np.linspace(low, high, 101)]
    assert min(values) >= -1e-15
    for outside in (low - 1e-6, high + 1e-6):
        assert np.array([1.0, outside]) @ form @ np.array([1.0, outside]) < 0


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_matrices_are_those_of_the_layer(norm):
    net = stack(fields=[Pairs(6, phi=None), Pairs(6, phi="identity")], **LINEAR | {"norm": norm})
    for layer, system in zip(net.layers, systems(net), strict=True):
        terms, root = layer.field.terms(), layer.field.tau.sqrt().numpy()
        s, x = normal(2, 5, 4, seed=1), normal(2, 5, 6, seed=2)
        v = layer.norm(s)
        ends = [net_step(layer, terms, v[k], x[k]) for k in range(2)]
        outs = [layer.out(s[k], v[k], ends[k]) - s[k] for k in range(2)]
        ds, dx = ((one[0] - one[1]).numpy().T for one in (s, x))
        dx = root[:, None] * dx
        ahead = (system.A + system.F) @ dx + system.B @ ds
        np.testing.assert_allclose(root[:, None] * (ends[0] - ends[1]).numpy().T, ahead, atol=1e-12)
        y = system.W @ (system.C @ ahead + system.D @ ds)
        np.testing.assert_allclose((outs[0] - outs[1]).numpy().T, y, atol=1e-12)


def net_step(layer, terms, v, x):
    from ctrnn_assembly.schemes import SCHEMES, affine_step

    return affine_step(SCHEMES["exponential-euler"], terms, 1.0)(layer.drive(v, terms.tau, 1.0), x)


@pytest.mark.parametrize("stretch", [2.0, 5.0])
def test_the_envelope_of_a_stretched_turn_is_what_it_reaches(stretch):
    turn = 0.9 * np.array([[0.0, -stretch], [1 / stretch, 0.0]])
    K, _ = forgetting([replace(one_pair(), A=turn)], 0.901)
    reached = max(np.linalg.norm(np.linalg.matrix_power(turn, t), 2) / 0.901**t for t in range(9))
    assert reached <= K <= 1.01 * reached


@pytest.mark.parametrize(
    ("seed", "options"),
    [(0, {}), (1, {}), (1, {"norm": "layer"}), (0, {"mix": "mlp", "norm": "rms"}), (1, LINEAR)],
)
def test_no_ascent_finds_differences_above_the_proven_envelope(seed, options):
    net = stack(seed=seed, **options)
    factor = max(gain_matrix([layer.bound(1.0, net.solver) for layer in net.layers]).diagonal())
    rho = 1 - 0.9 * (1 - factor)
    K, _ = forgetting(systems(net), rho)
    roots = torch.cat([layer.field.tau.sqrt() for layer in net.layers])
    steps, worst = 25, 0.0
    x, d = normal(8, net.state_size, seed=seed), normal(8, net.state_size, seed=seed + 1)
    u = normal(8, steps, 2, seed=seed + 2)
    free = [one.requires_grad_() for one in (x, d, u)]
    ascent = torch.optim.Adam(free, lr=0.05)
    for _ in range(15):
        parts = torch.cat([p / p.norm(dim=-1, keepdim=True) for p in d.split(net.layer_sizes, -1)], -1)
        both, ratios = torch.cat([x, x + 0.1 * parts / roots]), []
        for t in range(steps):
            both = net.step(u[:, t].repeat(2, 1), both)
            a, b = both.chunk(2)
            moved = (10 * (a - b) * roots).split(net.layer_sizes, -1)
            ratios.append(torch.stack([m.norm(dim=-1) for m in moved]).amax(0) / (K * rho ** (t + 1)))
        found = torch.stack(ratios).amax(0)
        worst = max(worst, float(found.detach().max()))
        ascent.zero_grad()
        (-found.log().sum()).backward()
        ascent.step()
    assert 0 < worst <= 1


def test_the_smaller_of_both_proofs_counts_and_other_stacks_keep_that_of_gamma():
    net = stack()
    gamma = gain_matrix([layer.bound(1.0, net.solver) for layer in net.layers])
    sharp, plain = net.certificate().cascade, net.certificate(search="none").cascade
    assert sharp.memory <= sharp.samples < plain.samples == samples_until(gamma, 1e-3)
    assert sharp.l2_gain < 0.9 * plain.l2_gain
    assert sharp.peak_gain == plain.peak_gain
    inside = [Subnetwork(SingularValueBounded("tanh"), 4, form="r")]
    for other in (
        stack(substeps=2),
        stack(one_field=True, norm="none"),
        stack(fields=inside, solver="imex"),
    ):
        fast, none = (other.certificate(search=search).cascade for search in ("fast", "none"))
        assert fast.samples == none.samples
    shorter = net.certificate(dt=0.5).cascade
    assert shorter.l2_gain >= shorter.peak_gain


def test_the_number_of_samples_holds_for_the_worst_start_of_a_linear_stack():
    net = stack(**LINEAR, fields=[Pairs(4, horizon=20.0, phi=None) for _ in range(3)])
    samples = int(net.certificate().cascade.samples)
    J = torch.func.jacrev(lambda x: net.step(torch.zeros(1, 2, dtype=F64), x[None])[0])(
        torch.zeros(net.state_size, dtype=F64)
    )
    roots = torch.cat([layer.field.tau.sqrt() for layer in net.layers])
    J = roots[:, None] * J / roots
    for t in (samples, samples + 50):
        power = torch.linalg.matrix_power(J, t)
        blocks = torch.stack([b for r in power.split(4, 0) for b in r.split(4, 1)]).view(3, 3, 4, 4)
        assert float(torch.linalg.matrix_norm(blocks, ord=2).sum(1).max()) <= 1e-3
