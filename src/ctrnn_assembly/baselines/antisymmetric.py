"""AntisymmetricRNN of Chang, Chen, Haber and Chi.

Source: 'AntisymmetricRNN: A Dynamical System View on Recurrent Neural Networks', ICLR 2019,
arXiv 1902.09689. Written from the formula; the paper itself could not be opened here, so the
equation numbers (12 plain, 13 gated) are those a public re-implementation cites, and the settings
those a public summary of the paper's appendix C quotes.
"""

import torch
from torch import Tensor, nn

from ctrnn_assembly.baselines.euler import Advance, EulerRNN
from ctrnn_assembly.baselines.sequence import check_range


class AntisymmetricRNN(EulerRNN):
    """A residual recurrent network whose recurrent matrix is skew-symmetric minus γI.

        plain  h_t = h_{t-1} + ε tanh(K h_{t-1} + V_h x_t + b_h)
        gated  h_t = h_{t-1} + ε z_t ⊙ tanh(K h_{t-1} + V_h x_t + b_h)
               z_t = σ(K h_{t-1} + V_z x_t + b_z)
        K = W − Wᵀ − γI,  W strictly upper triangular

    The n(n−1)/2 entries of W above its diagonal are the parameter `upper`, row by row: a full W
    would hold every number of K twice. `inputs` holds (V_h, b_h), and (V_z, b_z) below if gated.

    Start: V ~ N(0, 1/m), W ~ N(0, init_std²/n), b = 0, as appendix C. That it draws the triangle
    (not a full W, whose K would have twice the variance) is our reading. The paper picks by
    validation ε from {0.01, 0.1, 1}, init_std from {0, 1, 2, 4, 8, 16}, and γ from a grid we have
    not seen; the defaults ε = γ = 0.01, init_std = 1 are those of a public re-implementation.

    Args:    input_size: m.  hidden_size: n.  batch_first: input is (B, T, m).  gated: use z.
             eps: step ε > 0.  gamma: diffusion γ >= 0.  init_std: as above, >= 0.
    Raises:  ConfigError: a setting out of range.
             ShapeError: at a call, a tensor of wrong shape, dtype or device.
    Guarantee: none proven. The paper argues about the eigenvalues of the Jacobian at each instant
             (near the imaginary axis); for a time-varying input that bounds nothing, and the gate
             changes the Jacobian besides. No condition is enforced, so no certificate.
    Source:  Chang et al. 2019, eq. 12 (plain) and 13 (gated); see the head of this file.
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
        """K = W − Wᵀ − γI, (n, n)."""
        n = self.hidden_size
        rows, columns = self.index
        W = self.upper.new_zeros(n, n).index_put((rows, columns), self.upper)
        return W - W.T - self.gamma * torch.eye(n, dtype=W.dtype, device=W.device)

    def advance(self) -> Advance:
        K_T = self.matrix().T

        def plain(drive: Tensor, h: Tensor) -> Tensor:
            return h + self.eps * torch.tanh(h @ K_T + drive)

        def gated(drive: Tensor, h: Tensor) -> Tensor:
            Kh = h @ K_T
            inner, gate = drive.chunk(2, dim=-1)
            return h + self.eps * torch.sigmoid(Kh + gate) * torch.tanh(Kh + inner)

        return gated if self.gated else plain
