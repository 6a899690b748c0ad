"""The outputs of the single-task networks on the training images, computed once where they fit into memory."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.data.arguments import check_by_task
from branchnet.data.collation import leaves
from branchnet.data.finite_inputs import first_not_finite
from branchnet.data.samples import Batch, Samples, Source, read_samples
from branchnet.errors import TrainingError
from branchnet.stages import call
from branchnet.stages.interface import Interface, call_form, explaining
from branchnet.stages.tracing.input_order import InputOrder
from branchnet.stitching.output_distances import channels_last_rows, kind_of
from branchnet.training.matching.output_forms import OutputFunctions, applied, check_same_form
from branchnet.training.matching.output_losses import MatchKind, OutputLoss, output_loss
from branchnet.utils.installed_torch.torch_internals import pytree
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.progress import progress_bar
from branchnet.utils.random_state import seeded

RECORDED_BYTES = 2 * 2**30
SAMPLES_FOR_VARIANCE = 256
"""The variances scale the losses: one that is off by some percent changes nothing that matters."""
_READ_AGAIN = 8

Outputs = dict[str, list[Any]]

logger = logging.getLogger(__name__)


class Teachers:
    """Single-task networks as teachers on samples.

    Their outputs are kept in memory where those for all samples take at most `recorded_bytes`. Otherwise the networks
    run on each batch, on the very tensors that the student is given; so they do, too, where samples have no numbers (a
    DataLoader, an IterableDataset) and where a data set gives another sample when it is asked again, as with random
    augmentation: checksums tell. The networks run where they are, in eval mode and without gradients; their modes are
    restored.

    Args:
        networks: the single-task networks by task, plain or staged.
        images: K samples.
        batch_size: samples run at once.
        recorded_bytes: memory that the outputs may take.
        progress: whether to draw a progress bar on stderr.
        kinds: what the outputs of some tasks are: `"classification"` for logits (dimension 1 being the classes, of
            dense outputs, too), `"direction"` for vectors whose length says nothing, `"regression"` (the others). By
            default `"direction"` where all vectors have length 1, else `"regression"`.
        temperature: that logits are divided by.
        interface: of the example that the networks were split with, for error messages; by default that of a staged
            one.
        outputs: functions of some tasks' outputs; what they return is what the student's outputs, passed through the
            same functions, are compared with.

    Attributes:
        networks: the networks.
        images: the samples.
        losses: for each task the loss of an output against the teacher's.

    Raises:
        TrainingError: no network, networks that are not given by task, an output that is constant or not finite, or
            samples that the networks cannot be run on.
        DataError: samples that cannot be read.

    >>> import torch, branchnet
    >>> teachers = branchnet.Teachers({"a": torch.nn.Linear(4, 2)}, torch.rand(8, 4), progress=False)
    >>> teachers.outputs(torch.tensor([0, 5]), ["a"], torch.device("cpu"))["a"].shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        images: Source,
        *,
        batch_size: int = 64,
        recorded_bytes: int = RECORDED_BYTES,
        progress: bool = True,
        kinds: Mapping[str, MatchKind] | None = None,
        temperature: float = 1.0,
        interface: Interface | None = None,
        outputs: OutputFunctions | None = None,
    ) -> None:
        check_by_task(networks, TrainingError)
        if unknown := sorted(set(kinds or {}) - set(networks)):
            raise TrainingError(f"kinds name {unknown}, which have no network; expected some of {list(networks)}")
        if unknown := sorted(set(outputs or {}) - set(networks)):
            raise TrainingError(f"outputs name {unknown}, which have no network; expected some of {list(networks)}")
        if not networks:
            raise TrainingError("no single-task network is given; expected at least one to distill from")
        self.networks = dict(networks)
        self._orders = {task: InputOrder(network) for task, network in networks.items()}
        self.images = images
        form = None if isinstance(images, Samples) else call_form(next(iter(networks.values())))
        self.samples = read_samples(images, form)
        self.interface = interface or _interface_of(self.networks)
        self._recorded: dict[str, Any] = {}
        self._checksums: list[int] = []
        self._variances: dict[str, tuple[float, ...]] = {}
        self.kinds, self.temperature = dict(kinds or {}), temperature
        self.output_functions = dict(outputs or {})
        self.losses: dict[str, OutputLoss] = {}
        with seeded(0):  # a network may draw random numbers
            self._read(batch_size, recorded_bytes, progress)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that there is a teacher for."""
        return tuple(self.networks)

    @property
    def has_recorded(self) -> bool:
        """Whether the outputs for all samples are in memory."""
        return bool(self._recorded)

    def variances(self, task: str) -> tuple[float, ...]:
        """Look up the variances of a task's output, around its mean for each channel.

        Args:
            task: one of `tasks`.

        Returns:
            one number for each floating-point tensor of the output.
        """
        return self._variances[task]

    def outputs(self, samples: Batch | Tensor, tasks: Sequence[str], device: torch.device) -> dict[str, Any]:
        """Return the outputs of `tasks` for a batch.

        Args:
            samples: the batch, or the numbers of samples, (B,); of a data set these are read, as they may have changed.
            tasks: the tasks wanted.
            device: where the outputs shall be.

        Returns:
            outputs by task.
        """
        if isinstance(samples, Tensor) and self._recorded and self.samples.fixed:
            return {task: moved_outputs(self._recorded[task], device, samples) for task in tasks}
        batch = samples if isinstance(samples, Batch) else self.samples.take(samples)
        self._forget_if_others(batch)
        if self._recorded and batch.index is not None:
            return {task: moved_outputs(self._recorded[task], device, batch.index) for task in tasks}
        return {task: self._run(task, batch, device) for task in tasks}

    def _run(self, task: str, batch: Batch, device: torch.device) -> Any:
        network = self.networks[task]
        own = next(network.parameters()).device
        with torch.no_grad(), evaluation_mode(network):
            inputs = self._orders[task].placed(batch.inputs, own)
            with explaining(inputs, self.interface, TrainingError, f"the network of {task!r}"):
                output = applied(self.output_functions, {task: call(network, inputs)})[task]
        return moved_outputs(output, device)

    def _read(self, batch_size: int, recorded_bytes: int, progress: bool) -> None:
        """Read the first samples for the variances, and go on to the last where all outputs are to be kept."""
        found: Outputs = {task: [] for task in self.tasks}
        batches = self.samples.batches(batch_size, seed=0)
        seen = 0
        for batch in batches:
            self._add(found, batch)
            seen += len(batch)
            if seen >= SAMPLES_FOR_VARIANCE:
                break
        self._measure_variances(found, min(seen, SAMPLES_FOR_VARIANCE))
        if not self._worth_recording(found, seen, recorded_bytes):
            return
        total = -(-(self.samples.count or 0) // batch_size) * len(self.tasks)
        done = len(found[self.tasks[0]]) * len(self.tasks)
        with progress_bar("record the donors' outputs", total, shown=progress, done=done) as advance:
            for batch in batches:
                self._add(found, batch, advance)
        self._recorded = {task: pytree.tree_map(_concatenate, *parts) for task, parts in found.items()}

    def _add(self, found: Outputs, batch: Batch, advance: Any = lambda task: None) -> None:
        """What every network makes of a batch, which is read once for all of them."""
        for task in self.tasks:
            found[task].append(self._run(task, batch, torch.device("cpu")))
            advance(task)
        if not self.samples.fixed:
            self._checksums += checksums(batch)

    def _measure_variances(self, found: Outputs, count: int) -> None:
        for task, outputs in found.items():
            check_same_form(task, outputs)
            leaves_of_all = zip(*map(_float_leaves, outputs), strict=True)
            parts = [torch.cat(parts)[:count] for parts in leaves_of_all]
            spreads = tuple(float(channels_last_rows(part.double()).var(0, correction=0).mean()) for part in parts)
            if not spreads or not all(0 < spread < float("inf") for spread in spreads):
                if cause := first_not_finite(self.samples):
                    raise TrainingError(f"{cause}, so that the output of {task!r} has variance {spreads}")
                raise TrainingError(
                    f"the output of {task!r} has variance {spreads} over {count} samples; expected one above 0 and "
                    "finite: a constant output teaches nothing"
                )
            self._variances[task] = spreads
            kind = self.kinds.get(task) or kind_of(parts)
            try:
                self.losses[task] = output_loss(kind, [tuple(parts)], self.temperature)
            except TrainingError as error:
                raise TrainingError(f"task {task!r}: {error}") from error

    def _worth_recording(self, found: Outputs, seen: int, recorded_bytes: int) -> bool:
        if not self.samples.by_number or self.samples.count is None:
            return False
        size = sum(sum(leaf.nbytes for leaf in _float_leaves(part)) for parts in found.values() for part in parts)
        if size // seen * self.samples.count > recorded_bytes:
            return False
        if self.samples.fixed:
            return True
        with seeded(1):  # from other random numbers than the first time
            again = self.samples.take(torch.arange(min(_READ_AGAIN, seen)))
        return checksums(again) == self._checksums[: len(again)]

    def _forget_if_others(self, batch: Batch) -> None:
        """Drop what is recorded where a data set gives other samples than those that the outputs belong to."""
        if not self._recorded or self.samples.fixed or batch.index is None:
            return
        if checksums(batch) != [self._checksums[number] for number in batch.index.tolist()]:
            self._recorded = {}
            logger.warning(
                "the data set gives other samples when it is read again, as with random augmentation: the single-task "
                "networks run on each batch instead of having their outputs recorded"
            )


def _interface_of(networks: Mapping[str, nn.Module]) -> Interface | None:
    found = (getattr(network, "interface", None) for network in networks.values())
    return next((interface for interface in found if isinstance(interface, Interface)), None)


def checksums(batch: Batch) -> list[int]:
    """One number for each sample, over all its tensors.

    Args:
        batch: some samples.
    """
    sums = [0] * len(batch)
    for leaf in leaves(batch.inputs):
        for number, row in enumerate(leaf.detach().cpu().contiguous() if leaf.dim() else ()):
            sums[number] = zlib.crc32(row.reshape(-1).view(torch.uint8).numpy().data, sums[number])
    return sums


def moved_outputs(output: Any, device: torch.device, index: Tensor | None = None) -> Any:
    """An output, or of it the samples at `index`, on `device`.

    Args:
        output: tensors, or nested mappings and sequences of them.
        device: where it shall be.
        index: which samples; None: all.
    """

    def move(tensor: Tensor) -> Tensor:
        return (tensor if index is None else tensor[index]).to(device)

    return pytree.tree_map_only(Tensor, move, output)


def _concatenate(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def _float_leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
