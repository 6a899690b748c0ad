"""A study's runs, and what they say about the trees that were compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from branchnet.errors import TrainingError
from branchnet.training.studies.paired_differences import Estimate, crossed_estimate


@dataclass(frozen=True)
class StudyRun:
    """One network, trained and tested.

    Attributes:
        arm: the name of what was compared.
        number: which of the arm's trees, from 0.
        seed: of weights, order and randomness of the training.
        tree: its partitions as JSON, stage by stage; of a selection of networks a list of those of each.
        widths: nodes of each stage, of all networks together.
        metrics: by task, on the test samples.
        steps: updates of the weights.
        seconds: of the processor, for training.
    """

    arm: str
    number: int
    seed: int
    tree: str
    widths: tuple[int, ...]
    metrics: Mapping[str, float]
    steps: int
    seconds: float


@dataclass(frozen=True)
class PairedDifference:
    """How much better one arm is than another under the same seeds; better is positive.

    Attributes:
        points: by task in the metric's own unit.
        percent: by task, relative to the metric of the reference, the separate networks where there are any.
        delta: mean of these over the tasks, in percent: the difference of the two arms' Delta.
        beaten: share of the other arm's trees that are worse by the mean over seeds.
    """

    points: Mapping[str, Estimate]
    percent: Mapping[str, Estimate]
    delta: Estimate
    beaten: float


@dataclass(frozen=True)
class Study:
    """What was compared, and every run of it.

    Attributes:
        tasks: the tasks.
        metrics: for each task the metric's name.
        lower_is_better: for each task the metric's direction.
        arms: for each arm how many trees it has.
        seeds: the seeds that all trees were trained under.
        reference: the arm of separate networks, whose metrics changes are relative to; the first arm without one.
        runs: every run.

    >>> runs = [
    ...     branchnet.training.StudyRun(arm, 0, seed, "", (1,), {"depth": depth}, 100, 1.0)
    ...     for arm, depths in {"separate": (0.5, 0.5, 0.5), "found": (0.45, 0.4, 0.35)}.items()
    ...     for seed, depth in enumerate(depths)
    ... ]
    >>> study = branchnet.Study(
    ...     ("depth",), {"depth": "RMSE"}, {"depth": True}, {"separate": 1, "found": 1}, (0, 1, 2), "separate",
    ...     tuple(runs),
    ... )
    >>> print(study.paired("found", "separate").percent["depth"])  # of 0.5; better is positive
    +20.00 ± 24.84
    """

    tasks: tuple[str, ...]
    metrics: Mapping[str, str]
    lower_is_better: Mapping[str, bool]
    arms: Mapping[str, int]
    seeds: tuple[int, ...]
    reference: str
    runs: tuple[StudyRun, ...]

    def values(self, arm: str) -> NDArray[np.float64]:
        """The metrics of an arm.

        Args:
            arm: its name.

        Returns:
            metrics (seeds, trees, tasks).

        Raises:
            TrainingError: an unknown arm.
        """
        if arm not in self.arms:
            raise TrainingError(f"there is no arm {arm!r} in this study; expected one of {', '.join(self.arms)}")
        found = {(run.seed, run.number): run.metrics for run in self.runs if run.arm == arm}
        return np.array(
            [[[found[seed, k][task] for task in self.tasks] for k in range(self.arms[arm])] for seed in self.seeds]
        )

    def paired(self, arm: str, other: str) -> PairedDifference:
        """Compare two arms seed by seed.

        Args:
            arm: the one that a positive difference speaks for.
            other: the one that it is compared with.

        Returns:
            differences with 95% intervals, see `crossed_estimate`.

        Raises:
            TrainingError: an unknown arm.
        """
        signs = np.array([-1.0 if self.lower_is_better[task] else 1.0 for task in self.tasks])
        first, second = self.values(arm), self.values(other)
        differences = signs * (first[:, :, None] - second[:, None])  # (seeds, trees, other trees, tasks)
        base = np.abs(self.values(self.reference).mean((0, 1)))
        percent = 100 * differences / np.where(base > 0, base, np.nan)
        overall = np.nanmean(percent, axis=3)
        by_tree = overall.mean((0, 1))
        return PairedDifference(
            {task: crossed_estimate(differences[..., k]) for k, task in enumerate(self.tasks)},
            {task: crossed_estimate(percent[..., k]) for k, task in enumerate(self.tasks)},
            crossed_estimate(overall),
            float(((by_tree > 0) + 0.5 * (by_tree == 0)).mean()),
        )

    def tree_deltas(self, arm: str) -> NDArray[np.float64]:
        """Delta of each of an arm's trees to the reference, as means over seeds.

        Args:
            arm: its name.

        Returns:
            percent (trees,).

        Raises:
            TrainingError: an unknown arm.
        """
        signs = np.array([-1.0 if self.lower_is_better[task] else 1.0 for task in self.tasks])
        base = self.values(self.reference).mean((0, 1))
        changes = 100 * signs * (self.values(arm).mean(0) - base) / np.where(base != 0, np.abs(base), np.nan)
        return np.asarray(np.nanmean(changes, axis=1))

    def delta(self, arm: str) -> Estimate:
        """The multi-task performance of an arm, relative to the reference (Maninis et al. 2019).

        Args:
            arm: its name.

        Returns:
            percent; better is positive.

        Raises:
            TrainingError: an unknown arm.
        """
        return self.paired(arm, self.reference).delta

    def table(self) -> str:
        """Metrics, Delta and what training took, for each arm, as a table of Markdown.

        Returns:
            the text; metrics are means over seeds and trees.
        """
        heads = [f"{task} ({self.metrics[task]}{' ↓' if self.lower_is_better[task] else ''})" for task in self.tasks]
        lines = ["| | trees | " + " | ".join(heads) + f" | Delta to {self.reference}, % | steps | CPU s |"]
        lines.append("|---" * (len(heads) + 5) + "|")
        for arm, trees in self.arms.items():
            means = self.values(arm).mean((0, 1))
            runs = [run for run in self.runs if run.arm == arm]
            seconds = sum(run.seconds for run in runs) / len(runs)
            delta = "0" if arm == self.reference else str(self.delta(arm))
            cells = " | ".join(f"{value:.4g}" for value in means)
            lines.append(f"| {arm} | {trees} | {cells} | {delta} | {runs[0].steps} | {seconds:.1f} |")
        return "\n".join(lines)

    def verdict(self, arm: str) -> str:
        """Say in a sentence for each other arm whether this one is better than it, or as good as far as is known.

        Args:
            arm: the one that was found, say.

        Returns:
            the sentences, one a line.

        Raises:
            TrainingError: an unknown arm.
        """
        lines = []
        for other in self.arms:
            if other == arm:
                continue
            found = self.paired(arm, other)
            delta = found.delta
            if not delta.certain:
                said = "does not differ from it beyond what seeds and trees vary by"
            else:
                said = "is better" if delta.mean > 0 else "is worse"
            trees = f", and better than {100 * found.beaten:.0f}% of its trees" if self.arms[other] > 1 else ""
            lines.append(f"{arm} against {other}: {delta} points of Delta; {arm} {said}{trees}.")
        return "\n".join(lines)
