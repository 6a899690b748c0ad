"""Four published procedures from nothing to tested networks, and ours: accuracy at equal inference cost, search cost.

BMTN (Vandenhende et al. 2020), Standley et al. 2020 (all sets, ESA, HOA), TAG (Fifty et al. 2021) and TreeMTL (Zhang et
al. 2022) as they were published, on one problem of `tree_problems` with networks of linear layers. A fifth of the
training samples is kept apart: networks take the best of their states by it, and procedures choose by it. The test is
seen by none. Every training is kept below --work at once: the same command goes on, and started several times it works
on several processors. `tools/published_procedures.py` makes the tables from the lines that this writes.

    python benchmarks/published_procedures.py --data DIR --work WORK --problems tox21 ett
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tree_problems
from procedures.choices import BUDGETS, PROCEDURES, Candidates, Choice, Runs, random_groups, random_trees
from procedures.trained_networks import (
    EARLY,
    HELD_OUT,
    Network,
    Result,
    Setting,
    measure_rsa,
    measure_tag,
    train_longer,
    train_network,
)

from branchnet.training.studies.run_queue import finish_runs
from branchnet.utils.files import write_text

PROBLEMS = ("tox21", "ett")
RESULTS = Path(__file__).parent / "results" / "published_procedures"
LONGER = "separate, twice the steps"
Work = dict[str, Callable[[], Result]]


def trained(setting: Setting, networks: list[Network]) -> Work:
    """A training for each network."""
    return {network.name: partial(train_network, setting, network) for network in networks}


def do(setting: Setting, work: Work) -> Runs:
    """Do what is not done yet."""
    problem = setting.problem
    manifest = {"steps": problem.steps, "held out": HELD_OUT, "early": EARLY, "seed": setting.seed}
    return finish_runs(setting.folder.parent / f"seed{setting.seed}", manifest, work, description="networks")


def arms_of(setting: Setting, runs: Runs) -> Iterator[tuple[str, float, int, Choice]]:
    """Name, budget and number of every choice, procedures' and random ones."""
    for name, procedure in PROCEDURES.items():
        for budget in BUDGETS:
            if name not in ("separate", "shared") or budget == BUDGETS[0]:
                yield name, budget, 0, procedure(setting, runs, budget)
    for budget in BUDGETS:
        for number, choice in enumerate(random_trees(setting, budget)):
            yield "random trees", budget, number, choice
        for number, choice in enumerate(random_trees(setting, budget, "stitch")):
            yield "random trees, stitched", budget, number, choice
        for number, choice in enumerate(random_groups(setting, budget)):
            yield "random groups", budget, number, choice


def row_of(name: str, budget: float, number: int, choice: Choice, runs: Runs) -> dict[str, Any]:
    """A line of the table: what was chosen, how it does in the test, and what it took."""
    extra = [network for network in choice.networks if network.name not in choice.searched]
    after = sum(runs[network.name]["work"] for network in extra)
    if choice.search_share < 1:  # what was chosen early goes on
        after += (1 - choice.search_share) * sum(runs[one.name]["work"] for one in choice.networks)
    metrics = {task: runs[network.name]["test"][task] for task, network in choice.serving.items()}
    return {
        "procedure": name,
        "budget": f"{budget:g}",
        "number": number,
        "networks": " ".join(network.name for network in choice.networks),
        "inference": f"{sum(runs[one.name]['size'] + runs[one.name]['stitches'] for one in choice.networks):.4f}",
        "search": f"{choice.search_share * sum(runs[one]['work'] for one in choice.searched):.4f}",
        "final": f"{after:.4f}",
    } | {task: f"{value:.6g}" for task, value in metrics.items()}


def rows_of_seed(setting: Setting) -> list[dict[str, Any]]:
    """Train what one seed needs, and say what every procedure makes of it."""
    known = Candidates(setting)
    work = trained(setting, known.single)
    do(setting, work)
    work |= {"rsa": partial(measure_rsa, setting), "tag": partial(measure_tag, setting)}
    work |= {f"longer {task}": partial(train_longer, setting, task) for task in known.tasks}
    work |= trained(setting, known.all())
    arms = list(arms_of(setting, do(setting, work)))
    work |= trained(setting, [network for *_, choice in arms for network in choice.networks])
    runs = do(setting, work)
    rows = [row_of(*arm, runs) for arm in arms]
    longer = {task: f"{runs[f'longer {task}']['test'][task]:.6g}" for task in known.tasks}
    separate = next(row for row in rows if row["procedure"] == "separate")
    rows.append(separate | {"procedure": LONGER, "networks": "longer", "final": f"{2 * len(longer):.4f}"} | longer)
    return [{"seed": setting.seed} | row for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.problems:
        problem = tree_problems.load(name, arguments.data)
        rows: list[dict[str, Any]] = []
        for seed in arguments.seeds:
            rows += rows_of_seed(Setting.divided(problem, seed, arguments.work / name / "single"))
            stream = io.StringIO()
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            RESULTS.mkdir(parents=True, exist_ok=True)
            write_text(RESULTS / f"{name}.csv", stream.getvalue())
            print(f"{name}, seed {seed}: {len(rows)} lines", file=sys.stderr)


if __name__ == "__main__":
    main()
