"""The page of published procedures, and its numbers recomputed from the lines behind it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "published_procedures"
TABLES = sorted(path.stem for path in RESULTS.glob("*.csv"))
SINGLE = ("BMTN", "Standley, all sets", "TAG", "TreeMTL", "ours: RSA, stitched", "ours: HOA, refined")
"""Procedures with one choice for each seed, whose interval is that of paired differences."""
KNOWN = {"seed", "procedure", "budget", "number", "networks", "inference", "search", "final"}


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def section(title: str) -> dict[str, list[str]]:
    """The cells of a table of the page, by the first one."""
    page = (ROOT / "docs" / "published_procedures.md").read_text(encoding="utf-8")
    part = next(text for text in page.split("### ") if text.startswith(title))
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


def test_the_page_is_of_these_results() -> None:
    script = ROOT / "tools" / "published_procedures.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", TABLES)
def test_deltas_and_intervals_follow_from_the_lines(name: str) -> None:
    problem = json.loads((ROOT / "benchmarks/results/all_trees/problems.json").read_text())[name]["tasks"]
    rows, shown = rows_of(name), section(f"{name}: Delta")
    tasks = [key for key in rows[0] if key not in KNOWN]
    signs = np.array([-1 if problem[task]["lower_is_better"] else 1 for task in tasks])

    def values(procedure: str, budget: str | None = None) -> np.ndarray:
        own = [row for row in rows if row["procedure"] == procedure and budget in (None, row["budget"])]
        own.sort(key=lambda row: int(row["seed"]))
        return np.array([[float(row[task]) for task in tasks] for row in own])

    separate = values("separate")
    budgets = shown["procedure"][: len({row["budget"] for row in rows})]
    for procedure in SINGLE:
        for column, budget in enumerate(text.removesuffix(" trunks") for text in budgets):
            found = values(procedure, budget)
            deltas = (100 * signs * (found - separate) / separate.mean(0)).mean(1)
            half = stats.t.ppf(0.975, len(deltas) - 1) * stats.sem(deltas)
            assert shown[procedure][column].startswith(f"{deltas.mean():+.2f} ± {half:.2f} ("), (procedure, budget)


@pytest.mark.parametrize("name", TABLES)
def test_costs_are_those_of_the_networks(name: str) -> None:
    for row in rows_of(name):
        networks = row["networks"].split()
        assert float(row["inference"]) <= float(row["budget"]) + 1e-3 or row["procedure"].startswith("separate")
        if row["procedure"] == "Standley, all sets":  # 15 sets, and four networks of half the width
            assert 16.5 < float(row["search"]) < 17.5 and float(row["final"]) == 0
        elif row["procedure"] == "TreeMTL":  # four networks and 6 x 3 pairs of at least a trunk each
            assert float(row["search"]) > 22 and float(row["final"]) <= float(row["inference"])
        elif row["procedure"] == "TAG":
            assert 1 < float(row["search"]) < 1.5 and float(row["final"]) == len(networks)
        elif row["procedure"] in ("random trees", "random groups"):
            assert float(row["search"]) == 0 and row["final"] == row["inference"]


def test_every_procedure_ran_under_every_seed_and_budget() -> None:
    for name in TABLES:
        rows = rows_of(name)
        counts: dict[tuple[str, str], list[int]] = {}
        for row in rows:
            counts.setdefault((row["procedure"], row["budget"]), []).append(int(row["seed"]))
        seeds = sorted({int(row["seed"]) for row in rows})
        for found in counts.values():
            assert sorted(set(found)) == seeds and len(found) % len(seeds) == 0


@pytest.mark.slow
@pytest.mark.skipif("BRANCHNET_DATA" not in os.environ, reason="BRANCHNET_DATA names no folder with the data sets")
def test_two_networks_trained_again_are_as_in_the_lines(tmp_path: Path) -> None:
    """A single-task network and one of all tasks, under the first seed."""
    program = (
        "import sys; sys.path.insert(0, 'benchmarks')\n"
        "import json, pathlib, torch, tree_problems\n"
        "from procedures.choices import whole\n"
        "from procedures.trained_networks import Setting, train_network\n"
        "torch.set_num_threads(1)\n"
        f"data, work = pathlib.Path({os.environ['BRANCHNET_DATA']!r}), pathlib.Path({str(tmp_path)!r})\n"
        "setting = Setting.divided(tree_problems.load('ett', data), 0, work)\n"
        "sets = [['OT'], list(setting.problem.tasks)]\n"
        "print(json.dumps([train_network(setting, whole(tasks, 3))['test'] for tasks in sets]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    single, shared = json.loads(done.stdout.splitlines()[-1])
    kept = {row["procedure"]: row for row in rows_of("ett") if row["seed"] == "0"}
    assert single["OT"] == pytest.approx(float(kept["separate"]["OT"]), rel=0.01)  # of other processors
    assert shared == pytest.approx({task: float(kept["shared"][task]) for task in shared}, rel=0.01)
