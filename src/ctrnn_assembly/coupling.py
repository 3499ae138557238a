"""Couplings between the modules of an assembly, in one table: `COUPLINGS`.

| kind | class | L | rate and metric of the whole |
|---|---|---|---|
| feedback | `Feedback` | L_ij = Theta_i^-1 K_ij Theta_j, K_ji = -K_ij^T | min of the modules' rates, M |
| hierarchy | `Hierarchy` | one way, to later modules, or K psi(x) | half of that, blkdiag(kappa_i M_i) |
| free | `FreeCoupling` | L = K, unconstrained | no guarantee: a control |

`Feedback` is the paper's L_ij = B_ij - M_i^-1 B_ji^T M_j without its redundancy; ||L||_M = ||K||.
Source: Kozachkov et al. 2022, eq. (3) and hierarchical combination (arXiv 2106.08928); THEORY section 5.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ctrnn_assembly.activations import Activation, Elementwise, activation
from ctrnn_assembly.errors import ConfigError, ContractionError, check_known
from ctrnn_assembly.linalg import resolvent_sums, working_precision
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.recurrent import is_plain
from ctrnn_assembly.topology import Pair, check_pairs

Init = Literal["uniform", "normal", "orthogonal"]
INITS: dict[str, Any] = {
    "uniform": partial(nn.init.uniform_, a=-1.0),
    "normal": nn.init.normal_,
    "orthogonal": nn.init.orthogonal_,
}


class BlockMatrix(nn.Module):
    """A trainable (n, n) matrix with free blocks at the given (row, column) pairs, zero elsewhere.

    All free entries are one flat parameter `values`, block after block, row by row. They start as one of
    `INITS`, but for orthogonal blocks times init_scale / sqrt(n_j).
    """

    places: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        blocks: Sequence[Pair],
        *,
        init: Init = "uniform",
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_known("init", init, INITS)
        self.n, self.sizes, self.pairs = sum(sizes), tuple(sizes), [(i, j) for i, j in blocks]
        parts = [torch.zeros(0)]
        for i, j in self.pairs:
            scale = init_scale if init == "orthogonal" else init_scale / sizes[j] ** 0.5
            dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # halves have no QR
            block = INITS[init](torch.empty(sizes[i], sizes[j], dtype=dtype), generator=generator)
            parts.append(scale * block.flatten())
        self.values = nn.Parameter(torch.cat(parts).to(torch.get_default_dtype()))
        self.blocks = nn.Buffer(torch.tensor(self.pairs, dtype=torch.long).view(-1, 2))
        self.place()
        self.register_load_state_dict_pre_hook(_same_blocks)
        self.register_load_state_dict_post_hook(BlockMatrix.place)

    def place(self, keys: object = None) -> None:
        """Find the rows and columns where the values stand, which no file holds: after loading, too."""
        units = torch.arange(self.n, device=self.values.device).split(self.sizes)
        blocks = [torch.cartesian_prod(units[i], units[j]).T for i, j in self.pairs]
        self.places = nn.Buffer(torch.cat([units[0].new_empty(2, 0), *blocks], 1), persistent=False)

    def forward(self) -> Tensor:
        (i, j), flat = self.places, self.values.new_zeros(self.n * self.n)
        return flat.scatter(0, i * self.n + j, self.values).view(self.n, self.n)


class Coupling(nn.Module):
    """A coupling of modules on unordered pairs i < j; `COUPLINGS` lists what there is.

    Args:
        sizes, pairs: the modules' sizes, and which of them are coupled.
        psi: of a `Hierarchy`, the activation of K psi(x_j); None for K x_j.
        start: how the free entries start, see `BlockMatrix`.

    Attributes:
        free: the free blocks of K of a pair i < j: True for (row i, column j), False for the other.
        share: of the modules' smallest rate that the whole is guaranteed; None for nothing.
    """

    free: ClassVar[tuple[bool, ...]]
    share: ClassVar[float | None]

    def __init__(
        self,
        sizes: Sequence[int],
        pairs: Sequence[Pair],
        *,
        psi: str | Activation | None = None,
        **start: Any,
    ) -> None:
        super().__init__()
        if psi is not None and not isinstance(self, Hierarchy):
            kind = type(self).__name__
            raise ConfigError(f"psi is for a Hierarchy, whose edges may be nonlinear; got {kind}.")
        self.pairs, self.sizes = check_pairs(pairs, len(sizes)), tuple(sizes)
        blocks = [(i, j) if upper else (j, i) for i, j in self.pairs for upper in self.free]
        self.K = BlockMatrix(sizes, blocks, **start)
        self.psi = None if psi is None else Elementwise(((activation(psi), self.K.n),))

    def matrix(self, metrics: list[Metric]) -> Tensor | None:
        """L, (n, n), for the modules' metrics; None when the edges are nonlinear."""
        return self.K() if self.psi is None else None

    def kept(self) -> float | None:
        """`share`, unless a part was changed by hand so that it is none."""
        return type(self).share if self.psi is None else None


class Feedback(Coupling):
    """Generalised negative feedback: K is free, L follows from the metrics.

    Guarantee: the assembly contracts at the smallest rate of its modules in continuous time; an Euler
    step needs a bound on ||K|| as well. Rounding L to the dtype of K costs about eps cond(Theta) ||K||.

    >>> L = Feedback([1, 1], [(0, 1)]).matrix([Metric((Factor(*torch.ones(2, 1)),))] * 2)
    >>> bool((L + L.mT == 0).all())
    True
    """

    free = (True,)
    share = 1.0

    def matrix(self, metrics: list[Metric]) -> Tensor:
        """L = Theta^-1 (K - K^T) Theta, (n, n), of the whole metric."""
        metric, K = Metric.join(metrics), self.K
        # In the precision of the metric: Theta and Theta^-1 rounded apart would not cancel.
        if self.free == (True,) and metric.is_diagonal and is_plain(K, BlockMatrix):  # by entries
            theta = torch.cat([factor.theta for factor in metric.factors])
            inverse = torch.cat([factor.theta_inv for factor in metric.factors])
            (i, j), n, at, V = K.places, K.n, K.places.flatten(), K.values.to(theta)  # x[at] is slow
            (out_i, out_j), (in_i, in_j) = (x.index_select(0, at).chunk(2) for x in (inverse, theta))
            both = torch.cat([out_i * (V * in_j), -out_j * (V * in_i)]).to(K.values)
            return both.new_zeros(n**2).index_add_(0, torch.cat([i * n + j, j * n + i]), both).view(n, n)
        upper = K().to(metric.factors[0].theta)
        return metric.left_divide(metric.right_multiply(upper - upper.mT)).to(K.values)


class FreeCoupling(Coupling):
    """Both directions of each pair, unconstrained. Guarantee: none; a control.

    >>> parts = [Subnetwork(AdaDiagTanh(), 2) for _ in range(2)]
    >>> print(Assembly(parts, FreeCoupling([2, 2], [(0, 1)])).rate)
    None
    """

    free = (True, False)
    share = None


class Hierarchy(Coupling):
    """One-way coupling: module j drives module i for each pair j < i, linear or through psi.

    Guarantee: the assembly contracts at any rate below the smallest of its modules, in a metric
    blkdiag(kappa_i M_i); `Assembly.metric` is that of half the rate.

    >>> parts = [Subnetwork(AdaDiagTanh(margin=0.5), 2) for _ in range(2)]
    >>> Assembly(parts, Hierarchy([2, 2], [(0, 1)], psi="tanh")).rate
    0.25
    """

    free = (False,)  # row = driven module, column = driving module
    share = 0.5

    def kept(self) -> float | None:
        """`share`, if K leads to later modules alone, by pairs that `gains` counts."""
        of = torch.eye(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes), 0)  # (n, p)
        joined = (of.mT @ (self.K().detach().cpu() != 0).to(of) @ of).nonzero().tolist()
        return type(self).share if all(j < i and (i, j) in self.K.pairs for i, j in joined) else None

    def gains(self, metrics: list[Metric], taus: list[Tensor]) -> Tensor:
        """gamma_ij >= sup ||Theta_i tau_i^-1/2 df_i/dx_j tau_j^-1/2 Theta_j^-1||, (p, p)."""
        K, sizes = self.K().to(metrics[0].factors[0].theta), self.sizes
        # Theta_i tau_i^1/2 and its inverse, of the metric diag(tau) M
        turned = [m.scaled(tau.sqrt()).inverse() for m, tau in zip(metrics, taus, strict=True)]
        gains = K.new_zeros(len(sizes), len(sizes))
        for i, j in self.K.pairs:
            block = K.split(sizes, dim=0)[i].split(sizes, dim=1)[j] / taus[i][:, None]
            left = turned[i].left_divide(block)
            if self.psi is None or metrics[j].is_diagonal:  # the slopes commute with Theta_j^-1
                gain = torch.linalg.matrix_norm(turned[j].right_multiply(left), ord=2)
            else:
                right = torch.linalg.matrix_norm(turned[j].theta(), ord=2)
                gain = torch.linalg.matrix_norm(left, ord=2) * right
            slope = 1.0 if self.psi is None else self.psi.g  # its bound enters the gain
            gains = gains.index_put((torch.tensor(i), torch.tensor(j)), slope * gain)
        return gains


COUPLINGS: dict[str, Any] = {"feedback": Feedback, "hierarchy": Hierarchy, "free": FreeCoupling}


def hierarchy_scales(gains: Tensor, rates: Tensor) -> Tensor:
    """kappa of blkdiag(kappa_i M_i), with the rate min(rates) / 2 for gains (p, p): THEORY section 5."""
    G, lam = working_precision(gains, rates)
    d, e = resolvent_sums(torch.diag(lam - lam.min() / 2) - G)
    kappa = (e / d).to(gains.dtype)
    if not bool((kappa > 0).all() and torch.isfinite(kappa).all()):
        must, got = f"must be representable in {gains.dtype}", f"scales {(e / d).detach().tolist()}"
        fix = "Lower the gains, or shorten the chain."
        raise ContractionError(f"the hierarchy's metric {must}; got {got}. {fix}")
    return kappa


def _same_blocks(module: BlockMatrix, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse to load values that belong to other pairs of modules."""
    stored, own = state.get(f"{prefix}blocks"), [[i, j] for i, j in module.pairs]
    if stored is not None and stored.tolist() != own:
        differ = f"the file couples the blocks {stored.tolist()[:4]}..., the model {own[:4]}..."
        raise ConfigError(f"{differ}. Build the model with the file's own configuration.")
