"""Training with labels on real data: `fit` against a plain PyTorch loop, with labels missing, dense tasks, and by time.

DIR holds the data sets' archives. tox21: 12 assays of 8,006 molecules (1,024-bit fingerprints), most labels missing.
camvid: classes, boundaries between them and the layout (sky, upright, ground) of 120 x 160 street scenes, official
splits. ett: the next day of seven series of a transformer station from the last four days, split by time. A branched
network shares its first stages among all tasks, its next one in groups. Its rows: the best constant answer, before
training, a loop in plain PyTorch, `fit` with that loop's settings, and `fit` with its defaults.

    python benchmarks/labelled.py --data DIR
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.training import Metric, area_under_roc, constant_scores, edge_f_score, mean_iou, r_squared
from branchnet.training.optimization.batch_order import sample_indices
from branchnet.training.optimization.schedules import cosine

VOID = 11
LAYOUT = torch.tensor([0, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 255])  # sky, upright, ground of CamVid's classes
Rows = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Problem:
    """A data set with its tasks."""

    train: Rows
    validation: Rows
    test: Rows
    losses: Mapping[str, Callable[[Any, Any], Tensor]]
    metrics: Mapping[str, Metric]
    network: Callable[[], BranchedNetwork]
    steps: int
    batch_size: int
    learning_rate: float


def tox21(data: Path) -> Problem:
    """Twelve assays; a label that was not measured is NaN."""
    found = np.load(data / "molnet" / "molnet_morgan1024.npz")
    x = torch.from_numpy(np.unpackbits(found["tox21_fp"], axis=1)).float()
    values = torch.from_numpy(found["tox21_y"]).float()
    values[values < 0] = torch.nan
    tasks = [str(task) for task in found["tox21_tasks"]]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = order.split([6400, 803, 803])

    def rows(part: Tensor) -> Rows:
        return x[part], {task: values[part, k : k + 1] for k, task in enumerate(tasks)}

    def single() -> nn.Module:
        return nn.Sequential(
            nn.Linear(1024, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def network() -> BranchedNetwork:
        half = [tuple(task for task in tasks if task.startswith(prefix)) for prefix in ("NR", "SR")]
        return branched(tasks, half, lambda task: single(), x[:2], ["2", "4"])

    return Problem(
        *map(rows, parts),
        losses=dict.fromkeys(tasks, F.binary_cross_entropy_with_logits),
        metrics={task: area_under_roc() for task in tasks},
        network=network,
        steps=600,
        batch_size=128,
        learning_rate=1e-3,
    )


def camvid(data: Path) -> Problem:
    """Dense tasks with void pixels, which count neither in losses nor in metrics."""
    found = np.load(data / "camvid120" / "camvid120.npz")

    def rows(split: str) -> Rows:
        x = torch.from_numpy(found[f"{split}_images"]).permute(0, 3, 1, 2).float() / 255
        classes = torch.from_numpy(found[f"{split}_labels"]).long()
        edges = torch.zeros(classes.shape)
        edges[:, :-1] = (classes[:, 1:] != classes[:, :-1]).float()
        edges[:, :, :-1] = torch.maximum(edges[:, :, :-1], (classes[:, :, 1:] != classes[:, :, :-1]).float())
        labels = {"classes": classes.masked_fill(classes == VOID, 255), "layout": LAYOUT[classes]}
        return x, labels | {"boundaries": edges[:, None]}

    outputs = {"classes": 11, "layout": 3, "boundaries": 1}

    def single(task: str) -> nn.Module:
        def block(inputs: int, width: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())

        return nn.Sequential(
            block(3, 16), block(16, 32, 2), block(32, 48, 2), block(48, 48),
            nn.Conv2d(48, outputs[task], 1), nn.Upsample(scale_factor=4, mode="bilinear"),
        )  # fmt: skip

    def network() -> BranchedNetwork:
        halves = [("classes", "layout"), ("boundaries",)]
        return branched(list(outputs), halves, single, torch.rand(2, 3, 120, 160), ["1", "3"])

    entropy = nn.CrossEntropyLoss(ignore_index=255)
    return Problem(
        *map(rows, ("train", "val", "test")),
        losses={"classes": entropy, "layout": entropy, "boundaries": F.binary_cross_entropy_with_logits},
        metrics={
            "classes": mean_iou(11, ignore=255),
            "layout": mean_iou(3, ignore=255),
            "boundaries": edge_f_score(),
        },
        network=network,
        steps=250,
        batch_size=8,
        learning_rate=2e-3,
    )


def ett(data: Path) -> Problem:
    """The next 24 hours of seven series from the last 96; 12, 4 and 4 months, with nothing that reaches across."""
    with (data / "ett" / "ETTh1.csv").open() as file:
        read = list(csv.reader(file))
    names, series = read[0][1:], torch.tensor([[float(value) for value in row[1:]] for row in read[1:]])
    month = 30 * 24
    series = (series - series[: 12 * month].mean(0)) / series[: 12 * month].std(0)

    def rows(start: int, end: int) -> Rows:
        starts = torch.arange(start * month, end * month - 120, 3)
        windows = torch.stack([series[begin : begin + 120] for begin in starts.tolist()])
        return windows[:, :96].flatten(1), {name: windows[:, 96:, k] for k, name in enumerate(names)}

    def single() -> nn.Module:
        return nn.Sequential(nn.Linear(96 * 7, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 24))

    def network() -> BranchedNetwork:
        return branched(names, [tuple(names[:6]), ("OT",)], lambda task: single(), torch.rand(2, 96 * 7), ["1", "3"])

    return Problem(
        rows(0, 12), rows(12, 16), rows(16, 20),
        losses=dict.fromkeys(names, F.mse_loss),
        metrics={name: r_squared() for name in names},
        network=network, steps=400, batch_size=64, learning_rate=1e-3,
    )  # fmt: skip


def branched(
    tasks: list[str], groups: list[tuple[str, ...]], single: Callable[[str], nn.Module], example: Tensor, at: list[str]
) -> BranchedNetwork:
    """Shared by all at first, then in groups; the same random weights each time."""
    torch.manual_seed(0)
    networks = {task: single(task) for task in tasks}
    tree = Tree(tasks, [[tuple(tasks)], groups])
    return branchnet.build(tree, networks, example=example, locations=at, init="donor")


def plain_loop(network: BranchedNetwork, problem: Problem) -> None:
    """AdamW on the sum of the tasks' mean losses over known labels, as one would write it."""
    x, labels = problem.train
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    for step in range(problem.steps):
        index = sample_indices(step, len(x), problem.batch_size, 0)
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = problem.learning_rate * cosine(step, problem.steps)
        optimizer.zero_grad()
        outputs, total = network(x[index]), torch.zeros(())
        for task, loss in problem.losses.items():
            wanted = labels[task][index]
            known = ~wanted.isnan().flatten(1).all(1) if wanted.is_floating_point() else torch.ones(len(index)).bool()
            if known.any():
                total = total + loss(outputs[task][known], wanted[known])
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    network.eval()


def measured(network: nn.Module, problem: Problem) -> dict[str, float]:
    """Each task's metric on the test samples."""
    return branchnet.evaluate(network, *problem.test, problem.metrics)


def bench(problem: Problem) -> dict[str, Any]:
    """All rows of one data set."""
    rows: dict[str, dict[str, float]] = {}
    train_labels, test_labels = problem.train[1], problem.test[1]
    rows["constant answer"] = constant_scores(train_labels, test_labels, problem.metrics)
    rows["before training"] = measured(problem.network(), problem)
    seconds = {}
    network = problem.network()
    start = time.process_time()
    plain_loop(network, problem)
    seconds["plain loop"] = time.process_time() - start
    rows["plain loop"] = measured(network, problem)
    given: dict[str, Any] = {"steps": problem.steps, "batch_size": problem.batch_size, "progress": False}
    network = problem.network()
    start = time.process_time()
    same = {"learning_rate": problem.learning_rate, "keep": "last"}
    branchnet.fit(network, problem.train, problem.losses, **given, **same)  # type: ignore[arg-type]
    seconds["fit, the same settings"] = time.process_time() - start
    rows["fit, the same settings"] = measured(network, problem)
    network = problem.network()
    start = time.process_time()
    history = branchnet.fit(network, problem.train, problem.losses, validation=problem.validation, **given)
    seconds["fit, defaults"] = time.process_time() - start
    rows["fit, defaults"] = measured(network, problem)
    known = {task: float(1 - labels.float().isnan().float().mean()) for task, labels in train_labels.items()}
    return {
        "metric": sorted({metric.name for metric in problem.metrics.values()}),
        "known": sum(known.values()) / len(known),
        "rows": rows,
        "seconds": seconds,
        "learning_rate": history.learning_rate,
        "kept_step": history.kept_step,
        "steps": problem.steps,
        "worse": history.worse,
    }


def as_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["# Training with labels on real data", "", "`python benchmarks/labelled.py --data DIR`", ""]
    lines += ["Test samples, one seed, larger is better. `fit` by its defaults finds its learning rate and keeps the"]
    lines += ["state that is best on the validation samples. CPU seconds, one thread.", ""]
    for name, found in results.items():
        tasks = list(next(iter(found["rows"].values())))
        shown = tasks if len(tasks) <= 4 else []
        lines += [
            f"## {name}",
            "",
            f"{len(tasks)} tasks ({', '.join(found['metric'])}), {100 * found['known']:.0f}% of ",
        ]
        lines[-1] += (
            f"the labels known; {found['steps']} steps; by default the rate {found['learning_rate']:g} and the "
        )
        lines[-1] += f"state after {found['kept_step']} steps."
        lines += ["", f"| | {' | '.join(['mean', *shown, 'CPU seconds'])} |", "|---" * (3 + len(shown)) + "|"]
        for row, values in found["rows"].items():
            cells = [sum(values.values()) / len(values), *(values[task] for task in shown)]
            used = found["seconds"].get(row)
            shown_cells = [f"{cell:.2f}" for cell in cells] + ["" if used is None else f"{used:.0f}"]
            lines.append(f"| {row} | " + " | ".join(shown_cells) + " |")
        if found["worse"]:
            lines += ["", "Worse: " + "; ".join(f"{task} {reason}" for task, reason in found["worse"].items()) + "."]
        lines.append("")
    lines.append(f"{platform.processor() or platform.machine()}, torch {torch.__version__}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with molnet, camvid120 and ett")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    makers = {"tox21": tox21, "camvid": camvid, "ett": ett}
    file = arguments.out / "labelled.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name, make in makers.items():
        if name not in results:
            results[name] = bench(make(arguments.data))
            file.write_text(json.dumps(results, indent=1) + "\n")
            (arguments.out / "labelled.md").write_text(as_markdown(results))
    print(as_markdown(results))


if __name__ == "__main__":
    main()
