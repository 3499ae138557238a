"""The whole assembly in coordinates where its metric is the Euclidean norm: loops plus coupling.

In y = tau^1/2 Theta x the coupling is K = tau^-1/2 Theta L Theta^-1 tau^-1/2: skew for generalised
negative feedback up to rounding, and the rounding counts. A nonlinear edge K_e psi_e(x) enters as the
bound |y_i^T (edge) y_j| <= gamma_ij |y_i| |y_j| (THEORY section 5), and into proofs of steps with each
of its sources as one more channel w_k of the feedback (section 6).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ctrnn_assembly.certificates import rounding
from ctrnn_assembly.certificates.lmi import LureSystem
from ctrnn_assembly.certificates.modules import ModuleBound, modules_of, prove_module
from ctrnn_assembly.certificates.rounding import DENSE, UNIT, Balance, largest_eigenvalue, spectral_norm
from ctrnn_assembly.linalg import symmetric_part
from ctrnn_assembly.metrics import Metric
from ctrnn_assembly.terms import Edge, Terms


@dataclass(frozen=True)
class Interconnection:
    """An assembly, ready for proofs: K (n, n), a bound on its rounding, gamma (p, p) of the edges.

    K_error also has what is uncertain of L, which may couple any two modules if `joined`. `edges` are
    the edges as systems without own dynamics, X (n, m) and Z (m, n) for m sources.
    """

    sizes: tuple[int, ...]
    modules: tuple[ModuleBound, ...]
    K: Tensor
    K_error: float
    edge_gains: Tensor
    tau: Tensor
    edges: tuple[LureSystem, ...] = ()
    joined: bool = False

    @classmethod
    def of(cls, terms: Terms, metric: Metric) -> Self:
        modules = modules_of(terms, metric)
        scales = [module.balance for module in modules]
        K, error = torch.zeros(terms.n, terms.n, dtype=torch.float64), 0.0
        if terms.L is not None:
            K, error = _balanced_blocks(terms.L.double(), scales, terms.sizes)
        moved = rounding.norm_within(terms.within.L, *2 * (_whole(scales),)) if terms.within else 0.0
        edges = tuple(_edge_system(edge, scales, terms.sizes) for edge in terms.edges)
        gains = torch.zeros(len(scales), len(scales), dtype=torch.float64)
        for edge in terms.edges:  # sup ||left_i K_ij psi' right_j||
            for i, j, block in nonzero_blocks(edge.K.double(), terms.sizes):
                gains[i, j] += edge.psi.g * rounding.norm_under_slopes(block, scales[i], scales[j])
        proven, tau = (*map(prove_module, modules),), terms.tau.double()
        return cls(terms.sizes, proven, K, error + moved, gains, tau, edges, moved > 0)

    @cached_property
    def system(self) -> tuple[LureSystem, Tensor]:
        """The whole as one linear system with sector-bounded feedback, and multipliers T (m,) for it."""
        parts, edges = [module.system for module in self.modules], self.edges
        A, X, Z = (torch.block_diag(*(getattr(s, name) for s in parts)) for name in "AXZ")
        A = sum((edge.A for edge in edges), A + self.K)
        off = math.hypot(*(s.A_error for s in parts)) + self.K_error + sum(e.A_error for e in edges)
        X, Z = torch.cat([X, *(e.X for e in edges)], dim=1), torch.cat([Z, *(e.Z for e in edges)])
        X_error = torch.cat([s.X_error for s in (*parts, *edges)])
        Z_error = torch.cat([s.Z_error for s in (*parts, *edges)])
        # Of a source, what balances the two halves of its term in the S-procedure.
        balanced = [e.X.norm(dim=0) / e.Z.norm(dim=1) for e in edges]
        T = torch.cat([*(module.T for module in self.modules), *balanced])
        size = float(A.norm() + 2 * self.K.norm() + sum(e.A.norm() for e in edges))
        off += (4 + len(edges)) * UNIT * size
        return LureSystem(1.0, A, X, Z, off, X_error, Z_error), T

    @cached_property
    def skewness(self) -> tuple[Tensor, float]:
        """sym(K) and a bound on its Frobenius norm, rounding included."""
        S = symmetric_part(self.K)
        return S, rounding.frobenius(S) * (1 + 4 * UNIT) + self.K_error

    @cached_property
    def cost(self) -> float:
        """An upper bound on the largest eigenvalue of sym(K), at least 0."""
        S, bound = self.skewness
        small = bound <= 1e-9 or (len(S) > DENSE and bound <= 1e-4 * abs(self.slowest))
        return bound if small else max(0.0, largest_eigenvalue(S, self.K_error))

    @cached_property
    def symmetric_norm(self) -> float:
        """An upper bound on ||sym K||."""
        S, bound = self.skewness
        return bound if bound <= 1e-9 or len(S) > DENSE else spectral_norm(S, self.K_error)

    @cached_property
    def norm(self) -> float:
        """An upper bound on ||K||."""
        parts = self.parts
        return max(p.norm for p in parts) if len(parts) > 1 else spectral_norm(self.K, self.K_error)

    @cached_property
    def edge_norm(self) -> float:
        """An upper bound on the norm of all nonlinear edges together, over all slopes."""
        # each entry a sum over the edges, rounded once an edge
        off = rounding.gamma(len(self.edges) + 2)
        return spectral_norm(self.edge_gains, off * float(self.edge_gains.norm()) * 1.01)

    @property
    def slowest(self) -> float:
        return min(module.rate for module in self.modules)

    def rate(self) -> tuple[float, float]:
        """A lower bound on the rate of the whole, and the rounding taken off it."""
        error = max(module.error for module in self.modules) + self.K_error
        if not self.edges and not self.K_error and not bool(self.K.any()):
            return self.slowest, error
        # Feedback, which cancels up to a thousandth of the slowest module's rate.
        if not self.edges and len(self.K) > DENSE and self.skewness[1] <= 1e-3 * self.slowest:
            return self.slowest - self.cost, error
        S = torch.block_diag(*(module.s_procedure_matrix for module in self.modules)) + self.skewness[0]
        if self.edges:
            S = min((S + torch.diag(c) for c in self._edge_costs(S)), key=rounding.guess_largest)
        return -largest_eigenvalue(S, error), error

    def abscissa_at_full_slope(self) -> float:
        """Of the Jacobian's eigenvalues, unproven; -inf (unknown) with nonlinear edges or many units."""
        if self.edges or len(self.K) > DENSE:
            return -math.inf
        systems = (module.system for module in self.modules)
        J = torch.block_diag(*(system.A + system.X @ system.Z for system in systems)) + self.K
        if not bool(torch.isfinite(J).all()):
            return -math.inf
        return float(torch.linalg.eigvals(J).real.max())

    @cached_property
    def parts(self) -> "list[Self]":
        """The clusters of modules that coupling joins, each by itself."""
        if self.joined:
            return [self]
        joined = self.edge_gains.numpy() != 0
        for i, j, _ in nonzero_blocks(self.K, self.sizes):
            joined[i, j] = True
        count, label = connected_components(joined, directed=False)
        return [self.part(np.flatnonzero(label == group).tolist()) for group in range(count)]

    @property
    def uncoupled(self) -> Self:
        """The modules with their nonlinear edges, without linear coupling."""
        return replace(self, K=torch.zeros_like(self.K), K_error=0.0, joined=False)

    def part(self, chosen: list[int]) -> Self:
        """Some of the modules, with the coupling between them; none may lead elsewhere."""
        if len(chosen) == len(self.sizes):
            return self
        spans = torch.arange(len(self.K)).split(self.sizes)
        units = torch.cat([spans[k] for k in chosen])
        sizes, modules = tuple(self.sizes[k] for k in chosen), tuple(self.modules[k] for k in chosen)
        gains = self.edge_gains[chosen][:, chosen]
        edges = tuple(edge.part(units) for edge in self.edges) if bool(gains.any()) else ()
        K, tau = self.K[units][:, units], self.tau[units]
        return type(self)(sizes, modules, K, self.K_error, gains, tau, edges)

    def _edge_costs(self, S: Tensor) -> Iterator[Tensor]:
        """Vectors c, (n,), with sum gamma_ij |y_i| |y_j| <= sum c_i |y_i|^2: c = (G w)_i / w_i.

        G = sym(gamma); sound for every w > 0. First w = (l I - C)^-1 1 for C = G - diag(rates), l just
        above its largest eigenvalue; then C with the linear coupling; then |y_i| of the worst direction.
        """
        G = symmetric_part(self.edge_gains)
        C = G - torch.diag(torch.tensor([m.rate for m in self.modules], dtype=G.dtype))

        def cost(w: Tensor) -> Tensor:
            return ((G @ w) / w * (1 + 1e-13)).repeat_interleave(torch.tensor(self.sizes))

        for comparison in (C, C + block_norms(self.skewness[0], self.sizes)):
            above = rounding.top_eigenvalue(comparison) + 1e-9 * float(comparison.norm())
            shifted = above * torch.eye(len(G), dtype=G.dtype) - comparison
            w = torch.linalg.solve_ex(shifted, torch.ones_like(G[0]))[0]
            yield (found := cost(w if bool((w > 0).all()) else torch.ones_like(w)))
            for _ in range(5 if len(S) <= DENSE else 0):
                parts = rounding.top_vector(S + torch.diag(found)).split(self.sizes)
                w = torch.stack([part.norm() for part in parts])
                yield (found := cost(w.clamp(min=1e-6 * float(w.max()))))


def _whole(scales: list[Balance]) -> Balance:
    sides = [[getattr(s, name) for s in scales] for name in ("left", "right")]
    if all(scale.diagonal for scale in scales):
        return Balance(torch.cat(sides[0]), torch.cat(sides[1]), 0.0)
    square = [torch.block_diag(*(a.diag() if a.ndim == 1 else a for a in side)) for side in sides]
    return Balance(square[0], square[1], max(scale.skew for scale in scales))


def _balanced_blocks(L: Tensor, scales: list[Balance], sizes: tuple[int, ...]) -> tuple[Tensor, float]:
    """left_i L_ij right_j of all blocks, and a bound on the error of the whole."""
    if all(scale.diagonal for scale in scales):
        whole = _whole(scales)
        return rounding.balanced(L, whole, whole)
    K, square = L.detach().clone(), 0.0
    for i, j, block in nonzero_blocks(K, sizes):
        value, error = rounding.balanced(block, scales[i], scales[j])
        block.copy_(value)
        square += error**2
    return K, square**0.5 * (1 + rounding.gamma(len(sizes) ** 2 + 2))


def _edge_system(edge: Edge, scales: list[Balance], sizes: tuple[int, ...]) -> LureSystem:
    """K psi(x) as X w with w_k in the sector of psi at the source k, and lo K in A."""
    low, high = torch.tensor([psi.slope for psi in edge.psi.units], dtype=torch.float64).T
    g, K = high - low, edge.K.double()
    read = torch.nonzero((K != 0).any(0) & (g > 0)).flatten()
    A, A_error = _balanced_blocks(K * low, scales, sizes)
    rows = [scale.lower(part) for scale, part in zip(scales, K[:, read].split(sizes), strict=True)]
    columns = [scale.raise_(torch.eye(len(scale.left), dtype=K.dtype)) for scale in scales]
    X, X_off = (torch.cat([pair[k] for pair in rows]) for k in (0, 1))
    Z, Z_off = (torch.block_diag(*(pair[k] for pair in columns))[read] for k in (0, 1))
    gain = g[read]
    Z_error = gain * (Z_off + 4 * UNIT * Z.abs()).norm(dim=1)
    return LureSystem(1.0, A, X, gain[:, None] * Z, A_error, X_off.norm(dim=0), Z_error)


def block_norms(A: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Upper bounds on the spectral norms of the blocks of A, (p, p); 0 for a zero block."""
    norms = torch.zeros(len(sizes), len(sizes), dtype=torch.float64)
    for i, j, block in nonzero_blocks(A, sizes):
        norms[i, j] = spectral_norm(block)
    return norms


def nonzero_blocks(A: Tensor, sizes: tuple[int, ...]) -> Iterator[tuple[int, int, Tensor]]:
    """i, j and A_ij, a view, of the blocks of A that have an entry."""
    starts, present = np.cumsum((0, *sizes)), A.numpy() != 0
    for axis in (0, 1):
        present = np.logical_or.reduceat(present, starts[:-1], axis)
    for i, j in np.argwhere(present).tolist():
        yield i, j, A[starts[i] : starts[i + 1], starts[j] : starts[j + 1]]
