"""What groups of tasks would lose, estimated from other groups that were measured (Li, Nguyen, Zhang 2023,
"Identification of negative transfers in multitask learning using surrogate models").

The loss of task j in a network of the tasks S is taken to be `alone_j - sum over i in S of effect[i, j]`: partners add
up. Ridge regression on the sets' indicators fits it, for each task from the measured sets that hold it. One penalty
serves all tasks: the one that predicts each measured loss best from those of the other sets (leave-one-out).

Pairs say what two tasks do to each other by themselves; in larger networks that is another thing, and the number of
pairs grows with the square of the tasks. Random groups of the size that is wanted (`random_groups`) tell of all
partners at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.grouping.network_selection import Losses
from branchnet.errors import AffinityError

Floats = npt.NDArray[np.float64]
_PENALTIES = np.logspace(-2, 4, 49)


@dataclass(frozen=True, eq=False)
class GroupEstimates:
    """Estimated losses of groups of tasks; `estimate_groups` makes them.

    Attributes:
        tasks: N names.
        alone: (N,) estimated loss of each task by itself.
        effects: (N, N) `[i, j]`: by how much partner i lowers task j's loss; zeros on the diagonal, and where the two
            were never measured together.
        penalty: of the squares of the effects.
        explained: share of the variance of the measured losses, each in units of its task's, that is predicted by the
            other sets; below 0 where the tasks' means predict better; NaN where no task is in two sets or more.
        measured: the measured sets and their losses, means where a set was measured repeatedly.
    """

    tasks: tuple[str, ...]
    alone: Floats
    effects: Floats
    penalty: float
    explained: float
    measured: Mapping[frozenset[str], Mapping[str, float]]

    def losses_of(self, sets: Iterable[Iterable[str]]) -> list[dict[str, float]]:
        """Losses of sets of tasks, for `select_networks` and `refine`.

        Args:
            sets: the sets.

        Returns:
            For each set the loss of each of its tasks: measured where it was measured, else estimated.

        Raises:
            AffinityError: an unknown task.
        """
        return [dict(self.measured.get(frozenset(one)) or self._estimated(one)) for one in map(tuple, sets)]

    def known(self, sets: Iterable[Iterable[str]]) -> list[bool]:
        """Say which sets were measured.

        Args:
            sets: the sets.

        Returns:
            For each set whether its losses are measured ones, as `refine` asks.
        """
        return [frozenset(one) in self.measured for one in sets]

    def stage_losses(self) -> StageLosses:
        """The estimates as an objective of `search` with one stage, for any number of tasks.

        Returns:
            An objective whose cost of a division of the tasks is the sum of their estimated losses.
        """
        both = -(self.effects + self.effects.T)
        return StageLosses(self.tasks, both[None], "sum", False, offset=math.fsum(self.alone), name="expected-loss")

    def _estimated(self, tasks: Sequence[str]) -> dict[str, float]:
        if unknown := [task for task in tasks if task not in self.tasks]:
            raise AffinityError(f"unknown task {unknown[0]!r}; expected some of {', '.join(self.tasks)}")
        index = [self.tasks.index(task) for task in tasks]
        return {
            task: float(self.alone[j] - math.fsum(self.effects[i, j] for i in index if i != j))
            for task, j in zip(tasks, index, strict=True)
        }


def estimate_groups(losses: Losses, *, penalty: float | None = None) -> GroupEstimates:
    """Estimate what any group of tasks loses from groups that were measured.

    Args:
        losses: for each measured group `{task: loss}`, smaller is better, all in one unit (minus a gain in percent, for
            example); a group may come several times. Single tasks, pairs and larger groups help each.
        penalty: of the squares of the effects; None = chosen by leave-one-out.

    Returns:
        The estimates.

    Raises:
        AffinityError: no groups, losses that are not finite, a penalty that is not positive, or none and no task that
            is in three groups or more.

    >>> measured = [{"a": 1.0}, {"b": 1.0}, {"c": 1.0}]
    >>> measured += [{"a": 0.8, "b": 0.9}, {"a": 1.3, "c": 1.1}, {"b": 1.2, "c": 1.1}]
    >>> found = branchnet.clustering.estimate_groups(measured, penalty=0.01)
    >>> [{task: round(loss, 2) for task, loss in one.items()} for one in found.losses_of([["a", "b", "c"]])]
    [{'a': 1.1, 'b': 1.1, 'c': 1.2}]
    >>> branchnet.search(found.stage_losses(), [1.0], 2).tree.partitions[0]
    (('a', 'b'), ('c',))
    """
    measured = _means(losses)
    tasks = tuple(dict.fromkeys(task for one in losses for task in one))
    if penalty is not None and not 0 < penalty < math.inf:
        raise AffinityError(f"penalty is {penalty}; expected a positive number, or None")
    systems = [_System.of(task, tasks, measured) for task in tasks]
    if penalty is None:
        if max(len(system.losses) for system in systems) < 3:
            raise AffinityError("no task is in three measured groups; expected more groups, or penalty=")
        penalty = float(min(_PENALTIES, key=lambda one: _left_out_error(systems, one)))
    alone, effects = np.zeros(len(tasks)), np.zeros((len(tasks), len(tasks)))
    for j, system in enumerate(systems):
        alone[j], effects[:, j] = system.solve(penalty)
    return GroupEstimates(tasks, alone, effects, penalty, 1.0 - _left_out_error(systems, penalty), measured)


@dataclass(frozen=True, eq=False)
class _System:
    """One task's regression: (n, N) indicators of its partners in the measured sets, and (n,) its losses."""

    partners: Floats
    losses: Floats

    @classmethod
    def of(cls, task: str, tasks: Sequence[str], measured: Mapping[frozenset[str], Mapping[str, float]]) -> _System:
        rows = [(one, values[task]) for one, values in measured.items() if task in one]
        partners = [[float(other in one and other != task) for other in tasks] for one, _ in rows]
        return cls(np.array(partners), np.array([loss for _, loss in rows]))

    def solve(self, penalty: float) -> tuple[float, Floats]:
        """The loss without partners, and by how much each partner lowers it."""
        mean = self.partners.mean(0)
        centred = self.partners - mean
        # The dual form: as many unknowns as measured sets.
        kernel = centred @ centred.T + penalty * np.eye(len(centred))
        slopes = centred.T @ np.linalg.solve(kernel, self.losses - self.losses.mean())
        return float(self.losses.mean() - mean @ slopes), -slopes

    def left_out(self, penalty: float) -> Floats:
        """(n,) loss less the one predicted by the other sets, with the same penalty, in closed form."""
        centred = self.partners - self.partners.mean(0)
        kernel = centred @ centred.T
        hat = 1 / len(kernel) + kernel @ np.linalg.inv(kernel + penalty * np.eye(len(kernel)))
        return np.asarray((self.losses - hat @ self.losses) / (1 - hat.diagonal()))


def _left_out_error(systems: Sequence[_System], penalty: float) -> float:
    """Mean square of the errors of predictions from other sets, each in units of its task's variance."""
    errors = [
        system.left_out(penalty) / system.losses.std()
        for system in systems
        if len(system.losses) > 1 and np.ptp(system.losses) > 0
    ]
    return float(np.mean(np.concatenate(errors) ** 2)) if errors else math.nan


def _means(losses: Losses) -> dict[frozenset[str], dict[str, float]]:
    """Each set once, with the means of its losses."""
    if not losses or not all(losses):
        raise AffinityError("there is no measured group, or one without tasks; expected {task: loss} for each group")
    found: dict[frozenset[str], list[Mapping[str, float]]] = {}
    for number, one in enumerate(losses):
        for task, loss in one.items():
            if not math.isfinite(loss):
                raise AffinityError(
                    f"the loss of {task!r} in group {number} ({', '.join(one)}) is {loss}; expected a finite number"
                )
        found.setdefault(frozenset(one), []).append(one)
    return {
        tasks: {task: math.fsum(row[task] for row in rows) / len(rows) for task in rows[0]}
        for tasks, rows in found.items()
    }
