"""Which networks to train for which tasks: network selection (Standley et al. 2020, "Which tasks should be learned
together in multi-task learning?").

A table gives, for every candidate network, the loss of each of its tasks and the network's cost. A selection may hold a
task several times; the network with the least loss serves it. Honest evaluation: a task stays with the network that the
data used for selecting chose, whatever other data says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from branchnet.clustering.grouping.integer_program import Chosen, Groups, all_best_choices, best_choice, front
from branchnet.clustering.grouping.whole_networks import joined_tree, shared_trees
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import AffinityError, BudgetError

Losses = Sequence[Mapping[str, float]]
Task = TypeVar("Task")


@dataclass(frozen=True)
class Selection:
    """Networks that were chosen.

    Attributes:
        networks: indices into the table of candidates, ascending.
        assignment: `{task: index}`, the network that serves each task.
        total_loss: weighted sum over tasks of the loss in the serving network.
        total_cost: cost of the chosen networks.
        groups: the tasks of each network, in the order of `networks`.

    >>> losses = [{"a": 1.0}, {"b": 1.0}, {"a": 0.8, "b": 1.3}]
    >>> chosen = branchnet.select_networks(losses, costs=[1, 1, 1], budget=1)
    >>> isinstance(chosen, branchnet.Selection), chosen.assignment
    (True, {'a': 2, 'b': 2})
    >>> chosen.total_on([{"a": 9.0}, {"b": 9.0}, {"a": 0.9, "b": 1.1}])               # on test data, say
    2.0
    >>> chosen.tree(depth=3) == branchnet.Tree.shared(["a", "b"], 3)
    True
    """

    networks: tuple[int, ...]
    assignment: dict[str, int]
    total_loss: float
    total_cost: float
    groups: tuple[frozenset[str], ...]

    @property
    def served(self) -> tuple[tuple[str, ...], ...]:
        """The tasks that each network serves, in the order of `networks`; its others are auxiliary."""
        return tuple(tuple(task for task, one in self.assignment.items() if one == m) for m in self.networks)

    def total_on(self, losses: Losses, weights: Mapping[str, float] | None = None) -> float:
        """Evaluate honestly: every task stays with the network that was chosen for it.

        Args:
            losses: another table of the same candidates.
            weights: `{task: weight}` of the losses; None or a missing task = 1.

        Returns:
            Weighted loss of this assignment on that table.
        """
        return math.fsum((weights or {}).get(task, 1.0) * losses[m][task] for task, m in self.assignment.items())

    def trees(self, depth: int) -> tuple[Tree, ...]:
        """Write every chosen network as a tree of all its tasks, with which it was measured.

        Args:
            depth: number of stages.

        Returns:
            One tree for each network, in the order of `networks`: all of its tasks share all stages.
        """
        return shared_trees(self.groups, tuple(self.assignment), depth)

    def tree(self, depth: int) -> Tree:
        """Write the whole networks as one tree.

        Args:
            depth: number of stages.

        Returns:
            The tree in which tasks that are served by the same network share all stages.

        Raises:
            TreeError: a network has auxiliary tasks, trained along and served by another one, which a tree cannot say.
        """
        return joined_tree(self.groups, self.served, depth)


def select_networks(
    losses: Losses,
    costs: Sequence[float],
    budget: float,
    *,
    weights: Mapping[str, float] | None = None,
    partition: bool = False,
) -> Selection:
    """Choose the networks of least total loss within the budget; of equals (relative 1e-9) the cheaper ones.

    Args:
        losses: for each candidate network `{task: loss}`; the keys are the network's tasks.
        costs: cost of each candidate.
        budget: largest sum of costs.
        weights: `{task: weight}` of the losses; None or a missing task = 1.
        partition: whether every task must be in exactly one chosen network.

    Returns:
        The networks, and which of them serves each task.

    Raises:
        BudgetError: no choice of networks serves all tasks within the budget.
        AffinityError: empty or non-finite losses, negative or non-finite costs or weights.

    >>> losses = [{"a": 1.0}, {"b": 1.0}, {"a": 0.8, "b": 1.3}]
    >>> chosen = branchnet.select_networks(losses, costs=[1, 1, 1], budget=2)
    >>> chosen.networks, chosen.assignment, chosen.total_loss
    ((1, 2), {'a': 2, 'b': 1}, 1.8)
    """
    groups, tasks = _groups(losses, costs, weights, partition)
    chosen = best_choice(groups, _checked_budget(budget))
    if chosen is None:
        raise _too_small(groups, budget)
    return _selection(groups, tasks, chosen)


def all_selections(
    losses: Losses,
    costs: Sequence[float],
    budget: float,
    *,
    weights: Mapping[str, float] | None = None,
    partition: bool = False,
) -> list[Selection]:
    """Find all selections of least total loss and, among them, least cost.

    Args:
        losses: as `select_networks` takes them.
        costs: as `select_networks` takes them.
        budget: as `select_networks` takes it.
        weights: as `select_networks` takes them.
        partition: as `select_networks` takes it.

    Returns:
        The selections, in lexicographic order of their networks.

    Raises:
        BudgetError: as `select_networks`.
        AffinityError: as `select_networks`.
    """
    groups, tasks = _groups(losses, costs, weights, partition)
    choices = all_best_choices(groups, _checked_budget(budget))
    if not choices:
        raise _too_small(groups, budget)
    return [_selection(groups, tasks, chosen) for chosen in choices]


def selection_front(
    losses: Losses,
    costs: Sequence[float],
    *,
    weights: Mapping[str, float] | None = None,
    partition: bool = False,
) -> list[Selection]:
    """Find the best selection of every cost at which the best total loss changes.

    Args:
        losses: as `select_networks` takes them.
        costs: as `select_networks` takes them.
        weights: as `select_networks` takes them.
        partition: as `select_networks` takes it.

    Returns:
        The selections, cheapest first.

    Raises:
        AffinityError: as `select_networks`.
    """
    groups, tasks = _groups(losses, costs, weights, partition)
    return [_selection(groups, tasks, chosen) for chosen in front(groups)]


def early_selection(
    early: Losses,
    losses: Losses,
    costs: Sequence[float],
    budget: float,
    *,
    weights: Mapping[str, float] | None = None,
    partition: bool = False,
) -> Selection:
    """Early stopping approximation (ESA, Standley et al. 2020): losses from early in training choose, nothing more.

    Networks and assignment are those of least total early loss; `total_loss` is what that choice has on `losses`.

    Args:
        early: losses early in training, of the candidates of `losses`.
        losses: final losses, as `select_networks` takes them.
        costs: as `select_networks` takes them.
        budget: as `select_networks` takes it.
        weights: as `select_networks` takes them.
        partition: as `select_networks` takes it.

    Returns:
        The selection.

    Raises:
        BudgetError: as `select_networks`.
        AffinityError: as `select_networks`; early losses of other networks or tasks.
    """
    if [set(row) for row in early] != [set(row) for row in losses]:
        raise AffinityError("early has other entries; expected losses of the same networks and tasks in the same order")
    chosen = select_networks(early, costs, budget, weights=weights, partition=partition)
    return dataclasses.replace(chosen, total_loss=chosen.total_on(losses, weights))


def higher_order_estimates(losses: Losses, sets: Iterable[Iterable[str]]) -> list[dict[str, float]]:
    """Estimated losses of task sets from measured single tasks and pairs (HOA, Standley et al. 2020).

    Sets of one or two tasks take their measured losses; in a larger set a task's loss is the mean of its losses in the
    pairs with each of the others.

    Args:
        losses: measured, for single tasks and pairs; larger sets are ignored.
        sets: the sets to estimate.

    Returns:
        The losses by task of each set.

    Raises:
        AffinityError: a single task or a pair that is needed was not measured.
    """
    measured = {frozenset(row): row for row in losses if len(row) <= 2}
    return [_estimate(tuple(tasks), measured) for tasks in sets]


def task_sets(tasks: Sequence[Task], smallest: int = 1) -> list[tuple[Task, ...]]:
    """List sets of tasks.

    Args:
        tasks: the tasks.
        smallest: least number of tasks in a set.

    Returns:
        All sets of at least so many tasks, small ones first.
    """
    return [group for size in range(smallest, len(tasks) + 1) for group in combinations(tasks, size)]


def _estimate(tasks: tuple[str, ...], measured: Mapping[frozenset[str], Mapping[str, float]]) -> dict[str, float]:
    needed = [tasks] if len(tasks) <= 2 else list(combinations(tasks, 2))
    for group in needed:
        if frozenset(group) not in measured:
            raise AffinityError(
                f"losses lacks {', '.join(group)} trained together; expected every single task and pair"
            )
    if len(tasks) <= 2:
        return dict(measured[frozenset(tasks)])
    return {
        task: math.fsum(measured[frozenset((task, other))][task] for other in tasks if other != task) / (len(tasks) - 1)
        for task in tasks
    }


def _groups(
    losses: Losses, costs: Sequence[float], weights: Mapping[str, float] | None, partition: bool
) -> tuple[Groups, tuple[str, ...]]:
    tasks = tuple(dict.fromkeys(task for row in losses for task in row))
    prices = np.array(costs, dtype=np.float64)
    if not tasks or not all(losses):
        raise AffinityError("losses has an empty entry; expected the loss of at least one task for every candidate")
    if prices.shape != (len(losses),) or not np.isfinite(prices).all() or (prices < 0).any():
        raise AffinityError(f"costs is {list(costs)}; expected {len(losses)} finite numbers, none negative")
    table = np.full((len(losses), len(tasks)), np.inf)
    for m, row in enumerate(losses):
        for task, loss in row.items():
            value = float(loss) * _weight(weights, task)
            if not math.isfinite(value):
                raise AffinityError(
                    f"the loss of {task!r} in network {m} ({', '.join(row)}) is {loss}; expected a finite number"
                )
            table[m, tasks.index(task)] = value
    return Groups(table, prices, partition), tasks


def _weight(weights: Mapping[str, float] | None, task: str) -> float:
    weight = 1.0 if weights is None else float(weights.get(task, 1.0))
    if not math.isfinite(weight) or weight < 0:
        raise AffinityError(f"the weight of {task!r} is {weight}; expected a finite number, not negative")
    return weight


def _checked_budget(budget: float) -> float:
    if math.isnan(budget):
        raise BudgetError("the budget is NaN; expected a number")
    return float(budget)


def _too_small(groups: Groups, budget: float) -> BudgetError:
    cheapest = Groups(np.where(np.isfinite(groups.losses), 0.0, np.inf), groups.costs, groups.partition)
    choice = best_choice(cheapest, math.fsum(groups.costs))
    if choice is None:
        return BudgetError("no choice of networks holds every task exactly once; expected partition=False")
    smallest = groups.cost(choice)
    return BudgetError(
        f"no choice of networks fits the budget of {budget:g}; expected at least {smallest:g}", smallest=smallest
    )


def _selection(groups: Groups, tasks: Sequence[str], chosen: Chosen) -> Selection:
    servers = groups.servers(chosen)
    return Selection(
        networks=chosen,
        assignment=dict(zip(tasks, servers, strict=True)),
        total_loss=groups.total(chosen),
        total_cost=groups.cost(chosen),
        groups=tuple(
            frozenset(t for t, loss in zip(tasks, groups.losses[m], strict=True) if loss < math.inf) for m in chosen
        ),
    )
