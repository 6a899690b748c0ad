"""How much of one network's features can be kept at once, and in which passes the rest is read."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from branchnet.errors import AffinityError

logger = logging.getLogger(__name__)

_SHARE = 0.5


@dataclass(frozen=True)
class Piece:
    """Features `start` to `stop`, of `features` in all, of one tensor of the cut at a location, for all K inputs.

    overwritten: whether a later stage works on that tensor in place.
    """

    location: int
    tensor: int
    features: int
    start: int
    stop: int
    overwritten: bool = False

    @property
    def width(self) -> int:
        """Number of features."""
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """Which features are kept in each pass over the probe, and in which dtype."""

    passes: tuple[tuple[Piece, ...], ...]
    dtype: torch.dtype

    @property
    def numbers(self) -> int:
        """Features per input in the largest pass."""
        return max(sum(piece.width for piece in pieces) for pieces in self.passes)


def plan_passes(pieces: list[Piece], dtype: torch.dtype, inputs: int, limit: int) -> Plan:
    """Keep all features as they are if `limit` bytes allow, else as bfloat16, else in several passes of bfloat16.

    Features kept as bfloat16 change an RSA affinity by less than 0.01, wide ones by less than 0.001.

    Raises:
        AffinityError: the limit does not hold one feature.
    """
    total = sum(piece.width for piece in pieces) * inputs
    if total * dtype.itemsize <= limit:
        return Plan((tuple(pieces),), dtype)
    kept = dtype if dtype.itemsize <= 2 else torch.bfloat16
    if total * kept.itemsize <= limit:
        plan = Plan((tuple(pieces),), kept)
    else:
        plan = Plan(_pack(pieces, limit // (inputs * kept.itemsize)), kept)
    logger.info(
        "features take %.2f GB as %s, the limit is %.2f GB: kept as %s, in %d pass(es) over the probe",
        total * dtype.itemsize / 1e9,
        dtype,
        limit / 1e9,
        kept,
        len(plan.passes),
    )
    return plan


def _pack(pieces: list[Piece], capacity: int) -> tuple[tuple[Piece, ...], ...]:
    """Fill passes in order of depth, dividing a tensor where it does not fit."""
    if capacity < 1:
        raise AffinityError("memory_limit does not hold one feature of all probe inputs; raise it")
    passes: list[list[Piece]] = [[]]
    free = capacity
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            if not free:
                passes.append([])
                free = capacity
            stop = min(piece.stop, start + free)
            passes[-1].append(replace(piece, start=start, stop=stop))
            free -= stop - start
            start = stop
    return tuple(tuple(one) for one in passes)


def default_limit(device: torch.device) -> int:
    """Half of the bytes that are free on `device`."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + idle) * _SHARE)
    return int(min(_free_of_machine(), _free_of_group()) * _SHARE)


def _free_of_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _free_of_group() -> int:
    """What the control group of this process still allows, where there is one (containers)."""
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    try:
        return max(int(limit.read_text()) - int(used.read_text()), 0)
    except (OSError, ValueError):
        return 2**62
