"""The branched network: one module per node of a tree, one head per task, run as far as the requested tasks need.

Stage d of the tree's cluster k is the module `nodes.<d>.<k>`; the head of the i-th task is `heads.<i>`. Those ids are
stable whatever the tasks are called; `tree`, `tasks` and `locations` carry the readable names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from branchnet.errors import BuildError
from branchnet.stages import call
from branchnet.stages.costs import StageCost, StageCosts

if TYPE_CHECKING:
    from branchnet.clustering import Tree
    from branchnet.constructors import Constructor
    from branchnet.stages import Interface

Input = Tensor | tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """One node of a branched network, or the head of one task.

    Attributes:
        id: the module's name, `nodes.<stage>.<k>` or `heads.<i>`.
        tasks: the tasks that it serves.
        donor: the task whose single-task network gave the initial weights.
        module: the module itself.
    """

    id: str
    tasks: tuple[str, ...]
    donor: str
    module: nn.Module


class BranchedNetwork(nn.Module):
    """N tasks computed by one network whose stages are shared as a tree says.

    Made by `branchnet.build`; calling it with the inputs of a single-task network gives `{task: output}` in task order.

    Attributes:
        tree: which tasks share which stage.
        locations: D names, the ends of the stages.
        donors: for each stage the donor task of each node, in the order of `tree.partitions`.
        costs: cost of one copy of each stage.
        head_costs: cost of each task's head.
        interface: shapes and types of the inputs.
        constructors: how each task's network is made again, None where only its owner knows.
        eval_only: why the network cannot be trained; empty where it can.
    """

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
        self._clusters = tree.labels()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in the order of the heads."""
        return tuple(self.tree.tasks)

    def forward(self, x: Input, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute the outputs of `tasks` (all by default), running only the nodes on their paths.

        Args:
            x: what a single-task network takes: a tensor, a tuple of positional or a dict of keyword arguments.
            tasks: the tasks wanted, in any order.

        Returns:
            `{task: output}` in task order.

        Raises:
            BuildError: a task that the network does not know.
        """
        last = self.trunk(x, tasks)
        return {task: head(*last[task]) for task, head in zip(self.tasks, self.heads, strict=True) if task in last}

    def trunk(self, x: Input, tasks: Sequence[str] | None = None) -> dict[str, tuple[Any, ...]]:
        """Compute what the heads of `tasks` take, in task order: the cut at the last location of each task's path."""
        names = self.tasks
        wanted = [names.index(task) for task in wanted_tasks(tasks, names)]
        cuts: dict[int, tuple[Any, ...]] = {}
        for stage, row in enumerate(self.nodes):
            computed: dict[int, tuple[Any, ...]] = {}
            for task in wanted:
                cluster = self._clusters[stage][task]
                if cluster not in computed:
                    node = row[cluster]  # type: ignore[index]
                    computed[cluster] = node(*cuts[self._clusters[stage - 1][task]]) if stage else call(node, x)
            cuts = computed
        return {names[task]: cuts[self._clusters[-1][task]] for task in wanted}

    def members(self) -> Iterator[Node]:
        """Every node from input to output, then every head."""
        for stage, (row, clusters, donors) in enumerate(
            zip(self.nodes, self.tree.partitions, self.donors, strict=True)
        ):
            for k, (cluster, donor) in enumerate(zip(clusters, donors, strict=True)):
                yield Node(f"nodes.{stage}.{k}", tuple(cluster), donor, row[k])  # type: ignore[index]
        for i, task in enumerate(self.tasks):
            yield Node(f"heads.{i}", (task,), task, self.heads[i])


def wanted_tasks(tasks: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The tasks asked for, all by default, in the order of `known`.

    Raises:
        BuildError: none, or one that is not known.
    """
    if tasks is None:
        return tuple(known)
    if isinstance(tasks, str) or not tasks or any(task not in known for task in tasks):
        raise BuildError(f"tasks must be a non-empty sequence of {list(known)}; {tasks!r} was given")
    return tuple(task for task in known if task in tasks)
