"""The N single-task networks as one module: what a branched network is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from branchnet.builder.network.call_inputs import one_input
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

    def forward(self, *inputs: Any, tasks: Sequence[str] | None = None, **named: Any) -> dict[str, Any]:
        """Compute the outputs of `tasks`.

        Args:
            *inputs: `x`, what each network takes: a tensor, a tuple of positional or a dict of keyword arguments; after
                it may follow `tasks`. Or the positional arguments one by one.
            tasks: the tasks wanted, all by default.
            **named: in place of `inputs`, keyword arguments of each network.

        Returns:
            a dictionary of outputs by task, in task order.

        Raises:
            BuildError: an unknown task, or none; no input, or inputs by position as well as by name.
        """
        x, tasks = one_input(inputs, tasks, named, None)
        wanted = wanted_tasks(tasks, self.tasks)
        return {task: call(self.networks[self.tasks.index(task)], x) for task in wanted}
