"""Those who follow a run: callbacks that may end it, and loggers that are given its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import nn

from branchnet.errors import TrainingError


@dataclass(frozen=True)
class Event:
    """What a callback is told.

    Attributes:
        kind: `"step"` after each step, `"validation"` after a measurement on held-out samples, `"end"`.
        step: how many steps have been taken.
        network: what is trained, as it is now.
        losses: the losses of the step, or those on the held-out samples.
        metrics: the metrics on the held-out samples.
        learning_rate: of the first group of parameters.
    """

    kind: Literal["step", "validation", "end"]
    step: int
    network: nn.Module
    losses: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0


Callback: TypeAlias = Callable[[Event], Any]
"""Called with each event; where it returns True, training ends with this step."""


@runtime_checkable
class Logger(Protocol):
    """Whatever takes numbers by name, as the loggers of Lightning do (TensorBoard, CSV, Weights & Biases)."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> Any:
        """Take the numbers of a step."""
        ...


class Observers:
    """All that follow a run.

    Args:
        callbacks: functions of an event.
        logger: one logger, or several.

    Raises:
        TrainingError: a callback that cannot be called, a logger without `log_metrics`.
    """

    def __init__(self, callbacks: Sequence[Callback], logger: Logger | Sequence[Logger]) -> None:
        self.callbacks = [callbacks] if callable(callbacks) else list(callbacks)
        self.loggers: list[Logger] = list(logger) if isinstance(logger, Sequence) else [logger]
        for callback in self.callbacks:
            if not callable(callback):
                raise TrainingError(f"a callback is a {type(callback).__name__}; expected a function of an Event")
        for one in self.loggers:
            if not hasattr(one, "log_metrics"):
                raise TrainingError(
                    f"a logger is a {type(one).__name__}; expected an object with log_metrics(numbers, step)"
                )

    def tell(self, event: Event) -> bool:
        """Tell everybody, and say whether one of them wants training to end.

        Args:
            event: what happened.
        """
        if self.loggers and event.kind != "end":
            prefix = "train" if event.kind == "step" else "held-out"
            numbers = {f"{prefix}/loss/{task}": value for task, value in event.losses.items()}
            numbers |= {f"{prefix}/metric/{task}": value for task, value in event.metrics.items()}
            if event.kind == "step":
                numbers["train/learning_rate"] = event.learning_rate
            for one in self.loggers:
                one.log_metrics(numbers, step=event.step)
        answers = [callback(event) for callback in self.callbacks]  # all are told
        return any(answer is True for answer in answers)
