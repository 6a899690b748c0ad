"""Random trees beside a choice: with a budget all of them fit, without one they are drawn from all trees."""

from __future__ import annotations

import numpy as np

from branchnet import Affinity, Budget
from branchnet.pipeline.search_inputs import random_points
from branchnet.stages.costs import StageCost, StageCosts

AFFINITY = Affinity(["a", "b", "c"], ["first", "second"], np.ones((2, 3, 3)))
COSTS = StageCosts((StageCost("first", 10, 100), StageCost("second", 30, 50)))


def _sizes(budget: Budget | None) -> list[float]:
    points = random_points(AFFINITY, COSTS, None, unit="params", objective="mean-pair", budget=budget)
    return [size for size, _ in points]


def test_random_points_with_and_without_a_budget() -> None:
    assert max(_sizes(Budget.parse("70 params"))) <= 70
    assert max(_sizes(None)) > 70
