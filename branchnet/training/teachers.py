"""The outputs of the single-task networks on the training images, computed once where they fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from branchnet.data.samples import Inputs, batches, count_samples, take
from branchnet.errors import TrainingError
from branchnet.stages import call
from branchnet.training.metrics import channels_last_rows
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.progress import progress_bar

RECORDED_BYTES = 2 * 2**30
SAMPLES_FOR_VARIANCE = 256
"""The variances scale the losses: one that is off by some percent changes nothing that matters."""


class Teachers:
    """Single-task networks as teachers on K fixed samples.

    Their outputs are kept in memory where all of them together take at most `recorded_bytes`, and computed for each
    batch otherwise. The networks run where they are, in eval mode and without gradients; their modes are restored.

    Args:
        networks: the single-task networks by task, plain or staged.
        images: K samples.
        batch_size: samples run at once.
        recorded_bytes: memory that the outputs may take.
        progress: whether to draw a progress bar on stderr.

    Attributes:
        networks: the networks.
        images: the samples.

    Raises:
        TrainingError: no network, or an output that is constant or not finite.

    >>> import torch, branchnet
    >>> teachers = branchnet.Teachers({"a": torch.nn.Linear(4, 2)}, torch.rand(8, 4), progress=False)
    >>> teachers.outputs(torch.tensor([0, 5]), ["a"], torch.device("cpu"))["a"].shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        images: Inputs,
        *,
        batch_size: int = 64,
        recorded_bytes: int = RECORDED_BYTES,
        progress: bool = True,
    ) -> None:
        if not networks:
            raise TrainingError("no single-task network is given; expected at least one to distill from")
        self.networks = dict(networks)
        self.images = images
        self._recorded: dict[str, Any] = {}
        self._variances: dict[str, tuple[float, ...]] = {}
        count = count_samples(images)
        self._measure_variances(batches(min(count, SAMPLES_FOR_VARIANCE), batch_size))
        if self._bytes_per_sample * count <= recorded_bytes:
            self._record(batches(count, batch_size), progress)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that there is a teacher for."""
        return tuple(self.networks)

    def variances(self, task: str) -> tuple[float, ...]:
        """Look up the variances of a task's output, around its mean for each channel.

        Args:
            task: one of `tasks`.

        Returns:
            one number for each floating-point tensor of the output.
        """
        return self._variances[task]

    def outputs(self, index: Tensor, tasks: Sequence[str], device: torch.device) -> dict[str, Any]:
        """Return the outputs of `tasks` for the samples at `index`.

        Args:
            index: numbers of samples, (B,).
            tasks: the tasks wanted.
            device: where the outputs shall be.

        Returns:
            outputs by task.
        """
        if self._recorded:
            return {
                task: pytree.tree_map_only(Tensor, lambda t: t[index].to(device), self._recorded[task])
                for task in tasks
            }
        return {task: self._run(task, index, device) for task in tasks}

    def _run(self, task: str, index: Tensor, device: torch.device) -> Any:
        network = self.networks[task]
        own = next(network.parameters()).device
        with torch.no_grad(), evaluation_mode(network):
            output = call(network, take(self.images, index, own))
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), output)

    def _measure_variances(self, indices: Sequence[Tensor]) -> None:
        self._bytes_per_sample = 0
        count = sum(map(len, indices))
        for task, network in self.networks.items():
            device = next(network.parameters()).device
            outputs = [_float_leaves(self._run(task, index, device)) for index in indices]
            leaves = [torch.cat(batches_) for batches_ in zip(*outputs, strict=True)]
            spreads = tuple(float(channels_last_rows(leaf.double()).var(0, correction=0).mean()) for leaf in leaves)
            if not spreads or not all(0 < spread < float("inf") for spread in spreads):
                raise TrainingError(
                    f"the output of {task!r} has variance {spreads} over {count} samples; expected one above 0 and "
                    "finite: a constant output teaches nothing"
                )
            self._variances[task] = spreads
            self._bytes_per_sample += sum(leaf.nbytes for leaf in leaves) // count

    def _record(self, indices: Sequence[Tensor], progress: bool) -> None:
        recorded: dict[str, list[Any]] = {task: [] for task in self.tasks}
        with progress_bar("record the donors' outputs", len(indices) * len(self.tasks), shown=progress) as advance:
            for task, network in self.networks.items():
                device = next(network.parameters()).device
                for index in indices:
                    output = self._run(task, index, device)
                    recorded[task].append(pytree.tree_map_only(Tensor, lambda t: t.cpu(), output))
                    advance(task)
        self._recorded = {task: pytree.tree_map(_concatenate, *outputs) for task, outputs in recorded.items()}


def _concatenate(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def _float_leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
