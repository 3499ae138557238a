"""The seven networks of 'Gradients explode': plain MLPs, f_l = phi(norm(W_l f_{l-1})).

| name | norm | phi | variance of W |
|---|---|---|---|
| relu, layer-relu, batch-relu | none, layer, batch | ReLU | 2 / columns |
| tanh, layer-tanh, batch-tanh | none, layer, batch | tanh | 1 / columns |
| selu | none | SELU | 1 / columns |

Weights are Gaussian; there are no biases, and the norms have no gain or shift. Batch norm uses the
statistics of the batch it sees, always.

Source: Philipp, Song and Carbonell 2017 (arXiv 1712.05577), section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MLPS = ("relu", "layer-relu", "batch-relu", "tanh", "layer-tanh", "batch-tanh", "selu")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "selu": F.selu,
}


class Layer(nn.Module):
    """x (B, columns) -> phi(norm(W x)), (B, rows)."""

    def __init__(self, W: Tensor, name: str) -> None:
        super().__init__()
        self.norm, _, phi = name.rpartition("-")
        self.phi = ACTIVATIONS[phi]
        self.weight = nn.Parameter(W)
        self.register_buffer("initial", W.clone(), persistent=False)

    initial: Tensor

    def normalise(self, z: Tensor) -> Tensor:
        if self.norm == "layer":
            return F.layer_norm(z, z.shape[1:])
        if self.norm == "batch":
            return F.batch_norm(z, None, None, training=True)
        return z

    def preactivation(self, x: Tensor) -> Tensor:
        """What phi sees, (B, rows)."""
        return self.normalise(x @ self.weight.mT)

    def forward(self, x: Tensor) -> Tensor:
        return self.phi(self.preactivation(x))


def mlp(
    name: str,
    generator: torch.Generator,
    *,
    depth: int = 50,
    width: int = 100,
    n_input: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """One of `MLPS`: `depth` layers of `width` units, the first one on n_input (default: width)."""
    gain = 2.0 if name.endswith("relu") else 1.0
    layers = []
    for columns in (n_input or width, *[width] * (depth - 1)):
        W = torch.randn(width, columns, generator=generator, dtype=dtype)
        layers.append(Layer(W * (gain / columns) ** 0.5, name))
    return nn.Sequential(*layers)


def gaussian_data(
    generator: torch.Generator,
    *,
    observations: int = 100,
    width: int = 100,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Gaussian observations scaled to the length sqrt(width), (observations, width)."""
    return unit_rms(torch.randn(observations, width, generator=generator, dtype=dtype))


def unit_rms(x: Tensor) -> Tensor:
    """Rows of x (B, d) at the length sqrt(d)."""
    return x * x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True)


def preactivations(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What the nonlinearity of each layer sees, (B, width) each."""
    found = []
    with torch.no_grad():
        for layer in net:
            assert isinstance(layer, Layer)
            found.append(layer.preactivation(x))
            x = layer.phi(found[-1])
    return found
