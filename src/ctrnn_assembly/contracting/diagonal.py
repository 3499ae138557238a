"""The diagonal metric P = diag(exp(2 b)) of Theorems 1, 4 and 5, with a bounded condition number.

The exponent is squashed, b -> beta tanh(b / beta) with beta = log(max_condition) / 4, so that no
optimiser step can make cond(P) exceed `max_condition`: couplings are multiplied by up to
sqrt(cond P), and beyond about 1e6 float32 gradients explode (THEORY section 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctrnn_assembly.errors import ContractionError

MAX_CONDITION = 1e6


def squash(b: Tensor, max_condition: float) -> Tensor:
    """The exponent actually used, |.| < log(max_condition) / 4."""
    beta = math.log(max_condition) / 4
    return beta * torch.tanh(b / beta)


def unsquash(log_theta: Tensor, max_condition: float) -> Tensor:
    """The raw b of a given exponent, centred first.

    Raises:
        ContractionError: if the metric's condition number is not below `max_condition`.
    """
    centred = log_theta - (log_theta.max() + log_theta.min()) / 2
    beta = math.log(max_condition) / 4
    ratio = centred / beta
    if bool((ratio.abs() >= 1).any()):
        condition = float((4 * centred.abs().max()).exp())
        raise ContractionError(
            f"the metric's condition number must be below {max_condition:g}; got {condition:.3g}. "
            "Use smaller or sparser weights, or raise max_condition."
        )
    return beta * torch.atanh(ratio)


def check_max_condition(max_condition: float) -> None:
    """Refuse a bound that admits no metric but the identity."""
    if not 1 < max_condition < float("inf"):
        raise ContractionError(f"max_condition must be above 1 and finite; got {max_condition}.")
