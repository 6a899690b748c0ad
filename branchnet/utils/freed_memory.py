"""Let the C library keep freed memory while tensors come and go: getting it back from the system costs page faults.

glibc returns a large tensor's memory to the system as soon as it is freed, and the next one is mapped and zeroed page
by page. In virtual machines this takes up to three quarters of a CPU's forward passes. PyTorch has no caching allocator
for CPUs; its tuning guide recommends another malloc, preloaded. See mallopt(3) for the settings.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of malloc.h
LARGEST_THRESHOLD = 32 << 20  # up to which glibc raises the size from which on it maps, by itself
MAPPINGS = 65_536  # glibc's default
NEVER_TRIMMED = -1  # the largest size
USERS_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_lock = threading.Lock()
_users = 0


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keep what is freed inside for what is allocated next, and give it back to the system at the end.

    Also a decorator. For the whole process while any thread is inside; afterwards the thresholds are those that glibc
    raises its own to when large blocks are freed. Without effect where the C library is not glibc,
    and where the user has chosen its settings by environment variables.
    """
    library = None if any(name in os.environ for name in USERS_SETTINGS) else _glibc()
    if library is None:
        yield
        return
    _enter(library)
    try:
        yield
    finally:
        _leave(library)


def _enter(library: Any) -> None:
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            library.mallopt(MMAP_MAX, 0)
            library.mallopt(TRIM_THRESHOLD, NEVER_TRIMMED)


def _leave(library: Any) -> None:
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        library.mallopt(MMAP_MAX, MAPPINGS)
        library.mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)
        library.mallopt(TRIM_THRESHOLD, 2 * LARGEST_THRESHOLD)
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library of this process, None where it has no `mallopt` of glibc's kind."""
    if platform.system() != "Linux":
        return None
    library = ctypes.CDLL(None)
    known = all(hasattr(library, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim"))
    return library if known else None
