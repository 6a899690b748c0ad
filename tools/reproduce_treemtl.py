"""TreeMTL's published estimates, rank correlations and multiply-adds, and the best trees of its RSA affinities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from published import Reproduction, Row, facts_json, facts_rows, run
from scipy.stats import spearmanr

from branchnet import Affinity, Budget, PairMeasurements, Tree, expected_performance, search
from branchnet.clustering import tree_size

TASKS = ("seg", "normal", "depth")
GMACS = (0.12, 0.72, 0.94, 5.74, 11.03)


def layout(text: str, tasks: Sequence[str] = TASKS) -> Tree:
    """A tree from a published layout."""
    return Tree(tasks, [[[tasks[i] for i in cluster] for cluster in stage] for stage in json.loads(text)])


def measurements() -> PairMeasurements:
    """Measured change of each task with each other at each branch point."""
    rows = facts_rows("treemtl_two_task_tables.csv")
    names = {str(number): task for number, task in enumerate(TASKS)}
    return PairMeasurements.read(rows, name="NYUv2_mobilenet_0227", tasks=names)


def estimates() -> list[Row]:
    """Estimated change of every task in 20 trees, and how the estimates rank the trees that were trained."""
    rows, measured, real, mine, theirs = [], measurements(), [], [], []
    for published in facts_rows("treemtl_nyuv2_mobilenet_20_layouts.csv"):
        found: Mapping[str, float] = expected_performance(measured, layout(published["layout_json"]))
        for task in TASKS:
            what = f"layout {published['layout_index_T3_B5']}, {task}: estimated change in percent"
            rows.append(Row(what, float(published[f"est_{task}"]), found[task], 1e-7))
        real.append(np.mean([float(published[f"real_{task}"]) for task in TASKS]))
        theirs.append(np.mean([float(published[f"est_{task}"]) for task in TASKS]))
        mine.append(np.mean([found[task] for task in TASKS]))
    ranking = "rank correlation of estimated and measured change over the 20 trees"
    return [*rows, Row(ranking, float(spearmanr(theirs, real)[0]), float(spearmanr(mine, real)[0]), 1e-9)]


def multiply_adds() -> list[Row]:
    """Multiply-adds of 21 trees on ResNet-34, each the sum of its nodes."""
    return [
        Row(
            f"layout {row['layout_index_T3_B5']}: GMACs on ResNet-34",
            float(row["GMac_224x224"]),
            tree_size(layout(row["layout_json"]), GMACS),
            0.02,
        )
        for row in facts_rows("treemtl_nyuv2_resnet34_gmac.csv")
    ]


def best_trees() -> list[Row]:
    """Clustering cost of the best tree for every number of nodes, found by exact search instead of enumeration."""
    facts = facts_json("treemtl_bmtn_rsa_head.json")
    locations = [f"block{stage}" for stage in range(1, facts["D"] + 1)]
    affinity = Affinity(facts["tasks"], locations, np.array(facts["affinity_DTT"]))
    best = {int(nodes): float(found["cost"]) for nodes, found in facts["best_per_total_node_count_recomputed"].items()}
    return [
        Row(
            f"RSA, at most {nodes} nodes: clustering cost of the best tree",
            min(cost for count, cost in best.items() if count <= nodes),
            search(affinity, [1.0] * facts["D"], Budget(nodes), objective="mean-max").cost,
            1e-7,
        )
        for nodes in sorted(best)
    ]


def reproduce() -> Reproduction:
    """All of them."""
    return Reproduction(
        "Trees of TreeMTL and of Branched Multi-Task Networks",
        "zhanglijun95/TreeMTL: two-task tables, 20 trained layouts, VerifyExp.ipynb, BranchedMTL.ipynb (RSA, K = 500)",
        (*estimates(), *multiply_adds(), *best_trees()),
    )


if __name__ == "__main__":
    run(__doc__, reproduce)
