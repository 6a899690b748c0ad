"""Whether networks fit a tree: its tasks, its stages, and where they leave its trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BuildError, TreeError
from branchnet.stages import StagedNetwork

if TYPE_CHECKING:
    from branchnet.affinity import Affinity


def check_networks(tree: Tree, staged: Mapping[str, StagedNetwork]) -> None:
    """Refuse tasks without a network, and networks of another depth than the tree's.

    Raises:
        BuildError: names them.
    """
    missing = [task for task in tree.tasks if task not in staged]
    if missing:
        raise BuildError(
            f"the tree has tasks {missing} without a network; expected one for each, found {sorted(staged)}"
        )
    for task in tree.tasks:
        network = staged[task]
        if len(network.stages) != tree.depth:
            raise BuildError(
                f"the network of {task!r} has {len(network.stages)} stages; expected {tree.depth}, as the tree has"
            )


def check_fit(tree: Tree, staged: Mapping[str, StagedNetwork], affinity: Affinity | None) -> None:
    """Refuse networks that cannot share what the tree says, and an affinity of other tasks or places.

    Raises:
        BuildError: names the networks and the stage, or what the affinity has.
    """
    for stage, clusters in enumerate(tree.partitions):
        for first, *others in clusters:
            for task in others:
                if problem := _mismatch(staged[first], staged[task], stage):
                    raise BuildError(
                        f"the networks of {first!r} and {task!r} cannot share stage {stage}: {problem}; split them "
                        "together with branchnet.split_all(networks, example)"
                    )
    first = tree.tasks[0]
    if affinity is not None:
        unknown = [task for task in tree.tasks if task not in affinity.tasks]
        if unknown or len(affinity.locations) != tree.depth:
            raise BuildError(
                f"the affinity has the tasks {list(affinity.tasks)} at {len(affinity.locations)} locations; "
                f"expected {list(tree.tasks)} at {tree.depth}, as the tree has"
            )
        if not any(tuple(network.locations) == tuple(affinity.locations) for network in staged.values()):
            affinity.check_locations(staged[first].locations, f"the network of {first!r}")


def early_depths(tasks: Sequence[str], staged: Mapping[str, StagedNetwork]) -> dict[str, int]:
    """How many stages those of the tasks pass that leave the trunk early."""
    return {task: staged[task].depth for task in tasks if staged[task].depth < len(staged[task].stages)}


def leaving_early(tree: Tree, staged: Mapping[str, StagedNetwork]) -> Tree:
    """The tree, whose tasks leave the trunk where their networks do.

    Raises:
        BuildError: a tree that says otherwise, or that lets a task share what it has not.
    """
    depths = early_depths(tree.tasks, staged)
    if tree.depths and dict(tree.depths) != depths:
        raise BuildError(
            f"tasks leave the trunk at {dict(tree.depths)} in the tree, at {depths} in the networks; expected the "
            "same: split_all(networks, example, depth='auto') lets networks leave early"
        )
    try:
        return Tree(tree.tasks, tree.partitions, depths)
    except TreeError as error:
        raise BuildError(f"the tree does not fit the networks: {error}") from error


def _mismatch(one: StagedNetwork, other: StagedNetwork, stage: int) -> str:
    """Say why a stage of one network cannot take the place of the other's; empty where no reason is seen."""
    if one.locations[stage] != other.locations[stage]:
        return f"it ends at {one.locations[stage]!r} in one and at {other.locations[stage]!r} in the other"
    # The batch size, dimension 0, may differ: the networks may have been split with different numbers of inputs.
    forms = [[(len(t.shape), t.shape[1:], t.dtype) for t in network.cuts[stage]] for network in (one, other)]
    if forms[0] == forms[1]:
        return ""
    shown = [", ".join(f"{t.shape} {t.dtype}" for t in network.cuts[stage]) for network in (one, other)]
    return f"at {one.locations[stage]!r} one returns {shown[0]} and the other {shown[1]}"
