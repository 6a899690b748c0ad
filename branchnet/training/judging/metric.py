"""What a metric is: ours, as streams of sums or of rows, and how either is computed over batches.

Each batch adds to a vector, the vector gives the number at the end: a metric over a whole data set is exact (a mean IoU
is not the mean of batch IoUs) and needs no memory for outputs. What depends on an order of all samples, as the area
under a ROC curve, keeps the rows of all batches instead.

Targets may be missing: NaN in what is measured, negative numbers in classes, the value `ignore` in both. They do not
count; where nothing is left, there is no metric, but an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.training.judging.best_constants import BestConstant


class Accumulation(Protocol):
    """A metric that is being computed: batch after batch, and at the end the number."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of outputs and targets."""

    def gather(self) -> None:
        """Take in what the other processes have added; torchmetrics objects do so on their own, in `result`."""

    def result(self) -> float:
        """Give the metric of all batches."""


@dataclass(frozen=True)
class Metric:
    """A number that says how good outputs are.

    Attributes:
        name: what tables call it, with its unit.
        larger_is_better: its direction.
        sums: from a batch's outputs and targets to a float64 vector that is added up over batches; or, with
            `keeps_rows`, to rows that are put together over batches.
        result: from the total vector, or from all rows, to the metric.
        keeps_rows: whether the rows of all batches are kept, which takes memory for every sample.
        constant: the constant answer that is best under the metric; None where none is known.
    """

    name: str
    larger_is_better: bool
    sums: Callable[[Tensor, Tensor], Tensor]
    result: Callable[[Tensor], float]
    keeps_rows: bool = False
    constant: BestConstant | None = None

    def accumulation(self) -> Accumulation:
        """Begin to compute it over batches.

        Returns:
            an object with `update(output, target)` and `result()`.
        """
        return _Rows(self) if self.keeps_rows else _Sums(self)


@dataclass
class _Sums:
    metric: Metric
    total: Tensor | None = None

    def update(self, output: Tensor, target: Tensor) -> None:
        sums = self.metric.sums(output, target)
        self.total = sums if self.total is None else self.total + sums

    def gather(self) -> None:
        parts = [part for part in _of_all_processes(self.total) if part is not None]
        self.total = torch.stack(parts).sum(0) if parts else None

    def result(self) -> float:
        if self.total is None:
            raise TrainingError("no sample has a target; expected some to compute the metric of")
        return self.metric.result(self.total)


@dataclass
class _Rows:
    metric: Metric
    rows: list[Tensor] = field(default_factory=list)

    def update(self, output: Tensor, target: Tensor) -> None:
        self.rows.append(self.metric.sums(output, target).cpu())

    def gather(self) -> None:
        own = torch.cat(self.rows) if self.rows else None
        self.rows = [rows for rows in _of_all_processes(own) if rows is not None]

    def result(self) -> float:
        if not self.rows:
            raise TrainingError("no sample has a target; expected some to compute the metric of")
        return self.metric.result(torch.cat(self.rows))


def _of_all_processes(own: Tensor | None) -> list[Any]:
    """What each process has, on the CPU, by rank."""
    own = None if own is None else own.cpu()
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def pair(total: Tensor, count: Tensor | int) -> Tensor:
    """A sum and the number of its terms, as a vector to add up."""
    return torch.stack([total.double(), torch.as_tensor(count, dtype=torch.float64, device=total.device)])


def ratio(total: Tensor) -> float:
    """The mean of what `pair` made.

    Raises:
        TrainingError: there were no terms.
    """
    check_any(total[1])
    return float(total[0] / total[1])


def check_any(count: Tensor) -> None:
    """Raise a TrainingError where no target is known."""
    if not count:
        raise TrainingError("every target is missing; expected some that are known")
