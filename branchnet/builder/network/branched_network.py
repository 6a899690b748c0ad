"""The branched network: one module per node of a tree, one head per task, run as far as the requested tasks need.

The module of cluster k at stage d is `nodes.<d>.<k>`; the head of the i-th task is `heads.<i>` (see `node`). Those ids
are stable whatever the tasks are called; `tree`, `tasks` and `locations` carry the readable names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from branchnet.builder.network.call_inputs import Input as Input
from branchnet.builder.network.call_inputs import check_input, one_input
from branchnet.builder.network.node import Node, check_trainable, head_id, node_id
from branchnet.builder.network.recompute import recomputed
from branchnet.builder.network.task_names import did_you_mean, wanted_tasks
from branchnet.builder.network.task_path import TaskPath
from branchnet.errors import BuildError
from branchnet.stages import call
from branchnet.stages.costs import StageCost, StageCosts
from branchnet.stages.interface import explaining
from branchnet.stitching.stitch import Stitch, StitchedStage

if TYPE_CHECKING:
    from branchnet.builder.weights.initialisation import Initialisation
    from branchnet.clustering import Tree
    from branchnet.models.constructors import Constructor
    from branchnet.stages import Interface


class BranchedNetwork(nn.Module):
    """N tasks computed by one network whose stages are shared as a tree says.

    Made by `branchnet.build`; calling it with the inputs of a single-task network gives `{task: output}` in task order.

    Args:
        tree: D stages over the tasks.
        nodes: for each stage the modules of its clusters, in the order of `tree.partitions`; a task that has left the
            trunk has an empty one there, which returns what it takes and is no node.
        heads: the modules of the tasks' heads, in the order of `tree.tasks`.
        locations, donors, costs, head_costs, interface, constructors, eval_only: the attributes of these names.

    Attributes:
        tree: which tasks share which stage.
        locations: D names, the ends of the stages.
        donors: for each stage the donor task of each node, in the order of `tree.partitions`.
        costs: cost of one copy of each stage.
        head_costs: cost of each task's head.
        interface: shapes and types of the inputs.
        constructors: how each task's network is made again, None where only its owner knows.
        eval_only: why the network cannot be trained; empty where it can.
        initialisation: where `build` took the weights of each node from; None in a network that was changed
            (a task added, a node split) or whose file does not tell.
        frozen: ids of the nodes and heads that training leaves alone, see `freeze`.
        recomputed: numbers of the stages whose activations are not kept for the backward pass, see `recompute`.

    >>> import torch, branchnet
    >>> networks = {
    ...     task: branchnet.create("branchnet:scene_network", outputs=outputs, width=2)
    ...     for task, outputs in {"depth": 1, "edges": 1, "normals": 3}.items()
    ... }
    >>> images = torch.zeros(2, 3, 16, 16)
    >>> tree = branchnet.Tree(list(networks), [[["depth", "edges", "normals"]], [["depth", "edges"], ["normals"]]])
    >>> branched = branchnet.build(tree, networks, example=images, locations=["layer1", "layer3"], init="donor")
    >>> [node.id for node in branched.members()]
    ['nodes.0.0', 'nodes.1.0', 'nodes.1.1', 'heads.0', 'heads.1', 'heads.2']
    >>> list(branched(images, tasks=["normals"]))  # runs nodes.0.0, nodes.1.1 and heads.2 only
    ['normals']
    """

    takes_inputs_as_one = True
    initialisation: Initialisation | None

    def __init__(
        self,
        tree: Tree,
        nodes: Sequence[Sequence[nn.Module]],
        heads: Sequence[nn.Module],
        *,
        locations: Sequence[str],
        donors: Sequence[Sequence[str]],
        costs: StageCosts,
        head_costs: Mapping[str, StageCost],
        interface: Interface,
        constructors: Mapping[str, Constructor | None],
        eval_only: str = "",
    ) -> None:
        super().__init__()
        self.tree = tree
        self.locations = tuple(locations)
        self.donors = tuple(tuple(stage) for stage in donors)
        self.costs = costs
        self.head_costs = dict(head_costs)
        self.interface = interface
        self.constructors = dict(constructors)
        self.eval_only = eval_only
        self.nodes = nn.ModuleList(nn.ModuleList(stage) for stage in nodes)
        self.heads = nn.ModuleList(heads)
        self.initialisation = None
        self.frozen: frozenset[str] = frozenset()
        self.recomputed: frozenset[int] = frozenset()
        self._clusters = tree.labels()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in the order of the heads."""
        return tuple(self.tree.tasks)

    def forward(self, *inputs: Any, tasks: Sequence[str] | None = None, **named: Any) -> dict[str, Any]:
        """Compute the outputs of `tasks` (all by default), running only the nodes on their paths.

        Args:
            *inputs: `x`, what a single-task network takes: a tensor, a tuple of positional or a dict of keyword
                arguments; after it may follow `tasks`. Or the positional arguments one by one.
            tasks: the tasks wanted, in any order.
            **named: in place of `inputs`, the keyword arguments of a single-task network, as in `branched(**batch)`.

        Returns:
            A dictionary of outputs by task, in task order.

        Raises:
            BuildError: a task that the network does not know, inputs of another form, or inputs that cannot be run and
                differ from the example that the networks were split with.
        """
        x, tasks = one_input(inputs, tasks, named, self.interface)
        # Dynamo cannot trace the checks below into one graph; `CompiledNetwork` makes them before it calls the graph.
        if torch.compiler.is_compiling():
            return self._outputs(x, tasks)
        check_input(x, self.interface)
        with explaining(x, self.interface, BuildError, "the network"):
            return self._outputs(x, tasks)

    def _outputs(self, x: Input, tasks: Sequence[str] | None) -> dict[str, Any]:
        last = self.trunk(x, tasks)
        return {task: head(*last[task]) for task, head in zip(self.tasks, self.heads, strict=True) if task in last}

    def trunk(self, x: Input, tasks: Sequence[str] | None = None) -> dict[str, tuple[Any, ...]]:
        """Compute what the heads of `tasks` take: the cut at the last location of each task's path.

        Args:
            x: as for `forward`; its form is not checked.
            tasks: the tasks wanted, all by default.

        Returns:
            for each task, in task order, the values that cross the last location.

        Raises:
            BuildError: a task that the network does not know.
        """
        names = self.tasks
        wanted = [names.index(task) for task in wanted_tasks(tasks, names)]
        cuts: dict[int, tuple[Any, ...]] = {}
        for stage, row in enumerate(self.nodes):
            computed: dict[int, tuple[Any, ...]] = {}
            for task in wanted:
                cluster = self._clusters[stage][task]
                if cluster not in computed:
                    before = cuts[self._clusters[stage - 1][task]] if stage else x
                    computed[cluster] = self._run(stage, row[cluster], before)  # type: ignore[index]
            cuts = computed  # earlier cuts are released here: memory holds those of one stage
        return {names[task]: cuts[self._clusters[-1][task]] for task in wanted}

    def _run(self, stage: int, node: nn.Module, before: Any) -> Any:
        if stage in self.recomputed and node.training and torch.is_grad_enabled():
            return recomputed(node, before, call if stage == 0 else _spread)
        return node(*before) if stage else call(node, before)

    def path(self, task: str) -> TaskPath:
        """Return the nodes and the head that compute one task, as a network of that task; they are not copied.

        Args:
            task: the task.

        Returns:
            that network; its modules are those of this one.

        Raises:
            BuildError: a task that the network does not know.
        """
        (task,) = wanted_tasks([task], self.tasks)
        depth = self.tree.depth_of(task)
        nodes = [self.place(d, self.tree.cluster_of(task, d)).module for d in range(depth)]
        return TaskPath(nodes, self.heads[self.tasks.index(task)], self.locations[:depth])

    def members(self) -> Iterator[Node]:
        """Go through the nodes from input to output, then through the heads.

        Returns:
            an iterator of them.
        """
        for stage, clusters in enumerate(self.tree.partitions):
            for k in range(len(clusters)):
                if self.tree.is_node(stage, k):
                    yield self.place(stage, k)
        for i, task in enumerate(self.tasks):
            yield Node(self.tree.depth, i, (task,), task, self.heads[i], is_head=True)

    def place(self, stage: int, index: int) -> Node:
        """Return what stands at a cluster: its node, or the empty one of a task that has left the trunk.

        Args:
            stage: number of the stage.
            index: number of the cluster.

        Returns:
            the node.
        """
        module = self.nodes[stage][index]  # type: ignore[index]
        return Node(stage, index, self.tree.partitions[stage][index], self.donors[stage][index], module)

    def member(self, name: str) -> Node:
        """Return the node or head of an id; `member(id).module.eval()` changes the mode of one node.

        Args:
            name: the id, e.g. `nodes.2.0`.

        Returns:
            the node or head.

        Raises:
            BuildError: no such id.
        """
        known = {node.id: node for node in self.members()}
        if name not in known:
            raise BuildError(f"unknown node {name!r}{did_you_mean(name, known)}")
        return known[name]

    def parent_of(self, node: Node) -> str:
        """Name the node whose result a node or head takes.

        Args:
            node: a node or head of this network.

        Returns:
            the id of the node before it; empty for a node of stage 0.
        """
        before = (self.tree.depth_of(node.tasks[0]) if node.is_head else node.stage) - 1
        return node_id(before, self.tree.cluster_of(node.tasks[0], before)) if node.stage else ""

    @property
    def stitches(self) -> dict[tuple[str, str], Stitch]:
        """The stitching layers, by the ids of the node before and of the node or head after each."""
        return {
            (self.parent_of(node), node.id): node.module.stitch
            for node in self.members()
            if isinstance(node.module, StitchedStage)
        }

    def replace(self, node: Node, module: nn.Module) -> None:
        """Put another module in the place of a node's or head's.

        Args:
            node: a node or head of this network.
            module: what takes its place; called in the same way.
        """
        row = self.heads if node.is_head else self.nodes[node.stage]
        cast("nn.ModuleList", row)[node.index] = module

    def freeze(self, *names: str) -> None:
        """Leave nodes alone in training: no gradients, and eval mode whatever `train()` says.

        Args:
            names: ids of nodes and heads, or tasks: all that such a task's output depends on, so that it stays bitwise
                identical while the rest is trained. A tensor that a frozen node shares with another is frozen there.

        Raises:
            BuildError: no such id or task.
        """
        self._set_frozen(self.frozen | self._ids(names))

    def unfreeze(self, *names: str) -> None:
        """Let nodes be trained again.

        Args:
            names: as for `freeze`.

        Raises:
            BuildError: no such id or task.
            SplitError: the network is in training mode, and such a node can only be evaluated.
        """
        self._set_frozen(self.frozen - self._ids(names))

    def _ids(self, names: Iterable[str]) -> frozenset[str]:
        ids = {node.id: {node.id} for node in self.members()}
        for i, task in enumerate(self.tasks):
            path = {node_id(d, labels[i]) for d, labels in enumerate(self._clusters[: self.tree.depth_of(task)])}
            ids.setdefault(task, path | {head_id(i)})
        if unknown := [name for name in names if name not in ids]:
            raise BuildError(f"unknown node or task {unknown[0]!r}{did_you_mean(unknown[0], ids)}")
        return frozenset[str]().union(*(ids[name] for name in names))

    def _set_frozen(self, frozen: frozenset[str]) -> None:
        if self.training:
            check_trainable(node.module for node in self.members() if node.id in self.frozen - frozen)
        touched, self.frozen = self.frozen | frozen, frozen
        # What stays frozen comes last, for the tensors that it shares with what is let go.
        members = [node for node in self.members() if node.id in touched]
        for node in sorted(members, key=lambda node: node.id in frozen):
            for parameter in node.module.parameters():
                trainable = parameter.is_floating_point() or parameter.is_complex()
                parameter.requires_grad_(trainable and node.id not in frozen)
            node.module.train(self.training and node.id not in frozen)

    def train(self, mode: bool = True) -> BranchedNetwork:
        """Switch every node between training and evaluation; frozen nodes stay in evaluation.

        Args:
            mode: whether to train.

        Returns:
            this network.

        Raises:
            SplitError: training is asked for and a node can only be evaluated; all modes are as before then.
        """
        members = list(self.members())
        active = [node.module for node in members if node.id not in self.frozen]
        if mode:
            check_trainable(active)
        # The containers get their flag alone: `train()` on one of them would reach the frozen nodes inside.
        for container in (self, self.nodes, *self.nodes, self.heads):
            container.training = mode
        others = [child for name, child in self.named_children() if name not in ("nodes", "heads")]
        rows = enumerate(self.tree.widths)
        left = [self.place(d, k).module for d, width in rows for k in range(width) if not self.tree.is_node(d, k)]
        for module in (*others, *active, *left):
            module.train(mode)
        for node in members:  # last, for the modules that they share with others
            if node.id in self.frozen:
                node.module.eval()
        return self

    def recompute(self, *locations: str) -> None:
        """Trade time for memory in training: keep no activations inside the stages that end at these locations.

        They are computed a second time in the backward pass (activation checkpointing), with the same results.

        Args:
            locations: ends of stages; none switches recomputation off again.

        Raises:
            BuildError: no such location.
        """
        if unknown := [name for name in locations if name not in self.locations]:
            raise BuildError(f"unknown location {unknown[0]!r}{did_you_mean(unknown[0], self.locations)}")
        self.recomputed = frozenset(self.locations.index(name) for name in locations)

    def add_task(self, name: str, network: nn.Module, *, beside: str, until: str | None) -> BranchedNetwork:
        """Return this network with one more task; `branchnet.builder.add_task` can fit a stitching layer, too.

        Args:
            name, network, beside, until: as for `branchnet.builder.add_task`.

        Returns:
            a new network; this one stays as it is.

        Raises:
            BuildError: as `branchnet.builder.add_task`.
        """
        from branchnet.builder.network.surgery import add_branch

        return add_branch(self, name, network, beside=beside, until=until)[0]

    def remove_task(self, name: str) -> BranchedNetwork:
        """Return this network without one task.

        Args:
            name: the task.

        Returns:
            a new network; this one stays as it is.

        Raises:
            BuildError: as `branchnet.builder.remove_task`.
        """
        from branchnet.builder.network.surgery import remove_task

        return remove_task(self, name)

    def merge_nodes(self, kept: str, *others: str) -> BranchedNetwork:
        """Return this network with several nodes as one.

        Args:
            kept, others: as for `branchnet.builder.merge_nodes`.

        Returns:
            a new network; this one stays as it is.

        Raises:
            BuildError: as `branchnet.builder.merge_nodes`.
        """
        from branchnet.builder.network.surgery import merge_nodes

        return merge_nodes(self, kept, *others)

    def split_node(self, node: str, groups: Sequence[Sequence[str]]) -> BranchedNetwork:
        """Return this network with a node split into copies.

        Args:
            node, groups: as for `branchnet.builder.split_node`.

        Returns:
            a new network; this one stays as it is.

        Raises:
            BuildError: as `branchnet.builder.split_node`.
        """
        from branchnet.builder.network.surgery import split_node

        return split_node(self, node, groups)


def _spread(node: nn.Module, cut: tuple[Any, ...]) -> Any:
    return node(*cut)
