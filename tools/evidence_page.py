"""Write the tables and the picture of docs/evidence.md from benchmarks/results/all_trees/scores.json.

python tools/evidence_page.py          # after benchmarks/tree_scores.py
python tools/evidence_page.py --check  # exit code 1 where the page is not of these scores
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
SCORES = ROOT / "benchmarks" / "results" / "all_trees" / "scores.json"
PAGE = ROOT / "docs" / "evidence.md"
PICTURE = ROOT / "docs" / "evidence.png"
BEGIN, END = "<!-- tables: written by tools/evidence_page.py -->", "<!-- end of tables -->"
FAMILIES = {
    "unlabelled inputs": ("RSA", "CKA", "Procrustes", "SVCCA", "stitching loss,"),
    "one joint distillation": ("TAG by d", "TAG of stages by d", "gradient cosine by d"),
    "labels, one joint training": ("TAG", "gradient cosine", "stitching loss with labels"),
    "pairs trained for a tenth of the steps": ("pairs, 10%",),
    "pairs trained for a quarter of the steps": ("pairs, 25%",),
    "pairs trained to the end": ("pairs, mean", "pairs, smoothed", "pairs, gains"),
}
"""What has to be known or trained, and how the methods begin that need no more."""
Scores = Mapping[str, Mapping[str, Any]]


def family_of(method: str) -> str | None:
    return next((name for name, starts in FAMILIES.items() if method.startswith(starts)), None)


def within(result: Mapping[str, Any], method: str) -> float:
    """Rank correlation among trees of equal widths; 0 for a method that gives all of them the same cost."""
    return float(np.nan_to_num(result["scores"][method]["within"][0]))


def methods_of(scores: Scores) -> list[str]:
    """Those scored on every table, the best in the mean first."""
    common = set.intersection(*(set(result["scores"]) for result in scores.values()))
    return sorted(common, key=lambda method: -float(np.mean([within(one, method) for one in scores.values()])))


def problem_table(scores: Scores) -> list[str]:
    """What was trained, and how far any method could get."""
    lines = [
        "| table | trees | seeds | best tree | shared | worst | ceiling | ceiling within equal widths |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in scores.items():
        reached = result["reached"]
        ceilings = " | ".join(
            "unknown" if np.isnan(result[key]) else f"{result[key]:.2f}" for key in ("ceiling", "ceiling within widths")
        )
        lines.append(
            f"| {name} | {result['trees']} | {result['seeds']} | {reached['best']:+.1f}% | {reached['shared']:+.1f}% | "
            f"{reached['worst']:+.1f}% | {ceilings} |"
        )
    return lines


def method_table(scores: Scores, best: int = 4) -> list[str]:
    """The best few methods of each family, what the command takes by default, and counting."""
    order = methods_of(scores)
    shown = [m for name in FAMILIES for m in [one for one in order if family_of(one) == name][:best]]
    defaults = (
        "RSA, medoid",
        "RSA, mean-pair",
        "RSA, mean-max",
        "stitching loss, directed medoid",
        "stitching loss, directed stitch",
    )
    shown += [
        method for method in (*defaults, "more nodes", "more parameters") if method in order and method not in shown
    ]
    lines = [
        "| method | needs | " + " | ".join(scores) + " | mean | over all sizes | percentile |",
        "|---" * (len(scores) + 5) + "|",
    ]
    for method in shown:
        values = [within(result, method) for result in scores.values()]
        overall = np.mean([np.nan_to_num(result["scores"][method]["spearman"][0]) for result in scores.values()])
        place = np.mean([result["scores"][method]["percentile"] for result in scores.values()])
        cells = " | ".join(f"{value:.2f}" for value in values)
        lines.append(
            f"| {method} | {family_of(method) or 'nothing'} | {cells} | **{np.mean(values):.2f}** | {overall:.2f} | "
            f"{place:.0f} |"
        )
    return lines


def problem_of(table: str) -> str:
    return table.split(",")[0]


def left_out_table(scores: Scores) -> list[str]:
    """Of each family the method that is best on all other problems, on the one that is left out."""
    problems = list(dict.fromkeys(map(problem_of, scores)))
    if len(problems) < 2:
        return []
    lines = ["| needs | " + " | ".join(problems) + " | mean |", "|---" * (len(problems) + 2) + "|"]
    for name in FAMILIES:
        members = [method for method in methods_of(scores) if family_of(method) == name]
        if not members:
            continue
        found = []
        for problem in problems:
            others = [result for table, result in scores.items() if problem_of(table) != problem]
            own = [result for table, result in scores.items() if problem_of(table) == problem]
            chosen = max(members, key=lambda method: np.mean([within(one, method) for one in others]))
            found.append((float(np.mean([within(one, chosen) for one in own])), chosen))
        cells = " | ".join(f"{value:.2f} ({method})" for value, method in found)
        lines.append(f"| {name} | {cells} | **{np.mean([value for value, _ in found]):.2f}** |")
    return lines


def text_of(scores: Scores) -> str:
    """All tables between the page's markers."""
    parts = [
        "### What was trained\n\n" + "\n".join(problem_table(scores)),
        "### Rank correlation among trees of equal widths\n\n" + "\n".join(method_table(scores)),
        "### The method that is best on the other problems, on each problem\n\n" + "\n".join(left_out_table(scores)),
    ]
    return "\n\n".join([BEGIN, *parts, END])


def with_tables(page: str, scores: Scores) -> str:
    """The page with the tables of these scores."""
    start, end = page.index(BEGIN), page.index(END) + len(END)
    return page[:start] + text_of(scores) + page[end:]


def draw(scores: Scores, methods: Sequence[str]) -> Figure:
    """A square for each method and table, blue where it orders trees of equal widths rightly, red where wrongly."""
    values = np.array([[within(result, method) for result in scores.values()] for method in methods])
    figure = Figure(figsize=(3.4 + 0.75 * len(scores), 1.6 + 0.24 * len(methods)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(scores)), list(scores), rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(methods)), methods, fontsize=8)
    for row, column in np.ndindex(values.shape):
        dark = abs(values[row, column]) > 0.6
        axes.text(
            column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=7, color="w" if dark else "k"
        )
    figure.colorbar(image, ax=axes, label="rank correlation within equal widths", shrink=0.6)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    scores = json.loads(SCORES.read_text())
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_tables(page, scores)
    if arguments.check:
        if page != wanted:
            print(f"{PAGE.name} is not of these scores; run python tools/evidence_page.py", file=sys.stderr)
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    order = methods_of(scores)
    draw(scores, [method for method in order if family_of(method) or method == "more nodes"][:40]).savefig(
        PICTURE, dpi=110
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
