"""How well an affinity, an objective or any other prediction orders trees that were really trained.

A table is one of `benchmarks/results/all_trees`, which say for every tree of four tasks what it reached. Predictions
come from affinities that `Affinity.save` wrote, under each objective, or from a CSV file with the columns `tree` (as in
the table) and one for each method, smaller is better. Next to them stand the number of nodes and the parameters, which
any method must beat.

    python tools/score_method.py benchmarks/results/all_trees/tox21_labels.csv rsa.npz my_predictions.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from branchnet import Affinity, clustering_cost
from branchnet.errors import BranchnetError, DataError
from branchnet.reporting.tables import Column, Table
from branchnet.training.studies.tree_tables import PredictionScore, TreeTable, labels_text, score_predictions

OBJECTIVES = ("mean-pair", "mean-max", "medoid", "stitch")


def by_size(table: TreeTable) -> dict[str, list[float]]:
    """What is known without any method: more nodes and more parameters are better."""
    return {
        "number of nodes": [-float(sum(tree.widths)) for tree in table.trees],
        "parameters": (-table.sizes).tolist(),
    }


def by_affinity(table: TreeTable, path: Path) -> dict[str, list[float]]:
    """Clustering costs of all trees under every objective that the affinity allows."""
    affinity = Affinity.load(path)
    objectives = [one for one in OBJECTIVES if one != "stitch" or affinity.directed]
    return {
        f"{path.stem}, {objective}": [clustering_cost(tree, affinity, objective=objective) for tree in table.trees]
        for objective in objectives
    }


def by_file(table: TreeTable, path: Path) -> dict[str, list[float]]:
    """The columns of a CSV file."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = {row["tree"]: row for row in csv.DictReader(stream)}
    names = list(map(labels_text, table.trees))
    if missing := [name for name in names if name not in rows]:
        raise DataError(f"{path} lacks {len(missing)} trees of the table, {missing[0]!r} first; expected all of them")
    methods = [column for column in next(iter(rows.values())) if column != "tree"]
    return {method: [float(rows[name][method]) for name in names] for method in methods}


def row_of(method: str, score: PredictionScore) -> tuple[str, ...]:
    """A line of the table that is printed."""

    def interval(numbers: Sequence[float]) -> str:
        return "{:.2f} [{:.2f}, {:.2f}]".format(*numbers)

    return (
        method,
        interval(score.spearman),
        interval(score.within),
        f"{100 * score.pairs:.0f}%",
        f"{score.regret:.2f}",
        f"{score.random_regret:.2f}",
        f"{score.percentile:.0f}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a CSV file of trained trees")
    parser.add_argument("methods", type=Path, nargs="*", help="affinities (.npz) or predictions (.csv)")
    arguments = parser.parse_args()
    try:
        table = TreeTable.read(arguments.table)
        predictions = by_size(table)
        for path in arguments.methods:
            predictions |= by_file(table, path) if path.suffix == ".csv" else by_affinity(table, path)
        rows = [row_of(method, score_predictions(table, costs)) for method, costs in predictions.items()]
    except BranchnetError as error:
        print(error, file=sys.stderr)
        return 2
    title = (
        f"{arguments.table.stem}: {len(table.trees)} trees, {len(table.seeds)} seeds, correlation of their means with "
        f"those of other seeds {table.noise_ceiling:.2f}"
    )
    columns = ("prediction", "Spearman", "within equal widths", "pairs in order", "regret", "at random", "percentile")
    Console(width=140).print(Table(title, tuple(map(Column, columns)), tuple(rows)).to_rich())
    return 0


if __name__ == "__main__":
    sys.exit(main())
