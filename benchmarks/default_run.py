"""What `branchnet.run` does to every task when nothing is set: overlay36's eight networks, before and after training.

Trains the single-task networks of `overlay36.py` with labels, gives them and the same images without labels to
`branchnet.run` with a budget and nothing else, and prints every task's agreement with its own network on images that
the run trained and chose nothing on: without stitches, stitched, trained, next to a constant answer; and, on images
that no network has seen, the labelled metrics of the single-task networks and of the result. A task that ends worse
than it began is named.

    python benchmarks/default_run.py --data DIR --work DIR

Finished steps are kept below --work; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import overlay36
import torch

import branchnet
from branchnet import SeparateNetworks
from branchnet.reporting.comparison import BEFORE_TRAINING, CONSTANT, WITHOUT_STITCHES
from branchnet.utils.files import write_text

BUDGETS = ("35% params", "50% params")
SINGLE_STEPS = 600


def main() -> None:
    """Run every budget, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds overlay36/overlay36.npz")
    parser.add_argument("--work", type=Path, required=True, help="folder for networks and finished steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the report")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train, test = overlay36.load(options.data / "overlay36")
    folder = options.work / f"seed{options.seed}"
    singles = {
        task: overlay36.single_network(task, options.seed, train, folder, SINGLE_STEPS) for task in overlay36.TASKS
    }
    runs = [run_budget(budget, singles, train, test, folder, options.seed) for budget in BUDGETS]
    write_text(options.out / "default_run.json", json.dumps(runs, indent=1) + "\n")
    write_text(options.out / "default_run.md", as_markdown(runs))
    print(as_markdown(runs))


def run_budget(
    budget: str,
    singles: dict[str, torch.nn.Module],
    train: overlay36.Split,
    test: overlay36.Split,
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """One run with defaults, and the labelled metrics of what it made; plain data."""
    place = folder / f"run-{budget.split('%')[0]}"
    result = branchnet.run(singles, train.images, budget, folder=place, seed=seed, compiled=False)
    metrics = overlay36.metrics()
    separate = SeparateNetworks(singles)
    return {
        "budget": budget,
        "tree": str(result.tree),
        "proposer": result.proposer,
        "agreement": {one.name: dict(one.metrics) for one in result.comparison.networks},
        "metrics": dict(result.comparison.metric_names),
        "labels": {
            "separate": branchnet.evaluate(separate, test.images, test.labels, metrics, batch_size=500),
            "branched": branchnet.evaluate(result.network, test.images, test.labels, metrics, batch_size=500),
        },
        "summary": str(result).splitlines()[-1 - len(singles)],
    }


def as_markdown(runs: list[dict[str, Any]]) -> str:
    """Tables, one for each budget."""
    lines = [
        "# What a run with defaults does to every task",
        "",
        "`python benchmarks/default_run.py --data DIR --work DIR`",
        "",
        "Eight CNNs of overlay36, trained with labels; `branchnet.run(networks, images, budget)` and nothing else, on",
        "8,000 images without labels. Agreement is the share of the own network's variance that is explained, in",
        "percent, on 1,600 of them that the run trained and chose nothing on: 100 as the own network, 0 as its mean.",
        "The last two columns are labelled metrics (accuracy or R squared, in percent) on 2,000 images that no network",
        "has seen.",
        "",
    ]
    for run in runs:
        agreement = run["agreement"]
        columns = [WITHOUT_STITCHES, BEFORE_TRAINING, "branched", CONSTANT]
        heads = [
            "task",
            *("trained" if name == "branched" else name for name in columns),
            "own, labels",
            "result, labels",
        ]
        lines += [f"## {run['budget']}", "", f"Proposed by {run['proposer']}:", "", "```", run["tree"], "```", ""]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        worse = []
        for task in run["metrics"]:
            values = [agreement[name][task] for name in columns]
            labels = [run["labels"][name][task] for name in ("separate", "branched")]
            lines.append(f"| {task} | " + " | ".join(f"{value:.1f}" for value in (*values, *labels)) + " |")
            if agreement["branched"][task] < agreement[BEFORE_TRAINING][task] - 1:
                worse.append(task)
        lines += ["", f"Worse than before training by more than a point: {', '.join(worse) or 'none'}.", ""]
        lines += [f"What the run says: {run['summary']}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
