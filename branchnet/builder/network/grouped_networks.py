"""Several branched networks for sets of tasks that may overlap, of which each task is served by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from branchnet.builder.network.branched_network import BranchedNetwork, Input
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.errors import BuildError


class GroupedNetworks(nn.Module):
    """Networks for overlapping sets of tasks, called like one `BranchedNetwork`.

    Each network has every task of its set, those that it serves and the auxiliary ones. They share nothing, so each is
    trained by itself, with all of its tasks: `for network in grouped.networks: branchnet.fit(network, ...)`.

    Args:
        networks: the networks, held by reference.
        serving: `{task: index}` of the network that serves each task.

    Attributes:
        tasks: the tasks that are served, in the order given.
        networks: the networks.
        serving: `{task: index into networks}`.

    Raises:
        BuildError: a task that the network serving it does not have, or no task.

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
        self.tasks = tuple(serving)
        self.networks = nn.ModuleList(networks)
        self.serving = dict(serving)

    def forward(self, x: Input, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute the outputs of `tasks`, each by the network that serves it; auxiliary tasks are not run.

        Args:
            x: what a single-task network takes: a tensor, a tuple of positional or a dict of keyword arguments.
            tasks: the tasks wanted, all by default.

        Returns:
            a dictionary of outputs by task, in task order.

        Raises:
            BuildError: an unknown task, or none; what the networks raise.
        """
        wanted = wanted_tasks(tasks, self.tasks)
        outputs: dict[str, Any] = {}
        for index, network in enumerate(self.networks):
            if own := [task for task in wanted if self.serving[task] == index]:
                outputs |= network(x, tasks=own)
        return {task: outputs[task] for task in wanted}
