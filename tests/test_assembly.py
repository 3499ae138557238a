"""The vector field of subnetworks and assemblies, against the written formula in numpy."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torchdiffeq import odeint

from ctrnn_assembly.assembly import Assembly, couple
from ctrnn_assembly.certificates import certify
from ctrnn_assembly.contracting import (
    CONSTRAINTS,
    Absolute,
    AdaDiagClip,
    AdaDiagTanh,
    Contracting,
    FiringRate,
    NegativeProduct,
    SingularValueBounded,
    SparseAbsolute,
    Symmetric,
    Triangular,
)
from ctrnn_assembly.contracting.interface import Form
from ctrnn_assembly.coupling import Feedback, Hierarchy
from ctrnn_assembly.errors import ConfigError, ContractionError, ShapeError
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.subnetwork import Subnetwork
from oracles import array

PHI: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def leaves() -> list[Subnetwork]:
    modules = [
        Subnetwork(SingularValueBounded("tanh"), 3, tau=torch.tensor([0.5, 1.0, 2.0])),
        Subnetwork(Symmetric("relu"), 2, form="r", tau=3.0),
        Subnetwork(NegativeProduct("sigmoid"), 1, form="r", bias=False),
        Subnetwork(Absolute("relu"), 4, form="r", tau=0.7),
        Subnetwork(Triangular("tanh"), 2),
        Subnetwork(AdaDiagTanh("tanh"), 2, tau=0.2),
        Subnetwork(AdaDiagClip("sigmoid"), 1),
        Subnetwork(SparseAbsolute("relu", density=0.5, magnitude=0.5), 3, form="r"),
    ]
    with torch.no_grad():
        for module in modules:
            if isinstance(module.bias, nn.Parameter):
                module.bias.normal_()
            for raw in module.parametrizations.parameters():
                raw += 0.3 * torch.randn_like(raw)
    return modules


def nested() -> Assembly:
    """Depth three: feedback over a hierarchy (linear and through tanh) and a feedback pair."""
    m = leaves()
    linear = couple(m[0:2], "all", kind="hierarchy")
    bent = Assembly(m[2:4], Hierarchy([1, 4], [(0, 1)], psi="tanh"))
    inner = couple([linear, m[4], bent], "star", init_scale=2.0)
    return couple([m[5], inner, couple(m[6:8], "all")], "ring")


def sizes_of(parts: list[Subnetwork | Assembly]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([part.size for part in parts])])


def written(part: Subnetwork | Assembly, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """tau x' of the docstring, one sample, unit by unit; the couplings from their definition."""
    if isinstance(part, Subnetwork):
        W, b, phi = array(part.weight), array(part.bias), PHI[part.constraint.phi.name]
        out = np.zeros(part.size)
        for i in range(part.size):
            if part.form == "x":
                out[i] = -x[i] + sum(W[i, j] * phi(x[j]) for j in range(part.size)) + b[i] + u[i]
            else:
                drive = sum(W[i, j] * x[j] for j in range(part.size)) + b[i] + u[i]
                out[i] = -x[i] + phi(drive)
        return out
    parts = list(part.parts)
    at = sizes_of(parts)
    units = [slice(a, b) for a, b in pairwise(at)]
    out = np.concatenate([written(p, x[k], u[k]) for p, k in zip(parts, units, strict=True)])
    coupling = part.coupling
    values = array(next(coupling.parameters()))
    M = [array(p.metric().matrix()) for p in parts]
    T = [array(p.metric().theta()) for p in parts]
    for i, j in coupling.pairs:
        ni, nj = parts[i].size, parts[j].size
        block, values = values[: ni * nj], values[ni * nj :]
        if isinstance(coupling, Feedback):
            B = np.linalg.inv(T[i]) @ block.reshape(ni, nj) @ T[j]
            out[units[i]] += B @ x[units[j]]
            out[units[j]] -= np.linalg.inv(M[j]) @ B.T @ M[i] @ x[units[i]]
        else:
            psi = (lambda z: z) if coupling.psi is None else PHI[coupling.psi.units[0].name]
            out[units[j]] += block.reshape(nj, ni) @ psi(x[units[i]])
    return out


@pytest.mark.parametrize("driven", [False, True])
def test_field_is_the_written_formula_at_every_depth(driven: bool) -> None:
    net = nested()
    x, u = torch.randn(3, net.size), torch.randn(3, net.size)
    found = array(net(0.0, x, u) if driven else net(0.0, x))
    tau = array(net.tau)
    for k in range(3):
        drive = array(u[k]) if driven else np.zeros(net.size)
        np.testing.assert_allclose(
            found[k], written(net, array(x[k]), drive) / tau, rtol=1e-10, atol=1e-12
        )
    expected = [0.2] * 2 + [0.5, 1, 2] + [3] * 2 + [1] * 2 + [1] + [0.7] * 4 + [1] * 4
    np.testing.assert_allclose(tau, expected)


def test_equal_blocks_take_the_batched_path_to_the_same_field() -> None:
    for form in ("x", "r"):
        net = couple([Subnetwork(SingularValueBounded("tanh"), 3, form=form) for _ in range(4)], "all")
        x, u = torch.randn(12, 5).T, torch.randn(5, 12)  # x is not contiguous
        found = array(net(0.0, x, u))
        expected = [written(net, array(a), array(b)) for a, b in zip(x, u, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
        assert net(0.0, torch.zeros(0, 12)).shape == (0, 12)


@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("rule", CONSTRAINTS.values())
def test_modules_that_are_alike_are_read_by_one_call_to_the_same_numbers(
    rule: type[Contracting], form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = {"density": 0.3} if hasattr(rule, "density") else {}
    net = couple([Subnetwork(rule("sigmoid", **dense), 3, form=form) for _ in range(4)]).double()
    for raw in net.parameters():
        raw.data += torch.randn_like(raw) / 3
    weights, found = [torch.randn(3, 3).double() for _ in range(4)], []

    def read() -> list[Tensor]:
        terms = net.terms()
        assert terms.L is not None
        total = (terms.L * torch.arange(144).view(12, 12)).sum()
        total = total + sum((W * v).sum() for W, v in zip(terms.blocks, weights, strict=True))
        trained = [p for p in net.parameters() if p.requires_grad]
        return [*terms.blocks, terms.L, *torch.autograd.grad(total, trained, materialize_grads=True)]

    calls, once = list[int](), 2 if rule is FiringRate and form == "x" else 1  # its metric takes W
    with monkeypatch.context() as patch:
        patch.setattr(rule, "weight", counted(rule.weight, calls))
        found = read()
        assert len(calls) == once
        patch.setattr(Subnetwork, "kind", lambda self: None)
        apart = read()
        assert len(calls) == 5 * once
    for one, other in zip(found, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def counted(function: Callable[..., Tensor], calls: list[int]) -> Callable[..., Tensor]:
    def call(*given: Tensor) -> Tensor:
        calls.append(1)
        return function(*given)

    return call


class Halved(SingularValueBounded):
    """Its map takes one matrix, whatever its base takes."""

    def weight(self, *raw: Tensor) -> Tensor:
        assert raw[0].ndim == 2
        return super().weight(*raw) / 2

    def raw(self, W: Tensor) -> tuple[Tensor, ...]:
        return super().raw(2 * W)


class Twice(Subnetwork):
    def metric(self) -> Metric:
        return super().metric().scaled(torch.arange(1.0, 3.0))


def of_two(rule: type[Contracting] = SingularValueBounded, **how: Any) -> Subnetwork:
    return Subnetwork(rule("relu", margin=how.pop("margin", 0.01)), 2, **how)


def hooked() -> Subnetwork:
    part = of_two()
    part.constraint.register_forward_hook(lambda module, args, W: 0 * W)
    return part


def patched() -> Subnetwork:
    part = of_two()
    part.constraint.weight = one_ninth  # type: ignore[method-assign]
    return part


def turned() -> Subnetwork:
    part = of_two()
    part.metric = lambda: Metric((Factor(torch.ones(2) / 2, 2 * torch.ones(2)),))  # type: ignore[method-assign]
    return part


class Double(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return 2 * W


def doubled() -> Subnetwork:
    part = of_two()
    parametrize.register_parametrization(part, "weight", Double(), unsafe=True)
    return part


def one_ninth(A: Tensor, b: Tensor) -> Tensor:
    return A / 9 if A.ndim == 2 else 0 * A


ODD: dict[str, Callable[[], Subnetwork]] = {
    "hook": hooked,
    "patch": patched,
    "set of one's own": lambda: of_two(Halved),
    "module of one's own": lambda: Twice(SingularValueBounded("relu"), 2),
    "set": lambda: of_two(Absolute),
    "margin": lambda: of_two(margin=0.5),
    "form": lambda: of_two(Symmetric, form="r"),
    "precision": lambda: of_two().half(),
    "a further parametrisation": doubled,
    "metric": turned,
}


@pytest.mark.parametrize("name", ODD)
def test_modules_that_differ_or_were_changed_are_read_apart(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Symmetric if name == "form" else SingularValueBounded  # whose metric depends on it
    for parts in ([of_two(rule), of_two(rule), ODD[name]()], [ODD[name]() for _ in range(3)]):
        net = couple(parts)
        for raw in net.parameters():
            raw.data += torch.randn_like(raw) / 3
        found = net.terms()
        with monkeypatch.context() as patch:
            patch.setattr(Subnetwork, "kind", lambda self: None)
            apart = net.terms()
        for one, other in zip(found.tensors(), apart.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_set_of_ones_own_is_read_apart_wherever_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONSTRAINTS, "halved", Halved)
    net = couple([of_two(Halved) for _ in range(2)])
    for W, part in zip(net.terms().blocks, net.leaves(), strict=True):
        torch.testing.assert_close(W, part.weight, rtol=0, atol=0)


def test_a_setting_of_zero_tells_modules_apart() -> None:
    one, other = of_two(), of_two()
    other.constraint.max_condition = 0  # type: ignore[attr-defined]
    assert one.kind() != other.kind()


def test_without_a_coupling_no_metric_is_made() -> None:
    def chain() -> Assembly:
        return couple([of_two() for _ in range(2)], "chain", kind="hierarchy")

    nets = [
        Assembly([Subnetwork(NegativeProduct("relu"), 3) for _ in range(3)]),
        Assembly([chain(), chain()]),
    ]
    for net in nets:
        for raw in net.parts[1].parameters():
            raw.data.fill_(torch.nan)
        assert net.rate is None
        blocks = dict(zip(net.leaves(), net.terms().blocks, strict=True))
        whole = [leaf for leaf, W in blocks.items() if bool(W.isfinite().all())]
        assert whole == [leaf for leaf in blocks if leaf not in net.parts[1].leaves()]
    assert not certify(nets[0]).certified


def test_input_weights_and_bias_enter_as_input() -> None:
    net = nested()
    x, s = torch.randn(2, net.size), torch.randn(2, 5)
    W_in, bias = torch.randn(net.size, 5), torch.randn(net.size)
    driven = net.terms().driven(W_in, bias)
    torch.testing.assert_close(driven(x, s), net(0.0, x, s @ W_in.T + bias), rtol=0, atol=1e-12)
    without = net.terms().driven(W_in)
    torch.testing.assert_close(without(x, s), net(0.0, x, s @ W_in.T), rtol=0, atol=1e-12)


def test_nested_feedback_equals_one_flat_feedback() -> None:
    """Feedback of feedbacks is one feedback over the leaves, with the K of all depths."""
    m = leaves()
    inner = couple(m[:2], "all")
    outer = couple([inner, m[2]], "all")
    flat = couple(m[:3], "all")
    with torch.no_grad():
        between = outer.coupling.K()  # rows: both inner leaves; columns: the third
        whole = between.clone()
        whole[:5, :5] += inner.coupling.K()
        for i, (row, column) in enumerate([((0, 3), (3, 5)), ((0, 3), (5, 6)), ((3, 5), (5, 6))]):
            block = whole[slice(*row), slice(*column)].flatten()
            start = (0, 6, 9)[i]
            flat.coupling.K.values[start : start + block.numel()] = block
    x = torch.randn(4, 6)
    torch.testing.assert_close(outer(0.0, x), flat(0.0, x), rtol=1e-12, atol=1e-12)
    assert outer.terms().pairs == flat.terms().pairs == ((0, 1), (0, 2), (1, 2))


def test_pairs_are_exactly_the_blocks_of_the_coupling() -> None:
    m = leaves()
    inner = couple(m[1:4], "chain")
    net = couple([m[0], inner, m[4], couple(m[5:7], "all")], [(0, 1), (2, 3)])
    terms = net.terms()
    at = np.concatenate([[0], np.cumsum(terms.sizes)])
    L = array(terms.L)
    p = len(terms.sizes)
    nonzero = {
        (i, j)
        for i in range(p)
        for j in range(i, p)
        if L[at[i] : at[i + 1], at[j] : at[j + 1]].any() or L[at[j] : at[j + 1], at[i] : at[i + 1]].any()
    }
    assert set(terms.pairs) == nonzero
    assert terms.pairs == tuple(sorted(nonzero))
    assert len(nonzero) == 2 + 3 + 2 + 1  # chain, 0 with inner, 4 with both, the last pair


def test_assembly_without_coupling_is_its_parts_side_by_side() -> None:
    m = leaves()[:3]
    x = torch.randn(2, 6)
    apart = torch.cat([f(0.0, p) for f, p in zip(m, x.split([3, 2, 1], 1), strict=True)], 1)
    torch.testing.assert_close(Assembly(m)(0.0, x), apart, rtol=0, atol=1e-14)
    assert Assembly(m).rate == min(module.rate for module in m)


def test_torchdiffeq_accepts_the_module() -> None:
    net = couple(leaves()[:2])
    x0, h = torch.randn(2, net.size), 1e-5
    path = odeint(net, x0, torch.tensor([0.0, h, 2 * h]), method="midpoint")
    assert path.shape == (3, 2, net.size)
    # The central quotient misses x' by O(h^2) times its second derivative, and 1e-16 / h.
    torch.testing.assert_close((path[2] - x0) / (2 * h), net(0.0, path[1]), rtol=0, atol=1e-6)


def test_gradients_reach_every_trainable_parameter() -> None:
    net = nested()
    net.project_()
    x, u = torch.randn(4, net.size), torch.randn(4, net.size)
    net(0.0, x, u).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradcheck_through_maps_metrics_and_couplings() -> None:
    inner = couple([Subnetwork(Symmetric("tanh"), 2), Subnetwork(Absolute("tanh"), 1)], kind="hierarchy")
    net = couple(
        [inner, Subnetwork(NegativeProduct("tanh"), 2, form="r"), Subnetwork(SingularValueBounded(), 2)]
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    names, values = zip(*net.named_parameters(), strict=True)
    x = torch.randn(2, net.size)

    def field(*parameters: Tensor) -> Tensor:
        return functional_call(net, dict(zip(names, parameters, strict=True)), (0.0, x))

    assert torch.autograd.gradcheck(field, values)


def test_project_puts_the_clipped_weights_back() -> None:
    clip = Subnetwork(AdaDiagClip("tanh", margin=0.1), 2)
    net = couple(
        [couple([clip, Subnetwork(SingularValueBounded(), 2)]), Subnetwork(SingularValueBounded(), 2)]
    )
    raw = clip.parametrizations["weight"].original0
    with torch.no_grad():
        raw.copy_(torch.tensor([5.0, -0.3]))
    before = clip.weight.clone()
    net.project_()
    torch.testing.assert_close(raw.detach(), torch.tensor([0.9, -0.3]), rtol=2e-5, atol=0)
    torch.testing.assert_close(clip.weight, before, rtol=2e-5, atol=0)
    clip.weight.sum().backward()
    assert (clip.parametrizations["weight"].original0.grad != 0).all()


@pytest.mark.parametrize("tau", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_time_constant_is_refused(tau: float) -> None:
    for value in (tau, torch.tensor([1.0, tau])):
        with pytest.raises(ConfigError, match="tau must be positive and finite"):
            Subnetwork(SingularValueBounded("tanh"), 2, tau=value)


def test_time_constants_per_unit_need_a_diagonal_metric() -> None:
    tau = torch.tensor([1.0, 2.0])
    for rule in (Symmetric("tanh"), NegativeProduct("tanh")):
        with pytest.raises(ContractionError, match="commutes with tau"):
            Subnetwork(rule, 2, tau=tau)
        assert Subnetwork(rule, 2, tau=torch.tensor([2.0, 2.0])).rate == rule.rate / 2
    for rule in (
        SingularValueBounded("tanh"),
        Absolute("tanh"),
        Triangular("tanh"),
        AdaDiagTanh("tanh"),
    ):
        assert Subnetwork(rule, 2, tau=tau).rate == rule.rate / 2


def test_wrong_sizes_are_refused() -> None:
    rule = SingularValueBounded("tanh")
    with pytest.raises(ShapeError, match=r"tau must be a number or \(3,\); got \(2,\)"):
        Subnetwork(rule, 3, tau=torch.ones(2))
    with pytest.raises(ShapeError, match="tau"):
        Subnetwork(rule, 3, tau=torch.ones(3, 3))
    with pytest.raises(ShapeError, match=r"weight must be .* \(3, 3\); got \(2, 2\)"):
        Subnetwork(rule, 3, weight=torch.zeros(2, 2))
    with pytest.raises(ShapeError, match=r"W_in must be \(n, m\) with n = 3; got \(4, 3\)"):
        Subnetwork(rule, 3).terms().driven(torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="W_in"):
        Subnetwork(rule, 3).terms().driven(torch.zeros(3))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 0. Use size=16"):
        Subnetwork(SingularValueBounded("tanh"), 0)
    with pytest.raises(ConfigError, match="form must be 'x'"):
        Subnetwork(SingularValueBounded("tanh"), 2, form="z")
    with pytest.raises(ConfigError, match=r"list of Subnetworks or Assemblies; got \[\]"):
        Assembly([])


def test_state_dict_carries_the_whole_field() -> None:
    saved, fresh = nested(), nested()
    x = torch.randn(2, saved.size)
    assert not torch.allclose(fresh(0.0, x), saved(0.0, x))
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(fresh(0.0, x), saved(0.0, x))
    half = fresh.to(torch.float32)(0.0, x.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), saved(0.0, x), rtol=1e-3, atol=1e-4)
