"""What decides on trees, against trees that were all trained: every affinity, objective and estimate from pairs.

Reads the tables of `all_trees.py`, compares the single-task networks that it left in WORK, trains pairs for a quarter
and a tenth of a tree's steps, and writes what each would have chosen: rank correlations over all trees and among those
of equal widths, regret, and the place of the tree chosen. Pairs are measured under the first seed and, where there are
others, judged by those alone. Affinities and predictions are kept beside the tables, finished parts below WORK.

    python benchmarks/tree_scores.py --data DIR --work WORK
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tree_problems
from all_trees import RESULTS, STARTS, run, single_networks
from tree_problems.deciding import MEASURES, measured_affinity, pair_trees, pairs_of
from tree_problems.problem import TreeProblem

import branchnet
from branchnet import Affinity, Study, Tree, clustering_cost
from branchnet.clustering import expected_losses, smooth_measurements
from branchnet.training.studies.tree_tables import TreeTable, labels_text, score_predictions
from branchnet.utils.files import write_text

SHARES = (0.25, 0.1)
SIMILARITY = ("mean-pair", "mean-max", "diameter-sum", "sum-pair", "medoid", "gain")
Predictions = dict[str, list[float]]


def by_size(table: TreeTable) -> Predictions:
    """What needs no method: more nodes and more parameters are better, or fewer."""
    nodes = [float(sum(tree.widths)) for tree in table.trees]
    return {
        "more nodes": [-number for number in nodes],
        "more parameters": (-table.sizes).tolist(),
        "fewer nodes": nodes,
    }


def by_affinity(name: str, affinity: Affinity, table: TreeTable) -> Predictions:
    """Clustering costs under all objectives that the affinity allows."""

    def costs(values: Affinity, objective: str) -> list[float]:
        return [clustering_cost(tree, values, objective=objective) for tree in table.trees]

    mean = affinity.symmetric() if affinity.directed else affinity
    found = {f"{name}, {objective}": costs(mean, objective) for objective in SIMILARITY}
    if name.startswith("stitching"):
        found |= {f"{name}, directed {one}": costs(affinity, one) for one in ("medoid", "stitch")}
    if name.startswith("TAG"):
        found[f"{name}, transfer"] = costs(affinity, "transfer")
    return found


def by_pairs(name: str, pairs: branchnet.PairMeasurements, table: TreeTable) -> Predictions:
    """Estimates from what pairs gained."""
    means = expected_losses(pairs)
    smooth = expected_losses(smooth_measurements(pairs))
    return {
        f"{name}, mean of partners": [means.tree_cost(tree) for tree in table.trees],
        f"{name}, smoothed": [smooth.tree_cost(tree) for tree in table.trees],
        f"{name}, gains added up": [-added_up(pairs, tree) for tree in table.trees],
    }


def added_up(pairs: branchnet.PairMeasurements, tree: Tree) -> float:
    """Partners' gains added up, and the mean of their losses times the root of their number, stage by stage."""
    steps = np.diff(pairs.gain, axis=0)
    numbers = {task: k for k, task in enumerate(pairs.tasks)}
    total = 0.0
    for stage, clusters in enumerate(tree.partitions):
        for cluster in clusters:
            for task in cluster:
                partners = [numbers[other] for other in cluster if other != task]
                if partners:
                    changes = steps[stage, numbers[task], partners]
                    gains, losses = changes.clip(min=0).sum(), changes.clip(max=0).sum()
                    total += gains + losses / np.sqrt(len(partners))
    return float(total) / len(pairs.tasks)


def table_of(study: Study, like: TreeTable, seed: int) -> TreeTable:
    """A study of trees under one seed as a table."""
    trees = tuple(tree_of(arm, like.tasks) for arm in study.arms)
    values = np.array([study.values(arm)[0] for arm in study.arms])
    return TreeTable(like.tasks, trees, (seed,), values, like.lower_is_better, like.stage_costs, like.head_costs)


def tree_of(name: str, tasks: tuple[str, ...]) -> Tree:
    return Tree.from_labels(tasks, [[int(number) for number in stage] for stage in name.split()])


def short_pairs(problem: TreeProblem, start: str, share: float, work: Path, table: TreeTable) -> TreeTable:
    """Pairs and single tasks, trained for a share of the steps under the first seed."""
    depth = len(problem.locations)
    trees = [Tree.separate(problem.tasks, depth), *pair_trees(problem.tasks, depth).values()]
    arms = {labels_text(tree): tree for tree in trees}
    study = run(problem, start, 0, work / "single", work / f"{start}-pairs-{share:g}", arms, share)
    return table_of(study, table, 0)


def predictions_of(name: str, start: str, data: Path, work: Path, table: TreeTable) -> Predictions:
    """Everything that decides, for all trees of a table."""
    problem = tree_problems.load(name, data)
    seeds = [
        seed for seed in table.seeds if all((work / "single" / f"{t}-seed{seed}.pt").exists() for t in table.tasks)
    ]
    networks = {seed: single_networks(problem, seed, work / "single") for seed in seeds or [0]}
    found = by_size(table)
    for measure in MEASURES:
        file = RESULTS / "affinities" / name / f"{measure.replace(', ', '_').replace(' ', '_')}.npz"
        found |= by_affinity(measure, measured_affinity(measure, problem, networks, file), table)
    return found


def pair_predictions(name: str, start: str, data: Path, work: Path, table: TreeTable) -> Predictions:
    """Estimates from pairs under the first seed, of whole and of short trainings."""
    problem = tree_problems.load(name, data)
    found = by_pairs("pairs", pairs_of(of_first_seed(table)), table)
    for share in SHARES:
        pairs = pairs_of(short_pairs(problem, start, share, work, table))
        found |= by_pairs(f"pairs, {share:.0%} of the steps", pairs, table)
    return found


def of_first_seed(table: TreeTable) -> TreeTable:
    return table.of_seeds(table.seeds[:1])


def scored(table: TreeTable, predictions: Mapping[str, list[float]]) -> dict[str, Any]:
    """Every prediction's score, as JSON has it."""
    return {method: score_predictions(table, costs).__dict__ for method, costs in predictions.items()}


def score_table(name: str, start: str, data: Path, work: Path, *, again: bool = False) -> dict[str, Any]:
    """All scores of one problem and start, and the table's own noise."""
    table = TreeTable.read(RESULTS / f"{name}_{start}.csv")
    file = RESULTS / "predictions" / f"{name}_{start}.csv"
    if not again:
        found = predictions_of(name, start, data, work, table) | pair_predictions(name, start, data, work, table)
        write_predictions(file, table, found)
    kept = read_predictions(file, table)  # as they are written: what differs by rounding alone is equal
    pairs = {method: costs for method, costs in kept.items() if method.startswith("pairs")}
    predictions = {method: costs for method, costs in kept.items() if method not in pairs}
    others = table.of_seeds(table.seeds[1:]) if len(table.seeds) > 1 else table
    rows = [table.trees.index(tree) for tree in others.trees]
    of_others = {method: [costs[k] for k in rows] for method, costs in pairs.items()}
    spread = table.reached
    return {
        "trees": len(table.trees),
        "seeds": len(table.seeds),
        "trees under other seeds": len(others.trees) if others is not table else 0,
        "ceiling": table.noise_ceiling,
        "ceiling within widths": table.noise_ceiling_within,
        "reached": {
            "shared": float(spread[table.trees.index(Tree.shared(table.tasks, 3))]),
            "best": float(spread.max()),
            "worst": float(spread.min()),
            "best tree": labels_text(table.trees[int(spread.argmax())]),
        },
        "scores": scored(table, predictions) | scored(others, of_others),
    }


def write_predictions(path: Path, table: TreeTable, predictions: Predictions) -> None:
    """A column for each method, a line for each tree, as `tools/score_method.py` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["tree", *predictions])
        for k, tree in enumerate(table.trees):
            writer.writerow([labels_text(tree), *(f"{costs[k]:.6g}" for costs in predictions.values())])


def read_predictions(path: Path, table: TreeTable) -> Predictions:
    """What `write_predictions` wrote, in the order of the table's trees."""
    with path.open(newline="") as stream:
        rows = {row.pop("tree"): row for row in csv.DictReader(stream)}
    names = list(map(labels_text, table.trees))
    return {method: [float(rows[name][method]) for name in names] for method in rows[names[0]]}


def as_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One section for each table, methods from the best order within equal widths to the worst."""
    lines = ["# What decides on trees, scored against trees that were all trained", ""]
    lines += ["`python benchmarks/all_trees.py --data DIR --work WORK`, then", ""]
    lines += ["`python benchmarks/tree_scores.py --data DIR --work WORK`", ""]
    for key, result in results.items():
        lines += [f"## {key}", ""]
        reached = result["reached"]
        lines += [
            f"{result['trees']} trees, {result['seeds']} seeds. The best tree reaches {reached['best']:+.2f}% against "
            f"separate networks (`{reached['best tree']}`), the worst {reached['worst']:+.2f}%, the fully shared "
            f"{reached['shared']:+.2f}%. Means over seeds correlate with those of other seeds with "
            f"{result['ceiling']:.2f}, among equal widths with {result['ceiling within widths']:.2f}.",
            "",
            "| method | Spearman | within equal widths | pairs in order | regret (at random) | percentile |",
            "|---|---|---|---|---|---|",
        ]
        ordered = sorted(result["scores"].items(), key=lambda item: -np.nan_to_num(item[1]["within"][0], nan=-1))
        for method, score in ordered:
            lines.append(
                f"| {method} | {shown(score['spearman'])} | {shown(score['within'])} | {100 * score['pairs']:.0f}% | "
                f"{score['regret']:.2f} ({score['random_regret']:.2f}) | {score['percentile']:.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


def shown(numbers: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--work", type=Path, required=True, help="where all_trees.py kept its runs")
    parser.add_argument("--problems", nargs="+", choices=tree_problems.PROBLEMS, default=list(tree_problems.PROBLEMS))
    parser.add_argument("--again", action="store_true", help="score the predictions that are kept, and make none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "scores.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in arguments.problems:
        for start in STARTS:
            if (RESULTS / f"{name}_{start}.csv").exists():
                key = f"{name}, {start}"
                work = arguments.work / name
                results[key] = score_table(name, start, arguments.data, work, again=arguments.again)
                print(f"{key}: done", file=sys.stderr)
                write_text(file, json.dumps(results, indent=1) + "\n")
    write_text(RESULTS / "scores.md", as_markdown(results))


if __name__ == "__main__":
    main()
