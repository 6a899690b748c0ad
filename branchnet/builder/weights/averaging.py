"""Nodes whose weights are the mean of the donors of all their tasks, and how far apart those donors are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from branchnet.builder.network.module_structure import tensors_of
from branchnet.builder.network.node import node_id
from branchnet.errors import BuildError
from branchnet.stages import StagedNetwork
from branchnet.stages.staged import Stage
from branchnet.utils.installed_torch.torch_internals import BatchNormBase

if TYPE_CHECKING:
    from branchnet.builder.network.branched_network import BranchedNetwork

UNRELATED = 0.7
"""Donors further apart than this share no ancestor: networks trained from different random weights are at about 1."""

Adapt = Callable[[str, int, str, Tensor], Tensor]
"""From (task, stage, name in the first task's network, tensor) to that tensor as it goes into the mean."""


def weight_distance(first: StagedNetwork, second: StagedNetwork, stages: int | None = None) -> float:
    """How far apart the weights of two networks are: `|v - w| / sqrt(|v|^2 + |w|^2)` over their first `stages` stages.

    0 for equal weights, 1 for unrelated ones (orthogonal, as independent random weights are), about 0.1 to 0.5 after
    fine-tuning from the same weights. Only tensors of two or more dimensions count; biases and norms are similar in any
    two networks (near 0 and 1).

    Args:
        first: a staged network.
        second: another one with equal stages.
        stages: how many stages count, from the inputs; by default all.

    Returns:
        the distance, from 0 to sqrt(2) (opposite weights).

    Raises:
        BuildError: stages of different structure.
    """
    difference = total = 0.0
    for one, other in list(zip(first.stages, second.stages, strict=False))[:stages]:
        mine, theirs = tensors_of(one), tensors_of(other)
        for name, own_name in counterparts(cast(Stage, one), cast(Stage, other)).items():
            if mine[name].dim() > 1 and mine[name].is_floating_point():
                v, w = mine[name].detach().double(), theirs[own_name].detach().double().to(mine[name].device)
                difference += float((v - w).square().sum())
                total += float(v.square().sum() + w.square().sum())
    return (difference / total) ** 0.5 if total else 0.0


def check_related(branched: BranchedNetwork, networks: Mapping[str, StagedNetwork]) -> None:
    """Refuse donors that share a stage but no ancestor.

    Args:
        branched: the network whose tree says who shares what.
        networks: the donors by task.

    Raises:
        BuildError: two of them are further apart than 0.7; the message says how far every such pair is.
    """
    tree = branched.tree
    shared = {(a, b): tree.shared_depth(a, b) for a, b in combinations(tree.tasks, 2)}
    distances = {pair: weight_distance(networks[pair[0]], networks[pair[1]], d) for pair, d in shared.items() if d}
    if far := {pair: distance for pair, distance in distances.items() if distance > UNRELATED}:
        pairs = ", ".join(f"{a!r} and {b!r}: {distance:.2f}" for (a, b), distance in list(far.items())[:10])
        raise BuildError(
            f"init='mean' needs donors with a common ancestor; distances of the stages that they share: {pairs}; "
            f"expected at most {UNRELATED} (0: equal, 1: unrelated); use init='merge', which aligns them first"
        )


def average_nodes(
    branched: BranchedNetwork,
    networks: Mapping[str, StagedNetwork],
    adapt: Adapt = lambda task, d, name, tensor: tensor,
) -> set[str]:
    """Give each node the mean over its tasks of their donors' weights and buffers.

    Integers (counters) are taken from the node's own donor. Where the `eps` of BatchNorms differ, a task's running
    variance goes into the mean with the difference to the donor's added, with which the donor's `eps` gives the same.

    Args:
        branched: the network, changed in place.
        networks: the donors by task.
        adapt: applied to every tensor before it goes into the mean.

    Returns:
        the ids of the nodes whose donors all have equal weights, so that nothing was averaged.

    Raises:
        BuildError: donors whose stages have different structures.
    """
    equal: set[str] = set()
    tree = branched.tree
    for stage, clusters in enumerate(tree.partitions):
        passing = [task for task in tree.tasks if stage < tree.depth_of(task)]
        modules = {task: cast(Stage, networks[task].stages[stage]) for task in passing}
        tensors = {task: tensors_of(module) for task, module in modules.items()}
        names = {task: counterparts(modules[passing[0]], module) for task, module in modules.items()}
        for number, cluster in enumerate(clusters):
            if not tree.is_node(stage, number):
                continue
            donor = branched.donors[stage][number]
            targets = tensors_of(branched.nodes[stage][number])  # type: ignore[index]
            same = True
            for name in names[donor]:
                own = {task: (modules[task], names[task][name]) for task in cluster}
                adapted = [
                    _at_eps_of(
                        own[donor], own[task], adapt(task, stage, name, tensors[task][names[task][name]].detach())
                    )
                    for task in cluster
                ]
                same &= all(torch.equal(adapted[0].cpu(), one.cpu()) for one in adapted[1:])
                mean = _mean(adapted) if adapted[0].is_floating_point() else adapted[cluster.index(donor)]
                with torch.no_grad():
                    targets[names[donor][name]].copy_(mean)
            if same:
                equal.add(node_id(stage, number))
    return equal


def counterparts(first: Stage, other: Stage) -> dict[str, str]:
    """Map each tensor of a stage to its name in the same stage of another network, which may use other names.

    Args:
        first: the stage.
        other: the same stage of another network.

    Raises:
        BuildError: stages of different structure; the first difference is named.
    """
    # Stages of one structure have their graphs' nodes in one order, so the n-th module of one is the n-th of the other.
    renamed: dict[str, str] = {}
    mine, theirs = tensors_of(first), tensors_of(other)
    for one, two in zip(first.graph.nodes, other.graph.nodes, strict=False):
        if one.op in ("call_module", "get_attr"):
            own, its = str(one.target), str(two.target)
            renamed |= {n: its + n[len(own) :] for n in mine if n == own or n.startswith(f"{own}.")}
    renamed = {name: renamed.get(name, name) for name in mine}
    differences = [f"{name} is in one only" for name, its_name in renamed.items() if its_name not in theirs]
    differences += [f"{name} is in the other only" for name in theirs if name not in set(renamed.values())]
    differences += [
        f"{name} is {tuple(mine[name].shape)} in one and {tuple(theirs[its_name].shape)} in the other"
        for name, its_name in renamed.items()
        if its_name in theirs and theirs[its_name].shape != mine[name].shape
    ]
    if differences:
        more = f"; {len(differences) - 1} more of its tensors differ" if differences[1:] else ""
        raise BuildError(f"two donors differ in a stage: {differences[0]}{more}")
    return renamed


def _at_eps_of(donor: tuple[Stage, str], own: tuple[Stage, str], tensor: Tensor) -> Tensor:
    """A running variance as it gives the same with the donor's `eps`; any other tensor as it is."""
    layers = [stage.get_submodule(name.rpartition(".")[0]) for stage, name in (donor, own)]
    if not (own[1].endswith("running_var") and all(isinstance(layer, BatchNormBase) for layer in layers)):
        return tensor
    wanted, eps = (float(layer.eps) for layer in layers)  # type: ignore[arg-type]
    return tensor if eps == wanted else tensor + (eps - wanted)


def _mean(tensors: list[Tensor]) -> Tensor:
    """The mean in float64, so that it does not depend on the donors' order within float32; one tensor as it is."""
    return torch.stack([tensor.cpu().double() for tensor in tensors]).mean(0) if len(tensors) > 1 else tensors[0]
