"""Refutations: found for nets that do not contract, never for one that does; files that replay."""

import json
import math
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import mpmath as mp
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cli_tools import Cli
from ctrnn_assembly import CONSTRAINTS, CTRNN, Activation, Subnetwork, Unconstrained, certify
from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.given import terms_of
from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points
from ctrnn_assembly.diagnostics.linearise import behaviour, flow_jacobian, step_jacobian
from ctrnn_assembly.errors import DataError
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.testing import assert_certified
from ctrnn_assembly.witness import CURVATURE, KINKS, Witness, _growing, _root, field_of, judge, replay
from stored_runs import store_run

SETTINGS = dict.fromkeys(("dt", "solver", "activation", "place", "tau", "uncertainty"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "120")
    return Cli(capsys)


def verdicts(net, **step):
    return judge(net, certify(net, **step))


def unproven(net, **step):
    """The verdicts of the search alone, as if nothing were proven."""
    return judge(net, Certificate.refused("switched off", **({"dt": 1.0, "solver": "euler"} | step)))


def large(kind, gain, seed=0, **options):
    torch.manual_seed(seed)
    net = kind(2, 8, **options)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(gain)
    return net


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_a_bistable_net_is_refuted_in_flow_and_step(place):
    found = verdicts(terms_of([[3.0]], place=place), dt=0.03, solver="euler")
    assert (found.flow, found.step) == ("refuted", "refuted")
    for one in found.witnesses:
        (u,), states = one.input, [state[0] for state in one.states]
        two = one.kind == "two fixed points"
        for x in states if two else states[:1]:
            drift = 3 * math.tanh(x) + u if place == "outside" else math.tanh(3 * x + u)
            assert abs(drift - x) < 1e-9
        slope = 3 * (1 - math.tanh(states[0] if place == "outside" else 3 * states[0] + u) ** 2)
        assert abs(states[0] - states[1]) > 1 if two else slope > 1


def test_a_step_too_long_is_refuted_and_its_flow_is_not():
    found = verdicts(terms_of([[0.0]]), dt=2.5, solver="euler")
    assert (found.flow, found.step) == ("certified", "refuted")
    (one,) = found.witnesses
    assert (one.kind, one.refutes, one.dt) == ("an unstable fixed point", "step", 2.5)
    assert "apart, and 0.001139 after 6 steps" in one.run  # 1e-4 times 1.5^6
    assert verdicts(terms_of([[0.0]]), dt=1.9, solver="euler").step == "certified"


def test_an_unstable_focus_is_refuted_and_a_stable_one_is_not():
    """x' = -x + tanh(W x) with W = a I + rotation of 4: its eigenvalues at 0 are a - 1 +- 4i."""
    for a, name in ((1.5, "refuted"), (1.001, "refuted"), (0.999, "unknown")):
        found = unproven(terms_of([[a, 4.0], [-4.0, a]], place="inside"), dt=0.03)
        assert found.flow == name


@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"bias": False}])
def test_recurrent_nets_of_large_gain_are_refuted_in_their_own_dtype(options):
    net = large(nn.RNN, 8.0, seed=1, **options).float()
    found = verdicts(net)
    assert (found.flow, found.step) == (None, "refuted")
    assert found.witnesses[0].run.endswith("float32")
    assert replay(found.witnesses[0], net) == found.witnesses[0]


@pytest.mark.parametrize("layers", [1, 3])
def test_an_rnn_as_terms_has_its_fixed_points_and_their_eigenvalues(layers):
    net = large(nn.RNN, 0.8, num_layers=layers).double()
    terms, u = field_of(net), torch.ones(1, 2, dtype=torch.float64)
    (x,) = find_fixed_points(net, u[0]).points
    assert terms.drift(x[None], u).abs().max() < 1e-9
    ours = 1 + torch.linalg.eigvals(flow_jacobian(terms, u, x[None])[0])
    theirs = torch.linalg.eigvals(step_jacobian(net, u, x[None])[0])
    assert torch.dist(ours.abs().sort()[0], theirs.abs().sort()[0]) < 1e-7


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_gated_nets_are_unknown(kind):
    found = verdicts(large(kind, 8.0))
    assert (found.flow, found.step) == (None, "unknown")
    assert f"no formula by which a {kind.__name__}" in found.tried


def test_a_trained_rnn_is_refuted_with_its_witness():
    """One that learns to keep the sign of its first input: two states."""
    torch.manual_seed(0)
    net, head = nn.RNN(1, 4), nn.Linear(4, 1)
    trained = [*net.parameters(), *head.parameters()]
    for _ in range(100):
        u, sign = 0.1 * torch.randn(8, 32, 1), torch.randn(32, 1).sign()
        u[0] += 2 * sign
        loss = nn.functional.soft_margin_loss(head(net(u)[0]), sign.expand(8, 32, 1))
        for weight, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            weight.data -= gradient
    assert loss < 0.1
    found = verdicts(net)
    one = replay(found.witnesses[0], net)
    assert (found.step, one.kind) == ("refuted", "two fixed points")
    x, u = torch.tensor(one.states), torch.tensor(one.input)
    after = net(u.expand(300, 2, 1), x[None])[1][0]
    assert torch.dist(after, x) < 1e-4


def test_a_net_of_torch_with_relu_is_refuted():
    """h+ = relu(2 h - 1) rests at 0 and, unstable, at 1."""
    net = nn.RNN(1, 1, nonlinearity="relu")
    for name, weight in net.named_parameters():
        nn.init.constant_(weight, 2.0 if name == "weight_hh_l0" else -0.5)
    assert verdicts(net).step == "refuted"
    one = Witness("two fixed points", "step", 1.0, None, [0.0], [[0.0], [1.0]])
    assert replay(replace(one, kind="an unstable fixed point", states=[[1.0], [1.001]]), net).run
    with pytest.raises(DataError, match="no two fixed points"):
        replay(replace(one, states=[[0.0], [0.9]]), net)


@pytest.mark.parametrize("name", CURVATURE)
def test_curvature_bounds_every_change_of_the_slope_between_kinks(name):
    phi, x = ACTIVATIONS[name], torch.linspace(-9, 9, 360_001, dtype=torch.float64)
    change = phi.slope_at(x).diff().abs() / x.diff()
    away = torch.ones_like(change, dtype=torch.bool)
    for kink in KINKS.get(name, ()):
        away &= (x[1:] - kink).abs() > 1e-3
        assert change[~away].max() > 100
    assert change[away].max() <= CURVATURE[name] + 1e-9
    assert change[away].max() >= 0.99 * CURVATURE[name]


def test_no_root_is_proven_across_a_kink_or_of_unknown_curvature():
    """x' = -x + relu(2 x): the states next to 0 are fixed points or not, by their sign."""
    for W, activation in ((2.0, "relu"), (2.0, ACTIVATIONS["leaky_relu"]), (3.0, "gelu_tanh")):
        found = unproven(terms_of([[W]], activation=activation), dt=0.03)
        bent = activation == "gelu_tanh"
        assert found.flow == ("unknown" if bent else found.flow)
        for one in found.witnesses:
            assert abs(one.states[0][0]) > 1e-7
    steep = Activation("tanh", lambda x: torch.tanh(3 * x), slope=(0.0, 3.0))  # not the library's
    assert unproven(terms_of([[3.0]], activation=steep), dt=0.03).flow == "unknown"


@pytest.mark.parametrize("place", ["outside", "inside"])
@pytest.mark.parametrize(("name", "kink"), [(name, kink) for name in KINKS for kink in KINKS[name]])
def test_nothing_is_said_within_reach_of_a_kink(name, kink, place):
    terms = terms_of([[0.5]], activation=name, place=place)
    for away, said in ((0.0, False), (2e-8, False), (-2e-8, False), (1e-5, True), (-1e-5, True)):
        z = torch.tensor([kink + away]).double()  # what phi is of
        x = z if place == "outside" else terms.post(z)
        u = x - terms.pre(x) / 2 if place == "outside" else z - x / 2
        assert (_root(terms, u, x) is not None) == said


def test_a_step_is_of_its_substeps():
    """x' = -x by Euler: one step of 2.5 grows, two of 1.25 shrink."""
    for substeps, name in ((1, "refuted"), (2, "unknown")):
        field = Subnetwork(Unconstrained("tanh"), 1, weight=torch.zeros(1, 1))
        layer = CTRNN(2, field, dt=2.5, solver="euler", substeps=substeps)
        off = Certificate.refused("switched off", dt=2.5 / substeps, solver="euler")
        assert judge(layer, off).step == name
        alone = -torch.eye(1).double(), 0.0
        grows = _growing(alone, behaviour(layer), "step", 2.5, "euler") is not None
        assert grows == (name == "refuted")


def test_what_no_formula_describes_is_unknown():
    net = large(nn.RNN, 8.0, seed=1)
    net.register_forward_hook(lambda module, given, out: out)
    assert "hooks" in unproven(net).tried

    class Forgets(nn.RNN):
        def forward(self, *given):
            out, h = super().forward(*given)
            return 0 * out, 0 * h

    assert "a forward of its own" in unproven(Forgets(2, 8)).tried
    wide = unproven(terms_of(torch.eye(200) * 3), dt=0.03)
    assert wide.flow == "unknown"
    assert "200 numbers" in wide.tried


def contracting(k, draw):
    """Nets that contract by construction, as plain terms: of every theorem, of cascades, of long tau."""
    n = 2 + k % 5
    normal = torch.randn(n, n, dtype=torch.float64, generator=draw)
    if k % 4 == 0:  # by a norm below 1 or just below it, in a metric that is far from the identity
        scale = torch.exp(3 * torch.randn(n, dtype=torch.float64, generator=draw))
        W = normal / torch.linalg.matrix_norm(normal, 2) * (1 - 10.0 ** -(k % 13))
        return W * scale[:, None] / scale
    if k % 4 == 1:  # nearly nilpotent, with huge transients
        return torch.triu(normal, 1) * 10.0 ** (k % 7) + 0.9 * torch.eye(n)
    if k % 4 == 2:  # W = W^T with its eigenvalues below 1, any below 0
        values = 1 - 10.0 ** torch.linspace(-(k % 9), 1.5, n, dtype=torch.float64)
        Q = torch.linalg.qr(normal)[0]
        return Q @ torch.diag(values) @ Q.mT
    return (normal - normal.mT) * 0.4 / n + 0.3 * torch.eye(n)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_no_contracting_net_is_refuted(part, activation):
    """80 of them with the proof switched off, flow and step; the step is one that keeps contraction."""
    draw = torch.Generator().manual_seed(part)
    for k in range(10):
        W = contracting(4 * k + part, draw)
        tau = 10.0 ** (k % 5 - 2)
        terms = terms_of(W, activation=activation, tau=tau, place="outside" if k % 2 else "inside")
        found = unproven(terms, dt=0.01 * tau, solver="exponential-euler")
        assert (found.flow, found.step) == ("unknown", "unknown"), (k, found.witnesses)


@pytest.mark.parametrize("W", [1.0, 1 - 1e-13, 1 - 1e-6, 1 - 1e-3])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("solver", SCHEMES)
def test_slow_contraction_is_never_refuted(W, activation, solver):
    found = unproven(terms_of([[W]], activation=activation), dt=0.03, solver=solver)
    assert (found.flow, found.step) == ("unknown", "unknown")


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_layers_of_certified_sets_are_not_refuted_with_the_proof_off(name):
    torch.manual_seed(3)
    layer = CTRNN(2, Subnetwork(CONSTRAINTS[name]("tanh"), 6), dt=0.03, solver="imex")
    certificate = layer.certificate()
    if certificate.certified and certificate.step.certified:
        found = judge(layer, Certificate.refused("off", dt=0.03, solver="imex"))
        assert (found.flow, found.step) == ("unknown", "unknown")


def test_no_root_is_proven_beside_a_tangent():
    """x' = -x + 2 tanh(x) + u touches 0 where tanh^2 = 1/2: J is 0 at the root, and not beside it."""
    for place in ("outside", "inside"):
        x0 = math.atanh(math.sqrt(0.5))
        x0, u = (x0, x0 - 2 * math.tanh(x0)) if place == "outside" else (math.sqrt(0.5), None)
        u = math.atanh(x0) - 2 * x0 if u is None else u
        terms = terms_of([[2.0]], place=place)
        sizes = [10**-k for k in torch.arange(4, 10, 0.05).tolist()]
        for away in (0.0, *sizes, *(-size for size in sizes)):
            root = _root(terms, torch.tensor([u]).double(), torch.tensor([x0 + away]).double())
            assert root is None or abs(float(root[0])) <= root[1]


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_linear_roots_are_where_exact_arithmetic_has_them(place):
    """x' = (W + L - 1) x + u, nearly singular: rounding hides where it rests, up to anywhere."""
    draw, proven = torch.Generator().manual_seed(0), 0
    for k in range(600):
        near = 10 ** float(-16 * torch.rand(1, generator=draw).double())
        x = torch.randn(1, generator=draw).double() * 10 ** (k % 5)
        L = torch.randn(1, generator=draw).double() * 10.0 ** (k % 3)
        W = 1 - L + near
        terms = terms_of([[float(W)]], [[float(L)]], activation="identity", place=place)
        u = -terms.drift(x[None], torch.zeros(1, 1).double())[0]
        root = _root(terms, u, x)
        if root is not None:
            slope = Fraction(float(W)) + Fraction(float(L)) - 1
            assert abs(-Fraction(float(u)) / slope - Fraction(float(x))) <= 1e-7 * (1 + abs(float(x)))
            assert abs(slope - Fraction(float(root[0]))) <= root[1]
            proven += 1
    assert 100 < proven < 500


@pytest.mark.parametrize("place", ["outside", "inside"])
@mp.workdps(50)
def test_roots_of_50_digits_are_enclosed(place):
    draw, proven = torch.Generator().manual_seed(1), 0
    for k in range(30):
        n = 1 + k % 3
        W = torch.randn(n, n, generator=draw).double() * 10.0 ** (k % 4 - 1)
        L, u = (torch.randn(n, k, generator=draw).double() / 4 for k in (n, 1))
        terms, x0 = terms_of(W, L, place=place), 2 * torch.randn(4, n, generator=draw).double()
        exact_W, exact_L, exact_u = (mp.matrix(t.tolist()) for t in (W, L, u))
        for x in find_fixed_points(terms, u[:, 0], x0).points[:2]:
            x = x + (k % 2) * 1e-9  # a root that is near, and not here
            if (root := _root(terms, u[:, 0], x)) is None:
                continue
            z = mp.matrix(x.tolist())
            for _ in range(8):  # Newton's steps
                r = z.apply(mp.tanh) if place == "outside" else (exact_W * z + exact_u).apply(mp.tanh)
                D = mp.diag([1 - v * v for v in r])
                g = (exact_W * r + exact_u if place == "outside" else r) - z + exact_L * z
                J = (exact_W * D if place == "outside" else D * exact_W) - mp.eye(n) + exact_L
                z -= mp.lu_solve(J, g) if n > 1 else g / J[0]
            assert mp.norm(g) < 1e-40
            assert mp.norm(z - mp.matrix(x.tolist())) < 1e-7 * (1 + float(x.abs().max()))
            assert mp.norm(J - mp.matrix(root[0].tolist())) <= root[1]
            proven += 1
    assert proven > 30


@pytest.mark.parametrize("what", ["flow", "step"])
@mp.workdps(50)
def test_no_mode_grows_that_does_not_in_50_digits(what):
    """Far from normal and near the boundary, where the eigenvalues of float64 have the wrong sign."""
    draw, sides, misled = torch.Generator().manual_seed(2), Counter(), 0
    for k in range(60):
        n = 2 + k % 3
        T = torch.triu(torch.randn(n, n, generator=draw).double(), 1) * 10.0 ** (k % 5)
        T.diagonal().copy_(-torch.rand(n, generator=draw).double())
        T[0, 0] = float(10 ** (-3 - 11 * torch.rand(1, generator=draw))) * (-1) ** k
        Q = torch.linalg.qr(torch.randn(n, n, generator=draw).double())[0]
        J = Q @ T @ Q.mT
        known = behaviour(nn.RNN(1, n)) if what == "step" else behaviour(terms_of(J))
        values = mp.eig(mp.matrix(J.tolist()))[0]
        largest = max(mp.re(v) if what == "flow" else abs(1 + v) - 1 for v in values)
        rough = torch.linalg.eigvals(J)
        rough = rough.real if what == "flow" else (1 + rough).abs() - 1
        misled += (float(rough.max()) > 0) != (largest > 0)
        mode = _growing((J, 1e-17), known, what, 1.0, None)
        assert mode is None or largest > 0
        sides[mode is not None] += 1
        # what is off by as much as the eigenvalue may be stable
        away = float(mp.mpf(2) * abs(largest)) * n
        assert _growing((J, away), known, what, 1.0, None) is None
    assert min(sides.values()) > 3
    assert misled > 0


def test_a_claim_that_does_not_hold_is_refused():
    net = terms_of([[0.5]])
    for one in verdicts(terms_of([[3.0]]), dt=0.03, solver="euler").witnesses:
        for kind in ("two fixed points", "an unstable fixed point"):
            with pytest.raises(DataError, match="does not replay"):
                replay(replace(one, net="", kind=kind), net)


def test_two_states_at_one_fixed_point_are_no_witness():
    net = terms_of([[0.5]])
    one = Witness("two fixed points", "flow", 1.0, None, [0.0], [[0.0], [0.0]])
    for near in (0.0, 1e-8, 1e-4):
        with pytest.raises(DataError, match="does not replay"):
            replay(replace(one, states=[[0.0], [near]]), net)


@pytest.mark.parametrize(
    "other",
    [
        terms_of([[3.0]], activation="softplus"),
        terms_of([[3.0]], place="inside"),
        terms_of([[3.0]], tau=2.0),
        terms_of([[3.0]], [[1e-9]]),
        terms_of([[3.0 + 1e-12]]),
    ],
)
def test_the_hash_covers_all_that_defines_the_field(other):
    for one in verdicts(terms_of([[3.0]]), dt=0.03, solver="euler").witnesses:
        with pytest.raises(DataError, match="sha256"):
            replay(one, other)


def test_the_hash_covers_the_step():
    flow, step = verdicts(terms_of([[3.0]]), dt=0.03, solver="euler").witnesses
    for changed in (replace(step, dt=0.04), replace(step, solver="imex"), replace(flow, refutes="step")):
        with pytest.raises(DataError, match="sha256"):
            replay(changed, terms_of([[3.0]]))
    field = Subnetwork(Unconstrained("tanh"), 1, weight=torch.tensor([[3.0]]))
    layers = [CTRNN(2, field, dt=dt, solver=how) for dt in (0.03, 0.04) for how in ("euler", "imex")]
    one = judge(layers[0], layers[0].certificate()).witnesses[0]
    assert replay(one, layers[0]) == one
    for other in layers[1:]:
        other.load_state_dict(layers[0].state_dict())
        with pytest.raises(DataError, match="sha256"):
            replay(one, other)


def test_the_command_line_tells_and_replays(cli: Cli, tmp_path: Path):
    W, file = tmp_path / "W.csv", tmp_path / "witness.json"
    W.write_text("3\n", encoding="utf-8")
    done = cli("certify", "--weights", W, "--witness", file)
    assert done.code == 1
    assert "the flow is refuted" in done.out
    done = cli("check", file)
    assert done.code == 1
    assert done.out.count("is refuted") == 2
    assert cli("check", file, W).code == 1
    W.write_text("3.1\n", encoding="utf-8")
    assert "sha256" in cli.refuses("check", file)


def test_a_run_is_refuted_and_no_other_weights_or_settings_are(cli: Cli, tmp_path: Path):
    for name, gain in (("run", 30), ("other", 31)):
        store_run(tmp_path / name, model="unconstrained")
        weights = load_file(tmp_path / name / "model.safetensors")
        for key in (key for key in weights if "weight.original" in key):
            weights[key] = gain * torch.eye(len(weights[key]))
        weights = {key: weight.float() for key, weight in weights.items()}
        save_file(weights, tmp_path / name / "model.safetensors")
    run, file = tmp_path / "run", tmp_path / "witness.json"
    assert cli("certify", run, "--witness", file).code == 1
    content = json.loads(file.read_text(encoding="utf-8"))
    assert {one["refutes"] for one in content["witnesses"]} == {"flow", "step"}
    done = cli("check", file)
    assert done.code == 1
    assert "in float32" in done.out  # the step, as it runs
    assert "sha256" in cli.refuses("check", file, tmp_path / "other")
    for changed in ({"dt": 0.01}, {"solver": "dopri5"}, {"substeps": 2}):
        forged = content | {"settings": content["settings"] | changed}
        (tmp_path / "forged.json").write_text(json.dumps(forged), encoding="utf-8")
        assert "sha256" in cli.refuses("check", tmp_path / "forged.json")


@pytest.mark.parametrize(
    "change",
    [
        {"states": [[0.0], [1.0, 2.0]]},
        {"states": [[0.0]]},
        {"states": [[0.0, 1.0], [2.0, 3.0]]},
        {"states": [[math.nan], [1.0]]},
        {"states": [[math.inf], [1.0]]},
        {"states": "no numbers"},
        {"states": {"0": 1}},
        {"input": [0.0, 1.0, 2.0]},
        {"input": [None]},
        {"input": [math.nan]},
        {"dt": "long"},
        {"dt": -1.0},
        {"dt": 1e308},
        {"dt": math.nan},
        {"solver": ["euler"]},
        {"solver": "dopri5"},
        {"solver": "imaginary"},
        {"kind": {}},
        {"net": "0" * 64},
        {"net": 7},
        {"unheard": 1},
    ],
)
@pytest.mark.parametrize("forged", [True, False])
def test_a_forged_witness_is_refused_in_one_sentence(cli: Cli, tmp_path: Path, change, forged):
    """With the old hash of the net, and with none, which asks the numbers alone."""
    W, file = tmp_path / "W.csv", tmp_path / "witness.json"
    W.write_text("0.5,0\n0,2\n" if "1.0, 2.0" in str(change) else "0.5\n", encoding="utf-8")
    one = asdict(Witness("two fixed points", "step", 0.03, "euler", [0.0], [[0.0], [1.0]]))
    one |= {"net": "" if forged else "1" * 64} | change
    about = {"kind": "witness", "file": str(W), "settings": SETTINGS, "witnesses": [one]}
    file.write_text(json.dumps(about), encoding="utf-8")
    assert cli.refuses("check", file).count("\n") <= 1


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", "{}", '{"kind": 3}', '{"kind": []}', '{"kind": "witness"}',
        "[" * 9999,
        '{"kind": "witness", "file": 3, "settings": {}, "witnesses": []}',
        '{"kind": "witness", "file": "W.csv", "settings": 3, "witnesses": []}',
        '{"kind": "witness", "file": "digits", "settings": {"x": 1}, "witnesses": []}',
        '{"kind": "witness", "file": "digits", "settings": {}, "witnesses": []}',
        '{"kind": "witness", "file": "digits", "settings": {}, "witnesses": [3]}',
        '{"kind": "witness", "file": "digits", "settings": {"dt": "x"}, "witnesses": [{}]}',
        '{"kind": "witness", "file": "digits", "settings": {"dt": [1]}, "witnesses": [{}]}',
        '{"kind": "witness", "file": "no-such-run", "settings": {}, "witnesses": [{}]}',
        '{"kind": "witness", "file": "no-such-file", "settings": {"tau": 1}, "witnesses": [{}]}',
    ],
)  # fmt: skip
def test_what_is_no_file_of_ours_is_refused_in_one_sentence(cli: Cli, tmp_path: Path, text):
    file = tmp_path / "witness.json"
    file.write_text(text, encoding="utf-8")
    assert cli.refuses("check", file).count("\n") <= 1
    if text == "{}":
        assert "it lacks 'kind'" in cli.refuses("check", file)
    file.write_bytes(b"\xff\xfe" + text.encode())
    assert cli.refuses("check", file).count("\n") <= 1


def test_exit_codes(cli: Cli, tmp_path: Path):
    for W, options, code in (
        ("0.5", (), 0),
        ("0", ("--dt=2.5",), 0),
        ("0", ("--dt=2.5", "--require-step"), 1),
        ("0,4\n-4,0", ("--activation-place=inside", "--require-step"), 3),
        ("3", ("--solver=dopri5",), 1),
        ("3", ("--solver=dopri5", "--require-step"), 1),
    ):
        file = tmp_path / "W.csv"
        file.write_text(f"{W}\n", encoding="utf-8")
        done = cli("certify", "--weights", file, "--json", *options)
        assert done.code == code, (W, done)
        found = json.loads(done.out)["verdicts"]
        assert found["flow"] == {"0": "certified", "0.5": "certified", "3": "refuted"}.get(W, "unknown")
        assert bool(found["tried"]) == ("unknown" in found.values() and code != 0)


def test_no_search_is_made_that_nobody_asked_for(cli: Cli, tmp_path: Path):
    """Certified in continuous time, and the step does not count: 4 seconds of search are not spent."""
    file = tmp_path / "W.csv"
    file.write_text("0\n", encoding="utf-8")
    found = json.loads(cli("certify", "--weights", file, "--dt=2.5", "--json").out)["verdicts"]
    assert found == {"flow": "certified", "step": "unknown", "witnesses": [], "tried": ""}
    asked = ("--dt=2.5", "--json", "--witness", tmp_path / "w.json")
    done = cli("certify", "--weights", file, *asked)
    assert done.code == 0
    assert json.loads(done.out)["verdicts"]["step"] == "refuted"
    assert cli("check", tmp_path / "w.json").code == 1


def test_assert_certified_tells_the_reasons_and_the_witness():
    assert assert_certified([[0.5]], dt=0.03).rate >= 0.49
    with pytest.raises(AssertionError, match=r"(?s)module 0 is not shown to contract.*is refuted"):
        assert_certified(terms_of([[3.0]]), dt=0.03)
    with pytest.raises(AssertionError, match="unstable fixed point"):
        assert_certified(terms_of([[0.0]]), dt=2.5)
    assert assert_certified(terms_of([[0.0]]), dt=2.5, step=False).certified
    for net in (torch.nn.GRU(2, 3), torch.nn.RNN(2, 3)):  # maps, of which no flow is asked
        with torch.no_grad():
            net.weight_hh_l0.mul_(100)
        with pytest.raises(AssertionError, match="NOT certified"):
            assert_certified(net, step=False)
