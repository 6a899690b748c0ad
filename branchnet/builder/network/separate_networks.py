"""The N single-task networks as one module: what a branched network is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from branchnet.builder.network.branched_network import Input
from branchnet.builder.network.task_names import wanted_tasks
from branchnet.data.arguments import check_by_task
from branchnet.errors import BuildError
from branchnet.stages import call


class SeparateNetworks(nn.Module):
    """N single-task networks run one after another on the same input; called like a `BranchedNetwork`.

    The networks are held by reference, in the order given.

    Args:
        networks: the single-task networks by task, plain or staged.

    Attributes:
        tasks: task names in the order given.
        networks: the networks in that order.

    Raises:
        BuildError: not a mapping, or an empty one.

    >>> import torch, branchnet
    >>> separate = branchnet.SeparateNetworks({"depth": torch.nn.Linear(4, 1), "normals": torch.nn.Linear(4, 3)})
    >>> {task: tuple(output.shape) for task, output in separate(torch.zeros(2, 4)).items()}
    {'depth': (2, 1), 'normals': (2, 3)}
    """

    takes_inputs_as_one = True

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        check_by_task(networks, BuildError)
        if not networks:
            raise BuildError("networks is empty; expected a mapping of at least one task name to its network")
        self.tasks = tuple(networks)
        self.networks = nn.ModuleList(networks.values())

    def forward(self, x: Input, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute the outputs of `tasks`.

        Args:
            x: what each network takes: a tensor, a tuple of positional or a dict of keyword arguments.
            tasks: the tasks wanted, all by default.

        Returns:
            a dictionary of outputs by task, in task order.

        Raises:
            BuildError: an unknown task, or none.
        """
        wanted = wanted_tasks(tasks, self.tasks)
        return {task: call(self.networks[self.tasks.index(task)], x) for task in wanted}
