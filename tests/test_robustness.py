"""A certified radius is a lower bound on the distance to another class, and an attack an upper one."""

import pytest
import torch
from torch.testing import assert_close

from ctrnn_assembly import CTRNN, SequenceClassifier
from ctrnn_assembly.certificates.robustness import NORMS, certified_radii
from ctrnn_assembly.diagnostics.attack import attack
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.stack import Stack
from solver_problems import F64, normal

LENGTHS = torch.tensor([12, 5, 1, 9])


def linear_net(core, pool):
    """Two units with one time constant, which nothing turns or bends, and a readout of two classes."""
    field = Pairs(2, phi=None)
    if core == "layer":
        net = CTRNN(2, field, batch_first=True, dt=0.3, substeps=3, solver="exponential-euler")
    else:
        options = {"norm": "none", "mix": "linear", "phi": "identity"}
        net = Stack(2, 1, [field, Pairs(2, phi=None)], batch_first=True, **options)
    model = SequenceClassifier(net, 2, pool=pool).double().eval()
    with torch.no_grad():
        for part in [field] if core == "layer" else [layer.field for layer in net.layers]:
            part.frequency.zero_()
            part.log_rate.fill_(-1.5)
        if core == "layer":  # the input moves the states along the difference of the readout's rows
            way = model.readout.weight[0] - model.readout.weight[1]
            net.encoder.weight.copy_(torch.outer(way, torch.tensor([1.0, -2.0], dtype=F64)))
        else:
            for layer in net.layers:
                layer.C.weight.copy_(layer.B.weight.mT)
                layer.mix.inner.weight.abs_()
    return model


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("core", ["layer", "stack"])
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
        assert_close(radius, exact[norm].detach(), rtol=2e-6, atol=1e-9)  # 1e-6 of the factor
        found = attack(model, u.detach(), LENGTHS, norm=norm)
        assert (found >= radius).all()
        assert_close(found, exact[norm].detach(), rtol=0.02, atol=0.0)  # of ten bisections
