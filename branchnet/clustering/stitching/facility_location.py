"""The integer programme of the best chains (see `chains`), for HiGHS: a bound for many tasks, and often the optimum.

Variables, each 0 or 1: z[a, d] = task a has started by stage d, and x[t, s, a] = task t starts at stage s = 1..D and
hangs off donor a. With z[a, -1] = 0 and z[t, D] = 1,

    z[t, s] - z[t, s - 1] = sum_a x[t, s, a]         (t starts at s, with one host; s = D: its head hangs)
    x[t, s, a] <= z[a, s - 1]                        (the host has started before)
    sum_a z[a, 0] >= 1                               (the width of stage d is sum_a z[a, d])
    sum_d size_d(width of stage d) <= limit

and the cost is sum x[t, s, a] pairs[s - 1, a, t]. One row for each x makes the relaxation tight: at most a few percent
below the optimum. Sizes come in by one variable for each stage and width, so any table of sizes is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# HiGHS's absolute tolerances of 1e-6 are a tenth of a tie (1e-9) of what is scaled to this.
_SCALE = 1e4
_ROOM = 1e-12  # what fits may exceed the limit by so much, relative to it, by rounding


@dataclass(frozen=True, eq=False)
class Answer:
    """What HiGHS found: the starts, (N,), or None, and a lower bound on the goal."""

    starts: Ints | None
    bound: float


class Programme:
    """The programme of one instance; goals and further limits are given to `least`.

    Args:
        sizes: (D, N + 1) size of every stage at every width; inf where a width is not allowed.
        limit: largest size.
    """

    def __init__(self, sizes: Floats, limit: float) -> None:
        self._depth, self._n = len(sizes), sizes.shape[1] - 1
        places = np.indices((self._n, self._depth, self._n)).reshape(3, -1)
        places = places[:, places[0] != places[2]]
        self._task, self._stage, self._host = places[0], places[1] + 1, places[2]
        self._z = self._n * self._depth
        self._x = self._z + len(self._task)
        self._total = self._x + self._depth * (self._n + 1)
        self._rows: list[tuple[Any, Any, Any]] = [self._one_start(), self._open_hosts()]
        self._barred = ~np.isfinite(sizes)
        self._barred[:, 0] = True
        self._size = self._count_widths(np.where(self._barred, 0.0, sizes))
        self._limit(self._size, limit)

    def costs(self, pairs: Floats) -> Floats:
        """A goal or limit: the sum of `pairs[s - 1, a, t]` over hosts."""
        row = np.zeros(self._total)
        row[self._z : self._x] = pairs[self._stage - 1, self._host, self._task]
        return row

    @property
    def size(self) -> Floats:
        """A goal: the size."""
        return self._size

    def least(self, goal: Floats, seconds: float, *, limits: list[tuple[Floats, float]] | None = None) -> Answer:
        """Minimise `goal` where every row of `limits` is at most its number."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        kept = list(self._rows)
        for row, most in limits or []:
            self._limit(row, most)
        scale = _scale(goal)
        upper = np.ones(self._total)
        upper[self._x :] = ~self._barred.ravel()
        try:
            found = milp(
                goal * scale,
                integrality=np.ones(self._total),
                bounds=Bounds(0, upper),
                constraints=[LinearConstraint(*row) for row in self._rows],
                options={"mip_rel_gap": 0.0, "time_limit": max(seconds, 0.01)},
            )
        finally:
            self._rows = kept
        dual = found.get("mip_dual_bound")
        bound = -math.inf if dual is None or not np.isfinite(dual) else float(dual) / scale
        return Answer(None if found.x is None else self._starts(found.x), bound)

    def _starts(self, values: Floats) -> Ints:
        started = values[: self._z].reshape(self._n, self._depth) > 0.5
        return np.asarray(self._depth - started.sum(axis=1))

    def _limit(self, row: Floats, most: float) -> None:
        scale = _scale(np.append(row, most))
        self._rows.append((row[None] * scale, -np.inf, most * scale * (1 + math.copysign(_ROOM, most))))

    def _started(self, task: Ints, stage: Ints) -> Ints:
        return task * self._depth + stage

    def _matrix(self, entries: list[tuple[Ints, Ints, float]], rows: int) -> Any:
        from scipy.sparse import csr_array

        row = np.concatenate([entry[0] for entry in entries])
        column = np.concatenate([entry[1] for entry in entries])
        value = np.concatenate([np.full(len(entry[0]), entry[2]) for entry in entries])
        return csr_array((value, (row, column)), shape=(rows, self._total))

    def _one_start(self) -> tuple[Any, Any, Any]:
        """For every task and s = 1..D: sum_a x[t, s, a] - z[t, s] + z[t, s - 1] is 0, or 1 at s = D, where z is 1."""
        task, stage = np.indices((self._n, self._depth)).reshape(2, -1)
        row, before_last = np.arange(len(task)), stage < self._depth - 1
        served = self._task * self._depth + self._stage - 1
        entries = [
            (served, self._z + np.arange(len(served)), 1.0),
            (row, self._started(task, stage), 1.0),
            (row[before_last], self._started(task, stage + 1)[before_last], -1.0),
        ]
        right = np.where(before_last, 0.0, 1.0)
        return self._matrix(entries, len(task)), right, right

    def _open_hosts(self) -> tuple[Any, Any, Any]:
        row = np.arange(len(self._task))
        entries = [(row, self._z + row, 1.0), (row, self._started(self._host, self._stage - 1), -1.0)]
        return self._matrix(entries, len(row)), -np.inf, 0.0

    def _count_widths(self, sizes: Floats) -> Floats:
        """Tie one binary for each width to the number of started tasks; the size of everything as a row."""
        stage, width = np.indices((self._depth, self._n + 1)).reshape(2, -1)
        task, at = np.indices((self._n, self._depth)).reshape(2, -1)
        place = self._x + np.arange(len(stage))
        once = self._matrix([(stage, place, 1.0)], self._depth)
        self._rows.append((once, 1.0, 1.0))
        counted = self._matrix([(at, self._started(task, at), -1.0)], self._depth)
        chosen = self._matrix(
            [(stage[width == w], place[width == w], float(w)) for w in range(self._n + 1)], self._depth
        )
        self._rows.append((counted + chosen, 0.0, 0.0))
        row = np.zeros(self._total)
        row[self._x :] = sizes.ravel()
        return row


def _scale(numbers: Floats) -> float:
    largest = float(np.abs(numbers).max(initial=0.0))
    return _SCALE / largest if largest else 1.0
