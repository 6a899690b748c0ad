"""A network that computes one task at a time and holds one copy of what several tasks share: memory mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from branchnet.builder.network.branched_network import BranchedNetwork, Input
from branchnet.builder.network.call_inputs import check_input
from branchnet.builder.network.node import check_trainable
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.builder.network.task_path import TaskPath
from branchnet.errors import BuildError
from branchnet.stages import call
from branchnet.stages.interface import explaining

if TYPE_CHECKING:
    from branchnet.clustering import Sharing
    from branchnet.stages import Interface


class SharingNetwork(nn.Module):
    """N tasks of which one is computed for each input; stages are shared as a `Sharing` says, which is not nested.

    Made by `branchnet.build(sharing, networks)`. A call runs as much as one single-task network does: what is saved is
    memory, not computation.

    Args:
        sharing: D partitions of the tasks.
        separate: a network in which every task has a path of its own; of each cluster the modules of the donor are
            kept, by reference.
        donors: for each stage the donor of each cluster, in the order of `sharing.partitions`.

    Attributes:
        sharing: which tasks share which stage.
        donors: whose weights each node starts from.
        nodes: for each stage the modules of its clusters.
        heads: the modules of the tasks' heads, in task order.

    Raises:
        BuildError: other tasks or another depth than the networks have, or donors outside their clusters.

    >>> import torch, branchnet
    >>> tasks = ["depth", "edges", "normals"]
    >>> networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in tasks}
    >>> stages = [[["depth", "edges"], ["normals"]], [["depth"], ["edges", "normals"]]]
    >>> sharing = branchnet.Sharing(tasks, stages)
    >>> images = torch.zeros(2, 3, 16, 16)
    >>> network = branchnet.build(sharing, networks, example=images, locations=["layer1", "layer3"])
    >>> network(images, task="edges").shape, network.donors
    (torch.Size([2, 1, 16, 16]), (('depth', 'normals'), ('depth', 'edges')))
    """

    takes_inputs_as_one = True

    def __init__(self, sharing: Sharing, separate: BranchedNetwork, donors: Sequence[Sequence[str]]) -> None:
        super().__init__()
        _check(sharing, separate, donors)
        self.sharing = sharing
        self.donors = tuple(tuple(stage) for stage in donors)
        self.nodes = nn.ModuleList(
            nn.ModuleList(separate.place(d, separate.tree.cluster_of(donor, d)).module for donor in stage)
            for d, stage in enumerate(self.donors)
        )
        self.heads = nn.ModuleList(separate.heads[separate.tasks.index(task)] for task in sharing.tasks)
        self.locations, self.costs = separate.locations, separate.costs
        self.head_costs, self.constructors = separate.head_costs, separate.constructors
        self.interface: Interface = separate.interface
        self.eval_only = separate.eval_only
        self.training = separate.training

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in the order of the heads."""
        return self.sharing.tasks

    def train(self, mode: bool = True) -> SharingNetwork:
        """Switch between training and evaluation.

        Args:
            mode: whether to train.

        Returns:
            this network.

        Raises:
            SplitError: training is asked for and a node can only be evaluated.
        """
        if mode:
            check_trainable([*(node for stage in self.nodes for node in stage.children()), *self.heads])
        super().train(mode)
        return self

    def forward(self, x: Input, task: str) -> Any:
        """Compute the output of one task.

        Args:
            x: what a single-task network takes: a tensor, a tuple of positional or a dict of keyword arguments.
            task: the task that the inputs belong to.

        Returns:
            what the task's network returns.

        Raises:
            BuildError: an unknown task, inputs of another form, or inputs that cannot be run and differ from the
                example that the networks were split with.
        """
        if torch.compiler.is_compiling():
            return call(self.path(task), x)
        check_input(x, self.interface)
        with explaining(x, self.interface, BuildError, "the network"):
            return call(self.path(task), x)

    def path(self, task: str) -> TaskPath:
        """Return the nodes and the head that compute one task, as a network of that task; they are not copied.

        Args:
            task: the task.

        Returns:
            that network; its modules are those of this one.

        Raises:
            BuildError: an unknown task.
        """
        (task,) = wanted_tasks([task], self.tasks)
        nodes = [row[self.sharing.cluster_of(task, d)] for d, row in enumerate(self.nodes)]  # type: ignore[index]
        return TaskPath(nodes, self.heads[self.tasks.index(task)], self.locations)

    def separate_paths(self) -> BranchedNetwork:
        """Return the tasks' paths as a branched network of separate ones; its modules are those of this network.

        Returns:
            a network whose tree is `Tree.separate`, in which nodes of one cluster are one module.
        """
        from branchnet.clustering import Tree

        depth = self.sharing.depth
        separate = BranchedNetwork(
            Tree.separate(self.tasks, depth),
            [[self.nodes[d][self.sharing.cluster_of(t, d)] for t in self.tasks] for d in range(depth)],  # type: ignore[index]
            list(self.heads),
            locations=self.locations,
            donors=[self.tasks] * depth,  # of the paths as they would be alone; `donors` has those of the nodes
            costs=self.costs,
            head_costs=self.head_costs,
            interface=self.interface,
            constructors=self.constructors,
            eval_only=self.eval_only,
        )
        for container in (separate, separate.nodes, *separate.nodes, separate.heads):
            container.training = self.training  # `train` would change the modes of the nodes, which are shared
        return separate


def _check(sharing: Sharing, separate: BranchedNetwork, donors: Sequence[Sequence[str]]) -> None:
    if set(sharing.tasks) != set(separate.tasks):
        raise BuildError(f"the sharing has tasks {list(sharing.tasks)}, the networks {list(separate.tasks)}")
    if sharing.depth != len(separate.nodes):
        raise BuildError(f"the sharing has {sharing.depth} stages, the networks {len(separate.nodes)}")
    if separate.tree.depths:
        raise BuildError(
            f"{', '.join(separate.tree.depths)} leave the trunk early; expected tasks that pass every stage"
        )
    fitting = len(donors) == sharing.depth and all(
        len(stage) == len(clusters) and all(donor in cluster for donor, cluster in zip(stage, clusters, strict=True))
        for stage, clusters in zip(donors, sharing.partitions, strict=False)
    )
    if not fitting:
        raise BuildError(f"donors is {donors}; expected for each stage one task of each of {sharing.partitions}")
