"""AntisymmetricRNN of Chang, Chen, Haber and Chi (ICLR 2019, arXiv 1902.09689).

Written from the formula; the paper could not be opened here, so the equation numbers are those that a
public re-implementation cites, and the settings those of a public summary of its appendix C.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctrnn_assembly.baselines.baseline import EulerRNN, Field, check_range


class AntisymmetricRNN(EulerRNN):
    """A residual recurrent network whose recurrent matrix is skew-symmetric minus gamma I.

        plain  x_t = x_{t-1} + eps tanh(K x_{t-1} + V u_t + b)
        gated  x_t = x_{t-1} + eps z_t o tanh(K x_{t-1} + V u_t + b)
               z_t = sigmoid(K x_{t-1} + V_z u_t + b_z)
        K = W - W^T - gamma I,  W strictly upper triangular

    `upper` holds the n (n - 1) / 2 entries of W above its diagonal, row by row; `inputs` holds (V, b),
    and (V_z, b_z) below if gated. Start: V ~ N(0, 1 / m), W ~ N(0, init_std^2 / n), b = 0, as appendix
    C; that it draws the triangle (not a full W, whose K would have twice the variance) is our reading.

    Args:
        input_size, hidden_size, batch_first: m, n and the layout, as in `Recurrent`.
        gated: use z.
        eps, gamma, init_std: step > 0, diffusion >= 0, and spread >= 0 of the start. The paper chooses
            them by validation, eps from {0.01, 0.1, 1} and init_std from {0, 1, 2, 4, 8, 16}; the
            defaults are those of a public re-implementation.

    Guarantee: none. The paper argues about the eigenvalues of the Jacobian at each instant (near the
    imaginary axis); for a time-varying input that bounds nothing, and the gate changes the Jacobian
    besides. No condition is enforced.

    Source: Chang et al. 2019, eq. 12 (plain) and 13 (gated).
    """

    index: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        batch_first: bool = False,
        gated: bool = False,
        eps: float = 0.01,
        gamma: float = 0.01,
        init_std: float = 1.0,
    ) -> None:
        super().__init__(input_size, hidden_size, batch_first=batch_first, eps=eps)
        check_range("gamma", gamma, 0.0)
        check_range("init_std", init_std, 0.0)
        n = hidden_size
        self.gated, self.gamma = gated, gamma
        self.inputs = nn.Linear(input_size, 2 * n if gated else n)
        nn.init.normal_(self.inputs.weight, std=input_size**-0.5)
        nn.init.zeros_(self.inputs.bias)
        self.upper = nn.Parameter(torch.randn(n * (n - 1) // 2) * init_std * n**-0.5)
        self.register_buffer("index", torch.triu_indices(n, n, offset=1), persistent=False)

    def matrix(self) -> Tensor:
        """K = W - W^T - gamma I, (n, n)."""
        n = self.hidden_size
        W = self.upper.new_zeros(n, n).index_put(tuple(self.index), self.upper)
        return W - W.T - self.gamma * torch.eye(n, dtype=W.dtype, device=W.device)

    def vector_field(self) -> Field:
        K_T = self.matrix().T

        def plain(drive: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(x @ K_T + drive)

        def gated(drive: Tensor, x: Tensor) -> Tensor:
            Kx = x @ K_T
            inner, gate = drive.chunk(2, dim=-1)
            return torch.sigmoid(Kx + gate) * torch.tanh(Kx + inner)

        return gated if self.gated else plain
