"""Building a branched network from staged single-task networks: choose a donor for each node, copy its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from branchnet.builder.donors import Donors, choose_donors
from branchnet.builder.network import BranchedNetwork, Input
from branchnet.errors import BuildError
from branchnet.stages import StagedNetwork, split_all

if TYPE_CHECKING:
    from branchnet.affinity import Affinity
    from branchnet.clustering import Tree


def build(
    tree: Tree,
    networks: Mapping[str, nn.Module],
    *,
    init: Literal["donor"] = "donor",
    affinity: Affinity | None = None,
    donors: Donors | None = None,
    example: Input | None = None,
    locations: Sequence[str] | int | None = None,
) -> BranchedNetwork:
    """Build the branched network that `tree` describes, with copies of the single-task networks' weights in place.

    The donor of each node is chosen by `choose_donors`: the parent's donor while that task is in the cluster, otherwise
    the cluster's medoid by affinity, or without an affinity its first task. So a chain of nodes with one donor
    reproduces that donor exactly. Parameters that a donor shares between stages stay shared between nodes that serve
    the same tasks, and become independent elsewhere. The copies can be trained even where the donors are frozen.

    Args:
        tree: D stages over the tasks.
        networks: the single-task networks: the result of `split_all`, or plain networks together with `example`.
            They are not changed.
        init: where the weights come from; `"donor"` is the rule above.
        affinity: chooses the medoids.
        donors: the donor task of every node, stage by stage in the order of `tree.partitions`, instead of that rule;
            `choose_donors` with a preferred task makes some.
        example: inputs to split plain networks with.
        locations: where to split plain networks; by default at the affinity's locations.

    Raises:
        BuildError: tasks or depth of tree, networks and affinity that do not agree.
        SplitError: plain networks that cannot be split.
    """
    if init != "donor":
        raise BuildError(f"init must be 'donor'; {init!r} was given")
    staged = _staged(networks, example, locations if locations or affinity is None else affinity.locations)
    _check_fit(tree, staged, affinity)
    donors = choose_donors(tree, affinity) if donors is None else _checked_donors(donors, tree)
    memos: dict[tuple[str, tuple[str, ...]], dict[int, Any]] = {}

    def clone(module: nn.Module, donor: str, cluster: Sequence[str]) -> nn.Module:
        copied = copy.deepcopy(module, memos.setdefault((donor, tuple(cluster)), {}))
        for parameter in copied.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        return copied

    nodes = [
        [clone(staged[donor].stages[d], donor, cluster) for donor, cluster in zip(donors[d], clusters, strict=True)]
        for d, clusters in enumerate(tree.partitions)
    ]
    heads = [clone(staged[task].head, task, (task,)) for task in tree.tasks]
    first = staged[tree.tasks[0]]
    branched = BranchedNetwork(
        tree,
        nodes,
        heads,
        locations=first.locations,
        donors=donors,
        costs=first.costs,
        head_costs={task: staged[task].head_cost for task in tree.tasks},
        interface=first.interface,
        constructors={task: staged[task].constructor for task in tree.tasks},
        eval_only="; ".join(f"{task}: {net.eval_only}" for task, net in staged.items() if net.eval_only),
    )
    return branched.train(first.training)


def _staged(
    networks: Mapping[str, nn.Module], example: Input | None, locations: Sequence[str] | int | None
) -> dict[str, StagedNetwork]:
    staged = {task: net for task, net in networks.items() if isinstance(net, StagedNetwork)}
    if len(staged) == len(networks):
        return staged
    if staged:
        raise BuildError(f"{sorted(set(networks) - set(staged))} are plain networks and the others staged: mix neither")
    if example is None:
        raise BuildError("plain networks need `example=` to be split with; or pass the result of branchnet.split_all")
    return split_all(networks, example, locations=locations)


def _checked_donors(donors: Donors, tree: Tree) -> Donors:
    shapes = [len(stage) for stage in donors], list(tree.widths)
    if shapes[0] != shapes[1]:
        raise BuildError(f"donors name {shapes[0]} nodes in the stages; the tree has {shapes[1]}")
    for stage, clusters in zip(donors, tree.partitions, strict=True):
        for donor, cluster in zip(stage, clusters, strict=True):
            if donor not in cluster:
                raise BuildError(f"donor {donor!r} is not among the tasks {list(cluster)} that its node serves")
    return donors


def _check_fit(tree: Tree, staged: Mapping[str, StagedNetwork], affinity: Affinity | None) -> None:
    missing = [task for task in tree.tasks if task not in staged]
    if missing:
        raise BuildError(f"the tree has tasks {missing} that no network is given for; networks: {sorted(staged)}")
    for task in tree.tasks:
        network = staged[task]
        if len(network.stages) != tree.depth:
            raise BuildError(f"the tree has {tree.depth} stages, the network of {task!r} has {len(network.stages)}")
    if affinity is not None:
        unknown = [task for task in tree.tasks if task not in affinity.tasks]
        if unknown or len(affinity.locations) != tree.depth:
            raise BuildError(
                f"the affinity knows tasks {list(affinity.tasks)} at {len(affinity.locations)} locations; "
                f"the tree has tasks {list(tree.tasks)} and {tree.depth} stages"
            )
