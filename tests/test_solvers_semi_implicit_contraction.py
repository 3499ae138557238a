"""IMEX and exponential Euler contract whatever the coupling, to the equilibria of the field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ctrnn_assembly import AdaDiagTanh, Assembly, Subnetwork, couple
from ctrnn_assembly.schemes import SCHEMES, step_pair
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.terms import Terms
from solver_problems import DT, F64, hierarchy, mixed, normal, rng, uniform
from solver_problems import one_thread as one_thread

METHODS = ("imex", "exponential-euler")


@pytest.mark.parametrize("build", [uniform, mixed])
@pytest.mark.parametrize("dt", [0.03, 0.5, 10.0])
def test_the_implicit_factor_never_expands_in_the_metric(
    build: Callable[[], Assembly], dt: float
) -> None:
    net = build()
    terms = net.terms()
    with torch.no_grad():
        big = replace(terms, L=terms.L * 30)
        # With W = 0 and H = dt / tau, P + Q = R; the metric of the assembly is blkdiag(tau M).
        P, Q = step_pair(SCHEMES["imex"], big, torch.tensor(dt, dtype=F64))
        theta = net.metric().theta() * terms.tau.sqrt()
        balanced = theta @ (P + Q) @ torch.linalg.inv(theta)
        assert float(torch.linalg.matrix_norm(balanced, ord=2)) <= 1 + 1e-12
        wrong = replace(big, L=big.L + 2 * torch.eye(net.size, dtype=F64))
        P, Q = step_pair(SCHEMES["imex"], wrong, torch.tensor(0.03, dtype=F64))
        assert float(torch.linalg.matrix_norm(theta @ (P + Q) @ torch.linalg.inv(theta), ord=2)) > 1


def adadiag_pair(omega: float) -> Terms:
    """tanh, AdaDiag rate 0.5, coupling norm omega: the example of THEORY 6."""
    parts = [Subnetwork(AdaDiagTanh("tanh", margin=0.5), 8, generator=rng(1)) for _ in range(2)]
    terms = couple(parts, "all", generator=rng(2)).double().terms()
    L = terms.L.detach()  # type: ignore[union-attr]
    return replace(terms, L=L * omega / torch.linalg.matrix_norm(L, ord=2))


def test_euler_diverges_and_the_semi_implicit_maps_contract_at_the_own_step_factor() -> None:
    terms, steps = adadiag_pair(12.0), 1000
    assert float((terms.L + terms.L.mT).abs().max()) < 1e-6  # type: ignore[union-attr]
    with torch.no_grad():
        x0, u = normal(2, 16), normal(1, steps, 16, seed=1).expand(2, -1, -1)
        euler = solve(terms, x0, u=u, dt=DT).x
        assert float(euler[:, -1].norm() / euler[:, 0].norm()) > 1e10
        W = max(abs(float(w)) for block in terms.blocks for w in block.diagonal())
        factors = {
            # The W entries lie in [-W, W]: |1 - h + h d w| <= 1 - h + h W.
            "imex": 1 - DT + DT * W,
            "exponential-euler": math.exp(-DT) + (1 - math.exp(-DT)) * W,
        }
        for solver, factor in factors.items():
            x = solve(terms, x0, u=u, dt=DT, solver=solver).x
            distance = (x[0] - x[1]).norm(dim=-1)
            assert float((distance[1:] / distance[:-1])[distance[:-1] > 1e-8].max()) <= factor + 1e-6
            assert float(distance[-1]) < 1e-5
            assert float(x.abs().max()) < 100


@pytest.mark.parametrize("solver", METHODS)
@pytest.mark.parametrize("build", [uniform, mixed, hierarchy])
def test_fixed_points_are_the_equilibria_of_the_field(
    build: Callable[[], Assembly], solver: str
) -> None:
    net = build()
    with torch.no_grad():
        u = normal(2, 1, net.size, seed=1).expand(-1, 3000, -1)
        x = solve(net, normal(2, net.size), u=u, dt=0.1, solver=solver, save="last").last
        assert float(net.terms()(x, u[:, 0]).abs().max()) < 1e-10
        assert float(x.abs().max()) > 0.1
