"""The page of evidence, and the tables that it rests on, recomputed."""

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
RESULTS = ROOT / "benchmarks" / "results" / "all_trees"
TABLES = sorted(path.stem for path in RESULTS.glob("*_*.csv"))
METHODS = ("RSA, mean-pair", "RSA, medoid", "TAG, gain", "stitching loss, directed medoid", "more parameters")


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def reached(name: str) -> dict[str, float]:
    """Delta of each tree to the separate networks, without what all trees of a seed have in common, by hand."""
    rows = rows_of(name)
    problem = json.loads((RESULTS / "problems.json").read_text())[name.rsplit("_", 1)[0]]
    signs = {task: -1 if known["lower_is_better"] else 1 for task, known in problem["tasks"].items()}
    separate = [row for row in rows if row["tree"] == "0123 0123 0123"]
    base = {task: np.mean([float(row[task]) for row in separate]) for task in signs}
    deltas: dict[str, dict[str, float]] = {}
    for row in rows:
        changes = [100 * sign * (float(row[task]) - base[task]) / abs(base[task]) for task, sign in signs.items()]
        deltas.setdefault(row["tree"], {})[row["seed"]] = float(np.mean(changes))
    seeds = sorted({row["seed"] for row in rows})
    complete = [found for found in deltas.values() if len(found) == len(seeds)]
    means = {seed: np.mean([found[seed] for found in complete]) for seed in seeds}
    overall = np.mean(list(means.values()))
    return {
        tree: float(np.mean([value - means[seed] + overall for seed, value in found.items()]))
        for tree, found in deltas.items()
    }


def test_the_page_is_of_these_scores() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "evidence_page.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", TABLES)
def test_scores_follow_from_tables_and_predictions(name: str) -> None:
    truth = reached(name)
    with (RESULTS / "predictions" / f"{name}.csv").open(newline="") as stream:
        predicted = {row["tree"]: row for row in csv.DictReader(stream)}
    scores = json.loads((RESULTS / "scores.json").read_text())[", ".join(name.rsplit("_", 1))]["scores"]
    assert set(truth) == set(predicted)
    trees = list(truth)
    for method in METHODS:
        costs = [float(predicted[tree][method]) for tree in trees]
        found = stats.spearmanr(np.negative(costs), [truth[tree] for tree in trees]).statistic
        assert scores[method]["spearman"][0] == pytest.approx(found, abs=2e-3), method


@pytest.mark.parametrize("name", TABLES)
def test_tables_hold_what_they_say(name: str) -> None:
    rows = rows_of(name)
    assert len({(row["tree"], row["seed"]) for row in rows}) == len(rows)
    assert len({row["tree"] for row in rows}) == (40 if name.startswith("camvid") else 154)
    assert len({row["steps"] for row in rows}) == 1


@pytest.mark.slow
@pytest.mark.skipif("BRANCHNET_DATA" not in os.environ, reason="BRANCHNET_DATA names no folder with the data sets")
@pytest.mark.parametrize("start", ["labels", "distilled"])
def test_two_trees_trained_again_are_as_in_the_table(start: str, tmp_path: Path) -> None:
    """The command that made the tables, for two of tox21's trees."""
    program = (
        "import sys; sys.path.insert(0, 'benchmarks')\n"
        "import json, pathlib, all_trees, tree_problems\n"
        f"data, work = pathlib.Path({os.environ['BRANCHNET_DATA']!r}), pathlib.Path({str(tmp_path)!r})\n"
        "problem = tree_problems.load('tox21', data)\n"
        "every = all_trees.arms_of(problem, first=True)\n"
        "arms = {name: every[name] for name in ('0123 0123 0123', '0000 0012 0123')}\n"
        f"study = all_trees.run(problem, {start!r}, 0, work / 'single', work / 'runs', arms)\n"
        "print(json.dumps({run.arm: dict(run.metrics) for run in study.runs}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    kept = {row["tree"]: row for row in rows_of(f"tox21_{start}") if row["seed"] == "0"}
    for name, metrics in found.items():
        for task, value in metrics.items():
            assert value == pytest.approx(float(kept[name][task]), abs=0.2), (name, task)  # of other processors, points
