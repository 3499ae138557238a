"""Which pairs of modules are coupled: a sorted list of pairs (i, j) with i < j."""

from collections.abc import Callable, Iterable
from itertools import combinations, pairwise

import torch

from ctrnn_assembly.errors import ConfigError, unknown

Pair = tuple[int, int]

NAMED: dict[str, tuple[str, Callable[[int], list[Pair]]]] = {
    "none": ("no coupling", lambda p: []),
    "all": ("every pair of modules, p (p - 1) / 2 of them", lambda p: [*combinations(range(p), 2)]),
    "chain": ("each module with the next", lambda p: [*pairwise(range(p))]),
    "ring": ("a chain that is closed", lambda p: sorted([*pairwise(range(p)), *[(0, p - 1)] * (p > 2)])),
    "star": ("module 0, a global workspace, with all others", lambda p: [(0, i) for i in range(1, p)]),
}
TOPOLOGIES = {name: about for name, (about, _) in NAMED.items()}
TOPOLOGIES |= {"random:C": "C pairs drawn without replacement, e.g. random:20"}


def check_pairs(pairs: Iterable[Iterable[int]], p: int) -> list[Pair]:
    """Sort a list of pairs, each put as i < j; refuse self-pairs, repeats and unknown modules."""
    result: set[Pair] = set()
    for i, j in pairs:
        pair = (min(i, j), max(i, j))
        if i == j or pair[0] < 0 or pair[1] >= p or pair in result:
            must = f"a pair must name two different modules of 0..{p - 1}, once"
            raise ConfigError(f"{must}; got ({i}, {j}). An unordered pair carries both directions.")
        result.add(pair)
    return sorted(result)


def named_pairs(name: str, p: int, generator: torch.Generator | None = None) -> list[Pair]:
    """The pairs of a topology of p modules by name (`TOPOLOGIES`); ConfigError for an unknown one."""
    kind, _, digits = name.partition(":")
    if kind != "random":
        if name not in NAMED:
            raise unknown("coupling", name, TOPOLOGIES)
        return NAMED[name][1](p)
    if not digits.isdecimal():
        raise ConfigError(f"the C of random:C must be a whole number >= 0; got {name!r}. Use random:20.")
    every, count = NAMED["all"][1](p), int(digits)
    if count > len(every):
        fix = f"Ask for at most random:{len(every)}, or use all."
        raise ConfigError(f"{p} modules have {len(every)} pairs; got random:{count}. {fix}")
    if count == 0:  # draws nothing, as "none"
        return []
    chosen = torch.randperm(len(every), generator=generator, device="cpu")[:count].tolist()
    return sorted(every[k] for k in chosen)


def recognise(pairs: Iterable[Pair], p: int) -> str:
    """The name of a topology of p modules, or the number of its pairs."""
    found = sorted(pairs)
    return next((name for name, (_, make) in NAMED.items() if make(p) == found), f"{len(found)} pairs")
