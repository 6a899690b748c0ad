"""What all weightings have in common: how a training loop calls them, and where their state is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from branchnet.training.weighting.task_gradients import check_losses


class Weighting(nn.Module, ABC):
    """How the losses of several tasks become the gradient of one step.

    A training loop calls `backward` where it would call `loss.backward()`, and after the optimiser's step `after_step`.
    State is in buffers, so that `state_dict` holds it; `parameters()` are trained with the network, without weight
    decay (on several processes, with their gradients averaged, too).

    Attributes:
        needs_losses_again: whether `after_step` computes the losses of the batch a second time.

    >>> from branchnet.training import weighting_of
    >>> weighting = weighting_of({"depth": 1.0, "edges": 0.1}, ["depth", "edges"], networks["depth"])
    >>> losses = {"depth": torch.tensor(2.0, requires_grad=True), "edges": torch.tensor(3.0, requires_grad=True)}
    >>> weighting.backward(networks["depth"], losses)
    >>> losses["edges"].grad
    tensor(0.1000)
    """

    needs_losses_again: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def backward(
        self,
        network: nn.Module,
        losses: Mapping[str, Tensor],
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> None:
        """Fill `.grad`, adding to what is there.

        Args:
            network: what the losses were computed with.
            losses: a scalar for some or all tasks; those without labels in the batch are left out.
            backward: what stands for `Tensor.backward`, as that of a GradScaler; called once, on a scalar.

        Raises:
            TrainingError: no loss, one of an unknown task, or one that the method cannot take.
        """

    def without_losses(self, network: nn.Module) -> None:
        """Take the part of a `backward` for which this process has no labels, where others may have some.

        Args:
            network: as for `backward`.
        """

    def begin_step(self, number: int) -> None:
        """Learn which batch comes next; most methods do nothing. A loop that does not call it counts from 0.

        Args:
            number: of the batch, the same on all processes.
        """

    def after_step(self, losses_again: Callable[[], Mapping[str, Tensor]]) -> None:
        """Learn from what the optimiser's step did; most methods do nothing, and do not call the function.

        Args:
            losses_again: computes the losses that `backward` was given last on the same batch, with the new weights.
        """

    def weights(self) -> dict[str, float]:
        """Return what each task's loss is multiplied by at present, for the log.

        Returns:
            a number for each task; nothing from methods that aggregate gradients.
        """
        return {}


class LossWeighting(Weighting):
    """One that multiplies the losses by numbers.

    Args:
        tasks: N names; whatever is kept of the tasks is in their order.
        start: the weight of each before the first step.
    """

    current: Tensor

    def __init__(self, tasks: Sequence[str], start: float = 1.0) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.register_buffer("current", torch.full((len(self.tasks),), start))

    def weights(self) -> dict[str, float]:
        """Return what each task's loss is multiplied by, as of the last step that it took part in.

        Returns:
            a number for each task.
        """
        return dict(zip(self.tasks, self.current.tolist(), strict=True))

    def spread(self, values: Tensor, where: list[int]) -> tuple[Tensor, Tensor]:
        """Return numbers of some tasks as numbers of all, the mean over processes, and which tasks have one.

        Args:
            values: (n,).
            where: the numbers of those tasks.
        """
        both = torch.zeros(2, len(self.tasks), dtype=self.current.dtype, device=self.current.device)
        both[0, where] = values.detach().to(both)
        both[1, where] = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(both)
        return both[0] / both[1].clamp(min=1), both[1] > 0


class ScalarWeighting(LossWeighting):
    """One that minimises a scalar made of the losses alone."""

    def backward(
        self,
        network: nn.Module,
        losses: Mapping[str, Tensor],
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> None:
        """Fill `.grad`: one backward pass.

        Args:
            network, losses, backward: as for `Weighting.backward`.

        Raises:
            TrainingError: no loss, or one of an unknown task.
        """
        check_losses(losses, self.tasks)
        where = [self.tasks.index(task) for task in losses]
        backward(self.objective(torch.stack(list(losses.values())), where))

    @abstractmethod
    def objective(self, values: Tensor, where: list[int]) -> Tensor:
        """Return the scalar to minimise, and note the weights in `current`.

        Args:
            values: (n,), the losses of some tasks.
            where: the numbers of those tasks.
        """
