"""The lattice of all partitions of N tasks, by number of clusters, with the single merges that connect it.

Level k holds the S(N, k) partitions into k clusters, each as its restricted growth string (the cluster number of every
task, numbered by first appearance), sorted lexicographically. Merging clusters a < b of a string gives a string again
after the numbers above b move down by one, so the merged partition's place follows in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from branchnet.clustering.trees.counting import stirling

_CACHED_TASKS = 10


@dataclass(frozen=True, eq=False)
class Lattice:
    """All partitions of N tasks.

    Attributes:
        n: number of tasks.
        strings: per level k (index 0 unused) the strings, uint8, (N, S(N, k)).
        masks: per level the clusters as bit masks, int32, (k, S(N, k)); bit i is task i.
        merges: per level the places at level k - 1 of all single merges, int32, (S(N, k), k (k - 1) / 2).
    """

    n: int
    strings: list[npt.NDArray[np.uint8]]
    masks: list[npt.NDArray[np.int32]]
    merges: list[npt.NDArray[np.int32]]


def lattice(n: int) -> Lattice:
    """The lattice of `n` tasks; small ones are kept between calls."""
    return _cached(n) if n <= _CACHED_TASKS else _build(n)


@lru_cache(maxsize=4)
def _cached(n: int) -> Lattice:
    return _build(n)


def _build(n: int) -> Lattice:
    strings = _strings(n)
    masks = [_cluster_masks(level, k) for k, level in enumerate(strings)]
    merges = [_level_merges(level, k) for k, level in enumerate(strings)]
    return Lattice(n, strings, masks, merges)


def _strings(n: int) -> list[npt.NDArray[np.uint8]]:
    levels = [np.zeros((0, 1), np.uint8)]
    for length in range(1, n + 1):
        empty = np.zeros((length, 0), np.uint8)
        grown = [empty]
        for k in range(1, length + 1):
            same = levels[k] if k < length else np.zeros((length - 1, 0), np.uint8)
            fewer = levels[k - 1]
            longer = [_append(same, digit) for digit in range(k)] + [_append(fewer, k - 1)]
            joined = np.concatenate(longer, axis=1)
            level = np.empty_like(joined)
            level[:, _places(joined, k)] = joined
            grown.append(level)
        levels = grown
    return levels


def _append(strings: npt.NDArray[np.uint8], digit: int) -> npt.NDArray[np.uint8]:
    last = np.full((1, strings.shape[1]), digit, np.uint8)
    return np.concatenate([strings, last])


def _completions(n: int, k: int) -> npt.NDArray[np.int32]:
    """`[r, m]`: ways to end a string that has used m clusters by r more digits so that it has k clusters."""
    table = np.zeros((n + 1, k + 2), np.int64)
    table[0, k] = 1
    for rest in range(1, n + 1):
        for used in range(k + 1):
            table[rest, used] = used * table[rest - 1, used] + table[rest - 1, used + 1]
    # Only counts that strings of N <= 15 tasks reach are used; larger entries belong to states that do not occur.
    return np.minimum(table, np.iinfo(np.int32).max).astype(np.int32)


def _places(strings: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.int32]:
    """Lexicographic places of strings, (n, S), among those with k clusters."""
    n = len(strings)
    completions = _completions(n, k)
    place = np.zeros(strings.shape[1], np.int32)
    used = np.zeros(strings.shape[1], np.uint8)
    for position, digits in enumerate(strings):
        place += completions[n - position - 1][used] * digits
        np.maximum(used, digits + 1, out=used)
    return place


def _cluster_masks(strings: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.int32]:
    masks = np.zeros((k, strings.shape[1]), np.int32)
    for task, digits in enumerate(strings):
        for cluster in range(k):
            masks[cluster] |= (digits == cluster).astype(np.int32) << task
    return masks


def _level_merges(strings: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.int32]:
    if k == 0:
        return np.zeros((0, 0), np.int32)
    merges = np.empty((strings.shape[1], k * (k - 1) // 2), np.int32)
    for column, (first, second) in enumerate(combinations(range(k), 2)):
        digit = np.arange(k, dtype=np.uint8)
        digit[second] = first
        digit[second + 1 :] -= 1
        merges[:, column] = _places(digit[strings], k - 1)
    return merges


def level_sizes(n: int) -> list[int]:
    """Number of partitions at each level 0..n."""
    return [stirling(n, k) for k in range(n + 1)]
