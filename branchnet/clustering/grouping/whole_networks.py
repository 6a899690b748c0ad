"""Whole networks for sets of tasks that may overlap: which tasks each of them serves, and their trees.

A network is trained with every task of its set, as it was measured. It serves those that it is best for; the others,
its auxiliary tasks, are only trained along.
"""

from __future__ import annotations

from collections.abc import Sequence

from branchnet.clustering.trees.tree import Tree
from branchnet.errors import TreeError

Sets = Sequence[Sequence[str]]


def shared_trees(sets: Sequence[frozenset[str]], tasks: Sequence[str], depth: int) -> tuple[Tree, ...]:
    """One tree for each set, in which all of its tasks share all stages; tasks in the order of `tasks`."""
    return tuple(Tree.shared([task for task in tasks if task in one], depth) for one in sets)


def joined_tree(sets: Sequence[frozenset[str]], served: Sets, depth: int) -> Tree:
    """The one tree of all sets, which knows a task once only.

    Raises:
        TreeError: a set with auxiliary tasks, which would be left out.
    """
    for one, own in zip(sets, served, strict=True):
        if lost := sorted(one - set(own)):
            serves = f"serves only {', '.join(own)}" if own else "serves none"
            raise TreeError(
                f"one tree would lose {', '.join(lost)}, which the network of {', '.join(sorted(one))} is trained with "
                f"and does not serve (it {serves}); expected trees(depth), one for each network, or "
                "branchnet.build(selection, networks)"
            )
    return Tree.grouped(served, depth)
