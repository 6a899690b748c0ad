"""Network selection, grouping by affinity and the measuring loop: published optima, brute force, properties."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchnet.clustering import (
    all_selections,
    early_selection,
    group_by_affinity,
    higher_order_estimates,
    refine,
    select_networks,
    selection_front,
    task_sets,
)
from branchnet.errors import AffinityError, BudgetError, TreeError
from tests.clustering.toys import facts_rows

Table = dict[tuple[str, float], dict[str, float]]


def _table(name: str, setting: str) -> Table:
    table: Table = {}
    for row in facts_rows(f"standley_{name}.csv"):
        if row["setting"] == setting:
            table.setdefault((row["subset"], float(row["cost"])), {})[row["task"]] = float(row["loss"])
    return table


def _higher_order(measured: Table) -> list[dict[str, float]]:
    full = [row for (_, cost), row in measured.items() if cost == 1.0]
    estimates = higher_order_estimates(full, measured.values())
    return [row if key[1] == 0.5 else e for (key, row), e in zip(measured.items(), estimates, strict=True)]


@pytest.mark.parametrize("row", facts_rows("standley_oracle.csv"), ids=lambda r: "-".join(list(r.values())[:3]))
def test_published_selections(row: dict[str, str]) -> None:
    val, test = _table("val", row["setting"]), _table("test", row["setting"])
    tables = {
        "optimal": list(val.values()),
        "esa": list(_table("esa", row["setting"]).values()),
        "optimal_on_test": list(test.values()),
        "hoa": _higher_order(val),
    }
    keys = list(val)
    found = all_selections(tables[row["strategy"]], [cost for _, cost in keys], float(row["budget"]))
    assert found[0].total_loss == pytest.approx(float(row["selection_objective"]), abs=1e-9)
    assert found[0].total_cost == pytest.approx(float(row["cost_used"]))
    groups = {" ".join(sorted(keys[m][0] for m in s.networks)) for s in found}
    assert groups == {" ".join(sorted(g.split())) for g in row["all_min_cost_optima"].split(" | ")}
    honest = [s.total_on(list(test.values())) for s in found]
    assert any(total == pytest.approx(float(row["test_total_val_assigned"]), abs=1e-9) for total in honest)


@st.composite
def _instances(draw: st.DrawFn) -> tuple[list[dict[str, float]], list[float], float, bool]:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tasks = "abcd"[: draw(st.integers(1, 4))]
    sets = task_sets(tasks)
    kept = [s for s in sets if len(s) in (1, len(tasks)) or generator.random() < 0.6]
    coarse = draw(st.booleans())
    losses = [{t: float(generator.integers(1, 5) if coarse else generator.uniform(-1, 1)) for t in s} for s in kept]
    costs = generator.choice([0.5, 1.0, 1.5], len(kept)).tolist()
    return losses, costs, draw(st.sampled_from([0.5, 1.0, 2.0, 3.0, 9.0])), draw(st.booleans())


@settings(max_examples=60, deadline=None)
@given(_instances())
def test_selection_against_brute_force(instance: tuple[list[dict[str, float]], list[float], float, bool]) -> None:
    losses, costs, budget, partition = instance
    tasks = {task for row in losses for task in row}
    best: tuple[float, float] | None = None
    for size in range(1, len(tasks) + 1):
        for chosen in combinations(range(len(losses)), size):
            cost = sum(costs[m] for m in chosen)
            held = sorted(task for m in chosen for task in losses[m])
            if cost > budget or set(held) != tasks or (partition and len(held) != len(tasks)):
                continue
            total = sum(min(losses[m][t] for m in chosen if t in losses[m]) for t in tasks)
            if best is None or (round(total, 9), cost) < (round(best[0], 9), best[1]):
                best = (total, cost)
    if best is None:
        with pytest.raises(BudgetError):
            select_networks(losses, costs, budget, partition=partition)
        return
    found = select_networks(losses, costs, budget, partition=partition)
    assert found.total_loss == pytest.approx(best[0], abs=1e-8)
    assert found.total_cost == pytest.approx(best[1])


@pytest.mark.parametrize("setting", ["1", "3"])
def test_early_losses_only_choose(setting: str) -> None:
    """A published ESA row's final loss is what its early choice has on the final losses."""
    val, early = _table("val", setting), _table("esa", setting)
    costs = [cost for _, cost in val]
    for row in facts_rows("standley_oracle.csv"):
        if (row["setting"], row["strategy"], row["n_min_cost_optima"]) != (setting, "esa", "1"):
            continue
        found = early_selection(list(early.values()), list(val.values()), costs, float(row["budget"]))
        test = found.total_on(list(_table("test", setting).values()))
        assert test == pytest.approx(float(row["test_total_val_assigned"]), abs=1e-9)
        assert found.total_loss == pytest.approx(found.total_on(list(val.values())))
    with pytest.raises(AffinityError, match="same networks and tasks"):
        early_selection([{"a": 1.0}], [{"b": 1.0}], [1.0], 1.0)


def test_front_improves_with_cost() -> None:
    val = _table("val", "1")
    front = selection_front(list(val.values()), [cost for _, cost in val])
    oracle = {
        float(r["cost_used"]): float(r["selection_objective"])
        for r in facts_rows("standley_oracle.csv")
        if (r["setting"], r["strategy"]) == ("1", "optimal")
    }
    assert all(a.total_cost < b.total_cost and a.total_loss > b.total_loss for a, b in pairwise(front))
    found = {s.total_cost: s.total_loss for s in front}
    for cost, loss in oracle.items():
        assert found[cost] == pytest.approx(loss, abs=1e-9)


def test_weights_and_errors() -> None:
    losses = [{"a": 1.0}, {"b": 1.0}, {"a": 3.0, "b": 0.9}]
    assert select_networks(losses, [1, 1, 1], 2).networks == (0, 2)
    assert select_networks(losses, [1, 1, 1], 2, weights={"a": 0.01}).total_loss == pytest.approx(0.91)
    with pytest.raises(BudgetError, match="expected at least 1"):
        select_networks(losses, [1, 1, 1], 0.5)
    with pytest.raises(AffinityError, match="loss of 'b' in network 1"):
        select_networks([{"a": 1.0}, {"b": float("nan")}], [1, 1], 2)
    with pytest.raises(AffinityError, match="expected 3 finite numbers, none negative"):
        select_networks(losses, [1, 1], 2)
    with pytest.raises(AffinityError, match="a, b trained together"):
        higher_order_estimates([{"a": 1.0}, {"b": 1.0}], [["a", "b"]])


def test_selection_converts_to_a_tree() -> None:
    tree = select_networks([{"a": 1.0, "b": 1.0}, {"c": 1.0}], [1, 1], 2).tree(3)
    assert tree.partitions == ((("a", "b"), ("c",)),) * 3


LOSSES = [{"a": 1.0}, {"b": 1.0}, {"a": 0.2, "b": 0.9, "c": 0.3}, {"b": 0.1, "c": 0.9, "a": 0.8}, {"c": 1.0}]


def test_trees_of_a_selection_are_the_networks_that_were_measured() -> None:
    chosen = select_networks(LOSSES, [1] * 5, 2)
    assert chosen.groups == tuple(frozenset(LOSSES[m]) for m in chosen.networks)
    assert [set(tree.tasks) for tree in chosen.trees(3)] == [set(LOSSES[m]) for m in chosen.networks]
    assert all(tree.widths == (1, 1, 1) for tree in chosen.trees(3))
    assert chosen.served == (("a", "c"), ("b",))
    total = sum(LOSSES[m][task] for m, own in zip(chosen.networks, chosen.served, strict=True) for task in own)
    assert total == pytest.approx(chosen.total_loss)
    with pytest.raises(TreeError, match=r"lose b, which the network of a, b, c is trained with .* serves only a, c"):
        chosen.tree(3)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 9999))
def test_every_task_of_a_group_is_trained_and_served_once(n: int, most: int, seed: int) -> None:
    tasks = [f"t{i}" for i in range(n)]
    found = group_by_affinity(np.random.default_rng(seed).normal(size=(n, n)), most, tasks=tasks)
    assert [set(tree.tasks) for tree in found.trees(2)] == list(map(set, found.groups))
    assert sorted(task for own in found.served for task in own) == tasks
    if all(set(own) == one for own, one in zip(found.served, found.groups, strict=True)):
        assert set(map(frozenset, found.tree(2).partitions[0])) == set(found.groups)
    else:
        with pytest.raises(TreeError, match="expected trees"):
            found.tree(2)


def _effects(measure: str) -> tuple[list[str], np.ndarray]:
    if measure == "hoa":
        entries = {(r["trained_with"], r["task"]): -float(r["value"]) for r in facts_rows("tag_hoa_pairs.csv")}
    else:
        entries = {
            (r["from_task"], r["onto_task"]): float(r["value"])
            for r in facts_rows("tag_affinity.csv")
            if r["measure"].lower() == measure
        }
    tasks = list(dict.fromkeys(task for task, _ in entries))
    return tasks, np.array([[entries[i, j] for j in tasks] for i in tasks])


@pytest.mark.parametrize("row", facts_rows("tag_oracle.csv"), ids=lambda r: f"{r['measure']}-{r['splits']}")
def test_published_groupings(row: dict[str, str]) -> None:
    tasks, matrix = _effects(row["measure"])
    found = group_by_affinity(matrix, int(row["splits"]), tasks=tasks)
    sign = -1 if row["measure"] == "hoa" else 1
    assert found.score == pytest.approx(sign * float(row["optimum"]), abs=1e-10)
    assert set(found.groups) == {frozenset(g.split("|")) for g in row["groups_minimal"].split(" ; ")}


def test_groups_of_one_need_a_baseline() -> None:
    matrix = np.array([[0, -1.0, -1.0], [-1.0, 0, 2.0], [-1.0, 2.0, 0]])
    assert frozenset("a") not in group_by_affinity(matrix, 3, tasks=list("abc")).groups
    found = group_by_affinity(matrix, 3, tasks=list("abc"), singles=[0.0, 0.0, 0.0])
    assert set(found.groups) == {frozenset("a"), frozenset("bc")}
    assert found.score == pytest.approx(4 / 3)
    assert found.tree(2).partitions[0] == (("a",), ("b", "c"))


def test_grouping_refuses_what_it_cannot_use() -> None:
    with pytest.raises(AffinityError, match="shape"):
        group_by_affinity(np.zeros((2, 3)), 1, tasks=["a", "b"])
    with pytest.raises(AffinityError, match="effect of 'a' on 'b' is nan"):
        group_by_affinity(np.array([[0, np.nan], [0, 0]]), 1, tasks=["a", "b"])
    with pytest.raises(BudgetError, match="at least 1"):
        group_by_affinity(np.zeros((2, 2)), 0, tasks=["a", "b"])


@pytest.mark.parametrize("setting", ["1", "3"])
def test_measuring_closes_most_of_the_regret(setting: str) -> None:
    val = _table("val", setting)
    truth, costs = list(val.values()), [cost for _, cost in val]
    estimates = _higher_order(val)
    before = after = 0.0
    for budget in np.arange(1.0, 5.1, 0.5).tolist():
        start = select_networks(estimates, costs, budget).total_on(truth)
        best = select_networks(truth, costs, budget).total_loss
        found = refine(estimates, costs, budget, truth.__getitem__, known=[len(r) <= 2 for r in truth], measurements=8)
        assert len(found.measured) == len(set(found.measured)) <= 8
        assert found.selection.total_loss == pytest.approx(found.selection.total_on(truth))
        assert best - 1e-9 <= found.selection.total_loss <= start + 1e-9
        before, after = before + start - best, after + found.selection.total_loss - best
    assert after <= before / 2


def test_measurements_must_hold_the_tasks() -> None:
    with pytest.raises(AffinityError, match="lacks b"):
        refine([{"a": 1.0, "b": 1.0}], [1.0], 1.0, lambda _: {"a": 1.0}, known=[False])
