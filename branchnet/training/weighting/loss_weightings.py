"""Weights for the losses that need no gradients of single tasks: one backward pass, as without them.

Those that TorchJD has as scalarizers are written here all the same, as its own need the losses of all tasks at every
step, and keep averages outside of their buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from branchnet.training.weighting.weighting_base import ScalarWeighting
from branchnet.utils.random_state import mixed_seed


class EqualWeighting(ScalarWeighting):
    """The sum of the losses.

    Args:
        tasks: their names.
    """

    def objective(self, values: Tensor, where: list[int]) -> Tensor:
        """Return the sum.

        Args:
            values, where: as for every `ScalarWeighting`.
        """
        return values.sum()


class GivenWeighting(ScalarWeighting):
    """The sum of the losses, each with a weight of its own.

    Args:
        weights: of every task.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(list(weights))
        self.current.copy_(torch.tensor(list(weights.values())))

    def objective(self, values: Tensor, where: list[int]) -> Tensor:
        """Return the weighted sum.

        Args:
            values, where: as for every `ScalarWeighting`.
        """
        return (self.current[where] * values).sum()


class UncertaintyWeighting(ScalarWeighting):
    """Learned log-variances s: the sum of (exp(-s) L + s) / 2 ("Multi-Task Learning Using Uncertainty to Weigh Losses
    for Scene Geometry and Semantics", Kendall et al. 2018, equation 7; s = log sigma^2). Losses should be positive: one
    that falls below 0 is weighed ever more.

    Args:
        tasks: their names.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks, start=0.5)
        self.log_variances = nn.Parameter(torch.zeros(len(self.tasks)))

    def objective(self, values: Tensor, where: list[int]) -> Tensor:
        """Return the negative log-likelihood, up to a constant.

        Args:
            values, where: as for every `ScalarWeighting`.
        """
        of_these = self.log_variances[where]
        weights = 0.5 * torch.exp(-of_these)
        self.current[where] = weights.detach()
        return (weights * values + 0.5 * of_these).sum()


class ImpartialLossWeighting(ScalarWeighting):
    """IMTL-L, learned scales s that bring all losses to 1: the sum of exp(s) L - s ("Towards Impartial Multi-task
    Learning", Liu et al. 2021). Losses should be positive.

    Args:
        tasks: their names.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.log_scales = nn.Parameter(torch.zeros(len(self.tasks)))

    def objective(self, values: Tensor, where: list[int]) -> Tensor:
        """Return the sum of the scaled losses.

        Args:
            values, where: as for every `ScalarWeighting`.
        """
        return self.scaled(values, where).sum()

    def scaled(self, values: Tensor, where: list[int]) -> Tensor:
        """Return each scaled loss.

        Args:
            values, where: as for every `ScalarWeighting`.
        """
        scales = torch.exp(self.log_scales[where])
        self.current[where] = scales.detach()
        return scales * values - self.log_scales[where]


class RandomWeighting(ScalarWeighting):
    """RLW, weights drawn at every step: the softmax of a normal number for each task.

    From "Reasonable Effectiveness of Random Weighting" (Lin et al. 2022). They depend on the step and on a seed that is
    drawn here from torch's random numbers: on processes that start with the same they are the same, also where some of
    these have no labels in a step.

    Args:
        tasks: their names.
    """

    step: Tensor
    seed: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.randint(2**62, ()))

    def begin_step(self, number: int) -> None:
        """Draw the weights of this step.

        Args:
            number: as for every `Weighting`.
        """
        self.step.fill_(number)

    def objective(self, values: Tensor, where: list[int]) -> Tensor:
        """Return the weighted sum.

        Args:
            values, where: as for every `ScalarWeighting`.
        """
        generator = torch.Generator().manual_seed(mixed_seed(int(self.seed), int(self.step)))
        self.step += 1
        # Over all tasks, as each process would divide by the sum of those with labels of its own.
        self.current.copy_(torch.randn(len(self.tasks), generator=generator).softmax(0))
        return (self.current[where] * values).sum()


class DynamicWeightAverage(ScalarWeighting):
    """DWA: tasks whose losses fall slowly get larger weights ("End-to-End Multi-Task Learning with Attention", Liu et
    al. 2019, equation 7). The paper compares epochs. Here windows of steps are compared: samples that come from a
    stream have no epoch, those of several data sets have several, and a task's mean is over the steps with its labels.

    Args:
        tasks: their names.
        every: steps in a window.
        temperature: how equal the weights are; the paper's 2.
    """

    def __init__(self, tasks: Sequence[str], every: int = 100, temperature: float = 2.0) -> None:
        super().__init__(tasks)
        self.every = every
        self.temperature = temperature
        for name in ("sums", "counts"):
            self.register_buffer(name, torch.zeros(len(self.tasks), dtype=torch.float64))
        for name in ("before", "latest"):
            self.register_buffer(name, torch.full((len(self.tasks),), torch.nan, dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    sums: Tensor
    counts: Tensor
    before: Tensor
    latest: Tensor
    step: Tensor

    def objective(self, values: Tensor, where: list[int]) -> Tensor:
        """Return the weighted sum, and count the losses for the weights of later windows.

        Args:
            values, where: as for every `ScalarWeighting`.
        """
        weights = self.current[where].clone()
        self.sums[where] += values.detach().to(self.sums)
        self.counts[where] += 1
        self._count_step()
        return (weights * values).sum()

    def without_losses(self, network: nn.Module) -> None:
        """Count the step.

        Args:
            network: as for every `Weighting`.
        """
        self._count_step()

    def _count_step(self) -> None:
        self.step += 1
        if int(self.step) % self.every == 0:
            self._close_window()

    def _close_window(self) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.sums)
            dist.all_reduce(self.counts)
        seen = self.counts > 0
        self.before.copy_(torch.where(seen, self.latest, self.before))
        self.latest.copy_(torch.where(seen, self.sums / self.counts, self.latest))
        self.sums.zero_()
        self.counts.zero_()
        rates = self.latest / self.before
        rates = torch.where(rates.isfinite(), rates, 1)  # not seen in two windows yet, or a loss of 0
        self.current.copy_(len(self.tasks) * (rates / self.temperature).softmax(0))
