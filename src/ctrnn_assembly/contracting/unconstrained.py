"""No constraint and no guarantee: controls, and the published Sparse Combo Net as it was coded.

M = I by declaration, so that couplings are skew-symmetric; a certificate has to find its own proof.
"""

import torch
from torch import Tensor

from ctrnn_assembly.contracting.interface import Contracting
from ctrnn_assembly.contracting.theorem1 import SPARSE, sparse_uniform
from ctrnn_assembly.errors import ContractionError

SHRINK = 0.2  # of the published modules


class Unconstrained(Contracting):
    """Any finite W, trained freely; raw tensor W (n, n). Guarantee: none.

    >>> net = Subnetwork(Unconstrained(), 2, weight=2 * torch.eye(2))
    >>> net.rate, certify(net).certified
    (None, False)
    """

    theorem = "none"
    rate = None
    init_scale = 0.5

    def weight(self, W: Tensor) -> Tensor:  # type: ignore[override]
        return W.clone()

    def raw(self, W: Tensor) -> tuple[Tensor]:
        return (W.clone(),)


class PublishedSparse(Unconstrained):
    """The modules of the Sparse Combo Net as its released code makes them; raw tensor W (n, n).

    Sparse entries uniform in (-30, 30), kept if rho(|W|) < 1, then multiplied by 0.2 and frozen, in the
    metric I / 2, in which none contracts with these settings (THEORY E10). Guarantee: none.

    >>> certify(Subnetwork(PublishedSparse(), 32), search="none").certified
    False
    """

    theorem = "none (published construction)"
    frozen = True
    usual_phi = "relu"
    settings = SPARSE
    density, magnitude, tries = 0.033, 6.0, 1000

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        for _ in range(self.tries):
            W = sparse_uniform(n, self.density, self.magnitude / SHRINK, generator)
            if float(torch.linalg.eigvals(W.abs().double()).real.max()) < 1:
                return SHRINK * W
        raise ContractionError(
            f"no published module of {n} units with density {self.density} and magnitude "
            f"{self.magnitude} has rho(|W| / {SHRINK}) < 1 in {self.tries} draws. "
            "Lower the density or the magnitude."
        )
