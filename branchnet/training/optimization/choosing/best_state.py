"""The best state of a training run by held-out samples, step 0 included, kept and put back at the end.

It is a module, so that a checkpoint keeps it with the other modules of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from branchnet.errors import TrainingError
from branchnet.training.optimization.choosing.held_out_judge import Judge
from branchnet.training.optimization.choosing.weighed_losses import weighed


class BestState(nn.Module):
    """The trained tensors of a network as they were when it was best by `weighed_losses`.

    Args:
        network: what is trained; its parameters that need gradients and its buffers are kept.
        tasks: the tasks that are measured, in order.
        beside: modules that are trained with it, as losses with parameters.

    Attributes:
        first: (N,) the losses before training; NaN before they are known.
        best: (N,) the smallest ones so far.
        step: the step that they were measured before.
    """

    first: Tensor
    best: Tensor
    step: Tensor

    def __init__(self, network: nn.Module, tasks: tuple[str, ...], beside: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.network = [network, *beside]  # in a list, or its tensors would be a part of this module's state
        self.tasks = tasks
        for name in ("first", "best"):
            self.register_buffer(name, torch.full((len(tasks),), math.nan, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(-1))
        for number, tensor in enumerate(self._tensors()):
            self.register_buffer(f"kept_{number}", tensor.detach().clone())

    def _tensors(self) -> list[Tensor]:
        trained = [p for network in self.network for p in network.parameters() if p.requires_grad]
        return [*trained, *(buffer for network in self.network for buffer in network.buffers())]

    def keep(self, step: int, losses: Mapping[str, float], judge: Judge) -> None:
        """Keep the network where it is better than before.

        Args:
            step: how many steps have been taken.
            losses: each task's loss on held-out samples now.
            judge: says in which unit losses are added up, and why they are not finite, where that is known.

        Raises:
            TrainingError: a loss that is not finite before the first step.
        """
        values = torch.tensor([losses[task] for task in self.tasks], dtype=torch.float64)
        if step == 0 and not bool(values.isfinite().all()):
            raise TrainingError(
                f"the losses on the held-out samples are {dict(losses)} before training; "
                f"{judge.cause() or 'expected finite numbers'}"
            )
        if step == 0:
            given = judge.before or losses
            self.first.copy_(torch.tensor([given[task] for task in self.tasks], dtype=torch.float64))
        before = self.losses("first")
        if step == 0 or weighed(losses, before, judge) < weighed(self.losses("best"), before, judge):
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
