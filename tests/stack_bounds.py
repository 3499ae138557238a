"""Random stacks, and how much of what their certificates promise two runs of them reach in a sample.

python tests/stack_bounds.py [--nets 100] [--tries 2048] [--seed 0] [--results FOLDER]

Distances of states and of outputs are compared with the bounds that the layers' gains give them (THEORY
sections 11 and 12), for random states and inputs within the certificate's claim; the tightest are then
moved by ascent. Above 1 a certificate is wrong. A third of the tries has equal states, another one
equal inputs.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly import SingularValueBounded, Subnetwork, Symmetric
from ctrnn_assembly.certificates.cascade import LayerBound
from ctrnn_assembly.pairs import Pairs
from ctrnn_assembly.stack import Stack, norm_bound
from ctrnn_assembly.training.provenance import provenance

ASCENT, KEPT = 12, 32


def random_stack(rng: np.random.Generator) -> Stack:
    """Sampled, as one field or gated; float64, in evaluation mode, all weights of random sizes."""
    gated, dense = rng.random() < 0.35, rng.random() < 0.3
    solver = (
        str(rng.choice(["euler", "imex"])) if not gated and rng.random() < 0.3 else "exponential-euler"
    )
    options = {"dt": float(10 ** rng.uniform(-2, 1)), "substeps": int(rng.choice([1, 1, 3]))}
    options |= {"norm": str(rng.choice(["none", "batch", "layer", "rms"])), "solver": solver}
    options |= {
        "phi": str(rng.choice(["gelu", "relu", "silu"])),
        "scale": float(rng.choice([1, -2, 0.1])),
    }
    options["mix"] = "tanh-glu" if gated else str(rng.choice(["linear", "tanh-glu", "mlp"]))
    options |= {"gate_range": 1 + rng.exponential()} if gated else {"one_field": rng.random() < 0.3}
    sets = SingularValueBounded("relu"), Symmetric("tanh")
    fields = [
        Subnetwork(sets[rng.integers(2)], 3, form=("x", "r")[rng.integers(2)], tau=rng.uniform(0.3, 30))
        if dense and not gated
        else Pairs(4, horizon=float(10 ** rng.uniform(0.6, 3)), phi=(None, "tanh")[rng.integers(2)])
        for _ in range(rng.integers(1, 3))
    ]
    net = Stack(2, int(rng.integers(1, 4)), fields, batch_first=True, **options).double().eval()
    for part in net.requires_grad_(False).parameters():
        if float(part.abs().max()) in (0.0, 1.0):  # as gates, d and norms are made
            part.add_(torch.randn_like(part))
        elif part.ndim == 2:
            part.mul_(10 ** rng.uniform(-1, 0.7))
    return net


def promised(net: Stack, layers: list[LayerBound], e: list[Tensor], entered: Tensor) -> list[Tensor]:
    """The distances of each layer's states after a sample, and of the output, are at most these."""
    q = [layer.certificate.step.contraction_factor for layer in layers]
    held = 1 if net.one_field else net.substeps
    for last in [False] * (net.substeps if net.one_field else 1) + [True] * net.one_field:
        s, new = entered, []
        for layer, old, factor in zip(layers, e, q, strict=True):
            gain = layer.input_gain * sum(factor**k for k in range(held))
            new.append(old if last else factor**held * old + gain * s)
            s = layer.passed * s + layer.output_gain * (old if net.one_field else new[-1])
        e = new
    return [*e, s]


def ratios(net: Stack, layers: list[LayerBound], x: Tensor, u: Tensor) -> Tensor:
    """Reached over promised, (layers + 1, tries), for two states and inputs x, u (2, tries, .)."""
    runs = [net(each[:, None], state[None]) for state, each in zip(x, u, strict=True)]

    def distances(states: Tensor) -> list[Tensor]:
        found = []
        for layer, bound, z in zip(net.layers, layers, net.split(states), strict=True):
            metric = bound.certificate.metric.matrix
            theta = metric.scaled(layer.field.terms().tau.sqrt()).theta()
            found.append((z[0] - z[1]) @ (torch.diag(theta) if theta.ndim == 1 else theta).mT)
        return [one.norm(dim=-1) for one in found]

    entered = norm_bound(net.encoder.weight) * (u[0] - u[1]).norm(dim=-1)
    output = (runs[0][0] - runs[1][0])[:, 0].norm(dim=-1)
    reached = [*distances(torch.stack([run[1][0] for run in runs])), output]
    rounding = 1e-12 * (1 + sum(run[0].norm(dim=-1)[:, 0] + run[1][0].norm(dim=-1) for run in runs))
    bounds = promised(net, layers, distances(x), entered)
    return torch.stack([a / (b + rounding) for a, b in zip(reached, bounds, strict=True)])


def inside(net: Stack, x: Tensor, u: Tensor) -> None:
    """Two states and inputs, (2, tries, .), within what a certificate with gates speaks of, in place."""
    if net.gated:
        u.clamp_(-net.input_range, net.input_range)
        radii = torch.cat([r for r in net._radii() if r is not None])
        pairs = x.unflatten(-1, (-1, 2))
        pairs *= (radii / pairs.norm(dim=-1)).clamp(max=1)[..., None]
    third = x.shape[1] // 3
    x[1, :third], u[1, third : 2 * third] = x[0, :third], u[0, third : 2 * third]


def worst(net: Stack, tries: int, rng: np.random.Generator) -> float:
    """The largest ratio found; NaN for a net that has no certificate."""
    found = net.certificate(search="none")
    if not (found.certified and found.step is not None and found.step.certified):
        return torch.nan
    layers, size = (
        net.bounds(net.dt, net.solver, "none"),
        torch.from_numpy(rng.uniform(-3, 1, (tries, 1))),
    )
    x, u = torch.randn(2, tries, net.state_size).double(), torch.randn(2, tries, 2).double()
    x[1], u[1] = x[0] + 10**size * x[1], u[0] + 10**size * u[1]
    inside(net, x, u)
    reached = ratios(net, layers, x, u)
    best, tight = float(reached.max()), reached.amax(0).topk(KEPT).indices.sort().values
    x, u = x[:, tight].requires_grad_(), u[:, tight].requires_grad_()
    ascent = torch.optim.Adam([x, u], lr=0.02)
    for _ in range(ASCENT):
        ascent.zero_grad()
        (-ratios(net, layers, x, u).amax(0).clamp(min=1e-300).log().sum()).backward()
        ascent.step()
        with torch.no_grad():
            inside(net, x, u)
            best = max(best, float(ratios(net, layers, x, u).max()))
    return best


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
    from keep import RESULTS, keep

    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nets", type=int, default=100)
    parser.add_argument("--tries", type=int, default=2048, help="in closed form, of each net")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result, found = provenance(seed=given.seed), []
    for k in range(given.nets):
        torch.manual_seed(given.seed * 10**6 + k)
        rng = np.random.default_rng([given.seed, k])
        found.append(worst(random_stack(rng), given.tries, rng))
        if found[-1] > 1 + 1e-9:
            print(f"net {k} of seed {given.seed}: {found[-1]:.12g} times what its certificate says")
    proven = np.array([ratio for ratio in found if ratio == ratio])
    result |= {"nets": given.nets, "certified": len(proven), "tries": given.tries * len(proven)}
    result |= {"ascended": KEPT * ASCENT * len(proven), "wrong": int((proven > 1 + 1e-9).sum())}
    result |= {f"reached, {100 * q:g} %": float(np.quantile(proven, q)) for q in (0.1, 0.5, 1)}
    print(result | {"result": str(keep("false-yes-of-stacks", result, given.results))})
    sys.exit(1 if result["wrong"] else 0)
