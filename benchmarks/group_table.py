"""Measure groups of 27 tasks: single tasks, all pairs, and random groups, each trained as one network.

Side effects of 1,427 drugs (SIDER) from 1,024-bit fingerprints; the networks share two layers and have a linear head
for each task. A fifth of the drugs is held out; networks take the best of their states by it. Random groups of six and
nine tasks, in which every task is as often, are there to be learned from; others, under other seeds, to be
predicted: `group_estimates.py` says how well. Every training is kept below --work at once.

    python benchmarks/group_table.py --data DIR --work WORK
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tree_problems.problem import Rows

import branchnet
from branchnet import StagedNetwork, Tree
from branchnet.clustering import random_groups
from branchnet.training import area_under_roc
from branchnet.training.studies.run_queue import finish_runs
from branchnet.utils.files import write_text
from branchnet.utils.random_state import seeded

RESULTS = Path(__file__).parent / "results" / "group_estimates"
STEPS, BATCH, RATE = 120, 128, 1e-3
GROUPS = 27
JUDGED_SEEDS = (1,)
JUDGED = {6: 14, 9: 14}
Group = tuple[int, ...]


def load(data: Path) -> tuple[tuple[str, ...], Rows, Rows]:
    """Names of the tasks, and rows to train on and to judge by."""
    found = np.load(data / "molnet" / "molnet_morgan1024.npz")
    x = torch.from_numpy(np.unpackbits(found["sider_fp"], axis=1)).float()
    y = torch.from_numpy(found["sider_y"]).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    names = tuple(f"t{k:02d}" for k in range(y.shape[1]))

    def rows(part: torch.Tensor) -> Rows:
        return x[part], {name: y[part, k : k + 1] for k, name in enumerate(names)}

    kept = round(0.8 * len(x))
    return names, rows(order[:kept]), rows(order[kept:])


def groups_of(count: int) -> Iterator[tuple[str, int, Group]]:
    """What is trained: what for, under which seed, and which tasks."""
    tasks = range(count)
    for group in [*combinations(tasks, 1), *combinations(tasks, 2)]:
        yield "measured", 0, group
    for size in (6, 9):
        for group in random_groups(tasks, GROUPS, size, seed=size):
            yield "measured", 0, group
    for seed in JUDGED_SEEDS:
        for group in combinations(tasks, 1):
            yield "judged", seed, group
        for size, number in JUDGED.items():
            for group in random_groups(tasks, number, size, seed=100 + size):
                yield "judged", seed, group


def network() -> nn.Module:
    """68,000 parameters."""
    return nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))


def train(names: Sequence[str], rows: Rows, held_out: Rows, seed: int) -> dict[str, Any]:
    """Train one network of these tasks; losses and areas under the ROC curve (percent) on the held-out drugs."""
    with seeded(seed):
        made = {name: network() for name in names}
    staged: dict[str, StagedNetwork] = branchnet.split_all(made, rows[0][:2], locations=["1", "3"])
    joint = branchnet.build(Tree.shared(names, 2), staged, init="donor", seed=seed)

    def of_tasks(part: Rows) -> Rows:
        return part[0], {name: part[1][name] for name in names}

    history = branchnet.fit(
        joint, of_tasks(rows), dict.fromkeys(names, F.binary_cross_entropy_with_logits), validation=of_tasks(held_out),
        every=STEPS // 12, steps=STEPS, batch_size=BATCH, learning_rate=RATE, clip=None, seed=seed, progress=False,
    )  # fmt: skip
    kept = next(one.losses for one in history.measurements if one.step == history.kept_step)
    areas = branchnet.evaluate(joint, of_tasks(held_out), None, dict.fromkeys(names, area_under_roc()))
    return {"losses": dict(kept), "areas": areas}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, rows, held_out = load(arguments.data)
    wanted = {
        "-".join(map(str, group)) + f"-seed{seed}": (use, seed, group) for use, seed, group in groups_of(len(names))
    }
    runs = {
        key: partial(train, [names[k] for k in group], rows, held_out, seed) for key, (_, seed, group) in wanted.items()
    }
    found = finish_runs(arguments.work, {"steps": STEPS, "batch": BATCH, "rate": RATE}, runs, description="groups")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["use", "seed", "group", "task", "loss", "area"])
    for key, (use, seed, group) in wanted.items():
        for k in group:
            loss, area = (found[key][kind][names[k]] for kind in ("losses", "areas"))
            writer.writerow([use, seed, " ".join(names[i] for i in group), names[k], f"{loss:.6g}", f"{area:.6g}"])
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / "sider.csv", stream.getvalue())


if __name__ == "__main__":
    main()
