"""What a user may do to a module: train tau, tie or change weights, bring a set, use half precision."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ctrnn_assembly import (
    CONSTRAINTS,
    CTRNN,
    AdaDiagTanh,
    Assembly,
    NegativeProduct,
    SingularValueBounded,
    Subnetwork,
    Symmetric,
    certify,
    couple,
    solve,
)
from ctrnn_assembly.baselines import LSTM
from ctrnn_assembly.contracting import Contracting
from ctrnn_assembly.contracting.interface import raw_tensors
from ctrnn_assembly.errors import ConfigError, ContractionError, ShapeError
from ctrnn_assembly.models import build_model
from ctrnn_assembly.training.config import make_config
from ctrnn_cli.main import main
from oracles import array, assembly_rate

SETS = {"diagonal metric": SingularValueBounded, "dense metric": NegativeProduct}
every_set = pytest.mark.parametrize("make", SETS.values(), ids=SETS)


def timed(make: type[Contracting], size: int = 3, **options: object) -> Subnetwork:
    """A module with trained time constants, no longer where they began."""
    module = Subnetwork(make(), size, tau=0.7, train_tau=True, **options)
    with torch.no_grad():
        raw = module.parametrizations["tau"].original
        raw += 0.3 * torch.randn_like(raw)
    return module


# Trained time constants.


@every_set
def test_trained_tau_is_one_number_a_unit_or_a_dense_metric(
    make: type[Contracting],
) -> None:
    module = Subnetwork(make(), 3, tau=0.7, train_tau=True)
    torch.testing.assert_close(module.tau, torch.full((3,), 0.7), rtol=1e-15, atol=0)
    raw = module.parametrizations["tau"].original
    assert isinstance(raw, nn.Parameter)
    assert len(raw) == (3 if module.metric().is_diagonal else 1)
    assert "tau trained" in repr(module)
    assert "tau fixed" in repr(Subnetwork(make(), 3))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(20):
        optimiser.zero_grad()
        (module.tau * torch.randn(3)).sum().backward()
        optimiser.step()
    assert (module.tau > 0).all()


@every_set
@pytest.mark.parametrize("form", ["x", "r"])
def test_certificate_follows_a_trained_tau(make: type[Contracting], form: str) -> None:
    net = couple([timed(make, form=form) for _ in range(2)])
    certificate = certify(net)
    assert certificate.certified
    tau = array(net.tau)
    assert net.rate == pytest.approx(net.parts[0].constraint.rate / tau.max(), rel=1e-12)
    assert certificate.rate >= net.rate - 1e-9
    L = None if net.terms().L is None else array(net.terms().L)
    M = tau[:, None] ** 0.5 * array(net.metric().matrix()) * tau**0.5
    slopes = [(0.0, 1.0)] * 2
    blocks = [array(part.weight) for part in net.parts]
    exact = assembly_rate(blocks, [form] * 2, slopes, M, L=L, tau=tau)
    assert net.rate - 1e-9 <= certificate.rate <= exact + 1e-9


@every_set
def test_a_trained_tau_without_bounds_is_never_certified_beyond_its_numbers(
    make: type[Contracting],
) -> None:
    module = Subnetwork(make(), 3, train_tau=True)
    for value, said in ((-2000.0, "positive"), (2000.0, "NaN or infinite"), (float("nan"), "NaN")):
        nn.init.constant_(module.parametrizations["tau"].original, value)
        certificate = certify(module)
        assert not certificate.certified
        assert said in certificate.reasons[0]


@every_set
@pytest.mark.parametrize("solver", ["euler", "imex", "exponential-euler", "rk4"])
@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_gradient_of_a_trained_tau(make: type[Contracting], solver: str, backend: str) -> None:
    backend = "auto" if solver == "rk4" else backend
    net = couple([timed(make) for _ in range(2)])
    raws = [part.parametrizations["tau"].original for part in net.parts]
    u = torch.randn(2, 4, 6)

    def loss() -> Tensor:
        found = solve(net.terms(), torch.ones(2, 6), u=u, dt=0.1, solver=solver, backend=backend)
        return found.last.square().sum()

    loss().backward()
    for raw in raws:
        for k in range(len(raw)):
            with torch.no_grad():
                ends = []
                for sign in (1, -1):
                    raw[k] += sign * 1e-5
                    ends.append(float(loss()))
                    raw[k] -= sign * 1e-5
            assert float(raw.grad[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_the_metric_of_a_hierarchy_has_the_gradient_of_its_rates() -> None:
    inner = couple([timed(SingularValueBounded, 2) for _ in range(2)], kind="hierarchy", init_scale=0.3)
    net = couple([inner, Subnetwork(SingularValueBounded(), 2)])
    raw = inner.parts[0].parametrizations["tau"].original

    def coupling(value: Tensor) -> Tensor:
        changed = {"parts.0.parts.0.parametrizations.tau.original": value}
        return torch.func.functional_call(_Matrix(net), {f"net.{k}": v for k, v in changed.items()}, ())

    assert torch.autograd.gradcheck(coupling, raw.detach().clone().requires_grad_())


class _Matrix(nn.Module):
    def __init__(self, net: Assembly) -> None:
        super().__init__()
        self.net = net

    def forward(self) -> Tensor:
        return self.net.terms().L


@every_set
def test_a_trained_tau_is_saved_copied_and_loaded(make: type[Contracting], tmp_path: Path) -> None:
    net, other = (couple([timed(make) for _ in range(2)]) for _ in range(2))
    assert not torch.equal(net.tau, other.tau)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    for one in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(one.tau, net.tau)
        assert certify(one).rate == certify(net).rate
        assert one.parts[0].train_tau


def test_a_network_is_built_with_trained_time_constants(tmp_path: Path) -> None:
    assert make_config({"train_tau": True}).train_tau
    net = build_model("svd-combo", 1, 3, modules=2, units=4, tau=2.0, train_tau=True)
    before = net.core.field.tau.clone()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.randn(2, 6, 1)).square().sum().backward()
    optimiser.step()
    assert (net.core.field.tau != before).all()
    certificate = net.core.certificate()
    assert certificate.certified
    assert certificate.rate >= 0.01 / float(net.core.field.tau.max().detach()) - 1e-9
    config = tmp_path / "config.yaml"
    config.write_text("{modules: 2, units: 4, train_tau: true}")
    assert "tau trained" in CliRunner().invoke(main, ["certify", str(config)]).output
    with pytest.raises(ConfigError, match="train_tau"):
        build_model("lstm", 1, 3, train_tau=True)
    with pytest.raises(ConfigError, match="a trained tau"):
        build_model("adadiag-gated", 1, 3, modules=2, units=4, train_tau=True)


# A second parametrisation.


class Dense(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return W + 3 * torch.ones_like(W)


@pytest.mark.parametrize("form", ["x", "r"])
def test_a_second_parametrisation_takes_the_guarantee_away(form: str) -> None:
    module = Subnetwork(AdaDiagTanh(), 3, form=form)
    net = couple([module, Subnetwork(AdaDiagTanh(), 3)])
    assert module.rate == net.rate == 0.01
    parametrize.register_parametrization(module, "weight", Dense())
    assert module.rate is None
    assert net.rate is None
    assert not module.terms().diagonal
    certificate = certify(module)
    assert not certificate.certified
    assert certificate.rate < -1
    x = torch.randn(2, 3)
    runs = [solve(module, x, dt=0.1, u=torch.zeros(2, 5, 3), backend=b).last for b in ("plain", "fused")]
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)
    W = module.weight
    drift = W @ torch.tanh(x.mT) if form == "x" else torch.tanh(W @ x.mT)
    torch.testing.assert_close(module(0, x), drift.mT - x, rtol=1e-12, atol=1e-12)


def test_spectral_norm_of_a_weight_is_certified_as_it_is() -> None:
    module = Subnetwork(AdaDiagTanh(), 4, weight=torch.tensor([0.5, 0.2, 0.1, -0.3]).diag())
    parametrizations.spectral_norm(module, "weight", n_power_iterations=30)
    assert module.rate is None
    assert float(torch.linalg.matrix_norm(module.weight.detach(), ord=2)) == pytest.approx(1, abs=1e-2)
    assert certify(module).rate < 0.01


# Tied weights.


@pytest.mark.parametrize(
    "make",
    [
        lambda s: couple([s, s, s]),
        lambda s: couple([s] * 2, kind="hierarchy"),
        lambda s: couple([couple([s, Subnetwork(AdaDiagTanh(), 3)]), s]),
        lambda s: couple([couple([s] * 2)] * 2),
    ],
)
def test_tied_weights_are_said_and_saved_once(make: Callable, tmp_path: Path) -> None:
    nets = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="tied and saved once"):
            nets.append(CTRNN(2, make(Subnetwork(SingularValueBounded(), 3))))
    state, x = nets[0].state_dict(), torch.randn(4, 2, 2)
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    save_file(state, tmp_path / "net.safetensors")
    nets[1].load_state_dict(load_file(tmp_path / "net.safetensors"))
    every = nets[0].state_dict(keep_vars=True)
    nets[1].load_state_dict(every)
    torch.testing.assert_close(nets[1](x)[0], nets[0](x)[0], rtol=0, atol=0)
    assert certify(nets[0]).certified
    del state["encoder.bias"]
    with pytest.raises(RuntimeError, match="Missing"):
        nets[1].load_state_dict(state)


def test_a_tied_weight_that_is_missing_is_missed() -> None:
    with pytest.warns(UserWarning, match="tied"):
        net = couple([Subnetwork(SingularValueBounded(), 3)] * 2)
    with pytest.raises(RuntimeError, match="Missing"):
        net.load_state_dict({})


def test_files_with_every_copy_of_a_tied_weight_can_be_read() -> None:
    with pytest.warns(UserWarning, match="tied"):
        net = couple([Subnetwork(SingularValueBounded(), 3)] * 2)
    state = net.state_dict()
    state |= {name.replace("parts.0", "parts.1"): value for name, value in state.items()}
    net.load_state_dict(state)


# Half precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_set_is_sampled_in_half_precision(name: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    options = {"density": 0.2} if "sparse" in name else {}
    module = Subnetwork(CONSTRAINTS[name](**options), 8)
    assert module.weight.dtype == dtype
    assert module.rate is None  # rounding to half precision may cost more than the margin
    net = CTRNN(2, couple([module, Subnetwork(CONSTRAINTS[name](**options), 8)], init="orthogonal"))
    output, _ = net(torch.randn(5, 3, 2))
    assert output.dtype == dtype
    assert output.isfinite().all()
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", [NegativeProduct, SingularValueBounded, Symmetric])
def test_a_weight_of_any_precision_is_taken_up_to_its_rounding(make: type, dtype: torch.dtype) -> None:
    rule, tolerance = make(), max(4 * torch.finfo(dtype).eps, 1e-6)
    W = rule.sample(8).to(dtype)
    module = Subnetwork(rule, 8, weight=W)
    assert module.weight.dtype == dtype
    # The raw tensors are rounded, too, and W is a product of three or four of them.
    torch.testing.assert_close(module.weight, W, rtol=0, atol=8 * tolerance)
    other = W.clone()
    other[0, 1] += 0.3
    with pytest.raises(ContractionError):
        NegativeProduct().right_inverse(other)


# A set of the user's own.


class Skew(Contracting):
    """Of linear units: W = A - A^T."""

    def weight(self, A: Tensor) -> Tensor:
        return A - A.mT

    def raw(self, W: Tensor) -> Tensor:
        return W / 2


class BySpelling(Skew):
    def raw(self, W: Tensor) -> tuple[Tensor]:
        return (W / 2,)


class TorchConvention(Skew):
    def right_inverse(self, W: Tensor) -> Tensor:
        return W / 2


class Wrong(Skew):
    def raw(self, W: Tensor) -> Tensor:
        return W


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [Skew, BySpelling, TorchConvention])
def test_a_set_of_five_lines_works(make: type[Contracting], dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    W = torch.randn(4, 4).triu(1)
    W = W - W.mT
    module = Subnetwork(make("identity"), 4, weight=W)
    torch.testing.assert_close(module.weight, W, rtol=1e-6, atol=1e-6)
    assert len(raw_tensors(module)) == 1
    net = couple([module, Subnetwork(make("identity"), 4)])
    assert net.rate == 0.01
    assert certify(net).rate == pytest.approx(1, abs=1e-6)
    again = pickle.loads(pickle.dumps(net))
    again.load_state_dict(net.state_dict())
    again(0.0, torch.randn(2, 8)).sum().backward()
    assert all(p.grad.isfinite().all() for p in again.parameters())


def test_a_set_with_a_wrong_inverse_fails_at_once() -> None:
    with pytest.raises(ContractionError, match=r"a set of your own needs weight\(\*raw\(W\)\) within"):
        Subnetwork(Wrong("identity"), 4)


# Wrong arguments.


@pytest.mark.parametrize("given", ["singular", SingularValueBounded, nn.Linear(2, 2), None])
def test_what_is_no_set_is_refused_with_the_right_call(given: object) -> None:
    with pytest.raises(ConfigError, match=r"Use Subnetwork\(SingularValueBounded\('tanh'\), 16\)"):
        Subnetwork(given, 16)  # type: ignore[arg-type]


GOOD = Subnetwork(SingularValueBounded(), 4)


@pytest.mark.parametrize("given", [[8, 8], 8, GOOD, [GOOD, 8], [], [nn.Linear(2, 2)]], ids=str)
def test_what_are_no_modules_is_refused_with_the_right_call(given: object) -> None:
    for make in (couple, Assembly):
        with pytest.raises(ConfigError, match=r"Use couple\(\[Subnetwork"):
            make(given)  # type: ignore[operator]


@pytest.mark.parametrize("size", ["16", 16.0, 0, -1, None])
def test_a_size_that_is_no_number_of_units_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match="Use size=16"):
        Subnetwork(SingularValueBounded(), size)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [[[0.0]], np.zeros((1, 1)), torch.zeros(1, 1, dtype=int), 0.0])
def test_a_weight_that_is_no_real_tensor_is_refused(weight: object) -> None:
    with pytest.raises(ShapeError, match="weight must be a floating-point tensor"):
        Subnetwork(SingularValueBounded(), 1, weight=weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [lambda: CTRNN(3, copy.deepcopy(GOOD)), lambda: LSTM(3, 4)])
def test_a_tuple_of_states_is_refused_with_the_right_call(make: Callable) -> None:
    net, u, x = make().double(), torch.zeros(5, 2, 3), torch.zeros(1, 2, 4)
    with pytest.raises(ShapeError, match=r"one tensor; got 2. Pass torch.cat\(h_0"):
        net(u, (x, x))
    with pytest.raises(ShapeError, match=r"one tensor; got 2. Pass torch.cat\(x"):
        net.step(u[0], (x[0], x[0]))


def test_a_field_takes_one_tensor() -> None:
    x = torch.zeros(2, 4)
    with pytest.raises(ShapeError, match="x0 must be one tensor"):
        solve(GOOD, (x, x), [0.0, 1.0])
    with pytest.raises(ShapeError, match="x must be one tensor"):
        GOOD(0.0, (torch.zeros(2, 4), torch.zeros(2, 4)))


@pytest.mark.parametrize("given", [64, "singular", [GOOD]], ids=str)
def test_a_layer_of_no_field_is_refused_with_the_right_call(given: object) -> None:
    with pytest.raises(ConfigError, match=r"Use Subnetwork\(SingularValueBounded\('tanh'\), 64\)"):
        CTRNN(3, given)
