"""What the tasks of a model lose against the float model, on inputs that nothing was calibrated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from branchnet.deploy.onnx_files.onnx_network import OnnxNetwork
from branchnet.stitching.output_distances import OutputDistance, OutputKind, OwnOutput


class OutputLosses:
    """The float model's outputs, with which others are compared; they are held in memory.

    Args:
        reference: the float model.
        batches: inputs.
        kinds: how the outputs of each task are compared, see `OutputKind`.

    Raises:
        AffinityError: outputs that cannot be compared so, as logits of fewer than two classes.
    """

    def __init__(self, reference: OnnxNetwork, batches: Sequence[Any], kinds: Mapping[str, OutputKind]) -> None:
        self._batches = list(batches)
        self._kinds = dict(kinds)
        self._own: list[dict[str, OwnOutput]] = []
        for batch in self._batches:
            found = reference.tensors(batch, reference.tasks)
            own = {task: list(reference.of_task(found, task).values()) for task in reference.tasks}
            self._own.append({task: OwnOutput.of(tensors, kinds[task]) for task, tensors in own.items()})

    def of(self, model: OnnxNetwork, tasks: Sequence[str]) -> dict[str, float]:
        """Return by task the loss: 0 where the outputs are those of the float model, 1 as bad as a constant.

        Args:
            model: what is judged; only what these tasks need is run.
            tasks: those that are judged.
        """
        distances = {task: OutputDistance(self._kinds[task]) for task in tasks}
        for batch, own in zip(self._batches, self._own, strict=True):
            found = model.tensors(batch, tasks)
            for task, distance in distances.items():
                distance.add(list(model.of_task(found, task).values()), own[task])
        return {task: distance.value() for task, distance in distances.items()}
