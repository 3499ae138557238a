"""Topologies: which unordered pairs are coupled."""

import networkx as nx
import pytest
import torch

from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.topology import (
    TOPOLOGIES,
    check_pairs,
    named_pairs,
)

EXPECTED = {
    ("all", 1): [],
    ("all", 2): [(0, 1)],
    ("all", 3): [(0, 1), (0, 2), (1, 2)],
    ("chain", 1): [],
    ("chain", 2): [(0, 1)],
    ("chain", 4): [(0, 1), (1, 2), (2, 3)],
    ("ring", 1): [],
    ("ring", 2): [(0, 1)],  # one pair, not two that overwrite each other
    ("ring", 3): [(0, 1), (0, 2), (1, 2)],
    ("ring", 4): [(0, 1), (0, 3), (1, 2), (2, 3)],
    ("star", 1): [],
    ("star", 2): [(0, 1)],
    ("star", 3): [(0, 1), (0, 2)],
}


@pytest.mark.parametrize(("topology", "p"), EXPECTED)
def test_small_topologies(topology: str, p: int) -> None:
    assert named_pairs(topology, p) == EXPECTED[topology, p]


@pytest.mark.parametrize(
    ("name", "count"),
    [("all", 120), ("none", 0), ("ring", 16), ("chain", 15), ("star", 15), ("random:20", 20)],
)
def test_counts_of_sixteen_modules(name: str, count: int) -> None:
    pairs = named_pairs(name, 16)  # THEORY oracle 36: 120 pairs
    assert len(pairs) == len(set(pairs)) == count
    assert pairs == sorted(pairs)
    assert all(0 <= i < j < 16 for i, j in pairs)


def test_every_documented_name_works() -> None:
    for name in TOPOLOGIES:
        named_pairs(name.replace(":C", ":2"), 4)


def test_random_pairs_follow_their_generator_only() -> None:
    def draw(seed: int) -> list[tuple[int, int]]:
        return named_pairs("random:20", 16, torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_pairs_reach_every_pair() -> None:
    seen = {pair for _ in range(60) for pair in named_pairs("random:2", 5)}
    assert seen == set(named_pairs("all", 5))  # each is missed with probability (8/10)^60 = 2e-6
    assert named_pairs("random:10", 5) == named_pairs("all", 5)
    assert named_pairs("random:0", 5) == []


@pytest.mark.parametrize(("p", "count"), [(16, 121), (1, 1), (2, 2)])
def test_more_random_pairs_than_there_are_is_refused(p: int, count: int) -> None:
    with pytest.raises(ConfigError, match=f"{p} modules have {p * (p - 1) // 2} pairs"):
        named_pairs(f"random:{count}", p)


@pytest.mark.parametrize("name", ["rung", "randomly", ""])
def test_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="coupling must be one of") as caught:
        named_pairs(name, 4)
    assert all(known in str(caught.value) for known in TOPOLOGIES)


@pytest.mark.parametrize("name", ["random", "random:", "random:x", "random:-1", "random:1.5"])
def test_a_random_topology_without_a_count_is_told_what_the_count_must_be(name: str) -> None:
    with pytest.raises(ConfigError, match=f"must be a whole number >= 0; got '{name}'"):
        named_pairs(name, 4)


def test_pairs_are_put_in_order() -> None:
    assert check_pairs([(3, 1), (0, 2), (0, 1)], 4) == [(0, 1), (0, 2), (1, 3)]


@pytest.mark.parametrize("pairs", [[(1, 1)], [(0, 1), (1, 0)], [(0, 1), (0, 1)], [(0, 4)], [(-1, 2)]])
def test_impossible_pairs_are_refused(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match=r"two different modules of 0\.\.3, once"):
        check_pairs(pairs, 4)


def test_the_edges_of_a_graph_are_pairs() -> None:
    assert check_pairs(nx.cycle_graph(5).edges, 5) == named_pairs("ring", 5)
    with pytest.raises(ConfigError, match="two different modules"):
        check_pairs(nx.Graph([(0, 1), (1, 1)]).edges, 2)
