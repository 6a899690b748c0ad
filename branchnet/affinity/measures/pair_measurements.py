"""What pairs of tasks gained when they were trained together, with named axes, and as directed affinities."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from branchnet.affinity.measures.pair_table import read_table
from branchnet.affinity.tensor import Affinity
from branchnet.errors import AffinityError

Table: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
MEASURED = "measured: change of j in percent when sharing with i"
"""The measure of affinities that were measured by training."""


@dataclass(frozen=True, eq=False)
class PairMeasurements:
    """Measured changes of every task with every partner at every branch point (TreeMTL, Zhang et al. 2022, section 3).

    Attributes:
        tasks: N distinct names.
        gain: (D + 1, N, N) in percent, larger is better: `gain[b, task, partner]` is the change of `task`, against its
            single-task network, when it shares b stages with `partner`. At b = 0 nothing is shared and all is 0; a task
            has no partner in itself, 0 is kept there (NaN is taken, too). An `Affinity` has these axes the other way
            round, `[d, i, j]` being what i does to j.
        locations: names of the D stages, `"stage 0"`, ... unless given.
        unit: of the numbers passed: `"percent"`, or `"fraction"`, which are multiplied by 100; None = percent, with a
            warning where all are so small that they may be fractions. `"percent"` afterwards.

    Raises:
        AffinityError: another shape, numbers that are not finite, changes at branch point 0 or of a task with itself.

    >>> gain = np.zeros((3, 2, 2))                          # 0, 1 and 2 shared stages
    >>> gain[:, 0, 1] = [0.0, 2.0, 1.0]                     # depth with edges
    >>> gain[:, 1, 0] = [0.0, -1.0, -3.0]                   # edges with depth
    >>> pairs = branchnet.PairMeasurements(["depth", "edges"], gain)
    >>> pairs.affinity().values[:, 0, 1].tolist()           # what sharing with depth does to edges
    [-1.0, -3.0]
    >>> branchnet.search(pairs, [1.0, 1.0], "75% params").tree.widths
    (1, 2)
    """

    tasks: tuple[str, ...]
    gain: npt.NDArray[np.float64]
    locations: tuple[str, ...] = ()
    unit: Literal["percent", "fraction"] | None = None

    def __post_init__(self) -> None:
        gain = np.array(self.gain, dtype=np.float64)
        tasks = tuple(self.tasks)
        _check(gain, tasks)
        diagonal = np.arange(len(tasks))
        gain[:, diagonal, diagonal] = 0.0
        gain = _in_percent(gain, self.unit)
        gain.setflags(write=False)
        depth = len(gain) - 1
        locations = tuple(self.locations) or tuple(f"stage {d}" for d in range(depth))
        if len(locations) != depth:
            raise AffinityError(
                f"gain has {depth + 1} branch points, 0 to {depth}, and there are {len(locations)} locations; expected "
                "one location less than branch points"
            )
        for name, value in (("tasks", tasks), ("gain", gain), ("locations", locations), ("unit", "percent")):
            object.__setattr__(self, name, value)

    @classmethod
    def read(
        cls,
        table: Table,
        *,
        name: str | None = None,
        tasks: Mapping[str, str] | Sequence[str] | None = None,
        locations: Sequence[str] = (),
        unit: Literal["percent"] | None = None,
    ) -> PairMeasurements:
        """Read a table that names what every number is.

        Args:
            table: path of a CSV file, or records, with the fields task_a, task_b, task_measured, branch_point and
                rel_perf_percent, and `table` where there are several. Rows of branch point 0 may be left out.
            name: which of several tables to read.
            tasks: their order, or the table's name of each task to its own.
            locations: names of the D stages.
            unit: `"percent"` confirms that small numbers are percent.

        Returns:
            The measurements.

        Raises:
            AffinityError: rows that are missing, repeat, contradict the definition or hold no finite number.
            FileNotFoundError: no such file.
        """
        names, gain = read_table(table, name, tasks)
        return cls(names, gain, tuple(locations), unit)

    def affinity(self) -> Affinity:
        """Convert to directed affinities: transposed, without branch point 0.

        Returns:
            Affinities (D, N, N) in percent; `values[d, i, j] = gain[d + 1, j, i]` is what sharing stages 0 to d with
            task i does to task j.
        """
        values = self.gain[1:].transpose(0, 2, 1).copy()
        return Affinity(self.tasks, self.locations, values, MEASURED, directed=True)


def measured_affinity(
    results: Table,
    *,
    table: str | None = None,
    tasks: Mapping[str, str] | Sequence[str] | None = None,
    locations: Sequence[str] | None = None,
) -> Affinity:
    """Affinity from two-task results at every branch point (TreeMTL, Zhang et al. 2022, section 3).

    `values[d, i, j]` is the change in percent of task j's performance, against its single-task network, when it
    shares stages 0 to d with task i; the diagonal is 0. To search for trees, pass `PairMeasurements.read(results)`.

    Args:
        results: path of a CSV file, or records, with the fields task_a, task_b, task_measured, branch_point and
            rel_perf_percent, and `table` where there are several.
        table: which of several tables to read.
        tasks: their order, or the table's name of each task to its own.
        locations: names of the D stages; `"stage 0"`, ... by default.

    Returns:
        Directed affinities (D, N, N) in percent.

    Raises:
        AffinityError: rows that are missing, repeat, contradict the definition or hold no finite number.
        FileNotFoundError: no such file.

    >>> def row(measured, point, change):
    ...     return {"task_a": "depth", "task_b": "edges", "task_measured": measured, "branch_point": point,
    ...             "rel_perf_percent": change}
    >>> table = [row("depth", 1, 2.0), row("edges", 1, -1.0), row("depth", 2, 1.5), row("edges", 2, -4.0)]
    >>> affinity = branchnet.measured_affinity(table)
    >>> affinity.tasks, affinity.locations
    (('depth', 'edges'), ('stage 0', 'stage 1'))
    >>> affinity.values[:, 0, 1].tolist()                         # what sharing with depth does to edges
    [-1.0, -4.0]
    """
    return PairMeasurements.read(results, name=table, tasks=tasks, locations=locations or ()).affinity()


def _check(gain: npt.NDArray[np.float64], tasks: Sequence[str]) -> None:
    n = len(tasks)
    if len(set(tasks)) < n or not n:
        raise AffinityError(f"tasks is {list(tasks)}; expected distinct names, at least one")
    if gain.ndim != 3 or gain.shape[1:] != (n, n) or len(gain) < 2:
        raise AffinityError(f"the pair measurements have shape {gain.shape}; expected (D + 1, {n}, {n}) for {n} tasks")
    off = ~np.eye(n, dtype=np.bool_)
    if len(bad := np.argwhere(~np.isfinite(gain) & off)):
        b, task, partner = (int(place) for place in bad[0])
        raise AffinityError(
            f"the change of {tasks[task]!r} with {tasks[partner]!r} at branch point {b} is {gain[b, task, partner]}; "
            "expected a finite number"
        )
    if len(bad := np.argwhere((gain[0] != 0) & off)):
        task, partner = (int(place) for place in bad[0])
        raise AffinityError(
            f"the change of {tasks[task]!r} with {tasks[partner]!r} at branch point 0 is {gain[0, task, partner]:g}; "
            "expected 0, as they share nothing there (gain[b] belongs to b shared stages: a table without that slice "
            "needs zeros in front)"
        )
    own = np.nan_to_num(gain[:, ~off])
    if own.any():
        raise AffinityError(
            f"the change of a task with itself is {own[own != 0][0]:g}; expected 0 or NaN: gain holds changes by a "
            "partner, no similarities"
        )


def _in_percent(gain: npt.NDArray[np.float64], unit: str | None) -> npt.NDArray[np.float64]:
    if unit not in ("percent", "fraction", None):
        raise AffinityError(f"unit is {unit!r}; expected 'percent' or 'fraction'")
    largest = float(np.abs(gain).max())
    if unit is None and 0 < largest < 1:
        warnings.warn(
            f"no measured change is over {largest:g} percent; if these are fractions, pass unit='fraction', else "
            "unit='percent'",
            stacklevel=4,
        )
    if unit == "fraction" and largest > 10:
        raise AffinityError(
            f"a measured change is {largest:g} as a fraction, that is {100 * largest:g} percent; expected "
            "unit='percent' for percent"
        )
    return gain * 100 if unit == "fraction" else gain
