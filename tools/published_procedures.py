"""Write the tables and the picture of docs/published_procedures.md from benchmarks/results/published_procedures.

python tools/published_procedures.py          # after benchmarks/published_procedures.py
python tools/published_procedures.py --check  # exit code 1 where the page is not of these results
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from branchnet import Study
from branchnet.training import Estimate, StudyRun
from branchnet.training.studies.paired_differences import crossed_estimate

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FOLDER = RESULTS / "published_procedures"
PAGE = ROOT / "docs" / "published_procedures.md"
PICTURE = ROOT / "docs" / "published_procedures.png"
BEGIN, END = "<!-- tables: written by tools/published_procedures.py -->", "<!-- end of tables -->"
COLUMNS = ("seed", "procedure", "budget", "number", "networks", "inference", "search", "final")
ALONE = ("shared", "separate", "separate, twice the steps")
"""What does not depend on the budget."""
RANDOM = ("random trees", "random trees, stitched", "random groups")
DRAWN = ("1.5", "2.5")
"""Budgets of the picture."""
FAMILIES = {"BMTN": "C0", "Standley": "C1", "TAG": "C2", "TreeMTL": "C4", "ours": "C3"}


@dataclass(frozen=True)
class Results:
    """One problem: its study, whose arms are `procedure @ budget`, and what each procedure costs.

    Attributes:
        study: the test's metrics.
        procedures: names, in order.
        budgets: as text, ascending.
        costs: by arm the means of inference, search and final training.
    """

    study: Study
    procedures: tuple[str, ...]
    budgets: tuple[str, ...]
    costs: Mapping[str, tuple[float, float, float]]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read the lines of one problem."""
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        known = json.loads((RESULTS / "all_trees" / "problems.json").read_text())[path.stem]["tasks"]
        tasks = tuple(name for name in rows[0] if name not in COLUMNS)
        runs, costs = [], dict[str, list[tuple[float, ...]]]()
        for row in rows:
            arm = arm_of(row["procedure"], row["budget"])
            metrics = {task: float(row[task]) for task in tasks}
            runs.append(StudyRun(arm, int(row["number"]), int(row["seed"]), "", (), metrics, 0, 0.0))
            costs.setdefault(arm, []).append(tuple(float(row[name]) for name in ("inference", "search", "final")))
        study = Study(
            tasks,
            {task: known[task]["metric"] for task in tasks},
            {task: known[task]["lower_is_better"] for task in tasks},
            {arm: 1 + max(run.number for run in runs if run.arm == arm) for arm in costs},
            tuple(sorted({run.seed for run in runs})),
            "separate",
            tuple(runs),
        )
        means = {arm: tuple(np.mean(found, axis=0).tolist()) for arm, found in costs.items()}
        budgets = tuple(sorted({row["budget"] for row in rows}, key=float))
        return cls(study, tuple(dict.fromkeys(row["procedure"] for row in rows)), budgets, means)  # type: ignore[arg-type]

    def points(self, arm: str, other: str = "separate") -> Estimate:
        """Mean over the tasks, which have one metric, of the differences in its unit; better is positive."""
        signs = np.array([-1.0 if self.study.lower_is_better[task] else 1.0 for task in self.study.tasks])
        by_seed = [(signs * self.study.values(one)).mean(2).mean(1) for one in (arm, other)]
        return crossed_estimate(by_seed[0] - by_seed[1])


def arm_of(procedure: str, budget: str) -> str:
    return procedure if procedure in ALONE else f"{procedure} @ {budget}"


def accuracy_table(results: Results) -> list[str]:
    """Delta to separate networks at every budget, and what search and final training cost."""
    lines = [
        "| procedure | " + " | ".join(f"{budget} trunks" for budget in results.budgets) + " | search | final |",
        "|---" * (len(results.budgets) + 3) + "|",
    ]
    for name in results.procedures:
        arms = [arm_of(name, budget) for budget in results.budgets]
        arms = arms[:1] if name in ALONE else arms
        cells = [f"{results.study.delta(arm)} ({results.costs[arm][0]:.2f})" for arm in arms]
        if name in ALONE:
            size = "4 trunks" if name.startswith("separate") else "1 trunk"
            cells = [
                f"{'0' if name == 'separate' else results.study.delta(arms[0])} ({size})",
                *[""] * (len(results.budgets) - 1),
            ]
        search, final = (float(np.mean([results.costs[arm][k] for arm in arms])) for k in (1, 2))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {search:.1f} | {final:.1f} |")
    return lines


def points_table(results: Results) -> list[str]:
    """Mean difference to separate networks in the metric's unit, which is one for all tasks."""
    digits = 2 if results.study.values("separate").max() > 10 else 4

    def cell(arm: str) -> str:
        return shown(results.points(arm), digits)

    return _by_budget(results, cell)


def random_table(results: Results) -> list[str]:
    """Delta less that of random choices within the same budget, of the same kind."""

    def cell(arm: str) -> str:
        name, _, budget = arm.partition(" @ ")
        return str(results.study.paired(arm, arm_of(rival_of(name), budget)).delta)

    return _by_budget(results, cell)


def _by_budget(results: Results, cell: Callable[[str], str]) -> list[str]:
    lines = [
        "| procedure | " + " | ".join(f"{budget} trunks" for budget in results.budgets) + " |",
        "|---" * (len(results.budgets) + 1) + "|",
    ]
    names = [name for name in results.procedures if name not in (*ALONE, *RANDOM)]
    return lines + [
        f"| {name} | " + " | ".join(cell(arm_of(name, one)) for one in results.budgets) + " |" for name in names
    ]


def shown(found: Estimate, digits: int) -> str:
    half = "?" if math.isnan(found.low) else f"{found.high - found.mean:.{digits}f}"
    return f"{found.mean:+.{digits}f} ± {half}"


def rival_of(name: str) -> str:
    """The random choices of the same kind: whole networks for groups, or trees, that start as it does."""
    if name.endswith(("stitched", "single-task weights")):
        return "random trees, stitched"
    return "random groups" if name.startswith(("Standley", "TAG", "ours: HOA")) else "random trees"


def text_of(every: Mapping[str, Results]) -> str:
    """All tables between the page's markers."""
    parts = [BEGIN]
    for name, results in every.items():
        seeds, unit = len(results.study.seeds), next(iter(results.study.metrics.values()))
        parts += [
            f"### {name}: Delta to separate networks in percent, and costs ({seeds} seeds)",
            "\n".join(accuracy_table(results)),
            f"### {name}: mean difference to separate networks in points of {unit} (better is positive)",
            "\n".join(points_table(results)),
            f"### {name}: points of Delta better than random choices within the same budget",
            "\n".join(random_table(results)),
        ]
    return "\n\n".join([*parts, END])


def with_tables(page: str, every: Mapping[str, Results]) -> str:
    """The page with the tables of these results."""
    start, end = page.index(BEGIN), page.index(END) + len(END)
    return page[:start] + text_of(every) + page[end:]


def draw(every: Mapping[str, Results], budgets: Sequence[str] = DRAWN) -> Figure:
    """Delta at two budgets against the cost of the search; random choices as a band."""
    figure = Figure(figsize=(5.2 * len(budgets), 3.7 * len(every)), layout="constrained")
    panels = figure.subplots(len(every), len(budgets), squeeze=False, sharex=True, sharey="row")
    for row, (name, results) in enumerate(every.items()):
        for axes, budget in zip(panels[row], budgets, strict=True):
            for k, rival in enumerate(("random trees", "random groups")):
                found = results.study.delta(arm_of(rival, budget))
                axes.axhspan(found.low, found.high, color=f"{0.85 - 0.2 * k}", alpha=0.45, zorder=0, label=rival)
            axes.axhline(0, color="k", linewidth=0.8)
            plotted = [one for one in results.procedures if one not in (*ALONE, *RANDOM)]
            for k, procedure in enumerate(plotted):
                arm = arm_of(procedure, budget)
                found = results.study.delta(arm)
                family = next(one for one in FAMILIES if procedure.startswith(one))
                same = [one for one in plotted if one.startswith(family)]
                axes.errorbar(
                    results.costs[arm][1] * (1 + 0.07 * (k % 3 - 1)),
                    found.mean,
                    yerr=found.high - found.mean,
                    fmt="os^D"[same.index(procedure)],
                    color=FAMILIES[family],
                    capsize=2,
                    label=procedure,
                )
            axes.set_xscale("log")
            axes.set_title(f"{name}: inference within {budget} trunks", fontsize=10)
            axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        panels[row][0].set_ylabel("Delta to 4 separate networks, %")
    for axes in panels[-1]:
        axes.set_xlabel("search, in trainings of one network")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    every = {path.stem: Results.read(path) for path in sorted(FOLDER.glob("*.csv"))}
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_tables(page, every)
    if arguments.check:
        if page != wanted:
            print(f"{PAGE.name} is not of these results; run python tools/published_procedures.py", file=sys.stderr)
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    draw(every).savefig(PICTURE, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
