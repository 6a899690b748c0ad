"""Estimates: how well they rank trees that were really trained, and what a few measurements mend.

Everything is read from published numbers in tests/facts, so this takes a minute and needs no data.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from branchnet.affinity.measures.pair_measurements import PairMeasurements
from branchnet.affinity.tensor import Affinity
from branchnet.clustering import (
    OBJECTIVES,
    Tree,
    clustering_cost,
    expected_losses,
    higher_order_estimates,
    refine,
    select_networks,
    smooth_measurements,
)
from branchnet.utils.files import write_text

RESULTS = Path(__file__).parent / "results"
FACTS = Path(__file__).parents[1] / "tests" / "facts"
Row = dict[str, Any]


def published_pairs(table: str, tasks: Mapping[str, str] | None = None) -> PairMeasurements:
    """TreeMTL's two-task measurements, in percent of the single task."""
    return PairMeasurements.read(FACTS / "treemtl_two_task_tables.csv", name=table, tasks=tasks)


def rank_correlations() -> list[Row]:
    """Every objective against the 20 trees that TreeMTL trained (3 tasks, 5 locations)."""
    tasks = ["seg", "normal", "depth"]
    pairs = published_pairs("NYUv2_mobilenet_0227", {str(number): task for number, task in enumerate(tasks)})
    with (FACTS / "treemtl_nyuv2_mobilenet_20_layouts.csv").open(newline="") as file:
        published = list(csv.DictReader(file))
    trees = [
        Tree(tasks, [[[tasks[i] for i in c] for c in stage] for stage in json.loads(row["layout_json"])])
        for row in published
    ]
    real = [float(np.mean([float(row[f"real_{task}"]) for task in tasks])) for row in published]
    shared = pairs.affinity().symmetric().values.copy()
    shared[:, np.arange(3), np.arange(3)] = shared.max()
    affinity = Affinity(tasks, [f"block{d}" for d in range(5)], shared / 100)
    scores = {name: [clustering_cost(t, affinity, objective=name) for t in trees] for name in OBJECTIVES}
    for how, table in (("", pairs), (", smoothed", smooth_measurements(pairs))):
        for weights in (None, "entropy"):
            losses = expected_losses(table, weights=weights)
            scores[f"expected performance, {weights or 'equal'} weights{how}"] = [losses.tree_cost(t) for t in trees]
    scores["number of nodes (baseline)"] = [float(sum(t.widths)) for t in trees]
    return [{"objective": name, "spearman": float(spearmanr(np.negative(s), real)[0])} for name, s in scores.items()]


Curve = Callable[[np.ndarray, np.ndarray, float], float]


def gaussian_process(length: float, noise: float) -> Curve:
    """The smoother of `smooth_measurements` with other settings, at one left-out place."""

    def predict(x: np.ndarray, y: np.ndarray, at: float) -> float:
        alike = np.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + np.diag(np.where(x == 0, 0.0, noise))
        return float(y.mean() + np.exp(-0.5 * ((at - x) / length) ** 2) @ np.linalg.solve(alike, y - y.mean()))

    return predict


def smoothing_errors() -> list[Row]:
    """Errors (root mean square, percent) of left-out pair measurements: what chose the smoother. No tree is used."""
    smoothers: dict[str, Curve] = {
        "between neighbours": lambda x, y, at: float(np.interp(at, x, y)),
        "mean": lambda x, y, at: float(y.mean()),
        "line": lambda x, y, at: float(np.polyval(np.polyfit(x, y, 1), at)),
        "parabola": lambda x, y, at: float(np.polyval(np.polyfit(x, y, 2), at)),
    }
    for length in (1.0, 2.0, 3.0, 5.0):
        for noise in (0.1, 0.3, 1.0):
            smoothers[f"Gaussian process, length {length:g}, noise {noise:g}"] = gaussian_process(length, noise)
    names = ("NYUv2_mobilenet_0227", "NYUv2_resnet_1129", "Taskonomy_mobilenet_0203", "Taskonomy_resnet_0123")
    rows: list[Row] = []
    for smoother, curve in smoothers.items():
        errors = {name: left_out_errors(published_pairs(name).gain, curve) for name in names}
        every = np.concatenate(list(errors.values()))
        rows.append({"smoother": smoother, "all": _rms(every)} | {name: _rms(e) for name, e in errors.items()})
    return rows


def left_out_errors(pairs: np.ndarray, curve: Curve) -> np.ndarray:
    place = np.arange(len(pairs), dtype=float)
    errors = [
        curve(place[place != b], pairs[place != b, i, j], float(b)) - pairs[b, i, j]
        for i, j in np.argwhere(~np.eye(pairs.shape[1], dtype=bool))
        for b in range(1, len(pairs))
    ]
    return np.array(errors)


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def refined_budgets() -> list[Row]:
    """Regret of Standley's selections from pair estimates, before and after at most 8 measurements."""
    rows: list[Row] = []
    for setting in ("1", "3"):
        measured_table: dict[tuple[str, float], dict[str, float]] = {}
        with (FACTS / "standley_val.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row["setting"] == setting:
                    key = (row["subset"], float(row["cost"]))
                    measured_table.setdefault(key, {})[row["task"]] = float(row["loss"])
        truth, costs = list(measured_table.values()), [cost for _, cost in measured_table]
        full = [row for (_, cost), row in measured_table.items() if cost == 1.0]
        guessed = higher_order_estimates(full, truth)
        guessed = [row if cost == 0.5 else guess for row, cost, guess in zip(truth, costs, guessed, strict=True)]
        for budget in np.arange(1.0, 5.1, 0.5).tolist():
            best = select_networks(truth, costs, budget).total_loss
            start = select_networks(guessed, costs, budget).total_on(truth)
            known = [len(row) <= 2 for row in truth]
            found = refine(guessed, costs, budget, truth.__getitem__, known=known, measurements=8)
            after = found.selection.total_loss
            row = {"setting": setting, "budget": budget, "regret": start - best, "regret_after": after - best}
            rows.append(row | {"measured": len(found.measured)})
    for setting in ("1", "3"):
        own = [row for row in rows if row["setting"] == setting]
        total = {name: sum(row[name] for row in own) for name in ("regret", "regret_after", "measured")}
        rows.append({"setting": setting, "budget": "all", **total})
    return rows


def table(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += [
        "| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()) + " |" for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for estimates.md and .json")
    arguments = parser.parse_args()
    report = {
        "rank correlation with 20 trained trees": rank_correlations(),
        "smoothing pair measurements: errors of left-out entries": smoothing_errors(),
        "select, measure, select again (8 measurements)": refined_budgets(),
    }
    text = "# Estimates\n\n" + "\n\n".join(f"## {name}\n\n{table(rows)}" for name, rows in report.items()) + "\n"
    print(text)
    write_text(arguments.out / "estimates.md", text)
    write_text(arguments.out / "estimates.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
