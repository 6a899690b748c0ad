"""What teachers say of held-out samples, which are measured again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.data.samples import Batch
from branchnet.training.teachers import RECORDED_BYTES, Teachers, checksums, moved_outputs
from branchnet.utils.installed_torch.torch_internals import pytree


class RecordedOutputs:
    """The outputs of teachers, run once on each batch and kept in memory as long as there is room.

    A batch is known by checksums of its inputs, so that one that has changed is run again.

    Args:
        teachers: the networks; what they have recorded themselves is not kept twice.
        limit: bytes that are kept at most.
    """

    def __init__(self, teachers: Teachers, limit: int = RECORDED_BYTES) -> None:
        self.teachers, self._left = teachers, limit
        self._kept: dict[tuple[str, tuple[int, ...]], Any] = {}

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The teachers."""
        return self.teachers.networks

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that there is a teacher for."""
        return self.teachers.tasks

    def outputs(self, batch: Batch, tasks: Sequence[str], device: torch.device) -> dict[str, Any]:
        """Return the outputs of `tasks` for a batch.

        Args:
            batch: held-out samples.
            tasks: the tasks wanted.
            device: where the outputs shall be.

        Returns:
            outputs by task.
        """
        if self.teachers.has_recorded and batch.index is not None:
            return self.teachers.outputs(batch, tasks, device)
        key = tuple(checksums(batch))
        missing = [task for task in tasks if (task, key) not in self._kept]
        found = self.teachers.outputs(batch, missing, device) if missing else {}
        for task, output in found.items():
            size = sum(leaf.nbytes for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
            if size <= self._left:
                self._left -= size
                self._kept[task, key] = moved_outputs(output, torch.device("cpu"))
        return {task: found[task] if task in found else moved_outputs(self._kept[task, key], device) for task in tasks}
