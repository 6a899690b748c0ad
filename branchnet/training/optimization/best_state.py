"""The best state of a training run by held-out samples, step 0 included, kept and put back at the end.

It is a module, so that a checkpoint keeps it with the other modules of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from branchnet.errors import TrainingError


class BestState(nn.Module):
    """The trained tensors of a network as they were when the mean of its tasks' losses was smallest.

    Args:
        network: what is trained; its parameters that need gradients and its buffers are kept.
        tasks: the tasks that are measured, in order.

    Attributes:
        first: (N,) the losses before training; NaN before they are known.
        best: (N,) the smallest ones so far.
        step: the step that they were measured before.
    """

    first: Tensor
    best: Tensor
    step: Tensor

    def __init__(self, network: nn.Module, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.network = [network]  # in a list, or its tensors would be a part of this module's state
        self.tasks = tasks
        for name in ("first", "best"):
            self.register_buffer(name, torch.full((len(tasks),), math.nan, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(-1))
        for number, tensor in enumerate(self._tensors()):
            self.register_buffer(f"kept_{number}", tensor.detach().clone())

    def _tensors(self) -> list[Tensor]:
        network = self.network[0]
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return [*trained, *network.buffers()]

    def keep(self, step: int, losses: Mapping[str, float], cause: Callable[[], str] = str) -> None:
        """Keep the network where it is better than before.

        Args:
            step: how many steps have been taken.
            losses: each task's loss on held-out samples now.
            cause: says why losses are not finite, where that is known.

        Raises:
            TrainingError: a loss that is not finite before the first step.
        """
        values = torch.tensor([losses[task] for task in self.tasks], dtype=torch.float64)
        if step == 0 and not bool(values.isfinite().all()):
            raise TrainingError(
                f"the losses on the held-out samples are {dict(losses)} before training; "
                f"{cause() or 'expected finite numbers'}"
            )
        if step == 0:
            self.first.copy_(values)
        if step == 0 or float(values.mean()) < float(self.best.mean()):
            self.best.copy_(values)
            self.step.fill_(step)
            for number, tensor in enumerate(self._tensors()):
                getattr(self, f"kept_{number}").copy_(tensor.detach())

    def put_back(self) -> None:
        """Give the network the tensors that were kept."""
        with torch.no_grad():
            for number, tensor in enumerate(self._tensors()):
                tensor.copy_(getattr(self, f"kept_{number}"))

    def losses(self, when: str) -> dict[str, float]:
        """Each task's loss on the held-out samples.

        Args:
            when: `first` (before training) or `best`.

        Returns:
            losses by task.
        """
        return dict(zip(self.tasks, getattr(self, when).tolist(), strict=True))
