"""Adam on a buffer, for weights that a method updates by itself: its state is in checkpoints, no optimiser knows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FIRST, SECOND, SMALLEST = 0.9, 0.999, 1e-8
"""The usual constants of Adam (Kingma & Ba 2015)."""


class BufferAdam(nn.Module):
    """Moments of the gradients of n numbers, of which each step may update some.

    Args:
        count: n.
        rate: the learning rate.
        decay: L2 regularisation, added to the gradient.
    """

    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, count: int, rate: float, decay: float = 0.0) -> None:
        super().__init__()
        self.rate = rate
        self.decay = decay
        for name in ("first", "second", "steps"):
            self.register_buffer(name, torch.zeros(count))

    def update(self, values: Tensor, gradient: Tensor, where: Tensor) -> None:
        """Take a step, in place.

        Args:
            values: (n,), the numbers.
            gradient: (n,), with respect to them.
            where: (n,), which of them are updated.
        """
        slope = gradient + self.decay * values
        steps = self.steps + 1
        first = self.first.lerp(slope, 1 - FIRST)
        second = SECOND * self.second + (1 - SECOND) * slope.square()
        root = second.sqrt() / (1 - SECOND**steps).sqrt() + SMALLEST
        moved = values - self.rate / (1 - FIRST**steps) * first / root
        for buffer, new in ((self.first, first), (self.second, second), (self.steps, steps), (values, moved)):
            buffer.copy_(torch.where(where, new, buffer))
