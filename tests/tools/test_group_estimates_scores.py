"""The recorded scores of estimates for groups of 27 tasks, recomputed from the table by scikit-learn and by hand."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "group_estimates"
Table = dict[frozenset[str], dict[str, float]]


def tables() -> dict[tuple[str, str], Table]:
    found: dict[tuple[str, str], Table] = {}
    with (RESULTS / "sider.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            table = found.setdefault((row["use"], row["seed"]), {})
            table.setdefault(frozenset(row["group"].split()), {})[row["task"]] = float(row["loss"])
    return found


@pytest.mark.parametrize("sizes", [(1, 9), (1, 6, 9), (1, 2)], ids=str)
def test_correlations_of_ridge_regression_and_of_pairs(sizes: tuple[int, ...]) -> None:
    name = {(1, 9): "groups of 9", (1, 6, 9): "groups of 6 and 9", (1, 2): "all pairs"}[sizes]
    recorded = json.loads((RESULTS / "scores.json").read_text())
    scores, hoa = recorded[f"ridge, {name}"], recorded["pairs, mean (HOA)"]
    found = tables()
    measured = found.pop(("measured", "0"))
    judged = list(found.values())
    tasks = sorted({task for group in measured for task in group})
    truth, predicted, by_pairs = [], [], []
    for task in tasks:
        own = [(group, losses[task]) for group, losses in measured.items() if task in group and len(group) in sizes]
        inputs = [[float(other in group and other != task) for other in tasks] for group, _ in own]
        model = Ridge(alpha=scores["penalty"]).fit(inputs, [loss for _, loss in own])
        alone = measured[frozenset([task])][task]
        for group in judged[0]:
            if task in group and len(group) > 1:
                gains = [table[frozenset([task])][task] - table[group][task] for table in judged]
                truth.append(np.mean(gains))
                row = [[float(other in group and other != task) for other in tasks]]
                predicted.append(alone - model.predict(row)[0])
                others = [measured[frozenset([task, other])][task] for other in group if other != task]
                by_pairs.append(alone - np.mean(others))
    assert scores["networks"] == sum(len(group) in sizes for group in measured)
    assert scores["pearson"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1], abs=1e-6)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(truth, predicted).statistic, abs=1e-6)
    assert hoa["pearson"] == pytest.approx(np.corrcoef(truth, by_pairs)[0, 1], abs=1e-6)
