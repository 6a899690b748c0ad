"""How much of one network's features can be kept at once, and in which passes the rest is read."""

from __future__ import annotations

import ctypes
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from branchnet.errors import AffinityError

logger = logging.getLogger(__name__)

# Half of what is free: the other half is for activations, matrix products and what else runs on the machine.
_SHARE = 0.5
# Over so many features the rounding errors of bfloat16 average out; fewer would save little memory.
_WIDE = 4096


@dataclass(frozen=True)
class Chunk:
    """Features `start` to `stop` of one tensor of the cut at a location, for all K inputs.

    Attributes:
        location: number of the location.
        tensor: number of the tensor in the cut.
        features: features that the tensor has in all.
        start: the first feature of the chunk.
        stop: the one past its last.
        dtype: of the tensor.
        rounded: whether the features are kept as bfloat16.
        overwritten: whether a later stage works on the tensor in place.
    """

    location: int
    tensor: int
    features: int
    start: int
    stop: int
    dtype: torch.dtype = torch.float32
    rounded: bool = False
    overwritten: bool = False

    @property
    def width(self) -> int:
        """Number of features."""
        return self.stop - self.start

    @property
    def kept_as(self) -> torch.dtype:
        """What the features are kept in."""
        return torch.bfloat16 if self.rounded else self.dtype


Passes: TypeAlias = tuple[tuple[Chunk, ...], ...]


def plan_passes(chunks: list[Chunk], inputs: int, limit: int) -> Passes:
    """Which features are kept in each pass over the probe so that they take `limit` bytes at most.

    All of them as they are if the limit allows; else tensors of at least 4,096 features as bfloat16, less what the
    first input has; else in several passes. Rounding to bfloat16 changes affinities by less than 0.001, with 500 inputs
    by less than 0.0001, also where features lie a hundred standard deviations from zero (that is what subtracting the
    first input is for). Passes change nothing.

    Args:
        chunks: one for each tensor that counts, in order of depth.
        inputs: K, the inputs that features are kept of.
        limit: bytes.

    Returns:
        The chunks of each pass.

    Raises:
        AffinityError: the limit does not hold one feature.
    """
    needed = _bytes(chunks) * inputs
    if needed <= limit:
        return (tuple(chunks),)
    rounded = [replace(chunk, rounded=chunk.features >= _WIDE and chunk.dtype.itemsize > 2) for chunk in chunks]
    passes = _pack(rounded, limit // inputs)
    logger.info(
        "features take %.2f GB, the limit is %.2f GB: %d of %d tensors are kept as bfloat16, in %d pass(es)",
        needed / 1e9,
        limit / 1e9,
        sum(chunk.rounded for chunk in rounded),
        len(rounded),
        len(passes),
    )
    return passes


def _bytes(chunks: list[Chunk]) -> int:
    return sum(chunk.width * chunk.kept_as.itemsize for chunk in chunks)


def _pack(chunks: list[Chunk], capacity: int) -> Passes:
    """Fill passes with up to `capacity` bytes per input in order of depth, dividing a tensor where it does not fit."""
    passes: list[list[Chunk]] = [[]]
    free = capacity
    for chunk in chunks:
        size = chunk.kept_as.itemsize
        if capacity < size:
            raise AffinityError(
                f"memory_limit does not hold one feature of all probe inputs: {capacity} bytes an input; expected at "
                f"least {size}: pass a larger memory_limit=, or fewer inputs"
            )
        start = chunk.start
        while start < chunk.stop:
            if free < size:
                passes.append([])
                free = capacity
            stop = min(chunk.stop, start + free // size)
            passes[-1].append(replace(chunk, start=start, stop=stop))
            free -= (stop - start) * size
            start = stop
    return tuple(tuple(one) for one in passes if one)


def default_limit(device: torch.device) -> int:
    """Half of the bytes that are free on `device`."""
    if device.type == "cuda":
        # Memory that torch holds for reuse counts as taken for the driver but is free for tensors.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + idle) * _SHARE)
    return int(min(_free_of_machine(), _free_of_group()) * _SHARE)


def _free_of_machine() -> int:
    """Bytes that are free (Linux, Windows), or that there are (other systems, which have no common way to ask)."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf"):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return _free_of_windows()


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API (sysinfoapi.h); the fields' order and widths are its layout in memory."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("physical", ctypes.c_uint64),
        ("free_physical", ctypes.c_uint64),
        ("page_file", ctypes.c_uint64),
        ("free_page_file", ctypes.c_uint64),
        ("virtual", ctypes.c_uint64),
        ("free_virtual", ctypes.c_uint64),
        ("free_extended_virtual", ctypes.c_uint64),
    )


def _free_of_windows() -> int:
    """What GlobalMemoryStatusEx calls available physical memory."""
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009  (mypy knows the attribute on Windows only)
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise AffinityError("Windows does not say how much memory is free; expected memory_limit= in bytes")
    return int(status.free_physical)


def _free_of_group() -> int:
    """What the control group of this process still allows, where there is one (containers)."""
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    try:
        return max(int(limit.read_text()) - int(used.read_text()), 0)
    except (OSError, ValueError):  # no control group of version 2, or the limit is the word "max"
        return 2**62
