"""The tree as a person writes it, nodes inside nodes, and its way to and from `Tree`.

A node runs from where its parent ended `until` a location, and then splits into its `branches`: further nodes, or the
names of the tasks whose heads follow. Several stages that the same tasks share are one node.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from branchnet.builder.weights.donors import Donors
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import SpecError
from branchnet.specification.strict_yaml import MAX_DEPTH, MAX_PROBLEMS
from branchnet.utils.document_keys import Keys


class Section(BaseModel):
    """A section of a specification: immutable, without unknown keys, with finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Node(Section):
    """A run of stages that the same tasks share, and what follows it."""

    until: str = Field(description="The location at whose end the node splits.")
    donor: str | None = Field(default=None, description="The task whose network gives the initial weights.")
    branches: tuple[Branch, ...] = Field(
        min_length=1,
        description="What follows: nodes, or tasks (their heads); before the last location they leave the trunk early.",
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the node serves, in the order of its branches."""
        inner = [(branch,) if isinstance(branch, str) else branch.tasks for branch in self.branches]
        return tuple(task for tasks in inner for task in tasks)


def _kind(branch: Any) -> str:
    return "node" if isinstance(branch, Node | dict) else "task"


Branch = Annotated[Annotated[str, Tag("task")] | Annotated[Node, Tag("node")], Discriminator(_kind)]
Node.model_rebuild()


def nest(tree: Tree, locations: Sequence[str], donors: Donors | None = None) -> tuple[Node, ...]:
    """Write `tree` as nodes inside nodes; branches are in the order of their first task.

    Args:
        tree: D stages over the tasks.
        locations: D names, the ends of the stages.
        donors: the donors to name, if any.

    Returns:
        the nodes at the input.
    """
    return tuple(_nest(tree, locations, donors, 0, number) for number in range(tree.widths[0]))


def _nest(tree: Tree, locations: Sequence[str], donors: Donors | None, stage: int, number: int) -> Node:
    donor = donors[stage][number] if donors else None
    children = _children(tree, stage, number)
    while (
        len(children) == 1
        and tree.is_node(stage + 1, children[0])
        and (donors is None or donors[stage + 1][children[0]] == donor)
    ):
        stage, number = stage + 1, children[0]
        children = _children(tree, stage, number)
    branches: tuple[Branch, ...] = tuple(
        _nest(tree, locations, donors, stage + 1, child)
        if tree.is_node(stage + 1, child)
        else tree.partitions[stage + 1][child][0]
        for child in children
    )
    return Node(until=locations[stage], donor=donor, branches=branches or tree.partitions[stage][number])


def _children(tree: Tree, stage: int, number: int) -> list[int]:
    if stage + 1 == tree.depth:
        return []
    return [child for child, parent in enumerate(tree.parents[stage + 1]) if parent == number]


def flatten(roots: Sequence[Node], tasks: Sequence[str], locations: Sequence[str]) -> Tree:
    """Return the `Tree` of nodes in which `tree_problems` finds nothing."""
    partitions: list[list[tuple[str, ...]]] = [[] for _ in locations]
    for node, first, last in _spans(roots, locations):
        for stage in range(first, last + 1):
            partitions[stage].append(node.tasks)
    depths = _depths(roots, locations)
    for task, depth in depths.items():
        for stage in range(depth, len(locations)):
            partitions[stage].append((task,))
    return Tree(tasks, partitions, depths)


def _depths(roots: Sequence[Node], locations: Sequence[str]) -> dict[str, int]:
    """How many stages those tasks pass whose heads come before the last location."""
    found = {
        branch: last + 1
        for node, _, last in _spans(roots, locations)
        for branch in node.branches
        if isinstance(branch, str)
    }
    return {task: depth for task, depth in found.items() if depth < len(locations)}


def donors_of(roots: Sequence[Node], tree: Tree, locations: Sequence[str]) -> Donors | None:
    """Return the donor of every node of `tree`, or None where the nodes name none."""
    named = {
        (stage, node.tasks[0]): node.donor
        for node, first, last in _spans(roots, locations)
        for stage in range(first, last + 1)
    }
    if None in named.values():
        return None
    named |= {(stage, task): task for task, depth in tree.depths.items() for stage in range(depth, tree.depth)}
    home = {key: tree.cluster_of(key[1], key[0]) for key in named}
    return tuple(
        tuple(str(named[key]) for key in sorted((k for k in named if k[0] == stage), key=home.__getitem__))
        for stage in range(tree.depth)
    )


def tree_problems(
    roots: Sequence[Node], tasks: Sequence[str], locations: Sequence[str], *, stitched: bool = False
) -> list[tuple[Keys, str]]:
    """List what is wrong with nodes over these tasks and locations: places below the roots, and problems.

    Without stitches a node keeps its parent's donor where it serves that task; with them any of its tasks may be it.
    """
    return list(islice(_tree_problems(roots, tasks, locations, stitched), MAX_PROBLEMS))


def _tree_problems(
    roots: Sequence[Node], tasks: Sequence[str], locations: Sequence[str], stitched: bool
) -> Iterator[tuple[Keys, str]]:
    seen: set[str] = set()
    for number, root in enumerate(roots):
        yield from _node_problems(root, (number,), -1, locations)
        if not stitched:
            yield from _donor_changes(root, (number,))
        yield from _leaf_problems(root, (number,), tasks, seen)
    missing = [task for task in tasks if task not in seen]
    if missing:
        yield (), f"lacks the task{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}"
    ends = {node.until for root in roots for node in _walk(root)}
    if locations and ends <= set(locations[:-1]):
        yield (), f"has no node until {locations[-1]!r}, the last location (add a node)"
    given = {node.donor is not None for root in roots for node in _walk(root)}
    if len(given) == 2:
        yield (), "names donors of some nodes (name all or none)"


def _node_problems(node: Node, keys: Keys, before: int, locations: Sequence[str]) -> Iterator[tuple[Keys, str]]:
    stage = locations.index(node.until) if node.until in locations else None
    if stage is None:
        yield (*keys, "until"), f"unknown location {node.until!r}{_near(node.until, locations)}"
    elif stage <= before:
        yield (*keys, "until"), f"{node.until!r} does not come after {locations[before]!r}, where the node begins"
    if node.donor is not None and node.donor not in node.tasks:
        yield (*keys, "donor"), f"{node.donor!r} is not a task of the node; expected one of {', '.join(node.tasks)}"
    for number, branch in enumerate(node.branches):
        inside = (*keys, "branches", number)
        if isinstance(branch, Node):
            yield from _node_problems(branch, inside, before if stage is None else stage, locations)


def _donor_changes(node: Node, keys: Keys) -> Iterator[tuple[Keys, str]]:
    for number, branch in enumerate(node.branches):
        if isinstance(branch, Node):
            inside = (*keys, "branches", number)
            if None not in (branch.donor, node.donor) and node.donor in branch.tasks and branch.donor != node.donor:
                text = f"{branch.donor!r} replaces {node.donor!r} (a node keeps its parent's donor if it serves it)"
                yield (*inside, "donor"), text
            yield from _donor_changes(branch, inside)


def _leaf_problems(node: Node, keys: Keys, tasks: Sequence[str], seen: set[str]) -> Iterator[tuple[Keys, str]]:
    for number, branch in enumerate(node.branches):
        inside = (*keys, "branches", number)
        if isinstance(branch, Node):
            yield from _leaf_problems(branch, inside, tasks, seen)
        elif branch not in tasks:
            yield inside, f"unknown task {branch!r}{_near(branch, tasks)}"
        elif branch in seen:
            yield inside, f"{branch!r} occurs in the tree twice"
        seen.update([branch] if isinstance(branch, str) else [])


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"


def _spans(nodes: Sequence[Branch], locations: Sequence[str], start: int = 0) -> Iterator[tuple[Node, int, int]]:
    """Every node with the first and the last stage that it holds."""
    for node in nodes:
        if isinstance(node, Node):
            last = locations.index(node.until)
            yield node, start, last
            yield from _spans(node.branches, locations, last + 1)


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for branch in node.branches:
        if isinstance(branch, Node):
            yield from _walk(branch)


def check_levels(roots: Sequence[Node], above: int = 0) -> None:
    """Refuse a tree that would be nested too deeply to be read back.

    Args:
        roots: the nodes at the input.
        above: levels of the document around the architecture.

    Raises:
        SpecError: the number of nodes on one path, and how many may be.
    """
    levels = max(_levels(root) for root in roots)
    if 2 * levels + 1 + above > MAX_DEPTH:
        most = (MAX_DEPTH - above) // 2 - 1
        raise SpecError(f"tree: {levels} nodes lie on one path; expected at most {most}")


def _levels(node: Node) -> int:
    return 1 + max((_levels(branch) for branch in node.branches if isinstance(branch, Node)), default=0)
