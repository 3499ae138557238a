"""`SCHEMES`: the pair of every row against independent formulas, and the step that is made of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close

from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.linalg import exponential, plain_exponential, remembered
from ctrnn_assembly.models import build_model
from ctrnn_assembly.schemes import SCHEMES, affine_step, integrate, step_pair
from ctrnn_assembly.terms import Edge, Terms
from solver_problems import F64, normal, one_module, order, rng
from solver_problems import one_thread as one_thread

N = 6


def steps() -> Tensor:
    """h = dt / tau of three steps, another one in every unit."""
    return 0.05 + torch.rand(3, N, generator=rng(1), dtype=F64)


def expected(name: str, h: Tensor, L: Tensor) -> tuple[Tensor, Tensor]:
    """A and C of one step from their definitions, the integral by an augmented exponential."""
    eye, H = torch.eye(N, dtype=F64), torch.diag(h)
    if name == "euler":
        return eye + H @ (L - eye), H
    if name == "imex":
        R = torch.linalg.inv(eye - H @ L)
        return R @ (eye - H), R @ H
    big = np.zeros((2 * N, 2 * N))
    big[:N, :N], big[:N, N:] = H @ (L - eye), H
    both = torch.from_numpy(expm(big))  # [[exp(G), integral of exp(s G) ds H], [0, I]]
    return both[:N, :N], both[:N, N:]


@pytest.mark.parametrize("name", SCHEMES)
def test_a_pair_is_its_definition(name: str) -> None:
    h, L = steps(), normal(N, N, seed=2)
    A, C = SCHEMES[name].pair(h, L)
    C = C if C.ndim == 3 else torch.diag_embed(C)
    for k in range(3):
        for found, wanted in zip((A[k], C[k]), expected(name, h[k], L), strict=True):
            # 1e-11: what torch's matrix exponential reaches for some norms.
            assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("made", [exponential, plain_exponential])
@pytest.mark.parametrize("h", [1.0, 10.0, 100.0, 3000.0])
def test_long_steps_of_a_strong_feedback_are_exact_to_rounding(made, h: float) -> None:
    """In the basis of K = -K^T, L = T^-1 K T: steps certified for every dt must not grow by rounding."""
    K, T = 30 * normal(N, N, seed=2), torch.linspace(0.5, 3, N, dtype=F64)
    values, V = torch.linalg.eig(K - K.mT)
    G = h * ((K - K.mT) * T / T[:, None] - torch.eye(N, dtype=F64))
    lam = h * (values - 1)
    basis, back = V / T[:, None], V.mH * T
    for found, wanted in zip(made(G), (lam.exp(), torch.expm1(lam) / lam), strict=True):
        # Phases h omega round by 1e-16 of themselves.
        assert_close(found, ((basis * wanted) @ back).real, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_pair_has_the_fixed_points_of_the_field(name: str) -> None:
    # A x + C g = x wherever x = L x + g, exactly if A - I = C (L - I).
    h, L, eye = steps(), normal(N, N, seed=2), torch.eye(N, dtype=F64)
    A, C = SCHEMES[name].pair(h, L)
    C = C if C.ndim == 3 else torch.diag_embed(C)
    assert_close(A - eye, C @ (L - eye), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_zero_coupling_is_no_coupling(name: str) -> None:
    h = steps()
    coupled = SCHEMES[name].pair(h, torch.zeros(N, N, dtype=F64))
    for found, alone in zip(coupled, SCHEMES[name].pair(h, None), strict=True):
        assert alone.ndim == 2
        found = found if found.ndim == 3 else torch.diag_embed(found)
        assert_close(found, torch.diag_embed(alone), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("coupled", [True, False])
def test_the_increment_is_the_pair_less_the_identity(coupled: bool) -> None:
    increment = SCHEMES["euler"].increment
    assert increment is not None
    L = normal(N, N, seed=2) if coupled else None
    (A, C), (dA, dC) = SCHEMES["euler"].pair(steps(), L), increment(steps(), L)
    assert_close(A, dA + (torch.eye(N, dtype=F64) if coupled else 1), rtol=1e-13, atol=1e-13)
    assert torch.equal(C, dC)
    double, _ = increment(2 * steps(), L)
    assert_close(double, 2 * dA, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", SCHEMES)
def test_the_pair_of_the_metrics_coordinates_is_that_step(name: str) -> None:
    theta, L = normal(N, N, seed=3), normal(N, N, seed=2)
    h = torch.full((N,), 0.3, dtype=F64)
    inside = SCHEMES[name].pair(h, theta @ L @ torch.linalg.inv(theta))
    for found, plain in zip(inside, SCHEMES[name].pair(h, L), strict=True):
        found, plain = (m if m.ndim == 2 else torch.diag(m) for m in (found, plain))
        assert_close(found, theta @ plain @ torch.linalg.inv(theta), rtol=1e-10, atol=1e-10)


def spread(kind: str, size: float) -> torch.Tensor:
    """Matrices (2, N, N) of one norm: any, skew, far from normal, and singular."""
    G = torch.stack([normal(N, N, seed=5), normal(N, N, seed=6)])
    if kind == "skew":
        G = G - G.mT
    if kind == "triangular":
        G = G.triu(1) * 10.0 ** torch.arange(N, dtype=F64)
    if kind == "singular":
        G[:, 0] = 0
    return size * G / torch.linalg.matrix_norm(G, 2)[:, None, None]


@pytest.mark.parametrize("size", [0.0, 1e-9, 0.3, 3.0, 40.0])
@pytest.mark.parametrize("kind", ["any", "skew", "triangular", "singular"])
def test_the_exponential_is_torchs_exponential_with_its_gradient(kind: str, size: float) -> None:
    G, weights = spread(kind, size).requires_grad_(), normal(2, 2, N, N, seed=7)
    pairs = [torch.stack(f(G)) for f in (exponential, plain_exponential)]
    assert_close(*pairs, rtol=0, atol=1e-12 * float(pairs[1].detach().norm()))
    slopes = [torch.autograd.grad((pair * weights).sum(), G)[0] for pair in pairs]
    assert_close(*slopes, rtol=0, atol=1e-11 * float(slopes[1].norm()))


def test_the_exponential_is_differentiated_twice() -> None:
    assert torch.autograd.gradgradcheck(
        exponential, spread("any", 2.0)[0, :3, :3].clone().requires_grad_()
    )


def test_what_is_remembered_is_of_these_values_and_never_in_the_way_of_a_gradient() -> None:
    calls, G = list[int](), normal(3, 3, seed=8)

    def f(G: Tensor, power: int) -> Tensor:
        calls.append(power)
        return torch.linalg.inv(G) ** power

    once = remembered(f)
    with torch.inference_mode():
        found = once(G, 2)
        assert once(G.clone(), 2) is found
        assert len(calls) == 1
    with torch.no_grad():
        others = [once(G, 3), once(G.float(), 3), once(G.add_(1e-15), 3)]  # in place: other values
        assert len(calls) == 4
        found = once(G, 2)
        assert_close(found, torch.linalg.inv(G) ** 2, rtol=0, atol=0)
        with forward_ad.dual_level():  # the same values with a tangent
            dual = forward_ad.make_dual(G, torch.ones_like(G))
            assert forward_ad.unpack_dual(once(dual, 2)).tangent is not None
        vmapped = torch.func.vmap(lambda G: once(G, 2))(G[None])
        assert_close(vmapped[0], found, rtol=0, atol=1e-12)
    assert all(not x.is_inference() for x in others)
    assert not found.is_inference()
    G.requires_grad_()
    assert once(G, 2).requires_grad
    assert not found.requires_grad
    with torch.no_grad():
        assert once(torch.full((3, 3), math.nan), 1).isnan().all()


@pytest.mark.parametrize("solver", ["imex", "exponential-euler"])
@pytest.mark.parametrize("coupling", ["all", "random:2"])
def test_an_evaluation_sees_weights_that_changed_between_two_batches(solver: str, coupling: str) -> None:
    sizes = {"modules": 4, "units": 8, "coupling": coupling, "solver": solver}
    net, u = build_model("svd-combo", 1, 3, **sizes), normal(2, 5, 1)
    with torch.inference_mode():
        first, again = net(u), net(u)
    assert torch.equal(first, again)
    with torch.no_grad():
        for weight in net.core.field.parameters():
            weight.mul_(1.3)
    with torch.inference_mode():
        changed = net(u)
    assert not torch.equal(first, changed)
    assert_close(changed, net(u).detach(), rtol=0, atol=1e-12)  # with gradients nothing is remembered
    net.requires_grad_(False)
    learnt = u.clone().requires_grad_()
    net(learnt).sum().backward()  # what an evaluation remembered can be learnt with
    assert learnt.grad is not None


def test_exponential_euler_takes_a_singular_linear_part() -> None:
    L = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=F64)
    A, C = SCHEMES["exponential-euler"].pair(torch.ones(2, dtype=F64), L)
    decay = torch.tensor([1.0, math.exp(-2.0)], dtype=F64)
    assert_close((A, C), (decay.diag(), torch.tensor([1.0, -math.expm1(-2.0) / 2], dtype=F64).diag()))


def with_edge(form: str, n: int = N) -> Terms:
    edge = Edge(normal(n, n, seed=4, scale=0.3), Elementwise(((ACTIVATIONS["softplus"], n),)))
    return replace(one_module("tanh", form, n), edges=(edge,))


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("name", SCHEMES)
def test_the_jacobian_of_a_step_is_A_plus_C_N(name: str, form: str) -> None:
    terms = with_edge(form)
    x, u = normal(1, N, seed=5), normal(1, 2, seed=6)
    step = affine_step(SCHEMES[name], terms, 0.2)
    A, C = step_pair(SCHEMES[name], terms, torch.tensor(0.2))
    C = C if C.ndim == 2 else torch.diag(C)
    (W,), (edge,) = terms.blocks, terms.edges
    p = terms.pre(x) if form == "x" else x
    z = p @ W.mT + terms.inject(u)
    tanh_slope = lambda y: 1 - torch.tanh(y[0]).square()  # noqa: E731
    D = W * tanh_slope(x) if form == "x" else tanh_slope(z)[:, None] * W
    jacobian = A + C @ (D + edge.K * torch.sigmoid(x))
    for derivative in (torch.func.jacrev, torch.func.jacfwd):
        found = derivative(lambda x: step(u, x))(x)[0, :, 0]
        assert_close(found, jacobian, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_number_dt_has_the_precision_of_the_terms(name: str) -> None:
    terms, x, u = with_edge("x"), normal(1, N, seed=5), normal(1, 2, seed=6)
    dt = torch.tensor(0.03, dtype=torch.float64)  # which float32 does not hold
    loop = integrate(SCHEMES[name], terms, x, u[None], dt.view(1, 1))[-1]
    assert_close(affine_step(SCHEMES[name], terms, 0.03)(u, x), loop, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_step_can_be_batched_by_vmap(name: str) -> None:
    terms = with_edge("x")
    step = affine_step(SCHEMES[name], terms, 0.2)
    x, u = normal(4, N, seed=5), normal(4, 2, seed=6)
    one = torch.vmap(lambda x, u: step(u[None], x[None])[0])(x, u)
    assert_close(one, step(u, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("per", ["step", "sample"])
def test_the_plain_loop_is_differentiable_twice_and_in_dt(name: str, per: str) -> None:
    terms = with_edge("x", 3)
    x0, u = normal(2, 3, seed=7), normal(3, 2, 2, seed=8)
    dt = torch.tensor([[0.2, 0.1], [0.3, 0.2], [0.1, 0.1]], dtype=F64)[:, : 2 if per == "sample" else 1]

    def states(x0: Tensor, u: Tensor, dt: Tensor, L: Tensor) -> Tensor:
        return integrate(SCHEMES[name], replace(terms, L=L), x0, u, dt)

    inputs = [x0, u, dt, terms.L]
    leaves = [t.clone().requires_grad_() for t in inputs]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(states, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(states, leaves)
    tangents = [normal(*t.shape, seed=9) for t in inputs]  # type: ignore[union-attr]
    _, forward = torch.func.jvp(states, tuple(inputs), tuple(tangents))
    _, pull = torch.func.vjp(states, *inputs)
    back = pull(normal(*forward.shape, seed=10))
    product = sum(float((b * t).sum()) for b, t in zip(back, tangents, strict=True))
    assert math.isclose(product, float((forward * normal(*forward.shape, seed=10)).sum()), rel_tol=1e-10)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("form", ["x", "r"])
def test_every_scheme_is_of_order_one(name: str, form: str) -> None:
    terms, x0 = with_edge(form), normal(2, N, seed=5)
    u = normal(1, 2, 2, seed=6)

    def last(scheme: str, count: int) -> Tensor:
        dt = torch.full((count, 1), 1 / count, dtype=F64)
        return integrate(SCHEMES[scheme], terms, x0, u.expand(count, -1, -1), dt)[-1]

    fine = 2 * last(name, 2048) - last(name, 1024)  # Richardson: order 2
    counts = [32, 64, 128, 256]
    errors = [float((last(name, count) - fine).norm()) for count in counts]
    assert abs(order(errors, [1 / count for count in counts]) - 1) < 0.15
