"""Train every tree of four tasks with three stages on real data, to know what methods that choose trees are worth.

DIR holds the data sets. `labels`: from random weights. `distilled`: from single-task networks that were trained so, by
stitching and distillation without labels. Every run is kept below --work at once: the same command goes on, and started
several times it works on several processors. After each seed, and with `--table` at any time, the tables are written:
a line for each training, the tree as the number of each task's node, stage by stage ("0000 0011 0123": all share the
first stage, two pairs the second).

    python benchmarks/all_trees.py --data DIR --work WORK --problems tox21 ett --starts labels distilled
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import tree_problems
from torch import nn
from tree_problems.problem import TreeProblem

import branchnet
from branchnet import Tree
from branchnet.training.studies.tree_tables import labels_text
from branchnet.utils.files import write_text

STAGES = 3
STARTS = ("labels", "distilled")
DISTILLED_STEPS = 100
DISTILLED_RATE = 3e-4
PROBE = 256
RESULTS = Path(__file__).parent / "results" / "all_trees"


def arms_of(problem: TreeProblem, *, first: bool) -> dict[str, Tree]:
    """All trees, or a sample of them where one training is long; further seeds may have a smaller one."""
    trees = {labels_text(tree): tree for tree in branchnet.enumerate_trees(problem.tasks, STAGES)}
    wanted = problem.sampled if first or problem.repeated is None else problem.repeated
    if wanted is None:
        return trees
    always = [labels_text(tree) for tree in (Tree.shared(problem.tasks, STAGES), Tree.separate(problem.tasks, STAGES))]
    others = random.Random(0).sample(sorted(set(trees) - set(always)), wanted - len(always))
    return {name: trees[name] for name in (*always, *others)}


def single_networks(problem: TreeProblem, seed: int, folder: Path) -> dict[str, nn.Module]:
    """Each task's own network, trained with labels as the trees are."""
    networks = {}
    for task, factory in problem.factories.items():
        torch.manual_seed(seed)
        network, file = factory(), folder / f"{task}-seed{seed}.pt"
        if file.exists():
            network.load_state_dict(torch.load(file, weights_only=True))
        else:
            rows = (problem.train[0], problem.train[1][task])
            branchnet.fit(network, rows, problem.losses[task], seed=seed, **settings_of(problem))
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), file)
        networks[task] = network.eval()
    return networks


def settings_of(problem: TreeProblem) -> dict[str, Any]:
    """Nothing is chosen by held-out samples, and no norm over all tasks couples separate ones."""
    return {
        "steps": problem.steps,
        "batch_size": problem.batch_size,
        "learning_rate": problem.learning_rate,
        "keep": "last",
        "clip": None,
        "progress": False,
    }


def run(
    problem: TreeProblem,
    start: str,
    seed: int,
    single: Path,
    folder: Path,
    arms: Mapping[str, Tree],
    share: float = 1.0,
) -> branchnet.Study:
    """Train trees of a problem under one seed, for a share of the steps."""
    networks: Mapping[str, nn.Module | Callable[[], nn.Module]] = problem.factories
    settings = settings_of(problem)
    if start == "distilled":
        networks = single_networks(problem, seed, single)
        settings |= {"steps": DISTILLED_STEPS, "learning_rate": DISTILLED_RATE}
    steps = max(1, round(share * settings.pop("steps")))
    return branchnet.compare(
        arms,
        networks,
        train=problem.train,
        test=problem.test,
        losses=problem.losses if start == "labels" else None,
        metrics=problem.metrics,
        seeds=[seed],
        steps=steps,
        example=problem.train[0][:2],
        locations=problem.locations,
        probe=problem.train[0][:PROBE] if start == "distilled" else None,
        folder=folder,
        **{**settings, "progress": True},
    )


def rows_below(folder: Path, start: str) -> list[dict[str, Any]]:
    """Every finished training of a problem, by seed and tree."""
    found = []
    for file in folder.glob(f"{start}-seed*/runs/*.json"):
        result = json.loads(file.read_text())
        metrics = {task: f"{value:.6g}" for task, value in result["metrics"].items()}
        found.append(
            {"tree": result["arm"], "seed": result["seed"], **metrics, "steps": result["steps"]}
            | {"seconds": f"{result['seconds']:.2f}"}
        )
    return sorted(found, key=lambda row: (row["seed"], row["tree"]))


def write_tables(work: Path, names: Iterable[str]) -> None:
    """A table for each problem and start that has any rows."""
    for name in names:
        for start in STARTS:
            if rows := rows_below(work / name, start):
                text = [list(rows[0]), *(list(row.values()) for row in rows)]
                RESULTS.mkdir(parents=True, exist_ok=True)
                write_text(RESULTS / f"{name}_{start}.csv", "".join(",".join(map(str, line)) + "\n" for line in text))
                print(f"{name}, {start}: {len(rows)} rows", file=sys.stderr)


def describe(name: str, problem: TreeProblem) -> None:
    """Keep what the tables of a problem mean: metrics, and parameters of stages and heads."""
    staged = branchnet.split_all(
        {task: factory() for task, factory in problem.factories.items()},
        problem.train[0][:2],
        locations=problem.locations,
    )
    first = next(iter(staged.values()))
    file = RESULTS / "problems.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    found[name] = {
        "tasks": {
            task: {"metric": metric.name, "lower_is_better": not metric.larger_is_better}
            for task, metric in problem.metrics.items()
        },
        "stages": [sum(p.numel() for p in stage.parameters()) for stage in first.stages],
        "heads": {task: sum(p.numel() for p in network.head.parameters()) for task, network in staged.items()},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--problems", nargs="+", choices=tree_problems.PROBLEMS, default=list(tree_problems.PROBLEMS))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="only write the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        for seed in arguments.seeds:
            for name in arguments.problems:
                problem = tree_problems.load(name, arguments.data)
                describe(name, problem)
                for start in arguments.starts:
                    folder = arguments.work / name
                    arms = arms_of(problem, first=seed == 0)
                    run(problem, start, seed, folder / "single", folder / f"{start}-seed{seed}", arms)
                    write_tables(arguments.work, [name])
    write_tables(arguments.work, arguments.problems)


if __name__ == "__main__":
    main()
