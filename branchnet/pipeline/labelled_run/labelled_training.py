"""What a run with labels trains its branched networks on, and measures all networks on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class LabelledTraining:
    """What branched networks are trained on after distillation, and what all networks are measured on.

    Attributes:
        train: samples to train on, (input, {task: label or None}).
        validation: others, by which states of training are chosen.
        test: others, on which networks are measured.
        losses: by task.
        settings: further settings of `branchnet.fit`.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    losses: Mapping[str, Callable[[Any, Any], Tensor]]
    settings: Mapping[str, Any]
