"""Tables of two-task results: every pair of tasks, sharing the first stages up to every branch point.

A table has one row per pair, branch point and task whose change is given. Branch point b means that the two tasks share
stages 0 to b - 1; at branch point 0 they share nothing and the change is 0 by definition.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from branchnet.errors import AffinityError

Changes: TypeAlias = dict[tuple[str, str, str, int], float]

_COLUMNS = ("task_a", "task_b", "task_measured", "branch_point", "rel_perf_percent")


def read_table(
    results: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    table: str | None,
    tasks: Mapping[str, str] | Sequence[str] | None,
) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Read a table; arguments and errors as `PairMeasurements.read`.

    Returns:
        Names of the N tasks, and the change of a task with a partner at every branch point, (D + 1, task, partner).
    """
    rows = _chosen_rows(list(_records(results)), table)
    changes = _changes(rows)
    names = _task_names(changes, tasks)
    depth = max(point for _, _, _, point in changes)
    if depth < 1:
        raise AffinityError("the table has no branch point above 0, so nothing was shared; expected 1 or more")
    gain = np.zeros((depth + 1, len(names), len(names)))
    for i, task in enumerate(names):
        for j, partner in enumerate(names):
            if i != j:
                _check_baseline(changes, partner, task)
                gain[1:, i, j] = [_change(changes, partner, task, point) for point in range(1, depth + 1)]
    return tuple(names.values()), gain


def _records(results: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    if not isinstance(results, (str, os.PathLike)):
        return results
    with Path(results).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _chosen_rows(rows: Sequence[Mapping[str, Any]], table: str | None) -> list[Mapping[str, Any]]:
    if not rows:
        raise AffinityError("the table of two-task results is empty; expected a row per pair, branch point and task")
    missing = [column for column in _COLUMNS if column not in rows[0]]
    if missing:
        raise AffinityError(f"the table of two-task results has no column {missing}; expected {list(_COLUMNS)}")
    found = sorted({str(row["table"]) for row in rows if row.get("table")})
    if table is None and len(found) > 1:
        raise AffinityError(f"the file holds several tables; expected table= with one of {found}")
    if table is not None and table not in found:
        raise AffinityError(f"unknown table {table!r}; expected one of {found}")
    return [row for row in rows if table is None or row.get("table") == table]


def _changes(rows: Sequence[Mapping[str, Any]]) -> Changes:
    """Change by (other task, measured task, ...): the key is (a, b, measured, branch point), a < b."""
    changes: Changes = {}
    for number, row in enumerate(rows, start=1):
        first, second = sorted((str(row["task_a"]), str(row["task_b"])))
        measured = str(row["task_measured"])
        try:
            point, change = int(row["branch_point"]), float(row["rel_perf_percent"])
        except (TypeError, ValueError) as error:
            raise AffinityError(f"result {number} of the table: {error}") from error
        if first == second or measured not in (first, second) or point < 0 or not math.isfinite(change):
            raise AffinityError(
                f"result {number} of the table is {dict(row)}; expected two tasks, one of them measured, a branch "
                "point of 0 or more and a finite change"
            )
        key = (first, second, measured, point)
        if key in changes:
            raise AffinityError(f"result {number} of the table repeats {key}; expected each once")
        changes[key] = change
    return changes


def _task_names(changes: Changes, tasks: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    found = sorted({name for first, second, _, _ in changes for name in (first, second)})
    if tasks is None:
        return {name: name for name in found}
    names = dict(tasks) if isinstance(tasks, Mapping) else {name: name for name in tasks}
    if sorted(names) != found:
        raise AffinityError(f"tasks is {sorted(names)}; expected those of the table, {found}")
    return names


def _check_baseline(changes: Changes, other: str, measured: str) -> None:
    first, second = sorted((other, measured))
    change = changes.get((first, second, measured, 0), 0.0)
    if change != 0:
        raise AffinityError(
            f"task {measured!r} changes by {change} at branch point 0; expected 0, as it shares nothing there"
        )


def _change(changes: Changes, other: str, measured: str, point: int) -> float:
    first, second = sorted((other, measured))
    key = (first, second, measured, point)
    if key not in changes:
        raise AffinityError(
            f"the result of task {measured!r} with {other!r} at branch point {point} is missing; expected a row for "
            "each"
        )
    return changes[key]
