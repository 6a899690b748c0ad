"""The processes and the precision that a run is trained with, through Lightning Fabric.

Started by torchrun, several processes train one network: each takes its share of every batch, and gradients are
averaged after the backward pass, so that networks whose tasks lack labels in some processes, and gradients that are
aggregated node by node, need nothing special. One process in float32 does without Fabric.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from branchnet.data.collation import gather, leaves
from branchnet.data.samples import Batch
from branchnet.errors import CheckpointError, TrainingError
from branchnet.training.optimization.run_settings import Precision
from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

T = TypeVar("T")
_FABRIC_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Processes:
    """Where a run is trained, and how its processes agree.

    Args:
        precision: of forward passes; weights stay in float32.
        device: where the network is.

    Attributes:
        rank: the number of this process.
        count: how many there are.

    Raises:
        TrainingError: Lightning Fabric is needed and not installed, a device that this process may not use, or one on
            which the precision does not exist.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.count > 1 else 0
        self.device = device
        self._fabric: Any = None
        if precision == "fp16" and device.type != "cuda":
            raise TrainingError(f"precision='fp16' and the network is on {device}; expected cuda, or precision='bf16'")
        if self.count > 1 and device.type == "cuda" and device.index != int(os.environ.get("LOCAL_RANK", "0")):
            raise TrainingError(
                f"process {self.rank} of {self.count} has its network on {device}; expected "
                f"cuda:{os.environ.get('LOCAL_RANK')}, a device for each process: "
                "network.to(f\"cuda:{os.environ['LOCAL_RANK']}\")"
            )
        if self.count > 1 or precision != "32":
            self._fabric = _launched(precision, device, self.count)

    @property
    def first(self) -> bool:
        """Whether this process reports and writes for all."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        context: AbstractContextManager[Any] = self._fabric.autocast() if self._fabric else nullcontext()
        return context

    def prepared(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimiser with steps that know of scaled losses, as fp16 needs them."""
        return self._fabric.setup_optimizers(optimizer) if self._fabric else optimizer

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, which fp16 scales."""
        self._fabric.backward(loss) if self._fabric else loss.backward()

    def clip(self, module: nn.Module, optimizer: Any, parameters: Sequence[nn.Parameter], norm: float) -> None:
        """Scale gradients down whose norm over all parameters is larger than `norm`."""
        if self._fabric is None:
            nn.utils.clip_grad_norm_(parameters, norm)
        else:
            self._fabric.clip_gradients(_Parameters(parameters), optimizer, max_norm=norm, error_if_nonfinite=False)

    def share(self, batch: Batch) -> Batch | None:
        """Every `count`-th sample of a batch, beginning with the one numbered `rank`; None where there is none.

        A batch that is this process's share already, as a DistributedSampler draws it, stays as it is.
        """
        if self.count == 1 or batch.own_share:
            return batch
        numbers = torch.arange(self.rank, len(batch), self.count)
        if not len(numbers):
            return None
        index = None if batch.index is None else batch.index[numbers]
        return Batch(gather(batch.inputs, numbers), _rows_of(batch.labels, numbers), index, batch.dropped)

    def summed(self, counts: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
        """The sums over processes of some numbers by name."""
        if self.count == 1:
            return {name: counts.get(name, 0.0) for name in names}
        values = torch.tensor([counts.get(name, 0.0) for name in names], dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over processes of some numbers by name, which all have."""
        return {name: total / self.count for name, total in self.summed(values, list(values)).items()}

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The mean over processes of each gradient; one that a process lacks counts as 0, one that all lack is none."""
        if self.count == 1:
            return
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        dist.all_reduce(present)
        parameters = [p for p, found in zip(parameters, present.tolist(), strict=True) if found]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._average([parameter.grad for parameter in parameters if parameter.grad is not None])

    def average_buffers(self, module: nn.Module) -> None:
        """The mean over processes of what each has estimated from its own samples, as BatchNorm's statistics."""
        if self.count > 1:
            self._average([buffer for buffer in module.buffers() if buffer.is_floating_point()])

    def broadcast(self, module: nn.Module) -> None:
        """Give all processes the first one's tensors, as when a checkpoint was read by the first alone."""
        if self.count > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, 0)

    def of_first(self, read: Callable[[], T]) -> T:
        """Give all processes what the first one reads, as from a disk that other machines do not see.

        Args:
            read: called in the first process alone.

        Returns:
            The same in all.

        Raises:
            CheckpointError: in all processes, where the first one cannot read it.
        """
        if self.count == 1:
            return read()
        given: list[Any] = [None, ""]
        if self.first:
            try:
                given[0] = read()
            except Exception as error:  # whatever it is, the others wait for word
                given[1] = str(error) or type(error).__name__
        dist.broadcast_object_list(given, 0)
        if given[1]:
            raise CheckpointError(given[1])
        found: T = given[0]
        return found

    def agreed(self, wanted: bool) -> bool:
        """Whether any process wants something, as to stop."""
        return wanted if self.count == 1 else self.summed({"": float(wanted)}, [""])[""] > 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def _average(self, tensors: Sequence[Tensor]) -> None:
        """One message for each type of numbers, in place of one for each tensor."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            own = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in own])
            dist.all_reduce(flat)
            flat /= self.count
            for tensor, part in zip(own, flat.split([tensor.numel() for tensor in own]), strict=True):
                tensor.detach().copy_(part.view_as(tensor))


class _Parameters(nn.Module):
    """What Fabric clips: the parameters that are trained, losses' own among them."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.all = nn.ParameterList(parameters)


def _launched(precision: Precision, device: torch.device, count: int) -> Any:
    define_torchvision_operators()  # Lightning imports torchvision where it is installed
    try:
        from lightning.fabric import Fabric
    except ImportError as error:
        what = f"{count} processes" if count > 1 else f"precision={precision!r}"
        raise TrainingError(f"training with {what} needs Lightning Fabric: pip install 'branchnet[train]'") from error
    fabric = Fabric(
        accelerator="cuda" if device.type == "cuda" else "cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count > 1 else 1,
        num_nodes=count // int(os.environ.get("LOCAL_WORLD_SIZE", str(count))),
        strategy="ddp" if count > 1 else "auto",
        precision=_FABRIC_PRECISION[precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def _rows_of(labels: Any, numbers: Tensor) -> Any:
    """The labels of some samples: tensors with the samples first, lists, and mappings of them by task."""
    if isinstance(labels, Mapping):
        return {task: _rows_of(label, numbers) for task, label in labels.items()}
    if isinstance(labels, list):
        return [labels[number] for number in numbers.tolist()]
    return gather(labels, numbers) if leaves(labels) else labels
