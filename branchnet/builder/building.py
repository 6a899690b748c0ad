"""Building a branched network from staged single-task networks: choose donors, copy, and initialise as asked."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork, Input
from branchnet.builder.network.grouped_networks import GroupedNetworks
from branchnet.builder.sharing_network import SharingNetwork
from branchnet.builder.tree_fit import check_fit, check_networks, early_depths, leaving_early
from branchnet.builder.weights.donors import Donors, choose_donors, sharing_donors
from branchnet.clustering.sharing.task_sharing import Sharing
from branchnet.clustering.trees.tree import Tree
from branchnet.data.arguments import check_by_task
from branchnet.errors import BuildError
from branchnet.stages import StagedNetwork, split_all
from branchnet.stages.interface import call_form
from branchnet.stages.staged import original_key
from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.affinity import Affinity
    from branchnet.clustering import Grouping, SearchResult, Selection
    from branchnet.stitching import OutputKind

Init: TypeAlias = Literal["auto", "stitch", "donor", "mean", "merge", "pretrained", "random"]

PROBE_BATCH = 64
"""Inputs of a probe that are run at once: enough for BatchNorm's statistics, little memory."""


@overload
def build(
    tree: Tree | SearchResult,
    networks: Mapping[str, nn.Module],
    *,
    init: Init = ...,
    affinity: Affinity | None = ...,
    donors: Donors | None = ...,
    probe: Any = ...,
    kinds: Mapping[str, OutputKind] | None = ...,
    state: Mapping[str, Tensor] | None = ...,
    seed: int = ...,
    example: Input | None = ...,
    locations: Sequence[str] | int | None = ...,
) -> BranchedNetwork: ...
@overload
def build(
    tree: Selection | Grouping,
    networks: Mapping[str, nn.Module],
    *,
    init: Init = ...,
    affinity: Affinity | None = ...,
    donors: None = ...,
    probe: Any = ...,
    kinds: Mapping[str, OutputKind] | None = ...,
    state: Mapping[str, Tensor] | None = ...,
    seed: int = ...,
    example: Input | None = ...,
    locations: Sequence[str] | int | None = ...,
) -> GroupedNetworks: ...
@overload
def build(
    tree: Sharing,
    networks: Mapping[str, nn.Module],
    *,
    init: Init = ...,
    affinity: Affinity | None = ...,
    donors: Donors | None = ...,
    example: Input | None = ...,
    locations: Sequence[str] | int | None = ...,
) -> SharingNetwork: ...
def build(
    tree: Tree | SearchResult | Selection | Grouping | Sharing,
    networks: Mapping[str, nn.Module],
    *,
    init: Init = "auto",
    affinity: Affinity | None = None,
    donors: Donors | None = None,
    probe: Any = None,
    kinds: Mapping[str, OutputKind] | None = None,
    state: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    example: Input | None = None,
    locations: Sequence[str] | int | None = None,
) -> BranchedNetwork | GroupedNetworks | SharingNetwork:
    """Build the branched network that `tree` describes, with initial weights in place.

    A selection of whole networks (`select_networks`, `group_by_affinity`) is built as several of them: each has all
    tasks of its set, auxiliary ones included, and each task is served by one of them. A `Sharing`, or what
    `search(..., nested=False)` found, is built as a `SharingNetwork`, which is called for one task at a time; its nodes
    are copies of their donors: the clusters' medoids by affinity, or their first tasks.

    Every node has a donor, chosen by `choose_donors`: the parent's donor while that task is in the cluster, otherwise
    the cluster's medoid by affinity, or without an affinity its first task. So a chain of nodes with one donor
    reproduces that donor exactly. Parameters that a donor shares between stages stay shared between nodes that serve
    the same tasks, and become independent elsewhere. The copies can be trained even where the donors are frozen.

    Args:
        tree: D stages over the tasks; or what `search` found, whose donors count where it names some and none are
            given; or a Selection, a Grouping, or a Sharing.
        networks: the single-task networks: the result of `split_all`, or plain networks together with `example`.
            They are not changed.
        init: where the weights come from. `"stitch"`: each node copies its donor, and where the donor changes from one
            node to the next, an affine map fitted on the probe turns the features that arrive into those expected, so
            that the network works before any training. `"donor"`: copies without such maps. `"auto"`: `stitch` where a
            probe is given, else `donor`, with a warning where donors change. `"mean"`: the mean of the donors of
            all the node's tasks, for networks fine-tuned from the same weights (others are refused). `"merge"`: that
            mean after the units of all donors were put into one order by their activations on the probe, with BatchNorm
            estimated again. `"pretrained"`: `state`. `"random"`: fresh random numbers.
        affinity: chooses the medoids.
        donors: the donor task of every node, stage by stage in the order of `tree.partitions`, instead of that rule;
            `choose_donors` with a preferred task makes some. Not for selections.
        probe: K inputs as `branchnet.rsa` takes them: what stitches are fitted on and `merge` aligns on; 100 or more
            of the kind that the networks were trained on. With other rules `.initialisation` then also says how well
            the features of each node match those of the donors.
        kinds: for stitches how the outputs of some tasks are compared, `"classification"` or `"regression"` (the
            default), see `branchnet.stitch_affinity`.
        state: for `pretrained`: the state of one network of this backbone under its own names (heads keep the weights
            of their tasks' networks), or that of a branched network of this tree.
        seed: of `random`; of the k-th network of a selection, `seed + k`.
        example: inputs to split plain networks with.
        locations: where to split plain networks; by default at the affinity's locations.

    Returns:
        the network, the `GroupedNetworks` of a selection, or the `SharingNetwork` of a sharing; the `initialisation` of
        a network says where each node's weights come from.

    Raises:
        BuildError: tasks or depth of tree, networks and affinity that do not agree; an `init` that lacks its probe or
            state, or does not suit the donors.
        SplitError: plain networks that cannot be split.

    >>> import torch, branchnet
    >>> networks = {
    ...     task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in ("depth", "edges")
    ... }
    >>> tree = branchnet.Tree(["depth", "edges"], [[["depth", "edges"]], [["depth"], ["edges"]]])
    >>> images = torch.rand(2, 3, 16, 16)
    >>> branched = branchnet.build(tree, networks, example=images, locations=["layer1", "layer3"], init="donor").eval()
    >>> branched.donors
    (('depth',), ('depth', 'edges'))
    >>> torch.equal(branched(images)["depth"], networks["depth"].eval()(images))
    True
    """
    _check_options(init, probe, state, networks)
    staged = _staged(networks, example, locations, affinity, tree)
    tree, donors = _tree_of(tree, donors)
    if isinstance(tree, Sharing):
        if init not in ("auto", "donor"):
            raise BuildError(f"init={init!r} needs nested sharing; expected init='donor' for a Sharing")
        apart = Tree.separate(tree.tasks, tree.depth)
        check_networks(apart, staged)
        check_fit(apart, staged, affinity)
        if probe is not None or state is not None:
            raise BuildError("a Sharing is built of donors' weights as they are; expected neither probe= nor state=")
        separate = build(apart, staged, init="donor")
        return SharingNetwork(tree, separate, sharing_donors(tree, affinity) if donors is None else donors)
    if not isinstance(tree, Tree):
        if donors is not None:
            raise BuildError("donors name the nodes of one tree; expected donors=None for a selection of networks")
        return _build_groups(
            tree, staged, init=init, affinity=affinity, probe=probe, kinds=kinds, state=state, seed=seed
        )
    check_networks(tree, staged)
    tree = leaving_early(tree, staged)
    check_fit(tree, staged, affinity)
    if init == "merge" and tree.depths:
        raise BuildError(
            f"init='merge' does not know tasks that leave the trunk early, as {', '.join(tree.depths)}; expected "
            "init='stitch', 'donor' or 'mean'"
        )
    donors = choose_donors(tree, affinity) if donors is None else _checked_donors(donors, tree)
    branched = _copied(tree, staged, donors)
    _warn_of_hooks({task: staged[task] for task in tree.tasks})
    if init == "auto" and probe is None:
        _warn_of_changes(branched)
    if init == "auto":
        init = "donor" if probe is None else "stitch"
    sources = _initialise(branched, staged, init, probe, kinds, state, seed)
    from branchnet.builder.weights.initialisation import describe_start

    compared = None if init == "stitch" else probe  # a stitch says itself how well it fits
    branched.initialisation = describe_start(branched, init, sources, staged, compared)
    return branched


def _tree_of(
    given: Tree | SearchResult | Selection | Grouping | Sharing, donors: Donors | None
) -> tuple[Tree | Selection | Grouping | Sharing, Donors | None]:
    """The tree, or sharing, and the donors of a search's result; anything else as it is."""
    from branchnet.clustering import Grouping, SearchResult, Selection

    if isinstance(given, SearchResult):
        return given.sharing or given.tree, given.donors if donors is None else donors
    if not isinstance(given, Tree | Selection | Grouping | Sharing):
        raise BuildError(
            f"the tree is a {type(given).__name__}; expected a Tree, or what search, select_networks or "
            "group_by_affinity returned"
        )
    return given, donors


def _build_groups(
    chosen: Selection | Grouping, staged: Mapping[str, StagedNetwork], *, seed: int, **how: Any
) -> GroupedNetworks:
    """One network for every chosen set of tasks, trained with all of them."""
    if missing := [task for task in chosen.assignment if task not in staged]:
        raise BuildError(
            f"the selection has tasks {missing} without a network; expected one for each, found {sorted(staged)}"
        )
    depth = len(staged[next(iter(chosen.assignment))].stages)
    trees = [Tree.shared(tree.tasks, depth, early_depths(tree.tasks, staged)) for tree in chosen.trees(depth)]
    networks = [
        build(tree, {task: staged[task] for task in tree.tasks}, seed=seed + k, **how) for k, tree in enumerate(trees)
    ]
    return GroupedNetworks(networks, {task: k for k, own in enumerate(chosen.served) for task in own})


def _computed_tensors(module: nn.Module, memo: Mapping[int, Any]) -> dict[int, Tensor]:
    """Copies of tensors that hooks compute from parameters, as pruning does; deepcopy refuses those with a history."""
    return {
        id(value): value.detach().clone()
        for child in module.modules()
        for value in vars(child).values()
        if isinstance(value, Tensor) and not value.is_leaf and id(value) not in memo
    }


def _copied(tree: Tree, staged: Mapping[str, StagedNetwork], donors: Donors) -> BranchedNetwork:
    """Every node as a copy of its donor's stage."""
    # One memo of deepcopy for each donor and cluster: a tensor tied between stages of a donor is copied once, and so
    # stays tied, exactly where the same tasks go through both stages.
    memos: dict[tuple[str, tuple[str, ...]], dict[int, Any]] = {}

    def clone(module: nn.Module, donor: str, cluster: Sequence[str]) -> nn.Module:
        memo = memos.setdefault((donor, tuple(cluster)), {})
        memo.update(_computed_tensors(module, memo))
        copied = copy.deepcopy(module, memo)
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


def _initialise(
    branched: BranchedNetwork,
    staged: Mapping[str, StagedNetwork],
    init: Init,
    probe: Any,
    kinds: Mapping[str, OutputKind] | None,
    state: Mapping[str, Tensor] | None,
    seed: int,
) -> dict[str, str]:
    """Replace the donors' weights, or add to them, where that is asked for; say per node where they come from."""
    if init == "stitch":
        from branchnet.affinity.features.memory_order import in_fast_order
        from branchnet.affinity.probes import blaming_inputs, read_probe
        from branchnet.builder.stitches.top_down_fit import stitch_donors

        first = next(iter(staged.values()))
        read = in_fast_order(read_probe(probe, PROBE_BATCH, call_form(first)), staged.values())
        with blaming_inputs(read, first):
            return stitch_donors(branched, staged, read, kinds)
    if init == "mean":
        from branchnet.builder.weights.averaging import average_nodes, check_related

        check_related(branched, staged)
        average_nodes(branched, staged)
        return {n.id: f"mean of {', '.join(n.tasks)}" for n in branched.members() if len(n.tasks) > 1}
    if init == "merge":
        from branchnet.affinity.probes import read_probe
        from branchnet.builder.weights.merging import merge_donors

        return merge_donors(branched, staged, read_probe(probe, PROBE_BATCH, call_form(next(iter(staged.values())))))
    if init == "pretrained":
        from branchnet.builder.weights.pretrained_and_random import load_pretrained

        return load_pretrained(branched, state or {})
    if init == "random":
        from branchnet.builder.weights.pretrained_and_random import randomise

        return randomise(branched, seed)
    return {}


def _warn_of_hooks(staged: Mapping[str, StagedNetwork]) -> None:
    """Say which parameters have hooks on their gradients: these stay with the tensors that they were registered on."""
    found = [
        f"{task}: {original_key(name)}"
        for task, network in staged.items()
        for name, parameter in network.named_parameters()
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    ]
    if found:
        warnings.warn(
            f"hooks on the gradients of {len(found)} parameters ({', '.join(found[:3])}{', ...' if found[3:] else ''}) "
            "stay with the networks; register them on the branched network's parameters if it is to be trained so",
            stacklevel=3,
        )


def _warn_of_changes(branched: BranchedNetwork) -> None:
    from branchnet.builder.stitches.top_down_fit import foreign_edges

    if edges := foreign_edges(branched):
        shown = ", ".join(f"{edge.child.id} ({edge.child.donor}'s) after {edge.parent.donor}'s" for edge in edges[:3])
        warnings.warn(
            f"{len(edges)} nodes or heads get features of another network than they were trained on: {visible(shown)}"
            f"{', ...' if len(edges) > 3 else ''}; the network's outputs are wrong until it is trained. With probe=, "
            "100 inputs or more, build fits stitching layers there; init='donor' is without them and this warning",
            stacklevel=3,
        )


def _check_options(
    init: str, probe: Any, state: Mapping[str, Tensor] | None, networks: Mapping[str, nn.Module]
) -> None:
    check_by_task(networks, BuildError)
    if init not in get_args(Init):
        raise BuildError(f"init={init!r} is not a rule; expected one of {list(get_args(Init))}")
    if init in ("merge", "stitch") and probe is None:
        what = "aligns the donors by their activations" if init == "merge" else "fits maps between the donors' features"
        raise BuildError(f"init={init!r} {what}; expected probe=, inputs of all tasks")
    if (init == "pretrained") != (state is not None):
        given = "none was given" if state is None else f"init={init!r} was given with one"
        raise BuildError(f"init='pretrained' loads state=, and {given}; expected both or neither")


def _staged(
    networks: Mapping[str, nn.Module],
    example: Input | None,
    locations: Sequence[str] | int | None,
    affinity: Affinity | None,
    tree: Any,
) -> dict[str, StagedNetwork]:
    staged = {task: net for task, net in networks.items() if isinstance(net, StagedNetwork)}
    if len(staged) == len(networks):
        if locations is not None:
            raise BuildError(
                f"locations={locations!r} says where to split plain networks, and these are staged already; expected "
                "locations=None"
            )
        return staged
    if staged:
        plain = sorted(set(networks) - set(staged))
        raise BuildError(f"{plain} are plain networks and the others staged; expected all of one kind")
    if example is None:
        raise BuildError("expected example= to split plain networks with, or the result of branchnet.split_all")
    if locations is None and affinity is not None:
        locations = affinity.locations
    early = getattr(getattr(tree, "tree", tree), "depths", None) or (affinity is not None and affinity.depths)
    return split_all(networks, example, locations=locations, depth="auto" if early else "common")


def _checked_donors(donors: Donors, tree: Tree) -> Donors:
    shapes = [len(stage) for stage in donors], list(tree.widths)
    if shapes[0] != shapes[1]:
        raise BuildError(f"donors name {shapes[0]} nodes in the stages; expected {shapes[1]}, as the tree has")
    for stage, clusters in zip(donors, tree.partitions, strict=True):
        for donor, cluster in zip(stage, clusters, strict=True):
            if donor not in cluster:
                raise BuildError(f"donor {donor!r} is not a task of its node; expected one of {list(cluster)}")
    return donors
