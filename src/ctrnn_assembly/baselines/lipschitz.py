"""LipschitzRNN of Erichson, Azencot, Queiruga, Hodgkinson and Mahoney.

Source: 'Lipschitz Recurrent Neural Networks', ICLR 2021, arXiv 2006.12070. Written from the
formula; the paper itself could not be opened here, so no equation number is cited. Settings are
those of the authors' driver (github.com/erichson/LipschitzRNN), which has one β and one γ for
both matrices.
"""

import torch
from torch import Tensor, nn

from ctrnn_assembly.baselines.euler import Advance, EulerRNN
from ctrnn_assembly.baselines.sequence import check_range


def blend(M: Tensor, beta: float, gamma: float) -> Tensor:
    """(1−β)(M + Mᵀ) + β(M − Mᵀ) − γI, (n, n): β moves M from symmetric (0) to skew (1)."""
    eye = torch.eye(len(M), dtype=M.dtype, device=M.device)
    return (1 - beta) * (M + M.T) + beta * (M - M.T) - gamma * eye


class LipschitzRNN(EulerRNN):
    """Forward Euler steps of a linear part plus a Lipschitz nonlinearity.

        ḣ = A h + tanh(W h + U x + b),      h_t = h_{t-1} + ε ḣ(h_{t-1}, x_t)
        A = (1−β_A)(M_A + M_Aᵀ) + β_A(M_A − M_Aᵀ) − γ_A I
        W = (1−β_W)(M_W + M_Wᵀ) + β_W(M_W − M_Wᵀ) − γ_W I

    A is made of β_A, γ_A and M_A alone, W of β_W, γ_W and M_W alone (some public copies mix the
    two β). `inputs` holds (U, b). Start: M_A, M_W ~ N(0, (init_std/n)²), U Xavier normal, b = 0.

    Args:    input_size: m.  hidden_size: n.  batch_first: input is (B, T, m).
             eps: step ε > 0.  beta_A, beta_W: in [0, 1].  gamma_A, gamma_W: >= 0.
             init_std: as above, >= 0.
    Raises:  ConfigError: a setting out of range.
             ShapeError: at a call, a tensor of wrong shape, dtype or device.
    Guarantee: none proven. The paper's sufficient condition for stability constrains A and W
             jointly; training does not enforce it, here or in the authors' code, and it speaks of
             the ODE, not of its Euler steps. So no certificate.
    Source:  Erichson et al. 2021; see the head of this file.
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
        A = blend(self.M_A, self.beta_A, self.gamma_A)
        return A, blend(self.M_W, self.beta_W, self.gamma_W)

    def advance(self) -> Advance:
        both = torch.cat(self.matrices()).T  # (n, 2n): A h and W h in one product

        def euler(drive: Tensor, h: Tensor) -> Tensor:
            Ah, Wh = (h @ both).chunk(2, dim=-1)
            return h + self.eps * (Ah + torch.tanh(Wh + drive))

        return euler
