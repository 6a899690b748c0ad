"""Held-out inputs with what the single-task networks answer to them, which each of many trees is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.data.collation import placed
from branchnet.data.samples import Samples
from branchnet.stages import call
from branchnet.stitching.output_distances import float_leaves

KEPT_BYTES = 256 * 2**20
"""Of the networks' outputs so much is kept; what goes beyond is computed again for each tree."""


class HeldOut:
    """Batches of held-out inputs, each with the outputs of the single-task networks.

    Args:
        samples: the inputs.
        networks: the single-task networks by task.
        batch_size: inputs run at once.
    """

    def __init__(self, samples: Samples, networks: Mapping[str, nn.Module], batch_size: int) -> None:
        self.samples = samples
        self.networks = networks
        self.batch_size = batch_size
        self._kept: list[dict[str, list[Tensor]]] = []
        self._bytes = 0

    def batches(self, device: torch.device) -> Iterator[tuple[Any, dict[str, list[Tensor]]]]:
        """Go through the inputs in order.

        Args:
            device: where the networks are.

        Yields:
            the inputs of a batch on that device, and for each task the floating-point tensors of its network's output.
        """
        for number, batch in enumerate(self.samples.batches(self.batch_size)):
            if number < len(self._kept):
                own = self._kept[number]
            else:
                with torch.no_grad():
                    own = {
                        task: float_leaves(call(network, placed(batch.inputs, device)))
                        for task, network in self.networks.items()
                    }
                self._bytes += sum(leaf.nbytes for output in own.values() for leaf in output)
                if self._bytes <= KEPT_BYTES:
                    self._kept.append(own)
            yield placed(batch.inputs, device), own
