"""Every kind of network under torch's own tools: pickle, LBFGS, safetensors, pruning."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from ctrnn_assembly import CTRNN, SequenceClassifier, Subnetwork, certify, couple
from ctrnn_assembly.baselines import EulerRNN, LipschitzRNN
from ctrnn_assembly.contracting import CONSTRAINTS
from ctrnn_assembly.coupling import BlockMatrix
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.models import MODELS, build_model


def subnetwork(name: str = "singular", seed: int = 0, **options: Any) -> Subnetwork:
    return Subnetwork(CONSTRAINTS[name](), 4, generator=torch.Generator().manual_seed(seed), **options)


def nested(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    inner = couple([subnetwork(name, seed) for name in ("product", "singular")], generator=generator)
    below = [inner, subnetwork("triangular", seed, form="r", tau=2.0)]
    return couple(below, kind="hierarchy", psi="tanh", generator=generator)


def gated(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    parts = [subnetwork("adadiag-tanh", seed), subnetwork("symmetric", seed)]
    return CTRNN(2, couple(parts, generator=generator), gate="constant", generator=generator)


class Saturated(nn.Module):
    """A vector field that is no subnetwork."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) - x


def own(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return CTRNN(2, Saturated(), size=4, initial_state="trained")


def tied(seed: int = 0) -> nn.Module:
    part = Subnetwork(CONSTRAINTS["absolute"](nn.LeakyReLU(0.2)), 4, generator=seeded(seed))
    return couple([part, part, part], "ring", generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(name: str, seed: int = 0) -> nn.Module:
    sparse = {"density": 0.3, "magnitude": 0.5} if "sparse" in name else {}
    sizes = {"depth": 2, "width": 4} if MODELS[name].is_stack else {"modules": 2, "units": 4}
    return build_model(name, 2, 3, **sizes, seed=seed, **sparse)


NETS: dict[str, Callable[..., Any]] = {
    "subnetwork": lambda seed=0: subnetwork(seed=seed),
    "nested": nested,
    "gated": gated,
    "own field": own,
    "tied": tied,
    "trained tau": lambda seed=0: subnetwork("symmetric", seed, train_tau=True, bias=False),
    **{name: partial(classifier, name) for name in MODELS},
}
# Said, and meant, of the tied network.
pytestmark = pytest.mark.filterwarnings("ignore:.*repeat another")
every_net = pytest.mark.parametrize("name", NETS)


def loss_of(net: Any) -> Tensor:
    """A number that every trained parameter enters."""
    torch.manual_seed(1)
    if isinstance(net, SequenceClassifier | CTRNN):
        out = net(torch.randn(3, 5, 2))
        return (out if isinstance(out, Tensor) else out[0]).square().sum()
    return net(0.0, torch.randn(3, net.size)).square().sum()


def certificate_of(net: Any) -> Any:
    core = getattr(net, "core", net)
    return core.certificate() if hasattr(core, "certificate") else certify(core)


def through_torch_save(net: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


ROUTES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": through_torch_save,
    "spawn": lambda net: pickle.loads(ForkingPickler.dumps(net)),
    "deepcopy": copy.deepcopy,
    "copy of a copy": lambda net: copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(net)))),
}


@every_net
def test_networks_travel_with_weights_classes_and_certificate(name: str) -> None:
    net = NETS[name]()
    expected, certificate = loss_of(net), certificate_of(net)
    expected.backward()  # what a pass leaves behind travels, or stays behind
    for route, send in ROUTES.items():
        there = send(net)
        assert torch.equal(loss_of(there), expected), route
        assert str(there) == str(net), route
        assert [name for name, _ in there.named_parameters()] == [
            name for name, _ in net.named_parameters()
        ]
        if route == [*ROUTES][-1]:  # by both ways, pickled and copied
            assert certificate_of(there) == certificate
        for one in there.modules():
            if isinstance(one, Subnetwork):
                one.weight = one.weight.detach().clone()  # the property is there too
        loss_of(there).backward()


class Named(Subnetwork):
    """A subclass with a parametrised bias."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        parametrize.register_parametrization(self, "bias", nn.Tanh())


def test_a_subclass_with_parametrisations_of_its_own_travels() -> None:
    net = Named(CONSTRAINTS["singular"](), 4)
    nn.utils.parametrizations.spectral_norm(net)
    there = pickle.loads(pickle.dumps(net))
    assert isinstance(there, Named)
    assert torch.equal(there.eval().weight, net.eval().weight)
    assert torch.equal(there.bias, net.bias)


def send_back(net: Any, u: Tensor, queue: Any) -> None:
    queue.put((net(u).tolist(), net.core.certificate().rate))


@pytest.mark.slow
def test_a_spawned_worker_gets_the_network() -> None:
    net, context = NETS["svd-combo"](), torch.multiprocessing.get_context("spawn")
    queue, u = context.SimpleQueue(), torch.randn(3, 5, 2)
    worker = context.Process(target=send_back, args=(net, u, queue))
    worker.start()
    assert queue.get() == (net(u).tolist(), net.core.certificate().rate)
    worker.join()


@every_net
def test_states_are_files_without_code(name: str, tmp_path: Path) -> None:
    net, state, tensors = NETS[name](), tmp_path / "net.pt", tmp_path / "net.safetensors"
    torch.save(net.state_dict(), state)
    save_file(net.state_dict(), tensors)
    for stored in (torch.load(state, weights_only=True), load_file(tensors)):
        other = NETS[name](5)
        other.load_state_dict(stored)
        assert torch.equal(loss_of(other), loss_of(net))


@every_net
def test_lbfgs_trains_parameters_and_gradients_of_one_layout(name: str) -> None:
    net = NETS[name]()
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss.item()

    before = optimiser.step(closure)
    assert loss_of(net).item() < before
    for each in net.parameters():
        assert each.is_contiguous()
        assert each.grad is None or each.grad.stride() == each.stride()


@every_net
def test_weights_and_couplings_can_be_pruned(name: str) -> None:
    net = NETS[name]()
    called = parametrize.ParametrizationList, BlockMatrix, nn.Linear, EulerRNN
    for module in [each for each in net.modules() if isinstance(each, called)]:
        for key in dict(module.named_parameters(recurse=False)):
            prune.l1_unstructured(module, key, amount=0.5)
    optimiser = torch.optim.SGD(net.parameters(), 1e-3)
    for _ in range(2):  # a stale tensor would be part of the last graph
        optimiser.zero_grad()
        loss_of(net).backward()
        optimiser.step()
    loss_of(net)
    for key, mask in dict(net.named_buffers()).items():
        if key.endswith("_mask"):
            module, _, tensor = key.removesuffix("_mask").rpartition(".")
            assert not getattr(net.get_submodule(module), tensor)[mask == 0].any()
    assert certificate_of(net).certified == certificate_of(NETS[name]()).certified


def unfilled(net: nn.Module, device: str = "cpu") -> Any:
    """As `to_empty`, with values that cannot be mistaken for others."""
    for each in net.to_empty(device=device).state_dict(keep_vars=True).values():
        each.data.fill_(-7)
    for each in net.buffers():
        each.data.fill_(-7)
    return net


FILLS: dict[str, Callable[[Any, Any], Any]] = {
    "to_empty": lambda net, state: unfilled(net).load_state_dict(state),
    "assign": lambda net, state: net.load_state_dict(state, assign=True),
}


@pytest.mark.parametrize("fill", FILLS)
@every_net
def test_networks_are_built_on_meta_and_filled_from_a_file(
    name: str, fill: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = NETS[name](5)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    with monkeypatch.context() as patch, torch.device("meta"):
        for kind in CONSTRAINTS.values():
            patch.setattr(kind, "sample", None)
        other = NETS[name]()
        assert all(each.is_meta for each in (*other.parameters(), *other.buffers()))
    FILLS[fill](other, load_file(tmp_path / "net.safetensors"))
    assert not any(each.is_meta for each in (*other.parameters(), *other.buffers()))
    assert torch.equal(loss_of(other), loss_of(net))
    assert certificate_of(other) == certificate_of(net)
    loss_of(other).backward()
    assert [each.shape for each in other.parameters()] == [each.shape for each in net.parameters()]


@pytest.mark.parametrize("net", [CTRNN(2, subnetwork()), LipschitzRNN(2, 4)], ids=["layer", "baseline"])
def test_a_step_has_its_shape_on_meta(net: Any) -> None:
    x = torch.empty(3, 4, device="meta")
    assert copy.deepcopy(net).double().to("meta").step(x[:, :2], x).shape == x.shape


def test_a_large_network_costs_nothing_on_meta() -> None:
    with torch.device("meta"):
        model = build_model("svd-combo", 3, 10, modules=64, units=1024, coupling="random:100")
    assert sum(each.numel() for each in model.parameters()) > 150e6


def test_a_file_of_other_pairs_or_time_constants_is_refused_after_meta() -> None:
    state = classifier("svd-combo").state_dict()
    with torch.device("meta"):
        pair = build_model("svd-combo", 2, 3, modules=3, units=4, coupling="chain")
        one = Subnetwork(CONSTRAINTS["singular"](), 4)
    with pytest.raises(ConfigError, match="the file couples the blocks"):
        pair.load_state_dict(state, assign=True, strict=False)
    state = subnetwork().state_dict()
    state["tau"] = -state["tau"]
    with pytest.raises(ConfigError, match="tau must be positive"):
        one.load_state_dict(state, assign=True)
