"""A certified radius is a lower bound on the distance to another class, and an attack an upper one."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cli_tools import Cli
from ctrnn_assembly import CTRNN, Absolute, Activation, SequenceClassifier, Subnetwork, Triangular
from ctrnn_assembly.data import load_task
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.models import build_model
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.robustness import NORMS, attack, certified_radii, pooled_gains
from ctrnn_assembly.stack import Stack
from solver_problems import F64, normal
from stored_runs import store_run, strict_json

LENGTHS = torch.tensor([12, 5, 1, 9])
DOUBLED = Activation("doubled", lambda x: 2 * x, slope=(0.0, 2.0))


def linear_net(core, pool):
    """Units that nothing turns or bends, moved along the difference of the readout's rows."""
    if core == "stack":
        options = {"norm": "none", "mix": "linear", "phi": "identity", "batch_first": True}
        net = Stack(2, 1, [Pairs(2, phi=None), Pairs(2, phi=None)], substeps=2, **options)
    else:
        form = "r" if core == "inside" else "x"
        field = Subnetwork(Triangular(DOUBLED), 2, form=form, weight=torch.zeros(2, 2), tau=4.0)
        net = CTRNN(2, field, batch_first=True, dt=0.3, substeps=3)
    read = "rate" if core == "rate" else "state"
    model = SequenceClassifier(net, 2, pool=pool, readout_input=read).double().eval()
    with torch.no_grad():
        for layer in net.layers if core == "stack" else ():
            layer.field.frequency.zero_()
            layer.field.log_rate.fill_(-1.5)
            layer.C.weight.copy_(layer.B.weight.mT)
            layer.mix.inner.weight.abs_()
        if core != "stack":
            way = model.readout.weight[0] - model.readout.weight[1]
            net.encoder.weight.copy_(torch.outer(way, torch.tensor([1.0, -2.0], dtype=F64)))
    return model


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("core", ["state", "rate", "inside", "stack"])
def test_radii_of_a_linear_net_are_its_exact_distances(core, pool):
    model, u = linear_net(core, pool), normal(4, 12, 2, seed=3).requires_grad_()
    logits = model(u, lengths=LENGTHS)
    proven, radii = certified_radii(model, u, LENGTHS)
    assert_close(proven, logits, rtol=0.0, atol=0.0)
    margin = logits.diff(dim=1)[:, 0]
    slopes = torch.autograd.grad(margin.sum(), u)[0].norm(dim=-1)
    exact = {
        "largest": margin.abs() / slopes.sum(1),
        "rms": margin.abs() / (LENGTHS.sqrt() * slopes.norm(dim=1)),
    }
    for norm, radius in zip(NORMS, radii, strict=True):
        assert (radius <= exact[norm]).all()
        assert_close(radius, exact[norm].detach(), rtol=1e-5, atol=1e-8)  # of the proven factor
        found = attack(model, u.detach(), LENGTHS, norm=norm, steps=4, rounds=7)
        assert (found >= radius).all()
        assert_close(found, exact[norm].detach(), rtol=0.05, atol=0.0)  # of seven radii


NETS = [
    {"model": "svd-combo", "activation": "tanh"},
    {"model": "svd-combo", "activation": "tanh", "activation_place": "inside", "solver": "imex"},
    {"model": "svd-combo", "substeps": 3, "solver": "imex", "coupling_scale": 5.0},
    {"model": "symmetric", "solver": "exponential-euler", "coupling": "none"},
    {"model": "product", "coupling": "ring"},
    {"model": "absolute", "readout_input": "rate"},
    {"model": "triangular", "tau": 2.5, "readout_input": "rate"},
    {"model": "sparse-combo", "density": 0.5},
    {"model": "adadiag-tanh", "solver": "exponential-euler"},
    {"model": "adadiag-gated-constant", "activation": "tanh"},
]
NETS = [net | {"modules": 2, "units": 3} for net in NETS]
NETS += [
    {"model": "deep-adadiag", "norm": norm, "mix": mix, "pool": pool, "width": 4, "depth": depth}
    for norm, mix, pool, depth in [
        ("batch", "tanh-glu", "mean", 2),
        ("none", "linear", "last", 3),
        ("rms", "mlp", "mean", 1),
        ("none", "mlp", "last", 1),
    ]
]
NETS.append({"model": "deep-selective", "input_range": 4.0, "width": 4, "depth": 2})


def hunt(net, seed, **strength):
    """Certified radii of a random net, and the smallest perturbations that an attack finds."""
    model = build_model(net | {"dt": 1.0 if "deep" in net["model"] else 0.2, "seed": seed}, 2, 3)
    model = model.double().eval().requires_grad_(False)
    model.core.encoder.weight.mul_(4)
    u, lengths = normal(6, 8, 2, seed=seed).clamp(-3, 3), torch.tensor([8, 1, 8, 3, 8, 5])
    _, radii = certified_radii(model, u, lengths)
    found = torch.stack([attack(model, u, lengths, norm=norm, **strength) for norm in NORMS])
    assert (radii > 0).all()
    return radii, found


@pytest.mark.parametrize("net", NETS, ids=lambda net: "-".join(map(str, net.values())))
def test_no_attack_succeeds_below_the_certified_radius(net):
    radii, found = hunt(net, 0, restarts=2, steps=5, rounds=4)
    assert (found >= radii).all()


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS, ids=lambda net: "-".join(map(str, net.values())))
def test_no_strong_attack_succeeds_below_the_certified_radius(net):
    radii, found = hunt(net, 1, restarts=2, steps=10, rounds=6)
    assert (found >= radii).all()


def test_what_lies_behind_the_end_of_a_sequence_counts_for_nothing():
    model, u = linear_net("state", "mean"), normal(4, 12, 2)
    _, whole = certified_radii(model, u, LENGTHS)
    for k, length in enumerate(LENGTHS.tolist()):
        _, cut = certified_radii(model, u[k : k + 1, :length])
        assert_close(cut[:, 0], whole[:, k], rtol=1e-12, atol=0.0)


def test_the_gains_of_a_stacks_certificate_count_where_they_are_smaller():
    h, facts, root = (
        torch.ones(4),
        SimpleNamespace(peak_gain=1.5, l2_gain=0.5),
        torch.arange(1, 5) ** 0.5,
    )
    for pool, rms in (("last", 0.5 * root), ("mean", 0.5 * torch.ones(4))):
        peak, square = pooled_gains(h, pool, facts)
        assert_close(peak, torch.tensor([1.0, 1.5, 1.5, 1.5]))
        assert_close(square, rms)


class Doubled(SequenceClassifier):
    def forward(self, *given, **options):
        return 2 * super().forward(*given, **options)


def refused(change=None, net="svd-combo", *, dt=0.1, kind=SequenceClassifier, **options):
    made = build_model(net, 2, 3, dt=dt, **options) if net != "lstm" else build_model(net, 2, 3)
    model = kind(made.core, 3).double().eval()
    if change is not None:
        change(model)
    with pytest.raises(ConfigError) as error:
        certified_radii(model, normal(2, 4, 2))
    return str(error.value)


def test_nets_without_a_proof_are_refused_by_name():
    small = {"modules": 2, "units": 3}
    assert "training mode" in refused(lambda model: model.core.train(), **small)
    for part in ("readout", "core", "core.encoder"):

        def hooked(model, part=part):
            model.get_submodule(part).register_forward_hook(lambda module, given, out: 9 * out)

        assert "hooks" in refused(hooked, **small)
    louder = lambda model: setattr(model, "read", lambda x: model.readout(x) ** 3)  # noqa: E731
    assert "SequenceClassifier with hooks or methods of its own" in refused(louder, **small)
    assert "Doubled with hooks or methods of its own" in refused(kind=Doubled, **small)
    assert "float64" in refused(lambda model: model.float(), **small)
    assert "LSTM is a baseline" in refused(net="lstm")
    assert "bf16 products" in refused(
        solver="euler", matmul_precision="bf16", margin=0.5, dt=0.5, **small
    )
    assert "no proof is known for steps of rk4" in refused(solver="rk4", **small)
    assert "bound on the step's factor" in refused(solver="euler", coupling_scale=500.0, **small)
    stack = {"net": "deep-adadiag", "dt": 1.0, "depth": 1, "width": 4}
    assert "layer 0: the mix glu has no Lipschitz constant" in refused(mix="glu", **stack)
    one_field = lambda model: setattr(model.core, "one_field", True)  # noqa: E731
    assert "all layers as one field" in refused(one_field, **stack)
    assert "gates of kind 'shared'" in refused(net="adadiag-gated-shared", **small)

    def broken(model):
        with torch.no_grad():
            model.core.encoder.weight[0, 0] = torch.nan

    assert "NaN" in refused(broken, **small)


def test_a_readout_that_is_not_finite_has_no_radius():
    model = linear_net("state", "last")
    with torch.no_grad():
        model.readout.weight[0, 0] = torch.inf
    assert (certified_radii(model, normal(4, 12, 2))[1] == 0).all()


def test_evaluate_shows_radii_and_an_attack(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli, run = Cli(capsys), tmp_path / "run"
    store_run(run, model="svd-combo", resize=4)
    given = ("evaluate", run, "--radius", "--samples=20", "--steps=2", "--restarts=2", "--rate=0.5")
    picture = tmp_path / "radius.svg"
    done = cli(*given, "--plot", picture, "--npz", tmp_path / "radii.npz")
    assert done.code == 0
    assert "largest over time: certified" in done.out
    assert "attack_rms" in picture.read_text()
    found = strict_json(cli(*given, "--json").out)
    rows, stored = found["rows"], np.load(tmp_path / "radii.npz")
    for norm in NORMS:
        proven, tried = ([row[f"{bound}_{norm}"] for row in rows] for bound in ("certified", "attack"))
        assert all(low <= high for low, high in zip(proven, tried, strict=True))
        assert proven == stored[f"certified_{norm}"].tolist()
        assert found["norms"][norm]["ratio"] >= 1
    assert sum(row["certified_rms"] > 0 for row in rows) == round(20 * found["test_accuracy"])
    assert "drop --swap" in cli.refuses("evaluate", run, "--radius", "--swap=imex")
    for name in ("samples", "steps", "restarts", "rate"):
        assert f"{name} must be" in cli.refuses(*given, f"--{name}=0")
        assert f"--{name} is of the attack of --radius" in cli.refuses("evaluate", run, f"--{name}=1")
    assert load_task("digits").sequence.unit == found["unit"] == 16.0


def test_large_logits_that_cancel_prove_no_radius():
    """Rows of 1e9 at right angles to the state: what is left of the logits is rounding."""
    torch.manual_seed(0)
    model = SequenceClassifier(CTRNN(1, Subnetwork(Absolute("tanh"), 16), batch_first=True), 2)
    model, u = model.double().eval(), normal(1, 9, 1)
    x = model.core.last(u)[0]
    wrong = 0
    for seed in range(16):
        rows = 1e9 * normal(2, 16, seed=seed)
        rows -= torch.outer(rows @ x, x) / (x @ x)
        with torch.no_grad():
            model.readout.weight.copy_(rows)
            model.readout.bias.zero_()
        logits, radii = certified_radii(model, u)
        exact = [
            sum(Fraction(w) * Fraction(z) for w, z in zip(row, x.tolist(), strict=True))
            for row in rows.tolist()
        ]
        wrong += bool((radii > 0).any()) and int(exact[1] > exact[0]) != int(logits.argmax())
    assert wrong == 0


def test_answers_at_every_step_have_no_radius():
    with pytest.raises(ConfigError, match="one answer"):
        certified_radii(linear_net("state", "all"), normal(4, 12, 2))
