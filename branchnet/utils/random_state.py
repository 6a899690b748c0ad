"""Random numbers of one's own for a while: the global random state outside is as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Start torch's random numbers at `seed`, on the CPU and on `device`; put their state back afterwards."""
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        start_generators(seed, device)
        yield


def start_generators(seed: int, device: torch.device | None = None) -> None:
    """Start the generators of the CPU and of `device` at `seed`; `torch.manual_seed` does so on every device."""
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
