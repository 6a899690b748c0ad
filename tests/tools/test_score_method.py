"""Scoring predictions from the command line, on a table in which the truth is known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from branchnet import enumerate_trees
from branchnet.training.studies.tree_tables import labels_text

SCRIPT = Path(__file__).parents[2] / "tools" / "score_method.py"
TASKS = ("a", "b", "c")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    problem = {
        "tasks": {task: {"metric": "accuracy", "lower_is_better": False} for task in TASKS},
        "stages": [1, 1],
        "heads": dict.fromkeys(TASKS, 1),
    }
    (tmp_path / "problems.json").write_text(json.dumps({"toy": problem}))
    names = [labels_text(tree) for tree in enumerate_trees(TASKS, 2)]
    rows = [f"{name},0,{90 + k},{90 + k},{90 + k}" for k, name in enumerate(names)]
    (tmp_path / "toy_labels.csv").write_text("\n".join(["tree,seed,a,b,c", *rows]) + "\n")
    methods = [f"{name},{-k},{k}" for k, name in enumerate(names)]
    (tmp_path / "methods.csv").write_text("\n".join(["tree,truth,opposite", *methods]) + "\n")
    return tmp_path / "toy_labels.csv"


def scored(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_the_truth_is_in_order_and_its_opposite_in_none(table: Path) -> None:
    done = scored(table, table.with_name("methods.csv"))
    assert done.returncode == 0, done.stderr
    lines = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.count("│") > 3}
    assert "1.00 [1.00, 1.00]" in lines["truth"] and "100%" in lines["truth"]
    assert "-1.00" in lines["opposite"] and " 0%" in lines["opposite"]
    assert {"number of nodes", "parameters"} <= set(lines)


def test_predictions_that_lack_trees_are_refused(table: Path) -> None:
    whole = table.with_name("methods.csv").read_text().splitlines()
    table.with_name("methods.csv").write_text("\n".join(whole[:-1]) + "\n")
    done = scored(table, table.with_name("methods.csv"))
    assert done.returncode == 2 and "lacks 1 trees of the table" in done.stderr
