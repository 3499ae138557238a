"""Every layer answers for itself: step, flow, terms, metric, certificate, rates and projection."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ctrnn_assembly import certify
from ctrnn_assembly.assembly import couple
from ctrnn_assembly.baselines import LSTM, AntisymmetricRNN, LipschitzRNN, VanillaRNN
from ctrnn_assembly.contracting import AdaDiagTanh, Symmetric
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.layers import CTRNN, SequenceClassifier
from ctrnn_assembly.recurrent import Recurrent
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.subnetwork import Subnetwork

M, N = 2, 5


def assembly(kinds: tuple[type, type], generator: torch.Generator):
    parts = [
        Subnetwork(kind("tanh"), n, generator=generator) for kind, n in zip(kinds, (2, 3), strict=True)
    ]
    return couple(parts, "all", init_scale=0.1, generator=generator)


def ctrnn(kinds: tuple[type, type] = (AdaDiagTanh, AdaDiagTanh), **settings: object) -> CTRNN:
    generator = torch.Generator().manual_seed(0)
    settings = {"dt": 0.3, "batch_first": True, "generator": generator, **settings}
    net = CTRNN(M, assembly(kinds, generator), **settings)  # type: ignore[arg-type]
    if net.gates is not None and net.gates.kind in ("constant", "state"):  # start at 0
        own = net.gates.constant if net.gates.kind == "constant" else net.gates.state
        nn.init.normal_(own, generator=generator)
    return net


GATES = ("constant", "shared", "input", "state")
CTRNNS = {
    **{solver: lambda solver=solver: ctrnn(solver=solver) for solver in (*SCHEMES, "rk4")},
    **{gate: lambda gate=gate: ctrnn(gate=gate) for gate in GATES},
}
BASELINES = {
    "rnn": lambda: VanillaRNN(M, N, batch_first=True),
    "lstm": lambda: LSTM(M, N, batch_first=True),
    "antisymmetric": lambda: AntisymmetricRNN(M, N, batch_first=True, eps=0.3),
    "lipschitz": lambda: LipschitzRNN(M, N, batch_first=True, eps=0.3, init_std=2.0),
}
LAYERS = {**CTRNNS, **BASELINES}
FLOWS = [name for name in LAYERS if name not in ("rnn", "lstm")]


def built(name: str) -> Recurrent:
    torch.manual_seed(3)
    return LAYERS[name]().double()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_a_classifier_its_recurrent_layer_is_certified() -> None:
    net = SequenceClassifier(ctrnn(), 4)
    assert certify(net, dt=0.3) == certify(net.core, dt=0.3)
    assert certify(net).certified


@pytest.mark.parametrize("name", LAYERS)
def test_steps_give_the_whole_sequence(name: str) -> None:
    net, u = built(name), normal(3, 6, M)
    x = normal(3, net.state_size, seed=2)
    output, h_n = net(u, x[None])
    for k, sample in enumerate(u.unbind(1)):
        x = net.step(sample, x)
        # The plain step and the fused loop round differently.
        assert_close(x[:, :N], output[:, k], rtol=1e-12, atol=1e-12)
    assert_close(x, h_n[0], rtol=1e-12, atol=1e-12)
    assert_close(net.last(u), net(u)[1][0][:, :N], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "rk4"])
def test_torch_func_differentiates_a_step(name: str) -> None:
    net, u = built(name), normal(M)
    x, v = normal(net.state_size, seed=2), normal(net.state_size, seed=3)

    def step(x: Tensor) -> Tensor:
        return net.step(u[None], x[None])[0]

    J, h = torch.func.jacrev(step)(x), 1e-6
    assert_close(torch.func.jvp(step, (x,), (v,))[1], J @ v, rtol=1e-12, atol=1e-12)
    _, pulled = torch.func.vjp(step, x)
    assert_close(pulled(v)[0], J.mT @ v, rtol=1e-12, atol=1e-12)
    # Central differences: h^2 from the formula, 1e-16 / h from rounding.
    assert_close(J @ v, (step(x + h * v) - step(x - h * v)) / (2 * h), rtol=1e-8, atol=1e-8)
    many = normal(4, net.state_size, seed=4)
    each = torch.func.vmap(torch.func.jacrev(step))(many)
    assert_close(each, torch.stack([torch.func.jacrev(step)(one) for one in many]))


@pytest.mark.parametrize("name", FLOWS)
def test_the_flow_is_the_limit_of_small_steps(name: str) -> None:
    net, u, x = built(name), normal(3, M), normal(3, N, seed=2)
    for sample in (u, None):
        small = 1e-7
        if isinstance(net, CTRNN):
            net.dt = small
        else:
            net.eps = small
        moved = net.step(u if sample is not None else torch.zeros_like(u), x)
        # A difference quotient over 1e-7: 1e-7 from the formula, 1e-9 from rounding.
        assert_close(net.flow(sample)(x), (moved - x) / small, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_a_map_has_no_flow(name: str) -> None:
    with pytest.raises(ConfigError, match="is a map"):
        built(name).flow()


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_has_a_certificate_that_may_say_no(name: str) -> None:
    net = built(name)
    found = net.certificate()
    assert found.certified == (name not in (*BASELINES, "state")), found.reasons
    assert bool(found.reasons) != found.certified
    assert found.step is not None
    if name in BASELINES:
        assert "is a baseline" in found.reasons[0]
    assert net.firing_rates(normal(2, N)).shape == (2, N)
    before = [p.clone() for p in net.parameters()]
    net.project_()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_says_why_it_has_no_terms(name: str) -> None:
    net = built(name)
    for ask in (net.terms, net.metric):
        with pytest.raises(ConfigError, match=f"{type(net).__name__} has no"):
            ask()


@pytest.mark.parametrize("gate", GATES[1:])
def test_terms_refuse_gates_that_read(gate: str) -> None:
    with pytest.raises(ConfigError, match=rf"{gate}.*change.*Use step\(u, x\)"):
        built(gate).terms()


@pytest.mark.parametrize("solver", ["euler", "imex", "exponential-euler", "rk4", "dopri5"])
@pytest.mark.parametrize("kinds", [(AdaDiagTanh, AdaDiagTanh), (AdaDiagTanh, Symmetric)])
def test_constant_gates_take_every_solver(solver: str, kinds: tuple[type, type]) -> None:
    """The same states and gradients as the ungated field whose time constants are 1 / nu."""
    settings = {"solver": solver, "rtol": 1e-10, "atol": 1e-12}
    gated, plain = (ctrnn(kinds, gate=gate, **settings).double() for gate in ("constant", None))
    assert gated.gates is not None
    nu = gated.gates.constants()
    plain.load_state_dict({k: x for k, x in gated.state_dict().items() if "gates" not in k})
    for part, tau in zip(plain.field.leaves(), (1 / nu.detach()).split((2, 3)), strict=True):
        part.tau.copy_(tau)
    u = normal(3, 6, M)
    outputs = [net(u)[0] for net in (gated, plain)]
    assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    for output in outputs:
        output.square().sum().backward()
    assert_close(gated.encoder.weight.grad, plain.encoder.weight.grad, rtol=1e-10, atol=1e-10)
    # The gates' own gradient, by central differences.
    raw, h = gated.gates.constant, 1e-5
    with torch.no_grad():
        sums = []
        for sign in (1, -1):
            raw[0] += sign * h
            sums.append(gated(u)[0].square().sum())
            raw[0] -= sign * h
    # h^2 of the formula, and the tolerance of dopri5 over h.
    assert_close(raw.grad[0], (sums[0] - sums[1]) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("solver", SCHEMES)
def test_certificates_of_constant_gates_hold_for_every_step(solver: str) -> None:
    net = ctrnn(gate="constant", solver=solver, dt=0.5).double()
    found = net.certificate()
    assert found.certified
    assert found.step is not None
    assert found.step.certified
    assert found.step.solver == solver
    nu = net.gates.constants()  # type: ignore[union-attr]
    root = (net.metric().theta().diagonal() / nu.sqrt()).detach()  # of the metric diag(tau) M
    u, x = 3 * normal(1, 40, M).expand(6, -1, -1), 2 * normal(6, N, seed=2)
    with torch.no_grad():
        states = torch.cat([x[:, None], net(u, x[None])[0]], 1)
    for a, b in itertools.combinations(states, 2):
        apart = ((a - b) * root).norm(dim=-1)
        assert bool((apart[1:] <= found.step.contraction_factor * apart[:-1] + 1e-14).all())


def test_settings_that_would_do_nothing_are_refused() -> None:
    for settings in ({"recompute": "sqrt"}, {"matmul_precision": "bf16"}, {"backend": "fused"}):
        ctrnn(gate="constant", **settings)
        ((name, value),) = settings.items()
        with pytest.raises(ConfigError, match=f"solved by euler; got {name}={value!r}"):
            ctrnn(gate="input", **settings)
    with pytest.raises(ConfigError, match="interpolation='linear' does nothing in imex"):
        ctrnn(solver="imex", interpolation="linear")


def test_solvers_of_gates_that_read_are_refused() -> None:
    for solver, gate in itertools.product(("imex", "rk4"), GATES[1:]):
        with pytest.raises(ConfigError, match="solved by euler"):
            ctrnn(gate=gate, solver=solver)
    found = ctrnn(gate="input").certificate(solver="imex").step
    assert not found.certified
    assert "use euler" in found.reason


@pytest.mark.parametrize("name", LAYERS)
def test_padding_is_never_read(name: str) -> None:
    net, u = built(name), normal(3, 6, M)
    lengths = torch.tensor([6, 1, 4])
    padded = u.clone()
    for k, length in enumerate(lengths.tolist()):
        padded[k, length:] = torch.nan
    padded.requires_grad_()
    output = net(padded, lengths=lengths)[0]
    for k, length in enumerate(lengths.tolist()):
        alone = net(u[k : k + 1, :length])[0][0]
        assert_close(output[k, :length], alone, rtol=1e-12, atol=1e-12)
        assert torch.equal(output[k, length:], output[k, length - 1].expand(6 - length, N))
    output.square().sum().backward()
    for gradient in (padded.grad, *(p.grad for p in net.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.parametrize("solver", SCHEMES)
def test_a_step_of_rounded_operands_meets_down_to_a_distance_or_is_refused(solver: str) -> None:
    full, rounded = (ctrnn(solver=solver, matmul_precision=precision) for precision in ("full", "bf16"))
    assert full.certificate().step.certified
    found = rounded.certificate()
    assert found.certified  # in continuous time
    assert found.step.certified is (solver == "euler")
    if solver == "euler":
        assert found.step.meeting.arithmetic.endswith("rounded to bf16")
        assert found.step.meeting.floor > 1e9 * full.certificate().step.meeting.floor
    else:
        assert "rounded to bf16" in found.step.reason


def test_states_of_rounded_operands_do_move_apart_at_small_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    net = ctrnn(solver="imex", matmul_precision="bf16")
    theta = net.metric().theta()
    x = torch.randn(1, 512, N, generator=generator)
    y = x + 1e-4 * torch.randn(1, 512, N, generator=generator)
    u = torch.zeros(512, 1, M)
    with torch.no_grad():
        after, before = (net(u, x)[1] - net(u, y)[1])[0] @ theta.mT, (x - y)[0] @ theta.mT
    assert float((after.norm(dim=1) / before.norm(dim=1)).max()) > 1
