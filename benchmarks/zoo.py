"""Stitching layers on really trained networks: what branched networks do before any training, and which trees are best.

DIR is what `python benchmarks/zoo_entries/fetch.py --data DIR` fills. For each entry: a tree that shares the first
half of the stages, made in five ways; and many trees, whose order by stitching losses and by RSA is compared with what
they do on held-out inputs when they are built with stitches. Losses are 0 for outputs equal to the own network's and
1 for a constant answer. Finished entries are kept below --work; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoo_entries
from scipy.stats import spearmanr
from zoo_entries.judging import HeldOut

import branchnet
from branchnet import BranchedNetwork, BranchnetError, Tree, clustering_cost
from branchnet.affinity.probes import read_probe
from branchnet.builder import choose_donors
from branchnet.builder.stitches.top_down_fit import stitch_donors
from branchnet.stages import call
from branchnet.stages.interface import call_form

MATCHED = 96  # inputs that units are matched on: each gives up to 128 positions, and more cost minutes a network
TREES = 60
JUDGED = 128
PREDICTORS = {
    "stitch": "stitching loss, last change",
    "medoid": "stitching loss, medoid",
    "rsa": "RSA, mean-pair",
}


def rows(inputs: Any, count: int) -> Any:
    """The first inputs, a tensor or a tuple of them."""
    return inputs[:count] if isinstance(inputs, torch.Tensor) else tuple(tensor[:count] for tensor in inputs)


def further_rows(inputs: Any, count: int) -> Any:
    """As many inputs again as the first `count`; None where there are not so many."""
    if count_of(inputs) < 2 * count:
        return None
    rest = slice(count, 2 * count)
    return inputs[rest] if isinstance(inputs, torch.Tensor) else tuple(tensor[rest] for tensor in inputs)


def count_of(inputs: Any) -> int:
    return len(inputs) if isinstance(inputs, torch.Tensor) else len(inputs[0])


def seconds(work: Any) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


class Bench:
    """One entry, split and compared."""

    def __init__(self, entry: Any, steps: int) -> None:
        self.entry, self.steps = entry, steps
        self.kinds = entry.kinds
        self.probe = entry.probe
        self.staged = branchnet.split_all(entry.networks, rows(entry.probe, 2), locations=entry.locations)
        self.tasks = list(entry.networks)
        first = next(iter(self.staged.values()))
        self.judged = HeldOut(rows(entry.held_out, JUDGED), entry.networks, self.kinds)
        others = further_rows(entry.held_out, JUDGED)
        self.others = None if others is None else HeldOut(others, entry.networks, self.kinds)
        self.depth, self.locations = len(first.stages), first.locations

        def forwards() -> None:
            with torch.no_grad():
                for network in entry.networks.values():
                    for start in range(0, count_of(entry.probe), 32):
                        part = (
                            entry.probe[start : start + 32]
                            if isinstance(entry.probe, torch.Tensor)
                            else tuple(tensor[start : start + 32] for tensor in entry.probe)
                        )
                        call(network, part)

        _, self.forward_seconds = seconds(forwards)
        self.rsa, self.rsa_seconds = seconds(lambda: branchnet.rsa(self.staged, self.probe, bootstrap=0))
        self.losses, self.loss_seconds = seconds(
            lambda: branchnet.stitch_affinity(self.staged, self.probe, kinds=self.kinds, bootstrap=0)
        )

    def measure(self, branched: BranchedNetwork) -> dict[str, float]:
        """The distance of each task's outputs from its own network's, on held-out inputs."""
        return self.judged.distances(branched)

    def stitched(self, tree: Tree, *, corrected: bool) -> BranchedNetwork:
        """A tree built with stitches, donors chosen by the losses."""
        branched = branchnet.build(tree, self.staged, init="donor", donors=choose_donors(tree, self.losses)).eval()
        probe = read_probe(self.probe, 32, call_form(next(iter(self.staged.values()))))
        stitch_donors(branched, self.staged, probe, self.kinds, corrected=corrected)
        return branched

    def ways(self) -> dict[str, dict[str, float] | str]:
        """One tree, shared in its first half, made in several ways."""
        half = self.depth // 2 + 1
        separate = [[task] for task in self.tasks]
        tree = Tree(self.tasks, [[self.tasks]] * half + [separate] * (self.depth - half))
        donors = choose_donors(tree, self.losses)
        found: dict[str, dict[str, float] | str] = {"shared until": self.locations[half - 1], "donor": donors[0][0]}
        for name, init in (("donor weights", "donor"), ("mean", "mean"), ("mean of aligned units", "merge")):
            found[name] = self._made(tree, init, donors)
        found["stitched"] = self.measure(self.stitched(tree, corrected=False))
        branched, used = seconds(lambda: self.stitched(tree, corrected=True))
        found["stitched, corrected"] = self.measure(branched)
        found["seconds to build"] = f"{used:.1f}"
        if self.steps:
            branchnet.distill(
                branched,
                self.entry.networks,
                self.probe,
                steps=self.steps,
                batch_size=16,
                scope="stitches",
                progress=False,
            )
            found[f"stitches distilled, {self.steps} steps"] = self.measure(branched)
        return found

    def by_depth(self) -> list[dict[str, Any]]:
        """All tasks share up to each location in turn: losses and the scores that users know, before any training."""
        separate = [[task] for task in self.tasks]
        found = []
        for shared in range(self.depth + 1):
            tree = Tree(self.tasks, [[self.tasks]] * shared + [separate] * (self.depth - shared))
            branched = self.stitched(tree, corrected=True)
            found.append(
                {
                    "shared until": self.locations[shared - 1] if shared else "nothing",
                    "donor": choose_donors(tree, self.losses)[0][0],
                    "losses": self.measure(branched),
                    "scores": self.scores(branched),
                }
            )
        return found

    def scores(self, branched: BranchedNetwork) -> dict[str, float]:
        """What the entry's users know, on all held-out inputs."""
        inputs, count = self.entry.held_out, count_of(self.entry.held_out)
        found = {}
        with torch.no_grad():
            for task, (_, score) in self.entry.scores.items():
                outputs, own = [], []
                for start in range(0, count, 32):
                    part = inputs[start : start + 32]
                    outputs.append(branched(part)[task])
                    own.append(call(self.entry.networks[task], part))
                labels = self.entry.labels[task] if self.entry.labels else torch.cat(own)
                found[task] = score(torch.cat(outputs), labels)
        return found

    def _made(self, tree: Tree, init: Any, donors: Any) -> dict[str, float] | str:
        probe = rows(self.probe, MATCHED) if init == "merge" else None
        try:
            return self.measure(branchnet.build(tree, self.staged, init=init, donors=donors, probe=probe).eval())
        except BranchnetError as error:
            return f"refused: {str(error).splitlines()[0].split(';')[0]}"

    def trees(self, limit: int) -> list[Tree]:
        """All trees where they are few, else the fully shared and others at random."""
        if branchnet.count_trees(len(self.tasks), self.depth) <= limit:
            return list(branchnet.enumerate_trees(self.tasks, self.depth))
        drawn = {Tree.shared(self.tasks, self.depth): None}
        seed = 0
        while len(drawn) < limit:
            drawn[branchnet.random_tree(self.tasks, self.depth, seed=seed)] = None
            seed += 1
        return list(drawn)

    def order(self, limit: int) -> list[dict[str, Any]]:
        """Every tree: predicted by stitching losses and by RSA, and measured."""
        found = []
        for tree in self.trees(limit):
            branched = self.stitched(tree, corrected=False)
            losses = self.measure(branched)
            found.append(
                {
                    "losses": losses,
                    "losses on other inputs": None if self.others is None else self.others.distances(branched),
                    "widths": list(tree.widths),
                    "stitch": clustering_cost(tree, self.losses, objective="stitch"),
                    "medoid": clustering_cost(tree, self.losses, objective="medoid"),
                    "rsa": clustering_cost(tree, self.rsa, objective="mean-pair"),
                }
            )
        return found


def measured_trees(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The trees of an entry with what they lose in all, in the weights that predictions add losses up with."""
    weights = result["task weights"]

    def added(losses: dict[str, float]) -> float:
        return sum(weights[task] * loss for task, loss in losses.items()) / sum(weights.values())

    trees = [tree | {"measured": added(tree["losses"])} for tree in result["trees"]]
    if any(tree["losses on other inputs"] is None for tree in trees):
        return trees
    return [tree | {"again": added(tree["losses on other inputs"])} for tree in trees]


def agreement(trees: list[dict[str, Any]], by: str, *, within: bool) -> tuple[float, int]:
    """Share of pairs of trees that a prediction orders as they were measured, and how many pairs there are."""
    right = total = 0.0
    for one, other in combinations(trees, 2):
        if within and one["widths"] != other["widths"]:
            continue
        difference, predicted = one["measured"] - other["measured"], one[by] - other[by]
        if abs(difference) > 1e-9:
            total += 1
            right += 0.5 if predicted == 0 else float((difference > 0) == (predicted > 0))
    return (right / total if total else float("nan")), int(total)


def best_found(trees: list[dict[str, Any]], by: str) -> tuple[int, int]:
    """In how many classes of equal widths the tree predicted to be best is the best measured, and of how many."""
    classes: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for tree in trees:
        classes.setdefault(tuple(tree["widths"]), []).append(tree)
    several = [members for members in classes.values() if len(members) > 1]
    right = sum(
        min(members, key=lambda tree: tree[by])["measured"] <= min(tree["measured"] for tree in members) + 1e-9
        for members in several
    )
    return right, len(several)


def share(part: float, total: int) -> str:
    """A share of so many pairs."""
    return f"{100 * part:.0f}% of {total}" if total else "none"


def bench_entry(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    bench = Bench(zoo_entries.load(name, arguments.data), arguments.steps)
    return {
        "tasks": bench.tasks,
        "locations": list(bench.locations),
        "ways": bench.ways(),
        "by depth": bench.by_depth(),
        "score": next((name for name, _ in bench.entry.scores.values()), ""),
        "task weights": dict(bench.losses.task_weights or dict.fromkeys(bench.tasks, 1.0)),
        "trees": bench.order(arguments.trees),
        "losses": np.round(1 - bench.losses.values, 3).tolist(),
        "seconds": {
            "forwards": bench.forward_seconds,
            "rsa": bench.rsa_seconds,
            "stitching losses": bench.loss_seconds,
        },
    }


def depth_table(result: dict[str, Any]) -> list[str]:
    """What all tasks lose that share up to each location, stitched and not trained."""
    tasks, depths = result["tasks"], result["by depth"]
    scored = list(depths[0]["scores"])
    heads = ["all share until", "donor", *tasks, "mean", *(f"{task}, {result['score']}" for task in scored)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in depths:
        losses = [row["losses"][task] for task in tasks]
        values = [*losses, sum(losses) / len(losses), *(row["scores"][task] for task in scored)]
        shown = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| `{row['shared until']}` | {row['donor']} | {shown} |")
    return lines


def as_markdown(results: dict[str, dict[str, Any]], command: str) -> str:
    lines = ["# Stitching layers on really trained networks", "", f"`{command}`", ""]
    lines += [
        "Losses on held-out inputs, 0 as the own network, 1 as a constant answer (KL divergence of classifiers, else",
        "unexplained variance). Donors are chosen by the losses; nothing is trained but where it says so. Where trees",
        "are ordered, losses of tasks are added up as branchnet adds them: those of classifiers in nats, which weighs",
        "a loss by what a constant answer would lose.",
        "",
    ]
    for name, result in results.items():
        ways = result["ways"]
        lines += [f"## {name}", "", f"Shared until `{ways['shared until']}`, donor {ways['donor']}.", ""]
        lines += ["| made by | " + " | ".join(result["tasks"]) + " | mean |", "|---" * (2 + len(result["tasks"])) + "|"]
        for way, losses in ways.items():
            if isinstance(losses, dict):
                values = [losses[task] for task in result["tasks"]]
                shown = " | ".join(f"{value:.3f}" for value in (*values, sum(values) / len(values)))
                lines.append(f"| {way} | {shown} |")
            elif way not in ("shared until", "donor", "seconds to build"):
                lines.append(f"| {way} | {losses} |" + " |" * len(result["tasks"]))
        lines += ["", *depth_table(result)]
        trees = measured_trees(result)
        lines += ["", f"Order of {len(trees)} trees as built with stitches:", ""]
        lines += [
            "| predicted by | pairs in order | within equal widths | best of equal widths found | Spearman |",
            "|---|---|---|---|---|",
        ]
        ceiling = {"again": "ceiling: the same trees measured on other inputs"} if "again" in trees[0] else {}
        for by, label in (PREDICTORS | ceiling).items():
            overall, inside = agreement(trees, by, within=False), agreement(trees, by, within=True)
            right, classes = best_found(trees, by)
            correlation = spearmanr([t[by] for t in trees], [t["measured"] for t in trees]).statistic
            lines.append(
                f"| {label} | {share(*overall)} | {share(*inside)} | {right} of {classes} | {correlation:.2f} |"
            )
        used = result["seconds"]
        lines += [
            "",
            f"CPU seconds: {used['forwards']:.1f} for all networks on the probe, {used['rsa']:.1f} for RSA, "
            f"{used['stitching losses']:.1f} for all stitching losses, {ways['seconds to build']} to build one "
            "tree with corrections.",
            "",
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the entries' packages")
    parser.add_argument("--work", type=Path, default=Path("zoo-work"), help="where finished entries are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    parser.add_argument("--entries", nargs="+", default=list(zoo_entries.ENTRIES))
    parser.add_argument("--trees", type=int, default=TREES, help="trees measured for each entry")
    parser.add_argument("--steps", type=int, default=150, help="distillation of the stitches alone; 0 for none")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.entries:
        kept = arguments.work / f"{name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(bench_entry(name, arguments), indent=1))
            print(f"{name}: done", file=sys.stderr)
    results = {
        name: json.loads(kept.read_text())
        for name in zoo_entries.ENTRIES
        if (kept := arguments.work / f"{name}.json").exists()
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = as_markdown(results, "python benchmarks/zoo.py --data DIR")
    (arguments.out / "zoo.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "zoo.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
