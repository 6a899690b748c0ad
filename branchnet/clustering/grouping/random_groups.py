"""Random groups of tasks to measure, in which all tasks are equally often."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from branchnet.errors import AffinityError

Task = TypeVar("Task")
_EVEN_TRIES = 20


def random_groups(tasks: Sequence[Task], count: int, size: int, *, seed: int = 0) -> list[tuple[Task, ...]]:
    """Draw different random groups, in which every task is as often as any other, or once more.

    Where the number of groups is near that of all groups of the size, this may not be possible: then as nearly as can
    be. What such groups lose when each is trained as one network, `estimate_groups` takes.

    Args:
        tasks: N distinct tasks.
        count: number of groups.
        size: tasks in each, at least 1.
        seed: of the drawing.

    Returns:
        The groups, each in the order of `tasks`.

    Raises:
        AffinityError: a size that is not from 1 to N, or more groups than there are.

    >>> from branchnet.clustering import random_groups
    >>> groups = random_groups("abcdef", 6, 3)
    >>> sorted(map("".join, groups))
    ['abc', 'abe', 'acd', 'bef', 'cdf', 'def']
    >>> [sum(task in group for group in groups) for task in "abcdef"]
    [3, 3, 3, 3, 3, 3]
    """
    if not 1 <= size <= len(tasks) or len(set(tasks)) < len(tasks):
        raise AffinityError(f"size is {size}; expected a number from 1 to {len(tasks)}, and tasks that are distinct")
    if count > math.comb(len(tasks), size):
        raise AffinityError(f"count is {count}; expected at most {math.comb(len(tasks), size)}, all groups of {size}")
    source = random.Random(seed)
    tries = (_drawn(len(tasks), count, size, source, even=number < _EVEN_TRIES) for number in range(_EVEN_TRIES + 1))
    found = next(groups for groups in tries if groups is not None)
    return [tuple(tasks[task] for task in group) for group in found]


def _drawn(tasks: int, count: int, size: int, source: random.Random, *, even: bool) -> list[tuple[int, ...]] | None:
    """One drawing, in which those that were in the fewest groups come first; None where only repetitions are left.

    Unless it shall be even, tasks that were in more groups come in after repetitions, in the end at random.
    """
    found, used, repeated = dict[tuple[int, ...], None](), [0] * tasks, 0
    while len(found) < count:
        slack = 0.5 if even else 0.5 + repeated
        order = sorted(range(tasks), key=lambda task: used[task] + slack * source.random())
        group = tuple(sorted(order[:size]))
        if group not in found:
            found[group], repeated = None, 0
            for task in group:
                used[task] += 1
        elif even and repeated == 100:
            return None
        else:
            repeated += 1
    return list(found)
