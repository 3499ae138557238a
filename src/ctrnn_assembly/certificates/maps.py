"""`nn.RNN` as torch computes it: the map h+ = phi(W h + W_in u + b), phi = tanh or relu, of each layer.

It is Euler's step of length 1 of x' = -x + phi(W x + u), bounded in a dense metric by the LMI of
`steps`, in a diagonal one by ||Theta W Theta^-1||. A map has no flow; layers are joined by `cascade`.
Source: THEORY section 14.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.certificates import result, rounding
from ctrnn_assembly.certificates.arithmetic import of_products
from ctrnn_assembly.certificates.cascade import LayerBound, certify_cascade
from ctrnn_assembly.certificates.interconnection import Interconnection
from ctrnn_assembly.certificates.result import Certificate, MetricFacts, StepCertificate
from ctrnn_assembly.certificates.rounding import Balance, balanced, spectral_norm
from ctrnn_assembly.certificates.search import JOINT_SIZE, jointly, least_norm
from ctrnn_assembly.certificates.steps import prove_step
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.recurrent import is_unchanged
from ctrnn_assembly.terms import Terms

CLAIM = "the map h -> phi(W h + u), a sample a step, in evaluation mode"


@torch.no_grad()
def certify_rnn(net: nn.RNNBase) -> Certificate:
    """Whether states of all layers approach each other at every sample; `rate` is -log of a factor."""
    if reason := _refusal(net):
        return Certificate.refused(reason, dt=1.0, solver="map")
    # What `forward` reads, whatever the attributes of these names are.
    stored: Any = zip(net._flat_weights_names, net._flat_weights, strict=True)
    weights = {name: tensor.detach().cpu().double() for name, tensor in stored}
    layers: list[LayerBound] = []
    below = Balance(*2 * (torch.ones(net.input_size, dtype=torch.float64),), 0.0)
    for k in range(net.num_layers):
        W, entering = weights[f"weight_hh_l{k}"], weights[f"weight_ih_l{k}"]
        found, scale = _certify_layer(W)
        if not found.certified:
            reason = f"layer {k}: {found.reasons[0]}"
            return Certificate.refused(reason, dt=1.0, solver="map")
        # From metric to metric: only what leaves the last layer is Euclidean.
        gain = rounding.norm_under_slopes(entering, scale, below, inside=True)
        leaving = scale.right_norm if k == net.num_layers - 1 else 1.0
        layers.append(LayerBound(found, input_gain=gain, output_gain=leaving))
        below = scale
    return layers[0].certificate if len(layers) == 1 else certify_cascade(layers, 1.0, "map")


def _refusal(net: nn.RNNBase) -> str:
    kind = type(net).__name__
    if type(net) is not nn.RNN:
        return f"no certificate is defined for {kind}, whose gates read the state. Use CTRNN or nn.RNN"
    if not is_unchanged(net, nn.RNN):
        return "an nn.RNN with hooks or methods of its own is another function; remove them"
    weights: Any = [tensor for tensor in net._flat_weights if tensor is not None]
    if not all(not tensor.is_meta and bool(tensor.isfinite().all()) for tensor in weights):
        return "a weight is NaN, infinite or on the meta device; retrain or use an intact copy"
    low = (t.dtype.itemsize < (8 if t.is_cuda else 4) or of_products(t) != "full" for t in weights)
    if any(low) or torch.is_autocast_enabled(weights[0].device.type):
        return "rounding to less than float32, as by cuDNN, may keep states apart; use float64"
    if net.bidirectional:
        return "a bidirectional nn.RNN reads the input backwards, too: it is no map of one state"
    if net.training and net.dropout > 0 and net.num_layers > 1:
        return "in training mode dropout changes the map at every call; call .eval()"
    return ""


def _certify_layer(W: Tensor) -> tuple[Certificate, Balance]:
    """In the best diagonal metric that is found, or else in a dense one."""
    one, few = torch.ones(len(W), dtype=W.dtype), 1 < len(W) <= JOINT_SIZE
    log_theta = least_norm(W)
    factor, origin = Factor(log_theta.exp(), (-log_theta).exp()), "least norm"
    scale = Balance.of(factor.theta, one)
    q, theorem = spectral_norm(*balanced(W, scale, scale)), "||Theta W Theta^-1||"
    phi, none = (Elementwise(((ACTIVATIONS[name], len(W)),)) for name in ("tanh", "identity"))
    terms = Terms((W,), none, phi, torch.zeros_like(one), one)
    for other in jointly(terms, [Metric((factor,))], 1.0, "euler") if q >= 1 and few else ():
        if (proven := prove_step(Interconnection.of(terms, other), "euler").factor(1.0)) < q:
            q, factor, origin, theorem = proven, other.factors[0], "search: joint", "LMI"
    metric = MetricFacts.of(Metric((factor,)), one, origin)
    if not q < 1:
        radius = float(torch.linalg.eigvals(W).abs().max())
        why = "no constant metric can show contraction" if radius >= 1 else "others may"
        reason = f"no metric was found in which phi(W h + u) contracts, the best has the factor {q:.6g};"
        reason += f" at the largest slopes the spectral radius of W is {radius:.6g}: {why}. Scale W down"
        return Certificate.refused(reason, dt=1.0, solver="map"), scale
    q = max(q, 1e-300)  # of W = 0
    rate = -math.log(q) * (1 - 1e-12)
    step = StepCertificate("map", 1.0, True, q, 1.0)
    modules = (result.Module(0, len(W), theorem, 1 - q, rate, True),)
    coupling = result.CouplingFacts("none", (), 0.0, 0.0, 0.0, 0)
    found = Certificate(True, rate, 0.0, metric, modules, coupling, step, (), (), CLAIM)
    return found, Balance.of(factor.theta, one)
