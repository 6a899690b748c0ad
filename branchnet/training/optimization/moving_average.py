"""An exponential moving average of the weights that are trained, which is measured and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(nn.Module):
    """The average of a network's trained parameters and of its buffers of floating-point numbers.

    After t steps the average keeps d = min(decay, t / (9 + t)) of what it was and takes 1 - d of the new weights, so
    that those before training do not stay in the averages of short runs (as `tf.train.ExponentialMovingAverage` with
    `num_updates`; the averaging itself is torch's). It is a module, so that a checkpoint keeps it.

    Args:
        network: what is trained.
        decay: between 0 and 1.
    """

    steps: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network = [network]  # in a list, or its tensors would be a part of this module's state
        self.decay = decay
        self.register_buffer("steps", torch.tensor(0))
        for number, tensor in enumerate(self._tensors()):
            self.register_buffer(f"average_{number}", tensor.detach().clone())

    def update(self) -> None:
        """Take the weights after a step into the average."""
        self.steps += 1
        steps = int(self.steps)
        average = get_ema_multi_avg_fn(min(self.decay, steps / (9 + steps)))
        average(self._averages(), [tensor.detach() for tensor in self._tensors()], steps)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network the averages for a while."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def put_in(self) -> None:
        """Give the network the averages."""
        with torch.no_grad():
            for tensor, average in zip(self._tensors(), self._averages(), strict=True):
                tensor.copy_(average)

    def _exchange(self) -> None:
        with torch.no_grad():
            for tensor, average in zip(self._tensors(), self._averages(), strict=True):
                own = tensor.detach().clone()
                tensor.copy_(average)
                average.copy_(own)

    def _tensors(self) -> list[Tensor]:
        buffers = [buffer for buffer in self.network[0].buffers() if buffer.is_floating_point()]
        return [*(p for p in self.network[0].parameters() if p.requires_grad), *buffers]

    def _averages(self) -> list[Tensor]:
        return [cast(Tensor, getattr(self, f"average_{number}")) for number in range(len(self._tensors()))]
