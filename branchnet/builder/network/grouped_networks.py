"""Several branched networks for sets of tasks that may overlap, of which each task is served by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.call_inputs import one_input
from branchnet.builder.network.node import Node, head_id
from branchnet.builder.network.surgery import donors_of_origins
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BuildError

if TYPE_CHECKING:
    from branchnet.stages import Interface


class GroupedNetworks(nn.Module):
    """Networks for overlapping sets of tasks, called like one `BranchedNetwork`.

    Each network has every task of its set, those that it serves and the auxiliary ones. They share nothing, so
    `branchnet.fit` and `branchnet.distill` train each by itself, with all of its tasks. What serves is one branched
    network without the auxiliary tasks, `served_network()`: `branchnet.report`, `export` and `compile` take that.

    Args:
        networks: the networks, held by reference.
        serving: `{task: index}` of the network that serves each task.

    Attributes:
        tasks: the tasks that are served, in the order given.
        networks: the networks.
        serving: `{task: index into networks}`.

    Raises:
        BuildError: a task that the network serving it does not have, no task, or networks that are cut at different
            locations.

    >>> import torch, branchnet
    >>> plain = {task: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)) for task in "abc"}
    >>> staged = branchnet.split_all(plain, torch.zeros(1, 4), locations=["0"])
    >>> effects = [[0.0, 0.5, -0.2], [0.4, 0.0, -0.1], [-0.3, -0.2, 0.0]]
    >>> grouped = branchnet.build(branchnet.group_by_affinity(effects, 2, tasks=["a", "b", "c"]), staged, init="donor")
    >>> type(grouped).__name__, [network.tasks for network in grouped.networks], grouped.serving
    ('GroupedNetworks', [('a', 'b'), ('b', 'c')], {'a': 0, 'b': 0, 'c': 1})
    >>> {task: tuple(output.shape) for task, output in grouped(torch.zeros(2, 4)).items()}
    {'a': (2, 1), 'b': (2, 1), 'c': (2, 1)}
    """

    takes_inputs_as_one = True

    def __init__(self, networks: Sequence[BranchedNetwork], serving: Mapping[str, int]) -> None:
        super().__init__()
        for task, index in serving.items():
            if not 0 <= index < len(networks) or task not in networks[index].tasks:
                raise BuildError(f"{task!r} is served by network {index}; expected one that has it")
        if not serving:
            raise BuildError("serving is empty; expected the network of at least one task")
        if len(cuts := {network.locations for network in networks}) > 1:
            raise BuildError(f"the networks are cut at {sorted(cuts)}; expected the same locations in all of them")
        self.tasks = tuple(serving)
        self.networks = nn.ModuleList(networks)
        self.serving = dict(serving)

    @property
    def interface(self) -> Interface:
        """Shapes and types of the inputs, which are those of every network."""
        return self.branched_networks[0].interface

    @property
    def branched_networks(self) -> tuple[BranchedNetwork, ...]:
        """The networks, as a tuple."""
        return tuple(cast("BranchedNetwork", network) for network in self.networks)

    def forward(self, *inputs: Any, tasks: Sequence[str] | None = None, **named: Any) -> dict[str, Any]:
        """Compute the outputs of `tasks`, each by the network that serves it; auxiliary tasks are not run.

        Args:
            *inputs: as of `BranchedNetwork.forward`.
            tasks: the tasks wanted, all by default.
            **named: as of `BranchedNetwork.forward`.

        Returns:
            a dictionary of outputs by task, in task order.

        Raises:
            BuildError: an unknown task, or none; what the networks raise.
        """
        x, tasks = one_input(inputs, tasks, named, self.interface)
        wanted = wanted_tasks(tasks, self.tasks)
        outputs: dict[str, Any] = {}
        for index, network in enumerate(self.networks):
            if own := [task for task in wanted if self.serving[task] == index]:
                outputs |= network(x, tasks=own)
        return {task: outputs[task] for task in wanted}

    def served_network(self) -> BranchedNetwork:
        """Return what serves as one branched network: auxiliary tasks, and nodes for them alone, are left out.

        Its modules are those of the networks here, so training these changes it, too.

        Returns:
            a network of `tasks`, which share stages where one network serves them.
        """
        networks = self.branched_networks
        depths = {task: networks[self.serving[task]].tree.depth_of(task) for task in self.tasks}
        tree = Tree(self.tasks, self._served_partitions(), depths)
        origins = [[self._origin(cluster[0], d) for cluster in row] for d, row in enumerate(tree.partitions)]
        heads = [self._origin(task, tree.depth) for task in tree.tasks]
        holders = {task: networks[self.serving[task]] for task in tree.tasks}
        served = BranchedNetwork(
            tree,
            [[node.module for node in row] for row in origins],
            [head.module for head in heads],
            locations=networks[0].locations,
            donors=donors_of_origins(tree, origins),
            costs=networks[0].costs,
            head_costs={task: holder.head_costs[task] for task, holder in holders.items()},
            interface=self.interface,
            constructors={task: holder.constructors[task] for task, holder in holders.items()},
            eval_only="; ".join(dict.fromkeys(network.eval_only for network in networks if network.eval_only)),
        )
        frozen = {id(node.module) for network in networks for node in network.members() if node.id in network.frozen}
        served.frozen = frozenset(node.id for node in served.members() if id(node.module) in frozen)
        served.recomputed = frozenset[int]().union(*(network.recomputed for network in networks))
        for container in (served, served.nodes, *served.nodes, served.heads):
            container.training = self.training  # `train` would change the modes of the nodes, which are shared
        return served

    def _served_partitions(self) -> list[list[tuple[str, ...]]]:
        """For each stage the clusters of all networks, without the tasks that a network does not serve."""
        networks = self.branched_networks
        return [
            [
                kept
                for k, network in enumerate(networks)
                for cluster in network.tree.partitions[d]
                if (kept := tuple(task for task in cluster if self.serving.get(task) == k))
            ]
            for d in range(networks[0].tree.depth)
        ]

    def _origin(self, task: str, stage: int) -> Node:
        """The node that computes a stage of a task, or after the last stage its head, in the network that serves it."""
        network = self.branched_networks[self.serving[task]]
        if stage == network.tree.depth:
            return network.member(head_id(network.tasks.index(task)))
        return network.place(stage, network.tree.cluster_of(task, stage))


def as_one_network(network: BranchedNetwork | GroupedNetworks) -> BranchedNetwork:
    """Return the network that serves: `served_network()` of grouped ones, any other as it is."""
    return network.served_network() if isinstance(network, GroupedNetworks) else network
