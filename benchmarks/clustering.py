"""Clustering: time, optimality gap and memory over tasks and stages, against enumeration and the published beam search.

Every measurement runs in its own process, so peak memory is its own. Both sides of a comparison run in one call.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import (
    OBJECTIVES,
    Budget,
    clustering_cost,
    compare_sharing,
    count_trees,
    enumerate_trees,
    pareto_front,
    search,
    tree_size,
)
from branchnet.reporting.plots.sharing_plot import draw_sharing_on
from branchnet.utils.files import atomic_write, write_text

RESNET50 = {  # parameters between neighbouring locations: stem, layer1, layer2, layer3 (in two halves), layer4
    4: [225_344, 1_219_584, 7_098_368, 14_964_736],
    5: [9_536, 215_808, 1_219_584, 7_098_368, 14_964_736],
    6: [9_536, 215_808, 1_219_584, 3_746_816, 3_351_552, 14_964_736],
}
RESNET50_GMACS = [0.118, 0.68, 1.04, 0.80, 0.67, 0.81]  # the same six stages, 224 x 224
RESNET50_GMACS_FIVE = [0.118, 0.68, 1.04, 1.47, 0.81]
RESULTS = Path(__file__).parent / "results"
FACTS = Path(__file__).parents[1] / "tests" / "facts"
Row = dict[str, Any]


def rsa_like(n: int, depth: int, seed: int) -> Affinity:
    """Distances between grouped task vectors that drift from stage to stage.

    Levels, spread and correlation of neighbouring stages (0.85) follow the tensor that TreeMTL published.
    """
    generator = np.random.default_rng(seed)
    groups = max(2, round(n / 6))
    vectors = generator.normal(size=(groups, 8))[generator.integers(groups, size=n)] + generator.normal(size=(n, 8))
    values = []
    for stage in range(depth):
        if stage:
            vectors = 0.93 * vectors + np.sqrt(1 - 0.93**2) * generator.normal(size=(n, 8)) * vectors.std()
        distance = np.sqrt(((vectors[:, None] - vectors[None]) ** 2).sum(-1))
        distance /= distance[np.triu_indices(n, 1)].mean()
        noise = generator.normal(size=(n, n))
        distance *= 1 + 0.03 * (noise + noise.T) / 2**0.5
        values.append(1 - (0.043 + 0.062 * stage / max(depth - 1, 1)) * distance)
    tensor = np.array(values)
    tensor[:, np.arange(n), np.arange(n)] = 1.0
    return Affinity([f"t{i}" for i in range(n)], [f"stage{d}" for d in range(depth)], tensor)


def adversarial(depth: int) -> list[float]:
    """Costs of which no two sums agree: logarithms of primes."""
    return np.log([2, 3, 5, 7, 11, 13, 17, 19])[:depth].tolist()


def _child(queue: Any, function: Callable[..., Row], arguments: tuple[Any, ...]) -> None:
    start, used = time.perf_counter(), time.process_time()
    row = function(*arguments)
    row["seconds"] = time.perf_counter() - start
    row["cpu_seconds"] = time.process_time() - used
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put(row)


def measured(function: Callable[..., Row], *arguments: Any) -> Row:
    """Run in a fresh process; add seconds and peak memory."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue, function, arguments))
    process.start()
    row: Row = queue.get(timeout=1800)
    process.join()
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def exact_front(n: int, depth: int, kind: str) -> Row:
    costs = RESNET50[depth] if kind == "resnet50" else adversarial(depth)
    start = time.process_time()
    front = pareto_front(rsa_like(n, depth, 0), costs, objective="mean-max", method="exact")
    front_seconds = time.process_time() - start
    return {
        "n": n,
        "d": depth,
        "costs": kind,
        "points": len(front),
        "front_cpu_seconds": front_seconds,
        "trees": count_trees(n, depth),
    }


def exact_budget(n: int, depth: int) -> Row:
    result = search(rsa_like(n, depth, 0), RESNET50[depth], "50% params", objective="mean-max", method="exact")
    return {"n": n, "d": depth, "cost": result.cost, "proven": result.proven, "trees": count_trees(n, depth)}


def enumeration(n: int, depth: int, most: int = 15_000) -> Row:
    """The published exhaustive search: score every tree; the time of all is extrapolated from the first `most`."""
    affinity, costs = rsa_like(n, depth, 0), RESNET50[depth]
    start, scored = time.process_time(), 0
    for tree in enumerate_trees(affinity.tasks, depth):
        clustering_cost(tree, affinity)
        tree_size(tree, costs)
        scored += 1
        if scored == most:
            break
    seconds = time.process_time() - start
    return {"n": n, "d": depth, "scored": scored, "all_cpu_seconds": seconds / scored * count_trees(n, depth)}


def small_gaps(n: int, depth: int, objective: str, seeds: int) -> Row:
    gaps: dict[str, list[float]] = {"local": [], "beam": []}
    bounds = []
    for seed in range(seeds):
        affinity = rsa_like(n, depth, seed)
        for share in (0.3, 0.6):
            budget = Budget(share, relative=True)
            best = search(affinity, RESNET50[depth], budget, objective=objective)
            for method, values in gaps.items():
                found = search(affinity, RESNET50[depth], budget, objective=objective, method=method)
                values.append((found.cost - best.cost) / abs(best.cost))
                if method == "local":
                    bounds.append((best.cost - found.lower_bound) / abs(best.cost))
    row: Row = {"n": n, "d": depth, "objective": objective, "instances": 2 * seeds}
    for method, values in gaps.items():
        row |= {f"{method}_median_gap": float(np.median(values)), f"{method}_largest_gap": max(values)}
    return row | {"bound_median_gap": float(np.median(bounds)), "bound_largest_gap": max(bounds)}


def many(n: int, depth: int, objective: str, share: float, method: str, seed: int) -> Row:
    affinity = rsa_like(n, depth, seed)
    start = time.process_time()
    result = search(affinity, RESNET50[depth], Budget(share, relative=True), objective=objective, method=method)
    return {
        "n": n,
        "d": depth,
        "objective": objective,
        "share": share,
        "seed": seed,
        "method": method,
        "cost": result.cost,
        "gap": result.gap,
        "search_cpu_seconds": time.process_time() - start,
    }


def real_many(name: str, objective: str, unit: str, share: float) -> Row:
    """Gap and seconds on affinities of networks that were really trained (see `many_networks.py`)."""
    affinity = Affinity.load(RESULTS / "affinities" / f"{name}.npz")
    costs, budget = RESNET50[6] if unit == "params" else RESNET50_GMACS, Budget(share, relative=True)
    start = time.process_time()
    found = search(affinity, costs, budget, objective=objective)
    seconds = time.process_time() - start
    beam = search(affinity, costs, budget, objective=objective, method="beam")
    return {
        "affinity": name,
        "n": len(affinity.tasks),
        "objective": objective,
        "costs": unit,
        "share": share,
        "cost": found.cost,
        "gap": found.gap,
        "search_cpu_seconds": seconds,
        "beam_cost_ratio": beam.cost / found.cost,
    }


def published_affinity() -> Affinity:
    """The RSA tensor of five Taskonomy tasks (MobileNetV2) that TreeMTL published."""
    stored = json.loads((FACTS / "treemtl_bmtn_rsa_head.json").read_text())
    return Affinity(stored["tasks"], [f"block{d}" for d in range(stored["D"])], np.array(stored["affinity_DTT"]))


Case = tuple[Affinity, list[float], str]


def sharing_cases() -> dict[str, Case]:
    """Affinities with the costs of five stages and what these count."""
    published = published_affinity()
    return {
        "five Taskonomy tasks (published)": (published, RESNET50[5], "params"),
        "the same, by FLOPs": (published, RESNET50_GMACS_FIVE, "flops"),
        "eight generated tasks, by FLOPs": (rsa_like(8, 5, 0), RESNET50_GMACS_FIVE, "flops"),
    }


def sharing(name: str, case: Case) -> list[Row]:
    """The best whole-network groups beside the best trees that are not larger."""
    affinity, costs, unit = case
    rows: list[Row] = []
    for objective in ("mean-max", "mean-pair"):
        compared = compare_sharing(affinity, costs, unit=unit, objective=objective)
        for group, saved in zip(compared.groups, compared.saved(), strict=True):
            row = {"affinity": name, "objective": objective, "networks": group.tree.widths[0], "cost": group.cost}
            rows.append(row | {"best_tree_cost": group.cost - saved})
    return rows


def plot_sharing(cases: dict[str, Case], path: Path) -> None:
    """Both fronts, one panel for each case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(cases), 3.6), layout="constrained")
    for ax, (name, (affinity, costs, unit)) in zip(figure.subplots(1, len(cases)), cases.items(), strict=True):
        draw_sharing_on(ax, compare_sharing(affinity, costs, unit=unit, objective="mean-pair"))
        ax.set_title(name, fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def heuristic_growth(n: int, objective: str, method: str) -> Row:
    affinity = rsa_like(n, 6, 0)
    start = time.process_time()
    found = search(affinity, RESNET50[6], Budget(0.5, relative=True), objective=objective, method=method)
    used = time.process_time() - start
    return {"n": n, "d": 6, "objective": objective, "method": method, "gap": found.gap, "search_cpu_seconds": used}


def plot_growth(fronts: list[Row], enumerated: list[Row], heuristics: list[Row], path: Path) -> None:
    """CPU seconds against tasks; names stand at the ends of the lines."""
    from matplotlib.figure import Figure

    lines: dict[str, tuple[str, list[tuple[int, float]]]] = {}

    def add(name: str, style: str, row: Row, seconds: str) -> None:
        lines.setdefault(name, (style, []))[1].append((row["n"], row[seconds]))

    for row in enumerated:
        add(f"enumeration, {row['d']} stages", "x--", row, "all_cpu_seconds")
    for row in fronts:
        if row["costs"] == "resnet50":
            add(f"exact front, {row['d']} stages", "o-", row, "front_cpu_seconds")
    for row in heuristics:
        name = "local search and bound" if row["method"] == "local" else "beam search (published) and bound"
        add(f"{name}, {row['objective']}", "s-" if row["method"] == "local" else "^:", row, "search_cpu_seconds")
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    ax = figure.add_subplot()
    for name, (style, points) in lines.items():
        ax.plot(*zip(*sorted(points), strict=True), style, label=name, markersize=4, linewidth=1.2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ticks = sorted({n for _, points in lines.values() for n, _ in points} & {4, 6, 8, 10, 15, 20, 30, 40, 60, 100, 200})
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("tasks")
    ax.set_ylabel("CPU seconds")
    ax.grid(alpha=0.3)
    figure.legend(fontsize=7.5, loc="outside right upper", frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--largest", action="store_true", help="also 200 tasks, which takes minutes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for clustering.md, .json and .svg")
    arguments = parser.parse_args()
    fronts = [(6, 5), (7, 5), (8, 5), (9, 5)] + ([] if arguments.quick else [(8, 6), (9, 6), (10, 6)])
    report: dict[str, list[Row]] = {}
    report["exact fronts"] = [
        measured(exact_front, n, d, kind) for n, d in fronts for kind in ("resnet50", "adversarial")
    ]
    report["exhaustive enumeration"] = [measured(enumeration, n, 5) for n in (4, 5, 6, 7, 8)]
    report["exact, one budget"] = [measured(exact_budget, n, 4) for n in ((9, 10) if arguments.quick else (10, 11, 12))]
    sizes = ((20, 4),) if arguments.quick else ((20, 6), (40, 6))
    report["many tasks"] = [
        measured(many, n, d, objective, share, method, seed)
        for n, d in sizes
        for objective in ("mean-max", "mean-pair")
        for share in (0.3, 0.6)
        for seed in (0, 1)
        for method in ("local", "beam")
    ]
    if arguments.largest:
        report["many tasks"] += [measured(many, 200, 6, "mean-max", 0.5, "local", 0)]
    report["many tasks, real affinities"] = [
        measured(real_many, name, objective, unit, share)
        for name in ("handwriting", "molecules")
        for objective in ("mean-max", "mean-pair")
        for unit in ("params", "flops")
        for share in (0.3, 0.6)
    ]
    growth = (8, 15) if arguments.quick else (8, 15, 30, 60) + ((100, 200) if arguments.largest else ())
    report["growth of the heuristics"] = [
        measured(heuristic_growth, n, objective, method)
        for objective in ("mean-max", "mean-pair")
        for method in ("local", "beam")
        for n in growth
        if method == "local" or n <= 60
    ]
    report["gaps at few tasks"] = [measured(small_gaps, n, 5, objective, 3) for n in (7, 8) for objective in OBJECTIVES]
    cases = sharing_cases()
    report["groups of whole networks beside trees"] = [row for name, c in cases.items() for row in sharing(name, c)]
    text = "# Clustering\n\n" + "\n\n".join(f"## {name}\n\n{table(rows)}" for name, rows in report.items()) + "\n"
    print(text)
    write_text(arguments.out / "clustering.md", text)
    write_text(arguments.out / "clustering.json", json.dumps(report, indent=1) + "\n")
    enumerated, heuristics = report["exhaustive enumeration"], report["growth of the heuristics"]
    plot_growth(report["exact fronts"], enumerated, heuristics, arguments.out / "clustering.svg")
    plot_sharing(cases, arguments.out / "clustering_sharing.svg")


if __name__ == "__main__":
    main()
