"""Assemblies: the fields of `Subnetwork`s plus sum_j L_ij x_j, or K_ij psi(x_j), as one `nn.Module`.

An `Assembly` has what a `Subnetwork` has, so it can be coupled into a bigger one, to any depth. Nothing
is cached: weights, metrics and couplings are read from the raw parameters once per solve.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import accumulate, chain, pairwise, product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ctrnn_assembly.activations import Activation, Elementwise
from ctrnn_assembly.contracting.interface import raw_tensors
from ctrnn_assembly.coupling import COUPLINGS, Coupling, Hierarchy, hierarchy_scales
from ctrnn_assembly.errors import ConfigError, ShapeError, check_known
from ctrnn_assembly.linalg import working_precision
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.subnetwork import Field, Subnetwork
from ctrnn_assembly.terms import Edge, Terms
from ctrnn_assembly.topology import Pair, named_pairs


class Assembly(Field):
    """Modules (or assemblies), of any sizes, kinds and forms, under a coupling, or none.

    Guarantee: that of the coupling (`ctrnn_assembly.coupling`), unless a part has none.

    >>> net = Assembly([Subnetwork(AdaDiagTanh(), 3), Subnetwork(Symmetric(margin=0.1), 4, tau=2.0)])
    >>> net.size, net.rate  # the slower of .01 and .1 / 2
    (7, 0.01)
    """

    parts: Sequence["Subnetwork | Assembly"]

    def __init__(self, modules: Sequence[Field], coupling: Coupling | None = None) -> None:
        super().__init__()
        sizes = sizes_of(modules)
        if coupling is not None and coupling.sizes != sizes:
            raise ShapeError(f"the coupling is for sizes {coupling.sizes}; got modules {sizes}.")
        self.parts = nn.ModuleList(modules)  # type: ignore[assignment]
        self.coupling = coupling
        leaves = self.leaves()
        if len(own := {*leaves}) < len(leaves):
            warnings.warn(
                f"{len(leaves) - len(own)} of {len(leaves)} subnetworks repeat another: their weights "
                "are tied and saved once. Untied they are [Subnetwork(...) for _ in range(p)].",
                stacklevel=3,
            )
        self.register_state_dict_post_hook(_saved_once)
        self.register_load_state_dict_pre_hook(_filled_in)

    def leaves(self) -> list[Subnetwork]:
        """All subnetworks, at any depth, in the order of the state."""
        return [leaf for part in self.parts for leaf in part.leaves()]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def tau(self) -> Tensor:
        """The time constants of all units, (n,)."""
        return torch.cat([part.tau for part in self.parts])

    def slowest(self) -> Tensor | None:
        share, rates = 1.0 if self.coupling is None else self.coupling.kept(), self._rates()
        return None if rates is None or share is None else share * rates.min()

    def metric(self) -> Metric:
        """M of the assembly: blkdiag(M_i), or blkdiag(kappa_i M_i) for a hierarchy."""
        metrics, rates = [part.metric() for part in self.parts], self._rates()
        whole = Metric.join(metrics)
        if not isinstance(self.coupling, Hierarchy) or rates is None:
            return whole
        gains = self.coupling.gains(metrics, [part.tau for part in self.parts])
        roots = hierarchy_scales(gains, rates.to(gains)).sqrt()
        return whole.scaled(torch.cat([*map(Tensor.expand, roots, self.coupling.sizes)]))

    def _terms(self) -> Terms:
        """Flattened over all depths."""
        inner, metrics = _read(self.parts)
        zeros = [t.bias.new_zeros(t.n, t.n) for t in inner]
        L, edges = None, []
        if any(t.L is not None for t in inner):
            L = torch.block_diag(*(z if t.L is None else t.L for t, z in zip(inner, zeros, strict=True)))
        for k, edge in ((k, edge) for k, t in enumerate(inner) for edge in t.edges):
            psi = Elementwise(((edge.psi.units[0], self.size),))
            edges.append(Edge(torch.block_diag(*zeros[:k], edge.K, *zeros[k + 1 :]), psi))
        if self.coupling is not None:
            own = self.coupling.matrix(metrics())
            L = L if own is None else own if L is None else L + own
            if self.coupling.psi is not None:
                edges.append(Edge(self.coupling.K(), self.coupling.psi))
        return Terms(
            blocks=tuple(block for t in inner for block in t.blocks),
            pre=Elementwise.join(t.pre for t in inner),
            post=Elementwise.join(t.post for t in inner),
            bias=torch.cat([t.bias for t in inner]),
            tau=torch.cat([t.tau for t in inner]),
            L=L,
            edges=tuple(edges),
            pairs=self._leaf_pairs(inner),
            diagonal=all(t.diagonal for t in inner),
        )

    def _rates(self) -> Tensor | None:
        rates = [rate for part in self.parts if (rate := part.slowest()) is not None]
        return torch.stack(rates) if len(rates) == len(self.parts) else None

    def _leaf_pairs(self, inner: list[Terms]) -> tuple[Pair, ...]:
        *starts, count = accumulate((len(t.blocks) for t in inner), initial=0)
        leaves = [range(a, b) for a, b in pairwise((*starts, count))]
        pairs = {(i + s, j + s) for t, s in zip(inner, starts, strict=True) for i, j in t.pairs}
        for a, b in [] if self.coupling is None else self.coupling.pairs:
            pairs |= set(product(leaves[a], leaves[b]))
        return tuple(sorted(pairs))


def _read(parts: Sequence[Any]) -> tuple[list[Terms], Callable[[], list[Metric]]]:
    """The tensors, and a call for the metrics, of each part; of like parts by stacks of raw tensors."""
    kinds = [part.kind() if isinstance(part, Subnetwork) else None for part in parts]
    apart = None in kinds or any(kind != kinds[0] for kind in kinds)
    if apart or torch.compiler.is_compiling():  # an export takes no views of one tensor
        return [part._terms() for part in parts], lambda: [part.metric() for part in parts]
    rule, form, raw = parts[0].constraint, parts[0].form, zip(*map(raw_tensors, parts), strict=True)
    wide = working_precision(*(stacked := [*map(torch.stack, raw)]))
    made = [*map(Subnetwork._terms, parts, rule.weight(*wide).to(stacked[0].dtype))]
    return made, lambda: [*map(Metric, zip(map(Factor, *vars(rule.metric(*wide, form=form)).values())))]


def sizes_of(modules: Any) -> tuple[int, ...]:
    """The units of each module; a ConfigError for what is no list of modules."""
    sized = isinstance(modules, Iterable) and isinstance(modules, Sized)  # not read once only
    given = [*modules] if sized else modules
    if not isinstance(given, list) or not given or not all(isinstance(part, Field) for part in given):
        kinds = [type(p).__name__ for p in given] if isinstance(given, list) else type(given).__name__
        fix = "Use couple([Subnetwork(SingularValueBounded('tanh'), 8) for _ in range(4)])."
        raise ConfigError(f"modules must be a list of Subnetworks or Assemblies; got {kinds}. {fix}")
    return tuple(part.size for part in modules)


def _tied(module: nn.Module) -> dict[str, str]:
    """Of each tensor that stands at several places: its later names, and its first one."""
    parameters = module.named_parameters(remove_duplicate=False)
    every = chain(parameters, module.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    return {name: first[id(t)] for name, t in every if first.setdefault(id(t), name) != name}


def _saved_once(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in _tied(module):
        state.pop(prefix + name, None)


def _filled_in(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, first in _tied(module).items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])


def couple(
    modules: Sequence[Subnetwork | Assembly],
    topology: str | Sequence[Pair] = "all",
    *,
    kind: Literal["feedback", "hierarchy", "free"] = "feedback",
    psi: str | Activation | None = None,
    **start: Any,
) -> Assembly:
    """An assembly of modules on a topology, by name (`TOPOLOGIES`) or as a list of pairs.

    Args:
        topology: a name, or pairs (i, j), such as `graph.edges` of a networkx graph.
        kind: "feedback", "hierarchy" (psi for nonlinear edges) or "free".
        start: init, init_scale and generator of the coupling's free entries, see `BlockMatrix`.

    >>> net = couple([Subnetwork(SingularValueBounded("tanh"), 8) for _ in range(4)], "ring")
    >>> net.size, net.rate
    (32, 0.01)
    """
    sizes = sizes_of(modules)
    check_known("kind", kind, COUPLINGS)
    if isinstance(topology, str):
        topology = named_pairs(topology, len(sizes), start.get("generator"))
    if not topology:
        return Assembly(modules)
    return Assembly(modules, COUPLINGS[kind](sizes, topology, psi=psi, **start))
