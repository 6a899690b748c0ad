"""How a run of training goes, whatever is minimised: its length, optimiser, precision, and what is reported of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

import torch

from branchnet.data.arguments import check_whole
from branchnet.errors import TrainingError
from branchnet.training.optimization.observers import Callback, Logger
from branchnet.training.optimization.schedules import SCHEDULES, Schedule

Keep: TypeAlias = Literal["best", "last"]
Precision: TypeAlias = Literal["32", "bf16", "fp16"]
OptimizerFactory: TypeAlias = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""From parameter groups, each with its `lr` and `weight_decay`, to an optimiser: `torch.optim.SGD`, say."""

LARGEST_GRADIENT = 5.0
"""Norm of the gradient of all parameters above which it is scaled down: some batch of an early step can be far out."""
SECONDS_BETWEEN_CHECKPOINTS = 30.0
"""By default: so an interruption costs half a minute of training at most, and writing a small share of that."""


@dataclass(frozen=True)
class Settings:
    """How a run of training goes; `fit` and `distill` say what each means.

    Raises:
        TrainingError: a setting that makes no training; it is named.
    """

    steps: int
    batch_size: int
    seed: int = 0
    every: int | None = None
    keep: Keep = "best"
    patience: int | None = None
    optimizer: OptimizerFactory | None = None
    schedule: Schedule = "cosine"
    precision: Precision = "32"
    accumulate: int = 1
    clip: float | None = LARGEST_GRADIENT
    compile: bool = False
    ema: float | None = None
    callbacks: Sequence[Callback] = ()
    logger: Logger | Sequence[Logger] = ()
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_seconds: float = SECONDS_BETWEEN_CHECKPOINTS
    checkpoint_every: int | None = None
    progress: bool = True
    description: str = "train"

    def __post_init__(self) -> None:
        """Refuse what makes no training."""
        check_whole(TrainingError, steps=self.steps, batch_size=self.batch_size, accumulate=self.accumulate)
        check_whole(TrainingError, None, seed=self.seed)
        for name in ("every", "patience", "checkpoint_every"):
            if getattr(self, name) is not None:
                check_whole(TrainingError, **{name: getattr(self, name)})
        if not _is_number(self.checkpoint_seconds) or not self.checkpoint_seconds >= 0:
            raise TrainingError(f"checkpoint_seconds={self.checkpoint_seconds!r}; expected a number of 0 or more")
        if self.clip is not None and not (_is_number(self.clip) and self.clip > 0):
            raise TrainingError(f"clip={self.clip!r}; expected a positive norm of the gradient, or None")
        if self.ema is not None and not (_is_number(self.ema) and 0 < self.ema < 1):
            raise TrainingError(f"ema={self.ema!r}; expected a decay between 0 and 1, as 0.999, or None")
        if self.keep not in get_args(Keep):
            raise TrainingError(f"keep={self.keep!r}; expected 'best' or 'last'")
        if self.precision not in get_args(Precision):
            raise TrainingError(f"precision={self.precision!r}; expected one of {', '.join(get_args(Precision))}")
        if not callable(self.schedule) and self.schedule not in SCHEDULES:
            raise TrainingError(
                f"schedule={self.schedule!r}; expected one of {', '.join(SCHEDULES)}, or a function of (step, steps) "
                "to the share of the peak rate"
            )
        if self.optimizer is not None and not callable(self.optimizer):
            raise TrainingError(
                f"optimizer is a {type(self.optimizer).__name__}; expected a function of parameter groups to an "
                "optimiser: torch.optim.SGD, or functools.partial(torch.optim.SGD, lr=0, momentum=0.9)"
            )

    @property
    def measured_every(self) -> int:
        """Steps between two measurements on held-out samples: a tenth of the run, between 10 and 200, by default."""
        return self.every if self.every is not None else min(200, max(10, self.steps // 10))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
