"""Effective depth against the sum over all 2^L products, and against autograd."""

from __future__ import annotations

from itertools import pairwise, product
from math import comb

import pytest
import torch
from torch import Tensor, nn

from ctrnn_assembly.diagnostics.gradients import effective_depth_of_gradient
from ctrnn_assembly.errors import ConfigError


def effective_depth(S, R, g: Tensor | None = None, *, tol: float = 1e-6) -> tuple[int, Tensor]:
    """Of matrices (..., n_t, n_{t-1}), the first layer first; without g of the whole Jacobian."""
    eye = torch.eye(S[-1].shape[-2]).expand(*S[-1].shape[:-2], -1, -1)
    vjps = [lambda V, s=s, r=r: (V @ s, V @ r) for s, r in zip(S, R, strict=True)]
    return effective_depth_of_gradient(vjps, eye if g is None else g[..., None, :], tol=tol)


def expansion(S: list[Tensor], R: list[Tensor]) -> Tensor:
    """C_0..C_L by writing out every product, (L + 1, n_L, n_0)."""
    C = torch.zeros(len(S) + 1, S[-1].shape[0], S[0].shape[1])
    for choice in product((0, 1), repeat=len(S)):
        term = torch.eye(S[0].shape[1])
        for s, r, residual in zip(S, R, choice, strict=True):
            term = (r if residual else s) @ term
        C[sum(choice)] += term
    return C


def shares(C: Tensor) -> Tensor:
    tails = torch.stack([C[k:].sum(0).norm() for k in range(len(C))])
    return tails / tails[0]


def parts(sizes: list[int], scale: float) -> tuple[list[Tensor], list[Tensor]]:
    S = [torch.randn(b, a) for a, b in pairwise(sizes)]
    return S, [scale * torch.randn_like(s) for s in S]


@pytest.mark.parametrize(("r", "depth"), [(0.01, 6), (0.1, 17), (1.0, 41)])
def test_oracle_34_identity_plus_a_multiple(r, depth):
    eye = torch.eye(3).expand(50, 3, 3)
    assert effective_depth(eye, r * eye)[0] == depth
    assert effective_depth(eye, r * eye, torch.randn(3))[0] == depth
    terms = torch.tensor([comb(50, k) * r**k for k in range(51)])
    expected = terms.flip(0).cumsum(0).flip(0) / (1 + r) ** 50
    torch.testing.assert_close(effective_depth(eye, r * eye)[1], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("sizes", [[3] * 8, [5, 2, 4, 4, 1, 3]])
def test_the_recursion_is_the_sum_over_all_products(sizes):
    S, R = parts(sizes, 0.2)
    C = expansion(S, R)
    torch.testing.assert_close(effective_depth(S, R)[1], shares(C), rtol=1e-9, atol=1e-14)
    g = torch.randn(sizes[-1])
    found = effective_depth(S, R, g)
    torch.testing.assert_close(found[1], shares(C.mT @ g), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_deeper_terms_than_the_effective_depth_do_not_matter(tol):
    S, R = parts([4] * 9, 0.03)
    found, C = effective_depth(S, R, tol=tol), expansion(S, R)
    whole = C.sum(0)
    assert (whole - C[: found[0]].sum(0)).norm() > tol * whole.norm()
    assert (whole - C[: found[0] + 1].sum(0)).norm() <= tol * whole.norm()


def test_samples_are_blocks_of_one_jacobian():
    S, R = torch.randn(5, 6, 3, 3), 0.1 * torch.randn(5, 6, 3, 3)  # 5 layers, 6 samples
    C = torch.stack([expansion(list(S[:, b]), list(R[:, b])) for b in range(6)], 1)
    torch.testing.assert_close(effective_depth(S, R)[1], shares(C), rtol=1e-9, atol=0)
    g = torch.randn(6, 3)
    found = effective_depth(S, R, g)
    rows = (g[:, None, :] @ C)[..., 0, :]
    torch.testing.assert_close(found[1], shares(rows), rtol=1e-9, atol=0)


def test_only_skips_and_only_residuals():
    S, R = parts([4] * 8, 1.0)
    nothing = [torch.zeros(4, 4)] * 7
    assert effective_depth(S, nothing)[0] == 0
    assert effective_depth(nothing, R)[0] == 7
    silent = effective_depth(nothing, nothing)
    assert silent[0] == 0
    assert bool(silent[1].isnan().all())


def test_terms_that_cancel_have_shares_above_one():
    eye = torch.eye(2).expand(10, 2, 2)
    found = effective_depth(eye, -0.9 * eye)
    assert float(found[1].max()) > 1e9
    assert found[0] == 10


def test_a_long_chain_does_not_overflow():
    S, R = 40 * torch.eye(3).expand(500, 3, 3), 4 * torch.eye(3).expand(500, 3, 3)
    found = effective_depth(S, R)
    assert bool(found[1].isfinite().all())
    # binomial with 500 draws of 4 / 44: mean 45, deviation 6.4; 1e-6 is 5 to 6 deviations away
    assert 70 < found[0] < 90


def test_operators_serve_layers_that_couple_samples():
    """With batch norm: the shares of operators against those of the dense batch Jacobians."""
    weights = [torch.randn(3, 3) for _ in range(4)]
    changes = [0.05 * torch.randn(3, 3) for _ in range(4)]
    x, S, R, pulls = torch.randn(5, 3), [], [], []
    norm = nn.BatchNorm1d(3, affine=False, track_running_stats=False)

    def pull(z: Tensor, y: Tensor, initial: Tensor, change: Tensor):
        def back(V: Tensor) -> tuple[Tensor, Tensor]:
            (q,) = torch.autograd.grad(y, z, V, retain_graph=True, is_grads_batched=True)
            return q @ initial, q @ change

        return back

    for initial, change in zip(weights, changes, strict=True):
        z = (x @ (initial + change).mT).requires_grad_()
        y = torch.tanh(norm(z))
        pulls.append(pull(z, y, initial, change))
        J = torch.autograd.functional.jacobian(lambda z: torch.tanh(norm(z)), z).reshape(15, 15)
        S.append(J @ torch.block_diag(*[initial] * 5))
        R.append(J @ torch.block_diag(*[change] * 5))
        x = y.detach()
    g = torch.randn(5, 3)
    found = effective_depth_of_gradient(pulls, g)
    dense = effective_depth(S, R, g.flatten())
    torch.testing.assert_close(found[1], dense[1], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: effective_depth([torch.eye(2)], [torch.eye(2)], tol=0), "tol"),
        (lambda: effective_depth_of_gradient([], torch.ones(2)), "vjps"),
    ],
)
def test_refusals_say_what_and_how(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
