"""What a net is to say of a series: a class or values, at its end or at every step.

    class       y (N,) int64                    regression  y (N, k) float32
    per-step    y (N, T) int64, or (N, T, k)    forecast    y (N, T, m), channels `ahead` steps later

In padding, warm-up and gaps a class is -1 and a value NaN: neither loss nor measure looks there.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ctrnn_assembly.errors import ConfigError

STEPWISE = ("per-step", "forecast")
UNKNOWN = -1
MEASURES = {"accuracy": "accuracy", "f1": "F1", "r2": "R2", "mse": "MSE"}  # what they are called


def known(y: Tensor) -> Tensor:
    """Where y says something, of y's shape."""
    return ~y.isnan() if y.is_floating_point() else y != UNKNOWN


def loss_of(outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy, perhaps with `weights` (k,), or squared error; outputs (N, k) or (N, T, k)."""
    if y.is_floating_point():
        return F.mse_loss(outputs.float()[known(y)], y[known(y)])
    weights = None if weights is None else weights.to(outputs.device)
    return F.cross_entropy(outputs.float().flatten(0, -2), y.flatten(), weights, ignore_index=UNKNOWN)


def balanced(y: Tensor, k: int) -> Tensor:
    """Weights n / (k n_c) of k classes, with which each has the same share in the loss."""
    if y.is_floating_point():
        raise ConfigError("class_weights are for classes; got values. Leave them out.")
    counts = y[known(y)].bincount(minlength=k).float()
    return counts.sum() / (k * counts.clamp(min=1))


def measures_of(outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Accuracy and F1 of classes, R2 and the MSE of each value, (k,).

    F1 = 2 TP / (2 TP + FP + FN) is a mean over the classes that occur in y or are named, R2 = 1 - sum
    (y - f)^2 / sum (y - mean y)^2 over the values that are not constant.
    """
    outputs = outputs.flatten(0, -2).double()
    if y.is_floating_point():
        y = y.flatten(0, -2).double()
        mse, spread = (outputs - y).square().nanmean(0), (y - y.nanmean(0)).square().nanmean(0)
        return {"r2": (1 - mse / spread)[spread > 0].mean(), "mse": mse}
    k, y = outputs.shape[-1], y.flatten()
    pairs = (k * y + outputs.argmax(-1))[known(y)].bincount(minlength=k * k).view(k, k).double()
    right, said = pairs.diag(), pairs.sum(0) + pairs.sum(1)
    return {"accuracy": right.sum() / pairs.sum(), "f1": (2 * right / said)[said > 0].mean()}


def in_words(numbers: dict[str, Any], part: str) -> str:
    """The measures among numbers such as test_accuracy, for the part "test"."""
    said = ((name, numbers.get(f"{part}_{key}")) for key, name in MEASURES.items())
    return ", ".join(f"{name} {x:.4f}" for name, x in said if x is not None)
