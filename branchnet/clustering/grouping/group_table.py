"""Tables of measured groups of tasks: a row for each task of each group."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from branchnet.errors import AffinityError

Table: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]]


def read_groups(table: Table) -> list[dict[str, float]]:
    """Read what groups of tasks lost or gained when each was trained as one network.

    Args:
        table: path of a CSV file, or records, with the fields `group` (any name of it), `task`, and `loss` (smaller is
            better) or `gain` (larger is better); where a group was trained repeatedly also `seed`. A group's tasks are
            those that have a row.

    Returns:
        Losses by task for each training, in the order of the table, as `estimate_groups` and `select_networks` take
        them; gains are negated.

    Raises:
        AffinityError: an empty table, one without these fields, a task twice in a training, a number that is not
            finite.
        FileNotFoundError: no such file.

    >>> from branchnet.clustering import read_groups
    >>> read_groups([{"group": 1, "task": "depth", "gain": 2.0}, {"group": 1, "task": "edges", "gain": -1.0}])
    [{'depth': -2.0, 'edges': 1.0}]
    """
    rows = list(_records(table))
    if not rows:
        raise AffinityError("the table of groups is empty; expected a row for each task of each group")
    value = next((name for name in ("loss", "gain") if name in rows[0]), None)
    if value is None or not {"group", "task"} <= set(rows[0]):
        raise AffinityError(
            f"the table of groups has the fields {list(rows[0])}; expected group, task, and loss or gain"
        )
    found: dict[tuple[str, str], dict[str, float]] = {}
    for number, row in enumerate(rows, start=1):
        group, task = found.setdefault((str(row["group"]), str(row.get("seed", ""))), {}), str(row["task"])
        if task in group:
            raise AffinityError(f"row {number} of the table repeats task {task!r} of group {row['group']!r}")
        group[task] = _loss(row, value, number)
    return list(found.values())


def _loss(row: Mapping[str, Any], value: str, number: int) -> float:
    try:
        loss = float(row[value])
    except (TypeError, ValueError):
        loss = math.nan
    if not math.isfinite(loss):
        raise AffinityError(f"the {value} in row {number} of the table is {row[value]!r}; expected a finite number")
    return -loss if value == "gain" else loss


def _records(table: Table) -> Iterable[Mapping[str, Any]]:
    if not isinstance(table, str | os.PathLike):
        return table
    with Path(table).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
