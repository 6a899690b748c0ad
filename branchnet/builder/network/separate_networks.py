"""The N single-task networks as one module: what a branched network is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from branchnet.builder.network.branched_network import Input, wanted_tasks
from branchnet.errors import BuildError
from branchnet.stages import call


class SeparateNetworks(nn.Module):
    """N single-task networks run one after another on the same input; called like a `BranchedNetwork`.

    The networks are held by reference, in the order given.
    """

    takes_inputs_as_one = True

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not isinstance(networks, Mapping) or not networks:
            raise BuildError(f"networks must be a mapping of task names to networks; {networks!r} was given")
        self.tasks = tuple(networks)
        self.networks = nn.ModuleList(networks.values())

    def forward(self, x: Input, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute `{task: output}` for `tasks`, all by default."""
        wanted = wanted_tasks(tasks, self.tasks)
        return {task: call(self.networks[self.tasks.index(task)], x) for task in wanted}
