"""Cliques and what follows from them, against networkx, by hand, and against all partitions."""

from collections import defaultdict

import networkx as nx
import numpy as np
import pytest

from branchnet.clustering.bounds.clique_bounds import (
    diameter_sums,
    may_have_clique,
    stage_radii,
    tasks_apart,
)
from tests.clustering.toys import all_trees, random_affinity, slow_stage_cost


def random_graph(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    n = int(generator.integers(2, 12))
    upper = np.triu(generator.random((n, n)) < generator.uniform(0.1, 0.9), 1)
    return np.asarray(upper | upper.T)


@pytest.mark.parametrize("seed", range(40))
def test_cliques_and_tasks_apart_against_networkx(seed: int) -> None:
    far = random_graph(seed)
    close = ~far & ~np.eye(len(far), dtype=bool)
    largest = max(map(len, nx.find_cliques(nx.from_numpy_array(close))))
    assert [may_have_clique(far, size, 10**6) for size in range(1, len(far) + 1)] == [
        size <= largest for size in range(1, len(far) + 1)
    ]
    most_apart = max(map(len, nx.find_cliques(nx.from_numpy_array(far))))
    assert 1 <= tasks_apart(far) <= most_apart
    assert tasks_apart(far) >= 2 or not far.any()


def test_a_search_that_is_cut_short_leaves_it_open() -> None:
    """Of two rings of five, four tasks at most are pairwise no neighbours."""
    far = nx.to_numpy_array(nx.disjoint_union(nx.cycle_graph(5), nx.cycle_graph(5))) > 0
    assert may_have_clique(far, 4, 100)
    assert not may_have_clique(far, 5, 100)
    assert may_have_clique(far, 5, 1)


def test_cover_of_a_ring_of_five() -> None:
    """Neighbours lose 0.1: two pairs and a single task at most, an excess of 2; more needs the others' loss of 1."""
    pairs = np.where(nx.to_numpy_array(nx.cycle_graph(5)) > 0, 0.1, 1.0)
    np.fill_diagonal(pairs, 0.0)
    radii = stage_radii(pairs)
    assert radii.smallest.tolist() == [0.0, 0.0, 0.1, 1.0, 1.0, 1.0]
    assert radii.own.tolist() == [[0.0, 0.0, 0.1, 1.0, 1.0, 1.0]] * 5
    assert radii.cover.tolist() == [0.0, 0.1, 0.1, 1.0, 1.0]


def test_sums_by_hand() -> None:
    """Sizes 2, 3, 4 cost at least 1, 2, 5; any excess 0: two pairs cost 2, as a cluster of three does."""
    sums = diameter_sums(np.array([0.0, 0.0, 1.0, 2.0, 5.0]), np.zeros(4))
    expected = [[0.0, np.inf, np.inf, np.inf], [0.0, 1.0, 2.0, 5.0], [0.0, 1.0, 2.0, 3.0]]
    assert sums[:3].tolist() == expected
    high = diameter_sums(np.array([0.0, 0.0, 1.0, 2.0, 5.0]), np.array([0.0, 1.5, 1.5, 4.0]))
    assert high[1].tolist() == [0.0, 1.5, 2.0, 5.0]
    assert high[2].tolist() == [0.0, 1.5, 2.0, 5.0]  # an excess of 3 from 1.5 + 4.0 in two clusters, or 5.0 in one


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("largest", [2, 3, 6])
def test_no_partition_is_below_the_bound_of_its_width(seed: int, largest: int) -> None:
    loss = 1 - random_affinity(6, 1, seed).values[0]
    best: dict[int, float] = defaultdict(lambda: np.inf)
    for tree in all_trees(6, 1):
        partition = [[int(task[1:]) for task in cluster] for cluster in tree.partitions[0]]
        if max(map(len, partition)) <= largest:
            cost = slow_stage_cost("diameter-sum", loss, loss, partition)
            best[len(partition)] = min(best[len(partition)], cost)
    bound = stage_radii(loss).of_widths(largest)
    assert bound[0] == np.inf
    for width in range(1, 7):
        assert bound[width] <= best[width] + 1e-12
    assert bound[6] == best[6] == 0.0
    assert bound[5] == pytest.approx(best[5])  # the closest pair
    if largest == 6:
        assert bound[1] == pytest.approx(best[1])  # the largest loss
