"""Changing a branched network into another one: tasks added or removed, nodes joined or split.

Every function returns a new network with weights of its own and leaves the one that it was given as it is. Nodes that
the change does not concern keep their weights bit-exact, their mode, and whether they are frozen. A node whose donor
task is gone is named after its parent's donor, or after the first of the tasks that it serves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.module_structure import tensors_of
from branchnet.builder.network.node import Node, head_id, node_id
from branchnet.builder.network.stitched_edges import plain_path, without_stitches_behind
from branchnet.builder.network.task_names import did_you_mean, wanted_tasks
from branchnet.builder.weights.averaging import counterparts
from branchnet.builder.weights.donors import Donors
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BuildError, SplitError
from branchnet.stages import Example, StagedNetwork, call, split, split_all
from branchnet.stages.staged import Stage
from branchnet.stitching.stitch import StitchedStage
from branchnet.utils.installed_torch.torch_internals import tree_map

if TYPE_CHECKING:
    from branchnet.clustering.trees.tree_checks import Cluster

Origins = list[list[Node]]
"""For each stage and cluster of the new tree the node that its weights are copied from."""


def check_branched(network: object) -> None:
    """Raise BuildError for what is not one branched network, such as grouped networks, each of which is one."""
    if not isinstance(network, BranchedNetwork):
        groups = ": one of grouped.networks, or grouped.served_network()" if hasattr(network, "served_network") else ""
        raise BuildError(f"the network is a {type(network).__name__}; expected a BranchedNetwork{groups}")


def add_branch(
    branched: BranchedNetwork, name: str, network: nn.Module, *, beside: str, until: str | None
) -> tuple[BranchedNetwork, StagedNetwork]:
    """Grow a branch for a new task, as `branchnet.builder.add_task` does without a stitch.

    Args:
        branched, name, network, beside, until: as for `add_task`.

    Returns:
        a new network with the task, and the task's own network, split.

    Raises:
        BuildError: as `add_task`.
    """
    check_branched(branched)
    _check_new_task(branched, name, beside, until)
    shared = 0 if until is None else branched.locations.index(until) + 1
    staged = _staged(branched, name, network, beside)
    if shared > staged.depth:
        raise BuildError(
            f"the network of {name!r} leaves the trunk after {branched.locations[staged.depth - 1]!r}; expected "
            f"until={branched.locations[staged.depth - 1]!r} or before, not {until!r}"
        )
    depths = {**branched.tree.depths, name: staged.depth}
    tree = Tree((*branched.tasks, name), _with_task(branched.tree, name, beside, shared), depths)
    # The new nodes are numbered after the last of each stage, so that no id of an existing (frozen) node is theirs.
    grown = [
        Node(d, width, (name,), name, stage)
        for d, (width, stage) in enumerate(zip(branched.tree.widths, staged.stages, strict=True))
    ]
    origins = [
        [grown[d] if cluster == (name,) else _origin(branched, d, cluster) for cluster in clusters]
        for d, clusters in enumerate(tree.partitions)
    ]
    heads = dict(zip(branched.tasks, branched.heads, strict=True)) | {name: staged.head}
    grown_network = _rebuilt(
        branched,
        tree,
        origins,
        heads,
        head_costs=branched.head_costs | {name: staged.head_cost},
        constructors=branched.constructors | {name: staged.constructor},
        eval_only=_with_reason(branched.eval_only, name, staged.eval_only),
    )
    return grown_network, staged


def _check_new_task(branched: BranchedNetwork, name: str, beside: str, until: str | None) -> None:
    if name in branched.tasks:
        raise BuildError(f"task {name!r} exists already; expected a name other than {list(branched.tasks)}")
    if beside not in branched.tasks:
        raise BuildError(f"unknown task beside={beside!r}{did_you_mean(beside, branched.tasks)}")
    if until is not None and until not in branched.locations:
        raise BuildError(f"unknown location until={until!r}; expected None or one of {list(branched.locations)}")


def _with_reason(known: str, task: str, reason: str | None) -> str:
    """The reasons why a network can only be evaluated, with that of one more task."""
    return "; ".join(text for text in (known, f"{task}: {reason}" if reason else "") if text)


def remove_task(branched: BranchedNetwork, name: str) -> BranchedNetwork:
    """Take a task away, with its head and the nodes that served it alone; the other outputs stay bitwise identical.

    Args:
        branched: the network.
        name: the task.

    Returns:
        a new network without the task.

    Raises:
        BuildError: a task that is unknown, or the only one.
    """
    check_branched(branched)
    wanted_tasks([name], branched.tasks)
    rest = tuple(task for task in branched.tasks if task != name)
    if not rest:
        raise BuildError(f"{name!r} is the only task; expected a network that keeps at least one")
    return keep_tasks(branched, rest)


def keep_tasks(branched: BranchedNetwork, tasks: Sequence[str]) -> BranchedNetwork:
    """Take all other tasks away, with their heads and the nodes that served none of these; outputs stay bit-exact.

    Args:
        branched: the network.
        tasks: the tasks to keep.

    Returns:
        a new network of these tasks, in the order of `branched.tasks`.

    Raises:
        BuildError: no tasks, or unknown ones.
    """
    kept = wanted_tasks(tasks, branched.tasks)
    partitions = [
        [rest for cluster in clusters if (rest := tuple(task for task in cluster if task in kept))]
        for clusters in branched.tree.partitions
    ]
    depths = {task: depth for task, depth in branched.tree.depths.items() if task in kept}
    return _regrouped(branched, Tree(kept, partitions, depths))


def merge_nodes(branched: BranchedNetwork, kept: str, *others: str) -> BranchedNetwork:
    """Make one node of several siblings, with the weights of `kept`; their branches go on from it.

    The outputs of the tasks that `kept` served stay bitwise identical; those of the other tasks change. A stitch behind
    one of the others stays where it was fitted on the features of `kept`'s donor, and is taken out otherwise.

    Args:
        branched: the network.
        kept: id of the node whose weights stay, e.g. `nodes.2.0`.
        others: ids of nodes of the same stage with the same parent.

    Returns:
        a new network with one node in their place.

    Raises:
        BuildError: unknown ids, heads, or nodes of different stages or parents.
    """
    check_branched(branched)
    if not others or kept in others or len(set(others)) < len(others):
        raise BuildError(f"{list(others)} cannot be merged into {kept!r}; expected one or more other nodes, each once")
    heir, *merged = [_shared_node(branched, name) for name in (kept, *others)]
    tree, stage = branched.tree, heir.stage
    for node in merged:
        if node.stage != stage or tree.parents[stage][node.index] != tree.parents[stage][heir.index]:
            raise BuildError(
                f"{kept!r} and {node.id!r} are not siblings; expected nodes of one stage with one parent; "
                "merge the nodes before them first"
            )
    indices = {node.index for node in (heir, *merged)}
    joined = tuple(task for k, cluster in enumerate(tree.partitions[stage]) if k in indices for task in cluster)
    partitions: list[Sequence[Cluster]] = list(tree.partitions)
    partitions[stage] = [*(c for k, c in enumerate(tree.partitions[stage]) if k not in indices), joined]
    chosen = {(stage, frozenset(joined)): heir}
    joined_tree = Tree(tree.tasks, partitions, tree.depths)
    return _regrouped(without_stitches_behind(branched, merged, heir.donor), joined_tree, chosen)


def split_node(branched: BranchedNetwork, node: str, groups: Sequence[Sequence[str]]) -> BranchedNetwork:
    """Make several copies of a node, one for each group of its tasks; all outputs stay bitwise identical.

    Later nodes that serve tasks of several groups are split in the same way.

    Args:
        branched: the network.
        node: id of the node, e.g. `nodes.2.0`.
        groups: at least two groups that hold each task of the node once.

    Returns:
        a new network with a node for each group.

    Raises:
        BuildError: an unknown id, a head, or groups that do not partition the node's tasks.
    """
    check_branched(branched)
    divided_node = _shared_node(branched, node)
    stage, tasks = divided_node.stage, divided_node.tasks
    if len(groups) < 2 or not all(groups) or sorted(task for group in groups for task in group) != sorted(tasks):
        raise BuildError(
            f"groups={groups!r} do not partition the tasks of {node!r}; expected two or more groups with each of "
            f"{list(tasks)} once"
        )
    home = {task: number for number, group in enumerate(groups) for task in group}
    partitions: list[Sequence[Cluster]] = list(branched.tree.partitions[:stage])
    for clusters in branched.tree.partitions[stage:]:
        divided = []
        for cluster in clusters:
            by_group: dict[int | None, list[str]] = {}  # None: tasks that the divided node does not serve
            for task in cluster:
                by_group.setdefault(home.get(task), []).append(task)
            divided += [tuple(members) for members in by_group.values()]
        partitions.append(divided)
    return _regrouped(branched, Tree(branched.tasks, partitions, branched.tree.depths))


def _regrouped(
    branched: BranchedNetwork, tree: Tree, chosen: Mapping[tuple[int, frozenset[str]], Node] | None = None
) -> BranchedNetwork:
    """The network of another tree over some of its tasks: each node a copy of the one that served its first task."""
    origins = [
        [(chosen or {}).get((d, frozenset(cluster))) or _origin(branched, d, cluster) for cluster in clusters]
        for d, clusters in enumerate(tree.partitions)
    ]
    heads = {task: branched.heads[branched.tasks.index(task)] for task in tree.tasks}
    return _rebuilt(
        branched,
        tree,
        origins,
        heads,
        head_costs={task: branched.head_costs[task] for task in tree.tasks},
        constructors={task: branched.constructors[task] for task in tree.tasks},
        eval_only=branched.eval_only,
    )


def _rebuilt(
    branched: BranchedNetwork, tree: Tree, origins: Origins, heads: Mapping[str, nn.Module], **described: Any
) -> BranchedNetwork:
    """Copy the nodes and heads together; tensors tied between nodes that serve the same tasks stay tied."""
    memos: dict[tuple[str, ...], dict[int, Any]] = {}
    nodes = [
        [copy.deepcopy(node.module, memos.setdefault(cluster, {})) for node, cluster in zip(row, clusters, strict=True)]
        for row, clusters in zip(origins, tree.partitions, strict=True)
    ]
    copied = [copy.deepcopy(heads[task], memos.setdefault((task,), {})) for task in tree.tasks]
    changed = BranchedNetwork(
        tree,
        nodes,
        copied,
        locations=branched.locations,
        donors=donors_of_origins(tree, origins),
        costs=branched.costs,
        interface=branched.interface,
        **described,
    )
    # The flag itself, not `train()`: the copies carry the modes of their originals, which may differ from node to node.
    changed.training, changed.recomputed = branched.training, branched.recomputed
    changed.frozen = _still_frozen(branched, tree, origins)
    return changed


def _still_frozen(branched: BranchedNetwork, tree: Tree, origins: Origins) -> frozenset[str]:
    """The ids in the new tree of nodes and heads that were copied from frozen ones."""
    frozen = {
        node_id(d, k) for d, row in enumerate(origins) for k, node in enumerate(row) if node.id in branched.frozen
    }
    frozen |= {
        head_id(tree.tasks.index(task))
        for i, task in enumerate(branched.tasks)
        if head_id(i) in branched.frozen and task in tree.tasks
    }
    return frozenset(frozen)


def donors_of_origins(tree: Tree, origins: Origins) -> Donors:
    """Name the donors of a network whose nodes were another's.

    The parent's donor while that task is served, else the original node's, else the first task. Behind a stitch the
    node's own comes first: its weights are not its parent's donor's.

    Args:
        tree: of the network.
        origins: what each node was in the other network.
    """
    donors: list[tuple[str, ...]] = []
    for d, (clusters, row) in enumerate(zip(tree.partitions, origins, strict=True)):
        above = [donors[d - 1][parent] if d else "" for parent in tree.parents[d]]
        donors.append(
            tuple(
                next((task for task in _preferred_donors(node, inherited) if task in cluster), cluster[0])
                for inherited, node, cluster in zip(above, row, clusters, strict=True)
            )
        )
    return tuple(donors)


def _preferred_donors(node: Node, inherited: str) -> tuple[str, str]:
    return (node.donor, inherited) if isinstance(node.module, StitchedStage) else (inherited, node.donor)


def _with_task(tree: Tree, name: str, beside: str, shared: int) -> list[list[tuple[str, ...]]]:
    return [
        [(*cluster, name) if beside in cluster and d < shared else cluster for cluster in clusters]
        + ([(name,)] if d >= shared else [])
        for d, clusters in enumerate(tree.partitions)
    ]


def _origin(branched: BranchedNetwork, stage: int, cluster: Sequence[str]) -> Node:
    known = next(task for task in cluster if task in branched.tasks)
    return branched.place(stage, branched.tree.cluster_of(known, stage))


def _shared_node(branched: BranchedNetwork, name: str) -> Node:
    node = branched.member(name)
    if node.is_head:
        raise BuildError(f"{name!r} is a head, which serves one task alone; expected a node, such as 'nodes.0.0'")
    return node


def _staged(branched: BranchedNetwork, name: str, network: nn.Module, beside: str) -> StagedNetwork:
    """The new task's network, cut where the branched network is, as a copy on its device and in its mode."""
    device = next((tensor.device for tensor in branched.parameters()), torch.device("cpu"))
    kinds = [_float_types(each) for each in (network, branched)]
    if all(kinds) and not kinds[0] & kinds[1]:
        words = [" and ".join(sorted(map(str, kind))) for kind in kinds]
        raise BuildError(f"the network of {name!r} is {words[0]}; expected {words[1]}, as the branched network")
    example = tree_map(lambda tensor: tensor.to(device), branched.interface.random())
    # The interface records the types at the time of splitting; a network that was cast since takes the new one.
    if len(kinds[1]) == 1 and not _runs(branched, example):
        (kind,) = kinds[1]
        example = tree_map(lambda tensor: tensor.to(kind) if tensor.is_floating_point() else tensor, example)
    network = copy.deepcopy(network).to(device)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    if isinstance(network, StagedNetwork):
        staged = network
        problem = _difference(branched, beside, staged, example)
    else:
        staged = split(network, example, locations=branched.locations)
        problem = _difference(branched, beside, staged, example)
        if problem:  # split with the others: their heads may need tensors that this one's does not
            paths = {f"{name} beside {task}": copy.deepcopy(plain_path(branched, task)) for task in branched.tasks}
            with suppress(SplitError):
                staged = _split_with(branched, {name: network, **paths}, example)[name]
                problem = _difference(branched, beside, staged, example)
    if problem:
        raise BuildError(f"the network of {name!r} does not fit: {problem}")
    return staged.train(branched.training and staged.eval_only is None)


def _float_types(network: nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()}


def _runs(branched: BranchedNetwork, example: Example) -> bool:
    try:
        with torch.no_grad():
            copy.deepcopy(branched).eval()(example)
    except (RuntimeError, BuildError):
        return False
    return True


def _split_with(
    branched: BranchedNetwork, networks: Mapping[str, nn.Module], example: Example
) -> dict[str, StagedNetwork]:
    depth: Literal["auto", "common"] = "auto" if branched.tree.depths else "common"
    return split_all(networks, example, locations=branched.locations, depth=depth)


def _difference(branched: BranchedNetwork, beside: str, network: StagedNetwork, example: Example) -> str:
    """Say how the stages of a network differ from those on a task's path; empty where they do the same.

    With the path's weights in its stages, the network must return the tensors that the path returns: equal shapes and
    types do not prove that two stages compute the same, equal outputs from equal weights nearly do.
    """
    path, other = copy.deepcopy(plain_path(branched, beside)).eval(), copy.deepcopy(network).eval()
    if len(other.stages) != len(path.stages):
        return f"it has {len(other.stages)} stages, the branched network {len(path.stages)}"
    cuts: list[tuple[Any, ...]] = []
    for location, mine, theirs in zip(branched.locations, path.stages, other.stages, strict=True):
        try:
            names = counterparts(cast(Stage, mine), cast(Stage, theirs))
        except BuildError as error:
            return f"its stage that ends at {location!r} is of another backbone ({error})"
        source, target = tensors_of(mine), tensors_of(theirs)
        with torch.no_grad():
            for name, counterpart in names.items():
                target[counterpart].copy_(source[name])
            cuts = [stage(*cuts[k]) if cuts else call(stage, example) for k, stage in enumerate((mine, theirs))]
        forms = [[tuple(v.shape) if isinstance(v, Tensor) else v for v in cut] for cut in cuts]
        if forms[0] != forms[1]:
            return (
                f"at {location!r} its head needs the tensors {forms[1]}; expected {forms[0]}, as the others need; "
                "build all tasks again with branchnet.build"
            )
        pairs = [(a, b) for a, b in zip(*cuts, strict=True) if isinstance(a, Tensor)]
        # Both run the same kernels on the same weights; the tolerance leaves room for another order of float32 sums.
        if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in pairs):
            return f"its stage that ends at {location!r} computes something else from the same weights"
    return ""
