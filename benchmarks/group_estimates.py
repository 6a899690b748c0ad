"""How well measured single tasks, pairs and random groups predict other groups of 27 tasks.

Reads the table of `group_table.py`. Gains (loss of a task by itself less its loss in a group) of groups that nothing
was fitted to, under other seeds, against those predicted from single tasks and: all pairs, by the mean over partners as
HOA has it, by their sum, or by ridge regression; or 27 or 54 random groups, by ridge regression.

    python benchmarks/group_estimates.py
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from branchnet.clustering import estimate_groups, higher_order_estimates
from branchnet.utils.files import write_text

RESULTS = Path(__file__).parent / "results" / "group_estimates"
Group = tuple[str, ...]
Table = dict[Group, dict[str, float]]
Floats = npt.NDArray[np.float64]


def read(path: Path) -> tuple[Table, list[Table]]:
    """The measured groups, and the judged ones by seed."""
    tables: dict[tuple[str, str], Table] = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            table = tables.setdefault((row["use"], row["seed"]), {})
            table.setdefault(tuple(row["group"].split()), {})[row["task"]] = float(row["loss"])
    measured = next(table for (use, _), table in tables.items() if use == "measured")
    return measured, [table for (use, _), table in tables.items() if use == "judged"]


def of_sizes(table: Table, *sizes: int) -> list[Mapping[str, float]]:
    return [losses for group, losses in table.items() if len(group) in sizes]


def predictions(measured: Table, groups: list[Group]) -> dict[str, tuple[int, list[dict[str, float]], float]]:
    """By method the number of networks that it trains, the losses that it predicts, and its penalty."""
    single, pairs = of_sizes(measured, 1), of_sizes(measured, 2)
    sources = {
        "all pairs": [*single, *pairs],
        "groups of 6": [*single, *of_sizes(measured, 6)],
        "groups of 9": [*single, *of_sizes(measured, 9)],
        "groups of 6 and 9": [*single, *of_sizes(measured, 6, 9)],
        "all pairs and groups of 6 and 9": [*single, *pairs, *of_sizes(measured, 6, 9)],
        "groups of 9, no single tasks": of_sizes(measured, 9),
    }
    means, trained = higher_order_estimates(sources["all pairs"], groups), len(sources["all pairs"])
    alone = {task: loss for one in single for task, loss in one.items()}
    summed = [
        {task: alone[task] + (len(group) - 1) * (loss - alone[task]) for task, loss in one.items()}
        for group, one in zip(groups, means, strict=True)
    ]
    found = {"pairs, mean (HOA)": (trained, means, math.nan), "pairs, sum": (trained, summed, math.nan)}
    for name, source in sources.items():
        estimates = estimate_groups(source)
        found[f"ridge, {name}"] = (len(source), estimates.losses_of(groups), estimates.penalty)
    return found


def gains(groups: list[Group], losses: list[dict[str, float]], alone: Mapping[str, float]) -> Floats:
    return np.array([alone[task] - one[task] for group, one in zip(groups, losses, strict=True) for task in group])


def within(tasks: npt.NDArray[np.str_], values: Floats) -> Floats:
    """Less each task's mean."""
    means = {task: values[tasks == task].mean() for task in set(tasks.tolist())}
    return values - np.array([means[task] for task in tasks.tolist()])


def score(path: Path) -> dict[str, dict[str, float | None]]:
    """Correlations of every method's gains with those measured."""
    measured, seeds = read(path)
    groups = [group for group in seeds[0] if len(group) > 1]
    tasks = np.array([task for group in groups for task in group])
    by_seed = [
        gains(
            groups,
            [table[group] for group in groups],
            {group[0]: loss[group[0]] for group, loss in table.items() if len(group) == 1},
        )
        for table in seeds
    ]
    truth = np.mean(by_seed, axis=0)
    alone = {group[0]: losses[group[0]] for group, losses in measured.items() if len(group) == 1}
    found = {"another seed": (0, by_seed[0], by_seed[1], math.nan)} if len(by_seed) > 1 else {}
    for name, (trained, losses, penalty) in predictions(measured, groups).items():
        found[name] = (trained, gains(groups, losses, alone), truth, penalty)
    return {
        name: {
            "networks": trained,
            "penalty": None if math.isnan(penalty) else penalty,
            "pearson": float(np.corrcoef(one, other)[0, 1]),
            "spearman": float(stats.spearmanr(one, other).statistic),
            "pearson within tasks": float(np.corrcoef(within(tasks, one), within(tasks, other))[0, 1]),
            "spearman within tasks": float(stats.spearmanr(within(tasks, one), within(tasks, other)).statistic),
            "error": float(np.sqrt(np.mean((one - other) ** 2))),
        }
        for name, (trained, one, other, penalty) in found.items()
    }


def main() -> None:
    found = score(RESULTS / "sider.csv")
    write_text(RESULTS / "scores.json", json.dumps(found, indent=1) + "\n")
    for name, numbers in found.items():
        print(name, {key: value if value is None else round(value, 3) for key, value in numbers.items()})


if __name__ == "__main__":
    main()
