"""Which node of a branched network runs on which stream of a GPU, and what each stream waits for: a plan, not run here.

A stream is a queue: what is issued to it runs in that order. Stream 0 is the caller's. Every task has a stream of its
own; a node runs on that of the first of its tasks. So each side stream runs one chain of nodes that ends in its task's
head: it begins when the node above has finished (or the inputs are there) and waits for nothing else. At last stream 0
waits for the end of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from branchnet.builder.network.node import head_id, node_id
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.clustering import Tree

INPUTS = "inputs"
"""Stands in a schedule for the inputs, which are there when stream 0 gets to the call."""


@dataclass(frozen=True)
class Step:
    """One node or head to issue.

    Attributes:
        id: `nodes.<stage>.<k>` or `heads.<i>`.
        reads: the id whose result it takes, or `inputs`.
        stream: the number of the stream that it is issued to.
        waits: whether the stream waits for `reads`, which ran on another stream, first.
        is_head: whether it is a head.
    """

    id: str
    reads: str
    stream: int
    waits: bool
    is_head: bool = False


@dataclass(frozen=True)
class Schedule:
    """All steps in the order in which they are issued: stage by stage, so that all streams have work early.

    Attributes:
        tasks: the tasks computed; `tasks[s]` names stream s.
        steps: nodes from input to output, then heads.
    """

    tasks: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def awaited(self) -> frozenset[str]:
        """The ids of what another stream waits for: an event is recorded after each of these."""
        ends = {step.id for step in self.steps if step.is_head and step.stream}
        return frozenset(ends | {step.reads for step in self.steps if step.waits})

    def __str__(self) -> str:
        lines = []
        for stream, task in enumerate(self.tasks):
            mine = [step for step in self.steps if step.stream == stream]
            start = f"after {mine[0].reads}: " if stream else ""
            lines.append(f"stream {stream} ({visible(task)}): {start}{', '.join(step.id for step in mine)}")
        if len(self.tasks) > 1:
            lines.append(f"stream 0 waits for {', '.join(f'stream {s}' for s in range(1, len(self.tasks)))}")
        return "\n".join(lines)


def make_schedule(tree: Tree, tasks: Sequence[str] | None = None) -> Schedule:
    """Plan the nodes and heads that `tasks` need.

    Args:
        tree: which tasks share which stage.
        tasks: the tasks wanted, all by default.

    Returns:
        the plan; print it to read it.

    Raises:
        BuildError: a task that the tree does not have.
    """
    wanted = wanted_tasks(tasks, tree.tasks)
    above = dict.fromkeys(wanted, INPUTS)
    on = dict.fromkeys(wanted, 0)
    steps: list[Step] = []

    def issue(name: str, members: Sequence[str], *, is_head: bool = False) -> None:
        first = members[0]
        stream = wanted.index(first)
        steps.append(Step(name, above[first], stream, waits=stream != on[first], is_head=is_head))
        for task in members:
            above[task], on[task] = name, stream

    for stage in range(tree.depth):
        served: dict[int, list[str]] = {}
        for task in wanted:
            served.setdefault(tree.cluster_of(task, stage), []).append(task)
        for cluster, members in served.items():
            if not tree.is_node(stage, cluster):
                continue  # its head takes what its last node returned
            issue(node_id(stage, cluster), members)
    for task in wanted:
        issue(head_id(tree.tasks.index(task)), [task], is_head=True)
    return Schedule(wanted, tuple(steps))
