"""The affinity tensor: how well each pair of tasks could share each stage.

Conventions: `values[d, i, j]` speaks of stage d, the one that ends at location d; larger means better shared.
For directed measures `[i, j]` is the effect of task i's step on task j.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from branchnet.affinity.affinity_file import read_affinity_file, write_affinity_file
from branchnet.affinity.reliability import Reliability
from branchnet.errors import AffinityError

if TYPE_CHECKING:
    import pandas as pd

_CORRELATIONS = ("rsa", "gradient cosine")
"""Measures that are correlations, from -1 to 1, by the beginning of their names."""


@dataclass(frozen=True, eq=False)
class Affinity:
    """Affinities of N tasks at D locations.

    Attributes:
        tasks: N distinct task names.
        locations: D location names, from input to output.
        values: float64, (D, N, N).
        measure: what the numbers are, e.g. `"rsa"`.
        standard_errors: float64, (D, N, N), or None.
        probe_hash: content hash of the probe inputs, or None.
        samples: float64, (B, D, N, N): values recomputed on resampled probe inputs (and networks), or None.
        reliability: how similar networks of different seeds are, or None where each task has one network.
        directed: whether `[i, j]` (effect of i on j) and `[j, i]` are different things.
        task_weights: what a task's losses count where losses of several tasks are added up, or None for 1 each.
        depths: how many stages the tasks pass that leave the trunk early, 1 to D - 1; other tasks pass all of them.
            From there on their values are 0, and 1 on the diagonal, whatever is given: there is nothing to share.

    Raises:
        AffinityError: shapes that do not fit, names that repeat, values that are not finite, or depths out of range.

    >>> values = np.array([[[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]]])
    >>> affinity = branchnet.Affinity(["depth", "normals", "scene"], ["layer4"], values)
    >>> affinity.values.shape, affinity.directed
    ((1, 3, 3), False)
    >>> [(row["task_i"], row["task_j"], row["affinity"]) for row in affinity.rows()]
    [('depth', 'normals', 0.9), ('depth', 'scene', 0.2), ('normals', 'scene', 0.4)]
    """

    tasks: Sequence[str]
    locations: Sequence[str]
    values: npt.NDArray[np.float64]
    measure: str = "rsa"
    standard_errors: npt.NDArray[np.float64] | None = dataclasses.field(default=None, repr=False)
    probe_hash: str | None = dataclasses.field(default=None, repr=False)
    samples: npt.NDArray[np.float64] | None = dataclasses.field(default=None, repr=False)
    reliability: Reliability | None = None
    directed: bool = False
    task_weights: Mapping[str, float] | None = None
    depths: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field in ("tasks", "locations"):
            object.__setattr__(self, field, _names(getattr(self, field), field))
        if self.task_weights is not None:
            _check_weights(self.task_weights, self.tasks)
        object.__setattr__(self, "depths", _checked_depths(self.depths, self.tasks, len(self.locations)))
        shape = (len(self.locations), len(self.tasks), len(self.tasks))
        object.__setattr__(self, "values", self._checked("values", self.values, shape))
        if self.samples is not None:
            object.__setattr__(self, "samples", self._checked("samples", self.samples, (len(self.samples), *shape)))
        if self.standard_errors is not None:
            errors = self._checked("standard_errors", self.standard_errors, shape)
            object.__setattr__(self, "standard_errors", errors)

    def _checked(self, field: str, array: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """A read-only float64 copy of `array`, which must be finite and of the given shape; without what is beyond."""
        checked = np.array(array, dtype=np.float64)
        if self.depths and checked.shape == shape:
            beyond = np.broadcast_to(~self.both_pass, shape)
            alone = np.eye(len(self.tasks)) if field != "standard_errors" else 0.0
            checked = np.where(beyond, alone, checked)
        if checked.shape != shape:
            raise AffinityError(f"{field} has shape {checked.shape}; expected {shape}, (locations, tasks, tasks)")
        if not np.isfinite(checked).all():
            *_, d, i, j = (int(index) for index in np.argwhere(~np.isfinite(checked))[0])
            raise AffinityError(
                f"{field}: affinity of {self.tasks[i]!r} and {self.tasks[j]!r} at {self.locations[d]!r} is not finite; "
                "expected finite numbers"
            )
        checked.setflags(write=False)
        return checked

    @property
    def both_pass(self) -> npt.NDArray[np.bool_]:
        """Which pairs of tasks both pass a stage, (D, N, N): the others have left the trunk, and share nothing."""
        stages = np.arange(len(self.locations))[:, None]
        passing = stages < np.array([self.depths.get(task, len(self.locations)) for task in self.tasks])
        return np.asarray(passing[:, :, None] & passing[:, None, :])

    def replicates(self, n: int | None = None) -> npt.NDArray[np.float64]:
        """The values recomputed on resampled probe inputs.

        Args:
            n: how many; None = all that are held.

        Returns:
            The first `n` bootstrap samples, float64, (n, D, N, N).

        Raises:
            AffinityError: the affinity holds fewer than `n` samples.
        """
        held = 0 if self.samples is None else len(self.samples)
        wanted = held if n is None else n
        if self.samples is None or wanted > held:
            raise AffinityError(
                f"{wanted} replicates asked for, {held} held; expected at most {held}: measure again with "
                f"bootstrap={n or 100}"
            )
        return self.samples[:wanted]

    def interval(self, level: float = 0.95) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The bootstrap percentile interval of every value.

        Args:
            level: the share of resamplings that lie inside, between 0 and 1.

        Returns:
            Lower and upper bounds, float64, each (D, N, N).

        Raises:
            AffinityError: no samples are held, or `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise AffinityError(f"level is {level}; expected a number between 0 and 1")
        low, high = np.quantile(self.replicates(), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    @property
    def largest_dissimilarity(self) -> float:
        """The largest `1 - affinity` possible under the measure: 2 for correlations, else 1, or what was found."""
        bound = 2.0 if self.measure.startswith(_CORRELATIONS) else 1.0
        found = 1.0 - self.values[np.isfinite(self.values)]
        return max(bound, float(found.max(initial=0.0)))

    def check_locations(self, names: Sequence[str], holder: str) -> None:
        """Refuse to be read at other places than those it was measured at; stages numbered by default fit any name.

        Args:
            names: the D locations of `holder`.
            holder: what has these locations, for the message.

        Raises:
            AffinityError: a location has another name.
        """
        for stage, (own, other) in enumerate(zip(self.locations, names, strict=False)):
            if own not in (other, f"stage {stage}"):
                raise AffinityError(
                    f"stage {stage} ends at {own!r} in the affinity, at {other!r} in {holder}; expected the same cuts: "
                    f"split with locations={list(self.locations)}, or measure again"
                )

    def symmetric(self) -> Affinity:
        """Make the affinity undirected, as trees are searched on undirected ones.

        Returns:
            The mean of both directions; itself where it is undirected already.
        """
        if not self.directed:
            return self
        samples = None if self.samples is None else _both_ways(self.samples)
        errors = None if self.standard_errors is None else _symmetric_errors(self.standard_errors, samples)
        return Affinity(
            self.tasks,
            self.locations,
            _both_ways(self.values),
            f"{self.measure}, mean of both directions",
            errors,
            self.probe_hash,
            samples,
            self.reliability,
            depths=self.depths,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that holds no pickled object, atomically.

        Args:
            path: where; it ends in `.npz`.
        """
        arrays = {"values": self.values}
        for name in ("standard_errors", "samples"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        description = {
            "tasks": self.tasks,
            "locations": self.locations,
            "measure": self.measure,
            "probe_hash": self.probe_hash,
            "directed": self.directed,
            "reliability": None if self.reliability is None else self.reliability.to_dict(),
        }
        if self.task_weights is not None:
            description["task_weights"] = dict(self.task_weights)
        if self.depths:
            description["depths"] = dict(self.depths)
        write_affinity_file(path, arrays, description)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Affinity:
        """Read what `save` wrote.

        Args:
            path: the file.

        Returns:
            An equal affinity.

        Raises:
            AffinityError: no such file, not an affinity file, a damaged one, or one written by a later version.
        """
        return cls(**read_affinity_file(path))

    def to_dataframe(self) -> pd.DataFrame:
        """The affinity as a pandas table.

        Returns:
            One row per location and pair of tasks (ordered pairs where directed), with the columns of `rows`.

        Raises:
            AffinityError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise AffinityError(
                "pandas is not installed; expected it for to_dataframe(): pip install 'branchnet[tables]', or use "
                "rows()"
            ) from error
        return pd.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The affinity as plain records.

        Returns:
            One record per location and pair (ordered pairs where directed) with location, task_i, task_j, affinity and,
            where known, standard_error.
        """
        records = []
        for d, i, j in np.ndindex(*self.values.shape):
            if i < j or (self.directed and i != j):
                record = {
                    "location": self.locations[d],
                    "task_i": self.tasks[i],
                    "task_j": self.tasks[j],
                    "affinity": float(self.values[d, i, j]),
                }
                if self.standard_errors is not None:
                    record["standard_error"] = float(self.standard_errors[d, i, j])
                records.append(record)
        return records


def _names(names: Sequence[str], field: str) -> tuple[str, ...]:
    checked = tuple(names)
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in checked):
        raise AffinityError(f"{field} is {names!r}; expected a sequence of non-empty strings")
    repeated = {name for name, count in Counter(checked).items() if count > 1}
    if repeated:
        raise AffinityError(f"{field} repeats {sorted(repeated)}; expected distinct names")
    return checked


def _checked_depths(depths: Mapping[str, int], tasks: Sequence[str], most: int) -> dict[str, int]:
    """The depths of tasks that leave early, in the order of the tasks."""
    for task, depth in depths.items():
        if task not in tasks or type(depth) is not int or not 1 <= depth <= most:
            raise AffinityError(
                f"depths has {depth!r} for {task!r}; expected a number of stages from 1 to {most} for some of "
                f"{list(tasks)}"
            )
    return {task: depths[task] for task in tasks if depths.get(task, most) < most}


def _both_ways(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (values + np.swapaxes(values, -1, -2)) / 2  # samples have one more dimension in front


def _symmetric_errors(
    errors: npt.NDArray[np.float64], samples: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """Standard errors of the mean of both directions; without samples, an upper bound: full correlation is assumed."""
    return _both_ways(errors) if samples is None else samples.std(axis=0, ddof=1)


def _check_weights(weights: Mapping[str, float], tasks: Sequence[str]) -> None:
    if set(weights) != set(tasks) or not all(np.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise AffinityError(
            f"task_weights is {dict(weights)}; expected a finite number of 0 or more for each of {list(tasks)}"
        )
