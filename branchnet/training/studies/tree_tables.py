"""Tables of trees that were all trained, and how well a prediction orders them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from branchnet.clustering import Tree
from branchnet.errors import DataError

Numbers = NDArray[np.float64]

RESAMPLES = 200


def labels_text(tree: Tree) -> str:
    """A tree as tables write it: the number of each task's node, stage by stage, as in `"000 001"`.

    Args:
        tree: of at most ten tasks.
    """
    return " ".join("".join(map(str, numbers)) for numbers in tree.labels())


@dataclass(frozen=True)
class TreeTable:
    """What trees of the same tasks and depth reached when they were trained.

    Attributes:
        tasks: the tasks.
        trees: the trees.
        seeds: the seeds.
        values: metrics (trees, seeds, tasks); NaN where a tree was not trained under a seed.
        lower_is_better: by task.
        stage_costs: parameters of one node of each stage.
        head_costs: parameters of each task's head.
    """

    tasks: tuple[str, ...]
    trees: tuple[Tree, ...]
    seeds: tuple[int, ...]
    values: Numbers
    lower_is_better: Mapping[str, bool]
    stage_costs: tuple[float, ...]
    head_costs: Mapping[str, float]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TreeTable:
        """Read a table of `benchmarks/all_trees.py`, next to which `problems.json` lies.

        Args:
            path: the CSV file: `tree`, as the number of each task's node, stage by stage; `seed`; a column for each
                task.

        Returns:
            the table.

        Raises:
            DataError: a file that cannot be read, or is no such table.
        """
        file = Path(path)
        try:
            with file.open(encoding="utf-8", newline="") as stream:
                rows = list(csv.DictReader(stream))
            problem = json.loads(file.with_name("problems.json").read_text(encoding="utf-8"))[
                file.stem.rsplit("_", 1)[0]
            ]
            if not rows:
                raise ValueError("it has no rows")
            tasks = tuple(problem["tasks"])
            names = tuple(dict.fromkeys(row["tree"] for row in rows))
            seeds = tuple(sorted({int(row["seed"]) for row in rows}))
            values = np.full((len(names), len(seeds), len(tasks)), np.nan)
            index = {name: k for k, name in enumerate(names)}
            for row in rows:
                values[index[row["tree"]], seeds.index(int(row["seed"]))] = [float(row[task]) for task in tasks]
            trees = tuple(
                Tree.from_labels(tasks, [[int(x) for x in stage] for stage in name.split()]) for name in names
            )
            lower = {task: bool(problem["tasks"][task]["lower_is_better"]) for task in tasks}
            return cls(tasks, trees, seeds, values, lower, tuple(problem["stages"]), dict(problem["heads"]))
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file} cannot be read as a table of trees ({type(error).__name__}: {error})") from error

    @property
    def performance(self) -> Numbers:
        """Delta to the separate networks' mean over seeds, in percent, (trees, seeds); larger is better."""
        separate = self.trees.index(Tree.separate(self.tasks, self.trees[0].depth))
        base = np.nanmean(self.values[separate], axis=0)
        signs = np.array([-1.0 if self.lower_is_better[task] else 1.0 for task in self.tasks])
        return np.asarray((100 * signs * (self.values - base) / np.abs(base)).mean(2))

    @property
    def reached(self) -> Numbers:
        """Mean performance over seeds, (trees,); what is common to a seed's trees is taken out of it first.

        So a tree that was trained under one seed alone stands beside those of several.
        """
        found = self.performance
        complete = found[~np.isnan(found).any(1)]
        effects = complete.mean(0) - complete.mean() if len(complete) else np.zeros(found.shape[1])
        return np.asarray(np.nanmean(found - effects, axis=1))

    def of_seeds(self, seeds: Sequence[int]) -> TreeTable:
        """The table of some seeds and of the trees that were trained under all of them.

        Args:
            seeds: which.

        Raises:
            DataError: an unknown seed, or no such tree.
        """
        if unknown := [seed for seed in seeds if seed not in self.seeds]:
            raise DataError(f"seeds {unknown} are not in the table; expected some of {list(self.seeds)}")
        values = self.values[:, [self.seeds.index(seed) for seed in seeds]]
        rows = np.flatnonzero(~np.isnan(values).any((1, 2)))
        if not len(rows):
            raise DataError(f"no tree was trained under all of the seeds {list(seeds)}")
        return replace(self, trees=tuple(self.trees[k] for k in rows), seeds=tuple(seeds), values=values[rows])

    @property
    def sizes(self) -> Numbers:
        """Parameters of each tree, heads included."""
        stages = np.array([tree.widths for tree in self.trees]) @ np.array(self.stage_costs)
        return np.asarray(stages + sum(self.head_costs.values()))

    @property
    def noise_ceiling(self) -> float:
        """The largest correlation with the mean over seeds that a perfect prediction can be expected to have.

        The root of the reliability of that mean: the mean correlation of two seeds, stepped up to their number by
        Spearman and Brown (1910). Of the trees that were trained under all seeds; 0 where seeds do not agree at all,
        NaN for one seed.
        """
        return self._ceiling(_correlation)

    @property
    def noise_ceiling_within(self) -> float:
        """The same among trees of equal widths."""

        def within(one: Numbers, other: Numbers) -> float:
            return _within(one, other, classes)

        complete = np.asarray(~np.isnan(self.performance).any(1))
        trees = [tree for tree, kept in zip(self.trees, complete, strict=True) if kept]
        classes = [np.array(members) for members in _classes(trees)]
        return self._ceiling(within)

    def _ceiling(self, correlation: Callable[[Numbers, Numbers], float]) -> float:
        found = self.performance
        complete = found[~np.isnan(found).any(1)]
        if complete.shape[1] < 2 or len(complete) < 3:
            return float("nan")
        pairs = combinations(range(complete.shape[1]), 2)
        between = np.array([correlation(complete[:, one], complete[:, other]) for one, other in pairs])
        known = between[~np.isnan(between)]
        if not len(known):
            return float("nan")
        mean, count = max(0.0, float(known.mean())), int(complete.shape[1])
        return float(np.sqrt(count * mean / (1 + (count - 1) * mean)))


@dataclass(frozen=True)
class PredictionScore:
    """How well predictions order trees that were trained.

    Attributes:
        spearman: rank correlation over all trees, with a 95% interval (bootstrap over trees).
        within: the same of ranks within classes of equal widths, weighed by the trees in each.
        pairs: share of pairs of trees with equal widths that are in order; ties count half.
        regret: points of Delta lost to the best tree that fits, mean over all budgets.
        random_regret: the same of a tree drawn at random among those of the sizes that were chosen.
        percentile: rank of the tree chosen among those of equal widths, 0 the best and 100 the worst, mean over
            classes.
    """

    spearman: tuple[float, float, float]
    within: tuple[float, float, float]
    pairs: float
    regret: float
    random_regret: float
    percentile: float


def score_predictions(table: TreeTable, costs: Sequence[float], *, seed: int = 0) -> PredictionScore:
    """Compare predicted costs of trees with what they reached.

    Args:
        table: trees that were trained.
        costs: a number for each of them, smaller is better: a clustering cost, say.
        seed: of the bootstrap.

    Returns:
        the score.

    Raises:
        DataError: another number of costs than of trees, or costs that are not finite.
    """
    predicted = -np.asarray(costs, dtype=np.float64)
    if predicted.shape != (len(table.trees),) or not np.isfinite(predicted).all():
        raise DataError(
            f"{predicted.shape} predictions for {len(table.trees)} trees; expected a finite number for each of them"
        )
    reached = table.reached
    classes = [np.array(members) for members in _classes(table.trees)]
    draws = np.random.default_rng(seed)
    samples = [draws.integers(0, len(reached), len(reached)) for _ in range(RESAMPLES)]
    overall = [_correlation(predicted[rows], reached[rows]) for rows in samples]
    inside = []
    for _ in range(RESAMPLES):
        drawn = [members[draws.integers(0, len(members), len(members))] for members in classes]
        inside.append(_within(predicted, reached, drawn))
    regret, expected = _regrets(table.sizes, predicted, reached, classes)
    return PredictionScore(
        _interval(_correlation(predicted, reached), overall),
        _interval(_within(predicted, reached, classes), inside),
        _pairs_in_order(predicted, reached, classes),
        regret,
        expected,
        _percentile(predicted, reached, classes),
    )


def _classes(trees: Sequence[Tree]) -> Iterator[list[int]]:
    """The trees of equal widths, where there are several."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, tree in enumerate(trees):
        found.setdefault(tuple(tree.widths), []).append(number)
    return (members for members in found.values() if len(members) > 1)


def _correlation(one: Numbers, other: Numbers) -> float:
    """Spearman's; NaN where one of them is constant."""
    first, second = stats.rankdata(one), stats.rankdata(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _within(predicted: Numbers, reached: Numbers, classes: Sequence[NDArray[np.int64]]) -> float:
    """Correlation of ranks within classes, each class's ranks around their mean and as shares of its size."""
    first, second = (
        np.concatenate([(stats.rankdata(values[rows]) - (len(rows) + 1) / 2) / len(rows) for rows in classes])
        if classes
        else np.zeros(0)
        for values in (predicted, reached)
    )
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / norm) if norm > 0 else float("nan")


def _pairs_in_order(predicted: Numbers, reached: Numbers, classes: Sequence[NDArray[np.int64]]) -> float:
    right, total = 0.0, 0
    for rows in classes:
        one, other = np.triu_indices(len(rows), 1)
        wanted = np.sign(reached[rows[one]] - reached[rows[other]])
        found = np.sign(predicted[rows[one]] - predicted[rows[other]])
        counted = wanted != 0
        right += float(((found == wanted) + 0.5 * (found == 0))[counted].sum())
        total += int(counted.sum())
    return right / total if total else float("nan")


def _percentile(predicted: Numbers, reached: Numbers, classes: Sequence[NDArray[np.int64]]) -> float:
    ranks = []
    for rows in classes:
        best = predicted[rows] == predicted[rows].max()
        worse = [float((reached[rows] > value).mean()) for value in reached[rows][best]]
        ranks.append(100 * sum(worse) / len(worse))
    return sum(ranks) / len(ranks) if ranks else float("nan")


def _regrets(
    sizes: Numbers, predicted: Numbers, reached: Numbers, classes: Sequence[NDArray[np.int64]]
) -> tuple[float, float]:
    """At every size as a budget: what the tree predicted to be best loses to the best, and one drawn of its widths."""
    of_tree = {int(number): rows for rows in classes for number in rows}
    lost, expected = [], []
    for limit in np.unique(sizes):
        fitting = np.flatnonzero(sizes <= limit)
        best = reached[fitting].max()
        chosen = fitting[predicted[fitting] == predicted[fitting].max()]
        lost.append(best - reached[chosen].mean())
        expected.append(best - np.mean([reached[of_tree.get(int(k), np.array([k]))].mean() for k in chosen]))
    return float(np.mean(lost)), float(np.mean(expected))


def _interval(value: float, resampled: Sequence[float]) -> tuple[float, float, float]:
    known = np.array([number for number in resampled if not np.isnan(number)])
    if not len(known):
        return value, float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return value, float(low), float(high)
