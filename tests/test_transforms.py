"""Layers under torch's own tools: torch.func, double backward, torch.compile, torch.export."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import CTRNN
from ctrnn_assembly.errors import DataError, SolverError
from ctrnn_assembly.models import build_model
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.solvers import solve
from solver_problems import normal, one_module
from solver_problems import one_thread as one_thread

LAYERS: dict[str, dict[str, Any]] = {
    "svd-combo": {},
    "symmetric": {"solver": "imex"},
    "product": {"solver": "exponential-euler"},
    "sparse-combo": {},
    "adadiag-gated": {},
    "adadiag-gated-constant": {},
    "rnn": {},
    "lstm": {},
    "antisymmetric": {},
    "lipschitz": {},
}
LENGTHS = torch.tensor([2, 4])


def classifier(name: str) -> Any:
    return build_model(name, 3, 5, modules=2, units=4, **LAYERS[name]).double()


def layer(name: str) -> Any:
    return classifier(name).core


def numeric(f: Any, u: Tensor, v: Tensor, h: float = 1e-6) -> Tensor:
    """The derivative of f at u along v, by the central difference."""
    return (f(u + h * v) - f(u - h * v)) / (2 * h)


@pytest.mark.parametrize("name", LAYERS)
def test_torch_func_goes_through_the_forward_of_every_layer(name: str) -> None:
    net, u, v = layer(name), normal(2, 4, 3), normal(2, 4, 3, seed=1)
    with torch.no_grad():
        expected = numeric(lambda u: net(u)[0], u, v)
    f = lambda u: net(u)[0]  # noqa: E731
    # The difference has an error of h^2 and 1e-16 / h.
    assert_close(torch.func.jvp(f, (u,), (v,))[1], expected, rtol=1e-6, atol=1e-9)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        along = torch.einsum("abcdef,def->abc", jacobian(f)(u), v)
        assert_close(along, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_inputs_and_over_parameters(name: str) -> None:
    net, u = layer(name), normal(3, 2, 4, 3)
    run = lambda u: net(u, lengths=LENGTHS)[0]  # noqa: E731
    assert_close(torch.func.vmap(run)(u), torch.stack([*map(run, u)]))
    other = {key: 1.1 * value for key, value in net.named_parameters()}
    both = {key: torch.stack([value, other[key]]) for key, value in net.named_parameters()}
    ensemble = torch.func.vmap(lambda p: torch.func.functional_call(net, p, (u[0],))[1])(both)
    for found, parameters in zip(ensemble, (dict(net.named_parameters()), other), strict=True):
        assert_close(found, torch.func.functional_call(net, parameters, (u[0],))[1])


@pytest.mark.parametrize("solver", [*SCHEMES, "rk4"])
def test_torch_func_goes_through_every_kind_of_solve(solver: str) -> None:
    field, x, v = one_module("tanh", "x", n=3), normal(2, 3), normal(2, 3, seed=1)
    f = lambda x: solve(field, x, torch.linspace(0, 1, 5), solver=solver).x  # noqa: E731
    expected = numeric(f, x, v)
    assert_close(torch.func.jvp(f, (x,), (v,))[1], expected, rtol=1e-6, atol=1e-9)
    along = torch.einsum("abcde,de->abc", torch.func.jacrev(f)(x), v)
    assert_close(along, expected, rtol=1e-6, atol=1e-9)


def test_torch_func_goes_through_a_field_of_ones_own() -> None:
    inside = torch.nn.Linear(7, 4).double()
    field = lambda t, x, u: torch.tanh(inside(torch.cat([x, u], -1))) - x  # noqa: E731
    net, u, v = CTRNN(3, field, size=4, batch_first=True), normal(2, 4, 3), normal(2, 4, 3, seed=1)
    f = lambda u: net(u)[0]  # noqa: E731
    with torch.no_grad():
        expected = numeric(f, u, v)
    assert_close(torch.func.jvp(f, (u,), (v,))[1], expected, rtol=1e-6, atol=1e-9)
    assert_close(torch.func.vmap(f)(torch.stack([u, v])), torch.stack([f(u), f(v)]))


def test_torch_func_is_refused_by_adaptive_solvers_by_name() -> None:
    field, t = one_module("tanh", "x"), torch.arange(3.0)
    with pytest.raises(SolverError, match=r"adaptive solvers; got 'dopri5'.*'rk4' with substeps"):
        torch.func.jacrev(lambda x: solve(field, x, t, solver="dopri5").x)(normal(2, 6))


@pytest.mark.parametrize("name", LAYERS)
def test_double_backward_is_the_derivative_of_the_gradient(name: str) -> None:
    net, u, v = layer(name), normal(2, 4, 3), normal(2, 4, 3, seed=1)

    def gradient(u: Tensor) -> Tensor:
        u = u.requires_grad_()
        return torch.autograd.grad(net(u)[0].square().sum(), u)[0]

    leaf = u.clone().requires_grad_()
    (first,) = torch.autograd.grad(net(leaf)[0].square().sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * v).sum(), leaf)
    expected = numeric(gradient, u, v)
    assert_close(second, expected, rtol=1e-6, atol=1e-8)
    hessian = torch.func.hessian(lambda u: net(u)[0].square().sum())(u)
    assert_close(torch.einsum("abcdef,def->abc", hessian, v), expected, rtol=1e-6, atol=1e-8)


# Of 512 steps, loops are compiled.
@pytest.mark.parametrize(
    ("name", "how", "steps"),
    [
        ("svd-combo", {}, 512),
        ("svd-combo", {"backend": "fused"}, 6),
        ("svd-combo", {"solver": "imex"}, 6),
        ("adadiag-gated-constant", {}, 6),
        ("adadiag-gated-input", {}, 512),
        ("deep-adadiag", {"norm": "layer"}, 512),
    ],
)
def test_gradients_of_many_outputs_at_once_are_those_one_by_one(
    name: str, how: dict[str, str], steps: int
) -> None:
    size = {"depth": 2, "width": 64} if "deep" in name else {"modules": 4, "units": 16}
    net = build_model(name, 3, 4, **size, **how).double()
    y, weights = net(normal(2, steps, 3)), [p for p in net.parameters() if p.requires_grad]
    every = torch.eye(8).view(8, 2, 4)
    at_once = torch.autograd.grad(y, weights, every, is_grads_batched=True, retain_graph=True)
    singly = [torch.autograd.grad(y, weights, one, retain_graph=True) for one in every]
    for k, found in enumerate(at_once):
        assert not found.requires_grad
        assert_close(found, torch.stack([one[k] for one in singly]))


def test_values_are_still_checked_outside_of_transforms() -> None:
    with pytest.raises(DataError, match="finite"):
        layer("svd-combo")(torch.full((2, 4, 3), float("nan")).double())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svd-combo", "adadiag-gated", "lipschitz"])
def test_inference_compiles_with_the_loop_left_as_it_is(name: str) -> None:
    """By torch's default compiler, and under autocast in the precision that is certified."""
    net, u = classifier(name).float(), normal(2, 4, 3).float()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(net)
        assert_close(compiled(u), net(u))
        assert_close(compiled(u, lengths=LENGTHS), net(u, lengths=LENGTHS))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(torch.compile(net.core)(u)[0], net.core(u)[0], rtol=0, atol=0)


@pytest.mark.slow
def test_training_compiles_with_the_loop_left_as_it_is() -> None:
    net, u = classifier("svd-combo"), normal(2, 4, 3)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        torch.compile(net, backend="aot_eager", fullgraph=True)(u)
    torch._dynamo.reset()
    parameters = list(net.parameters())
    found = [
        torch.autograd.grad(model(u).square().sum(), parameters) for model in (net, torch.compile(net))
    ]
    assert_close(*found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["symmetric", "adadiag-gated", "lstm", "lipschitz"])
def test_the_forward_exports_with_batch_and_time_free(name: str) -> None:
    net, batch, time = classifier(name), torch.export.Dim("batch"), torch.export.Dim("time")
    program = torch.export.export(net, (normal(2, 4, 3),), dynamic_shapes={"input": {0: batch, 1: time}})
    u = normal(3, 7, 3, seed=1)
    assert_close(program.module()(u), net(u))


@pytest.mark.parametrize("name", ["svd-combo", "lstm"])
def test_a_step_exports(name: str) -> None:
    net, batch = layer(name), torch.export.Dim("batch")

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, u: Tensor, x: Tensor) -> Tensor:
            return self.net.step(u, x)

    given = normal(2, 3), normal(2, net.state_size)
    program = torch.export.export(Step(), given, dynamic_shapes=({0: batch}, {0: batch}))
    u, x = normal(5, 3, seed=1), normal(5, net.state_size, seed=2)
    assert_close(program.module()(u, x), net.step(u, x))
