"""Gaps between trees and bounds for every objective, on generated families of affinities of several kinds."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import OBJECTIVES, Budget, search
from branchnet.utils.files import write_text

FACTS = Path(__file__).parents[1] / "tests" / "facts"
RESULTS = Path(__file__).parent / "results"
RESNET50 = [9_536, 215_808, 1_219_584, 3_746_816, 3_351_552, 14_964_736]
DEPTH = len(RESNET50)
# What stage d makes of 1 - cosine: a tenth at the input, two thirds at the last location.
GROWTH = np.linspace(0.1, 2 / 3, DEPTH)
Row = dict[str, Any]
Floats = np.ndarray


def groups(n: int, generator: np.random.Generator) -> Floats:
    """Six groups of points in 8 dimensions with noise 0.4, all drawn again for each stage, the groups' members too."""
    return _by_cosine([_grouped(generator.integers(6, size=n), generator) for _ in range(DEPTH)])


def fixed_groups(n: int, generator: np.random.Generator) -> Floats:
    """The same, but a task is in one group at all stages."""
    members = generator.integers(6, size=n)
    return _by_cosine([_grouped(members, generator) for _ in range(DEPTH)])


def hierarchies(n: int, generator: np.random.Generator) -> Floats:
    """Ultrametric distances of one binary tree, with noise of 5% for each stage."""
    order = generator.permutation(n)
    distance = np.zeros((n, n))
    parts = [order]
    height = 1.0
    while parts:
        rest = []
        for part in parts:
            if len(part) < 2:
                continue
            cut = int(generator.integers(max(1, len(part) // 4), max(2, 3 * len(part) // 4 + 1)))
            first, second = part[:cut], part[cut:]
            distance[np.ix_(first, second)] = distance[np.ix_(second, first)] = height * generator.uniform(0.8, 1.0)
            rest += [first, second]
        parts, height = rest, 0.65 * height
    return np.array([grown * _noisy(distance, 0.05, generator) for grown in GROWTH])


def low_rank(n: int, generator: np.random.Generator) -> Floats:
    """Vectors of 3 dimensions that drift from stage to stage (correlation 0.9)."""
    vectors, found = generator.normal(size=(n, 3)), []
    for _ in range(DEPTH):
        found.append(vectors)
        vectors = 0.9 * vectors + np.sqrt(1 - 0.81) * generator.normal(size=vectors.shape)
    return _by_cosine(found)


def heavy_tails(n: int, generator: np.random.Generator) -> Floats:
    """Distances of points whose coordinates are Student's t with 2 degrees of freedom: a few outliers; drifting."""
    points, found = generator.standard_t(2, size=(n, 8)), []
    for grown in GROWTH:
        distance = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
        found.append(grown * distance / np.median(distance[np.triu_indices(n, 1)]) / 2)
        points = points + 0.3 * generator.standard_t(2, size=points.shape)
    return np.array(found)


def published(n: int, generator: np.random.Generator) -> Floats:
    """The five tasks of the RSA tensor that TreeMTL published, each several times with noise of 10%."""
    stored = np.array(json.loads((FACTS / "treemtl_bmtn_rsa_head.json").read_text())["affinity_DTT"])
    copy = generator.integers(stored.shape[1], size=n)
    loss = 1 - stored[np.linspace(0, len(stored) - 1, DEPTH).round().astype(int)]
    near = 0.4 * loss[:, np.triu_indices(loss.shape[1], 1)[0], np.triu_indices(loss.shape[1], 1)[1]].mean(axis=1)
    blown = loss[:, copy[:, None], copy] + near[:, None, None] * (copy[:, None] == copy)
    return np.array([_noisy(one, 0.1, generator) for one in blown])


FAMILIES: dict[str, Callable[[int, np.random.Generator], Floats]] = {
    "groups": groups,
    "fixed groups": fixed_groups,
    "hierarchies": hierarchies,
    "low rank": low_rank,
    "heavy tails": heavy_tails,
    "published": published,
}


def _grouped(members: Floats, generator: np.random.Generator) -> Floats:
    centres = generator.normal(size=(6, 8))
    return np.asarray(centres[members] + 0.4 * generator.normal(size=(len(members), 8)))


def _by_cosine(vectors: list[Floats]) -> Floats:
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in vectors]
    return np.array([grown * (1 - one @ one.T) for grown, one in zip(GROWTH, unit, strict=True)])


def _noisy(distance: Floats, noise: float, generator: np.random.Generator) -> Floats:
    factors = generator.normal(size=distance.shape)
    return np.asarray(distance * np.maximum(1 + noise * (factors + factors.T) / 2**0.5, 0.1))


def generated(family: str, n: int, seed: int) -> Affinity:
    """An affinity of a family."""
    loss = FAMILIES[family](n, np.random.default_rng([seed, n]))
    loss[:, np.arange(n), np.arange(n)] = 0.0
    return Affinity(
        [f"t{i}" for i in range(n)], [f"stage{d}" for d in range(DEPTH)], 1 - (loss + loss.transpose(0, 2, 1)) / 2
    )


def gap(family: str, objective: str, n: int, share: float, seed: int) -> Row:
    """How far the tree may be above the best one, in percent of its cost, and the CPU seconds of search and bound."""
    affinity = generated(family, n, seed)
    start = time.process_time()
    found = search(affinity, RESNET50, Budget(share, relative=True), objective=objective, method="local")
    row = {"family": family, "objective": objective, "n": n, "share": share, "seed": seed, "cost": found.cost}
    row |= {"gap_percent": 100 * found.gap, "cpu_seconds": time.process_time() - start}
    return row | {"widths": " ".join(map(str, found.tree.widths))}


def pivot(rows: list[Row], n: int) -> str:
    """The largest gap of each objective and family over shares and seeds, in percent."""
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    lines = ["| family | " + " | ".join(objectives) + " |", "|" + "---|" * (1 + len(objectives))]
    for family in dict.fromkeys(row["family"] for row in rows):
        cells = []
        for objective in objectives:
            own = [r["gap_percent"] for r in rows if (r["family"], r["objective"], r["n"]) == (family, objective, n)]
            cells.append(f"{max(own):.1f}" if own else "not run")
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(rows: list[Row]) -> str:
    """The tables, objectives by families first."""
    text = "# Gaps between trees and bounds\n\n"
    text += "Six stages with ResNet-50's parameters; the families are described in `benchmarks/bounds.py`.\n"
    for n in dict.fromkeys(row["n"] for row in rows):
        shares = ", ".join(f"{100 * share:g}%" for share in dict.fromkeys(r["share"] for r in rows if r["n"] == n))
        text += f"\n## {n} tasks: largest gap in percent, budgets of {shares} of the parameters\n\n{pivot(rows, n)}\n"
    names = list(rows[0])
    text += "\n## All\n\n| " + " | ".join(names) + " |\n|" + "---|" * len(names) + "\n"
    return text + "".join("| " + " | ".join(_cell(row[name]) for name in names) + " |\n" for row in rows)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[40])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.4, 0.6])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for bounds.md and bounds.json")
    given = parser.parse_args()
    rows: list[Row] = []
    # Shares before objectives, so that a run that is stopped has whole tables.
    for n, share, objective, family, seed in itertools.product(
        given.tasks, given.shares, given.objectives, given.families, range(given.seeds)
    ):
        rows.append(gap(family, objective, n, share, seed))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        # Written after each, so that what is there when it is stopped counts.
        write_text(given.out / "bounds.json", json.dumps(rows, indent=1) + "\n")
        write_text(given.out / "bounds.md", page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
