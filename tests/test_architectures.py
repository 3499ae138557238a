"""Every model by name: it builds, learns in every trainable part, and follows its seed alone."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly.errors import ConfigError, ContractionError
from ctrnn_assembly.models import MODELS, SETTINGS, build_model, unused_settings
from ctrnn_assembly.training.config import TrainConfig

BASELINES = [name for name, model in MODELS.items() if model.is_baseline]
UNCERTIFIED = ["unconstrained", "published-sparse-combo", "deep-free"]
CERTIFIED = [name for name in MODELS if name not in (*UNCERTIFIED, *BASELINES)]


def small(name: str, **settings: object) -> nn.Module:
    sizes: dict[str, object] = {"modules": 3, "units": 5}
    if "sparse" in name:
        sizes["density"] = 0.3
    if MODELS[name].is_stack:  # batch norm would join samples, and differ between modes
        sizes = {"depth": 2, "width": 6, "norm": "layer"}
    return build_model(name, 3, 4, **{**sizes, **settings})  # type: ignore[arg-type]


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_parameter_gets_a_finite_gradient(name: str) -> None:
    model = small(name)
    logits = model(batch(6, 7, 3))
    assert logits.shape == (6, 4)
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    # Of the theorems' raw tensors single entries are redundant (a scale, a triangle), none entirely.
    assert all(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", MODELS)
def test_weights_follow_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    one = small(name, seed=1).state_dict()
    two, other = small(name, seed=1).state_dict(), small(name, seed=2).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", MODELS)
def test_copies_casts_and_modes_give_the_same_output(name: str) -> None:
    model, u = small(name), batch(6, 7, 3)
    expected = model(u)
    other = small(name, seed=9)
    other.load_state_dict(model.state_dict())
    for same in (copy.deepcopy(model), other, model.eval(), model.train()):
        assert torch.equal(same(u), expected)
    # float32 carries 1e-7 a value; seven steps add up to less than 1e-4
    assert_close(copy.deepcopy(model).float()(u.float()).double(), expected, rtol=1e-4, atol=1e-4)
    assert_close(model.float().double()(u), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_shorter_sequence_is_read_at_its_end(name: str) -> None:
    model, u = small(name), batch(3, 7, 3)
    lengths = torch.tensor([7, 2, 5])
    together = model(u, lengths=lengths)
    alone = torch.cat([model(u[i : i + 1, :k]) for i, k in enumerate(lengths)])
    assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CERTIFIED)
def test_a_certified_model_is_certified_by_construction(name: str) -> None:
    core = small(name).core
    for field in [layer.field for layer in core.layers] if MODELS[name].is_stack else [core.field]:
        assert field.rate is not None
        assert field.rate > 0


@pytest.mark.parametrize("name", [*UNCERTIFIED, *BASELINES])
def test_what_has_no_certificate_says_so(name: str) -> None:
    assert "no certificate" in MODELS[name].summary
    field = getattr(small(name).core, "field", None)
    assert field is None or field.rate is None


def test_sparse_combo_net_has_the_published_size() -> None:
    # PUBLISHED: 16 x 32, 130K. Trained: 120 blocks of L, 32 x 32 each; W_in and b; W_out.
    coupling = 120 * 32 * 32
    assert trained(build_model("sparse-combo", 1, 10)) == coupling + 512 + 512 + 5120 == 129_024
    assert trained(build_model("sparse-combo", 3, 10)) == 130_048
    assert trained(build_model("published-sparse-combo", 1, 10)) == 129_024
    assert sum(x.numel() for x in build_model("sparse-combo", 1, 10).core.encoder.parameters()) == 1024


def test_svd_combo_net_trains_its_modules_too() -> None:
    modules = 16 * (32 * 32 + 32)  # A and b of Theorem 5
    assert trained(build_model("svd-combo", 1, 10)) == 129_024 + modules


@pytest.mark.parametrize(("pairs", "published"), [(5, 11_264), (20, 26_624)])
def test_adadiag_net_has_the_published_size(pairs: int, published: int) -> None:
    # No bias anywhere: W_in, W_out, C coupling blocks, the diagonals.
    assert 512 + 5120 + pairs * 1024 + 512 == published
    assert trained(build_model("adadiag-tanh", 1, 10, coupling=f"random:{pairs}")) == published


def test_the_papers_couplings_start_as_they_say() -> None:
    """Standard deviation 1 / sqrt(32) for a normal B, as published; less for a uniform one."""
    expected = {"normal": 32**-0.5, "uniform": 96**-0.5, "orthogonal": 32**-0.5, None: 96**-0.5}
    for init, deviation in expected.items():
        net = build_model("sparse-combo", 1, 10, modules=4, coupling_init=init)  # type: ignore[arg-type]
        entries = torch.cat([x.detach().flatten() for x in net.core.field.coupling.parameters()])
        assert abs(float(entries.std()) / deviation - 1) < 0.05, init


@pytest.mark.parametrize("name", ["sparse-combo", "adadiag-tanh", "adadiag-gated-input"])
def test_the_bias_of_the_input_can_be_chosen(name: str) -> None:
    sizes = [trained(build_model(name, 1, 10, modules=2, units=4, bias=b)) for b in (False, True)]
    assert sizes[1] - sizes[0] == 8
    assert trained(build_model(name, 1, 10, modules=2, units=4)) in sizes


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="model must be one of") as caught:
        build_model("nope", 1, 2)
    assert all(name in str(caught.value) for name in MODELS)


@pytest.mark.parametrize("settings", [{"modules": 0}, {"units": 0}, {"activation": "nope"}, {"dt": -1.0},
                                      {"coupling": "nope"}, {"solver": "nope"}])  # fmt: skip
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must"):
        build_model("svd-combo", 1, 2, **{"modules": 2, "units": 3, **settings})  # type: ignore[arg-type]


def test_a_setting_that_a_model_would_ignore_is_refused() -> None:
    for name, settings in (
        ("svd-combo", {"density": 0.5}),
        ("absolute", {"magnitude": 2.0}),
        ("svd-combo", {"gate_bounds": (0.1, 0.3)}),
        ("adadiag-tanh", {"outside_set": "rescale"}),
        ("unconstrained", {"margin": 0.5}),
        ("lstm", {"solver": "imex"}),
        ("rnn", {"coupling": "ring"}),
    ):
        (key, value), *_ = settings.items()
        with pytest.raises(ConfigError) as caught:
            build_model(name, 1, 2, **settings)
        assert f"{key} {value} is not used by model {name}" in str(caught.value)
        build_model(name, 1, 2, modules=2, units=3, **{key: None})  # the model's own
    with pytest.raises(
        ConfigError, match=r"got 'dense'. Did you mean 'density'.* setting must be one of "
    ):
        build_model("sparse-combo", 1, 2, dense=0.3)


def test_every_network_setting_of_a_run_reaches_its_model() -> None:
    groups = {name: field.title for name, field in TrainConfig.model_fields.items()}
    given = {name for name, group in groups.items() if group in ("network", "solver")}
    assert given - {"model"} <= set(SETTINGS)
    assert set(SETTINGS) - given == {"seed", "gate_bounds"}
    for name in MODELS:
        assert unused_settings(TrainConfig(model=name)) == []
    config = TrainConfig(model="lstm", density=0.5, coupling="ring", units=3, modules=2)
    assert unused_settings(config) == [
        "coupling ring is not used by model lstm",
        "density 0.5 is not used by model lstm",
    ]
    assert config.unused() == unused_settings(config)
    assert build_model(config, 1, 2).core.hidden_size == 6  # said, not refused: a recipe may set them


@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_builds_what_its_settings_build(name: str) -> None:
    own = MODELS[name].settings
    config = TrainConfig(model=name, modules=2, units=3, density=0.5, seed=3)
    given = {"modules": 2, "units": 3, "density": 0.5, "seed": 3, "dt": 0.03}
    by_name = build_model(name, 2, 3, **{key: value for key, value in given.items() if key in own})
    for same in (
        build_model(config, 2, 3),
        build_model(config.model_dump(include={"model"} | given.keys()), 2, 3),
    ):
        for (key, a), b in zip(by_name.state_dict().items(), same.state_dict().values(), strict=True):
            assert torch.equal(a, b), key


def test_random_0_is_none() -> None:
    nets = [build_model("svd-combo", 1, 2, modules=3, units=4, coupling=c) for c in ("random:0", "none")]
    assert nets[0].core.field.coupling is None
    for a, b in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "meant"),
    [
        ({"model": "svd_combo"}, "svd-combo"),
        ({"activation": "tanhh"}, "tanh"),
        ({"coupling": "rings"}, "ring"),
        ({"solver": "eulr"}, "euler"),
        ({"coupling_kind": "feedbak"}, "feedback"),
    ],
)
def test_a_mistyped_name_gets_the_nearest_one(settings: dict[str, str], meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean {meant!r}"):
        build_model({"model": "svd-combo", "modules": 2, "units": 3, **settings}, 1, 2)


def test_modules_that_no_sample_can_be_are_refused() -> None:
    with pytest.raises(ContractionError, match=r"density 0\.9 and magnitude 30"):
        build_model("sparse-combo", 1, 2, modules=1, density=0.9, magnitude=30.0)
