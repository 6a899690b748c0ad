"""How many trees a run measures, and which: as many as take the time of the affinities, the same ones each time."""

from __future__ import annotations

import numpy as np
import pytest

from branchnet import Affinity, Budget, Tree
from branchnet.clustering import tree_size
from branchnet.pipeline.tree_choice.proposals import Limits, propose_trees
from branchnet.pipeline.tree_choice.work import FITTED, MOST_TREES, Work

TASKS = tuple("abcde")
COSTS = [10.0, 20.0, 40.0]


def affinities() -> dict[str, tuple[Affinity, list[str]]]:
    random = np.random.default_rng(0)
    losses = 1 - random.uniform(0, 1, (3, 5, 5))
    losses[:, range(5), range(5)] = 1
    alike = (losses + losses.transpose(0, 2, 1)) / 2
    names = ("one", "two", "three")
    return {
        "RSA": (Affinity(TASKS, names, alike), ["mean-pair"]),
        "stitching losses": (Affinity(TASKS, names, losses, measure="stitch", directed=True), ["medoid", "stitch"]),
    }


def proposed(probe: int, budget: float = 260, held_out: int = 100):
    limits = Limits(COSTS, None, Budget(budget), [1.0, 2.0, 3.0])
    return propose_trees(
        affinities(), limits, 0, Work(tuple(COSTS), dict.fromkeys(TASKS, 1.0), probe, held_out)
    ), limits


@pytest.mark.parametrize("probe", [320, 500, 2_000, 100_000])
def test_proposals_are_different_trees_within_the_budget_and_more_of_them_in_more_time(probe: int) -> None:
    found, limits = proposed(probe)
    fewer, _ = proposed(probe // 2)
    assert found[: len(fewer)] == fewer  # more time adds trees and changes none
    assert found == proposed(probe)[0]
    assert 9 <= len(fewer) <= len(found) <= MOST_TREES
    assert len({one.tree for one in found}) == len(found)
    assert all(limits.size(one.tree) <= 260 for one in found)
    assert found[0].by == "RSA (mean-pair)" and found[0].found is not None
    work = Work(tuple(COSTS), dict.fromkeys(TASKS, 1.0), probe, 100)
    if len(found) > 9:
        assert sum(work.of(one.tree) for one in found) <= work.affinities
    if probe == 100_000:
        assert len(found) == MOST_TREES
        assert {"chance", "RSA (mean-pair, smaller)", "stitching losses (stitch, smaller)"} <= {one.by for one in found}


def test_where_few_trees_fit_there_are_few() -> None:
    found, _ = proposed(100_000, budget=limits_of_shared())
    assert {one.tree for one in found} == {Tree.shared(TASKS, 3)}


def limits_of_shared() -> float:
    return sum(COSTS) + 4 * 3.0  # every head but one has a stitch


def test_work_is_counted_as_by_hand() -> None:
    work = Work((2.0, 3.0), {"a": 1.0, "b": 1.0}, probe=200, held_out=50)
    tree = Tree(["a", "b"], [[["a", "b"]], [["a"], ["b"]]])
    assert work.separate == 2 * (2 + 3) + 2
    # RSA on 200 inputs, fits and own outputs on 96 + 64; after each location two rests, on 64 inputs 1.5 times over
    assert work.affinities == (200 + 96 + 64) * 12 + 96 * (2 * (3 + 1) + 2 * 1)
    # one node on foreign features; one stitch, whose three forms are judged on a quarter of the inputs
    assert work.of(tree) == (FITTED + 50) * 3 + 50 * 2 + 3 * FITTED / 4 * (3 + 1)
    assert work.of(Tree.separate(["a", "b"], 2)) == 50 * 2


@pytest.mark.parametrize("text", ["260 params, 90 params for a+b", "90 params for a+b"])
def test_every_tree_keeps_to_a_budget_for_some_of_the_tasks(text: str) -> None:
    affinity, objectives = affinities()["RSA"]
    stitches = [1.0, 2.0, 3.0]
    limits = Limits(COSTS, None, Budget.parse(text), stitches)
    for one in propose_trees({"RSA": (affinity, objectives)}, limits, 0, _AnyWork()):  # type: ignore[arg-type]
        needed = limits.needed(one.tree, one.found.resources if one.found else ())
        stages = [[c for c in stage if {"a", "b"} & set(c)] for stage in one.tree.partitions]
        alone = Tree(("a", "b"), [[[t for t in c if t in "ab"] for c in stage] for stage in stages])
        size = tree_size(alone, COSTS, stitch_sizes=stitches)
        assert size <= 90
        assert [need.size for need in needed if need.tasks] in ([], [pytest.approx(size)])


class _AnyWork:
    """Work that is never too much."""

    affinities = 1e9

    def of(self, tree: Tree) -> float:
        """Nothing."""
        return 0.0
