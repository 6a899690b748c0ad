"""Budgets for subsets of the tasks, against every tree counted node by node."""

import numpy as np
import pytest

from branchnet.clustering import Budget, Tree, search
from branchnet.errors import BranchnetError, BudgetError
from tests.clustering.stitch_toys import random_losses, stitch_affinity_of
from tests.clustering.toys import all_trees, brute_costs, names, random_affinity, rsa_like_affinity

COSTS = [2.0, 1.0, 4.5]
HEADS = {"t0": 0.5, "t1": 0.25, "t2": 1.0, "t3": 0.75}


def size_for(tree: Tree, tasks: tuple[str, ...], costs: list[float], heads: dict[str, float]) -> float:
    """The cost of every node that serves one of the tasks, and their heads."""
    nodes = sum(cost for cost, stage in zip(costs, tree.partitions, strict=True) for c in stage if set(c) & set(tasks))
    return nodes + sum(heads[task] for task in tasks)


@pytest.mark.parametrize("name", ["mean-pair", "mean-max", "medoid", "gain"])
@pytest.mark.parametrize("seed", range(3))
def test_searches_against_all_trees(name: str, seed: int) -> None:
    affinity = (rsa_like_affinity if seed % 2 else random_affinity)(4, 3, seed)
    generator = np.random.default_rng(seed)
    cost, trees, every = brute_costs(affinity, name), all_trees(4, 3), tuple(names(4))
    flops = generator.uniform(0.5, 5, 3).tolist()
    for subset, other in ((("t0", "t1"), ("t2", "t3")), (("t3", "t0", "t2"), ("t1",)), (("t1",), ("t1", "t2"))):
        shares = generator.uniform(0.3, 0.7, 2)
        separate = size_for(Tree.separate(names(4), 3), every, COSTS, HEADS)
        least = sum(flops)
        text = f"{100 * shares[0]:.12f}% params for {'+'.join(subset)}, "
        text += f"{least * (1 + shares[1]):.12f} macs for {'+'.join(other)}, 85% params"
        first, second = (float(part.split()[0].rstrip("%")) for part in text.split(", ")[:2])
        fitting = np.array(
            [
                size_for(t, subset, COSTS, HEADS) <= first / 100 * separate * (1 + 1e-12)
                and size_for(t, other, flops, dict.fromkeys(every, 0.0)) <= second * (1 + 1e-12)
                and size_for(t, every, COSTS, HEADS) <= 0.85 * separate * (1 + 1e-12)
                for t in trees
            ]
        )
        costs = {"params": COSTS, "flops": flops}
        heads = {"params": HEADS, "flops": dict.fromkeys(every, 0.0)}
        if not fitting.any():
            with pytest.raises(BudgetError):
                search(affinity, costs, text, head_costs=heads, objective=name)
            continue
        found = search(affinity, costs, text, head_costs=heads, objective=name)
        assert found.proven
        assert found.cost == pytest.approx(cost[fitting].min(), abs=1e-10)
        assert found.lower_bound == pytest.approx(found.cost, abs=1e-10)
        sizes = {one.tasks: one.size for one in found.also if one.unit == "params"}
        assert sizes[subset] == pytest.approx(size_for(found.tree, subset, COSTS, HEADS))


def test_latencies_by_number_of_copies() -> None:
    affinity = random_affinity(4, 2, 1)
    table = [[0, 1.0, 1.5, 4.0, 4.2], [0, 2.0, 1.0, 3.0, 5.0]]
    trees, cost = all_trees(4, 2), brute_costs(affinity, "mean-pair")
    touched = [[sum(bool({"t1", "t2"} & set(c)) for c in stage) for stage in tree.partitions] for tree in trees]
    sizes = np.array([sum(table[d][k] for d, k in enumerate(row)) for row in touched])
    for limit in (2.0, 2.5, 3.0):
        found = search(affinity, table, f"{limit} ms for t1+t2", objective="mean-pair")
        assert found.cost == pytest.approx(cost[sizes <= limit].min(), abs=1e-12)
        assert found.limit == np.inf
        assert found.budget == Budget(limit, "latency", tasks=("t1", "t2"))


def test_what_binds_is_said() -> None:
    affinity = random_affinity(4, 2, 0)
    with pytest.raises(
        BudgetError, match=r"budget of 1.5 params for t0\+t1 .*smallest feasible one is 2 params"
    ) as error:
        search(affinity, [1.0, 1.0], "1.5 params for t0+t1, 90% params")
    assert error.value.smallest == 2.0
    with pytest.raises(BudgetError, match="unknown task 't9'"):
        search(affinity, [1.0, 1.0], "5 params for t9")
    falling = {"params": [1.0, 1.0], "latency": [[0, 9.0, 1.0, 1.0, 1.0], [0, 9.0, 1.0, 1.0, 1.0]]}
    with pytest.raises(BudgetError, match="together, though some tree fits each"):
        search(affinity, falling, "2 params, 5 ms for t0+t1")


def test_others_refuse_them() -> None:
    with pytest.raises(BranchnetError, match="which takes up to 10"):
        search(random_affinity(11, 2, 0), [1.0, 1.0], "5 params for t0", method="exact")
    small = random_affinity(3, 2, 0)
    with pytest.raises(BranchnetError, match="'beam' does not know"):
        search(small, [1.0, 1.0], "5 params for t0", method="beam")
    stitched = stitch_affinity_of(random_losses(3, 2, 0))
    with pytest.raises(BranchnetError, match="not known to objective='stitch'"):
        search(stitched, [1.0, 1.0], "5 params for t0", objective="stitch")
    with pytest.raises(BudgetError, match="computes one task"):
        search(small, [1.0, 1.0], "5 params for t0", nested=False)


def test_texts() -> None:
    budget = Budget.parse("60% params, 20% flops for depth+edges, 8 ms for depth")
    assert [one.tasks for one in budget.each] == [(), ("depth", "edges"), ("depth",)]
    assert Budget.parse(str(budget)) == budget
    assert str(budget) == "60% params, 20% flops for depth+edges, 8 ms for depth"
    for text in ("8 ms for ", "8 ms for a++b", "for depth", "8 ms for a, 9 ms for a"):
        with pytest.raises(BudgetError):
            Budget.parse(text)


def test_a_search_that_runs_out_of_time_says_so() -> None:
    affinity = random_affinity(7, 5, 0)
    text = "60% params, 20% params for t0+t1"
    found = search(affinity, [1.0, 2.0, 3.0, 4.0, 5.0], text, time_limit=0.001)
    assert "time limit" in found.why
    assert found.lower_bound <= search(affinity, [1.0, 2.0, 3.0, 4.0, 5.0], text).cost <= found.cost
    assert all(one.size <= one.limit for one in found.resources)
