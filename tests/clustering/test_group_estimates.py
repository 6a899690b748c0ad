"""Losses of groups from measured groups: scikit-learn's ridge, leave-one-out by brute force, planted effects."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

import branchnet
from branchnet.clustering import (
    GroupEstimates,
    Tree,
    enumerate_trees,
    estimate_groups,
    group_by_estimates,
    random_groups,
    read_groups,
    task_sets,
)
from branchnet.clustering.grouping.group_estimates import _PENALTIES
from branchnet.errors import AffinityError, BudgetError
from tests.clustering.toys import facts_rows

Rows = list[dict[str, float]]


def noisy_groups(count: int, seed: int, tasks: Sequence[str] = "abcdefg") -> Rows:
    """Random losses of different random sets."""
    draws = np.random.default_rng(seed)
    sets = task_sets(list(tasks))
    chosen = draws.choice(len(sets), size=count, replace=False)
    return [{task: float(draws.normal(2, 1)) for task in sets[k]} for k in chosen]


def by_sklearn(rows: Rows, task: str, tasks: Sequence[str], penalty: float) -> Ridge:
    own = [row for row in rows if task in row]
    return Ridge(alpha=penalty).fit([indicators(row, task, tasks) for row in own], [row[task] for row in own])


def indicators(group: Sequence[str] | dict[str, float], task: str, tasks: Sequence[str]) -> list[float]:
    return [float(other in group and other != task) for other in tasks]


@given(st.integers(0, 10_000), st.floats(0.01, 100))
@settings(max_examples=10, deadline=None)
def test_estimates_are_those_of_ridge_regression(seed: int, penalty: float) -> None:
    rows = noisy_groups(20, seed)
    found = estimate_groups(rows, penalty=penalty)
    measured = {frozenset(row) for row in rows}
    for task in found.tasks:
        others = [one for one in task_sets(found.tasks) if task in one and frozenset(one) not in measured]
        model = by_sklearn(rows, task, found.tasks, penalty)
        expected = model.predict([indicators(group, task, found.tasks) for group in others])
        assert [losses[task] for losses in found.losses_of(others)] == pytest.approx(expected, abs=1e-8)


def left_out_by_hand(rows: Rows, tasks: Sequence[str], penalty: float) -> float:
    """Mean square of the errors in variances of the tasks, each set predicted by a fit without it."""
    errors = []
    for task in tasks:
        own = [row for row in rows if task in row]
        spread = np.std([row[task] for row in own])
        if len(own) < 2 or spread == 0:
            continue
        for left_out in own:
            model = by_sklearn([row for row in own if row is not left_out], task, tasks, penalty)
            predicted = model.predict([indicators(left_out, task, tasks)])[0]
            errors.append((left_out[task] - predicted) / spread)
    return float(np.mean(np.square(errors)))


@pytest.mark.parametrize("seed", range(2))
def test_leave_one_out_by_brute_force(seed: int) -> None:
    rows = noisy_groups(12, seed, "abcd")
    for penalty in (0.05, 10.0):
        found = estimate_groups(rows, penalty=penalty)
        assert found.explained == pytest.approx(1 - left_out_by_hand(rows, found.tasks, penalty), abs=1e-8)
    chosen = estimate_groups(rows)
    errors = [left_out_by_hand(rows, chosen.tasks, float(one)) for one in _PENALTIES[::8]]
    assert 1 - chosen.explained <= min(errors) + 1e-9


def additive(group: Sequence[str], alone: dict[str, float], effects: dict[tuple[str, str], float]) -> dict[str, float]:
    return {task: alone[task] - math.fsum(effects[i, task] for i in group if i != task) for task in group}


def planted(tasks: Sequence[str], seed: int) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    draws = np.random.default_rng(seed)
    return (
        {task: float(draws.uniform(1, 2)) for task in tasks},
        {(i, j): float(draws.normal(0, 0.2)) for i in tasks for j in tasks if i != j},
    )


def test_planted_effects_are_found_in_random_groups_and_singles() -> None:
    tasks = [f"t{k}" for k in range(12)]
    alone, effects = planted(tasks, 0)
    groups = [(task,) for task in tasks] + random_groups(tasks, 60, 5)
    found = estimate_groups([additive(group, alone, effects) for group in groups])
    assert found.explained > 0.95
    for (i, j), effect in effects.items():
        assert found.effects[tasks.index(i), tasks.index(j)] == pytest.approx(effect, abs=0.05)
    assert found.alone == pytest.approx([alone[task] for task in tasks], abs=0.05)


def test_noise_is_not_explained() -> None:
    explained = [estimate_groups(noisy_groups(40, seed)).explained for seed in range(5)]
    assert np.mean(explained) < 0.1


@pytest.mark.parametrize("setting", ["1", "3"])
def test_published_sets_of_three_and_more_from_smaller_ones_and_random_ones(setting: str) -> None:
    """Standley et al.'s networks: leave-one-out says no more than what the sets left out really are."""
    table: dict[str, dict[str, float]] = {}
    for row in facts_rows("standley_val.csv"):
        if row["setting"] == setting and not row["subset"].endswith("_half"):
            table.setdefault(row["subset"], {})[row["task"]] = float(row["loss"])
    found = estimate_groups(list(table.values()))
    assert found.explained == pytest.approx(1 - left_out_by_hand(list(table.values()), found.tasks, found.penalty))
    assert found.known(["sd", "sdnkt"]) == [True, True]
    assert found.losses_of(["sdn"]) == [table["sdn"]]  # measured ones stay


def test_repeated_groups_count_as_their_mean() -> None:
    rows = noisy_groups(12, 3)
    twice = [{task: loss + shift for task, loss in row.items()} for row in rows for shift in (-0.1, 0.1)]
    one, other = estimate_groups(rows), estimate_groups(twice)
    assert one.effects == pytest.approx(other.effects) and one.penalty == other.penalty
    assert [pytest.approx(row) for row in one.losses_of(rows)] == other.losses_of(rows)


def best_by_hand(found: GroupEstimates, tasks: Sequence[str], most: int) -> float:
    sets = task_sets(tasks)
    losses = found.losses_of(sets)
    return min(
        math.fsum(min(losses[m][task] for m in chosen if task in sets[m]) for task in tasks)
        for number in range(1, most + 1)
        for chosen in combinations(range(len(sets)), number)
        if {task for m in chosen for task in sets[m]} == set(tasks)
    )


@pytest.mark.parametrize("most", [1, 2, 3])
def test_groups_of_least_loss_by_brute_force(most: int) -> None:
    for seed in range(4):
        found = estimate_groups(noisy_groups(10, seed, "abcd"))
        grouping = group_by_estimates(found, most)
        total = math.fsum(found.losses_of([grouping.groups[g]])[0][task] for task, g in grouping.assignment.items())
        assert total == pytest.approx(best_by_hand(found, found.tasks, most))
        assert grouping.score == pytest.approx((found.alone.sum() - total) / 4)


def test_the_objective_is_the_sum_of_the_estimates() -> None:
    tasks = "abcde"
    alone, effects = planted(tasks, 1)
    found = estimate_groups([additive(one, alone, effects) for one in ["ab", "abc", "cde", "ace", "bde"]], penalty=0.5)
    pure = GroupEstimates(found.tasks, found.alone, found.effects, 0.5, 0.0, {})
    for tree in enumerate_trees(tasks, 1):
        total = math.fsum(loss for one in pure.losses_of(tree.partitions[0]) for loss in one.values())
        assert found.stage_losses().tree_cost(tree) == pytest.approx(total)


def test_many_tasks_are_divided_as_they_were_planted() -> None:
    """Three families of five tasks, which help each other and harm the others."""
    tasks = [f"{family}{k}" for family in "abc" for k in range(5)]
    effects = {(i, j): 0.1 if i[0] == j[0] else -0.1 for i in tasks for j in tasks}
    groups = [(task,) for task in tasks] + random_groups(tasks, 30, 5, seed=1)
    found = estimate_groups([additive(group, dict.fromkeys(tasks, 1.0), effects) for group in groups])
    grouping = group_by_estimates(found, 3)
    assert set(grouping.groups) == {frozenset(task for task in tasks if task[0] == family) for family in "abc"}
    assert grouping.tree(2) == Tree.grouped([[t for t in tasks if t[0] == family] for family in "abc"], 2)


def test_refine_starts_from_the_estimates() -> None:
    """Against a start that takes a task to lose in every group what it loses alone."""
    regrets: dict[str, list[float]] = {"estimates": [], "alone": []}
    for seed in range(3):
        tasks = "abcde"
        alone, effects = planted(tasks, seed)
        truth = [additive(one, alone, effects) for one in task_sets(tasks)]
        sets, costs = [tuple(one) for one in truth], [1] * len(truth)
        found = estimate_groups(
            [additive(one, alone, effects) for one in [*((task,) for task in tasks), *random_groups(tasks, 6, 3)]]
        )
        known = found.known(sets)
        starts = {
            "estimates": found.losses_of(sets),
            "alone": [row if seen else {t: alone[t] for t in row} for row, seen in zip(truth, known, strict=True)],
        }
        best = branchnet.select_networks(truth, costs, 2).total_loss
        for name, losses in starts.items():
            refined = branchnet.refine(losses, costs, 2, truth.__getitem__, known=known, measurements=3)
            assert len(refined.measured) <= 3
            regrets[name].append(refined.selection.total_loss - best)
    assert np.mean(regrets["estimates"]) < np.mean(regrets["alone"])


@given(st.integers(2, 15), st.integers(1, 12), st.integers(0, 99), st.data())
@settings(max_examples=60, deadline=None)
def test_random_groups_hold_every_task_equally_often(count: int, groups: int, seed: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, count))
    if math.comb(count, size) < groups:
        return
    found = random_groups(range(count), groups, size, seed=seed)
    assert len(set(found)) == len(found) == groups and {len(one) for one in found} == {size}
    assert found == random_groups(range(count), groups, size, seed=seed)
    if 4 * groups > math.comb(count, size):
        return  # near all groups there may be no even choice
    times = [sum(task in one for one in found) for task in range(count)]
    assert max(times) - min(times) <= 1


def test_tables_of_gains_and_of_several_seeds() -> None:
    rows = [
        {"group": "g", "seed": seed, "task": task, "gain": gain}
        for seed, gains in enumerate([{"a": 1.0, "b": -2.0}, {"a": 3.0, "b": 0.5}])
        for task, gain in gains.items()
    ]
    assert read_groups(rows) == [{"a": -1.0, "b": 2.0}, {"a": -3.0, "b": -0.5}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"group": 1, "task": "a"}], "expected group, task, and loss or gain"),
        ([{"group": 1, "task": "a", "loss": 1}, {"group": 1, "task": "a", "loss": 2}], "row 2 of the table repeats"),
        ([{"group": 1, "task": "a", "loss": "much"}], "the loss in row 1 of the table is 'much'"),
        ([{"group": 1, "task": "a", "gain": "nan"}], "the gain in row 1 of the table is 'nan'"),
    ],
)
def test_damaged_tables_are_refused(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(AffinityError, match=message):
        read_groups(rows)


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(AffinityError, match="there is no measured group"):
        estimate_groups([])
    with pytest.raises(AffinityError, match=r"the loss of 'b' in group 1 \(a, b\) is nan"):
        estimate_groups([{"a": 1.0}, {"a": 1.0, "b": math.nan}])
    with pytest.raises(AffinityError, match="penalty is 0"):
        estimate_groups(noisy_groups(5, 0), penalty=0)
    with pytest.raises(AffinityError, match="no task is in three measured groups"):
        estimate_groups([{"a": 1.0}, {"a": 1.0, "b": 1.0}])
    with pytest.raises(AffinityError, match="unknown task 'z'"):
        estimate_groups(noisy_groups(9, 0)).losses_of(["az"])
    with pytest.raises(BudgetError, match="max_groups is 0"):
        group_by_estimates(estimate_groups(noisy_groups(9, 0)), 0)
    with pytest.raises(AffinityError, match="size is 4"):
        random_groups("abc", 2, 4)
    with pytest.raises(AffinityError, match="count is 4; expected at most 3"):
        random_groups("abc", 4, 2)
