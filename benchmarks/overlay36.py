"""A data set whose right tree is known: real digits over real garments, four tasks about each.

Trains eight single-task networks with labels, measures their RSA affinity, and looks for the best tree within the
parameters of two backbones (an eighth of the separate ones, twice). Then the chosen tree, ten random trees of the same
widths, and the fully shared network are trained from the donors' weights, all with the same number of steps, for each
of three seeds. Locations, budget and objective are fixed here, before any result.

Every trained network is cached in `--work`; a second run goes on where the first one stopped.

    python benchmarks/overlay36.py --data DIR --work DIR --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

import branchnet
from branchnet import Affinity, SeparateNetworks, StagedNetwork, Tree
from branchnet.clustering import tree_sampler
from branchnet.deploy import load_weights, save_weights
from branchnet.reporting import save_figure
from branchnet.reporting.plots.figures import styled
from branchnet.training import Metric, accuracy, explained_variance
from branchnet.utils.files import write_text

TASKS = ("m_class", "m_slant", "m_ink", "m_pos", "f_class", "f_aspect", "f_ink", "f_pos")
OUTPUTS = {"m_class": 10, "f_class": 10, "m_pos": 2, "f_pos": 2}
LOCATIONS = ("stage1", "stage2", "stage3", "stage4", "stage5")
WIDTHS, STRIDES = (12, 16, 24, 32, 40), (2, 2, 1, 2, 2)
OBJECTIVES = ("mean-pair", "mean-max")
EQUAL_STEPS = "separate, as many more steps"
COMPARED = {
    "chosen_minus_random": "the mean of ten random trees",
    "chosen_minus_shared": "all shared",
    "chosen_minus_equal_steps": "the separate networks after as many more steps",
}
N_TRAIN, PROBE, BATCH = 8000, 500, 128
RANDOM_TREES, RATE = 10, 4e-3


@dataclass(frozen=True)
class Split:
    """Images (K, 1, 36, 36) and, for each task, K labels; regression targets standardised by the training half."""

    images: Tensor
    labels: dict[str, Tensor]


def main() -> None:
    """Run what is missing in the work folder, then write the report."""
    options = _arguments()
    train, test = load(options.data)
    if options.equal_steps:
        write_report(with_equal_steps(train, test, options), options)
        return
    runs = [run_seed(seed, train, test, options) for seed in range(options.seeds)]
    if options.single_only:
        return
    write_report(summarise(runs, options), options)


def write_report(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Write numbers, page and picture, and print the page."""
    name = "overlay36_divided" if options.divide_rate else "overlay36"
    write_text(options.out / f"{name}.json", json.dumps(report, indent=1) + "\n")
    write_text(options.out / f"{name}.md", as_markdown(report))
    save_figure(draw(report), options.out / f"{name}.png")
    print(as_markdown(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds overlay36.npz")
    parser.add_argument("--work", type=Path, required=True, help="folder for trained networks and partial results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--single-steps", type=int, default=600, help="steps of each single-task network")
    parser.add_argument("--tree-steps", type=int, default=300, help="steps of each branched network")
    parser.add_argument("--rate", type=float, default=RATE, help="peak learning rate")
    parser.add_argument("--divide-rate", action="store_true", help="divide a node's rate by the tasks that it serves")
    parser.add_argument("--single-only", action="store_true", help="stop when the single-task networks are trained")
    parser.add_argument("--equal-steps", action="store_true", help="add the separate networks after as many more steps")
    return parser.parse_args()


def load(folder: Path) -> tuple[Split, Split]:
    """The first 8,000 images for training, the other 2,000 for testing."""
    with np.load(folder / "overlay36.npz") as stored:
        images = torch.from_numpy(stored["images"])[:, None].float() / 255
        labels = {task: torch.from_numpy(stored[task]) for task in TASKS}
    images = (images - images[:N_TRAIN].mean()) / images[:N_TRAIN].std()
    labels = {task: label if task.endswith("class") else _standardised(label) for task, label in labels.items()}
    halves = (slice(None, N_TRAIN), slice(N_TRAIN, None))
    train, test = (Split(images[half], {task: label[half] for task, label in labels.items()}) for half in halves)
    return train, test


def _standardised(values: Tensor) -> Tensor:
    known = values[:N_TRAIN]
    return (values - known.mean(0)) / known.std(0)


def network(task: str) -> nn.Sequential:
    """A CNN of five stages and about 25,000 parameters."""
    sizes = (1, *WIDTHS)
    stages = OrderedDict((name, _stage(sizes[i], sizes[i + 1], STRIDES[i])) for i, name in enumerate(LOCATIONS))
    head = nn.Sequential(nn.Flatten(), nn.Linear(9 * WIDTHS[-1], OUTPUTS.get(task, 1)))
    return nn.Sequential(OrderedDict([*stages.items(), ("head", head)]))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def loss(task: str) -> Any:
    """Cross-entropy for classes, mean squared error otherwise."""
    return F.cross_entropy if task.endswith("class") else F.mse_loss


def metrics() -> dict[str, Metric]:
    """Accuracy, or explained variance (R squared), both in percent."""
    return {task: accuracy() if task.endswith("class") else explained_variance() for task in TASKS}


def run_seed(seed: int, train: Split, test: Split, options: argparse.Namespace) -> dict[str, Any]:
    """Everything for one seed; the result is plain data."""
    folder = options.work / f"seed{seed}"
    singles = {task: single_network(task, seed, train, folder, options.single_steps) for task in TASKS}
    measured = branchnet.evaluate(SeparateNetworks(singles), test.images, test.labels, metrics(), batch_size=500)
    print(f"seed {seed}: single-task networks", {task: round(value, 1) for task, value in measured.items()}, flush=True)
    if options.single_only:
        return {"single": measured}
    staged = branchnet.split_all(singles, train.images[:2], locations=LOCATIONS)
    affinity = branchnet.rsa(staged, train.images[:PROBE])
    costs = next(iter(staged.values())).costs
    budget = 2 * sum(costs.params)
    found = {name: branchnet.search(affinity, costs, budget, objective=name) for name in OBJECTIVES}
    trees = {name: result.tree for name, result in found.items()}
    trees |= {"shared": Tree.shared(TASKS, len(LOCATIONS))}
    trees |= dict(random_trees(trees["mean-pair"], costs, budget, seed))
    results = {
        name: trained(name, tree, staged, affinity, seed, train, test, folder, options) for name, tree in trees.items()
    }
    return {
        "seed": seed,
        "single": measured,
        "affinity": affinity.values.tolist(),
        "stage_params": list(costs.params),
        "budget": budget,
        "sizes": {name: float(result.size) for name, result in found.items()},
        "trees": {name: tree.partitions for name, tree in trees.items()},
        "values": results,
        "delta": {name: delta(values, measured) for name, values in results.items()},
    }


def single_network(task: str, seed: int, train: Split, folder: Path, steps: int) -> nn.Module:
    """The trained network of one task, from the cache if it is there."""
    path = folder / f"{task}.safetensors"
    number = 1000 * seed + TASKS.index(task)
    with torch.random.fork_rng():
        torch.manual_seed(number)
        made = network(task).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if path.exists():
        load_weights(made, path)
    else:
        branchnet.fit(
            made,
            (train.images, train.labels[task]),
            loss(task),
            steps=steps,
            batch_size=BATCH,
            learning_rate=RATE,
            keep="last",
            seed=number,
            description=f"seed {seed}: {task}",
        )
        save_weights(made, path)
    return made.eval()


def with_equal_steps(train: Split, test: Split, options: argparse.Namespace) -> dict[str, Any]:
    """The recorded report with the separate networks after as many further steps as every tree was trained for."""
    name = "overlay36_divided" if options.divide_rate else "overlay36"
    report: dict[str, Any] = json.loads((options.out / f"{name}.json").read_text())
    options.single_steps, options.tree_steps = report["steps"]["single"], report["steps"]["tree"]
    options.rate = report["rate"]
    for run in report["runs"]:
        seed, further = run["seed"], {}
        for task in TASKS:
            folder = options.work / f"seed{seed}"
            made = single_network(task, seed, train, folder, options.single_steps)
            branchnet.fit(
                made,
                (train.images, train.labels[task]),
                loss(task),
                steps=options.tree_steps,
                batch_size=BATCH,
                learning_rate=options.rate,
                keep="last",
                seed=seed,
                description=f"seed {seed}: {task}, further steps",
            )
            further[task] = made.eval()
        values = branchnet.evaluate(SeparateNetworks(further), test.images, test.labels, metrics(), batch_size=500)
        run["values"][EQUAL_STEPS], run["delta"][EQUAL_STEPS] = values, delta(values, run["single"])
    chosen = [run["delta"]["mean-pair"] for run in report["runs"]]
    report["chosen_minus_equal_steps"] = _paired(chosen, [run["delta"][EQUAL_STEPS] for run in report["runs"]])
    return report


def random_trees(like: Tree, costs: Any, budget: float, seed: int) -> Iterator[tuple[str, Tree]]:
    """Ten different trees of the widths of `like`, drawn uniformly; never `like` itself."""
    generator = random.Random(seed)
    sampler = tree_sampler(TASKS, like.depth, costs=costs, budget=budget)
    seen = {like}
    while len(seen) <= RANDOM_TREES:
        tree = sampler.draw(generator)
        if tree.widths == like.widths and tree not in seen:
            seen.add(tree)
            yield f"random {len(seen) - 1}", tree


def trained(
    name: str,
    tree: Tree,
    staged: Mapping[str, StagedNetwork],
    affinity: Affinity,
    seed: int,
    train: Split,
    test: Split,
    folder: Path,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Test metrics of one tree after training it with labels from the donors' weights; cached."""
    steps, divided = options.tree_steps, "_divided" if options.divide_rate else ""
    path = folder / f"{name.replace(' ', '_')}_rate{options.rate:g}{divided}.json"
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["tree"] == str(tree) and stored["steps"] == steps:
            return dict(stored["values"])
    started = time.process_time()
    branched = branchnet.build(tree, staged, affinity=affinity, init="donor")
    losses = {task: loss(task) for task in TASKS}
    branchnet.fit(
        branched,
        (train.images, train.labels),
        losses,
        steps=steps,
        batch_size=BATCH,
        learning_rate=options.rate,
        keep="last",
        divide_rate=options.divide_rate,
        seed=seed,
        description=f"seed {seed}: {name}",
    )
    values = branchnet.evaluate(branched, test.images, test.labels, metrics(), batch_size=500)
    seconds = time.process_time() - started
    content = {"tree": str(tree), "steps": steps, "values": values, "cpu_seconds": seconds}
    write_text(path, json.dumps(content) + "\n")
    return values


def delta(values: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Multi-task performance in percent."""
    return branchnet.multi_task_performance(single, values, dict.fromkeys(single, False))


def separates(partitions: list[list[list[str]]]) -> list[bool]:
    """For each stage, whether no node serves digit tasks and garment tasks together."""
    return [all(len({task[0] for task in cluster}) == 1 for cluster in stage) for stage in partitions]


def summarise(runs: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The runs and, over seeds, the paired differences with their 95% intervals (Student's t)."""
    mean_random = [np.mean([run["delta"][f"random {i}"] for i in range(1, RANDOM_TREES + 1)]) for run in runs]
    chosen, shared = ([run["delta"][name] for run in runs] for name in ("mean-pair", "shared"))
    return {
        "steps": {"single": options.single_steps, "tree": options.tree_steps},
        "rate": options.rate,
        "divide_rate": options.divide_rate,
        "chosen_minus_random": _paired(chosen, mean_random),
        "chosen_minus_shared": _paired(chosen, shared),
        "runs": runs,
    }


def _paired(first: list[float], second: list[Any]) -> dict[str, Any]:
    differences = np.subtract(first, second)
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences) if len(differences) > 1 else float("nan")
    mean = float(differences.mean())
    return {"differences": differences.tolist(), "mean": mean, "low": mean - float(half), "high": mean + float(half)}


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    runs = report["runs"]
    lines = [
        "# overlay36: does the tree find the two families?",
        "",
        "Real MNIST digits over real Fashion-MNIST items, 36 x 36: four tasks read the digit (m_), four the garment",
        "(f_). The first 8,000 images train, the last 2,000 test.",
        f"Eight CNNs of five stages (parameters of the stages: {runs[0]['stage_params']}), trained with labels for",
        f"{report['steps']['single']} steps; RSA on {PROBE} training images; budget: the parameters of two backbones.",
        f"Branched networks start from the donors' weights and are trained for {report['steps']['tree']} steps, at a",
        f"peak rate of {report['rate']:g}"
        + (", divided by the number of tasks that a node serves." if report["divide_rate"] else "."),
        "Delta is the multi-task performance against the single-task networks, in percent (accuracy and R squared).",
        "",
        "    OMP_NUM_THREADS=1 python benchmarks/overlay36.py --data DIR --work DIR"
        + (f" --rate {report['rate']:g}" if report["rate"] != RATE else "")
        + (" --divide-rate" if report["divide_rate"] else ""),
        "",
        f"| seed | mean-pair | mean-max | random: mean (best, worst of 10) | all shared | {EQUAL_STEPS} |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        drawn = [run["delta"][f"random {i}"] for i in range(1, RANDOM_TREES + 1)]
        lines.append(
            f"| {run['seed']} | {run['delta']['mean-pair']:+.2f} | {run['delta']['mean-max']:+.2f} | "
            f"{np.mean(drawn):+.2f} ({max(drawn):+.2f}, {min(drawn):+.2f}) | {run['delta']['shared']:+.2f} | "
            + (f"{run['delta'][EQUAL_STEPS]:+.2f} |" if EQUAL_STEPS in run["delta"] else "not run |")
        )
    for name, title in COMPARED.items():
        if (pair := report.get(name)) is None:
            continue
        lines += [
            "",
            f"mean-pair's tree minus {title}, paired by seed: {pair['mean']:+.2f} points, "
            f"95% interval [{pair['low']:+.2f}, {pair['high']:+.2f}].",
        ]
    lines += ["", "## The trees", ""]
    for run in runs:
        for name in OBJECTIVES:
            lines.append(f"- seed {run['seed']}, {name}: {_told(run['trees'][name])}")
    lines += ["", "## Single-task networks (accuracy or R squared, %)", "", "| seed | " + " | ".join(TASKS) + " |"]
    lines.append("|---" * (len(TASKS) + 1) + "|")
    lines += [f"| {run['seed']} | " + " | ".join(f"{run['single'][task]:.1f}" for task in TASKS) + " |" for run in runs]
    picture = "overlay36_divided" if report["divide_rate"] else "overlay36"
    return "\n".join([*lines, "", f"![Affinities and results]({picture}.png)", ""])


def _told(partitions: Any) -> str:
    widths = [len(stage) for stage in partitions]
    groups = "; ".join(" ".join(cluster) for cluster in partitions[-1])
    apart = separates(partitions)
    verdict = "separates m_ from f_ at stages " + ", ".join(str(i + 1) for i, yes in enumerate(apart) if yes)
    return f"widths {widths}, last stage {{{groups}}}; {verdict if any(apart) else 'mixes m_ and f_ everywhere'}"


@styled
def draw(report: dict[str, Any]) -> Figure:
    """Left: affinity within and between the families, by stage. Right: Delta of every trained tree."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    stages = np.arange(1, len(LOCATIONS) + 1)
    same = np.array([[a[0] == b[0] for b in TASKS] for a in TASKS])
    upper = np.triu(np.ones_like(same), 1).astype(bool)
    for pairs, label, colour in (
        (same & upper, "same family", "#0072b2"),
        (~same & upper, "digit x garment", "#d55e00"),
    ):
        values = np.array([np.array(run["affinity"])[:, pairs] for run in report["runs"]])
        middle = values.mean((0, 2))
        left.fill_between(stages, *np.quantile(values, (0.1, 0.9), axis=(0, 2)), color=colour, alpha=0.15, lw=0)
        left.plot(stages, middle, "o-", color=colour, label=label)
    left.set(xlabel="stage", ylabel="RSA affinity", xticks=stages, title="Representations part by family")
    left.legend()
    for row, run in enumerate(report["runs"]):
        drawn = [run["delta"][f"random {i}"] for i in range(1, RANDOM_TREES + 1)]
        named = [("random trees", drawn, "o", "#9aa4ae"), ("all shared", [run["delta"]["shared"]], "s", "#1b1f24")]
        named += [("mean-pair", [run["delta"]["mean-pair"]], "D", "#009e73")]
        for name, values, marker, colour in named:
            right.scatter(values, [row] * len(values), marker=marker, color=colour, s=42, label="" if row else name)
        best = run["delta"]["mean-max"]
        right.scatter(best, row, s=150, facecolor="none", edgecolor="#e69f00", lw=1.8, label="" if row else "mean-max")
    right.axvline(0, color="#d0d7de", zorder=0)
    seeds = [run["seed"] for run in report["runs"]]
    right.set(xlabel="Delta against single-task networks, %", title="Trained trees of two branches")
    right.set_yticks(range(len(seeds)), [f"seed {seed}" for seed in seeds])
    right.set_ylim(len(seeds) - 0.5, -0.5)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4)
    return figure


if __name__ == "__main__":
    main()
