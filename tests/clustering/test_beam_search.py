"""The published beam search: it finds planted groups, and a tree at every budget that holds one."""

import numpy as np
import pytest

from branchnet.clustering import Budget, Tree, search
from branchnet.errors import BudgetError
from tests.clustering.toys import as_affinity, rsa_like_affinity


def test_planted_groups_are_found() -> None:
    group = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    values = np.where(group[:, None] == group, 0.9, 0.1)
    np.fill_diagonal(values, 1.0)
    affinity = as_affinity(np.stack([np.full((8, 8), 0.8) + 0.2 * np.eye(8), values]))
    result = search(affinity, [1.0, 2.0], Budget(7.0), method="beam")
    assert result.tree.partitions == (
        (tuple(affinity.tasks),),
        (("t0", "t3", "t6"), ("t1", "t4", "t7"), ("t2", "t5")),
    )
    assert result.cost == search(affinity, [1.0, 2.0], Budget(7.0), method="exact").cost


@pytest.mark.parametrize("share", [1.0, 1.05, 1.5, 12.0])
def test_every_budget_that_holds_a_tree_gives_one(share: float) -> None:
    affinity, costs = rsa_like_affinity(12, 3, 1), [0.2, 1.2, 0.1]
    result = search(affinity, costs, Budget(share * 1.5), method="beam")
    assert result.size <= share * 1.5 * (1 + 1e-12)
    assert result.size == pytest.approx(sum(c * w for c, w in zip(costs, result.tree.widths, strict=True)))
    assert result.lower_bound <= result.cost
    if share == 1.0:
        assert result.tree == Tree.shared(affinity.tasks, 3)
    if share == 12.0:
        assert result.tree == Tree.separate(affinity.tasks, 3)


def test_a_budget_that_holds_none_is_refused() -> None:
    with pytest.raises(BudgetError) as caught:
        search(rsa_like_affinity(12, 3, 1), [0.2, 1.2, 0.1], Budget(1.49), method="beam")
    assert caught.value.smallest == pytest.approx(1.5)
