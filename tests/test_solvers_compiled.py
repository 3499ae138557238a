"""The compiled loop equals its plain twin in states and all gradients; `solve` takes it by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly import (
    CTRNN,
    Activation,
    AdaDiagTanh,
    SingularValueBounded,
    Subnetwork,
    couple,
    layers,
)
from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.errors import CtrnnError, SolverError
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.solvers import compiled, fused, solve
from ctrnn_assembly.solvers.pairs import pointwise
from ctrnn_assembly.terms import Terms
from solver_problems import F64, mixed, normal, one_module, rng
from solver_problems import one_thread as one_thread

PAIRS = [(0, 1), (2, 3)]


KINDS = ["dense", "diagonal", "blocks", "all", "none"]


def field(kind: str, place: Any = "x") -> Terms:
    """An odd dense module, or 6 modules of 16 with diagonal or dense W and few, all or no pairs."""
    if kind == "dense":
        return one_module("tanh", place, 13)
    constraint, pairs = {
        "diagonal": (AdaDiagTanh, PAIRS),
        "blocks": (SingularValueBounded, PAIRS),
        "all": (SingularValueBounded, "all"),
        "none": (AdaDiagTanh, "none"),
    }[kind]
    parts = [Subnetwork(constraint("tanh"), 16, form=place, generator=rng(k)) for k in range(6)]
    terms = couple(parts, pairs, generator=rng(9)).double().terms()  # type: ignore[arg-type]
    terms = terms.mapped(lambda t: t.detach().clone())
    bias = normal(terms.n, seed=5)
    return replace(terms, bias=bias, W_in=normal(terms.n, 2, seed=6))


def leaves_of(terms: Terms, batch: int, steps: int, drive: str = "driven") -> tuple[Terms, Any, Any]:
    """The terms, x0 and the drive as leaves of autograd."""
    terms = terms if drive == "driven" else replace(terms, W_in=None)
    terms = terms.mapped(lambda t: t.detach().clone().requires_grad_())
    m = {"driven": 2, "none": 0}[drive]
    u = normal(steps, batch, m, seed=2).requires_grad_() if m else None
    return terms, normal(batch, terms.n, seed=1).requires_grad_(), u


def compare(
    terms: Terms,
    scheme: str = "euler",
    batch: int = 5,
    steps: int = 70,
    save: str = "all",
    drive: str = "driven",
    dt: Tensor | None = None,
) -> None:
    terms, x0, u = leaves_of(terms, batch, steps, drive)
    dt = torch.full((steps, 1), 0.05, dtype=F64) if dt is None else dt
    given: Any = (SCHEMES[scheme], terms, x0, u, dt)
    form, inputs, lengths, *tensors = fused.fused_step(*given, "full", scheme == "imex")
    loop = fused.prepared(*given, save=save, backend="compiled")  # type: ignore[arg-type]
    found = loop()
    expected = fused.plain_states(form, x0, inputs, lengths, *tensors)[-len(found) :]
    assert_close(found, expected, rtol=1e-11, atol=1e-11)
    weights, leaves = normal(*found.shape, seed=3), [*terms.tensors(), x0, *([] if u is None else [u])]
    for leaf, a, b in zip(
        leaves,
        torch.autograd.grad((found * weights).sum(), leaves, allow_unused=True),
        torch.autograd.grad((expected * weights).sum(), leaves, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == leaf.shape
            assert b.count_nonzero()
            assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("save", ["all", "last"])
@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["x", "r"])
def test_every_structure_and_scheme_equals_the_plain_twin(
    place: str, kind: str, scheme: str, save: str
) -> None:
    compare(field(kind, place), scheme, save=save)


@pytest.mark.parametrize("save", ["all", "last"])
@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("kind", ["dense", "diagonal", "blocks"])
@pytest.mark.parametrize("place", ["x", "r"])
def test_steps_of_several_lengths(place: str, kind: str, samples: int, save: str) -> None:
    dt = 0.1 * torch.rand(70, samples, generator=rng(4), dtype=F64)
    dt[3, -1] = 0  # a sample that waits
    compare(field(kind, place), save=save, dt=dt)


@pytest.mark.parametrize("place", ["x", "r"])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_every_activation(phi: str, place: Any) -> None:
    compare(one_module(phi, place, 7))


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_without_inputs(kind: str) -> None:
    compare(field(kind), drive="none")


@pytest.mark.parametrize(("n", "batch", "steps"), [(1, 1, 1), (16, 4, 64), (17, 9, 65), (33, 3, 130)])
def test_any_number_of_units_samples_and_steps(n: int, batch: int, steps: int) -> None:
    for place in ("x", "r"):
        compare(one_module("tanh", place, n), batch=batch, steps=steps)  # type: ignore[arg-type]


def solved(terms: Terms, batch: int = 40, steps: int = 130, **options: Any) -> tuple[Tensor, Any]:
    terms, x0, u = leaves_of(terms, batch, steps)
    x = solve(terms, x0, u=u.transpose(0, 1), **({"dt": 0.05} | options)).x
    return x, [*terms.tensors(), x0, u]


@pytest.mark.parametrize("options", [{}, {"save": "last"}, {"lengths": torch.arange(40) + 3}])
def test_solve_takes_it_by_itself_and_agrees_with_the_other_loop(options: dict[str, Any]) -> None:
    found = (solved(field("dense"), backend=backend, **options) for backend in ("auto", "fused"))
    (x, leaves), (y, same) = found
    assert not x.equal(y), "auto ran the fused loop"
    assert_close(x, y, rtol=1e-11, atol=1e-11)
    got, right = (torch.autograd.grad(a.square().sum(), b) for a, b in ((x, leaves), (y, same)))
    assert_close(got, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("terms", "options"),
    [
        (mixed().terms().driven(normal(23, 2)), {}),
        (replace(one_module("tanh", "x", 13), post=one_module("tanh", "r", 13).post), {}),
        (one_module("tanh", "x", 13), {"batch": 2}),
        (one_module("tanh", "x", 13), {"recompute": "sqrt", "save": "last"}),
        (one_module("tanh", "x", 13), {"matmul_precision": "bf16"}),
    ],
)
def test_what_it_does_not_do_is_left_to_the_other_loop(
    terms: Terms, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "padded", lambda *given: pytest.fail("the compiled loop ran"))
    x, _ = solved(terms, **options)
    assert x.isfinite().all()


@pytest.mark.parametrize("steps", [1, 2, 130, 131])
def test_without_gradients_two_states_are_kept(steps: int) -> None:
    with torch.no_grad():
        x, _ = solved(field("blocks"), batch=80, steps=steps, save="last")
        y, _ = solved(field("blocks"), batch=80, steps=steps, backend="fused")
    assert_close(x[:, 0], y[:, -1], rtol=1e-11, atol=1e-11)


def test_an_activation_of_ones_own_is_not_taken_for_one_of_the_same_name() -> None:
    own = Activation("tanh", lambda x: torch.tanh(2 * x), slope=(0.0, 2.0))
    x, _ = solved(one_module(own, "x", 13))  # type: ignore[arg-type]
    y, _ = solved(one_module(own, "x", 13), backend="plain")  # type: ignore[arg-type]
    assert_close(x, y, rtol=1e-11, atol=1e-11)


def test_samples_and_units_that_fill_up_are_not_seen() -> None:
    """Where without inputs a state overflows, with them it does not: no NaN reaches a gradient."""
    terms = replace(one_module("relu", "x", 3), bias=torch.full((3,), 1e3, dtype=F64))
    terms = replace(
        terms, blocks=(3.0 * torch.eye(3, dtype=F64),), L=None, W_in=-1e3 * torch.eye(3, dtype=F64)
    )
    terms = terms.mapped(lambda t: t.clone().requires_grad_())
    x0, u = torch.zeros(5, 3, dtype=F64), torch.full((3000, 5, 3), 1.5, dtype=F64)
    given: Any = (SCHEMES["euler"], terms, x0, u, torch.full((3000, 1), 0.5, dtype=F64))
    x = fused.prepared(*given, save="last", backend="compiled")()
    for gradient in torch.autograd.grad(x.sum(), terms.tensors()):
        assert gradient.isfinite().all()


def test_float32_agrees_with_float64() -> None:
    terms = field("blocks")
    x, _ = solved(terms)
    x0, u = (t.float() for t in leaves_of(terms, 40, 130)[1:])
    y = solve(terms.mapped(Tensor.float), x0, u=u.transpose(0, 1), dt=0.05).x
    assert_close(x.float(), y, rtol=1e-5, atol=1e-5)


def gated(kind: str, fast: bool, field: str = "dense", **given: Any) -> tuple[Tensor, list[Tensor]]:
    """Outputs of a gated layer, by the compiled loop or by the plain one, and what they depend on."""
    parts = [Subnetwork(AdaDiagTanh("tanh"), 16, generator=rng(k)) for k in range(4)]
    net = {"dense": Subnetwork(AdaDiagTanh("tanh"), 13, generator=rng()), "few": couple(parts, PAIRS)}
    layer = CTRNN(
        3,
        net[field],
        gate=kind,
        gate_bounds=(0.1, 2.0),
        batch_first=True,
        substeps=given.pop("substeps", 1),
    ).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for k, weight in enumerate(layer.parameters()):
            weight.copy_(0.4 * normal(*weight.shape, seed=k))
    u = normal(43, 130, 3, seed=8).requires_grad_()
    x0 = normal(43, layer.hidden_size, seed=9).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(layers, "is_compiled", lambda *_: False)
        last = given.pop("last", False)
        x = layer.last(u, x0[None], **given) if last else layer(u, x0[None], **given)[0]
    return x, [u, x0, *layer.parameters()]


@pytest.mark.parametrize("field", ["dense", "few"])
@pytest.mark.parametrize("kind", ["input", "shared", "congruence", "state"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"last": True},
        {"lengths": torch.arange(43) * 3 + 1},
        {"lengths": torch.arange(43) * 3 + 1, "last": True},
        {"substeps": 2, "last": True},
        {"dt": 0.2 * torch.rand(43, 130, generator=rng(1), dtype=F64)},
    ],
    ids=str,
)
def test_gates_that_read_the_input(kind: str, field: str, given: dict[str, Any]) -> None:
    (x, leaves), (y, same) = (gated(kind, fast, field, **given) for fast in (True, False))
    assert not x.equal(y), "the plain loop ran"
    assert_close(x, y, rtol=1e-10, atol=1e-10)
    got, right = (torch.autograd.grad(a.square().sum(), b) for a, b in ((x, leaves), (y, same)))
    assert all(each.count_nonzero() for each in right)
    assert_close(got, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["input", "congruence", "state"])
def test_second_derivatives_of_gates(kind: str) -> None:
    found = []
    for fast in (True, False):
        x, leaves = gated(kind, fast)
        (first,) = torch.autograd.grad(x[:, -1].square().sum(), leaves[0], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaves[1:]))
    assert_close(found[0], found[1], rtol=1e-8, atol=1e-8)


def gated_layer(kind: str = "input", n: int = 16, **given: Any) -> CTRNN:
    net = Subnetwork(AdaDiagTanh("tanh"), n, generator=rng())
    given = {"gate_bounds": (0.1, 2.0), "batch_first": True, "generator": rng(3)} | given
    return CTRNN(3, net, gate=kind, **given)  # type: ignore[arg-type]


def test_the_gradient_of_a_start_that_is_not_contiguous() -> None:
    starts = [torch.randn(16, 40, generator=rng(5)).mT.requires_grad_(), None]
    starts[1] = starts[0].detach().contiguous().requires_grad_()
    u, layer = torch.randn(40, 200, 3, generator=rng(1)), gated_layer()
    found = [torch.autograd.grad(layer.last(u, x0[None]).square().sum(), x0)[0] for x0 in starts]
    assert_close(found[0], found[1])


def test_gated_steps_of_trained_lengths_are_plain() -> None:
    dt = torch.full((40, 200), 0.05, requires_grad=True)
    gated_layer()(torch.randn(40, 200, 3), dt=dt)[0].sum().backward()
    assert dt.grad is not None
    assert dt.grad.count_nonzero() == dt.numel()


def replaced(layer: CTRNN, what: str) -> None:
    """Parts that do not fit the field."""
    if what == "flow":
        layer.gates.flow = lambda terms, z, x, u: 0 * x  # type: ignore[union-attr,method-assign]
    elif what == "encoder":
        layer.encoder = torch.nn.Linear(5, layer.hidden_size)
    elif what == "precision":
        layer.gates.float()  # type: ignore[union-attr]
    elif what == "bias":
        layer.gates.reader = torch.nn.Linear(3, layer.hidden_size, bias=False)  # type: ignore[union-attr]
    else:
        m, n = {"few inputs": (2, layer.hidden_size), "few gates": (3, 1), "many": (3, 64)}[what]
        layer.gates.reader = torch.nn.Linear(m, n)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["input", "shared", "state"])
@pytest.mark.parametrize(
    "what", ["flow", "encoder", "precision", "bias", "few inputs", "few gates", "many"]
)
def test_gates_that_do_not_fit_are_called_as_they_are(
    what: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, u = gated_layer(kind), torch.randn(40, 200, 3, generator=rng(1))
    replaced(layer, what)
    found = []
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(layers, "is_compiled", lambda *_: False)
        try:
            found.append(layer(u)[0])
        except (RuntimeError, CtrnnError) as error:
            found.append(type(error))
    if isinstance(found[0], Tensor):
        assert_close(*found, rtol=1e-9, atol=1e-9)
    assert isinstance(found[0], Tensor) or found[0] is found[1]


@pytest.mark.parametrize("part", ["bias", "L", "W_in", "blocks"])
def test_a_field_of_two_precisions_is_not_read_as_one(part: str) -> None:
    terms = one_module("tanh", "x", 32).mapped(Tensor.float)
    wide = tuple(W.double() for W in terms.blocks) if part == "blocks" else getattr(terms, part).double()
    x0, u = normal(40, 32).float(), normal(40, 200, 2).float()
    with pytest.raises((RuntimeError, CtrnnError), match=r"dtype|same type"):
        solve(replace(terms, **{part: wide}), x0, u=u, dt=0.005)


def test_gradients_taken_under_autocast_are_whole() -> None:
    layer, found = gated_layer().float(), []
    for lower in (True, False):
        u = torch.randn(40, 200, 3, generator=rng(1), dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            loss = layer(u)[0].square().sum()
            (gradient,) = torch.autograd.grad(loss, u)
        found.append(gradient)
    assert_close(*found, rtol=1e-5, atol=1e-5)


def test_what_a_sample_would_do_after_its_end_is_not_seen() -> None:
    parts = [Subnetwork(AdaDiagTanh("relu"), 16, generator=rng(k)) for k in range(4)]
    field = couple(parts, "all", generator=rng(7))
    layer = CTRNN(3, field, gate="input", gate_bounds=(0.9, 1.0), dt=1.0, batch_first=True).float()
    with torch.no_grad():
        layer.field.coupling.K.values.mul_(30)
        layer.encoder.weight.zero_()[0, 0] = 1.0
    u = torch.randn(40, 200, 3, generator=rng(1), dtype=torch.float32)
    u[0, :, 0] = 1e38
    lengths = torch.full((40,), 2)
    lengths[0] = 1
    assert layer(u, lengths=lengths)[0].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "bounds", "bias"), [("input", (1e-5, 0.2), -12.0), ("congruence", (1e-7, 10.0), -30.0)]
)
def test_gates_that_are_almost_closed_keep_their_digits(kind: str, bounds: Any, bias: float) -> None:
    layer, found = gated_layer(kind, gate_bounds=bounds), []
    torch.nn.init.constant_(layer.gates.reader.bias, bias)  # type: ignore[union-attr]
    u = torch.randn(40, 200, 3, generator=rng(1))
    for dtype in (torch.float64, torch.float32):
        found.append(layer.to(dtype).last(u.to(dtype)).double().detach())
    assert_close(*found, rtol=2e-5, atol=1e-6 * float(found[0].abs().max()))


@pytest.mark.parametrize("x", [-1e35, -1e10, -30.0, -1e-3, 0.0, 1e-3, 100.0, 1e10])
@pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=lambda phi: phi.name)
def test_slopes_in_float32(phi: Activation, x: float) -> None:
    value, slope = pointwise(phi, np.dtype(np.float32))
    found, at = slope(np.float32(x), value(np.float32(x))), torch.tensor([x])
    assert_close(float(found), float(phi.slope_at(at)), rtol=1e-5, atol=1e-6)
    assert_close(float(value(np.float32(x))), float(phi(at)), rtol=1e-6, atol=1e-6)
    assert np.isnan(value(np.float32("nan")))


def test_a_gated_state_that_overflows_is_named_with_its_time() -> None:
    net = Subnetwork(AdaDiagTanh("relu"), 16)
    layer = CTRNN(1, net, gate="input", dt=50.0, gate_bounds=(1.0, 2.0), batch_first=True)
    with pytest.raises(SolverError, match=r"the state became -?\w+ at t = .*, step \d+"):
        layer.last(torch.randn(40, 200, 1, generator=rng()))


def test_second_derivatives_are_those_of_the_plain_loop() -> None:
    found = []
    for backend in ("auto", "plain"):
        x, leaves = solved(field("dense"), backend=backend)
        (first,) = torch.autograd.grad(x[:, -1].square().sum(), leaves[-2], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaves[0])[0])
    assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scheme", ["euler", "imex"])
@pytest.mark.parametrize("constraint", [AdaDiagTanh, SingularValueBounded])
def test_second_derivatives_of_blocks_that_are_filled_up(constraint: Any, scheme: str) -> None:
    """Of 512 units in float64, whose rows would begin at the same place of a cache."""
    parts = [Subnetwork(constraint("tanh"), 32, form="r", generator=rng(k)) for k in range(16)]
    terms = replace(couple(parts, PAIRS, generator=rng(9)).double().terms(), W_in=normal(512, 2))
    found = []
    for backend in ("auto", "plain"):
        x, leaves = solved(terms, batch=8, steps=17, solver=scheme, backend=backend)
        (first,) = torch.autograd.grad(x[:, -1].square().sum(), leaves[-2], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaves[-1])[0])
    assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_without_a_folder_to_keep_machine_code_it_is_compiled_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of an install that nobody may write to."""
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(compiled.scale.py_func)
    assert compiled.kept(lambda x: x + 1)(1) == 2
