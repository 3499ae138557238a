"""Steps in the arithmetic that runs: rounded operands and states, and steps of several lengths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ctrnn_assembly import (
    CTRNN,
    Activation,
    Pairs,
    SingularValueBounded,
    Stack,
    Subnetwork,
    Symmetric,
    Terms,
    certify,
)
from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.certificates.arithmetic import OF_PHI, in_arithmetic
from ctrnn_assembly.models import build_model
from ctrnn_assembly.schemes import SCHEMES, step_pair
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.solvers.pairs import pointwise


def one_unit(w, dtype=torch.float32):
    phi, identity = (Elementwise(((ACTIVATIONS[name], 1),)) for name in ("tanh", "identity"))
    zero = torch.zeros(1, dtype=dtype)
    return Terms((torch.tensor([[w]], dtype=dtype),), phi, identity, zero, zero + 1)


@pytest.mark.parametrize(("precision", "dt"), [("bf16", 0.06287), ("full", 1e-8)])
def test_states_that_rounding_keeps_apart_are_not_certified(precision, dt):
    """Exact steps contract, and yet two states under one input stay where they are."""
    terms = one_unit(0.998)
    exact = certify(terms, dt=dt)
    assert exact.step.certified
    x = torch.tensor([[0.13], [-0.13]], dtype=torch.float32)
    u = torch.zeros(2, 2000, 1).to(x)
    last = solve(terms, x, u=u, dt=dt, matmul_precision=precision, save="last").last
    assert float((last[0] - last[1]).abs()) > 0.2
    refused = in_arithmetic(exact, terms, precision).step
    assert not refused.certified
    assert "rounding in float32" in refused.reason
    assert in_arithmetic(exact, one_unit(0.998, torch.float64), "full").step.certified


def test_a_leak_that_torch_itself_rounds_off_is_not_certified():
    """A plain step is a product with A = I + h (L - I), whose diagonal is 1 in bf16: nothing decays."""
    zero, L = torch.zeros(2).float(), torch.tensor([[0.0, 0.5], [-0.5, 0.0]]).float()
    phi, identity = (Elementwise(((ACTIVATIONS[name], 2),)) for name in ("tanh", "identity"))
    terms = Terms((torch.zeros(1, 1).float(),) * 2, phi, identity, zero, zero + 1, L)
    exact = certify(terms, dt=1e-3)
    A, _ = step_pair(SCHEMES["euler"], terms, terms.tau.new_tensor(1e-3))
    assert exact.step.certified
    assert (A.bfloat16().diagonal() == 1).all()
    assert in_arithmetic(exact, terms, "bf16").step.certified  # its loops keep the diagonal apart
    torch.set_float32_matmul_precision("medium")
    try:
        assert "keep states apart" in in_arithmetic(exact, terms, "full").step.reason
        alone = replace(terms, L=None)
        assert in_arithmetic(certify(alone, dt=1e-3), alone, "full").step.certified
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("where", "name", "value", "back"),
    [
        (torch, "set_float32_matmul_precision", "medium", "highest"),
        (torch.backends.mkldnn.matmul, "fp32_precision", "bf16", "none"),
        (torch.backends, "fp32_precision", "tf32", "none"),
    ],
    ids=["medium", "mkldnn", "all"],
)
def test_products_that_torch_itself_rounds_are_those_that_are_proven(where, name, value, back):
    def switch(to):
        if callable(getattr(where, name)):
            getattr(where, name)(to)
        else:
            setattr(where, name, to)

    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("before torch 2.9 the switches have other names")
    rnn, layer = nn.RNN(3, 4), CTRNN(3, Subnetwork(SingularValueBounded(), 4), dt=0.3)
    rnn.weight_hh_l0.data.mul_(0.1)
    own = Pairs(4, phi=Activation("own", torch.tanh, (0.0, 1.0)))  # which pairs' own loop does not know
    fields = (Subnetwork(Symmetric(), 4), Pairs(4), own)
    dense, pairs, others = (Stack(3, 4, [field]).eval() for field in fields)
    nets = [
        (rnn, {}),
        (dense, {"dt": 0.3}),
        (pairs, {"dt": 0.3}),
        (others, {"dt": 0.3}),
        (layer, {"dt": 0.3, "solver": "imex"}),
    ]

    def certified():
        return [certify(net.float(), **how).step.certified for net, how in nets]

    assert all(certified())
    try:
        switch(value)
        assert certified() == [False, False, True, False, False]
        assert "rounded to" in layer.certificate().step.meeting.arithmetic
    finally:
        switch(back)
    assert torch.get_float32_matmul_precision() == "highest"
    assert all(certified())


@pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=lambda phi: phi.name)
def test_compiled_activations_round_as_little_as_the_bound_says(phi):
    """Those of float32 are approximations: still within OF_PHI roundings of |phi(0)| + g |x|."""
    whole = np.geomspace(1e-30, 1e4, 20_001)
    x = np.concatenate([whole, -whole, np.linspace(-12, 12, 20_001)]).astype(np.float32)
    y = np.empty_like(x)
    value = pointwise(phi, x.dtype)[0]
    y[:] = [value(one) for one in x]
    exact, zero = (phi.function(torch.tensor(a, dtype=torch.float64)).numpy() for a in (x, [0.0]))
    allowed = OF_PHI * 2.0**-24 * (abs(zero) + phi.g * abs(x.astype(float))) + 1e-37
    assert bool((abs(y - exact) <= allowed).all())


@pytest.mark.parametrize("place", ["outside", "inside"])
@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "full"), ("float32", "bf16"), ("bfloat16", "full")]
)
def test_states_meet_down_to_the_distance(dtype, precision, place):
    """From any start; and without its rounding the bound would be passed."""
    settings = {"modules": 2, "units": 2, "coupling": "ring", "dt": 0.3, "activation_place": place}
    settings |= {"matmul_precision": precision, "margin": 0.5, "seed": 3}
    core = build_model("svd-combo", 1, 2, **settings).core.to(getattr(torch, dtype))
    core.encoder.bias.data.fill_(0.4)
    step = core.certificate().step
    assert step.certified
    assert dtype in step.meeting.arithmetic
    x = torch.linspace(-3, 3, 256).reshape(1, 64, 4).to(core.encoder.weight)
    u = torch.full((64, 400, 1), 0.7).to(x)
    with torch.no_grad():
        h = core(u, x)[1][0].double()
    apart = float(torch.cdist(h, h).max())
    assert apart <= step.meeting.floor + 0.7 * step.meeting.per_input


class Loud(nn.Module):
    """An encoder that is called: what it sends on is not bounded by what it reads."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor([1e6, 2e6]))

    def forward(self, u):
        return u * self.size


def test_no_distance_is_promised_for_inputs_that_an_encoder_is_called_with():
    core = CTRNN(1, Subnetwork(SingularValueBounded("tanh"), 2), batch_first=True, dt=1e-3).float()
    assert core.certificate().step.meeting is not None
    core.encoder = Loud().float()
    step, x = core.certificate().step, torch.tensor([[[0.0, 0.0], [2e6, 4e6]]]).float()
    with torch.no_grad():
        last = core(torch.ones(2, 30_000, 1).to(x), x)[1][0]
    assert float((last[0] - last[1]).norm()) > 100  # in float32, under inputs of 1
    assert step.certified
    assert step.meeting is None


def test_steps_of_several_lengths_have_one_metric_and_the_largest_factor():
    core = build_model("svd-combo", 1, 2, modules=2, units=3, coupling="ring").core
    several = certify(core, dt=torch.tensor([[0.02, 0.01], [0.05, 0.02]]))
    alone = [certify(core, dt=dt).step.contraction_factor for dt in (0.02, 0.05)]
    assert several.step.certified
    assert several.step.lengths[1] == pytest.approx(0.05)
    assert several.step.contraction_factor >= max(alone)
    assert "every length" in str(several)
    long = certify(core, dt=[0.02, 1e9], search="none")
    assert long.certified
    assert not long.step.certified
    assert "1e+09" in str(long)


def test_a_range_is_certified_of_euler_alone():
    """The good steps of the others need not be an interval: a list of them is proven one by one."""
    core = build_model("svd-combo", 1, 2, modules=2, units=3, coupling="ring").core
    many = torch.linspace(0.01, 0.05, 65)
    assert certify(core, dt=many).step.certified
    assert certify(core, dt=many[:2], solver="imex").step.certified
    assert "at most 64" in certify(core, dt=many, solver="imex").step.reason


def test_the_layer_says_which_dt_is_certified():
    core = build_model("svd-combo", 1, 2, modules=2, units=3, dt=1e9).core
    assert isinstance(core, CTRNN)
    assert not core.certificate(search="none").step.certified


def test_slopes_beyond_float64_are_refused_by_name():
    steep = Activation("steep", torch.tanh, slope=(0.0, 1e200))
    for found in (
        certify(Subnetwork(SingularValueBounded(steep), 3), dt=0.03),
        certify(replace(one_unit(0.5), pre=Elementwise(((steep, 1),))), dt=0.03),
    ):
        assert not found.certified
        assert found.reasons[0].startswith("the slopes reach 1e+200")
