"""Budgets, their text, and sizes of trees."""

import json
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import Budget, Tree, pareto_front, search, tree_size
from branchnet.errors import BudgetError
from branchnet.stages.costs import StageCost, StageCosts
from tests.clustering.toys import facts_rows

TRANSFORM = StageCosts((StageCost("a", 10, 0, uncounted=("_fft_r2c",)), StageCost("b", 30, 50)))
HEADS = {"x": StageCost("head", 1, 1, uncounted=("linalg_inv_ex",)), "y": StageCost("head", 1, 1)}
COSTS = StageCosts((StageCost("a", 10, 100), StageCost("b", 30, 50)))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("60% params", Budget(0.6, "params", relative=True)),
        ("12.5 % flops", Budget(0.125, "flops", relative=True)),
        ("25e6 params", Budget(25e6)),
        ("25M params", Budget(25e6)),
        ("4 GMACs", Budget(4e9, "flops")),
        ("8 GFLOPs", Budget(4e9, "flops")),
        ("4 ms", Budget(4.0, "latency")),
        ("250 us", Budget(0.25, "latency")),
    ],
)
def test_parse(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text", ["", "params", "-3 params", "4 bananas", "12", "0 params", "5 % bananas", "1e999 params"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(BudgetError):
        Budget.parse(text)


def test_written_budgets_read_back() -> None:
    for budget in (Budget(0.6, relative=True), Budget(25e6), Budget(4e9, "flops"), Budget(4.0, "latency")):
        assert Budget.parse(str(budget)) == budget


def test_sizes_by_hand() -> None:
    tree = Tree(list("xyz"), [[["x", "y"], ["z"]], [["x"], ["y"], ["z"]]])
    heads = {"x": 1.0, "y": 2.0, "z": 3.0}
    assert tree_size(tree, COSTS) == 2 * 10 + 3 * 30
    assert tree_size(tree, COSTS, head_costs=heads) == 110 + 6
    assert tree_size(tree, COSTS, unit="flops") == 2 * 100 + 3 * 50
    table = [[0, 1.0, 1.5, 1.8], [0, 2.0, 3.0, 3.5]]
    assert tree_size(tree, table, unit="latency") == 1.5 + 3.5


def test_published_multiply_adds_are_additive() -> None:
    """TreeMTL's ResNet-34: 0.12, 0.72, 0.94, 5.74 and 11.03 GMac for each branch of the five blocks."""
    costs = [0.12, 0.72, 0.94, 5.74, 11.03]
    for row in facts_rows("treemtl_nyuv2_resnet34_gmac.csv"):
        tree = Tree(list("snd"), [[["snd"[i] for i in c] for c in stage] for stage in json.loads(row["layout_json"])])
        assert tree_size(tree, costs, unit="flops") == pytest.approx(float(row["GMac_224x224"]), abs=0.03)


def test_refuses_costs_that_do_not_fit() -> None:
    tree = Tree.shared(list("xyz"), 2)
    with pytest.raises(BudgetError, match="no latency"):
        tree_size(tree, COSTS, unit="latency")
    with pytest.raises(BudgetError, match=r"\(stages, 4\)"):
        tree_size(tree, [[0, 1, 2], [0, 1, 2]])
    with pytest.raises(BudgetError, match="none of them negative"):
        tree_size(tree, [1.0, -1.0])
    with pytest.raises(BudgetError, match="these differ: w, z"):
        tree_size(tree, COSTS, head_costs={"x": 1.0, "y": 1.0, "w": 1.0})
    with pytest.raises(BudgetError, match="2 stages"):
        tree_size(tree, [1.0, 1.0, 1.0])


def test_a_search_in_flops_names_what_they_count_as_nothing() -> None:
    affinity = Affinity(["x", "y"], ["a", "b"], np.full((2, 2, 2), 0.5) + 0.5 * np.eye(2))
    with pytest.warns(UserWarning, match="_fft_r2c, linalg_inv_ex, which have no formula"):
        result = search(affinity, TRANSFORM, "90% flops", head_costs=HEADS)
    assert result.uncounted == ("_fft_r2c", "linalg_inv_ex")
    with pytest.warns(UserWarning, match="_fft_r2c, which have no formula"):
        front = pareto_front(affinity, TRANSFORM, unit="flops")
    assert all(point.uncounted == ("_fft_r2c",) for point in front)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert search(affinity, TRANSFORM, "90% params", head_costs=HEADS).uncounted == ()
        assert search(affinity, COSTS, "90% flops").uncounted == ()


@dataclass(frozen=True)
class Counted:
    """What a staged network says of its size."""

    costs: StageCosts
    head_cost: StageCost


def counted(heads: dict[str, int]) -> dict[str, Counted]:
    return {task: Counted(COSTS, StageCost("head", params, 2 * params)) for task, params in heads.items()}


@pytest.mark.parametrize("budget", ["70% params", "70% flops"])
def test_staged_networks_in_place_of_costs_count_their_heads(budget: str) -> None:
    staged = counted({"x": 5, "y": 7, "z": 100})
    values = np.stack([np.eye(3) * 0.5 + 0.5] * 2)
    affinity = Affinity(tuple(staged), ("a", "b"), values)
    heads = {task: network.head_cost for task, network in staged.items()}
    found = search(affinity, staged, budget)
    explicit = search(affinity, staged["x"].costs, budget, head_costs=heads)
    assert (found.tree, found.size, found.cost) == (explicit.tree, explicit.size, explicit.cost)
    unit = budget.split()[1]
    separate = tree_size(Tree.separate("xyz", 2), staged, unit=unit)
    assert found.size == tree_size(found.tree, staged, unit=unit) <= 0.7 * separate
    front = pareto_front(affinity, staged, unit=unit)
    assert [point.size for point in front] == [
        point.size for point in pareto_front(affinity, staged["x"].costs, unit=unit, head_costs=heads)
    ]


def test_other_mappings_are_no_costs() -> None:
    affinity = Affinity(("x", "y"), ("a",), np.ones((1, 2, 2)))
    with pytest.raises(BudgetError, match=r"costs\['x'\] is a int; expected staged networks by task"):
        search(affinity, {"x": 3, "y": 4}, "50% params")
    with pytest.raises(BudgetError, match="costs is empty"):
        search(affinity, {}, "50% params")


@pytest.mark.parametrize("given", [0.6, None, 25_000_000])
def test_a_budget_that_is_no_text_is_refused(given: object) -> None:
    with pytest.raises(BudgetError, match="expected text such as '60% params'"):
        Budget.parse(given)  # type: ignore[arg-type]
