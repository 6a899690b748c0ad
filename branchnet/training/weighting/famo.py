"""FAMO: all losses shall fall at one rate, judged by what each step did to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from branchnet.errors import TrainingError
from branchnet.training.weighting.buffer_adam import BufferAdam
from branchnet.training.weighting.weighting_base import ScalarWeighting

SMALLEST = 1e-8
"""Added to losses before their logarithm."""


class FamoWeighting(ScalarWeighting):
    """The sum of c z log L: z is the softmax of learned numbers w, and c makes the losses' weights, c z / L, sum to 1.

    After each step w goes down where the logarithm of a loss fell most ("FAMO: Fast Adaptive Multitask Optimization",
    Liu et al. 2023). It needs one more forward pass in place of a backward pass for each task.

    Args:
        tasks: their names.
        rate: Adam's learning rate for w; the paper's 0.025.
        decay: the paper's regularisation of w, 0.001.
    """

    needs_losses_again: ClassVar[bool] = True
    logits: Tensor
    losses_before: Tensor

    def __init__(self, tasks: Sequence[str], rate: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__(tasks, start=1 / len(tasks))
        self.register_buffer("logits", torch.zeros(len(self.tasks)))
        self.register_buffer("losses_before", torch.full((len(self.tasks),), torch.nan))
        self.adam = BufferAdam(len(self.tasks), rate, decay)

    def objective(self, values: Tensor, where: list[int]) -> Tensor:
        """Return the weighted sum of the logarithms.

        Args:
            values, where: as for every `ScalarWeighting`.

        Raises:
            TrainingError: a loss below 0.
        """
        self._check_positive(values, where)
        shifted = values + SMALLEST
        shares = self.logits[where].softmax(0).to(values)
        normaliser = (shares / shifted.detach()).sum()
        self.current[where] = (shares / shifted.detach() / normaliser).to(self.current)
        self.losses_before.fill_(torch.nan)
        self.losses_before[where] = values.detach().to(self.losses_before)
        return (shares / normaliser * shifted.log()).sum()

    def without_losses(self, network: nn.Module) -> None:
        """Remember that there was nothing.

        Args:
            network: as for every `Weighting`.
        """
        self.losses_before.fill_(torch.nan)

    def after_step(self, losses_again: Callable[[], Mapping[str, Tensor]]) -> None:
        """Update w by what the step did to the losses.

        Args:
            losses_again: computes the losses that `backward` was given last on the same batch, with the new weights.

        Raises:
            TrainingError: a loss is missing now, or below 0.
        """
        where = self.losses_before.isfinite().nonzero().flatten().tolist()
        with torch.no_grad():
            losses = losses_again()
            if missing := [self.tasks[i] for i in where if self.tasks[i] not in losses]:
                raise TrainingError(f"the losses after the step lack {missing}; expected those of the same batch")
            after = self.losses_before.new_tensor([float(losses[self.tasks[i]]) for i in where])
            self._check_positive(after, where)
            fell = (self.losses_before[where] + SMALLEST).log() - (after + SMALLEST).log()
            falls, seen = self.spread(fell, where)
            if not bool(seen.any()):
                return
            shares = torch.where(seen, self.logits, -torch.inf).softmax(0)
            self.adam.update(self.logits, shares * (falls - (shares * falls).sum()), seen)

    def _check_positive(self, values: Tensor, where: list[int]) -> None:
        if bool((values < 0).any()):
            i = int(values.argmin())
            raise TrainingError(
                f"the loss of {self.tasks[where[i]]!r} is {values[i].item():g}; famo takes logarithms and expects "
                "losses of 0 or more: add a constant to this one"
            )
