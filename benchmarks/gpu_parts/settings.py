"""What is measured: the real networks on a GPU, or tiny ones on a CPU to see that everything runs."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch

ROUNDS = 60
FEWEST_ROUNDS = 6
"""Of fewer rounds no interval holds the median with 95%."""
MEASURING = 8.0
"""Seconds of measuring in turns, for each comparison; slow ones get fewer rounds than ROUNDS."""


def _nowhere(_: dict[str, Any]) -> None:
    """Keep nothing."""


@dataclass(frozen=True)
class Settings:
    """Where and how much is measured.

    Attributes:
        device: `cuda`, or `cpu` for a rehearsal with tiny networks.
        tasks: number of networks.
        share: percent of the separate networks' parameters and FLOPs that the tree has.
        mode: torch.compile's mode for both sides; on a GPU it records CUDA graphs.
        keep: takes what a unit has measured so far, which is kept where the unit fails or is stopped.
        until: when the unit that is being measured is stopped, as `time.time()` counts.
    """

    device: str
    tasks: int = 5
    share: int = 50
    mode: str = "reduce-overhead"
    keep: Callable[[dict[str, Any]], None] = field(default=_nowhere, compare=False, repr=False)
    until: float = field(default=math.inf, compare=False, repr=False)

    @property
    def rehearsal(self) -> bool:
        """Whether numbers mean nothing."""
        return self.device == "cpu"

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks' names, as `inference.py` knows them."""
        return ("tiny",) if self.rehearsal else ("resnet50", "vit_small")

    @property
    def precisions(self) -> tuple[str, ...]:
        """By worth; `comparing` knows their types."""
        return ("bf16",) if self.rehearsal else ("bf16", "fp32")

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes, by worth."""
        return (1,) if self.rehearsal else (1, 8, 32)

    def rounds(self, seconds: float) -> int:
        """How many rounds that take so many seconds each are measured."""
        if self.rehearsal:
            return FEWEST_ROUNDS
        return max(FEWEST_ROUNDS, min(ROUNDS, int(MEASURING / seconds)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what results depend on."""
        return {"device": self.device, "tasks": self.tasks, "share": self.share, "mode": self.mode}


def machine(device: str) -> dict[str, Any]:
    """The device's name and the versions: results of different ones are kept apart."""
    found: dict[str, Any] = {"device": platform.machine(), "python": platform.python_version()}
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        found |= {
            "device": torch.cuda.get_device_name(),
            "memory": f"{total / 2**30:.0f} GiB",
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return found | {package: _version(package) for package in ("torch", "triton", "timm", "torchvision")}


def folder_name(settings: Settings, about: dict[str, Any]) -> str:
    """The folder of a device's results: one for each kind, and one for rehearsals."""
    return "rehearsal" if settings.rehearsal else re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
