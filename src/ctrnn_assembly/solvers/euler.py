"""Forward Euler as a plain loop under autograd: the reference twin of `euler_adjoint`.

x_k+1 = x_k + dt_k / tau (-x_k + post(W pre(x_k) + b + W_in u_k) + L x_k + sum_e K_e psi_e(x_k))
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrnn_assembly.terms import Terms


def euler(terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor) -> Tensor:
    """All states of forward Euler.

    Args:
        terms: the vector field.
        x0: (batch, n).
        drive: inputs held over each step, (time, batch, m), or None.
        dt: step lengths, (time, 1) or (time, batch); a step of length 0 leaves the state alone.

    Returns:
        (time + 1, batch, n), x0 first.
    """
    states = [x0]
    for k, step in enumerate(dt):
        x = states[-1]
        states.append(x + step[:, None] * terms(x, None if drive is None else drive[k]))
    return torch.stack(states)
