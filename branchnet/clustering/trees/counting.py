"""How many trees there are, and all of them in order.

A tree of n tasks and D stages is a chain of D partitions. Below, `chains(n, D)` counts them:
chains(n, 0) = 1 and chains(n, D) = sum over partitions of n tasks of the product over blocks of chains(|block|, D - 1),
which are the iterated Bell numbers. With widths w_0 <= ... <= w_{D-1} there are
S(n, w_{D-1}) * S(w_{D-1}, w_{D-2}) * ... * S(w_1, w_0) trees, S the Stirling numbers of the second kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from branchnet.clustering.trees.tree import Tree
from branchnet.errors import TreeError


def count_trees(n_tasks: int, depth: int) -> int:
    """Count the trees, those that split before stage 0 included.

    The counts are n! times the coefficients of the (depth + 1)-fold composition of exp(x) - 1.

    Args:
        n_tasks: number of tasks.
        depth: number of stages.

    Returns:
        The number of trees.

    Raises:
        TreeError: fewer than one task or stage.

    >>> branchnet.count_trees(2, 3), branchnet.count_trees(5, 5), branchnet.count_trees(8, 5)
    (4, 7556, 45592666)
    """
    _check_counts(n_tasks, depth)
    return _chains(n_tasks, depth)


def enumerate_trees(tasks: Iterable[str], depth: int) -> Iterator[Tree]:
    """Make all trees, lazily, each once.

    Args:
        tasks: the task names.
        depth: number of stages.

    Returns:
        The trees, from fully shared to separate networks.

    Raises:
        TreeError: fewer than one task or stage, or names that repeat; with the first tree.

    >>> for tree in branchnet.enumerate_trees(["a", "b"], 2):
    ...     print(tree.partitions)
    ((('a', 'b'),), (('a', 'b'),))
    ((('a', 'b'),), (('a',), ('b',)))
    ((('a',), ('b',)), (('a',), ('b',)))
    """
    names = tuple(tasks)
    _check_counts(len(names), depth)
    for partitions in _refinements((names,), depth):
        yield Tree(names, partitions)


@cache
def _chains(n: int, depth: int) -> int:
    """Chains of partitions; the block that holds the first task has j tasks."""
    if depth == 0 or n == 0:
        return 1
    return sum(math.comb(n - 1, j - 1) * _chains(j, depth - 1) * _chains(n - j, depth) for j in range(1, n + 1))


@cache
def stirling(n: int, k: int) -> int:
    """Number of partitions of n things into k non-empty blocks."""
    if n == 0 or k == 0:
        return int(n == k)
    return k * stirling(n - 1, k) + stirling(n - 1, k - 1)


def set_partitions(items: Sequence[str]) -> Iterator[list[tuple[str, ...]]]:
    """All partitions of `items`, coarsest first in the order of restricted growth strings."""
    if not items:
        yield []
        return
    for smaller in set_partitions(items[:-1]):
        for number, block in enumerate(smaller):
            yield [*smaller[:number], (*block, items[-1]), *smaller[number + 1 :]]
        yield [*smaller, (items[-1],)]


def _refinements(coarse: Sequence[tuple[str, ...]], depth: int) -> Iterator[list[list[tuple[str, ...]]]]:
    if depth == 0:
        yield []
        return
    for stage in _splits(coarse):
        for rest in _refinements(stage, depth - 1):
            yield [stage, *rest]


def _splits(clusters: Sequence[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """All ways to split every cluster further or leave it whole."""
    if not clusters:
        yield []
        return
    for first in set_partitions(clusters[0]):
        for rest in _splits(clusters[1:]):
            yield [*first, *rest]


def _check_counts(n_tasks: int, depth: int) -> None:
    if n_tasks < 1 or depth < 1:
        raise TreeError(f"{n_tasks} tasks and {depth} stages were asked for; expected at least one of each")
