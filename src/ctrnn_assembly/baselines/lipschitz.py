"""LipschitzRNN of Erichson, Azencot, Queiruga, Hodgkinson and Mahoney (ICLR 2021, arXiv 2006.12070).

Written from the formula; the paper could not be opened here. Settings are those of the authors' driver
(github.com/erichson/LipschitzRNN), which has one beta and one gamma for both matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctrnn_assembly.baselines.baseline import EulerRNN, Field, check_range


class LipschitzRNN(EulerRNN):
    """Forward Euler steps of a linear part plus a Lipschitz nonlinearity.

        x' = A x + tanh(W x + U u + b),      x_t = x_{t-1} + eps x'(x_{t-1}, u_t)
        A = (1 - beta_A) (M_A + M_A^T) + beta_A (M_A - M_A^T) - gamma_A I
        W = (1 - beta_W) (M_W + M_W^T) + beta_W (M_W - M_W^T) - gamma_W I

    A is made of beta_A, gamma_A and M_A alone, W of beta_W, gamma_W and M_W alone (some public copies
    mix the two betas). `inputs` holds (U, b). Start: M_A, M_W ~ N(0, (init_std / n)^2), U Xavier normal,
    b = 0.

    Args:
        input_size, hidden_size, batch_first: m, n and the layout, as in `Recurrent`.
        eps: step, > 0.
        beta_A, beta_W: from symmetric (0) to skew (1).
        gamma_A, gamma_W, init_std: as above, >= 0.

    Guarantee: none. The paper's sufficient condition for stability constrains A and W jointly; training
    does not enforce it, here or in the authors' code, and it speaks of the ODE, not of its Euler steps.

    Source: Erichson et al. 2021.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        batch_first: bool = False,
        eps: float = 0.03,
        beta_A: float = 0.75,
        beta_W: float = 0.75,
        gamma_A: float = 1e-3,
        gamma_W: float = 1e-3,
        init_std: float = 0.1,
    ) -> None:
        super().__init__(input_size, hidden_size, batch_first=batch_first, eps=eps)
        for name, beta in (("beta_A", beta_A), ("beta_W", beta_W)):
            check_range(name, beta, 0.0, 1.0)
        for name, value in (("gamma_A", gamma_A), ("gamma_W", gamma_W), ("init_std", init_std)):
            check_range(name, value, 0.0)
        self.beta_A, self.gamma_A = beta_A, gamma_A
        self.beta_W, self.gamma_W = beta_W, gamma_W
        n = hidden_size
        self.inputs = nn.Linear(input_size, n)
        nn.init.xavier_normal_(self.inputs.weight)
        nn.init.zeros_(self.inputs.bias)
        self.M_A = nn.Parameter(torch.randn(n, n) * init_std / n)
        self.M_W = nn.Parameter(torch.randn(n, n) * init_std / n)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """(A, W), each (n, n)."""
        A = _blend(self.M_A, self.beta_A, self.gamma_A)
        return A, _blend(self.M_W, self.beta_W, self.gamma_W)

    def vector_field(self) -> Field:
        both = torch.cat(self.matrices()).T  # (n, 2n): A x and W x in one product

        def rate(drive: Tensor, x: Tensor) -> Tensor:
            Ax, Wx = (x @ both).chunk(2, dim=-1)
            return Ax + torch.tanh(Wx + drive)

        return rate


def _blend(M: Tensor, beta: float, gamma: float) -> Tensor:
    """(1 - beta) (M + M^T) + beta (M - M^T) - gamma I, (n, n)."""
    eye = torch.eye(len(M), dtype=M.dtype, device=M.device)
    return (1 - beta) * (M + M.T) + beta * (M - M.T) - gamma * eye
