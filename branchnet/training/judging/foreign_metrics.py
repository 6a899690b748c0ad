"""Metrics of other libraries where ours are taken: torchmetrics objects, and whatever works like them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.training.judging.best_constants import BestConstant, by_type
from branchnet.training.judging.metric import Accumulation, Metric

AnyMetric: TypeAlias = Any
"""A `Metric`, or an object with `update(output, target)`, `compute()`, `reset()` and `higher_is_better`, as
torchmetrics has them."""


@dataclass(frozen=True)
class ForeignMetric:
    """A metric of another library; what it counts, missing targets included, is its own affair.

    Attributes:
        metric: the object, which is never changed: each computation is by a copy.
        name: its `name`, or that of its class.
        larger_is_better: its direction.
    """

    metric: Any
    name: str
    larger_is_better: bool

    @property
    def constant(self) -> BestConstant:
        """The majority class of integer labels, the mean of numbers."""
        return by_type(getattr(self.metric, "num_classes", None))

    def accumulation(self) -> Accumulation:
        """Begin to compute it over batches."""
        copied = self.metric.clone() if hasattr(self.metric, "clone") else copy.deepcopy(self.metric)
        copied.reset()
        return _Copy(copied, self.name)


@dataclass
class _Copy:
    metric: Any
    name: str

    def update(self, output: Tensor, target: Tensor) -> None:
        if hasattr(self.metric, "to"):
            self.metric = self.metric.to(output.device)
        self.metric.update(output, target)

    def gather(self) -> None:
        """The object does so itself."""

    def result(self) -> float:
        found = self.metric.compute()
        if isinstance(found, Tensor) and found.numel() != 1:
            raise TrainingError(
                f"the metric {self.name} computes a tensor of shape {tuple(found.shape)}; expected one number"
            )
        if not isinstance(found, Tensor | int | float):
            raise TrainingError(f"the metric {self.name} computes a {type(found).__name__}; expected one number")
        return float(found)


def read_metric(metric: AnyMetric) -> Metric | ForeignMetric:
    """Take a metric of ours as it is, and one of another library in our form.

    Args:
        metric: a `Metric`, or an object with `update`, `compute`, `reset` and `higher_is_better`.

    Returns:
        a metric with `name`, `larger_is_better`, `constant` and `accumulation()`.

    Raises:
        TrainingError: something else, or an object that does not say whether larger is better.
    """
    if isinstance(metric, Metric | ForeignMetric):
        return metric
    if isinstance(metric, type) or not all(
        callable(getattr(metric, method, None)) for method in ("update", "compute", "reset")
    ):
        raise TrainingError(
            f"a metric is {metric!r}; expected a branchnet.training.Metric, as branchnet.training.accuracy() gives, or "
            "an object with update, compute and reset, as those of torchmetrics"
        )
    direction = getattr(metric, "higher_is_better", None)
    if direction is None:
        raise TrainingError(
            f"the metric {type(metric).__name__} does not say whether larger is better; expected an attribute "
            "higher_is_better that is True or False: set it in a subclass"
        )
    name = getattr(metric, "name", None)
    return ForeignMetric(metric, name if isinstance(name, str) else type(metric).__name__, bool(direction))
