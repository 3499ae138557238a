"""The seven MLPs of 'Gradients explode', smaller: their growth, the two figures, resuming."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ctrnn_assembly.diagnostics.gradients import gsc

FOLDER = Path(__file__).parents[1] / "experiments" / "gradients_explode"
NAMES = ("mlps", "figure1", "figure3", "keep")
EXPLODING = {"batch-relu", "layer-tanh", "batch-tanh", "selu"}


@pytest.fixture(scope="module")
def code() -> Iterator[SimpleNamespace]:
    """The scripts as modules; other experiments may have files of the same names."""
    paths, modules = list(sys.path), {name: sys.modules.pop(name, None) for name in NAMES}
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: import_module(name) for name in NAMES})
    sys.path[:] = paths
    for name, module in modules.items():
        sys.modules.pop(name)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture(scope="module")
def figure1(code, tmp_path_factory) -> tuple[dict, Path]:
    """A run at 30 layers of 64 units, as THEORY re-checked its growths."""
    folder = tmp_path_factory.mktemp("figure1")
    size = ["--datasets=3", "--observations=64", "--depth=30", "--width=64"]
    where = ["--figure", str(folder / "picture"), "--results", str(folder)]
    return code.figure1.main([*size, *where]), folder


# Growth of GSC a layer: THEORY section 9, and the spread of three small data sets.
GROWTHS = {
    "relu": (1.01, 0.025),
    "layer-relu": (1.00, 0.03),
    "batch-relu": (math.sqrt(math.pi / (math.pi - 1)), 0.02),
    "tanh": (1.004, 0.01),
    "layer-tanh": (1.089, 0.015),
    "batch-tanh": (1.10, 0.015),
    "selu": (1.04, 0.01),
}


@pytest.mark.parametrize("name", GROWTHS)
def test_oracle_33_and_the_other_growths(figure1, name):
    expected, tolerance = GROWTHS[name]
    net = figure1[0]["nets"][name]
    assert net["growth"] == pytest.approx(expected, abs=tolerance)
    assert net["explodes"] == (name in EXPLODING)


def test_layer_tanh_explodes_and_its_norm_hides_it(figure1):
    """Against the report; its pre-activations stay as they were, all the same."""
    net = figure1[0]["nets"]["layer-tanh"]
    assert net["fit"] > 0.99
    assert net["gsc"][-1] > 8
    assert min(net["deviation"]) > 0.95
    assert min(net["diversity"]) > 0.4


def test_nets_that_do_not_explode_collapse(figure1):
    nets = figure1[0]["nets"]
    for name in ("relu", "layer-relu"):
        assert nets[name]["diversity"][-1] < 0.12
    for name in ("relu", "layer-relu", "tanh"):
        assert nets[name]["deviation"][-1] < 0.4 * nets[name]["deviation"][0]


def test_figure_1_keeps_its_result_and_pictures(figure1):
    result, folder = figure1
    (kept,) = folder.glob("*-gradients-explode-figure1.json")
    stored = json.loads(kept.read_text())
    assert stored.keys() >= {"date", "command", "commit", "hardware", "versions", "seed", "seconds"}
    assert stored["nets"]["selu"]["growth"] == pytest.approx(result["nets"]["selu"]["growth"], rel=1e-5)
    assert all((folder / f"picture{ending}").stat().st_size > 10_000 for ending in (".png", ".pdf"))


def test_gsc_to_the_error_layer_is_the_reports_formula(code):
    """Q[||J||_qm] Q[|f_l|] / Q[|f_0|], by a full Jacobian; samples of batch norm are coupled."""
    settings = SimpleNamespace(observations=8, depth=3, width=6, seed=0)
    for name in ("layer-tanh", "batch-relu"):
        net, x, label = code.figure1.dataset(name, 0, settings)
        torch.testing.assert_close(x.norm(dim=1), x.new_full((8,), 6**0.5))
        jacobian, size = code.figure1.scale_to_error(net, x, label)
        assert len(jacobian) == len(size) == 5
        f = x
        for layer in net[:1]:
            f = layer(f)

        def rest(f, net=net, label=label):
            return (net[1:](f) * label).sum(1)

        J = torch.autograd.functional.jacobian(rest, f.detach())
        torch.testing.assert_close(jacobian[3], (J.square().sum() / 8 / 6).sqrt())
        torch.testing.assert_close(size[3], f.detach().square().sum(1).mean().sqrt())
        torch.testing.assert_close(size[0], rest(f).detach().square().mean().sqrt())


def test_growth_of_an_exact_exponential(code):
    factor, fit = code.figure1.growth(math.log(1.3) * torch.arange(20.0) + 2)
    assert factor == pytest.approx(1.3)
    assert fit == pytest.approx(1)


@pytest.mark.parametrize("name", GROWTHS)
def test_layers_are_as_described(code, name):
    generator = torch.Generator().manual_seed(1)
    net = code.mlps.mlp(name, [200] * 5, generator)
    x = code.mlps.unit_rms(torch.randn(50, 200, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(x.norm(dim=1), torch.full((50,), 200**0.5))
    variance = 2 / 200 if name.endswith("relu") else 1 / 200
    assert float(net[1][0].weight.detach().var()) == pytest.approx(variance, rel=0.05)
    z = code.figure1.preactivations(net, x)
    assert len(z) == 4
    torch.testing.assert_close(net[3][2](z[3]), net(x).detach())
    dimension = {"layer": 1, "batch": 0}.get(name.split("-")[0])
    if dimension is not None:
        torch.testing.assert_close(z[2].mean(dimension).abs().max(), torch.tensor(0.0))
        variances = z[2].var(dimension, correction=0)
        # the norms add 1e-5 to the variance
        torch.testing.assert_close(variances, torch.ones_like(variances), rtol=0, atol=1e-3)
    assert code.figure1.preactivation_statistics(z).shape == (2, 4)
    assert gsc(net, x, probes=2).value.shape == (5,)


def test_deviation_and_sign_diversity(code):
    z = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -2.0, 0.0], [1.0, -3.0, 0.0], [1.0, -2.0, 0.0]])
    deviation, diversity = code.figure1.preactivation_statistics([z, 2 * z])
    variances = torch.tensor([0.75, 0.5, 0.0])
    torch.testing.assert_close(deviation[0], variances.mean().sqrt())
    torch.testing.assert_close(deviation[1], 2 * deviation[0])
    torch.testing.assert_close(diversity, torch.full((2,), 0.25 / 3))


# Training

SMALL = ["--task=digits", "--images=200", "--search-epochs=2", "--epochs=2", "--depth=4", "--width=12"]


def figure3(code, folder: Path, *more: str) -> dict:
    return code.figure3.main([*SMALL, "--results", str(folder), "--figure", str(folder / "f"), *more])


def test_figure_3_measures_every_epoch(code, tmp_path, monkeypatch):
    monkeypatch.setattr(code.figure3, "RATES", (0.1, 0.01))
    train = code.figure3.run

    def cut_off(name, *arguments):
        if name == "batch-tanh":
            raise KeyboardInterrupt
        train(name, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(code.figure3, "run", cut_off)
        with pytest.raises(KeyboardInterrupt):
            figure3(code, tmp_path)
    (path,) = tmp_path.glob("*-gradients-explode-figure3-digits.json")
    before = json.loads(path.read_text())
    assert list(before["nets"]) == ["batch-relu", "layer-tanh"]
    figure3(code, tmp_path)
    after = json.loads(path.read_text())
    assert list(tmp_path.glob("*.json")) == [path]
    assert after["nets"]["layer-tanh"]["epochs"] == before["nets"]["layer-tanh"]["epochs"]
    assert after["nets"].keys() == EXPLODING
    for net in after["nets"].values():
        assert net["complete"]
        assert [row["epoch"] for row in net["epochs"]] == [0, 1, 2]
        first, last = net["epochs"][0], net["epochs"][-1]
        assert first["effective_depth"] == 0
        assert 0 < last["effective_depth"] <= 4
        assert len(net["changes"]) == 5
        assert min(net["changes"]) > 0
        assert net["searched"].keys() == {"0.1", "0.01"}
        assert 0 <= last["held_out_error"] <= 1
        assert last["gsc"] > 0
    assert (tmp_path / "f.png").exists()


def test_figure_3_says_what_it_lacks(code, tmp_path):
    where = ["--task", "images", "--data-dir", str(tmp_path / "none"), "--results", str(tmp_path)]
    with pytest.raises(SystemExit, match="none"):
        code.figure3.main(where)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="task must be one of"):
        code.figure3.main(["--task", "nothing", "--results", str(tmp_path)])


def test_a_net_that_diverges_is_recorded(code, tmp_path, monkeypatch):
    monkeypatch.setattr(code.figure3, "RATES", (1e30,))
    monkeypatch.setattr(code.figure3, "EXPLODING", ("selu",))
    result = figure3(code, tmp_path)
    net = result["nets"]["selu"]
    assert net["searched"] == {"1e+30": 1.0}
    assert net["epochs"][-1]["gsc"] is None
    assert net["epochs"][-1]["error"] == 1
    assert net["complete"]


def test_a_rate_is_cut_when_the_error_has_not_fallen_for_5_epochs(code, monkeypatch):
    """A net without a gradient keeps its error: the rate falls by .333 every 5 epochs."""
    settings = code.figure3.settings_from(SMALL)
    images = code.figure3.load_images(settings)
    net = torch.nn.Sequential(torch.nn.Linear(64, 10, dtype=torch.float32), torch.nn.Softmax(1))
    torch.nn.init.zeros_(net[0].weight)
    rates = []
    step = torch.optim.SGD.step

    def recorded(self, *given):
        rates.append(self.param_groups[0]["lr"])
        self.zero_grad()
        return step(self, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    errors = code.figure3.training(net, images, 1.0, settings)
    found = [next(errors) for _ in range(12)]
    assert len(set(found)) == 1
    by_epoch = rates[::2]
    assert by_epoch == pytest.approx([1.0] * 6 + [0.333] * 5 + [0.333**2], rel=1e-9)


def test_the_rates_are_the_reports(code):
    assert len(code.figure3.RATES) == 21
    assert code.figure3.RATES[:3] == pytest.approx((1e5, 3e4, 1e4))
    assert code.figure3.RATES[-2:] == pytest.approx((3e-5, 1e-5))


def test_the_vjps_of_a_net_add_up_to_its_gradient(code):
    settings = code.figure3.settings_from(SMALL)
    images = code.figure3.load_images(settings)
    for name in ("relu", "layer-tanh", "batch-tanh"):
        net = code.figure3.classifier(name, images, settings).double()
        hidden, x = net[:-1], torch.randn(5, images.train.x.shape[1], requires_grad=True)
        initial = [W.clone() for W in code.figure3.linear(hidden)]
        with torch.no_grad():
            for layer in hidden:
                layer[0].weight.add_(0.1 * torch.randn_like(layer[0].weight))
        top = hidden(x)
        g = torch.randn_like(top)
        (true,) = torch.autograd.grad(top, x, g)
        for vjp in reversed(code.figure3.vjps(hidden, initial, x.detach())):
            g = sum(vjp(g[None]))[0]
        torch.testing.assert_close(g, true)
