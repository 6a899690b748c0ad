"""Splits by time and by group: nothing that belongs together is in two of them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from branchnet.data import split_by_group, split_by_time
from branchnet.errors import DataError

SHARES = st.dictionaries(st.sampled_from(["train", "val", "test"]), st.floats(0.05, 1), min_size=1)


@given(st.lists(st.integers(0, 12), min_size=3), SHARES, st.integers(0, 99))
def test_no_group_is_in_two_splits_and_every_sample_is_in_one(
    groups: list[int], shares: dict[str, float], seed: int
) -> None:
    assume(len(set(groups)) >= len(shares))
    found = split_by_group(groups, shares, seed=seed)
    assert list(found) == list(shares)
    assert sorted(index for part in found.values() for index in part) == list(range(len(groups)))
    kinds = [{groups[index] for index in part} for part in found.values()]
    assert all(kinds)
    assert sum(map(len, kinds)) == len(set(groups))
    assert found == split_by_group(groups, shares, seed=seed)


@given(st.integers(2, 60), st.integers(0, 9))
def test_shares_are_met_to_within_a_group(count: int, seed: int) -> None:
    groups = [index // 3 for index in range(3 * count)]
    found = split_by_group(groups, {"a": 0.5, "b": 0.5}, seed=seed)
    assert abs(len(found["a"]) - 1.5 * count) <= 3


def test_another_seed_divides_otherwise() -> None:
    groups = list(range(40))
    assert split_by_group(groups, {"a": 1, "b": 1}) != split_by_group(groups, {"a": 1, "b": 1}, seed=1)


@given(st.lists(st.integers(0, 60), min_size=1), SHARES, st.integers(0, 6))
def test_later_splits_are_later_by_more_than_the_gap(times: list[int], shares: dict[str, float], gap: int) -> None:
    try:
        found = split_by_time(times, shares, gap=gap)
    except DataError as error:
        assert "has no samples" in str(error)
        return
    parts = list(found.values())
    assert all(parts)
    for earlier, later in pairwise(parts):
        assert max(times[index] for index in earlier) + gap < min(times[index] for index in later)
    for part in parts:
        assert [times[index] for index in part] == sorted(times[index] for index in part)
    used = {index for part in parts for index in part}
    assert sum(map(len, parts)) == len(used)
    for index in set(range(len(times))) - used:  # what is left out is in a gap
        assert any(0 <= times[index] - max(times[each] for each in part) <= gap for part in parts)


def test_windows_of_a_series_do_not_overlap() -> None:
    length = 24  # window i looks at points i to i + 23
    found = split_by_time(range(1000), {"train": 0.7, "test": 0.3}, gap=length - 1)
    seen = {point for start in found["train"] for point in range(start, start + length)}
    assert not seen & {point for start in found["test"] for point in range(start, start + length)}
    assert len(found["train"]) == 700
    assert len(found["test"]) == 300 - length + 1


def test_datetimes_have_a_gap_in_days() -> None:
    days = np.arange("2020-01-01", "2020-01-11", dtype="datetime64[D]")[::-1]
    found = split_by_time(days, {"train": 0.5, "test": 0.5}, gap=np.timedelta64(2, "D"))
    assert found == {"train": [9, 8, 7, 6, 5], "test": [2, 1, 0]}


@pytest.mark.parametrize("shares", [{}, {"a": 0.0}, {"a": 1.0, "b": -1.0}, {"a": math.nan}])
def test_shares_must_be_positive(shares: dict[str, float]) -> None:
    with pytest.raises(DataError, match="expected a share above 0"):
        split_by_group([1, 2, 3], shares)
    with pytest.raises(DataError, match="expected a share above 0"):
        split_by_time([1, 2, 3], shares)


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(DataError, match="there are 1 groups; expected 2 or more"):
        split_by_group(["a", "a"], {"train": 1, "test": 1})
    with pytest.raises(DataError, match="gap=-1; expected 0 or more"):
        split_by_time([1, 2], {"train": 1}, gap=-1)
    with pytest.raises(DataError, match="expected numbers or datetimes"):
        split_by_time(["monday"], {"train": 1})
    with pytest.raises(DataError, match="expected numbers or datetimes"):
        split_by_time([1.0, math.nan], {"train": 1})
    with pytest.raises(DataError, match="the split 'test' has no samples among 4"):
        split_by_time([1, 2, 3, 4], {"train": 0.5, "test": 0.5}, gap=10)
