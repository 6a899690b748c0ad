"""Judging branched networks by held-out inputs, against what the single-task networks answer to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from branchnet.stages import call
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from zoo_entries.entry import Inputs


class HeldOut:
    """Held-out inputs, and the networks' own outputs, which are computed once.

    Args:
        inputs: on the device of the networks.
        networks: the single-task networks by task, in evaluation mode.
        kinds: how the outputs of some tasks are compared; `regression` for the others.
        batch_size: inputs run at once.
    """

    def __init__(
        self,
        inputs: Inputs,
        networks: Mapping[str, nn.Module],
        kinds: Mapping[str, OutputKind],
        batch_size: int = 32,
    ) -> None:
        self._inputs, self._kinds, self._batch_size = inputs, kinds, batch_size
        with torch.no_grad():
            self._own = [{task: call(net, batch) for task, net in networks.items()} for batch in self._batches()]

    def _batches(self) -> Iterator[Inputs]:
        count = len(self._inputs if isinstance(self._inputs, torch.Tensor) else self._inputs[0])
        for start in range(0, count, self._batch_size):
            rows = slice(start, start + self._batch_size)
            if isinstance(self._inputs, torch.Tensor):
                yield self._inputs[rows].clone()  # networks may work in place
            else:
                yield tuple(tensor[rows].clone() for tensor in self._inputs)

    def distances(self, branched: Callable[[Inputs], Mapping[str, Any]]) -> dict[str, float]:
        """How far each task's outputs are from its own network's.

        Args:
            branched: the network, in evaluation mode.

        Returns:
            for each task 0 for equal outputs, 1 for those of a constant predictor.
        """
        judged = {task: OutputDistance(self._kinds.get(task, "regression")) for task in self._own[0]}
        with torch.no_grad():
            for inputs, own in zip(self._batches(), self._own, strict=True):
                found = branched(inputs)
                for task, distance in judged.items():
                    distance.add(found[task], own[task])
        return {task: distance.value() for task, distance in judged.items()}
