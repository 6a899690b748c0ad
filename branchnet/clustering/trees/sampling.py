"""Trees drawn uniformly at random, also among those that fit a budget; by exact counting, without rejection.

Counting by widths: S(N, w_{D-1}) S(w_{D-1}, w_{D-2}) ... S(w_1, w_0) trees have the widths w. A tree is drawn by its
widths first, then from the last stage to the first: a uniform partition of N tasks into w_{D-1} clusters, then a
uniform partition of those clusters into w_{D-2}, and so on. Of tasks that leave the trunk early, e_d have left before
stage d; they are alone there, and S(w_{d+1} - e_d, w_d - e_d) takes the place of S(w_{d+1}, w_d). Under a budget,
vectors of widths are counted by meeting in the middle: the first stages' sizes against the last stages' sorted sizes
with running sums of exact integers. Further budgets, and those for some of the tasks, are met by drawing again, which
keeps all trees that fit equally likely.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from branchnet.clustering.budgets.budget import AnyBudget, as_budget
from branchnet.clustering.budgets.task_limits import TaskLimit, task_limit, too_small
from branchnet.clustering.budgets.tree_sizes import CostsByUnit, HeadCostsByUnit, SizeModel, fits, size_model
from branchnet.clustering.trees.counting import stirling
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BudgetError, TreeError

# Vectors of widths of one half; they are listed and sorted in Python.
_LARGEST_HALF = 2_000_000
_DRAWS = 10_000


def random_tree(
    tasks: Iterable[str],
    depth: int,
    *,
    seed: int | random.Random,
    costs: CostsByUnit | None = None,
    budget: AnyBudget | None = None,
    head_costs: HeadCostsByUnit | None = None,
    shared_stages: int = 0,
    depths: Mapping[str, int] | None = None,
) -> Tree:
    """Draw a tree uniformly among all trees, or among all that fit the budget.

    Args:
        tasks: the task names.
        depth: number of stages.
        seed: a number, or a `random.Random` to draw several trees from.
        costs: with `budget`: StageCosts, one number per stage, or a table `costs[stage][width]`.
        budget: with `costs`: a Budget, its text, a number of parameters, or several of these; for all or some tasks.
        head_costs: `{task: number or StageCost}`; None = heads are not counted.
        shared_stages: the first so many stages are shared by all tasks.
        depths: how many stages the tasks pass that leave the trunk early; None = as the costs say.

    Returns:
        The tree.

    Raises:
        BudgetError: no tree fits the budget, only one of `costs` and `budget` is given, or of several budgets, or one
            for some of the tasks, none of 10,000 trees that meet the first one for all tasks meets the others.
        TreeError: so many tasks and stages that the vectors of widths cannot be counted.

    >>> tree = branchnet.random_tree(["a", "b", "c"], 4, seed=0, costs=[1.0, 1.0, 2.0, 2.0], budget="60% params")
    >>> tree.depth, branchnet.clustering.tree_size(tree, [1.0, 1.0, 2.0, 2.0]) <= 0.6 * 18
    (4, True)
    >>> tree == branchnet.random_tree(["a", "b", "c"], 4, seed=0, costs=[1.0, 1.0, 2.0, 2.0], budget="60% params")
    True
    """
    names = tuple(tasks)
    generator = seed if isinstance(seed, random.Random) else random.Random(seed)
    sampler = tree_sampler(
        names,
        depth,
        costs=costs,
        budget=budget,
        head_costs=head_costs,
        shared_stages=shared_stages,
        depths=depths,
    )
    return sampler.draw(generator)


@dataclass(frozen=True, eq=False)
class TreeSampler:
    """Draws many trees after counting once.

    Attributes:
        tasks: the task names.
        count: how many trees there are to draw from; of several budgets those that meet the first one for all tasks.
        depths: how many stages the tasks pass that leave the trunk early.
    """

    tasks: tuple[str, ...]
    count: int
    depths: Mapping[str, int]
    _halves: _Halves
    _further: tuple[tuple[SizeModel, float], ...] = ()
    _subsets: tuple[TaskLimit, ...] = ()

    def draw(self, generator: random.Random) -> Tree:
        """Draw one tree, each with the same probability.

        Args:
            generator: the source of random numbers.

        Returns:
            The tree.

        Raises:
            BudgetError: of several budgets, or of one for some of the tasks, none of 10,000 trees that meet the first
                one for all tasks meets the others.
        """
        for _ in range(_DRAWS if self._further or self._subsets else 1):
            widths = self._halves.pick(generator.randrange(self.count))
            if all(fits(sizes.of_widths(widths), limit) for sizes, limit in self._further):
                tree = random_tree_of_widths(self.tasks, widths, generator, self.depths)
                if all(one.fits(tree) for one in self._subsets):
                    return tree
        if self._subsets:
            written = ", ".join(str(one.budget) for one in self._subsets)
            raise BudgetError(
                f"none of {_DRAWS} random trees within the budgets for all tasks meets {written}, though some tree "
                "may: trees that fit are too rare to be drawn; expected a larger budget for these tasks"
            )
        raise BudgetError(
            f"none of {_DRAWS} trees that meet the first budget meets the others; expected the scarcest one first"
        )


def random_tree_of_widths(
    tasks: Sequence[str], widths: Sequence[int], generator: random.Random, depths: Mapping[str, int] | None = None
) -> Tree:
    """Draw a tree uniformly among all trees with so many nodes in each stage.

    Args:
        tasks: the task names.
        widths: nodes of each stage, from the input on, not falling and at most the number of tasks.
        generator: the source of random numbers.
        depths: of tasks that leave the trunk early how many stages they have.

    Returns:
        The tree.
    """
    leaving = depths or {}
    labels = [list(range(len(tasks)))]
    for stage in range(len(widths) - 1, -1, -1):
        left = {labels[-1][i] for i, task in enumerate(tasks) if leaving.get(task, len(widths)) <= stage}
        free = sorted(set(labels[-1]) - left)
        blocks = _random_partition(len(free), widths[stage] - len(left), generator)
        merged = dict(zip(free, blocks, strict=True))
        merged |= {label: widths[stage] + place for place, label in enumerate(sorted(left))}
        labels.append([merged[label] for label in labels[-1]])
    return Tree.from_labels(tasks, reversed(labels[1:]), leaving)


def tree_sampler(
    tasks: Iterable[str],
    depth: int,
    *,
    costs: CostsByUnit | None = None,
    budget: AnyBudget | None = None,
    head_costs: HeadCostsByUnit | None = None,
    shared_stages: int = 0,
    depths: Mapping[str, int] | None = None,
) -> TreeSampler:
    """Count the trees that fit and prepare to draw from them.

    Args:
        tasks: as `random_tree` takes them.
        depth: as `random_tree` takes it.
        costs: as `random_tree` takes them.
        budget: as `random_tree` takes it.
        head_costs: as `random_tree` takes them.
        shared_stages: as `random_tree` takes it.
        depths: as `random_tree` takes them.

    Returns:
        The sampler.

    Raises:
        BudgetError: as `random_tree`.
        TreeError: as `random_tree`.
    """
    names = Tree.shared(tasks, 1).tasks
    if depth < 1 or not 0 <= shared_stages <= depth:
        raise TreeError(
            f"{depth} stages with {shared_stages} shared ones were asked for; expected at least one stage, and shared "
            "ones among them"
        )
    if (costs is None) != (budget is None):
        raise BudgetError("one of costs and budget is missing; expected both: a budget needs the costs of the stages")
    sizes, limit, further, subsets = None, math.inf, [], []
    if costs is not None and budget is not None:
        each = as_budget(budget).each
        models = {one.unit: size_model(costs, names, one.unit, head_costs, depths=depths) for one in each}
        sizes = models[each[0].unit]
        if len(sizes.table) != depth:
            raise BudgetError(f"costs has {len(sizes.table)} stages; expected {depth}, as the tree")
        whole = [(models[one.unit], models[one.unit].limit(one)) for one in each if not one.tasks]
        (sizes, limit), *further = whole or [(sizes, math.inf)]
        subsets = [task_limit(one, names, models[one.unit], costs, head_costs) for one in each if one.tasks]
        _check_subsets(subsets)
    early = Tree.separate(names, depth, sizes.depths if sizes else depths).depths
    left = [sum(early.get(task, depth) <= stage for task in names) for stage in range(depth)]
    halves = _Halves(len(names), depth, sizes, limit, shared_stages, left)
    if not halves.total:
        raise BudgetError(
            f"no tree fits the budget of {limit:.6g}; expected at least {halves.smallest:.6g}", smallest=halves.smallest
        )
    return TreeSampler(names, halves.total, early, halves, tuple(further), tuple(subsets))


def _check_subsets(limits: Sequence[TaskLimit]) -> None:
    for one in limits:
        if not fits(least := one.least(), one.limit):
            raise too_small(one, least)


class _Halves:
    """Counts of trees by widths: first stages one by one, last stages sorted by size with running counts."""

    def __init__(
        self, n: int, depth: int, sizes: SizeModel | None, limit: float, shared: int, left: Sequence[int]
    ) -> None:
        middle = (depth + 1) // 2
        if math.comb(n + middle - 1, middle) > _LARGEST_HALF:
            raise TreeError(
                f"{n} tasks with {depth} stages have too many vectors of widths to be counted; expected fewer stages"
            )
        self._n, self._depth, self._sizes, self._shared = n, depth, sizes, shared
        # Widths count those that have left, too, `left` of them at each stage.
        self._left, self._least = left, [min(gone + 1, n) for gone in left]
        self._limit = limit + 1e-12 * abs(limit) - (sizes.fixed if sizes else 0.0)
        self._tails = {first: self._tail(first, depth - middle) for first in range(1, n + 1)} if depth > middle else {}
        self._heads = list(self._vectors(1, middle, 0))
        self._running = list(accumulate(self._count(head) for head in self._heads))
        self.total = self._running[-1]
        ones = sizes.of_widths(self._least) if sizes else 0.0
        self.smallest = ones if sizes else None

    def _vectors(self, least: int, length: int, stage: int) -> Iterator[tuple[int, ...]]:
        if length == 0:
            yield ()
            return
        most = self._least[stage] if stage < self._shared else self._n
        for width in range(max(least, self._least[stage]), most + 1):
            for rest in self._vectors(width, length - 1, stage + 1):
                yield (width, *rest)

    def _size(self, widths: Sequence[int], stage: int) -> float:
        if self._sizes is None:
            return 0.0
        return math.fsum(float(self._sizes.table[stage + i, width]) for i, width in enumerate(widths))

    def _tail(self, first: int, length: int) -> tuple[list[float], list[tuple[int, ...]], list[int]]:
        """All last stages whose first width is `first`: sizes in order, their widths, running counts."""
        stage = self._depth - length
        if first < self._least[stage] or (stage < self._shared and first > self._least[stage]):
            return [], [], []
        vectors = [(first, *rest) for rest in self._vectors(first, length - 1, stage + 1)]
        ordered = sorted((self._size(vector, stage), vector) for vector in vectors)
        counts = [self._links((*vector, self._n), stage) for _, vector in ordered]
        return [size for size, _ in ordered], [vector for _, vector in ordered], list(accumulate(counts))

    def _fitting(self, head: tuple[int, ...], first: int) -> int:
        """Trees of the tail that fit after `head`."""
        sizes, _, running = self._tails[first]
        fitting = bisect_right(sizes, self._limit - self._size(head, 0))
        return running[fitting - 1] if fitting else 0

    def _count(self, head: tuple[int, ...]) -> int:
        if not self._tails:
            return self._links((*head, self._n), 0) if self._size(head, 0) <= self._limit else 0
        firsts = range(head[-1], self._n + 1)
        ways = sum(self._merges(first, head[-1], len(head) - 1) * self._fitting(head, first) for first in firsts)
        return self._links(head, 0) * ways

    def _links(self, widths: Sequence[int], stage: int) -> int:
        """Ways to merge from the last of these widths to the first, which is that of `stage`."""
        return math.prod(self._merges(fine, coarse, stage + i) for i, (coarse, fine) in enumerate(pairwise(widths)))

    def _merges(self, fine: int, coarse: int, stage: int) -> int:
        """Ways to merge `fine` clusters into `coarse` ones at a stage; those that have left it stay alone."""
        return stirling(fine - self._left[stage], coarse - self._left[stage])

    def pick(self, number: int) -> tuple[int, ...]:
        """Widths of the tree with this number out of `total`."""
        row = bisect_right(self._running, number)
        head = self._heads[row]
        if not self._tails:
            return head
        rest = (number - (self._running[row - 1] if row else 0)) // self._links(head, 0)
        for first in range(head[-1], self._n + 1):
            ways, fitting = self._merges(first, head[-1], len(head) - 1), self._fitting(head, first)
            if rest < ways * fitting:
                _, vectors, running = self._tails[first]
                return head + vectors[bisect_right(running, rest // ways)]
            rest -= ways * fitting
        raise AssertionError("unreachable: counts and picks disagree")


def _random_partition(n: int, k: int, generator: random.Random) -> list[int]:
    """A uniform partition of n things into k blocks, as block numbers."""
    # S(n, k) = S(n - 1, k - 1) + k S(n - 1, k): the last thing is alone in its block, or in one of the k of the others.
    labels: list[int] = []
    blocks = k
    for things in range(n, 0, -1):
        alone = stirling(things - 1, blocks - 1)
        if generator.randrange(stirling(things, blocks)) < alone:
            blocks -= 1
            labels.append(blocks)
        else:
            labels.append(-blocks)
    return _settle(labels, generator)


def _settle(labels: list[int], generator: random.Random) -> list[int]:
    """Give every thing that is not the founder of its block one of the blocks founded by later things."""
    return [label if label >= 0 else generator.randrange(-label) for label in labels]
