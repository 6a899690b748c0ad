"""Dividing samples that belong together: clips of video, recordings of a patient, points of a time series.

Neighbouring samples are nearly equal, so that a random division shows a network in training what it is judged on.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from branchnet.errors import DataError


def split_by_group(groups: Sequence[Hashable], shares: Mapping[str, float], *, seed: int = 0) -> dict[str, list[int]]:
    """Divide samples so that no group, a clip for one, is in two splits.

    Groups are drawn in an order that the seed decides; each goes to the split that lacks most of its share.

    Args:
        groups: of each of K samples its group.
        shares: of each split its share of the samples; they are divided by their sum.
        seed: of the order.

    Returns:
        the numbers of each split's samples, ascending; every sample is in one of them, and no split is empty.

    Raises:
        DataError: no shares, a share that is not above 0, or fewer groups than splits.

    >>> import branchnet
    >>> branchnet.data.split_by_group(["a", "a", "b", "c"], {"train": 0.5, "test": 0.5})
    {'train': [2, 3], 'test': [0, 1]}
    """
    _check_shares(shares)
    sizes = Counter(groups)
    if len(sizes) < len(shares):
        raise DataError(f"there are {len(sizes)} groups; expected {len(shares)} or more, one for each split")
    order = list(sizes)
    random.Random(seed).shuffle(order)
    total = sum(shares.values())
    lacking = {split: share / total * len(groups) for split, share in shares.items()}
    empty, split_of = dict.fromkeys(shares), {}
    for number, group in enumerate(order):
        open_splits = empty if len(order) - number <= len(empty) else lacking  # the last groups fill empty splits
        split = max(open_splits, key=lacking.__getitem__)
        split_of[group] = split
        lacking[split] -= sizes[group]
        empty.pop(split, None)
    return {split: [index for index, group in enumerate(groups) if split_of[group] == split] for split in shares}


def split_by_time(
    times: Sequence[Any] | npt.NDArray[Any], shares: Mapping[str, float], *, gap: Any = 0
) -> dict[str, list[int]]:
    """Divide samples by time: each split is later than the one before, with a gap between them.

    Samples of equal time stay together. A sample that looks back over a window needs a gap of the window's length.

    Args:
        times: of each of K samples its time, in any order: numbers, or datetimes.
        shares: of each split its share of the samples, from the earliest to the latest; they are divided by their sum.
        gap: how much later than a split's last sample the next one's first must be, at least and not included; samples
            within it are in no split. A `numpy.timedelta64` where times are datetimes.

    Returns:
        the numbers of each split's samples, in the order of their times.

    Raises:
        DataError: no shares, a share that is not above 0, times that are not numbers or are NaN, a gap below 0, or a
            split without samples.

    >>> import branchnet
    >>> branchnet.data.split_by_time(range(10), {"train": 0.6, "val": 0.2, "test": 0.2}, gap=1)
    {'train': [0, 1, 2, 3, 4, 5], 'val': [7], 'test': [9]}
    """
    _check_shares(shares)
    moments = np.asarray(times)
    if moments.ndim != 1 or moments.dtype.kind not in "iufmM" or not bool((moments == moments).all()):
        raise DataError(f"times are {moments.dtype} of shape {moments.shape}; expected numbers or datetimes, (K,)")
    order = np.argsort(moments, kind="stable")
    ordered = moments[order]
    if len(ordered) and ordered[0] + gap < ordered[0]:
        raise DataError(f"gap={gap}; expected 0 or more")
    ends = np.cumsum(list(shares.values())) / sum(shares.values()) * len(order)
    found, start = {}, 0
    for split, end in zip(shares, ends, strict=True):
        last = round(float(end))
        if start >= last:
            raise DataError(
                f"the split {split!r} has no samples among {len(order)}; expected a larger share or less gap"
            )
        stop = int(np.searchsorted(ordered, ordered[last - 1], side="right"))
        found[split] = order[start:stop].tolist()
        start = int(np.searchsorted(ordered, ordered[stop - 1] + gap, side="right"))
    return found


def _check_shares(shares: Mapping[str, float]) -> None:
    if not shares or not all(share > 0 for share in shares.values()):
        raise DataError(f"shares={dict(shares)}; expected a share above 0 for each split")
